//! Why the registry could not answer or change.

use crate::pg;
use crate::vocab::Retry;

/// A failure of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is referred to that is not registered.
    #[error("no {kind} is named \"{name}\"")]
    NotFound {
        /// `service`, `source` or `dataset`.
        kind: &'static str,
        /// The name that was given.
        name: String,
    },
    /// A value that cannot be stored.
    #[error("{field}: {message}")]
    Invalid {
        /// The field it was given for.
        field: &'static str,
        /// What would be right.
        message: String,
    },
    /// Two things that exclude each other.
    #[error("{message}")]
    Conflict {
        /// Both of them, by name.
        message: String,
    },
    /// The registry's database did not do its part.
    #[error("the registry's database is not available")]
    Unavailable(#[source] pg::Error),
}

impl Error {
    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotFound { .. } | Self::Invalid { .. } | Self::Conflict { .. } => Retry::Never,
            Self::Unavailable(error) => error.retry(),
        }
    }
}

impl From<pg::Error> for Error {
    fn from(error: pg::Error) -> Self {
        Self::Unavailable(error)
    }
}
