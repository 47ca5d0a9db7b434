//! The composition root: the one file that names every room and puts them together.
//!
//! ```text
//! start: private PostgreSQL → migrate → registry → log → feed, guard → capture → serve
//! stop:  serve → capture, guard, registry → log → private PostgreSQL
//! ```
//!
//! What is started later uses what was started earlier, so that stopping goes backwards: first no
//! more requests, then no more changes, then the last of the log is made durable, and PostgreSQL
//! goes last. Each step gets the grace of the settings and no more.
//!
//! A background task that panics stops its group; [`App::failed`] reports it, and the whole
//! program ends rather than go on in part.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::api::{self, Serving, Tokens};
use crate::capture::Captures;
use crate::config::{
    CaptureOptions, DeliveryOptions, HttpOptions, LogOptions, PostgresOptions, SnapshotOptions,
};
use crate::embedded::{self, PrivatePostgres};
use crate::feed::{self, Feed, Sealer, Sinks, Subscriptions};
use crate::gateway::{Gateway, Login};
use crate::guard::Governor;
use crate::log::{Log, Policies, Policy, PostgresStore, Retention, Store};
use crate::pg::{self, Pool, Target};
use crate::registry::{self, Registry};
use crate::task::Tasks;
use crate::telemetry::{self, ErrorChain};
use crate::vocab::Retry;

/// Where data is kept when nothing is said.
pub const DATA_DIR: &str = ".cadastre";

/// The registry's database in a private PostgreSQL.
const DATABASE: &str = "cadastre";

/// The admin token's file in the data directory.
const ADMIN_TOKEN: &str = "admin-token";

/// The file in the data directory with the key that seals the secrets of webhooks.
const SECRETS_KEY: &str = "secrets-key";

/// Where unfinished transactions are kept in the data directory.
const SPILL_DIR: &str = "spill";

/// Random bytes in what is made here to be kept secret.
const KEPT_BYTES: usize = 32;

