//! W3: the same changes to ever more SSE subscribers, beside what one of them gets.
//!
//! With 10 000 subscribers both this program and the server need as many file descriptors:
//! `ulimit -n 24000`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::stage::{Server, Stage, TOKEN};
use super::{Plan, Row};

/// Datasets that subscribers are spread over.
const TABLES: usize = 100;

/// What each change of a feed has once.
const MARK: &[u8] = b"event: change\n";

/// Who reads what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// Each subscriber one of the datasets.
    Each,
    /// All of them the same.
    One,
}

/// Rates and memory, at each number of subscribers.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let tables: Vec<String> = (0..TABLES).map(|n| format!("w3_{n}")).collect();
    let create = tables.iter().map(|table| {
        format!(
            "CREATE TABLE {table} (id bigserial PRIMARY KEY, mark text); \
             ALTER TABLE {table} OWNER TO orders_app; "
        )
    });
    let stage =
        Stage::set(&format!("CREATE ROLE orders_app LOGIN; {}", create.collect::<String>())).await;
    let server = stage.serve();
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    stage.govern(&server, &names).await;

    let (sizes, deliveries): (&[usize], usize) =
        if plan.full { (&[1, 100, 1_000, 10_000], 1_000_000) } else { (&[1, 10, 100], 20_000) };
    let mut rows = Vec::new();
    for spread in [Spread::Each, Spread::One] {
        for &subscribers in sizes {
            let (mut rates, mut memory) = (Vec::new(), Vec::new());
            for _ in 0..plan.rounds {
                let (one, _) = round(&stage, &server, spread, 1, deliveries / 10).await;
                let (all, kib) = round(&stage, &server, spread, subscribers, deliveries).await;
                rates.push((all, one));
                memory.push((kib, 32.0));
            }
            let to =
                if spread == Spread::Each { "each to 1 of 100 datasets" } else { "all to one" };
            let size = format!("{subscribers} subscribers, {to}");
            let target = "≥ 300 k at 10 000";
            rows.push(Row::new("W3 fan-out", size.clone(), "deliveries/s", target, &rates));
            if subscribers >= 100 {
                rows.push(Row::new("W3 memory", size, "KiB/subscriber", "≤ 1", &memory));
            }
        }
    }
    rows
}

/// Deliveries a second to so many subscribers, and what the server holds for each of them, in KiB.
async fn round(
    stage: &Stage,
    server: &Server,
    spread: Spread,
    subscribers: usize,
    deliveries: usize,
) -> (f64, f64) {
    let before = server.resident_kib();
    let seen = Arc::new(AtomicU64::new(0));
    let mut crowd = JoinSet::new();
    for number in 0..subscribers {
        let table = if spread == Spread::Each { number % TABLES } else { 0 };
        let stream = connected(server, table).await;
        crowd.spawn(count(stream, Arc::clone(&seen)));
    }
    let held = server.resident_kib().saturating_sub(before) as f64 / subscribers as f64;

    let readers_of = |table: usize| match spread {
        Spread::Each => subscribers / TABLES + usize::from(table < subscribers % TABLES),
        Spread::One => {
            if table == 0 {
                subscribers
            } else {
                0
            }
        }
    };
    // Every change is delivered to all of its dataset's readers, and each has one dataset.
    let per_table = (deliveries / subscribers).max(1);
    let client = stage.shop().await;
    client.batch_execute("SET ROLE orders_app").await.expect("a session");
    let (start, mut expected) = (Instant::now(), 0);
    for table in (0..TABLES).filter(|table| readers_of(*table) > 0) {
        let insert = format!(
            "INSERT INTO w3_{table} (mark) SELECT repeat('x', 100) FROM generate_series(1, {per_table})"
        );
        client.batch_execute(&insert).await.expect("rows");
        expected += (per_table * readers_of(table)) as u64;
    }
    while seen.load(Ordering::Relaxed) < expected {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    (expected as f64 / start.elapsed().as_secs_f64(), held)
}

/// A subscriber whose feed is open.
async fn connected(server: &Server, table: usize) -> TcpStream {
    let address = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)
        .await
        .expect("a connection: as many file descriptors as subscribers (`ulimit -n`)");
    let request = format!(
        "GET /v1/feed?datasets=shop.public.w3_{table}&after=now HTTP/1.1\r\nhost: {address}\r\n\
         authorization: Bearer {TOKEN}\r\naccept: text/event-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut head = Vec::new();
    while memchr::memmem::find(&head, b": live").is_none() {
        let read = stream.read_buf(&mut head).await.expect("an answer");
        assert!(read > 0, "{}", String::from_utf8_lossy(&head));
    }
    stream
}

/// Counts changes until it is dropped.
async fn count(mut stream: TcpStream, seen: Arc<AtomicU64>) {
    let (mut buffer, mut rest) = (vec![0; 4096], 0);
    while let Ok(read @ 1..) = stream.read(&mut buffer[rest..]).await {
        let text = &buffer[..rest + read];
        let found = memchr::memmem::find_iter(text, MARK).count();
        seen.fetch_add(found as u64, Ordering::Relaxed);
        // A mark may be cut; one that was counted is longer than what is kept.
        let kept = text.len().min(MARK.len() - 1);
        let from = text.len() - kept;
        buffer.copy_within(from..from + kept, 0);
        rest = kept;
    }
}
