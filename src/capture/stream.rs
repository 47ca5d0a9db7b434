//! The replication connection: from a socket to pgoutput messages, and progress back.
//!
//! The released tokio-postgres speaks neither replication mode nor `CopyBoth`, so this file speaks
//! the protocol itself, over `postgres-protocol` for authentication:
//! start-up with `replication=database`, `START_REPLICATION`, then `XLogData` and keepalives one way
//! and standby status updates the other
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).
//!
//! The connection is split. [`Stream`] reads, in large gulps, and hands out messages that borrow
//! its buffer. [`Feedback`] writes, from a task of its own that nothing downstream can block: it
//! reports progress on a timer and at once when the server asks, so a slow log or a paused reader
//! never looks dead to PostgreSQL. What may be confirmed is decided elsewhere: feedback only
//! repeats the latest LSN that the log declared durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use chrono::Utc;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Error;
use super::decode::Dialect;
use crate::pg::{self, Target, quote_ident, quote_literal};
use crate::vocab::Lsn;

/// Bytes asked of the socket at once. Large reads are what makes catching up fast.
const READ_BYTES: usize = 256 * 1024;

/// Largest single protocol message accepted; PostgreSQL's own limit is 1 GiB.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Longest wait for the socket to take a status update.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Anything the protocol runs over.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One thing the server sent.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// A pgoutput message.
    Data {
        /// Where in the WAL it comes from.
        wal: Lsn,
        /// The message.
        payload: &'a [u8],
    },
    /// Sign of life. Everything before `wal_end` that concerns us has been sent.
    Keepalive {
        /// The server's end of WAL.
        wal_end: Lsn,
    },
}

/// What reader and feedback share.
#[derive(Debug, Default)]
struct Progress {
    /// Highest LSN received.
    received: AtomicU64,
    /// The server asked for a status update.
    asked: Notify,
    /// Something arrived since the last status update.
    heard: AtomicBool,
}

/// The reading half.
pub(super) struct Stream {
    /// The socket.
    read: ReadHalf<Box<dyn Io>>,
    /// Bytes received and not yet handed out.
    buffer: BytesMut,
    /// Length of the message handed out last: still at the front of `buffer`.
    lent: usize,
    /// Longest silence before the connection counts as dead.
    silence: Duration,
    /// Shared with the feedback.
    progress: Arc<Progress>,
    /// Stops the feedback when the stream is dropped.
    _feedback: DropGuard,
}

/// The writing half: run it as a task.
pub(super) struct Feedback {
    /// The socket.
    write: WriteHalf<Box<dyn Io>>,
    /// Shared with the stream.
    progress: Arc<Progress>,
    /// The stream is gone.
    stop: CancellationToken,
}

/// Connects in replication mode, within `limit`.
///
/// # Errors
/// [`Error::Connect`] when no host answers, [`Error::Server`] with PostgreSQL's own words when it
/// refuses, [`Error::Protocol`] when it says something unexpected.
pub(super) async fn connect(target: &Target, limit: Duration) -> Result<Wire, Error> {
    let connecting = async {
        let mut wire = Wire { io: open(target).await?, buffer: BytesMut::new(), limit };
        wire.authenticate(target.config()).await?;
        Ok(wire)
    };
    within(limit, connecting).await
}

/// What `work` gives, if it takes no longer than `limit`.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work).await.map_err(|_| Error::Connect {
        reason: format!("no answer within {}", humantime::format_duration(limit)),
    })?
}

/// Which cluster this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Given by initdb.
    pub(super) system_identifier: String,
    /// Grows with each promotion.
    pub(super) timeline: u32,
}

impl Stream {
    /// Waits until at least one whole message is buffered. Cancel-safe.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        self.release();
        while self.frame_len()?.is_none_or(|len| self.buffer.len() < len) {
            self.buffer.reserve(READ_BYTES);
            let read = timeout(self.silence, self.read.read_buf(&mut self.buffer)).await;
            let count = read.map_err(|_| Error::Silent { after: self.silence })??;
            if count == 0 {
                return Err(Error::Closed);
            }
            self.progress.heard.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next message that is wholly buffered; `None` when the buffer must be filled first.
    pub(super) fn next(&mut self) -> Result<Option<Event<'_>>, Error> {
        loop {
            self.release();
            let Some(len) = self.frame_len()? else { return Ok(None) };
            if self.buffer.len() < len {
                return Ok(None);
            }
            match self.buffer.first() {
                Some(b'd') => {
                    self.lent = len;
                    return self.copy_data(len).map(Some);
                }
                Some(b'E') => {
                    let mut frame = self.buffer.split_to(len);
                    return Err(server_error(&mut frame));
                }
                // The end of the copy, or of the whole command when the server shuts down.
                Some(b'c' | b'C') => return Err(Error::Closed),
                // Notices and parameter changes say nothing about the stream.
                Some(b'N' | b'S') => self.buffer.advance(len),
                other => return Err(unexpected("streaming", other.copied())),
            }
        }
    }

