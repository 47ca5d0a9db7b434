//! The WAL budget: how much WAL a source keeps for its slot, how much it may, and what is done
//! before it is too much.
//!
//! A slot that is not read makes PostgreSQL keep WAL until the disk is full, or, with
//! `max_slot_wal_keep_size`, until it gives the slot up. Both come without a word to whoever reads
//! the slot. So each source is looked at every few seconds: what it keeps, against the smaller of
//! our own budget and what PostgreSQL allows, and from how fast its WAL grows, how long that lasts.
//!
//! ```text
//! share of the budget   0 ───────── 60 % ─────────── 90 % ──────── 100 %
//!                         quiet       warns: log, metric,  not ready; the policy acts:
//!                                     detail in /readyz    keep, or drop-slot
//! ```
//!
//! Reading more into memory would not help: a slot is confirmed only up to what is durable, and
//! capture already reads as fast as the log takes it.

use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::service::Shared;
use crate::config::WalPolicy;
use crate::pg::{self, Connection, SlotWal, Target};
use crate::registry::Source;
use crate::telemetry::ErrorChain;
use crate::vocab::Lsn;

/// Share of the budget from which on it is said.
const WARN_PERCENT: u64 = 60;

/// Share of the budget from which on something is done.
const ACT_PERCENT: u64 = 90;

/// Share that the latest interval has in the rate at which WAL grows.
const RATE_WEIGHT: f64 = 0.3;

/// How much of the WAL budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Little.
    Low,
    /// Much.
    High,
    /// Nearly all.
    Critical,
}

/// The WAL that a source keeps for its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalStatus {
    /// How much it keeps, in bytes.
    pub retained_bytes: u64,
    /// How much it may keep; `None` when nothing limits it.
    pub budget_bytes: Option<u64>,
    /// When the budget is used up if it goes on like this, in seconds.
    pub seconds_left: Option<u64>,
    /// How much of the budget is used.
    pub level: WalLevel,
}

impl WalStatus {
    /// `budget` is our own.
    fn new(wal: &SlotWal, budget: Option<u64>, bytes_per_second: f64) -> Self {
        let retained = wal.retained;
        let limit = wal.safe.map(|safe| retained.saturating_add(safe));
        let budget_bytes = [budget, limit].into_iter().flatten().min();
        let level = match budget_bytes {
            Some(budget) if reaches(retained, budget, ACT_PERCENT) => WalLevel::Critical,
            Some(budget) if reaches(retained, budget, WARN_PERCENT) => WalLevel::High,
            Some(_) | None => WalLevel::Low,
        };
        let left = budget_bytes.map(|budget| budget.saturating_sub(retained));
        let seconds_left = left
            .filter(|_| bytes_per_second >= 1.0)
            .map(|left| (left as f64 / bytes_per_second) as u64);
        Self { retained_bytes: retained, budget_bytes, seconds_left, level }
    }

    /// In words, for those who have to do something about it.
    pub fn sentence(&self) -> String {
        let budget = self.budget_bytes.unwrap_or_default();
        let lasts = self.seconds_left.map(|seconds| {
            let duration = humantime::format_duration(Duration::from_secs(seconds));
            format!("; at this rate the rest lasts {duration}")
        });
        format!(
            "its slot holds back {} of at most {budget} bytes of WAL{}",
            self.retained_bytes,
            lasts.unwrap_or_default()
        )
    }
}

fn reaches(retained: u64, budget: u64, percent: u64) -> bool {
    u128::from(retained) * 100 >= u128::from(budget) * u128::from(percent)
}

/// How fast WAL grows, smoothed.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, Lsn)>,
    bytes_per_second: f64,
}

impl Rate {
    fn update(&mut self, now: Instant, end: Lsn) -> f64 {
        if let Some((then, before)) = self.last.replace((now, end)) {
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            if seconds > 0.0 {
                let latest = end.get().saturating_sub(before.get()) as f64 / seconds;
                self.bytes_per_second += RATE_WEIGHT * (latest - self.bytes_per_second);
            }
        }
        self.bytes_per_second
    }
}

/// Looks after the WAL budget of one source.
pub(super) struct Budget {
    /// What it needs and reports to.
    pub(super) shared: Arc<Shared>,
    /// The source.
    pub(super) source: Arc<Source>,
}

