//! What can go wrong with the log.

use crate::vocab::{Position, Retry, SourceId};

/// Why the log could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Changes after the asked position have been dropped.
    #[error(
        "the log no longer holds all that follows that position: the oldest it holds is after {earliest}"
    )]
    Trimmed {
        /// The oldest position that can be read after; reading after it gives all the log holds.
        earliest: Position,
    },
    /// Positions must grow: a bug, or another writer of the same source.
    #[error("change {first} does not follow the end of the log, {last}")]
    OutOfOrder {
        /// The position that was to be appended.
        first: Position,
        /// The position it had to be greater than.
        last: Position,
    },
    /// What the store gave back is not what was stored.
    #[error("a chunk of the log is corrupt: {reason}")]
    Corrupt {
        /// What is wrong with it.
        reason: String,
    },
    /// A batch that no chunk can hold.
    #[error("a batch of {bytes} bytes is too large: a chunk holds at most {bytes_max}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The most a chunk holds.
        bytes_max: usize,
    },
    /// A source has one writer at a time.
    #[error("source {} already has a writer in this process", .source_id.0)]
    Busy {
        /// The source.
        source_id: SourceId,
    },
    /// The process is on its way out.
    #[error("the log is stopping")]
    Stopped,
    /// The database behind the log could not do its part.
    #[error("the log's database failed")]
    Database {
        /// Whether it may succeed another time, decided where the cause is known.
        retry: Retry,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Whether the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Trimmed { .. }
            | Self::OutOfOrder { .. }
            | Self::Corrupt { .. }
            | Self::TooLarge { .. }
            | Self::Stopped => Retry::Never,
            Self::Busy { .. } => Retry::Later,
            Self::Database { retry, .. } => *retry,
        }
    }
}

/// The error and its causes on one line.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
