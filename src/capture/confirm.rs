//! Writes down what is about to be confirmed to a slot, and only then lets it be confirmed.
//!
//! So the registry always knows at least as much as the slot: a slot that stands further than what
//! was written down was moved by somebody else, or is another one. That costs one small statement a
//! second for a source in which something happens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::service::Shared;
use crate::registry::Source;
use crate::telemetry::ErrorChain;
use crate::vocab::Lsn;

/// Longest that nothing new may be confirmed because it cannot be written down.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(5);

/// Heartbeats that may be ahead of what is durable; older ones matter less than later ones.
const HEARTBEATS_MAX: usize = 64;

/// Heartbeats read from the stream and not written down yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Heartbeats {
    read: Arc<Mutex<VecDeque<(Lsn, String)>>>,
}

impl Heartbeats {
    /// One was read.
    pub(super) fn push(&self, lsn: Lsn, id: &str) {
        let mut read = self.read.lock();
        if read.len() == HEARTBEATS_MAX {
            read.pop_front();
        }
        read.push_back((lsn, id.to_owned()));
    }

    /// The last one before `confirmed`; those before it are forgotten.
    fn last_before(&self, confirmed: Lsn) -> Option<(Lsn, String)> {
        let mut read = self.read.lock();
        let mut last = None;
        while let Some(heartbeat) = read.pop_front_if(|(lsn, _)| *lsn < confirmed) {
            last = Some(heartbeat);
        }
        last
    }
}

/// Between what is durable and what is confirmed, for one session.
pub(super) struct Confirm {
    /// What it needs and reports to.
    pub(super) shared: Arc<Shared>,
    /// The source.
    pub(super) source: Arc<Source>,
    /// What is durable in the log.
    pub(super) durable: watch::Receiver<Lsn>,
    /// What may be confirmed.
    pub(super) confirmed: watch::Sender<Lsn>,
    /// What the session read.
    pub(super) heartbeats: Heartbeats,
    /// Tells the session that nothing can be confirmed any more.
    pub(super) failed: CancellationToken,
}

impl Confirm {
    /// Runs until `stop`, or until nothing can be confirmed any more.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let work = async {
            while self.durable.changed().await.is_ok() {
                if !self.step().await {
                    self.failed.cancel();
                    return;
                }
                tokio::time::sleep(self.shared.options.feedback).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Writes down what is durable now; false when that can be or could be done no more.
    async fn step(&mut self) -> bool {
        let deadline = Instant::now() + UNCONFIRMED_MAX;
        loop {
            let lsn = *self.durable.borrow_and_update();
            let heartbeat = self.heartbeats.last_before(lsn);
            let registry = &self.shared.registry;
            match registry.slot_confirm(self.source.id, lsn, heartbeat.as_ref()).await {
                Ok(true) => {
                    self.confirmed.send_replace(lsn);
                    return true;
                }
                Ok(false) => return false,
                Err(error) => {
                    tracing::debug!(
                        source = %self.source.name, error = %ErrorChain(&error),
                        "what is durable cannot be written down, and so not be confirmed"
                    );
                    if Instant::now() >= deadline {
                        return false;
                    }
                    tokio::time::sleep(self.shared.options.feedback).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_heartbeat_before_what_is_confirmed_is_written_down() {
        let heartbeats = Heartbeats::default();
        assert_eq!(heartbeats.last_before(Lsn::new(9)), None);
        for lsn in 1..=100 {
            heartbeats.push(Lsn::new(lsn), &format!("a-{lsn}"));
        }
        assert_eq!(heartbeats.last_before(Lsn::new(60)), Some((Lsn::new(59), "a-59".to_owned())));
        assert_eq!(heartbeats.last_before(Lsn::new(60)), None);
        assert_eq!(heartbeats.read.lock().len(), 41);
    }
}
