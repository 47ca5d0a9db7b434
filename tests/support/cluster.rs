//! A PostgreSQL cluster of one test's own: slots, roles and settings are shared by nobody.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cadastre::embedded::{Binaries, Options, PrivatePostgres};
use cadastre::pg::{Target, quote_ident};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

use super::template;

/// Names the directory of the server programs to test with, when it is not the newest found.
const BIN_DIR: &str = "CADASTRE_TEST_POSTGRES_BIN";
/// How the directories of clusters begin, so that those of killed tests are found.
const PREFIX: &str = "cadastre-test-";
/// A cluster's directory this old that nobody holds was left by a killed test.
const ABANDONED: Duration = Duration::from_secs(600);

/// A cluster with `wal_level=logical`, stopped and removed on drop.
pub(crate) struct Cluster {
    // Dropped in this order: the server goes before its files.
    postgres: Mutex<Option<PrivatePostgres>>,
    data_dir: TempDir,
    options: Options,
}

impl Cluster {
    /// A cluster that does not sync its files: quick, and safe against the server being killed,
    /// not against the machine losing power.
    pub(crate) async fn start() -> Self {
        Self::with_settings(&[("fsync", "off"), ("full_page_writes", "off")]).await
    }

    /// A cluster as durable as one in use.
    pub(crate) async fn durable() -> Self {
        Self::with_settings(&[]).await
    }

    /// A cluster with these server settings.
    pub(crate) async fn with_settings(settings: &[(&str, &str)]) -> Self {
        remove_abandoned();
        let bin_dir = std::env::var_os(BIN_DIR).map(PathBuf::from);
        let binaries = Binaries::find(bin_dir.as_deref(), None).await.expect("find PostgreSQL");
        let template = template::cluster(&binaries).await;
        let data_dir = data_dir();
        template::copy(&template, &data_dir.path().join("postgres"));
        let small = [("shared_buffers", "16MB"), ("max_connections", "50")];
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options = Options {
            data_dir: data_dir.path().to_owned(),
            bin_dir: Some(binaries.dir().to_owned()),
            port: None,
            settings: small.iter().chain(settings).map(own).collect(),
        };
        let cluster = Self { postgres: Mutex::new(None), data_dir, options };
        cluster.start_again().await;
        cluster
    }

    /// Superuser connection string of a database; the same whether or not the server runs.
    pub(crate) fn url(&self, database: &str) -> String {
        let socket_dir = self.data_dir.path().join("socket");
        format!("postgresql://postgres@/{database}?host={}", socket_dir.display())
    }

    /// The same as `role`, which needs no password.
    pub(crate) fn url_as(&self, database: &str, role: &str) -> String {
        self.url(database).replace("postgres@", &format!("{role}@"))
    }

    /// The server's Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data_dir.path().join("socket/.s.PGSQL.5432")
    }

    /// Superuser target of a database.
    pub(crate) fn target(&self, database: &str) -> Target {
        Target::parse(&self.url(database)).expect("a valid URL")
    }

    /// Makes a database.
    pub(crate) async fn create_database(&self, name: &str) {
        let create = format!("CREATE DATABASE {}", quote_ident(name));
        self.connect("postgres").await.batch_execute(&create).await.expect("create a database");
    }

    /// A superuser session.
    pub(crate) async fn connect(&self, database: &str) -> Client {
        self.connect_as(database, "postgres").await
    }

    /// A session as `role`, which needs no password.
    pub(crate) async fn connect_as(&self, database: &str, role: &str) -> Client {
        let mut config: Config = self.url(database).parse().expect("a valid URL");
        let (client, connection) = config.user(role).connect(NoTls).await.expect("connect");
        #[expect(clippy::disallowed_methods, reason = "ends with the client, and with the test")]
        tokio::spawn(connection);
        client
    }

    /// Directory of the server programs, and of `psql` or `pg_recvlogical` where installed.
    pub(crate) fn bin_dir(&self) -> &Path {
        self.options.bin_dir.as_deref().expect("found before the start")
    }

    /// The data directory of the private PostgreSQL.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.postgres.lock().as_ref().expect("the server runs").pid()
    }

    /// Stops the server without a checkpoint, as if it had crashed.
    pub(crate) async fn stop_immediate(&self) {
        let postgres = self.postgres.lock().take().expect("the server runs");
        tokio::task::spawn_blocking(move || drop(postgres)).await.expect("stop PostgreSQL");
    }

    /// A copy of the cluster's files as they are on disk after an orderly stop; it runs again
    /// afterwards.
    pub(crate) async fn save(&self) -> Saved {
        let postgres = self.postgres.lock().take().expect("the server runs");
        postgres.stop().await.expect("stop PostgreSQL");
        let dir = data_dir();
        template::copy(&self.files(), &dir.path().join("postgres"));
        self.start_again().await;
        Saved(dir)
    }

    /// Puts the files back as they were saved, as a restored backup does.
    pub(crate) async fn restore(&self, saved: &Saved) {
        self.stop_immediate().await;
        std::fs::remove_dir_all(self.files()).expect("remove the cluster's files");
        template::copy(&saved.0.path().join("postgres"), &self.files());
        self.start_again().await;
    }

    /// A standby of this cluster made from its files, with more settings. It has no slots, as one
    /// from a base backup has none.
    pub(crate) async fn standby(&self, settings: &[(&str, &str)]) -> Self {
        let Saved(data_dir) = self.save().await;
        let files = data_dir.path().join("postgres");
        for slot in std::fs::read_dir(files.join("pg_replslot")).expect("list the slots") {
            std::fs::remove_dir_all(slot.expect("a slot").path()).expect("remove a slot");
        }
        std::fs::write(files.join("standby.signal"), "").expect("mark the standby");
        let mut options = self.options.clone();
        data_dir.path().clone_into(&mut options.data_dir);
        let socket = self.data_dir.path().join("socket");
        let primary = format!("host={} user=postgres dbname=postgres", socket.display());
        options.settings.push(("primary_conninfo".to_owned(), primary));
        options
            .settings
            .extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let standby = Self { postgres: Mutex::new(None), data_dir, options };
        standby.start_again().await;
        standby
    }

    /// Directory of the socket it listens on.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.data_dir.path().join("socket")
    }

    fn files(&self) -> PathBuf {
        self.data_dir.path().join("postgres")
    }

    /// Starts the server again after [`Self::stop_immediate`].
    pub(crate) async fn start_again(&self) {
        assert!(self.postgres.lock().is_none(), "the server runs already");
        let started = PrivatePostgres::start(self.options.clone()).await;
        *self.postgres.lock() = Some(started.expect("start PostgreSQL"));
    }
}

/// A copy of a cluster's files.
pub(crate) struct Saved(TempDir);

/// A temporary data directory that the account PostgreSQL runs as may enter.
pub(crate) fn data_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(PermissionsExt::from_mode(0o711))
        .tempdir()
        .expect("make a temporary directory")
}

/// Removes the clusters of tests that were killed before they could clean up, with their servers.
fn remove_abandoned() {
    let Ok(entries) = std::env::temp_dir().read_dir() else { return };
    for entry in entries.flatten() {
        let dir = entry.path();
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX)
            || old().is_none_or(|age| age < ABANDONED)
        {
            continue;
        }
        let Ok(lock) = File::open(dir.join("cadastre.lock")) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        if let Some(pid) = server_of(&dir) {
            let _ = kill(pid, Signal::SIGQUIT);
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
}

/// The server that runs on the cluster in `dir`.
fn server_of(dir: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(dir.join("postgres/postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    command_line.contains(dir.to_str()?).then_some(Pid::from_raw(pid))
}
