//! Turns: one change of a source at a time in this process; the lock in the source covers the other
//! processes. A source that hangs keeps nobody waiting but those who want the same source.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::vocab::SourceName;

/// Whose turn it is, for each source.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    sources: Arc<Mutex<BTreeMap<SourceName, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Somebody's turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _held: Vec<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits, at most `patience`, for the turn in all of `sources`; `Err` has the one that was not
    /// to be had. Everyone takes them in the same order, so that nobody waits in a circle.
    pub(super) async fn take(
        &self,
        sources: &BTreeSet<SourceName>,
        patience: Duration,
    ) -> Result<Turn, SourceName> {
        let deadline = Instant::now() + patience;
        let mut held = Vec::with_capacity(sources.len());
        for name in sources {
            let source = Arc::clone(self.sources.lock().entry(name.clone()).or_default());
            let turn = timeout_at(deadline, source.lock_owned()).await;
            held.push(turn.map_err(|_| name.clone())?);
        }
        Ok(Turn { _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<SourceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn only_those_who_want_the_same_source_wait() {
        let turns = Turns::default();
        let long = Duration::from_secs(600);
        let held = turns.take(&names(&["hangs"]), long).await.unwrap();
        drop(turns.take(&names(&["shop", "stock"]), long).await.unwrap());
        drop(turns.take(&names(&[]), Duration::ZERO).await.unwrap());
        let refused = turns.take(&names(&["hangs", "shop"]), Duration::from_millis(1)).await;
        assert_eq!(refused.unwrap_err().as_str(), "hangs");
        // Nothing is kept of what was had before it failed.
        drop(turns.take(&names(&["shop"]), Duration::from_millis(1)).await.unwrap());
        drop(held);
        turns.take(&names(&["hangs", "shop"]), Duration::from_millis(1)).await.unwrap();
    }
}
