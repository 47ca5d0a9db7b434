//! The change feed over plain HTTP.

use reqwest::{RequestBuilder, Response};
use serde_json::Value;

use super::{ORDERS, Shop};
use crate::support::WAIT;

/// An open feed, read up to a blank line or a line at a time.
struct Feed {
    response: Response,
    buffer: Vec<u8>,
}

impl Feed {
    async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        Self { response, buffer: Vec::new() }
    }

    /// Everything up to `end`, which is taken off; `None` when the feed ends before.
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            let mut windows = self.buffer.windows(end.len());
            if let Some(at) = windows.position(|window| window == end.as_bytes()) {
                let rest = self.buffer.split_off(at + end.len());
                let mut text =
                    String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
                text.truncate(at);
                return Some(text);
            }
            let chunk = tokio::time::timeout(WAIT, self.response.chunk()).await;
            self.buffer.extend_from_slice(&chunk.expect("the feed goes on in time").unwrap()?);
        }
    }

    /// The next server-sent event that is not a comment.
    async fn event(&mut self) -> Option<Event> {
        loop {
            let text = self.until("\n\n").await?;
            let field = |name: &str| {
                let mut lines = text.lines();
                lines
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            if let Some(data) = field("data") {
                let data = serde_json::from_str(&data).unwrap();
                return Some(Event { id: field("id"), kind: field("event"), data });
            }
        }
    }

    /// The next line of NDJSON that is not blank.
    async fn line(&mut self) -> Option<Value> {
        loop {
            let line = self.until("\n").await?;
            if !line.is_empty() {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    }
}

struct Event {
    id: Option<String>,
    kind: Option<String>,
    data: Value,
}

async fn insert(shop: &Shop, id: i64) {
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    orders.execute("INSERT INTO orders VALUES ($1, 'open')", &[&id]).await.unwrap();
}

#[tokio::test]
async fn who_has_seen_that_the_feed_is_live_misses_nothing() {
    let shop = Shop::declared().await;
    let mut sse = Feed::open(shop.get(&format!("/v1/feed?datasets={ORDERS}"))).await;
    assert_eq!(sse.response.headers()["content-type"], "text/event-stream");
    assert_eq!(sse.response.headers()["cache-control"], "no-store");
    assert_eq!(sse.until("\n\n").await.unwrap(), ": live");
    let path = format!("/v1/feed?datasets={ORDERS}&after=now");
    let mut ndjson = Feed::open(shop.get(&path).header("accept", "application/x-ndjson")).await;
    assert_eq!(ndjson.response.headers()["content-type"], "application/x-ndjson");
    assert_eq!(ndjson.until("\n").await.unwrap(), "");

    for id in 1..=3 {
        insert(&shop, id).await;
        let event = sse.event().await.unwrap();
        assert_eq!(event.kind.as_deref(), Some("change"));
        assert_eq!(event.data["after"]["id"], id);
        assert_eq!(event.data["dataset"], ORDERS);
        assert_eq!(event.data["position"].as_str(), event.id.as_deref());
        assert_eq!(ndjson.line().await.unwrap(), event.data);
    }
}

#[tokio::test]
async fn a_reader_resumes_after_the_last_event_it_has_seen() {
    let shop = Shop::declared().await;
    let path = format!("/v1/feed?datasets={ORDERS}&after=earliest");
    for id in 1..=3 {
        insert(&shop, id).await;
    }
    let mut first = Feed::open(shop.get(&path)).await;
    let seen = first.event().await.unwrap();
    assert_eq!(seen.data["after"]["id"], 1);
    let position = seen.id.unwrap();
    let mut resumed = Feed::open(shop.get(&path).header("last-event-id", &position)).await;
    assert_eq!(resumed.event().await.unwrap().data["after"]["id"], 2);
    let from = format!("/v1/feed?datasets={ORDERS}&after={position}");
    let mut from = Feed::open(shop.get(&from).header("accept", "application/x-ndjson")).await;
    assert_eq!(from.line().await.unwrap()["after"]["id"], 2);
    assert_eq!(from.line().await.unwrap()["after"]["id"], 3);
}

#[tokio::test]
async fn only_the_operations_asked_for_arrive() {
    let shop = Shop::declared().await;
    insert(&shop, 1).await;
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("UPDATE orders SET status = 'paid'; DELETE FROM orders").await.unwrap();
    let path = format!("/v1/feed?datasets={ORDERS}&after=earliest&ops=u,d");
    let mut feed = Feed::open(shop.get(&path)).await;
    assert_eq!(feed.event().await.unwrap().data["op"], "u");
    assert_eq!(feed.event().await.unwrap().data["op"], "d");
}

#[tokio::test]
async fn feeds_end_cleanly_when_the_server_is_stopped() {
    let mut shop = Shop::declared().await;
    let mut sse = Feed::open(shop.get(&format!("/v1/feed?datasets={ORDERS}"))).await;
    assert_eq!(sse.until("\n\n").await.unwrap(), ": live");
    let status = shop.server.terminate().await;
    assert!(status.success(), "{status}");
    assert!(sse.until("\n\n").await.is_none(), "the response is complete, not cut");
    let log = shop.server.log();
    assert!(log.contains("feed ended"), "{log}");
}

#[tokio::test]
async fn rows_columns_and_the_envelope_are_as_asked_for() {
    let shop = Shop::declared().await;
    for id in 1..=3 {
        insert(&shop, id).await;
    }
    let asked = "where=id%20in%20(2,%203)&columns=id&format=cloudevents";
    let path = format!("/v1/feed?datasets={ORDERS}&after=earliest&{asked}");
    let mut feed = Feed::open(shop.get(&path)).await;
    for id in 2..=3 {
        let event = feed.event().await.unwrap();
        assert_eq!(event.data["specversion"], "1.0");
        assert_eq!(event.data["source"], format!("/datasets/{ORDERS}"));
        assert_eq!(event.data["id"].as_str(), event.id.as_deref());
        assert_eq!(event.data["data"]["after"], serde_json::json!({ "id": id }));
    }
}
