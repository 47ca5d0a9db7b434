//! Why a command did not do what was asked, and the exit code that says so to scripts.

use std::process::ExitCode;

use crate::{app, embedded, feed, pg, telemetry};

use super::client::Problem;

/// A command's failure. What the user reads is its [`Display`](std::fmt::Display) followed by its
/// chain of sources.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The answer is "no", or there are findings. They are printed already.
    #[error("the answer is no")]
    No,
    /// The command cannot be meant this way.
    #[error("{0}")]
    Usage(String),
    /// What was given to `--after` is no place in a feed.
    #[error("invalid --after")]
    After(#[source] feed::Error),
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The path as given.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server did not answer in time, or at all.
    #[error("cannot reach Cadastre at {url}: is `cadastre up` running there?")]
    Unreachable {
        /// The base URL.
        url: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// The server answered with a problem.
    #[error("{0}")]
    Problem(Problem),
    /// The server's answer has not the promised form, so that it is no Cadastre of this version.
    #[error("{url} gave an answer that this version does not understand")]
    Answer {
        /// Which address.
        url: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The server could not start.
    #[error("cannot start")]
    Start(#[from] app::Error),
    /// The private PostgreSQL of the demo could not start.
    #[error("cannot start a private PostgreSQL")]
    Embedded(#[from] embedded::Error),
    /// The demo's database did not answer.
    #[error("the demo's database failed")]
    Database(#[from] pg::Error),
    /// Logging could not be set up.
    #[error("cannot set up logging")]
    Telemetry(#[from] telemetry::Error),
    /// Nobody reads standard output any more: no failure, the reader has what it wanted.
    #[error("standard output was closed")]
    Closed,
    /// Standard output or the terminal failed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    /// The runtime or the signal handlers could not be set up.
    #[error("the operating system refused {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// A background task panicked and everything was stopped.
    #[error("a background task failed; the log has its name")]
    Panicked,
}

impl Error {
    /// 1 "no" or findings, 2 wrong usage, 3 something needed is out of reach, 101 a defect of
    /// ours, as for any program in Rust that panics.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Closed => ExitCode::SUCCESS,
            Self::No => ExitCode::from(1),
            Self::Problem(problem) => problem.exit_code(),
            Self::Usage(_) | Self::After(_) | Self::File { .. } => ExitCode::from(2),
            Self::Start(error) if error.is_usage() => ExitCode::from(2),
            Self::Unreachable { .. }
            | Self::Answer { .. }
            | Self::Start(_)
            | Self::Embedded(_)
            | Self::Database(_)
            | Self::Telemetry(_)
            | Self::Output(_)
            | Self::System { .. } => ExitCode::from(3),
            Self::Panicked => ExitCode::from(101),
        }
    }

    /// Whether the same request to a server may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Problem(problem) => problem.is_transient(),
            _ => false,
        }
    }

    /// Whether there is anything left to say about it.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::No | Self::Closed)
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Output(source),
        }
    }
}
