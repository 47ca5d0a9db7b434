//! Leaving: datasets and sources that are governed no longer.
//!
//! The registry says so first, then the source is cleared; so that whatever dies in between, what is
//! left to do is known. History stays: who owned it, what was attempted, what was found.

use super::{Error, Registry, Revision, store};
use crate::pg::PooledConnection;
use crate::vocab::{DatasetName, SourceId, SourceName};

impl Registry {
    /// Ends the ownership of a dataset: nobody owns it from here on, and it is shown no more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when a subscription reads it; [`Error::Unavailable`].
    pub async fn dataset_release(&self, dataset: &DatasetName) -> Result<Revision, Error> {
        let change = async |connection: &mut PooledConnection| {
            store::dataset_release(connection, dataset).await
        };
        Ok(self.publish(self.within(change).await?))
    }

    /// Releases every dataset of a source, gives up its roles and marks it as leaving. Doing it again
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Registry::dataset_release`].
    pub async fn source_leave(&self, source: &SourceName) -> Result<Revision, Error> {
        let change =
            async |connection: &mut PooledConnection| store::source_leave(connection, source).await;
        Ok(self.publish(self.within(change).await?))
    }

    /// Marks a source that was leaving as gone: nothing stands in it any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn source_left(&self, source: SourceId) -> Result<Revision, Error> {
        let change =
            async |connection: &mut PooledConnection| store::source_left(connection, source).await;
        Ok(self.publish(self.within(change).await?))
    }
}
