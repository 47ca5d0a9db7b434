//! Why a stream cannot be assembled.

use crate::capture::decode::DecodeError;
use crate::vocab::{Lsn, Retry};

/// The stream is not what PostgreSQL sends, or not read from its beginning: connect again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// The bytes are no message.
    #[error("message at {wal} cannot be decoded")]
    Decode {
        /// Where in the WAL.
        wal: Lsn,
        /// What is wrong with them.
        #[source]
        cause: DecodeError,
    },
    /// The message does not belong where it stands.
    #[error("message at {wal} is out of order: {problem}")]
    OutOfOrder {
        /// Where in the WAL.
        wal: Lsn,
        /// Why.
        problem: &'static str,
    },
    /// A change of a table that was not described before.
    #[error("change at {wal} is of relation {oid}, which was not described")]
    UnknownRelation {
        /// Where in the WAL.
        wal: Lsn,
        /// OID of the table.
        oid: u32,
    },
    /// A row that does not fit its table.
    #[error("change at {wal} does not have the columns of table \"{schema}.{table}\"")]
    Columns {
        /// Where in the WAL.
        wal: Lsn,
        /// Schema of the table.
        schema: String,
        /// Name of the table.
        table: String,
    },
    /// More changes than a position can count.
    #[error("transaction that commits at {commit} has more than {} changes", u32::MAX)]
    TooManyChanges {
        /// LSN of its commit record.
        commit: Lsn,
    },
}

impl AssembleError {
    /// Whether reading the stream again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Decode { .. }
            | Self::OutOfOrder { .. }
            | Self::UnknownRelation { .. }
            | Self::Columns { .. } => Retry::Later,
            Self::TooManyChanges { .. } => Retry::Never,
        }
    }
}
