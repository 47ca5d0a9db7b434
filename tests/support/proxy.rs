//! A TCP proxy in front of a PostgreSQL server that can fail as networks do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Everything passes.
    Fair,
    /// Connections are reset, new ones end at once.
    Cut,
    /// Connections stay open and nothing passes.
    Stalled,
    /// A few bytes pass now and then.
    Dripping,
}

/// Bytes that pass at once, and how often, while it drips.
const DRIP_BYTES: usize = 512;
const DRIP_EVERY: Duration = Duration::from_millis(2);

/// What a client may not say for now, and how many have tried.
type Hold = Option<(&'static str, usize)>;

/// The proxy; it ends with this.
pub(crate) struct Proxy {
    port: u16,
    socket: Arc<Mutex<PathBuf>>,
    weather: watch::Sender<Weather>,
    hold: watch::Sender<Hold>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// In front of the server whose Unix socket this is.
    pub(crate) async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let weather = watch::Sender::new(Weather::Fair);
        let hold = watch::Sender::new(None);
        let socket = Arc::new(Mutex::new(socket));
        let accepting = accept(listener, Arc::clone(&socket), weather.subscribe(), hold.clone());
        #[expect(clippy::disallowed_methods, reason = "aborted when the proxy is dropped")]
        let accepting = AbortOnDropHandle::new(tokio::spawn(accepting));
        Self { port, socket, weather, hold, _accepting: accepting }
    }

    /// A superuser's connection string to a database by way of the proxy.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// From here on new connections lead to the server whose Unix socket this is.
    pub(crate) fn lead_to(&self, socket: PathBuf) {
        *self.socket.lock() = socket;
    }

    /// From here on the network is so.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// From here on, what clients send stops where these words are, until [`Proxy::release`].
    pub(crate) fn hold(&self, words: &'static str) {
        self.hold.send_replace(Some((words, 0)));
    }

    /// Waits until a client is held.
    pub(crate) async fn held(&self) {
        let mut hold = self.hold.subscribe();
        hold.wait_for(|hold| hold.is_some_and(|(_, held)| held > 0)).await.expect("it is here");
    }

    /// Lets clients go on.
    pub(crate) fn release(&self) {
        self.hold.send_replace(None);
    }
}

async fn accept(
    listener: TcpListener,
    socket: Arc<Mutex<PathBuf>>,
    weather: watch::Receiver<Weather>,
    hold: watch::Sender<Hold>,
) {
    // Connections end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let socket = socket.lock().clone();
        let Ok(server) = UnixStream::connect(socket).await else { continue };
        let _ = client.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (there, back) = (weather.clone(), weather.clone());
        let (held, free) = (hold.clone(), watch::Sender::new(None));
        connections.spawn(async move {
            tokio::select! {
                () = pump(from_client, to_server, there, held) => {}
                () = pump(from_server, to_client, back, free) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Moves bytes one way until either end closes or the connection is cut.
async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    hold: watch::Sender<Hold>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let now = *weather.borrow_and_update();
        let most = match now {
            Weather::Cut => return,
            Weather::Stalled => {
                if weather.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Weather::Dripping => {
                tokio::time::sleep(DRIP_EVERY).await;
                DRIP_BYTES
            }
            Weather::Fair => buffer.len(),
        };
        let read = tokio::select! {
            biased;
            changed = weather.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            read = from.read(&mut buffer[..most]) => read,
        };
        match read {
            Ok(count) if count > 0 => {
                let stops = |words: &str| memchr::memmem::find(&buffer[..count], words.as_bytes());
                let met = hold.send_if_modified(|hold| match hold {
                    Some((words, held)) if stops(words).is_some() => {
                        *held += 1;
                        true
                    }
                    _ => false,
                });
                if met && hold.subscribe().wait_for(Option::is_none).await.is_err() {
                    return;
                }
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
