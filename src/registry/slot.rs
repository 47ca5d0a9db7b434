//! What was last known of a source's slot and cluster: what the next session compares with what it
//! finds.

use super::{Error, Registry, store};
use crate::pg::PooledConnection;
use crate::vocab::{Epoch, Lsn, SourceId};

/// A source's slot as it was when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRecord {
    /// The cluster's identifier, given by initdb.
    pub system_identifier: String,
    /// The timeline that the cluster was on.
    pub timeline: u32,
    /// All that committed before this has been handled; nothing further has been confirmed.
    pub confirmed: Lsn,
    /// The last heartbeat before `confirmed`, and its id.
    pub heartbeat: Option<(Lsn, String)>,
    /// Why continuity ended, while that does not stand in the log.
    pub broken: Option<String>,
}

impl Registry {
    /// What is known of a source's slot; `None` before its first session.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn slot_record(&self, source: SourceId) -> Result<Option<SlotRecord>, Error> {
        self.within(async |connection| Ok(store::slot_record(connection, source).await?)).await
    }

    /// Replaces what is known of a source's slot.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn slot_record_put(
        &self,
        source: SourceId,
        record: &SlotRecord,
    ) -> Result<(), Error> {
        let put = async |connection: &mut PooledConnection| {
            Ok(store::slot_record_put(connection, source, record).await?)
        };
        self.within(put).await
    }

    /// Notes how far a source's slot is about to be confirmed, and the last heartbeat before that.
    /// It never goes back. False when continuity has ended meanwhile: then nothing may be confirmed.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn slot_confirm(
        &self,
        source: SourceId,
        confirmed: Lsn,
        heartbeat: Option<&(Lsn, String)>,
    ) -> Result<bool, Error> {
        let confirm = async |connection: &mut PooledConnection| {
            Ok(store::slot_confirm(connection, source, confirmed, heartbeat).await?)
        };
        self.within(confirm).await
    }

    /// Notes that continuity has ended and why, and begins the next epoch.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn epoch_begin(
        &self,
        source: SourceId,
        epoch: Epoch,
        record: &SlotRecord,
    ) -> Result<(), Error> {
        let begin = async |connection: &mut PooledConnection| {
            store::epoch_begin(connection, source, epoch, record).await
        };
        self.publish(self.within(begin).await?);
        Ok(())
    }
}
