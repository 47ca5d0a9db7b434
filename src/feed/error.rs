//! Why a feed could not be opened, or ended.

use crate::capture::snapshot;
use crate::vocab::{DatasetName, Position, Retry, SourceName};
use crate::{log, pg, registry};

/// Why a feed could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dataset nobody registered.
    #[error("no dataset is named \"{0}\"")]
    UnknownDataset(DatasetName),
    /// The request cannot be served as it is; the text says what can.
    #[error("{0}")]
    Invalid(String),
    /// As many feeds as this server bears are open.
    #[error("too many feeds are open: at most {limit} at a time")]
    Full {
        /// The most at a time.
        limit: usize,
    },
    /// As many snapshots as this server bears are under way.
    #[error("too many snapshots are under way: at most {limit} at a time")]
    SnapshotsFull {
        /// The most at a time.
        limit: usize,
    },
    /// A transaction that has to be in the snapshot has not ended.
    #[error(
        "transaction {transaction} of the source has been writing {dataset} for as long as a \
         snapshot waits: it can be taken when that has ended"
    )]
    Unsettled {
        /// The dataset.
        dataset: DatasetName,
        /// The transaction.
        transaction: u32,
    },
    /// A snapshot is joined to the changes by the server that captures them.
    #[error(
        "a snapshot of source \"{source_name}\" is given by the server that captures it, which is \
         \"{by}\"; ask that one"
    )]
    CapturedElsewhere {
        /// The source.
        source_name: SourceName,
        /// Process and host, as PostgreSQL shows them.
        by: String,
    },
    /// Rows could not be read from the source.
    #[error("the snapshot could not be read")]
    Source(#[from] snapshot::Error),
    /// Changes after the asked position have been dropped from the log.
    #[error("changes after that position are gone from the log: read after {earliest} or later")]
    Trimmed {
        /// The oldest position that can be read after; reading after it gives all the log holds.
        earliest: Position,
    },
    /// A subscription nobody declared.
    #[error("no subscription is named \"{0}\"")]
    UnknownSubscription(String),
    /// A dead letter that is not in this subscription's queue.
    #[error("subscription \"{subscription}\" has no dead letter {id}")]
    UnknownDeadLetter {
        /// The subscription.
        subscription: String,
        /// The number that was given.
        id: i64,
    },
    /// As things stand it cannot be done; the text says what would have to be otherwise.
    #[error("{0}")]
    Conflict(String),
    /// The tables of the subscriptions could not be read or written.
    #[error("the registry's database is not available")]
    Store(#[from] pg::Error),
    /// The registry could not change.
    #[error("the registry cannot be changed")]
    Registry(#[from] registry::Error),
    /// The log failed.
    #[error("the log could not be read")]
    Log(#[source] log::Error),
}

impl Error {
    /// Whether the same request may succeed another time.
    pub fn retry(&self) -> Retry {
        match self {
            Self::UnknownDataset(_)
            | Self::UnknownSubscription(_)
            | Self::UnknownDeadLetter { .. }
            | Self::Conflict(_)
            | Self::Invalid(_)
            | Self::Trimmed { .. } => Retry::Never,
            Self::Store(error) => error.retry(),
            Self::Registry(error) => error.retry(),
            Self::Source(error) => error.retry(),
            Self::Full { .. }
            | Self::SnapshotsFull { .. }
            | Self::Unsettled { .. }
            | Self::CapturedElsewhere { .. } => Retry::Later,
            Self::Log(error) => error.retry(),
        }
    }
}

impl From<log::Error> for Error {
    fn from(error: log::Error) -> Self {
        match error {
            log::Error::Trimmed { earliest } => Self::Trimmed { earliest },
            error => Self::Log(error),
        }
    }
}