/// How to run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The registry's database. Without it a private PostgreSQL runs in the data directory.
    #[arg(long, env = "CADASTRE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<SecretString>,
    /// How long to keep trying to reach the registry's database at the start.
    #[arg(long, env = "CADASTRE_DATABASE_WAIT", default_value = "30s", value_name = "DURATION",
          value_parser = humantime::parse_duration)]
    pub database_wait: Duration,
    /// Where the private PostgreSQL, the admin token and the key of secrets are kept.
    #[arg(long, env = "CADASTRE_DATA_DIR", default_value = DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Directory of the PostgreSQL server programs to run privately; found by itself if not given.
    #[arg(long, env = "CADASTRE_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
    /// Loopback port on which the private PostgreSQL listens too, with a password.
    #[arg(long, env = "CADASTRE_POSTGRES_PORT", value_name = "PORT")]
    pub postgres_port: Option<u16>,
    /// Only in the environment: arguments can be read by every user of the machine.
    #[arg(skip = std::env::var("CADASTRE_ADMIN_TOKEN").ok().map(SecretString::from))]
    pub admin_token: Option<SecretString>,
    /// What seals the secrets of webhooks in the registry's database, the same for every replica.
    /// Only in the environment.
    #[arg(skip = std::env::var("CADASTRE_SECRETS_KEY").ok().map(SecretString::from))]
    pub secrets_key: Option<SecretString>,
    /// The login with which the write gateway connects for a service: `SOURCE/SERVICE=URL`, where
    /// `${VARIABLE}` in the URL is resolved here. Without one, the service's first role is tried on the
    /// source's own connection string without a password. Several are separated by spaces.
    #[arg(
        long = "gateway-login",
        env = "CADASTRE_GATEWAY_LOGINS",
        hide_env_values = true,
        value_name = "SOURCE/SERVICE=URL",
        value_delimiter = ' '
    )]
    pub gateway_logins: Vec<Login>,
    /// Waits on PostgreSQL.
    #[command(flatten)]
    pub postgres: PostgresOptions,
    /// Capture.
    #[command(flatten)]
    pub capture: CaptureOptions,
    /// The log.
    #[command(flatten)]
    pub log: LogOptions,
    /// Delivery.
    #[command(flatten)]
    pub delivery: DeliveryOptions,
    /// Snapshots.
    #[command(flatten)]
    pub snapshot: SnapshotOptions,
    /// The HTTP server.
    #[command(flatten)]
    pub http: HttpOptions,
}

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection string is not one.
    #[error("the registry's database cannot be found by --database-url")]
    DatabaseUrl(#[source] pg::Error),
    /// The registry's database could not be reached or migrated.
    #[error("the registry's database cannot be used")]
    Database(#[source] pg::Error),
    /// The private PostgreSQL could not start.
    #[error("the private PostgreSQL cannot be used")]
    Embedded(#[source] embedded::Error),
    /// The registry could not be read.
    #[error("the registry cannot be read")]
    Registry(#[source] registry::Error),
    /// The admin token or the key of secrets could not be read or kept.
    #[error("what is to be kept secret cannot be kept in {}", path.display())]
    Kept {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Metrics could not be set up.
    #[error("metrics cannot be collected")]
    Telemetry(#[source] telemetry::Error),
    /// Nothing can be sent to subscribers.
    #[error("changes cannot be delivered")]
    Delivery(#[source] feed::Error),
    /// The HTTP server could not start.
    #[error("requests cannot be served")]
    Serve(#[source] api::Error),
}

impl Error {
    /// Whether it is the caller who has to change something about the call.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::DatabaseUrl(_))
    }
}

/// A running server.
pub struct App {
    addr: SocketAddr,
    grace: Duration,
    /// Requests.
    serving: Tasks,
    /// Capture, guard, registry: what moves by itself.
    working: Tasks,
    /// What makes the log durable.
    logging: Tasks,
    http: Option<Serving>,
    postgres: Option<PrivatePostgres>,
}

impl App {
    /// Starts everything and returns when requests are served.
    ///
    /// # Errors
    /// When a part cannot start; those before it are stopped again.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let metrics = telemetry::metrics().map_err(Error::Telemetry)?;
        let (postgres, target) = database(&options).await?;
        let token = kept(&options, options.admin_token.as_ref(), ADMIN_TOKEN)?;
        let sealer = kept(&options, options.secrets_key.as_ref(), SECRETS_KEY)?;
        migrate(&target, &options).await?;
        let pool = Pool::new(&target, &options.postgres).map_err(Error::Database)?;
        let registry = Registry::open(pool.clone()).await.map_err(Error::Registry)?;
        let mut app = Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            grace: options.http.grace,
            serving: Tasks::new(),
            working: Tasks::new(),
            logging: Tasks::new(),
            http: None,
            postgres,
        };
        let store: Arc<dyn Store> = Arc::new(PostgresStore::new(pool.clone()));
        let log = Log::new(Arc::clone(&store), &app.logging, options.capture.log_linger);
        let retention = Retention {
            store,
            policies: policies(registry.clone(), options.log.clone()),
            every: options.log.log_sweep,
        };
        let feed = Feed::new(
            registry.clone(),
            log.clone(),
            options.postgres.clone(),
            options.snapshot.clone(),
        );
        let sinks = Sinks::new(&options.delivery).map_err(Error::Delivery)?;
        let subscriptions =
            Subscriptions::new(registry.clone(), log.clone(), pool, Sealer::new(&sealer));
        let governor = Governor::new(registry.clone(), options.postgres.clone());
        let mut capture = options.capture.clone();
        capture.spill_dir.get_or_insert_with(|| options.data_dir.join(SPILL_DIR));
        let captures =
            Captures::new(registry.clone(), log.clone(), options.postgres.clone(), capture);
        let gateway =
            Gateway::new(registry.clone(), options.postgres.clone(), &options.gateway_logins);
        let stopping = app.working.stopping();
        app.working.spawn("metrics", metrics.clone().run(stopping.clone()));
        app.working.spawn("registry", registry.clone().run(stopping.clone()));
        app.working.spawn("log retention", retention.run(stopping.clone()));
        app.working.spawn("subscriptions", subscriptions.clone().keep(stopping.clone()));
        let hold = options.delivery.delivery_hold;
        let spool = subscriptions.clone().spool(feed.clone(), hold, app.working.clone());
        app.working.spawn("snapshots of subscriptions", spool);
        app.working.spawn("delivery", subscriptions.clone().dispatch(sinks, app.working.clone()));
        app.working.spawn("guard", governor.clone().run(stopping));
        app.working.spawn("capture", captures.clone().run(app.working.clone()));
        let context = api::Context {
            registry: registry.clone(),
            governor,
            gateway,
            feed,
            subscriptions,
            captures,
            tokens: Tokens::new(&token),
            metrics: Arc::new(move || metrics.render()),
            log_troubles: Arc::new(move || log_troubles(&registry, &log)),
        };
        match api::serve(context, &options.http, &app.serving).await {
            Ok(http) => {
                app.addr = http.addr;
                app.http = Some(http);
                Ok(app)
            }
            Err(error) => {
                app.stop().await;
                Err(Error::Serve(error))
            }
        }
    }

    /// Where requests are served.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until a background task has panicked. Cancel-safe.
    pub async fn failed(&self) {
        let groups = [&self.serving, &self.working, &self.logging].map(Tasks::stopping);
        let ended = groups.iter().map(|stopping| Box::pin(stopping.cancelled()));
        futures::future::select_all(ended).await;
    }

    /// Stops everything, last started first. Dropping the future cuts it short: PostgreSQL is then
    /// stopped at once.
    pub async fn stop(mut self) {
        self.serving.stopping().cancel();
        // The server cuts requests off after the grace by itself.
        if let Some(http) = self.http.take()
            && tokio::time::timeout(self.grace.saturating_mul(2), http.ended()).await.is_err()
        {
            tracing::warn!("the HTTP server did not end in time");
        }
        for (group, tasks) in
            [("requests", &self.serving), ("work", &self.working), ("log", &self.logging)]
        {
            if !tasks.stop(self.grace).await {
                tracing::warn!(group, "tasks did not end in time");
            }
        }
        if let Some(postgres) = self.postgres.take()
            && let Err(error) = postgres.stop().await
        {
            tracing::warn!(error = %ErrorChain(&error), "the private PostgreSQL did not stop well");
        }
    }
}

/// The registry's database: the one that was named, or one in a private PostgreSQL.
async fn database(options: &Options) -> Result<(Option<PrivatePostgres>, Target), Error> {
    if let Some(url) = &options.database_url {
        let target = Target::parse(url.expose_secret()).map_err(Error::DatabaseUrl)?;
        return Ok((None, target));
    }
    let postgres = PrivatePostgres::start(embedded::Options {
        data_dir: options.data_dir.clone(),
        bin_dir: options.postgres_bin.clone(),
        port: options.postgres_port,
        settings: Vec::new(),
    })
    .await
    .map_err(Error::Embedded)?;
    postgres.create_database(DATABASE).await.map_err(Error::Embedded)?;
    let target = Target::parse(&postgres.url(DATABASE)).map_err(Error::DatabaseUrl)?;
    Ok((Some(postgres), target))
}

/// Migrates, and by that is the first to connect: a database that starts beside this program may
/// need a moment.
async fn migrate(target: &Target, options: &Options) -> Result<(), Error> {
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_total_delay(Some(options.database_wait))
        .without_max_times();
    let applied = (|| pg::migrate(target, &options.postgres))
        .retry(patience)
        .when(|error| error.retry() != Retry::Never)
        .notify(|error, pause| {
            tracing::warn!(
                error = %ErrorChain(error),
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "the registry's database does not answer yet"
            );
        })
        .await
        .map_err(Error::Database)?;
    tracing::info!(migrations = applied, "the registry's database is up to date");
    Ok(())
}

/// How long and how much is kept of each source: as set for it, else as set for all.
fn policies(registry: Registry, options: LogOptions) -> Policies {
    Arc::new(move |id| {
        let snapshot = registry.snapshot();
        let source = snapshot.sources.values().find(|source| source.id == id);
        let own = source.and_then(|source| {
            options.log_source.iter().rev().find(|limits| limits.source == source.name)
        });
        Policy {
            age: own.and_then(|own| own.keep).unwrap_or(options.log_keep),
            bytes: own.and_then(|own| own.bytes).unwrap_or(options.log_bytes),
            bytes_max: own.and_then(|own| own.bytes_max).unwrap_or(options.log_bytes_max),
        }
    })
}

/// What troubles the log of each source, a sentence each.
fn log_troubles(registry: &Registry, log: &Log) -> Vec<String> {
    let snapshot = registry.snapshot();
    let trouble = |source: &Arc<registry::Source>| {
        log.trouble(source.id).map(|trouble| format!("log of {}: {trouble}", source.name))
    };
    snapshot.sources.values().filter_map(trouble).collect()
}

/// What was set, else what is kept in a file of the data directory, made at the first start.
fn kept(options: &Options, set: Option<&SecretString>, file: &str) -> Result<SecretString, Error> {
    match set {
        Some(text) if !text.expose_secret().is_empty() => Ok(text.clone()),
        Some(_) | None => {
            let path = options.data_dir.join(file);
            make_kept(&options.data_dir, &path).map_err(|source| Error::Kept { path, source })
        }
    }
}

/// What is kept in `path`, made first if the file is not there.
fn make_kept(data_dir: &Path, path: &Path) -> std::io::Result<SecretString> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let text = format!("cad_{}", BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; KEPT_BYTES]>()));
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            writeln!(file, "{text}")?;
            tracing::info!(path = %path.display(), "made a secret to be kept");
            Ok(SecretString::from(text))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => read_kept(path),
        Err(error) => Err(error),
    }
}

