//! Making a connection with every deadline set, and keeping its driver task beside it.

use std::future::poll_fn;
use std::ops::{Deref, DerefMut};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Socket};
use tokio_util::task::AbortOnDropHandle;

use super::{Error, Target, quote_ident, quote_literal};
use crate::config::PostgresOptions;

/// Notifications that may wait for a listener. One that is further behind misses some, which
/// costs nothing: a notification says that there is something to read, not what.
const NOTIFICATIONS_MAX: usize = 64;

/// A connection to PostgreSQL; used as the [`Client`] it holds. Dropping it ends the connection.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    /// Moves bytes between the client and the socket.
    _driver: AbortOnDropHandle<()>,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A connection that waits for the notifications of one channel.
#[derive(Debug)]
pub struct Listener {
    _connection: Connection,
    heard: mpsc::Receiver<String>,
}

impl Listener {
    /// The payload of the next notification; `None` once the connection is lost. Cancel-safe.
    pub async fn next(&mut self) -> Option<String> {
        self.heard.recv().await
    }
}

impl Target {
    /// Connects within `connect_timeout`, with `statement_timeout`, `lock_timeout` and
    /// `idle_in_transaction_session_timeout` set.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::ConnectTimeout`].
    pub async fn connect(
        &self,
        application: &str,
        options: &PostgresOptions,
    ) -> Result<Connection, Error> {
        let (client, driver) = self.open(application, options, None, None).await?;
        Ok(Connection { client, _driver: driver })
    }

    /// Connects and listens to `channel`.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn listen(
        &self,
        application: &str,
        options: &PostgresOptions,
        channel: &str,
    ) -> Result<Listener, Error> {
        let (sender, heard) = mpsc::channel(NOTIFICATIONS_MAX);
        let (client, driver) = self.open(application, options, None, Some(sender)).await?;
        client.batch_execute(&format!("LISTEN {}", quote_ident(channel))).await?;
        Ok(Listener { _connection: Connection { client, _driver: driver }, heard })
    }

    /// The one place where connections are made.
    pub(super) async fn open(
        &self,
        application: &str,
        options: &PostgresOptions,
        search_path: Option<&str>,
        heard: Option<mpsc::Sender<String>>,
    ) -> Result<(Client, AbortOnDropHandle<()>), Error> {
        let refused = |source| Error::Connect { target: self.to_string(), source };
        let mut config = self.config().clone();
        config.application_name(application);
        let connect = async {
            let (client, connection) = config.connect(self.tls()).await.map_err(refused)?;
            #[expect(clippy::disallowed_methods, reason = "the handle is owned by the connection")]
            let driver = AbortOnDropHandle::new(tokio::spawn(drive(connection, heard)));
            client.batch_execute(&settings(options, search_path)).await.map_err(refused)?;
            Ok((client, driver))
        };
        let after = options.connect_timeout;
        tokio::time::timeout(after, connect)
            .await
            .unwrap_or_else(|_| Err(Error::ConnectTimeout { target: self.to_string(), after }))
    }
}

/// A transaction left idle counts like a statement: it holds locks as long.
fn settings(options: &PostgresOptions, search_path: Option<&str>) -> String {
    let statement = options.statement_timeout.as_millis();
    let lock = options.lock_timeout.as_millis();
    let mut sql = format!(
        "SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
         SET idle_in_transaction_session_timeout = {statement};"
    );
    if let Some(schema) = search_path {
        sql.push_str(&format!(" SET search_path = {};", quote_literal(schema)));
    }
    sql
}

/// Runs until the client is dropped or the connection is lost. Failures reach whoever uses the
/// client; notices of the server are of no use here.
async fn drive<T>(
    mut connection: tokio_postgres::Connection<Socket, T>,
    heard: Option<mpsc::Sender<String>>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let (AsyncMessage::Notification(notification), Some(heard)) = (message, &heard) {
            // A full queue already says that there is something to read.
            let _ = heard.try_send(notification.payload().to_owned());
        }
    }
}