impl Budget {
    /// Looks until `stop`. A source that cannot be looked at is tried again: what keeps it is said
    /// by its capture.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&self) {
        let options = &self.shared.options;
        let mut ticks = interval(options.heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut connection, mut rate) = (None, Rate::default());
        loop {
            ticks.tick().await;
            let look = timeout(options.heartbeat_deadline, self.look(&mut connection, &mut rate));
            match look.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = ErrorChain(&error).to_string();
                    tracing::debug!(source = %self.source.name, error, "WAL not looked at");
                    connection = None;
                }
                Err(_) => connection = None,
            }
        }
    }

    async fn look(
        &self,
        connection: &mut Option<Connection>,
        rate: &mut Rate,
    ) -> Result<(), pg::Error> {
        let client = match connection {
            Some(client) => client,
            None => {
                let target = Target::resolve(&self.source.url)?;
                let made = target.connect("cadastre budget", &self.shared.postgres).await?;
                connection.insert(made)
            }
        };
        let Some(wal) = pg::slot_wal(client, &self.source.name.slot()).await? else {
            self.shared.set_wal(&self.source.name, None);
            return Ok(());
        };
        let bytes_per_second = rate.update(Instant::now(), wal.end);
        let status = WalStatus::new(&wal, self.shared.options.wal_budget, bytes_per_second);
        self.show(&status);
        let (level, sentence) = (status.level, status.sentence());
        let before = self.shared.set_wal(&self.source.name, Some(status));
        if before.as_ref().map_or(WalLevel::Low, |before| before.level) < level {
            tracing::warn!(source = %self.source.name, ?level, "{sentence}");
        }
        if level == WalLevel::Critical && self.shared.options.wal_policy == WalPolicy::DropSlot {
            tracing::error!(source = %self.source.name, "dropping the slot to protect the source: {sentence}");
            pg::take_slot_away(client, &self.source.name.slot()).await?;
        }
        Ok(())
    }

    fn show(&self, status: &WalStatus) {
        let label = || self.source.name.to_string();
        gauge!("cadastre_capture_wal_retained_bytes", "source" => label())
            .set(status.retained_bytes as f64);
        if let Some(budget) = status.budget_bytes {
            gauge!("cadastre_capture_wal_budget_bytes", "source" => label()).set(budget as f64);
        }
        // Prometheus knows infinity, and it sorts behind every deadline.
        let left = status.seconds_left.map_or(f64::INFINITY, |seconds| seconds as f64);
        gauge!("cadastre_capture_wal_left_seconds", "source" => label()).set(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(retained: u64, safe: Option<u64>) -> SlotWal {
        SlotWal { retained, safe, end: Lsn::ZERO }
    }

    #[test]
    fn the_smaller_limit_is_the_budget() {
        let budget = |safe, own| WalStatus::new(&wal(10, safe), own, 0.0).budget_bytes;
        assert_eq!(budget(None, None), None);
        assert_eq!(budget(Some(20), None), Some(30));
        assert_eq!(budget(Some(20), Some(100)), Some(30));
        assert_eq!(budget(Some(20), Some(15)), Some(15));
    }

    #[test]
    fn levels_rise_with_the_share_that_is_used() {
        let level = |retained| WalStatus::new(&wal(retained, None), Some(100), 0.0).level;
        assert_eq!([0, 59, 60, 89, 90, 200].map(level), {
            use WalLevel::{Critical, High, Low};
            [Low, Low, High, High, Critical, Critical]
        });
        assert_eq!(WalStatus::new(&wal(u64::MAX, None), None, 9.0).level, WalLevel::Low);
    }

    #[test]
    fn what_is_left_is_told_in_time() {
        let status = WalStatus::new(&wal(1_000, Some(600)), None, 10.0);
        assert_eq!(status.seconds_left, Some(60));
        assert_eq!(
            status.sentence(),
            "its slot holds back 1000 of at most 1600 bytes of WAL; at this rate the rest lasts 1m"
        );
        assert_eq!(WalStatus::new(&wal(1_000, Some(600)), None, 0.0).seconds_left, None);
    }

    #[test]
    fn the_rate_follows_what_is_written() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert!(rate.update(start, Lsn::new(0)).abs() < f64::EPSILON);
        for second in 1..=40 {
            rate.update(start + Duration::from_secs(second), Lsn::new(second * 100));
        }
        assert!((rate.bytes_per_second - 100.0).abs() < 1.0, "{rate:?}");
        // A database that was put back does not write less than nothing.
        assert!(rate.update(start + Duration::from_secs(41), Lsn::new(5)) >= 0.0);
    }
}
