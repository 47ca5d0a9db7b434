//! Why rows were not written. Nothing was, unless the variant says otherwise.

use crate::pg;
use crate::vocab::{DatasetName, Retry, ServiceName, SourceName};

/// Why rows were not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be what was meant.
    #[error("{place}: {message}")]
    Invalid {
        /// Where in the body: `insert[3].status`.
        place: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A dataset nobody registered.
    #[error("no dataset is named \"{0}\"")]
    UnknownDataset(DatasetName),
    /// The service has no role in the dataset's source.
    #[error(
        "service \"{service}\" has no role in source \"{source_name}\": declare one under its roles"
    )]
    NoRole {
        /// Who asked.
        service: ServiceName,
        /// Where it has none.
        source_name: SourceName,
    },
    /// The guard rejected it; its own words.
    #[error("{message}")]
    NotOwner {
        /// As psql would have shown it.
        message: String,
        /// The service that may write.
        owner: ServiceName,
    },
    /// PostgreSQL's privileges do not allow it.
    #[error("PostgreSQL refuses it to the service's role: {message}")]
    NoPrivilege {
        /// PostgreSQL's words.
        message: String,
    },
    /// No row, or more than one, has the key of an update or delete.
    #[error("{place}: {found} rows have the key {key}, expected one")]
    NoSuchRow {
        /// Where in the body.
        place: String,
        /// The key.
        key: String,
        /// How many rows have it.
        found: i64,
    },
    /// A constraint of the table does not allow it.
    #[error("{message}")]
    Constraint {
        /// PostgreSQL's words.
        message: String,
        /// The constraint's name, where it has one.
        constraint: Option<String>,
        /// The column, where it is one.
        column: Option<String>,
    },
    /// PostgreSQL cannot make the value into one of the column's type, or a trigger objects.
    #[error("PostgreSQL refuses it: {message}")]
    Refused {
        /// PostgreSQL's words.
        message: String,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for a request with another body")]
    KeyReused,
    /// Something else holds what it needs: a lock on the table, the same idempotency key.
    #[error("another transaction holds what this one needs")]
    Busy,
    /// As many requests of the service are under way as may be.
    #[error("{limit} requests of the service are under way, which is as many as may be")]
    Full {
        /// The most at a time.
        limit: usize,
    },
    /// The source failed before anything was written.
    #[error("source \"{source_name}\" cannot be written now")]
    Source {
        /// Which.
        source_name: SourceName,
        /// How.
        #[source]
        cause: pg::Error,
    },
    /// The source failed while committing: the rows may be there or not, still all or none.
    #[error(
        "source \"{source_name}\" failed while committing: whether the rows were written is not known; \
         repeat the request with its Idempotency-Key"
    )]
    Unknown {
        /// Which.
        source_name: SourceName,
        /// How.
        #[source]
        cause: pg::Error,
    },
}

impl Error {
    /// Whether the same request may succeed another time.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Invalid { .. }
            | Self::UnknownDataset(_)
            | Self::NoRole { .. }
            | Self::NotOwner { .. }
            | Self::NoPrivilege { .. }
            | Self::NoSuchRow { .. }
            | Self::Constraint { .. }
            | Self::Refused { .. }
            | Self::KeyReused => Retry::Never,
            Self::Busy | Self::Full { .. } | Self::Unknown { .. } => Retry::Later,
            Self::Source { cause, .. } => cause.retry(),
        }
    }
}
