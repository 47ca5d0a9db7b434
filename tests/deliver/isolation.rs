//! No subscriber hurts another, nor the source: what one does not take costs the log's disk alone.

use serde_json::{Value, json};
use tokio_postgres::types::PgLsn;

use super::receiver::{Does, Receiver};
use super::webhook::{ENV, settled};
use super::{ORDERS, Shop};
use crate::support::{WAIT, eventually};

/// All that is written.
const ROWS: u64 = 500;

#[tokio::test]
async fn stuck_slow_and_failing_subscribers_cost_nobody_else_and_get_all_when_they_recover() {
    let shop = Shop::with_env(&ENV).await;
    let (healthy, hanging, failing) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    hanging.behave(|_| Does::Hang);
    failing.behave(|_| Does::Answer(500));
    let retry = json!({ "maxAttempts": 1000, "initial": "20ms", "max": "200ms" });
    let webhook = |receiver: &Receiver, batch: u32| {
        json!({
            "deliver": { "webhook": { "url": receiver.url(), "timeout": "1s", "batch": batch } },
            "retry": retry,
        })
    };
    shop.subscribe("healthy", webhook(&healthy, 50)).await;
    shop.subscribe("hanging", webhook(&hanging, 50)).await;
    shop.subscribe("failing", webhook(&failing, 50)).await;
    // A port that nobody listens at.
    let nowhere = json!({ "nats": { "url": "nats://127.0.0.1:1", "stream": "S" } });
    shop.subscribe("nowhere", json!({ "deliver": nowhere, "retry": retry })).await;
    shop.subscribe("forgotten", json!({ "deliver": { "pull": { "lease": "1h" } } })).await;
    let frugal = json!({
        "deliver": { "webhook": { "url": healthy.url() } },
        "budget": { "changesPerSecond": 1 },
    });
    shop.subscribe("frugal", frugal).await;
    // A reader that has opened a feed and does not read.
    let path = format!("/v1/feed?datasets={ORDERS}&after=earliest");
    let stalled = shop.server.client().get(shop.server.at(&path)).send().await.unwrap();

    for n in 0..10 {
        let (from, to) = (n * 50 + 1, n * 50 + 50);
        shop.write(&format!(
            "INSERT INTO orders SELECT n, repeat('x', 2000) FROM generate_series({from}, {to}) n"
        ))
        .await;
    }
    let database = shop.cluster.connect("shop").await;
    let end = database.query_one("SELECT pg_current_wal_lsn()", &[]).await.unwrap();
    let end: PgLsn = end.get(0);
    let all = settled(&shop, "healthy", ROWS).await;
    assert_eq!(all["counts"]["delivered"], ROWS, "{all}");

    // The source is free of all of it.
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = 'shop'";
    eventually(WAIT, async || {
        let slot = database.query_one(confirmed, &[]).await.unwrap();
        (slot.get::<_, PgLsn>(0) >= end).then_some(())
    })
    .await;
    // And each says where it stands, nothing missing.
    for name in ["hanging", "failing", "nowhere", "forgotten", "frugal"] {
        let status = shop.status(name).await;
        assert_eq!(status["counts"]["reconcile"], true, "{name}: {status}");
        assert_eq!(status["counts"]["parked"], 0, "{name}: {status}");
        assert_ne!(status["counts"]["delivered"], ROWS, "{name}: {status}");
    }
    let trouble = shop.status("nowhere").await["trouble"].take();
    assert!(trouble.as_str().unwrap().contains("cannot connect"), "{trouble}");
    drop(stalled);

    // Whoever comes back gets everything, and the same: the checksums say it.
    hanging.behave(|_| Does::Take);
    failing.behave(|_| Does::Take);
    for name in ["hanging", "failing"] {
        let status = settled(&shop, name, ROWS).await;
        assert_eq!(status["counts"]["delivered"], ROWS, "{name}: {status}");
        assert_eq!(status["checksum"], all["checksum"], "{name}");
    }
    let mut fetched = 0;
    while fetched < ROWS {
        let some = shop.get("forgotten", "changes?max=1000&wait=5s").await;
        fetched += some["changes"].as_array().map_or(0, Vec::len) as u64;
        shop.post("forgotten", "ack", json!({ "lease": some["lease"] })).await;
    }
    let status = shop.status("forgotten").await;
    assert_eq!(
        (&status["checksum"], &status["counts"]["delivered"]),
        (&all["checksum"], &Value::from(ROWS))
    );
}
