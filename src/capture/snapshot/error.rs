//! Why rows could not be read.

use crate::pg;
use crate::vocab::{DatasetName, Retry};

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source, or the connection to it, failed.
    #[error("the source could not be read")]
    Source(#[from] pg::Error),
    /// There is no such table any more.
    #[error("the table of {0} is not in the source: it was dropped or renamed")]
    Gone(DatasetName),
    /// The role that reads may not.
    #[error("the source's role may not read {dataset}: GRANT SELECT ON {table} TO {role}")]
    Denied {
        /// The dataset.
        dataset: DatasetName,
        /// The table, quoted.
        table: String,
        /// The role, quoted.
        role: String,
    },
    /// The source answered with what cannot be.
    #[error("the source answered what was not expected: {0}")]
    Surprise(&'static str),
}

impl Error {
    /// Whether the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Source(error) => error.retry(),
            Self::Gone(_) | Self::Denied { .. } | Self::Surprise(_) => Retry::Never,
        }
    }
}
