//! Transactions that arrive in parts before they commit, against the same ones sent whole.

use futures::StreamExt;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::{Cluster, Server, WAIT, eventually};

/// A change's key that ends what is followed.
const END: i64 = -1;

const TABLES: &str = "
CREATE ROLE orders_app LOGIN;
CREATE TABLE items (id bigint PRIMARY KEY, body text, payload text);
ALTER TABLE items ALTER payload SET STORAGE EXTERNAL;
CREATE TABLE notes (id bigint PRIMARY KEY, body text);
ALTER TABLE notes REPLICA IDENTITY FULL;
ALTER TABLE items OWNER TO orders_app;
ALTER TABLE notes OWNER TO orders_app;
CREATE PROCEDURE attempts(base bigint, n int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. n LOOP
        BEGIN
            INSERT INTO items VALUES (base + i, repeat('a', 100));
            IF i % 3 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END $$;";

/// A cluster whose decoder sends transactions in parts early, with databases `registry` and `shop`.
async fn shop() -> (Cluster, Client) {
    let settings = [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("logical_decoding_work_mem", "64kB"),
        ("max_prepared_transactions", "5"),
    ];
    let cluster = Cluster::with_settings(&settings).await;
    cluster.create_database("registry").await;
    cluster.create_database("shop").await;
    let shop = cluster.connect("shop").await;
    shop.batch_execute(TABLES).await.unwrap();
    (cluster, shop)
}

/// Has `server` capture both tables.
async fn govern(cluster: &Cluster, server: &Server) {
    let manifest = format!(
        "apiVersion: cadastre/v1
sources: {{ shop: {{ url: \"{}\" }} }}
services: {{ orders: {{ roles: {{ shop: [orders_app] }} }} }}
datasets:
  shop.public.items: {{ owner: orders, mode: enforce }}
  shop.public.notes: {{ owner: orders, mode: enforce }}
",
        cluster.url("shop")
    );
    let apply = server.client().post(server.at("/v1/manifest/apply")).body(manifest);
    let answer = apply.header("content-type", "application/yaml").send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

/// The lines of the feed up to the last change of the workload.
async fn lines(server: &Server, mut each: impl FnMut(&[u8])) {
    let feed = server.at("/v1/feed?datasets=shop.public.items,shop.public.notes&after=earliest");
    let request = server.client().get(feed).header("accept", "application/x-ndjson");
    let mut body = request.send().await.unwrap().bytes_stream();
    let end = format!(r#""after":{{"id":{END},"#);
    let mut buffer = Vec::new();
    loop {
        let bytes = tokio::time::timeout(WAIT, body.next()).await.unwrap().unwrap().unwrap();
        buffer.extend_from_slice(&bytes);
        let Some(last) = memchr::memrchr(b'\n', &buffer) else { continue };
        let rest = buffer.split_off(last + 1);
        // An empty line only says that the feed lives.
        for line in buffer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            each(line);
        }
        if memchr::memmem::find(&buffer, end.as_bytes()).is_some() {
            return;
        }
        buffer = rest;
    }
}

/// Everything in the feed, but for when it was captured: the one thing that may differ.
async fn events(server: &Server) -> Vec<Value> {
    let mut events = Vec::new();
    lines(server, |line| {
        let mut event: Value = serde_json::from_slice(line).unwrap();
        event.as_object_mut().unwrap().remove("ts_ms");
        events.push(event);
    })
    .await;
    events
}

/// The value of a metric of the source; zero until it is first counted.
async fn metric(server: &Server, name: &str) -> f64 {
    let response = server.client().get(server.at("/metrics")).send().await.unwrap();
    let text = response.text().await.unwrap();
    let line = format!("{name}{{source=\"shop\"}} ");
    text.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

/// Rows of more than a decoder's memory.
fn rows(from: i64, count: i64) -> String {
    format!(
        "INSERT INTO items SELECT g, 'body', CASE WHEN g % 500 = 0 THEN repeat('p', 9000) END
         FROM generate_series({from}, {from} + {count} - 1) g"
    )
}

/// Large transactions at the same time, with savepoints, definitions that change, two phases, and
/// small ones in between.
async fn workload(cluster: &Cluster) {
    let session = async || cluster.connect_as("shop", "orders_app").await;
    let (one, two, three) = (session().await, session().await, session().await);
    let run = async |client: &Client, statements: &str| {
        client.batch_execute(statements).await.unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    };
    run(&one, "BEGIN").await;
    run(&one, &rows(1_000, 2_000)).await;
    run(&two, "BEGIN").await;
    run(&two, &rows(10_000, 2_000)).await;
    run(&three, "INSERT INTO notes VALUES (1, 'in between')").await;
    run(&one, "SAVEPOINT a; UPDATE items SET body = 'changed' WHERE id < 1500").await;
    run(&one, &format!("SAVEPOINT b; {}; ROLLBACK TO b", rows(3_000, 1_500))).await;
    run(&two, &format!("SAVEPOINT c; {}", rows(12_000, 1_500))).await;
    run(&three, "UPDATE notes SET body = 'still' WHERE id = 1").await;
    run(&one, &format!("{}; RELEASE a; DELETE FROM items WHERE id < 1100", rows(3_000, 500))).await;
    run(&two, "ROLLBACK TO c; DELETE FROM items WHERE id = 10_500".replace('_', "").as_str()).await;
    run(&two, "CALL attempts(20000, 900)").await;
    run(
        &one,
        &format!(
            "SAVEPOINT d; {}; SAVEPOINT e; {}; RELEASE e; ROLLBACK TO d",
            rows(4_000, 900),
            rows(5_000, 900)
        ),
    )
    .await;
    run(&one, "TRUNCATE notes; UPDATE items SET id = id + 100000 WHERE id = 1200").await;
    run(&two, "COMMIT").await;
    run(&one, "ALTER TABLE items ADD COLUMN extra int DEFAULT 7").await;
    run(&one, "INSERT INTO items SELECT g, 'wider', NULL, g FROM generate_series(6000, 7500) g")
        .await;
    run(&one, "COMMIT").await;
    // Never committed.
    run(&two, &format!("BEGIN; {}; ROLLBACK", rows(30_000, 2_000))).await;
    // In two phases: the first prepared commits last, the other is rolled back.
    run(&one, &format!("BEGIN; {}; PREPARE TRANSACTION 'kept'", rows(40_000, 2_000))).await;
    run(&two, &format!("BEGIN; {}; PREPARE TRANSACTION 'undone'", rows(50_000, 2_000))).await;
    run(&three, "INSERT INTO notes VALUES (2, 'between the phases')").await;
    run(&one, "ROLLBACK PREPARED 'undone'").await;
    run(&one, "COMMIT PREPARED 'kept'").await;
    // The trace is told by a message that is sent under the id of the whole transaction.
    let trace = "SET LOCAL cadastre.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'";
    run(
        &one,
        &format!(
            "BEGIN; {trace}; {}; SAVEPOINT f; {}; ROLLBACK TO f; COMMIT",
            rows(60_000, 900),
            rows(70_000, 1_500)
        ),
    )
    .await;
    run(
        &one,
        &format!(
            "BEGIN; {trace}; SAVEPOINT g; {}; ROLLBACK TO g; {}; COMMIT",
            rows(80_000, 2_000),
            rows(90_000, 900)
        ),
    )
    .await;
    run(&three, &format!("INSERT INTO items (id) VALUES ({END})")).await;
}

#[tokio::test]
async fn what_arrives_in_parts_has_the_positions_and_content_of_what_arrives_whole() {
    let (cluster, shop) = shop().await;
    let mut whole =
        Server::start_with(&cluster.url("registry"), &["--capture-streaming", "false"]).await;
    govern(&cluster, &whole).await;
    eventually(WAIT, async || {
        let ready = whole.client().get(whole.at("/readyz")).send().await.ok()?;
        (ready.status() == 200).then_some(())
    })
    .await;
    whole.terminate().await;
    // The same registry, the same slot, twice.
    let copy = "SELECT 1 FROM pg_copy_logical_replication_slot('cadastre_shop', 'twin')";
    shop.execute(copy, &[]).await.unwrap();
    let twin = "CREATE DATABASE twin TEMPLATE registry";
    cluster.connect("postgres").await.batch_execute(twin).await.unwrap();
    workload(&cluster).await;

    whole.restart().await;
    let expected = events(&whole).await;
    assert_eq!(metric(&whole, "cadastre_capture_spilled_transactions_total").await, 0.0);
    whole.terminate().await;
    let swap = "SELECT pg_drop_replication_slot('cadastre_shop'),
                       pg_copy_logical_replication_slot('twin', 'cadastre_shop')";
    eventually(WAIT, async || shop.execute(swap, &[]).await.ok()).await;

    let parts = Server::start(&cluster.url("twin")).await;
    let seen = events(&parts).await;
    assert!(metric(&parts, "cadastre_capture_spilled_transactions_total").await >= 4.0);
    assert!(
        parts.log().contains("rolled back a savepoint whose beginning cannot be told"),
        "the last transaction cannot be told apart, and is left to PostgreSQL"
    );

    assert!(expected.len() > 8_000, "{} changes", expected.len());
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!(seen, expected);
    }
    assert_eq!(seen.len(), expected.len());
    assert!(expected.iter().all(|event| event["after"]["id"].as_i64().is_none_or(|id| {
        ![3_500..6_000, 12_000..13_500, 30_000..40_000, 50_000..60_000, 70_000..90_000]
            .iter()
            .any(|undone| undone.contains(&id))
    })));
}

/// The most memory that a server has taken, in KiB.
fn peak_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_transaction_far_larger_than_the_memory_for_it_goes_through() {
    const ROWS: i64 = 70_000;
    let (cluster, _) = shop().await;
    let server = Server::start(&cluster.url("registry")).await;
    govern(&cluster, &server).await;
    let writer = cluster.connect_as("shop", "orders_app").await;
    // Once through everything, so that what is kept for good is there.
    writer.batch_execute("INSERT INTO items SELECT 0, 'first'").await.unwrap();
    eventually(WAIT, async || {
        (metric(&server, "cadastre_capture_changes_total").await == 1.0).then_some(())
    })
    .await;
    let idle = peak_kib(&server);
    // The transaction that installed the guard is larger than this decoder's memory, too.
    let spilled = "cadastre_capture_spilled_transactions_total";
    let before = metric(&server, spilled).await;
    let insert = format!(
        "INSERT INTO items SELECT g, repeat('b', 1500) FROM generate_series(1, {ROWS}) g;
         INSERT INTO items (id) VALUES ({END})"
    );
    let (mut changes, mut bytes) = (0, 0);
    let (written, ()) = tokio::join!(
        writer.batch_execute(&insert),
        lines(&server, |line| {
            changes += 1;
            bytes += line.len();
        })
    );
    written.unwrap();
    assert_eq!(changes, ROWS + 2);
    assert_eq!(metric(&server, spilled).await - before, 1.0, "it is received once");
    let taken = (peak_kib(&server) - idle) / 1024;
    assert!(bytes > 120 << 20, "{} MiB", bytes >> 20);
    assert!(taken < 90, "{taken} MiB for {} MiB of changes", bytes >> 20);
}
