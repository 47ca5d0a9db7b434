//! What broke is taken up where it was, or said.

use std::collections::BTreeSet;

use crate::capture::stage::{Stage, TABLES, gap, in_order, orders};
use crate::support::{WAIT, eventually};

#[tokio::test]
async fn a_snapshot_goes_on_after_a_crash_where_it_was() {
    let tables = "
        CREATE ROLE orders_app LOGIN;
        CREATE TYPE size AS ENUM ('small', 'large', 'medium');
        CREATE TABLE orders (size size, id bigint, PRIMARY KEY (size, id));
        INSERT INTO orders SELECT s, g FROM unnest(enum_range(NULL::size)) s, generate_series(1, 1000) g;
        ALTER TABLE orders OWNER TO orders_app;";
    let mut stage =
        Stage::with(&[("fsync", "off")], tables, &["--snapshot-chunk-rows", "100"]).await;
    stage.declare(&stage.source.url("shop"), &["public.orders"]).await;
    let feed = "/v1/feed?datasets=shop.public.orders&after=";
    let mut rows = BTreeSet::new();
    let mut after = "snapshot".to_owned();
    for part in 1..=4 {
        let events = stage
            .events(&format!("{feed}{after}"), |events| {
                let done = |event: &serde_json::Value| event["snapshot"]["state"] == "done";
                if part < 4 { events.len() == 700 } else { events.last().is_some_and(done) }
            })
            .await;
        in_order(&events);
        for event in events.iter().filter(|event| event["op"] == "r") {
            assert!(rows.insert(event["after"].to_string()), "twice: {event}");
        }
        events.last().unwrap()["position"].as_str().unwrap().clone_into(&mut after);
        stage.server.kill().await;
        stage.server.restart().await;
    }
    assert_eq!(rows.len(), 3_000);
}

#[tokio::test]
async fn a_publication_that_was_dropped_is_made_again_and_the_gap_said() {
    let args = ["--guard-interval", "200ms"];
    let mut stage = Stage::with(&[("fsync", "off")], TABLES, &args).await;
    stage.govern(&stage.source.url("shop")).await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;
    let shop = stage.source.connect("shop").await;
    stage.written_down().await;
    stage.server.kill().await;
    shop.batch_execute("DROP PUBLICATION cadastre_shop").await.unwrap();
    stage.insert(&stage.source, 3..=3).await;
    stage.server.restart().await;
    let registry = stage.registry.connect("postgres").await;
    eventually(WAIT, async || {
        let ends = "SELECT FROM cadastre_registry.log_ends WHERE last_position LIKE '02-%'";
        registry.query_opt(ends, &[]).await.unwrap()
    })
    .await;
    // Everything after the gap is there.
    stage.insert(&stage.source, 4..=4).await;
    let events = stage.events_until(4).await;
    in_order(&events);
    gap(&events, "02", "slot_lost");
    assert!(orders(&events).starts_with(&[1, 2]), "{events:?}");
}
