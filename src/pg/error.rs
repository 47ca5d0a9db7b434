//! What can go wrong between here and PostgreSQL.

use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use tokio_postgres::error::SqlState;

use crate::vocab::Retry;

/// A failure to reach PostgreSQL or to have it do something. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a connection string.
    #[error(
        "malformed connection string: {reason}; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE \
         or key=value pairs such as \"host=/run/postgresql user=app dbname=shop\""
    )]
    Malformed {
        /// What is wrong with it, without quoting it.
        reason: &'static str,
    },
    /// A connection string refers to an environment variable that is not there.
    #[error("the environment variable {name} is not set, and a connection string refers to it")]
    Variable {
        /// The variable's name.
        name: String,
    },
    /// A connection string that is to be kept holds a password.
    #[error(
        "the connection string holds a password; refer to an environment variable instead, \
         such as postgresql://app:${{SHOP_PASSWORD}}@HOST/DATABASE or ${{SHOP_DATABASE_URL}}"
    )]
    LiteralPassword,
    /// TLS cannot be set up on this machine.
    #[error("TLS cannot be set up: {reason}")]
    Tls {
        /// What is missing.
        reason: String,
    },
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {target}")]
    Connect {
        /// `USER@HOST:PORT/DATABASE`.
        target: String,
        /// PostgreSQL's or the network's reason.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No connection was made in time.
    #[error("PostgreSQL at {target} did not answer within {}", humantime::format_duration(*after))]
    ConnectTimeout {
        /// `USER@HOST:PORT/DATABASE`.
        target: String,
        /// The time it was given.
        after: Duration,
    },
    /// Every pooled connection stayed busy, or none could be made, in time.
    #[error("no connection to the registry's database became free within {}", humantime::format_duration(*after))]
    PoolTimeout {
        /// The time it was given.
        after: Duration,
    },
    /// The pool failed for another reason.
    #[error("the pool of connections to the registry's database failed: {reason}")]
    Pool {
        /// Its own words.
        reason: String,
    },
    /// PostgreSQL, or the connection to it, failed a statement.
    #[error("a statement failed")]
    Statement(#[from] tokio_postgres::Error),
    /// The same, reported through diesel.
    #[error("a query failed")]
    Query(#[from] DieselError),
    /// A statement did not come back: neither its result nor PostgreSQL's own timeout.
    #[error("PostgreSQL did not answer within {}", humantime::format_duration(*after))]
    Silent {
        /// The time it was given.
        after: Duration,
    },
    /// The name of our slot is in use for something else.
    #[error(
        "the replication slot {slot} belongs to database \"{database}\" and plugin \"{plugin}\"; \
         drop it there, or give the source another name"
    )]
    SlotTaken {
        /// The slot.
        slot: String,
        /// Its database.
        database: String,
        /// Its output plugin.
        plugin: String,
    },
    /// Our slot hands out transactions when they are prepared, which may never commit.
    #[error(
        "the replication slot {slot} has two_phase on; drop it, so that one without is made \
         (the feed then has a gap), or on PostgreSQL 18 ALTER_REPLICATION_SLOT it"
    )]
    SlotTwoPhase {
        /// The slot.
        slot: String,
    },
    /// A slot can be made only when all transactions that were writing have ended.
    #[error("the replication slot {slot} cannot be made: blocked by {by}")]
    SlotBlocked {
        /// The slot.
        slot: String,
        /// Who writes.
        by: String,
    },
    /// PostgreSQL answered something else than it is known to.
    #[error("PostgreSQL gave {what} in a form that is not known")]
    Unexpected {
        /// Instead of what.
        what: &'static str,
    },
    /// The database was migrated by a later version of this program.
    #[error(
        "the registry's database is newer than this program: it has the migrations {}; \
         run the version that made them, or a later one", versions.join(", ")
    )]
    SchemaNewer {
        /// The migrations this program does not know.
        versions: Vec<String>,
    },
    /// A migration failed and was rolled back.
    #[error("the registry's database could not be migrated")]
    Migration(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether trying again can help. What PostgreSQL refuses for a reason not listed here counts
    /// as passing: a loop that keeps trying recovers by itself once somebody mends it.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Malformed { .. }
            | Self::Variable { .. }
            | Self::LiteralPassword
            | Self::Tls { .. }
            | Self::SlotTaken { .. }
            | Self::SlotTwoPhase { .. }
            | Self::Unexpected { .. }
            | Self::SchemaNewer { .. }
            | Self::Migration(_) => Retry::Never,
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::PoolTimeout { .. }
            | Self::Pool { .. }
            | Self::SlotBlocked { .. }
            | Self::Silent { .. } => Retry::Later,
            Self::Statement(error) => error.code().map_or(Retry::Later, retry_of_state),
            Self::Query(error) => retry_of_query(error),
        }
    }

    /// Whether `lock_timeout` ended it: somebody holds what it needs.
    pub fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the role may not do that.
    pub fn is_denied(&self) -> bool {
        self.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether other objects depend on what was to be dropped.
    pub fn is_dependent(&self) -> bool {
        self.sqlstate() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST)
    }

    /// The SQLSTATE that PostgreSQL gave, where it is known; diesel does not pass it on.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { source, .. } | Self::Statement(source) => source.code(),
            Self::Malformed { .. }
            | Self::Variable { .. }
            | Self::LiteralPassword
            | Self::Tls { .. }
            | Self::ConnectTimeout { .. }
            | Self::PoolTimeout { .. }
            | Self::Pool { .. }
            | Self::Query(_)
            | Self::Silent { .. }
            | Self::SlotTaken { .. }
            | Self::SlotTwoPhase { .. }
            | Self::SlotBlocked { .. }
            | Self::Unexpected { .. }
            | Self::SchemaNewer { .. }
            | Self::Migration(_) => None,
        }
    }
}

/// By SQLSTATE class: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn retry_of_state(state: &SqlState) -> Retry {
    match *state {
        SqlState::T_R_SERIALIZATION_FAILURE
        | SqlState::T_R_DEADLOCK_DETECTED
        | SqlState::LOCK_NOT_AVAILABLE => return Retry::Now,
        _ => {}
    }
    match state.code().get(..2) {
        // Unsupported feature, bad data, violated constraint, bad statement or no privilege.
        Some("0A" | "22" | "23" | "42") => Retry::Never,
        _ => Retry::Later,
    }
}

fn retry_of_query(error: &DieselError) -> Retry {
    match error {
        DieselError::DatabaseError(kind, _) => match kind {
            DatabaseErrorKind::SerializationFailure => Retry::Now,
            DatabaseErrorKind::UniqueViolation
            | DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::ExclusionViolation
            | DatabaseErrorKind::RestrictViolation => Retry::Never,
            _ => Retry::Later,
        },
        DieselError::NotFound
        | DieselError::InvalidCString(_)
        | DieselError::QueryBuilderError(_)
        | DieselError::SerializationError(_)
        | DieselError::DeserializationError(_) => Retry::Never,
        _ => Retry::Later,
    }
}
