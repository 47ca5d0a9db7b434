//! Each change has a place of its own, and is whole there.

use bytes::Bytes;
use futures::SinkExt;
use serde_json::Value;

use crate::capture::stage::{Stage, in_order, orders};
use crate::support::{WAIT, eventually};

const ORDERS: &str = "/v1/feed?datasets=shop.public.orders";

#[tokio::test]
async fn rows_that_share_an_lsn_are_told_apart() {
    let mut stage = Stage::governed().await;
    // COPY writes many rows in one record of the WAL.
    let writer = stage.source.connect_as("shop", "orders_app").await;
    let copy = writer.copy_in("COPY orders FROM STDIN").await.unwrap();
    let mut copy = std::pin::pin!(copy);
    let rows: String = (1..=500).map(|id| format!("{id}\tx\n")).collect();
    copy.send(Bytes::from(rows)).await.unwrap();
    copy.as_mut().finish().await.unwrap();
    let first =
        stage.events(&format!("{ORDERS}&after=earliest"), |events| events.len() == 250).await;
    assert_eq!(orders(&first), (1..=250).collect::<Vec<_>>());
    let lsns: std::collections::BTreeSet<_> =
        first.iter().map(|event| event["source"]["lsn"].as_u64()).collect();
    assert_eq!(lsns.len(), 1, "they share it");

    stage.server.kill().await;
    stage.server.restart().await;
    let after = first.last().unwrap()["position"].as_str().unwrap();
    let rest = stage.events(&format!("{ORDERS}&after={after}"), |events| events.len() == 250).await;
    assert_eq!(orders(&rest), (251..=500).collect::<Vec<_>>());
    in_order(&[first, rest].concat());
}

#[tokio::test]
async fn transactions_that_overlap_come_in_the_order_of_their_commits() {
    let stage = Stage::governed().await;
    let [one, two] = [
        stage.source.connect_as("shop", "orders_app").await,
        stage.source.connect_as("shop", "orders_app").await,
    ];
    one.batch_execute("BEGIN; INSERT INTO orders VALUES (1)").await.unwrap();
    two.batch_execute("BEGIN; INSERT INTO orders VALUES (11)").await.unwrap();
    one.batch_execute("INSERT INTO orders VALUES (2)").await.unwrap();
    two.batch_execute("INSERT INTO orders VALUES (12); COMMIT").await.unwrap();
    one.batch_execute("INSERT INTO orders VALUES (3); COMMIT").await.unwrap();
    let events = stage.events_until(3).await;
    assert_eq!(orders(&events), [11, 12, 1, 2, 3]);
    in_order(&events);
    let places: Vec<_> =
        events.iter().map(|event| event["transaction"]["total_order"].as_u64().unwrap()).collect();
    assert_eq!(places, [1, 2, 1, 2, 3]);
}

#[tokio::test]
async fn a_value_out_of_line_is_merged_or_named_and_never_null() {
    let stage = Stage::governed().await;
    let writer = stage.source.connect_as("shop", "orders_app").await;
    writer
        .batch_execute(
            "ALTER TABLE orders ALTER body SET STORAGE EXTERNAL, ADD note int;
             INSERT INTO orders VALUES (1, repeat('long', 2000), 1);
             UPDATE orders SET note = 2 WHERE id = 1;
             ALTER TABLE orders REPLICA IDENTITY FULL;
             UPDATE orders SET note = 3 WHERE id = 1;
             INSERT INTO orders VALUES (2)",
        )
        .await
        .unwrap();
    let events = stage.events_until(2).await;
    let updates: Vec<&Value> = events.iter().filter(|event| event["op"] == "u").collect();
    let [named, merged] = updates[..] else { panic!("{events:?}") };
    assert_eq!(named["unchanged"], serde_json::json!(["body"]));
    assert_eq!(named["after"].get("body"), None, "{named}");
    assert_eq!(merged.get("unchanged"), None, "{merged}");
    assert_eq!(merged["after"]["body"], "long".repeat(2000));
}

#[tokio::test]
async fn a_truncate_of_several_tables_tells_each_in_its_place() {
    let stage = Stage::governed().await;
    let writer = stage.source.connect_as("shop", "orders_app").await;
    let truncate = "BEGIN; INSERT INTO quiet VALUES (1); TRUNCATE orders, quiet;
                    INSERT INTO orders VALUES (2); COMMIT";
    writer.batch_execute(truncate).await.unwrap();
    let events = stage.events_until(2).await;
    in_order(&events);
    let told: Vec<_> = events
        .iter()
        .map(|event| (event["op"].as_str().unwrap(), event["source"]["table"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("c", "quiet"), ("t", "orders"), ("t", "quiet"), ("c", "orders")]);
    // Read again, each has the same place.
    eventually(WAIT, async || {
        (stage.confirmed().await >= stage.wal_end().await - 4096).then_some(())
    })
    .await;
    assert_eq!(stage.events_until(2).await, events);
}
