//! A private PostgreSQL: for the demo, for tests, and for running Cadastre as one program.
//!
//! It uses the server programs installed on the machine, with a cluster of its own inside the data
//! directory. What lies where:
//!
//! ```text
//! DATA_DIR/cadastre.lock        held while an instance uses the directory; says its process id
//! DATA_DIR/postgres/            the cluster (a cluster being made is called postgres.new)
//! DATA_DIR/postgres.log         what the server says; the run before it is in postgres.log.old
//! DATA_DIR/postgres.password    the superuser's password, asked only on the loopback port
//! DATA_DIR/socket/              the Unix socket; elsewhere when this path is too long for one
//! ```
//!
//! Invariants:
//!
//! - A directory is used by one instance at a time: the lock is held as long as the server runs.
//! - A cluster directory named `postgres` is complete. It gets that name after `initdb` ended well.
//! - The server never runs as root. As root it runs under the account the cluster belongs to.
//! - Whoever can open the socket is trusted as any database role, so the socket's directory is
//!   open to the server's account (and root) only. The loopback port asks for the password.
//! - The server does not outlive a value of [`PrivatePostgres`], except when this process is killed.
//!   The next start finds the server left behind by the process id in its `postmaster.pid` and
//!   stops it first.
//!
//! The server's log never holds row values: statements and error details are not logged.
//! This room does not migrate, does not upgrade between major versions and makes no backups.

mod account;
mod binaries;
mod cluster;
mod error;
mod postmaster;
mod socket;

use std::fs::File;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

pub use binaries::Binaries;
pub use error::Error;

use crate::config::PostgresOptions;
use crate::pg::{Target, quote_ident, quote_literal};
use account::Account;
use cluster::Layout;
use postmaster::Postmaster;
use socket::Socket;

/// Name of the cluster's superuser.
const SUPERUSER: &str = "postgres";
/// Port that names the socket when no loopback port is asked for.
const SOCKET_PORT: u16 = 5432;

/// What to run and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory that holds the cluster and everything about it; made when it is not there.
    pub data_dir: PathBuf,
    /// Directory of the server programs; searched for when `None`.
    pub bin_dir: Option<PathBuf>,
    /// Loopback port to listen on, with password; the Unix socket only when `None`.
    pub port: Option<u16>,
    /// Server settings on top of the defaults; the last one wins.
    pub settings: Vec<(String, String)>,
}

/// A running private server. Dropping it stops the server at once, without a checkpoint.
#[derive(Debug)]
pub struct PrivatePostgres {
    // Dropped in this order: the lock goes last.
    postmaster: Postmaster,
    socket: Socket,
    binaries: Binaries,
    port: Option<u16>,
    password: SecretString,
    _lock: File,
}

impl PrivatePostgres {
    /// Makes the cluster if it is not there, stops a server left behind by a killed process,
    /// starts the server and waits until it accepts connections.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let layout = Layout::prepare(&options.data_dir)?;
        let lock = layout.lock()?;
        let account = Account::choose(&layout)?;
        let major = layout.major(account.as_ref())?;
        let binaries = Binaries::find(options.bin_dir.as_deref(), major).await?;
        let password = layout.password(account.as_ref())?;
        if major.is_none() {
            layout.initdb(&binaries, account.as_ref()).await?;
        }
        postmaster::stop_orphan(&layout).await?;
        let socket = Socket::prepare(&layout, account.as_ref(), options.port)?;
        let settings = settings(&options, &socket);
        let postmaster = Postmaster::start(&layout, &binaries, account.as_ref(), &settings).await?;
        tracing::info!(
            postgres.version = binaries.version(),
            socket = %socket.dir().display(),
            "private PostgreSQL accepts connections"
        );
        Ok(Self { postmaster, socket, binaries, port: options.port, password, _lock: lock })
    }

    /// Superuser connection string for a database, over the Unix socket. It holds no secret.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://{SUPERUSER}@/{}?host={}&port={}",
            percent_encode(database.as_bytes()),
            percent_encode(self.socket.dir().as_os_str().as_encoded_bytes()),
            self.socket.port()
        )
    }

    /// Superuser connection string over the loopback port, with the password, if there is a port.
    pub fn loopback_url(&self, database: &str) -> Option<SecretString> {
        let port = self.port?;
        Some(SecretString::from(format!(
            "postgresql://{SUPERUSER}:{}@127.0.0.1:{port}/{}",
            self.password.expose_secret(),
            percent_encode(database.as_bytes()),
        )))
    }

    /// Makes a database unless it is there.
    pub async fn create_database(&self, name: &str) -> Result<(), Error> {
        let failed = |source| Error::CreateDatabase { name: name.to_owned(), source };
        let target = Target::parse(&self.url("postgres")).map_err(|e| failed(e.into()))?;
        let connection = target
            .connect("cadastre", &PostgresOptions::default())
            .await
            .map_err(|e| failed(e.into()))?;
        let exists = format!("SELECT FROM pg_database WHERE datname = {}", quote_literal(name));
        if connection.query_opt(&exists, &[]).await.map_err(|e| failed(e.into()))?.is_none() {
            let create = format!("CREATE DATABASE {}", quote_ident(name));
            connection.batch_execute(&create).await.map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }

    /// Directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.socket.dir()
    }

    /// Directory of the server programs in use.
    pub fn bin_dir(&self) -> &Path {
        self.binaries.dir()
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.postmaster.pid()
    }

    /// Ends the sessions, writes a checkpoint and waits for the server to exit. A server that
    /// takes too long is stopped at once instead, which only costs the next start some recovery.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.postmaster.stop().await
    }
}

/// The server's settings: made for a small machine, quiet about data, ready for logical slots.
fn settings(options: &Options, socket: &Socket) -> Vec<(String, String)> {
    let listen = if options.port.is_some() { "127.0.0.1" } else { "" };
    let port = socket.port().to_string();
    let directories = socket.setting();
    let defaults = [
        ("listen_addresses", listen),
        ("port", &port),
        ("unix_socket_directories", &directories),
        ("wal_level", "logical"),
        ("max_replication_slots", "16"),
        ("max_wal_senders", "16"),
        ("max_connections", "100"),
        ("shared_buffers", "64MB"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        // A failing statement and the detail of its error carry row values.
        ("log_min_error_statement", "panic"),
        ("log_error_verbosity", "terse"),
    ];
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
    defaults.into_iter().chain(options.settings.iter().cloned()).collect()
}

/// `text` with everything escaped that means something in a connection string.
fn percent_encode(text: &[u8]) -> String {
    let mut encoded = String::new();
    for &byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_survives_odd_paths() {
        assert_eq!(percent_encode(b"/tmp/a b&c?d%"), "/tmp/a%20b%26c%3Fd%25");
    }
}
