//! A source in a cluster of its own, its registry in another, and a server between them.

use futures::StreamExt;
use serde_json::Value;

use crate::support::{Cluster, Server, WAIT, eventually};

/// Often enough for a test.
pub(super) const FAST: [&str; 6] =
    ["--heartbeat", "100ms", "--feedback", "100ms", "--backoff", "200ms"];

/// The tables of most tests.
pub(super) const TABLES: &str = "
CREATE ROLE orders_app LOGIN;
CREATE TABLE orders (id bigint PRIMARY KEY, body text);
CREATE TABLE quiet (id bigint PRIMARY KEY);
ALTER TABLE orders OWNER TO orders_app;
ALTER TABLE quiet OWNER TO orders_app;";

/// The feed of both.
const FEED: &str = "/v1/feed?datasets=shop.public.orders,shop.public.quiet&after=earliest";

/// A source in a cluster, and a server whose registry is in another.
pub(super) struct Stage {
    pub(super) registry: Cluster,
    pub(super) source: Cluster,
    pub(super) server: Server,
}

impl Stage {
    /// With these settings of the source's cluster.
    pub(super) async fn new(settings: &[(&str, &str)]) -> Self {
        Self::with(settings, TABLES, &[]).await
    }

    /// The same with tables of its own, and more arguments of the server.
    pub(super) async fn with(settings: &[(&str, &str)], tables: &str, args: &[&str]) -> Self {
        let (registry, source) = tokio::join!(Cluster::start(), Cluster::with_settings(settings));
        source.create_database("shop").await;
        source.connect("shop").await.batch_execute(tables).await.unwrap();
        let args = [&FAST[..], args].concat();
        let server = Server::start_with(&registry.url("postgres"), &args).await;
        Self { registry, source, server }
    }

    /// A source that is governed and streams.
    pub(super) async fn governed() -> Self {
        let stage = Self::new(&[("fsync", "off")]).await;
        stage.govern(&stage.source.url("shop")).await;
        stage
    }

    /// Declares the source at `url`, with the tables of most tests.
    pub(super) async fn govern(&self, url: &str) {
        self.declare(url, &["public.orders", "public.quiet"]).await;
    }

    /// Declares the source at `url`, with these tables.
    pub(super) async fn declare(&self, url: &str, tables: &[&str]) {
        let datasets: String = tables
            .iter()
            .map(|table| format!("  shop.{table}: {{ owner: orders, mode: enforce }}\n"))
            .collect();
        let manifest = format!(
            "apiVersion: cadastre/v1
sources: {{ shop: {{ url: \"{url}\" }} }}
services: {{ orders: {{ roles: {{ shop: [orders_app] }} }} }}
datasets:\n{datasets}"
        );
        let apply = self.server.client().post(self.server.at("/v1/manifest/apply")).body(manifest);
        let answer = apply.header("content-type", "application/yaml").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        self.ready().await;
    }

    /// Waits until the server says that all is well.
    pub(super) async fn ready(&self) {
        eventually(WAIT, async || {
            let response = self.server.client().get(self.server.at("/readyz")).send().await.ok()?;
            (response.status() == 200).then_some(())
        })
        .await;
    }

    /// Inserts these orders as their owner.
    pub(super) async fn insert(&self, cluster: &Cluster, ids: std::ops::RangeInclusive<i64>) {
        let client = cluster.connect_as("shop", "orders_app").await;
        let insert = format!(
            "INSERT INTO orders SELECT g, repeat('x', 100) FROM generate_series({}, {}) g",
            ids.start(),
            ids.end()
        );
        client.batch_execute(&insert).await.unwrap();
    }

    /// All events of both datasets, up to the insert of the order `last`.
    pub(super) async fn events_until(&self, last: i64) -> Vec<Value> {
        self.events(FEED, |events| events.last().and_then(id) == Some(last)).await
    }

    /// The events of a feed, until there are enough.
    pub(super) async fn events(&self, feed: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let request = self.server.client().get(self.server.at(feed));
        let response = request.header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let mut body = response.bytes_stream();
        let (mut events, mut buffer) = (Vec::new(), Vec::new());
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let bytes = tokio::time::timeout_at(deadline, body.next()).await;
            let bytes = bytes.unwrap_or_else(|_| panic!("not what is waited for: {events:?}"));
            buffer.extend_from_slice(&bytes.unwrap().unwrap());
            while let Some(end) = memchr::memchr(b'\n', &buffer) {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
                events.push(event);
                if enough(&events) {
                    return events;
                }
            }
        }
    }

    /// A number out of the source.
    pub(super) async fn number(&self, expression: &str) -> i64 {
        let client = self.source.connect("shop").await;
        let query = format!("SELECT coalesce(({expression})::bigint, 0)");
        client.query_one(&query, &[]).await.unwrap().get(0)
    }

    /// The end of the source's WAL.
    pub(super) async fn wal_end(&self) -> i64 {
        self.number("pg_current_wal_lsn() - '0/0'").await
    }

    /// Up to where the slot is confirmed.
    pub(super) async fn confirmed(&self) -> i64 {
        self.number("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots").await
    }

    /// Waits until the registry knows of everything that the source has so far, and of a heartbeat
    /// behind it.
    pub(super) async fn written_down(&self) {
        let end = self.wal_end().await;
        let registry = self.registry.connect("postgres").await;
        eventually(WAIT, async || {
            let query = "SELECT heartbeat_lsn FROM cadastre_registry.source_slots";
            let row = registry.query_one(query, &[]).await.ok()?;
            (row.get::<_, Option<i64>>(0)? > end).then_some(())
        })
        .await;
    }
}

pub(super) fn id(event: &Value) -> Option<i64> {
    event.pointer("/after/id").and_then(Value::as_i64)
}

pub(super) fn epoch(event: &Value) -> &str {
    &event["position"].as_str().unwrap()[..2]
}

/// The orders in `events`, each once, in their order.
pub(super) fn orders(events: &[Value]) -> Vec<i64> {
    events.iter().filter_map(id).collect()
}

/// The gap events, which must stand together: the reason, and where they are in the list.
#[track_caller]
pub(super) fn gap(events: &[Value], begins: &str, reason: &str) -> usize {
    let at = events.iter().position(|event| epoch(event) == begins).expect("the epoch has begun");
    let told: Vec<&str> = events[at..]
        .iter()
        .take_while(|event| event["event"] == "gap")
        .map(|event| event["dataset"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["shop.public.orders", "shop.public.quiet"], "{events:?}");
    let gap = &events[at]["gap"];
    assert_eq!(gap["reason"], reason);
    assert_eq!(gap["datasets"], serde_json::json!(told));
    let before = at.checked_sub(1).map(|before| &events[before]["position"]);
    assert_eq!(Some(&gap["from"]), before, "everything before was in the feed");
    at
}

/// Positions increase, whatever happened.
#[track_caller]
pub(super) fn in_order(events: &[Value]) {
    assert!(events.is_sorted_by(|a, b| a["position"].as_str() < b["position"].as_str()));
}
