//! W1: a backlog in one slot, decoded, encoded, made durable in the log and read to the end by one
//! NDJSON subscriber, beside `pg_recvlogical` writing a second slot's same content to /dev/null.

use futures::StreamExt;
use std::time::{Duration, Instant};

use super::stage::{Server, Stage};
use super::{Plan, Row};

/// The slot that `pg_recvlogical` reads.
const REFERENCE_SLOT: &str = "reference";

/// One kind of backlog.
struct Kind {
    /// For the table.
    name: &'static str,
    /// Bytes of text in a row.
    width: usize,
    /// Rows in a transaction.
    per_transaction: usize,
    /// How much of the full size this kind gets.
    share: f64,
}

/// The kinds measured.
const KINDS: [Kind; 3] = [
    Kind { name: "200 B × 100 a transaction", width: 170, per_transaction: 100, share: 1.0 },
    Kind { name: "1.6 KB × 100 a transaction", width: 1570, per_transaction: 100, share: 0.4 },
    Kind { name: "200 B × 1 a transaction", width: 170, per_transaction: 1, share: 0.2 },
];

/// All kinds, each drained by both in every round.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let stage = Stage::set(
        "CREATE ROLE orders_app LOGIN; \
         CREATE TABLE w1 (id bigserial PRIMARY KEY, body text, n int, at timestamptz DEFAULT now()); \
         ALTER TABLE w1 OWNER TO orders_app; \
         CREATE PROCEDURE fill(rows int, per int, width int) LANGUAGE plpgsql AS $$ \
         BEGIN FOR i IN 1 .. rows / per LOOP \
           INSERT INTO w1 (body, n) SELECT repeat('x', width), g FROM generate_series(1, per) g; \
           COMMIT; END LOOP; END $$",
    )
    .await;
    let server = stage.serve();
    stage.govern(&server, &["w1"]).await;
    drop(server);
    let shop = stage.shop().await;
    shop.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&REFERENCE_SLOT])
        .await
        .expect("a slot");

    let mut rows = Vec::new();
    let full = if plan.full { 1_000_000.0 } else { 100_000.0 };
    for kind in KINDS {
        let count = (full * kind.share) as usize;
        let mut rounds = Vec::new();
        for round in 0..plan.rounds {
            let fill = format!(
                "SET ROLE orders_app; CALL fill({count}, {}, {})",
                kind.per_transaction, kind.width
            );
            let session = stage.shop().await;
            session.batch_execute("SET synchronous_commit = off").await.expect("a setting");
            for statement in fill.split("; ") {
                session.batch_execute(statement).await.expect("rows");
            }
            // Slots begin to read again where a checkpoint was before what they have confirmed.
            shop.batch_execute("CHECKPOINT").await.expect("a checkpoint");
            let end: String = shop
                .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
                .await
                .expect("an LSN")
                .get(0);
            // Alternate who goes first: the second finds warmer caches.
            let (ours, reference) = if round % 2 == 0 {
                let ours = drain_ours(&stage, count, &end).await;
                (ours, drain_reference(&stage, &end))
            } else {
                let reference = drain_reference(&stage, &end);
                (drain_ours(&stage, count, &end).await, reference)
            };
            rounds.push((count as f64 / ours, count as f64 / reference));
        }
        let size = format!("{count} rows, {}", kind.name);
        rows.push(Row::new("W1 drain", size, "rows/s", "≥ 0.90", &rounds));
    }
    rows
}

/// Seconds from starting the server until its subscriber has read `count` more changes than there
/// were in the log. When it returns, the slot is confirmed up to `end`, as the reference's is.
async fn drain_ours(stage: &Stage, count: usize, end: &str) -> f64 {
    let start = Instant::now();
    let server: Server = stage.serve();
    // Nothing captured in this run is older than what the last run has read to the end.
    let after = std::fs::read_to_string(stage.directory.path().join("cursor"))
        .unwrap_or_else(|_| "earliest".to_owned());
    let query = format!("datasets=shop.public.w1&after={after}");
    let mut body = server.feed("application/x-ndjson", &query).await.bytes_stream();
    let mut seen = 0;
    let mut tail = Vec::new();
    while seen < count {
        let bytes = body.next().await.expect("the feed goes on").expect("bytes");
        seen += memchr::memchr_iter(b'\n', &bytes).count();
        // Keep the last lines for the cursor, without holding everything.
        tail.extend_from_slice(&bytes);
        let keep = tail.len().saturating_sub(16 * 1024);
        tail.drain(..keep);
    }
    let seconds = start.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&tail);
    let position = text.rsplit("\"position\":\"").next().and_then(|rest| rest.split('"').next());
    std::fs::write(
        stage.directory.path().join("cursor"),
        position.expect("every change has a position"),
    )
    .expect("the cursor is kept");
    let shop = stage.shop().await;
    let confirmed = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots \
                     WHERE slot_name = 'cadastre_shop'";
    while !shop.query_one(confirmed, &[&end]).await.expect("the slot").get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop();
    seconds
}

/// Seconds `pg_recvlogical` takes to read the reference slot up to `end`.
fn drain_reference(stage: &Stage, end: &str) -> f64 {
    let start = Instant::now();
    let status = stage
        .program("pg_recvlogical")
        .args(["-d", &stage.url("shop"), "--slot", REFERENCE_SLOT, "--start", "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=cadastre_shop"])
        .args(["--endpos", end, "--no-loop"])
        .status()
        .expect("pg_recvlogical runs");
    assert!(status.success(), "pg_recvlogical: {status}");
    start.elapsed().as_secs_f64()
}
