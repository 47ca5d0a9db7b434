//! What can go wrong while capturing a source.

use std::time::Duration;

use super::assemble::AssembleError;
use super::spill::SpillError;
use crate::vocab::{Lsn, Position, Retry};
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
    /// The server is a standby.
    #[error("the server is a standby: name its primary, or promote it")]
    Standby,
    /// What was known does not go on here; the next session begins anew, with a gap.
    #[error("the stream does not go on from what was captured before ({reason}): a gap follows")]
    Broken {
        /// The reason that the gap will give.
        reason: &'static str,
    },
    /// The stream is not the one that was read before.
    #[error("the heartbeat read at {at} before is not in the stream: the database was put back")]
    Diverged {
        /// Where it should be.
        at: Lsn,
    },
    /// The stream cannot begin anew before the guard has published its tables again.
    #[error(
        "the table of {dataset} is not in the publication {publication}; the next comparison of the \
         guard adds it"
    )]
    Unpublished {
        /// The dataset.
        dataset: String,
        /// Where it should be.
        publication: String,
    },
    /// A gap could not be made durable.
    #[error("the log did not take the gap in time")]
    Unannounced,
    /// What is durable cannot be written down before it is confirmed.
    #[error("the registry's database does not take down what may be confirmed")]
    Unconfirmed,
    /// The slot that was just made is not there.
    #[error("the replication slot {slot} was dropped as soon as it was made")]
    SlotGone {
        /// Its name.
        slot: String,
    },
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
            Self::Standby => "standby",
            Self::Broken { .. } | Self::Diverged { .. } | Self::Unannounced => "gap",
            Self::Unconfirmed => "unconfirmed",
            Self::Unpublished { .. } => "unpublished",
            Self::SlotGone { .. } => "slot",
            Self::EpochsExhausted { .. } => "epochs",
        }
    }

    /// Whether PostgreSQL cannot decode a change because its publication did not exist when it was
    /// made. The same slot fails on it for ever.
    pub(super) fn is_undecodable(&self, publication: &str) -> bool {
        matches!(self, Self::Server { code, message }
            if code == "42704" && message.contains(&format!("\"{publication}\"")))
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
            | Self::Standby
            | Self::Unconfirmed
            | Self::Unpublished { .. }
            | Self::SlotGone { .. }
            | Self::Io(_) => Retry::Later,
            Self::Stream(error) => error.retry(),
            Self::Source(error) => error.retry(),
            Self::Log(error) => error.retry(),
            Self::Registry(error) => error.retry(),
            // A new writer has to begin where the log ends, and without the old LSNs.
            Self::Broken { .. } | Self::Diverged { .. } | Self::Unannounced => Retry::Never,
            Self::EpochsExhausted { .. } => Retry::Never,
        }
    }
}
