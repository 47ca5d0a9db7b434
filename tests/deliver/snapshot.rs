//! Subscriptions that begin with the rows as they are, through a crash in the middle of that.

use std::collections::{BTreeMap, BTreeSet};

use cadastre::task::Failpoint;
use serde_json::{Value, json};

use super::nats::NatsServer;
use super::receiver::Receiver;
use super::{ORDERS, Shop, checksum};
use crate::support::{WAIT, eventually};

/// Rows before the snapshot begins: several steps of it.
const ROWS: i64 = 3_000;

/// A consumer's copy of the table.
#[derive(Debug, Default)]
struct Copy {
    rows: BTreeMap<i64, String>,
    /// Of everything that was applied.
    seen: BTreeSet<String>,
}

impl Copy {
    /// Applies an event, unless it is one that came before.
    fn apply(&mut self, event: &Value) {
        if !self.seen.insert(event["position"].as_str().unwrap().to_owned()) {
            return;
        }
        let row = |row: &Value| (row["id"].as_i64().unwrap(), row["status"].to_string());
        match event["op"].as_str() {
            Some("r" | "c" | "u") => {
                let (id, status) = row(&event["after"]);
                self.rows.insert(id, status);
            }
            Some("d") => {
                self.rows.remove(&row(&event["before"]).0).expect("a row that was there");
            }
            // A schema, an owner.
            None => {}
            Some(other) => panic!("unexpected {other}: {event}"),
        }
    }
}

/// A subscription that dies in the middle of its snapshot; then the table changes, and it goes on.
async fn begun_through_a_crash(env: &[(&str, &str)], deliver: Value) -> Shop {
    let mut shop = Shop::with_env(env).await;
    let rows = format!("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, {ROWS}) n");
    shop.write(&rows).await;
    shop.server.kill().await;
    shop.server.restart_armed(Failpoint::SnapshotBeforeStep, 3).await;
    let spec = json!({
        "deliver": deliver, "start": "snapshot", "retry": { "initial": "20ms", "max": "200ms" },
    });
    let input = json!({ "name": "all", "service": "billing", "datasets": [ORDERS], "spec": spec });
    let query = "mutation Create($input: SubscriptionCreateInput!) {
        subscriptionCreate(input: $input) { userErrors { message } } }";
    let body = json!({ "query": query, "variables": { "input": input } });
    // Whether it answers before it dies, or not any more.
    let _either = shop.server.client().post(shop.server.at("/graphql")).json(&body).send().await;
    shop.server.died().await;
    change(&shop, ROWS).await;
    shop.server.restart().await;
    change(&shop, ROWS + 100).await;
    shop
}

/// Changes some of the table, and adds rows after this id.
async fn change(shop: &Shop, after: i64) {
    shop.write(&format!(
        "UPDATE orders SET status = status || '+' WHERE id % 7 = 0;
         DELETE FROM orders WHERE id % 11 = 0;
         INSERT INTO orders SELECT n, 'new' FROM generate_series({after} + 1, {after} + 10) n"
    ))
    .await;
}

/// The table as it is.
async fn table(shop: &Shop) -> BTreeMap<i64, String> {
    let client = shop.cluster.connect("shop").await;
    let rows = client.query("SELECT id, status FROM orders", &[]).await.unwrap();
    let row = |row: &tokio_postgres::Row| (row.get(0), format!("\"{}\"", row.get::<_, &str>(1)));
    rows.iter().map(row).collect()
}

/// Waits until everything is delivered and the copy is the table; the counts and the checksum have
/// to say so, too.
async fn complete(shop: &Shop, copy: impl AsyncFn() -> Copy) {
    let wanted = table(shop).await;
    let settled = async || {
        let copy = copy().await;
        let status = shop.status("all").await;
        assert_eq!(status["counts"]["reconcile"], true, "{status}");
        let done = copy.rows == wanted && status["counts"]["pending"] == 0;
        (done && status["checksum"] == checksum(copy.seen.iter().map(String::as_str))).then_some(())
    };
    eventually(WAIT * 3, settled).await;
}

#[tokio::test]
async fn a_consumer_that_fetches_gets_the_rows_and_then_the_changes() {
    let shop = begun_through_a_crash(
        &[("CADASTRE_DELIVERY_HOLD", "500ms")],
        json!({ "pull": { "lease": "1h" } }),
    )
    .await;
    let copy = parking_lot::Mutex::new(Copy::default());
    let fetch = async || {
        let fetched = shop.get("all", "changes?max=1000&wait=100ms").await;
        if !fetched["lease"].is_null() {
            for change in fetched["changes"].as_array().unwrap() {
                assert_eq!(change["position"], change["change"]["position"]);
                copy.lock().apply(&change["change"]);
            }
            shop.post("all", "ack", json!({ "lease": fetched["lease"] })).await;
        }
        let copy = copy.lock();
        Copy { rows: copy.rows.clone(), seen: copy.seen.clone() }
    };
    complete(&shop, fetch).await;

    // It can be had again, whatever was delivered.
    *copy.lock() = Copy::default();
    let query = "mutation Seek($input: SubscriptionSeekInput!) {
        subscriptionSeek(input: $input) { userErrors { message } } }";
    let input = json!({ "input": { "name": "all", "to": "snapshot" } });
    let done = shop.graphql(query, input).await;
    assert_eq!(done["subscriptionSeek"]["userErrors"], json!([]));
    complete(&shop, fetch).await;
}

#[tokio::test]
async fn a_webhook_gets_the_rows_and_then_the_changes() {
    let receiver = Receiver::start().await;
    let env = [("CADASTRE_WEBHOOK_ALLOW", "127.0.0.1"), ("CADASTRE_DELIVERY_HOLD", "500ms")];
    let webhook = json!({ "webhook": { "url": receiver.url(), "timeout": "5s", "batch": 200 } });
    let shop = begun_through_a_crash(&env, webhook).await;
    let taken = async || {
        let mut copy = Copy::default();
        receiver.taken().iter().for_each(|event| copy.apply(event));
        copy
    };
    complete(&shop, taken).await;
}

#[tokio::test]
async fn a_stream_gets_the_rows_and_then_the_changes() {
    let nats = NatsServer::start().await;
    let deliver = json!({ "nats": { "url": nats.url(), "stream": "SHOP", "timeout": "5s" } });
    let shop = begun_through_a_crash(&[("CADASTRE_DELIVERY_HOLD", "500ms")], deliver).await;
    let published = async || {
        let mut copy = Copy::default();
        nats.events("SHOP").await.iter().for_each(|event| copy.apply(event));
        copy
    };
    complete(&shop, published).await;
}
