//! Who was seen writing what: the record of violations, counted.
//!
//! A transaction that was let through is one violation for each dataset and role. So a count is of
//! transactions, and an operation is what one of them began with. The owner's own writes are none.

use chrono::{DateTime, Utc};

use super::{Error, Registry, store};
use crate::vocab::SourceId;

/// The reserved service that owns what nobody has claimed yet: it has no roles, and what it owns can
/// only be observed.
pub const UNOWNED: &str = "unowned";

/// A role that was seen writing a dataset that is not its service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableWriter {
    /// The dataset's name.
    pub dataset: String,
    /// The role.
    pub role: String,
    /// Its service, if it had one.
    pub service: Option<String>,
    /// A superuser.
    pub privileged: bool,
    /// In how many transactions.
    pub transactions: i64,
    /// What those began with, sorted.
    pub operations: Vec<String>,
    /// First.
    pub first_seen: DateTime<Utc>,
    /// Last.
    pub last_seen: DateTime<Utc>,
}

impl Registry {
    /// Everybody who was let through in a source and is not the owner, by dataset, most transactions
    /// first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn writers(&self, source: SourceId) -> Result<Vec<TableWriter>, Error> {
        self.within(async |connection| Ok(store::writers(connection, source).await?)).await
    }
}
