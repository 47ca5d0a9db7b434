//! A receiver of webhooks that does what a test tells it, from taking everything to never answering.

use std::collections::BTreeMap;
use std::sync::Arc;

use cadastre::task::Tasks;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a receiver does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    /// Takes it.
    Take,
    /// Answers with this status.
    Answer(u16),
    /// Asks to be left alone for a second.
    AskForTime,
    /// Never answers.
    Hang,
    /// Answers byte by byte and never comes to an end.
    Drip,
    /// Cuts the connection before it has looked.
    Reset,
    /// Takes it and cuts the connection instead of saying so.
    TakeAndReset,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// Whether the receiver took it.
    pub(super) taken: bool,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The events in it.
    pub(super) fn events(&self) -> Vec<Value> {
        match serde_json::from_slice(&self.body).expect("a body of JSON") {
            Value::Array(events) => events,
            event => vec![event],
        }
    }
}

type Behaviour = Box<dyn Fn(&Request) -> Does + Send + Sync>;

struct Shared {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
}

/// A receiver; it ends with the test.
pub(super) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Receiver {
    /// A receiver that takes everything.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behaviour: Behaviour = Box::new(|_| Does::Take);
        let shared =
            Arc::new(Shared { behaviour: Mutex::new(behaviour), requests: Mutex::default() });
        let tasks = Tasks::new();
        let (serving, each) = (Arc::clone(&shared), tasks.clone());
        let stop = tasks.stopping();
        tasks.spawn("receiver", async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (shared, stop) = (Arc::clone(&serving), each.stopping());
                each.spawn("request", async move {
                    stop.run_until_cancelled(serve(stream, &shared)).await;
                });
            }
        });
        Self { port, shared, tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// From now on it does that.
    pub(super) fn behave(&self, does: impl Fn(&Request) -> Does + Send + Sync + 'static) {
        *self.shared.behaviour.lock() = Box::new(does);
    }

    /// Every request so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().clone()
    }

    /// The events it took, in the order in which it took them, repetitions included.
    pub(super) fn taken(&self) -> Vec<Value> {
        let requests = self.requests();
        requests.iter().filter(|it| it.taken).flat_map(Request::events).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) {
    let Some(mut request) = read(&mut stream).await else { return };
    let does = (shared.behaviour.lock())(&request);
    request.taken = matches!(does, Does::Take | Does::TakeAndReset);
    shared.requests.lock().push(request);
    let head = |status: u16, more: &str| {
        format!("HTTP/1.1 {status} Said\r\nconnection: close\r\n{more}content-length: 2\r\n\r\nno")
    };
    let answer = match does {
        Does::Take => head(200, ""),
        Does::Answer(status) => head(status, ""),
        Does::AskForTime => head(429, "retry-after: 1\r\n"),
        Does::Reset | Does::TakeAndReset => {
            // Closing with unread or unsent data, and no wait, resets the connection.
            let _ = stream.set_zero_linger();
            return;
        }
        Does::Hang => return std::future::pending().await,
        Does::Drip => {
            for byte in "HTTP/1.1 200 OK\r\nx-drip: ".bytes().chain(std::iter::repeat(b'x')) {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            return;
        }
    };
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        // A handshake of TLS, which this does not speak.
        if bytes.first() == Some(&0x16) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let headers: BTreeMap<String, String> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length")?.parse().ok()?;
    let mut body = bytes[end + 4..].to_vec();
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { headers, body, taken: false })
}
