//! What can go wrong while capturing a source.

use std::time::Duration;

use super::assemble::AssembleError;
use super::spill::SpillError;
use crate::vocab::{Position, Retry};
use crate::{log, pg, registry};

/// Why a capture session ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No replication connection could be made.
    #[error("cannot connect for replication: {reason}")]
    Connect {
        /// What each host answered.
        reason: String,
    },
    /// PostgreSQL refused or ended the stream.
    #[error("PostgreSQL answered {code}: {message}")]
    Server {
        /// SQLSTATE.
        code: String,
        /// PostgreSQL's own words.
        message: String,
    },
    /// The server said something this client does not understand.
    #[error("replication protocol broken: {detail}")]
    Protocol {
        /// What was seen.
        detail: String,
    },
    /// The server closed the connection.
    #[error("PostgreSQL closed the replication connection")]
    Closed,
    /// Nothing was heard for too long.
    #[error("no word from the walsender for {}", humantime::format_duration(*after))]
    Silent {
        /// How long.
        after: Duration,
    },
    /// The socket failed.
    #[error("replication connection failed")]
    Io(#[from] std::io::Error),
    /// A message could not be decoded or had no place in the stream.
    #[error("change stream not understood")]
    Stream(#[from] AssembleError),
    /// A transaction that has not committed could not be kept.
    #[error("unfinished transaction cannot be kept; PostgreSQL has to keep it")]
    Spill(#[from] SpillError),
    /// The source's catalog could not be read, or its slot not be made.
    #[error("source database failed")]
    Source(#[from] pg::Error),
    /// The log refused a batch.
    #[error("log failed")]
    Log(#[from] log::Error),
    /// The registry could not record what the guard reported.
    #[error("registry failed")]
    Registry(#[from] registry::Error),
    /// The slot was recreated more often than positions can count.
    #[error("source has used up its epochs; last position {last}")]
    EpochsExhausted {
        /// Newest position in the log.
        last: Position,
    },
}

impl Error {
    /// A word for it in metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Server { .. } => "server",
            Self::Protocol { .. } => "protocol",
            Self::Closed => "closed",
            Self::Silent { .. } => "silent",
            Self::Io(_) => "io",
            Self::Stream(_) => "stream",
            Self::Spill(_) => "spill",
            Self::Source(_) => "source",
            Self::Log(_) => "log",
            Self::Registry(_) => "registry",
            Self::EpochsExhausted { .. } => "epochs",
        }
    }

    /// Whether a new session may succeed. Everything that a restart, a mended network or a changed
    /// setting can heal is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { .. }
            | Self::Server { .. }
            | Self::Protocol { .. }
            | Self::Closed
            | Self::Silent { .. }
            | Self::Spill(_)
            | Self::Io(_) => Retry::Later,
            Self::Stream(error) => error.retry(),
            Self::Source(error) => error.retry(),
            Self::Log(error) => error.retry(),
            Self::Registry(error) => error.retry(),
            Self::EpochsExhausted { .. } => Retry::Never,
        }
    }
}
