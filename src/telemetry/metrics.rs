//! Metrics, kept in memory and rendered in Prometheus' text format.
//!
//! The rooms record through the `metrics` crate's macros; names begin with `cadastre_`, carry their
//! unit last, and counters end in `_total`. Labels are names of sources, datasets, subscriptions:
//! never anything a client makes up.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Error;

/// Upper bounds for durations in seconds: from a commit on a local disk to a stuck dependency.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Upper bounds for sizes in bytes: from one change to the largest request.
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
/// How often samples are folded into their buckets. Until then each takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The one recorder of this process.
static INSTALLED: Mutex<Option<Metrics>> = Mutex::new(None);

/// Everything measured so far. Cheap to clone; clones show the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// The metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Keeps the memory of histograms bounded until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

/// The metrics of this process. The first call starts recording; what was measured before is lost.
pub fn metrics() -> Result<Metrics, Error> {
    let mut installed = INSTALLED.lock();
    if let Some(metrics) = &*installed {
        return Ok(metrics.clone());
    }
    let metrics = Metrics { handle: install().map_err(Error::Metrics)? };
    *installed = Some(metrics.clone());
    Ok(metrics)
}

/// Installs the recorder.
fn install() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
        .install_recorder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_rooms_measure_is_rendered_with_buckets() {
        let recorded = metrics().unwrap();
        ::metrics::counter!("cadastre_told_total", "source" => "shop").increment(2);
        ::metrics::histogram!("cadastre_wait_seconds").record(0.003);
        let stop = CancellationToken::new();
        stop.cancel();
        recorded.run(stop).await;
        let text = metrics().unwrap().render();
        for line in [
            "cadastre_told_total{source=\"shop\"} 2",
            "cadastre_wait_seconds_bucket{le=\"0.0025\"} 0",
            "cadastre_wait_seconds_bucket{le=\"0.005\"} 1",
            "cadastre_wait_seconds_count 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in:\n{text}");
        }
    }
}
