//! Sessions of services in sources, and the requests that run in them.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;
use super::request::{IdempotencyKey, Request, Written};
use super::store::{self, Work};
use crate::config::PostgresOptions;
use crate::pg::{self, Connection, Target};
use crate::registry::{Registry, Snapshot};
use crate::vocab::{DatasetName, Retry, ServiceName, SourceName, TraceParent, limits};

/// How often a transaction that lost to another one is tried again.
const ATTEMPTS: usize = 4;

/// The connection string with which a service's rows are written: `SOURCE/SERVICE=URL`.
#[derive(Debug, Clone)]
pub struct Login {
    source: SourceName,
    service: ServiceName,
    url: SecretString,
}

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected SOURCE/SERVICE=URL, such as shop/orders=${ORDERS_DATABASE_URL}";
        let (names, url) = text.split_once('=').ok_or(EXPECTED)?;
        let (source, service) = names.split_once('/').ok_or(EXPECTED)?;
        Ok(Self {
            source: source.parse().map_err(|error| format!("{error}; {EXPECTED}"))?,
            service: service.parse().map_err(|error| format!("{error}; {EXPECTED}"))?,
            url: url.to_owned().into(),
        })
    }
}

/// Writes rows for services. Cheap to clone; clones share its sessions.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    options: PostgresOptions,
    logins: HashMap<Place, SecretString>,
    sessions: Mutex<HashMap<Place, Arc<Sessions>>>,
}

/// A service in a source.
type Place = (SourceName, ServiceName);

/// The sessions of one service in one source.
struct Sessions {
    /// Where they were made; another target empties them.
    target: String,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// A session in use.
struct Session {
    connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Gateway {
    /// A gateway into the sources of `registry`. A service without one of these logins is connected
    /// as its first role, by the source's connection string without its password.
    pub fn new(registry: Registry, options: PostgresOptions, logins: &[Login]) -> Self {
        let logins = logins
            .iter()
            .map(|login| ((login.source.clone(), login.service.clone()), login.url.clone()))
            .collect();
        Self { shared: Arc::new(Shared { registry, options, logins, sessions: Mutex::default() }) }
    }

    /// Writes the rows of a request into a dataset's table as `service`, whole or not at all.
    ///
    /// # Errors
    /// Everything in [`Error`].
    pub async fn write(
        &self,
        service: &ServiceName,
        dataset: &DatasetName,
        request: &Request,
        key: Option<&IdempotencyKey>,
        trace: Option<&TraceParent>,
    ) -> Result<Written, Error> {
        let snapshot = self.shared.registry.snapshot();
        let Some(known) = snapshot.dataset(dataset) else {
            return Err(Error::UnknownDataset(dataset.clone()));
        };
        let work = Work { dataset, owner: &known.owner, request, key, trace };
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(10))
            .with_jitter()
            .with_max_times(ATTEMPTS - 1)
            .build();
        loop {
            let outcome = self.attempt(&snapshot, service, &work).await;
            let retry = outcome.as_ref().err().map(Error::retry);
            match (retry, pauses.next()) {
                (Some(Retry::Now), Some(pause)) => tokio::time::sleep(pause).await,
                _ => return outcome,
            }
        }
    }

    /// One transaction.
    async fn attempt(
        &self,
        snapshot: &Snapshot,
        service: &ServiceName,
        work: &Work<'_>,
    ) -> Result<Written, Error> {
        let source = work.dataset.source();
        let failed = |cause| Error::Source { source_name: source.clone(), cause };
        let sessions = self.sessions(snapshot, service, source)?;
        let session = sessions.begin(&self.shared, service, source, work.trace).await?;
        // PostgreSQL's own timeouts end each statement; this ends the wait for a silent server.
        let after = self.shared.options.statement_timeout * 2;
        let silent = || pg::Error::Silent { after };
        let outcome = tokio::time::timeout(after, store::work(&session.connection, work))
            .await
            .unwrap_or_else(|_| Err(failed(silent())));
        match outcome {
            Ok(written) if written.replayed => {
                sessions.finish(session, "ROLLBACK", after).await.map_err(failed)?;
                Ok(written)
            }
            Ok(written) => {
                sessions.finish(session, "COMMIT", after).await.map_err(|cause| match cause {
                    // What PostgreSQL refuses at the commit was rolled back; silence tells nothing.
                    pg::Error::Statement(error) if error.code().is_some() => {
                        store::failure(source, work.owner, error)
                    }
                    cause => Error::Unknown { source_name: source.clone(), cause },
                })?;
                Ok(written)
            }
            Err(error) => {
                // A session that cannot even roll back is dropped, which does.
                sessions.finish(session, "ROLLBACK", after).await.unwrap_or_default();
                Err(error)
            }
        }
    }