    /// Drops the message lent out last.
    fn release(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.lent));
    }

    /// Length of the frame at the front of the buffer, header included, once it is known.
    fn frame_len(&self) -> Result<Option<usize>, Error> {
        frame_len(&self.buffer)
    }

    /// Reads the `CopyData` frame of `len` bytes at the front of the buffer.
    fn copy_data(&self, len: usize) -> Result<Event<'_>, Error> {
        let mut body = self.buffer.get(5..len).unwrap_or_default();
        match body.try_get_u8() {
            Ok(b'w') => {
                let (Ok(start), Ok(_end), Ok(_clock)) =
                    (body.try_get_u64(), body.try_get_u64(), body.try_get_u64())
                else {
                    return Err(Error::Protocol { detail: "short XLogData".to_owned() });
                };
                self.progress.received.fetch_max(start, Ordering::Relaxed);
                Ok(Event::Data { wal: Lsn::new(start), payload: body })
            }
            Ok(b'k') => {
                let (Ok(end), Ok(_clock), Ok(reply)) =
                    (body.try_get_u64(), body.try_get_u64(), body.try_get_u8())
                else {
                    return Err(Error::Protocol { detail: "short keepalive".to_owned() });
                };
                self.progress.received.fetch_max(end, Ordering::Relaxed);
                if reply != 0 {
                    self.progress.asked.notify_one();
                }
                Ok(Event::Keepalive { wal_end: Lsn::new(end) })
            }
            other => Err(unexpected("CopyData", other.ok())),
        }
    }
}

