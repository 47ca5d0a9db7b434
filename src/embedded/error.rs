//! What can go wrong around a private PostgreSQL, in words for whoever has to mend it.

use std::path::PathBuf;

use crate::vocab::Retry;

/// A private PostgreSQL could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No suitable server programs on this machine.
    #[error("no suitable PostgreSQL server programs found: need {wanted}\n{report}")]
    NoBinaries {
        /// The versions that would do.
        wanted: String,
        /// Where was looked, what was there, and how to install.
        report: String,
    },
    /// Another instance uses the data directory.
    #[error("data directory {} is in use by {holder}", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, as far as the lock file says.
        holder: String,
    },
    /// Root may not run PostgreSQL, and there is no account to run it as.
    #[error(
        "PostgreSQL does not run as root, and neither account `postgres` nor `nobody` exists: \
         create one, or start Cadastre as another user"
    )]
    NoAccount,
    /// The server's account cannot get to its files.
    #[error(
        "account `{account}`, which runs PostgreSQL, may not enter {}: \
         run `chmod o+x {}`, or choose another data directory",
        dir.display(), dir.display()
    )]
    Unreachable {
        /// The account that PostgreSQL would run as.
        account: String,
        /// The first directory on the way that it may not enter.
        dir: PathBuf,
    },
    /// The cluster or its socket belongs to somebody else.
    #[error(
        "{} belongs to user id {owner}, not to the account that would run PostgreSQL here: \
         start Cadastre as its owner, or choose another data directory",
        path.display()
    )]
    Foreign {
        /// What belongs to somebody else.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A file or directory could not be read, made or changed.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The cluster says a version that is no number.
    #[error("{} does not hold a PostgreSQL version: `{text}`", path.display())]
    BadVersionFile {
        /// The version file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// A program could not be run, or waited for.
    #[error("could not run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `initdb` failed.
    #[error("could not make a PostgreSQL cluster in {}: {output}", dir.display())]
    InitDb {
        /// The cluster's directory.
        dir: PathBuf,
        /// What initdb said.
        output: String,
    },
    /// A server left behind by a killed process does not stop.
    #[error("a PostgreSQL server left behind (process {pid}) does not stop: end it by hand")]
    OrphanStays {
        /// Its process id.
        pid: i32,
    },
    /// The server ended while starting.
    #[error("PostgreSQL ended while starting ({status}); the end of its log:\n{log}")]
    Exited {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server did not accept connections in time.
    #[error("PostgreSQL did not accept connections within {seconds} s; the end of its log:\n{log}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The last lines of its log.
        log: String,
    },
    /// A database could not be made.
    #[error("could not create database `{name}`")]
    CreateDatabase {
        /// The database.
        name: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::InUse { .. } | Self::NotReady { .. } | Self::CreateDatabase { .. } => {
                Retry::Later
            }
            Self::NoBinaries { .. }
            | Self::NoAccount
            | Self::Unreachable { .. }
            | Self::Foreign { .. }
            | Self::File { .. }
            | Self::BadVersionFile { .. }
            | Self::Run { .. }
            | Self::InitDb { .. }
            | Self::OrphanStays { .. }
            | Self::Exited { .. } => Retry::Never,
        }
    }

    /// For `map_err` on operations on a file or directory.
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { action, path: path.into(), source }
    }
}