    /// The sessions of a service in a source.
    fn sessions(
        &self,
        snapshot: &Snapshot,
        service: &ServiceName,
        source: &SourceName,
    ) -> Result<Arc<Sessions>, Error> {
        let target = self.shared.target(snapshot, service, source)?.to_string();
        let mut sessions = self.shared.sessions.lock();
        let place = (source.clone(), service.clone());
        let found = sessions.entry(place).or_insert_with(|| Arc::new(Sessions::new(&target)));
        if found.target != target {
            *found = Arc::new(Sessions::new(&target));
        }
        Ok(Arc::clone(found))
    }
}

impl Shared {
    /// Where a service's rows are written, and as whom.
    fn target(
        &self,
        snapshot: &Snapshot,
        service: &ServiceName,
        source: &SourceName,
    ) -> Result<Target, Error> {
        let failed = |cause| Error::Source { source_name: source.clone(), cause };
        if let Some(url) = self.logins.get(&(source.clone(), service.clone())) {
            return Target::resolve(url.expose_secret()).map_err(failed);
        }
        let none = || Error::NoRole { service: service.clone(), source_name: source.clone() };
        let found = snapshot.sources.get(source).ok_or_else(none)?;
        let roles = snapshot.services.get(service).and_then(|service| service.roles.get(source));
        let role = roles.and_then(|roles| roles.iter().min()).ok_or_else(none)?;
        let target = Target::resolve(&found.url).map_err(failed)?;
        Ok(target.with_user(role.as_str(), None))
    }
}

impl Sessions {
    fn new(target: &str) -> Self {
        let permits = Arc::new(Semaphore::new(limits::GATEWAY_SESSIONS_MAX));
        Self { target: target.to_owned(), permits, idle: Mutex::default() }
    }

    /// A session with an open transaction. One that was idle may have been cut meanwhile; then
    /// another is made, since nothing has been sent yet.
    async fn begin(
        &self,
        shared: &Shared,
        service: &ServiceName,
        source: &SourceName,
        trace: Option<&TraceParent>,
    ) -> Result<Session, Error> {
        let failed = |cause| Error::Source { source_name: source.clone(), cause };
        let full = Error::Full { limit: limits::GATEWAY_SESSIONS_MAX };
        let wait = shared.options.pool_wait;
        let acquired = tokio::time::timeout(wait, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = acquired else { return Err(full) };
        let after = shared.options.statement_timeout * 2;
        let begin = async |connection: &Connection| {
            tokio::time::timeout(after, store::begin(connection, trace))
                .await
                .unwrap_or(Err(pg::Error::Silent { after }))
        };
        while let Some(connection) = self.take() {
            if begin(&connection).await.is_ok() {
                return Ok(Session { connection, _permit: permit });
            }
        }
        let target = shared.target(&shared.registry.snapshot(), service, source)?;
        let connection =
            target.connect("cadastre gateway", &shared.options).await.map_err(failed)?;
        begin(&connection).await.map_err(failed)?;
        Ok(Session { connection, _permit: permit })
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    /// Ends the transaction and keeps the session for the next, if that works.
    async fn finish(&self, session: Session, how: &str, after: Duration) -> Result<(), pg::Error> {
        let ended = tokio::time::timeout(after, session.connection.batch_execute(how)).await;
        ended.map_err(|_| pg::Error::Silent { after })??;
        self.idle.lock().push(session.connection);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_names_source_service_and_address() {
        let login: Login = "shop/orders=postgresql://o:secret@db/shop".parse().unwrap();
        assert_eq!((login.source.as_str(), login.service.as_str()), ("shop", "orders"));
        assert!(!format!("{login:?}").contains("secret"));
        for text in ["shop/orders", "shop=postgresql://o@db/shop", "Shop/orders=x"] {
            assert!(text.parse::<Login>().unwrap_err().contains("SOURCE/SERVICE=URL"), "{text}");
        }
    }
}
