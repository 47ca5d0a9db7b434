//! Where a guard is not known to have stood, and what the installed guard looks like.
//!
//! A [`GuardGap`] is a stretch of a source's WAL. A change that committed in it may have been written
//! by anybody: `writer.verified` is false. A gap is told of by messages in the WAL itself, so its
//! bounds are commits, and a change read twice is judged the same both times:
//!
//! ```text
//!   last sound look        the guard is off       told           stands again
//!  ──────┬──────────────────────┬──────────────────┬──────────────────┬────────► commits
//!      from                     ?                told                 to
//!        └── delivered before it was known ────────┘
//!        └──────────────────── not vouched for ───────────────────────┘
//! ```
//!
//! Where the source itself tells of it (its event triggers stand), `from` is `told` and nothing is
//! delivered with a wrong flag. Otherwise a comparison tells, up to one interval later.

use std::collections::BTreeMap;

use super::{Error, Registry, store};
use crate::vocab::{DatasetId, Epoch, Lsn, SourceId};

/// A stretch of WAL in which nobody vouches for the writers of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardGap {
    /// The generation of the slot.
    pub epoch: Epoch,
    /// The first commit that may lie in it, inclusive.
    pub from: Lsn,
    /// The commit with which the guard stood again, exclusive; `None` while it lasts.
    pub to: Option<Lsn>,
}

impl GuardGap {
    /// Whether a transaction that committed here lies in it.
    pub fn contains(&self, epoch: Epoch, commit: Lsn) -> bool {
        self.epoch == epoch && self.from <= commit && self.to.is_none_or(|to| commit < to)
    }
}

/// What a source's guard looked like in its catalog when it was installed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// The version of the scripts that made it.
    pub version: String,
    /// A digest of each object's definition, owner and privileges, by kind and name.
    pub objects: BTreeMap<String, String>,
    /// Where the WAL ended when everything was last seen to be as it should.
    pub sound: Option<Lsn>,
}

impl Registry {
    /// What the guard of a source looked like when it was installed; `None` before that.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn baseline(&self, source: SourceId) -> Result<Option<Baseline>, Error> {
        self.within(async |connection| Ok(store::baseline(connection, source).await?)).await
    }

    /// Keeps what the guard of a source looks like now that it is installed, and, when it is the
    /// first time, from where on it stands.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn baseline_put(
        &self,
        source: SourceId,
        version: &str,
        objects: &BTreeMap<String, String>,
        from: Lsn,
    ) -> Result<(), Error> {
        self.within(async |connection| {
            Ok(store::baseline_put(connection, source, version, objects, from).await?)
        })
        .await
    }

    /// Notes that up to here everything was as it should be.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn baseline_sound(&self, source: SourceId, lsn: Lsn) -> Result<(), Error> {
        self.within(async |connection| Ok(store::baseline_sound(connection, source, lsn).await?))
            .await
    }

    /// Records that from a commit on nobody vouches for a dataset's writers. `since` is the last
    /// place where all was well, where that is known; it lies before `told`. Recording the same
    /// again changes nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn gap_open(
        &self,
        dataset: DatasetId,
        epoch: Epoch,
        told: Lsn,
        since: Option<Lsn>,
    ) -> Result<(), Error> {
        let from = since.filter(|since| *since < told).unwrap_or(told);
        let change = async |connection: &mut crate::pg::PooledConnection| {
            store::gap_open(connection, dataset, epoch, told, from).await
        };
        self.publish(self.within(change).await?);
        Ok(())
    }

    /// Records that with this commit the guard of a dataset stood again.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn gap_close(&self, dataset: DatasetId, epoch: Epoch, at: Lsn) -> Result<(), Error> {
        let change = async |connection: &mut crate::pg::PooledConnection| {
            store::gap_close(connection, dataset, epoch, at).await
        };
        self.publish(self.within(change).await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_begins_with_its_first_commit_and_ends_before_the_guard_stands() {
        let gap = GuardGap { epoch: Epoch::FIRST, from: Lsn::new(10), to: Some(Lsn::new(20)) };
        let within = |lsn| gap.contains(Epoch::FIRST, Lsn::new(lsn));
        assert_eq!([9, 10, 19, 20].map(within), [false, true, true, false]);
        assert!(!gap.contains(Epoch::new(2), Lsn::new(15)));
        let lasting = GuardGap { to: None, ..gap };
        assert!(lasting.contains(Epoch::FIRST, Lsn::new(u64::MAX)));
    }
}
