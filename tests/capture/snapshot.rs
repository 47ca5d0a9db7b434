//! Rows as they are, before the changes: what they say of their table.

use serde_json::{Value, json};

use super::stage::{FAST, Stage};
use crate::support::{Server, WAIT};

/// The feed of the orders from this place on.
fn feed(after: &str) -> String {
    format!("/v1/feed?datasets=shop.public.orders&after={after}")
}

/// The last event begins this version of the table.
fn begins(version: u32) -> impl Fn(&[Value]) -> bool {
    move |events| {
        let last = events.last().and_then(|event| event.pointer("/schema/version"));
        last.and_then(Value::as_u64) == Some(version.into())
    }
}

#[tokio::test]
async fn a_row_names_the_version_of_its_table_also_when_that_has_another_name() {
    let stage = Stage::governed().await;
    stage.insert(&stage.source, 1..=2).await;
    // A table has its first version once a change of it has been captured.
    stage.events_until(2).await;
    let owner = stage.source.connect_as("shop", "orders_app").await;
    let rows = async || {
        let done = |events: &[Value]| {
            events.last().is_some_and(|event| event["snapshot"]["state"] == "done")
        };
        let events = stage.events(&feed("snapshot"), done).await;
        let rows = events.into_iter().filter(|event| event["op"] == "r");
        rows.map(|row| {
            json!([
                row["schema_version"],
                row["source"]["table"],
                row["dataset"],
                row["after"]["id"]
            ])
        })
        .collect::<Vec<_>>()
    };
    let told = |version: u32, table: &str| {
        [1, 2].map(|id| json!([version, table, "shop.public.orders", id])).to_vec()
    };
    assert_eq!(rows().await, told(1, "orders"));

    owner.batch_execute("ALTER TABLE orders ALTER body TYPE varchar(200)").await.unwrap();
    stage.events(&feed("earliest"), begins(2)).await;
    assert_eq!(rows().await, told(2, "orders"));
    let admin = stage.source.connect("shop").await;
    admin.batch_execute("GRANT CREATE ON SCHEMA public TO orders_app").await.unwrap();
    owner.batch_execute("ALTER TABLE orders RENAME TO bills").await.unwrap();
    stage.events(&feed("earliest"), begins(3)).await;
    assert_eq!(rows().await, told(3, "bills"));
}

#[tokio::test]
async fn a_server_that_does_not_capture_says_which_one_to_ask() {
    let stage = Stage::governed().await;
    stage.insert(&stage.source, 1..=1).await;
    stage.events_until(1).await;
    let other = Server::start(&stage.registry.url("postgres")).await;
    let asked = other.client().get(other.at(&feed("snapshot"))).send().await.unwrap();
    assert_eq!(asked.status(), 503);
    let said = asked.text().await.unwrap();
    let who = format!("cadastre capture {}@", stage.server.pid());
    assert!(said.contains(&who) && said.contains("ask that one"), "{said}");
    // History is everybody's.
    let path = "/v1/feed?datasets=shop.public.orders&after=earliest&until=now";
    let history = other.client().get(other.at(path)).send().await.unwrap();
    assert_eq!(history.status(), 200);
    assert!(history.text().await.unwrap().contains("\"after\":{\"id\":1,"));
}

#[tokio::test]
async fn a_server_that_does_not_capture_feeds_what_another_captures_and_takes_over_when_that_dies()
{
    let mut stage = Stage::governed().await;
    let other = Server::start_with(&stage.registry.url("postgres"), &FAST).await;
    let path = "/v1/feed?datasets=shop.public.orders&after=earliest";
    let asked = other.client().get(other.at(path)).header("accept", "application/x-ndjson");
    let mut feed = asked.send().await.unwrap();
    assert_eq!(feed.status(), 200);
    let mut read = String::new();
    let mut until = async |id: i64| {
        let after = format!("\"after\":{{\"id\":{id},");
        let deadline = tokio::time::Instant::now() + WAIT;
        while !read.contains(&after) {
            let chunk = tokio::time::timeout_at(deadline, feed.chunk()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("order {id} does not come: {read}"));
            read.push_str(std::str::from_utf8(&chunk.unwrap().expect("it goes on")).unwrap());
        }
    };
    stage.insert(&stage.source, 1..=1).await;
    until(1).await;
    // At the tail of a log that is written elsewhere.
    stage.insert(&stage.source, 2..=2).await;
    until(2).await;
    stage.server.kill().await;
    stage.insert(&stage.source, 3..=3).await;
    until(3).await;
    for id in 1..=3 {
        let once = read.matches(&format!("\"after\":{{\"id\":{id},")).count();
        assert_eq!(once, 1, "order {id}: {read}");
    }
}