fn read_kept(path: &Path) -> std::io::Result<SecretString> {
    let text = std::fs::read_to_string(path)?;
    match text.trim() {
        "" => Err(std::io::Error::other("the file is empty: remove it to have another made")),
        token => Ok(SecretString::from(token)),
    }
}

/// The admin token that a server on this machine keeps in its data directory, if it can be read.
pub fn admin_token_kept_in(data_dir: &Path) -> Option<SecretString> {
    read_kept(&data_dir.join(ADMIN_TOKEN)).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_admin_token_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let path = data_dir.join(ADMIN_TOKEN);
        assert!(admin_token_kept_in(&data_dir).is_none());
        let made = make_kept(&data_dir, &path).unwrap();
        let kept = make_kept(&data_dir, &path).unwrap();
        assert_eq!(made.expose_secret(), kept.expose_secret());
        assert_eq!(admin_token_kept_in(&data_dir).unwrap().expose_secret(), made.expose_secret());
        assert!(made.expose_secret().starts_with("cad_"));
        assert_eq!(made.expose_secret().len(), 4 + 43);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_empty_token_is_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(ADMIN_TOKEN), "\n").unwrap();
        assert!(admin_token_kept_in(dir.path()).is_none());
        assert!(make_kept(dir.path(), &dir.path().join(ADMIN_TOKEN)).is_err());
    }
}