impl Feedback {
    /// Reports progress every `every` and whenever the server asks, until the stream is dropped or
    /// the connection breaks. `durable` is what may be confirmed. A last report goes out at the end.
    pub(super) async fn run(mut self, durable: watch::Receiver<Lsn>, every: Duration) {
        let mut timer = tokio::time::interval(every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        loop {
            let stopping = tokio::select! {
                biased;
                () = self.stop.cancelled() => true,
                () = self.progress.asked.notified() => false,
                _ = timer.tick() => false,
            };
            if self.progress.heard.swap(false, Ordering::Relaxed) {
                heard_at = Instant::now();
            }
            // A server without keepalives (`wal_sender_timeout` = 0) still answers when asked.
            let ask = heard_at.elapsed() > every * 5;
            let flushed = *durable.borrow();
            let report = self.report(flushed, ask);
            let written = timeout(WRITE_TIMEOUT, self.write.write_all(&report)).await;
            if stopping || !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// A standby status update. What is durable counts as flushed and applied; nothing is
    /// reported as received that is not at least as far.
    fn report(&self, flushed: Lsn, ask: bool) -> BytesMut {
        let received = self.progress.received.load(Ordering::Relaxed).max(flushed.get());
        let mut frame = BytesMut::with_capacity(64);
        frame.put_u8(b'd');
        frame.put_i32(4 + 34);
        frame.put_u8(b'r');
        frame.put_u64(received);
        frame.put_u64(flushed.get());
        frame.put_u64(flushed.get());
        frame.put_i64(Utc::now().timestamp_micros() - POSTGRES_EPOCH_MICROS);
        frame.put_u8(u8::from(ask));
        frame
    }
}

/// A replication connection that does not stream yet.
pub(super) struct Wire {
    /// The socket.
    io: Box<dyn Io>,
    /// Bytes received and not yet used.
    buffer: BytesMut,
    /// Longest wait for an answer.
    limit: Duration,
}

/// The fields of a row.
type Row = Vec<Option<Vec<u8>>>;

impl Wire {
    /// Which cluster this is.
    pub(super) async fn identify(&mut self) -> Result<Identity, Error> {
        let row = within(self.limit, self.query("IDENTIFY_SYSTEM")).await?;
        let mut fields = row.iter().map(|field| text(field.as_deref()));
        let (Some(system_identifier), Some(timeline)) = (fields.next(), fields.next()) else {
            return Err(Error::Protocol { detail: "IDENTIFY_SYSTEM without a row".to_owned() });
        };
        let timeline = timeline.parse().map_err(|_| Error::Protocol {
            detail: format!("IDENTIFY_SYSTEM with timeline \"{timeline}\""),
        })?;
        Ok(Identity { system_identifier, timeline })
    }

    /// Where each timeline before `timeline` ended, oldest first.
    pub(super) async fn timeline_history(
        &mut self,
        timeline: u32,
    ) -> Result<Vec<(u32, Lsn)>, Error> {
        let row = within(self.limit, self.query(&format!("TIMELINE_HISTORY {timeline}"))).await?;
        Ok(parse_history(&text(row.get(1).and_then(Option::as_deref))))
    }

    /// The only row that a command gives.
    async fn query(&mut self, command: &str) -> Result<Row, Error> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.send(&mut out).await?;
        let mut row = Row::new();
        loop {
            match self.receive().await? {
                Message::DataRow(body) => {
                    let fields = body.ranges().map(|range| {
                        Ok(range.and_then(|range| body.buffer().get(range)).map(<[u8]>::to_vec))
                    });
                    row = fields.collect()?;
                }
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                Message::ReadyForQuery(_) => return Ok(row),
                _ => {
                    let detail = format!("unexpected message during {command}");
                    return Err(Error::Protocol { detail });
                }
            }
        }
    }

    /// Starts streaming `slot` from where it was confirmed.
    pub(super) async fn stream(
        mut self,
        (slot, publication): (&str, &str),
        dialect: Dialect,
        silence: Duration,
    ) -> Result<(Stream, Feedback), Error> {
        within(self.limit, self.start_replication(slot, publication, dialect)).await?;
        let (read, write) = tokio::io::split(self.io);
        let progress = Arc::new(Progress::default());
        let stop = CancellationToken::new();
        let stream = Stream {
            read,
            buffer: self.buffer,
            lent: 0,
            silence,
            progress: Arc::clone(&progress),
            _feedback: stop.clone().drop_guard(),
        };
        Ok((stream, Feedback { write, progress, stop }))
    }

    /// Sends the start-up message and answers the server until it is ready for a query.
    async fn authenticate(&mut self, config: &tokio_postgres::Config) -> Result<(), Error> {
        let user = config.get_user().unwrap_or("postgres").to_owned();
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        let settings = [
            ("user", user.as_str()),
            ("database", database.as_str()),
            ("replication", "database"),
            ("application_name", pg::capturer()),
            // The text forms the encoder understands.
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("IntervalStyle", "iso_8601"),
            ("TimeZone", "UTC"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "1"),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(settings, &mut out)?;
        self.send(&mut out).await?;
        let password = config.get_password().unwrap_or_default().to_vec();
        loop {
            match self.receive().await? {
                Message::AuthenticationOk
                | Message::BackendKeyData(_)
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_) => {}
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(&password, &mut out)?;
                    self.send(&mut out).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), &password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                    self.send(&mut out).await?;
                }
                Message::AuthenticationSasl(body) => {
                    let scram = body.mechanisms().any(|name| Ok(name == sasl::SCRAM_SHA_256))?;
                    if !scram {
                        return Err(unsupported_authentication());
                    }
                    self.scram(&password).await?;
                }
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(unsupported_authentication()),
            }
        }
    }

