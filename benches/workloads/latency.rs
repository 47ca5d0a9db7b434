//! W2: from a commit's acknowledgement to the change's bytes at an SSE client, beside
//! `pg_recvlogical` writing to a pipe; both read the same commits at the same time.

use std::io::Read;
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::stage::Stage;
use super::{Plan, Row, median, percentile};

/// The slot that `pg_recvlogical` reads.
const REFERENCE_SLOT: &str = "reference";

/// When each numbered row was committed or seen, in microseconds since the start; 0 is never.
pub(crate) struct Times {
    /// The number of the first row: no two rounds use the same.
    first: usize,
    /// By row.
    micros: Vec<AtomicU64>,
}

impl Times {
    /// None yet, of so many rows.
    pub(crate) fn new(first: usize, count: usize) -> Arc<Self> {
        Arc::new(Self { first, micros: (0..count).map(|_| AtomicU64::new(0)).collect() })
    }

    fn note(&self, number: usize, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // A row of an earlier round that is sent again is no row of this one.
        let slot = number.checked_sub(self.first).and_then(|index| self.micros.get(index));
        if let Some(slot) = slot {
            slot.store(micros.max(1), Ordering::Relaxed);
        }
    }

    /// Latencies in microseconds against `committed`, rows never seen left out.
    pub(crate) fn since(&self, committed: &Self) -> Vec<f64> {
        let pairs = self.micros.iter().zip(&committed.micros);
        pairs
            .map(|(seen, done)| (seen.load(Ordering::Relaxed), done.load(Ordering::Relaxed)))
            .filter(|(seen, done)| *seen > 0 && *done > 0)
            .map(|(seen, done)| seen.saturating_sub(done) as f64)
            .collect()
    }

    fn complete(&self) -> bool {
        self.micros.iter().all(|slot| slot.load(Ordering::Relaxed) > 0)
    }
}

/// Notes every `#number;` in `bytes`; returns how much of the end may be the start of another.
fn note_marks(bytes: &[u8], times: &Times, since: Instant) -> usize {
    let mut rest = 0;
    for at in memchr::memchr_iter(b'#', bytes) {
        let digits = bytes.get(at + 1..at + 9).unwrap_or_default();
        if digits.len() < 8 {
            rest = bytes.len() - at;
        } else if let Some(number) = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()) {
            times.note(number, since);
        }
    }
    rest
}

/// Both rates, each in several rounds.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let stage = Stage::set(
        "CREATE ROLE orders_app LOGIN; \
         CREATE TABLE w2 (id bigserial PRIMARY KEY, mark text); \
         ALTER TABLE w2 OWNER TO orders_app",
    )
    .await;
    let server = stage.serve();
    stage.govern(&server, &["w2"]).await;

    let mut rows = Vec::new();
    let mut first = 0;
    let seconds = if plan.full { 10 } else { 3 };
    for rate in [1_000, 5_000] {
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            let count = rate * seconds;
            let (ours, reference) = round(&stage, &server, rate, first..first + count).await;
            first += count;
            p50.push((median(&ours), median(&reference)));
            p99.push((percentile(&ours, 0.99), percentile(&reference, 0.99)));
        }
        let size = |which: &str| format!("{rate} transactions/s, {which}");
        rows.push(Row::new("W2 latency", size("p50"), "µs", "≤ 1.5", &p50));
        rows.push(Row::new("W2 latency", size("p99"), "µs", "≤ 2", &p99));
    }
    rows
}

/// Commits the numbered rows at `rate`, and returns both readers' latencies in microseconds.
#[expect(clippy::disallowed_methods, reason = "the round awaits its own tasks")]
async fn round(
    stage: &Stage,
    server: &super::stage::Server,
    rate: usize,
    rows: Range<usize>,
) -> (Vec<f64>, Vec<f64>) {
    let start = Instant::now();
    let times = || Times::new(rows.start, rows.len());
    let (committed, ours, reference) = (times(), times(), times());

    let body =
        server.feed("text/event-stream", "datasets=shop.public.w2&after=now").await.bytes_stream();
    let reader = tokio::spawn(follow(body, Arc::clone(&ours), start));
    // A slot of this round's own: pg_recvlogical confirms too seldom for one to go on with.
    let shop = stage.shop().await;
    shop.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&REFERENCE_SLOT])
        .await
        .expect("a slot");
    let mut recv = stage
        .program("pg_recvlogical")
        .args(["-d", &stage.url("shop"), "--slot", REFERENCE_SLOT, "--start", "-f", "-"])
        .args(["-o", "proto_version=1", "-o", "publication_names=cadastre_shop"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("pg_recvlogical runs");
    let mut pipe = recv.stdout.take().expect("stdout is piped");
    let seen = Arc::clone(&reference);
    let reference_reader = std::thread::spawn(move || {
        let (mut buffer, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while !seen.complete() {
            let read = pipe.read(&mut chunk).expect("the pipe goes on");
            buffer.extend_from_slice(&chunk[..read]);
            let rest = note_marks(&buffer, &seen, start);
            buffer.drain(..buffer.len() - rest);
        }
    });

    let streams = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
    let active = async |wanted: bool| {
        let active = async || {
            let row = shop.query_one(streams, &[&REFERENCE_SLOT]).await.expect("the slot");
            row.get::<_, bool>(0)
        };
        while active().await != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    active(true).await;
    write(stage, "w2", rate, rows, &committed, start).await;
    reader.await.expect("the reader ends");
    reference_reader.join().expect("the reference reader ends");
    recv.kill().expect("it still runs");
    drop(recv.wait());
    active(false).await;
    shop.execute("SELECT pg_drop_replication_slot($1)", &[&REFERENCE_SLOT]).await.expect("a slot");
    (ours.since(&committed), reference.since(&committed))
}

/// Notes what a feed brings, until it has brought everything.
pub(crate) async fn follow(
    body: impl futures::Stream<Item = reqwest::Result<bytes::Bytes>>,
    seen: Arc<Times>,
    since: Instant,
) {
    let mut body = std::pin::pin!(body);
    let mut buffer = Vec::new();
    while !seen.complete() {
        buffer.extend_from_slice(&body.next().await.expect("the feed goes on").expect("bytes"));
        let rest = note_marks(&buffer, &seen, since);
        buffer.drain(..buffer.len() - rest);
    }
}

/// Commits the numbered rows at `rate`, each in its transaction.
pub(crate) async fn write(
    stage: &Stage,
    table: &str,
    rate: usize,
    rows: Range<usize>,
    committed: &Arc<Times>,
    since: Instant,
) {
    // Several sessions share the rate; each has its own tick.
    let sessions = 16;
    let writers = (0..sessions).map(|session| {
        let (committed, rows) = (Arc::clone(committed), rows.clone());
        async move {
            let client = stage.shop().await;
            client.batch_execute("SET ROLE orders_app").await.expect("a session");
            let insert = format!("INSERT INTO {table} (mark) VALUES ($1)");
            let insert = client.prepare(&insert).await.expect("a statement");
            let pause = Duration::from_secs_f64(sessions as f64 / rate as f64);
            let mut ticks = tokio::time::interval(pause);
            for number in rows.skip(session).step_by(sessions) {
                ticks.tick().await;
                let mark = format!("#{number:08};");
                client.execute(&insert, &[&mark]).await.expect("a row");
                committed.note(number, since);
            }
        }
    });
    futures::future::join_all(writers).await;
}
