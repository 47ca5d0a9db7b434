//! The heartbeat through a source: a stream that stands still is told from one that is quiet.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;

use crate::support::{Cluster, Server, WAIT, eventually};

/// Often enough for a test, and late enough for a busy machine.
const FAST: [&str; 4] = ["--heartbeat", "100ms", "--heartbeat-deadline", "3s"];

/// A server that captures the database `shop`, in which nothing happens but what the test does.
async fn quiet_shop(cluster: &Cluster) -> (Server, Client) {
    cluster.create_database("registry").await;
    cluster.create_database("shop").await;
    let shop = cluster.connect("shop").await;
    let table = "CREATE ROLE orders_app LOGIN; CREATE TABLE orders (id bigint PRIMARY KEY);
                 ALTER TABLE orders OWNER TO orders_app";
    shop.batch_execute(table).await.unwrap();
    let server = Server::start_with(&cluster.url("registry"), &FAST).await;
    let manifest = format!(
        "apiVersion: cadastre/v1
sources: {{ shop: {{ url: \"{}\" }} }}
services: {{ orders: {{ roles: {{ shop: [orders_app] }} }} }}
datasets: {{ shop.public.orders: {{ owner: orders, mode: enforce }} }}
",
        cluster.url("shop")
    );
    let apply = server.client().post(server.at("/v1/manifest/apply")).body(manifest);
    let answer = apply.header("content-type", "application/yaml").send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    readiness(&server, 200).await;
    (server, shop)
}

/// What `/readyz` says once it answers `status`.
async fn readiness(server: &Server, status: u16) -> String {
    eventually(WAIT, async || {
        let response = server.client().get(server.at("/readyz")).send().await.ok()?;
        (response.status() == status).then_some(response.text().await.ok()?)
    })
    .await
}

/// The value of a metric of the source.
async fn metric(server: &Server, name: &str) -> Option<f64> {
    let text = server.client().get(server.at("/metrics")).send().await.ok()?.text().await.ok()?;
    let line = format!("{name}{{source=\"shop\"}} ");
    text.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok())
}

/// A process that stands still until this is dropped.
struct Paused(Pid);

impl Paused {
    fn new(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[tokio::test]
async fn a_walsender_that_hangs_is_seen_and_its_return_too() {
    let cluster = Cluster::start().await;
    let (server, shop) = quiet_shop(&cluster).await;
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE database = 'shop'";
    let walsender: i32 = shop.query_one(sql, &[]).await.unwrap().get(0);
    let paused = Paused::new(walsender);
    let said = readiness(&server, 503).await;
    assert!(said.contains("no heartbeat has come back"), "{said}");
    assert!(said.contains("\\\"shop\\\"") && said.contains("\"state\":\"stalled\""), "{said}");
    eventually(WAIT, async || {
        let age = metric(&server, "cadastre_capture_heartbeat_age_seconds").await?;
        (age > 3.0).then_some(())
    })
    .await;
    drop(paused);
    readiness(&server, 200).await;
    eventually(WAIT, async || {
        let age = metric(&server, "cadastre_capture_heartbeat_age_seconds").await?;
        (age < 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_that_hangs_is_seen_although_the_stream_is_read() {
    let cluster = Cluster::start().await;
    let (server, shop) = quiet_shop(&cluster).await;
    let mut registry = cluster.connect("registry").await;
    let holding = registry.transaction().await.unwrap();
    let lock = "LOCK TABLE cadastre_registry.log_ends IN ACCESS EXCLUSIVE MODE";
    holding.batch_execute(lock).await.unwrap();
    shop.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    eventually(WAIT, async || {
        let said = readiness(&server, 503).await;
        said.contains("no heartbeat has come back").then_some(())
    })
    .await;
    holding.rollback().await.unwrap();
    readiness(&server, 200).await;
}

#[tokio::test]
async fn the_slot_of_an_idle_source_moves_on_by_it() {
    let cluster = Cluster::start().await;
    let (server, shop) = quiet_shop(&cluster).await;
    let confirmed = async || {
        let sql = "SELECT pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint
                   FROM pg_replication_slots WHERE database = 'shop'";
        shop.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    for _ in 0..3 {
        let before = confirmed().await;
        eventually(WAIT, async || (confirmed().await > before).then_some(())).await;
    }
    // WAL that concerns no dataset is let go as well.
    let sql = "CREATE TABLE scratch AS SELECT repeat('x', 500) FROM generate_series(1, 20000)";
    shop.batch_execute(sql).await.unwrap();
    let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
    let written: i64 = shop.query_one(sql, &[]).await.unwrap().get(0);
    eventually(WAIT, async || (confirmed().await >= written).then_some(())).await;
    eventually(WAIT, async || {
        let lag = metric(&server, "cadastre_capture_lag_bytes").await?;
        (lag < 1_000_000.0).then_some(())
    })
    .await;
}