    /// SCRAM-SHA-256 (RFC 7677), without channel binding.
    async fn scram(&mut self, password: &[u8]) -> Result<(), Error> {
        let mut out = BytesMut::new();
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut out)?;
        self.send(&mut out).await?;
        let Message::AuthenticationSaslContinue(body) = self.receive().await? else {
            return Err(unsupported_authentication());
        };
        scram.update(body.data())?;
        frontend::sasl_response(scram.message(), &mut out)?;
        self.send(&mut out).await?;
        let Message::AuthenticationSaslFinal(body) = self.receive().await? else {
            return Err(unsupported_authentication());
        };
        Ok(scram.finish(body.data())?)
    }

    /// Starts streaming from the slot's confirmed position.
    async fn start_replication(
        &mut self,
        slot: &str,
        publication: &str,
        dialect: Dialect,
    ) -> Result<(), Error> {
        let streaming = dialect.streaming_option();
        let streaming = streaming.map(|how| format!(", streaming '{how}'")).unwrap_or_default();
        let query = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '{}', publication_names {}, \
             messages 'true'{streaming})",
            quote_ident(slot),
            dialect.version(),
            quote_literal(&quote_ident(publication)),
        );
        let mut out = BytesMut::new();
        frontend::query(&query, &mut out)?;
        self.send(&mut out).await?;
        loop {
            let len = self.wait_frame().await?;
            match self.buffer.first() {
                // CopyBothResponse, which postgres-protocol does not know.
                Some(b'W') => {
                    self.buffer.advance(len);
                    return Ok(());
                }
                Some(b'N' | b'S') => self.buffer.advance(len),
                Some(b'E') => return Err(server_error(&mut self.buffer.split_to(len))),
                other => return Err(unexpected("START_REPLICATION", other.copied())),
            }
        }
    }

    /// Sends and empties `out`.
    async fn send(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        self.io.write_all(out).await?;
        out.clear();
        Ok(())
    }

    /// The next message; the server's error as our own.
    async fn receive(&mut self) -> Result<Message, Error> {
        let len = self.wait_frame().await?;
        let mut frame = self.buffer.split_to(len);
        if frame.first() == Some(&b'E') {
            return Err(server_error(&mut frame));
        }
        Message::parse(&mut frame)?
            .ok_or_else(|| Error::Protocol { detail: "incomplete message".to_owned() })
    }

    /// Waits for one whole frame at the front of the buffer and returns its length.
    async fn wait_frame(&mut self) -> Result<usize, Error> {
        loop {
            if let Some(len) = frame_len(&self.buffer)?
                && self.buffer.len() >= len
            {
                return Ok(len);
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }
}

/// Length of the frame at the front of `buffer`, its five bytes of header included.
fn frame_len(buffer: &BytesMut) -> Result<Option<usize>, Error> {
    let Some(mut header) = buffer.get(1..5) else { return Ok(None) };
    let len = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
    if !(4..=MESSAGE_BYTES_MAX).contains(&len) {
        return Err(Error::Protocol { detail: format!("message of {len} bytes") });
    }
    Ok(Some(len + 1))
}

/// A socket to the first host that answers, encrypted as `sslmode` says.
async fn open(target: &Target) -> Result<Box<dyn Io>, Error> {
    let config = target.config();
    let hosts = config.get_hosts();
    let ports = config.get_ports();
    let mut reasons = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        match open_host(target, host, port).await {
            Ok(io) => return Ok(io),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Error::Connect { reason: reasons.join("; ") })
}

/// A socket to one host.
async fn open_host(target: &Target, host: &Host, port: u16) -> Result<Box<dyn Io>, Error> {
    match host {
        Host::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{port}"));
            Ok(Box::new(UnixStream::connect(path).await?))
        }
        Host::Tcp(name) => {
            let mut socket = TcpStream::connect((name.as_str(), port)).await?;
            socket.set_nodelay(true)?;
            let mode = target.config().get_ssl_mode();
            if mode == SslMode::Disable {
                return Ok(Box::new(socket));
            }
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            socket.write_all(&request).await?;
            if socket.read_u8().await? == b'S' {
                let mut tls = target.tls();
                let connector = <_ as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut tls, name)
                    .map_err(|error| Error::Connect { reason: error.to_string() })?;
                let stream = connector
                    .connect(socket)
                    .await
                    .map_err(|error| Error::Connect { reason: error.to_string() })?;
                return Ok(Box::new(stream));
            }
            if mode == SslMode::Prefer {
                return Ok(Box::new(socket));
            }
            Err(Error::Connect { reason: format!("{name}:{port} does not offer TLS") })
        }
    }
}

/// A field as text.
fn text(field: Option<&[u8]>) -> String {
    String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
}

/// Reads a timeline's history file: `TIMELINE  LSN  reason`, a line for each timeline before it.
fn parse_history(text: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The error in an `ErrorResponse` frame.
fn server_error(frame: &mut BytesMut) -> Error {
    let mut error = Error::Server { code: String::new(), message: String::new() };
    if let Ok(Some(Message::ErrorResponse(body))) = Message::parse(frame)
        && let Error::Server { code, message } = &mut error
    {
        let mut fields: ErrorFields<'_> = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => *code = value(),
                b'M' => *message = value(),
                _ => {}
            }
        }
    }
    error
}

/// A message that has no place here.
fn unexpected(during: &str, tag: Option<u8>) -> Error {
    let tag = tag.map_or_else(|| "nothing".to_owned(), |tag| char::from(tag).to_string());
    Error::Protocol { detail: format!("unexpected message \"{tag}\" during {during}") }
}

/// The server wants what this client cannot do.
fn unsupported_authentication() -> Error {
    Error::Protocol {
        detail: "unsupported authentication: expected trust, password, md5 or scram-sha-256"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_line_by_line() {
        let text = "# written by nobody\n1\t0/16CA548\tno recovery target specified\n\n\
                    2\t1/0\tbefore 2026-11-26 09:00:00+00\n";
        assert_eq!(parse_history(text), [(1, Lsn::new(0x16C_A548)), (2, Lsn::new(1 << 32))]);
        assert_eq!(parse_history(""), []);
    }
}
