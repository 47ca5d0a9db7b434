//! W8: what the server's process takes of memory: idle, and while one large transaction passes from
//! the slot through the log to a subscriber. The reference is the most that it may take.

use futures::StreamExt;

use super::stage::{Server, Stage};
use super::{Plan, Row};

/// MiB that an idle server may hold.
const IDLE_MAX: f64 = 40.0;
/// MiB that it may ever have held while a transaction of any size passes.
const BUSY_MAX: f64 = 256.0;

/// Idle, then one transaction, each round with a server of its own.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let stage = Stage::set(
        "CREATE ROLE orders_app LOGIN; \
         CREATE TABLE w8 (id bigserial PRIMARY KEY, body text); \
         ALTER TABLE w8 OWNER TO orders_app",
    )
    .await;
    let server = stage.serve();
    stage.govern(&server, &["w8"]).await;
    drop(server);
    let count = if plan.full { 5_000_000 } else { 300_000 };
    let rounds = if plan.full { 1 } else { plan.rounds };
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let server = stage.serve();
        let lines = server.feed("application/x-ndjson", "datasets=shop.public.w8&after=now").await;
        idle.push((held(&server, "VmRSS:"), IDLE_MAX));
        let shop = stage.shop().await;
        shop.batch_execute("SET ROLE orders_app").await.expect("a role");
        let insert = format!(
            "INSERT INTO w8 (body) SELECT repeat('x', 170) FROM generate_series(1, {count})"
        );
        let (inserted, ()) = tokio::join!(shop.batch_execute(&insert), read(lines, count));
        inserted.expect("rows");
        busy.push((held(&server, "VmHWM:"), BUSY_MAX));
        server.stop();
    }
    vec![
        Row::new("W8 memory", "idle".to_owned(), "MiB", "≤ 1", &idle),
        Row::new("W8 memory", format!("one transaction of {count} rows"), "MiB", "≤ 1", &busy),
    ]
}

/// Reads until so many changes have come.
async fn read(response: reqwest::Response, count: usize) {
    let mut body = response.bytes_stream();
    let (mut seen, mut before) = (0, 0);
    while seen < count {
        let bytes = body.next().await.expect("the feed goes on").expect("bytes");
        for byte in bytes {
            // A keepalive is an empty line.
            seen += usize::from(before == b'}' && byte == b'\n');
            before = byte;
        }
    }
}

/// MiB of resident memory: `VmRSS:` now, `VmHWM:` at most so far.
fn held(server: &Server, which: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("Linux tells what a process holds");
    let line = status.lines().find_map(|line| line.strip_prefix(which)).expect("it is told");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("kibibytes");
    kib / 1024.0
}
