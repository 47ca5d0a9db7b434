//! The pool of connections to the registry's own database.

use diesel::result::{ConnectionError, Error as DieselError};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{self, Object};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, PoolError, RecyclingMethod,
};
use futures::FutureExt;

use super::{Error, Listener, REGISTRY_SCHEMA, Target};
use crate::config::PostgresOptions;

/// A connection on loan; it goes back when dropped, unless a transaction was left open on it.
pub type PooledConnection = Object<AsyncPgConnection>;

/// A bounded pool. Cheap to clone; clones share it. Each connection is asked whether it still
/// lives before it is lent, so callers do not meet the ones that a restart of PostgreSQL broke.
#[derive(Clone)]
pub struct Pool {
    connections: deadpool::Pool<AsyncPgConnection>,
    target: Target,
    options: PostgresOptions,
}

impl Pool {
    /// A pool of at most `pool_size` connections, made when they are first needed, whose
    /// `search_path` is [`REGISTRY_SCHEMA`].
    ///
    /// # Errors
    /// [`Error::Pool`].
    pub fn new(target: &Target, options: &PostgresOptions) -> Result<Self, Error> {
        let mut config = ManagerConfig::default();
        config.recycling_method = RecyclingMethod::Verified;
        let settings = (target.clone(), options.clone());
        config.custom_setup = Box::new(move |_| {
            let (target, options) = settings.clone();
            async move { establish(&target, "cadastre", &options).await.map_err(wrapped) }.boxed()
        });
        let manager = AsyncDieselConnectionManager::new_with_config(String::new(), config);
        let connections = deadpool::Pool::builder(manager)
            .max_size(options.pool_size)
            .build()
            .map_err(|error| Error::Pool { reason: error.to_string() })?;
        Ok(Self { connections, target: target.clone(), options: options.clone() })
    }

    /// A connection, within `pool_wait`.
    ///
    /// # Errors
    /// [`Error::PoolTimeout`], or why none could be made.
    pub async fn get(&self) -> Result<PooledConnection, Error> {
        let after = self.options.pool_wait;
        match tokio::time::timeout(after, self.connections.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(deadpool::PoolError::Backend(error))) => Err(unwrapped(error)),
            Ok(Err(error)) => Err(Error::Pool { reason: error.to_string() }),
            Err(_) => Err(Error::PoolTimeout { after }),
        }
    }

    /// A connection of its own, outside the pool, that listens to `channel`.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn listen(&self, channel: &str) -> Result<Listener, Error> {
        self.target.listen("cadastre-listen", &self.options, channel).await
    }

    /// The deadlines its connections have.
    pub fn options(&self) -> &PostgresOptions {
        &self.options
    }
}

/// A diesel connection in the registry's schema.
pub(super) async fn establish(
    target: &Target,
    application: &str,
    options: &PostgresOptions,
) -> Result<AsyncPgConnection, Error> {
    let (client, driver) = target.open(application, options, Some(REGISTRY_SCHEMA), None).await?;
    // diesel takes the client alone. The driver ends by itself when that is dropped.
    drop(driver.detach());
    AsyncPgConnection::try_from(client).await.map_err(|error| match error {
        ConnectionError::CouldntSetupConfiguration(error) => Error::Query(error),
        error => Error::Pool { reason: error.to_string() },
    })
}

/// Our error in the only kind of envelope that diesel's pool lets through.
fn wrapped(error: Error) -> ConnectionError {
    ConnectionError::CouldntSetupConfiguration(DieselError::QueryBuilderError(Box::new(error)))
}

/// The inverse of [`wrapped`].
fn unwrapped(error: PoolError) -> Error {
    use ConnectionError::CouldntSetupConfiguration;
    match error {
        PoolError::ConnectionError(CouldntSetupConfiguration(DieselError::QueryBuilderError(
            inner,
        ))) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => Error::Pool { reason: error.to_string() },
        },
        PoolError::ConnectionError(error) => Error::Pool { reason: error.to_string() },
        PoolError::QueryError(error) => Error::Query(error),
    }
}
