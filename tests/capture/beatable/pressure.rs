//! What is not kept is not confirmed, and whoever is slow holds up nobody else.

use futures::StreamExt;

use crate::capture::stage::{Stage, orders};
use crate::support::{WAIT, eventually};

/// Keeps the log from being written until it is dropped with its session.
const HOLD: &str = "BEGIN; LOCK TABLE cadastre_registry.log_ends IN ACCESS EXCLUSIVE MODE";

#[tokio::test]
async fn what_is_not_durable_is_not_confirmed() {
    let stage = Stage::governed().await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;
    let registry = stage.registry.connect("postgres").await;
    registry.batch_execute(HOLD).await.unwrap();
    stage.insert(&stage.source, 3..=3).await;
    let mut confirmed = 0;
    // All of it has been received, and later heartbeats too; the walsender has its answers.
    for _ in 0..3 {
        let end = stage.wal_end().await;
        eventually(WAIT, async || {
            let received = "SELECT write_lsn - '0/0' FROM pg_stat_replication";
            (stage.number(received).await > end).then_some(())
        })
        .await;
        let flushed = stage.number("SELECT flush_lsn - '0/0' FROM pg_stat_replication").await;
        confirmed = confirmed.max(flushed).max(stage.confirmed().await);
    }
    registry.batch_execute("ROLLBACK").await.unwrap();
    let written = stage.wal_end().await;
    eventually(WAIT, async || (stage.confirmed().await >= written).then_some(())).await;
    let events = stage.events_until(3).await;
    assert_eq!(orders(&events), [1, 2, 3]);
    let commit = events[2]["position"].as_str().unwrap().split('-').nth(1).unwrap();
    let commit = i64::from_str_radix(commit, 16).unwrap();
    assert!(confirmed <= commit, "{confirmed} was confirmed, and {commit} was not durable");
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_back_nothing() {
    let stage = Stage::governed().await;
    let path = "/v1/feed?datasets=shop.public.orders&after=earliest";
    let stuck = stage.server.client().get(stage.server.at(path)).send().await.unwrap();
    stage.insert(&stage.source, 1..=1).await;
    let mut stuck = stuck.bytes_stream();
    stuck.next().await.unwrap().unwrap();
    // More than any buffer between here and there.
    stage.insert(&stage.source, 2..=60_000).await;
    let written = stage.wal_end().await;
    eventually(WAIT, async || (stage.confirmed().await >= written).then_some(())).await;
    assert_eq!(orders(&stage.events_until(60_000).await).len(), 60_000);
}

#[tokio::test]
async fn what_other_databases_write_is_let_go_as_well() {
    let stage = Stage::governed().await;
    stage.source.create_database("other").await;
    let other = stage.source.connect("other").await;
    let write = "CREATE TABLE scratch AS SELECT repeat('x', 500) FROM generate_series(1, 20000)";
    other.batch_execute(write).await.unwrap();
    let written = stage.wal_end().await;
    eventually(WAIT, async || (stage.confirmed().await >= written).then_some(())).await;
}

#[tokio::test]
async fn a_walsender_is_answered_while_nothing_can_be_kept() {
    let stage = Stage::new(&[("fsync", "off"), ("wal_sender_timeout", "1s")]).await;
    stage.govern(&stage.source.url("shop")).await;
    let walsender = async || stage.number("SELECT active_pid FROM pg_replication_slots").await;
    let before = walsender().await;
    let registry = stage.registry.connect("postgres").await;
    registry.batch_execute(HOLD).await.unwrap();
    // More than capture holds in memory: it stops reading.
    stage.insert(&stage.source, 1..=100_000).await;
    let held = stage.number("extract(epoch FROM clock_timestamp()) * 1000").await;
    eventually(WAIT, async || {
        let now = stage.number("extract(epoch FROM clock_timestamp()) * 1000").await;
        (now > held + 3_000).then_some(())
    })
    .await;
    assert_eq!(walsender().await, before, "PostgreSQL has not given its client up");
    registry.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(orders(&stage.events_until(100_000).await).len(), 100_000);
}

#[tokio::test]
async fn an_orderly_stop_of_postgresql_is_not_held_up() {
    let stage = Stage::governed().await;
    let registry = stage.registry.connect("postgres").await;
    registry.batch_execute(HOLD).await.unwrap();
    stage.insert(&stage.source, 1..=100).await;
    registry.batch_execute("ROLLBACK").await.unwrap();
    // Ends all walsenders in good order, or fails.
    stage.source.save().await;
    stage.ready().await;
    stage.insert(&stage.source, 101..=101).await;
    assert_eq!(orders(&stage.events_until(101).await), (1..=101).collect::<Vec<_>>());
    let log = stage.server.log();
    assert!(!log.contains("replication protocol broken"), "{log}");
}
