//! Subscriptions as such: made, steered and forgotten, whatever way they are delivered.

use serde_json::{Value, json};

use super::{ORDERS, Shop, answer};
use crate::support::{WAIT, eventually};

async fn act(shop: &Shop, mutation: &str, kind: &str, input: Value) -> Value {
    let query = format!(
        "mutation Act($input: {kind}!) {{ done: {mutation}(input: $input) {{
            userErrors {{ code message field }} }} }}"
    );
    let mut data = shop.graphql(&query, json!({ "input": input })).await;
    data["done"]["userErrors"].take()
}

fn ids(fetched: &Value) -> Vec<i64> {
    let changes = fetched["changes"].as_array().unwrap().iter();
    changes.map(|change| change["change"]["after"]["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_subscription_is_paused_resumed_moved_and_forgotten() {
    let shop = Shop::open().await;
    let pull = json!({ "deliver": { "pull": {} } });
    let created = shop.subscribe("invoices", pull).await;
    assert_eq!(created["subscription"], json!({ "name": "invoices", "kind": "pull" }));
    shop.write("INSERT INTO orders VALUES (1, 'open'), (2, 'open')").await;
    let fetched = shop.get("invoices", "changes?max=1&wait=30s").await;
    assert_eq!(ids(&fetched), [1]);

    let named = json!({ "name": "invoices" });
    let none = json!([]);
    assert_eq!(act(&shop, "subscriptionPause", "SubscriptionInput", named.clone()).await, none);
    let request = shop.request(reqwest::Method::GET, "invoices", "changes?wait=30s");
    let (status, paused) = answer(request).await;
    assert_eq!((status, &paused["code"]), (409, &json!("conflict")), "{paused}");
    assert_eq!(shop.status("invoices").await["paused"], true);
    assert_eq!(act(&shop, "subscriptionResume", "SubscriptionInput", named.clone()).await, none);

    let seek = |to: &str| json!({ "name": "invoices", "to": to });
    let kind = "SubscriptionSeekInput";
    assert_eq!(act(&shop, "subscriptionSeek", kind, seek("earliest")).await, none);
    let all = shop.get("invoices", "changes?wait=30s").await;
    assert_eq!(ids(&all), [1, 2], "from the beginning, whatever was out");
    assert_eq!(shop.status("invoices").await["counts"]["logged"], 2, "a new run counts anew");
    let first = all["changes"][0]["position"].as_str().unwrap();
    assert_eq!(act(&shop, "subscriptionSeek", kind, seek(first)).await, none);
    assert_eq!(ids(&shop.get("invoices", "changes?wait=30s").await), [2]);
    let time = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    assert_eq!(act(&shop, "subscriptionSeek", kind, seek(&time.to_rfc3339())).await, none);
    assert_eq!(shop.get("invoices", "changes").await["changes"], none, "nothing is that new");
    assert_eq!(act(&shop, "subscriptionSeek", kind, seek("2020-01-01T00:00:00Z")).await, none);
    assert_eq!(ids(&shop.get("invoices", "changes?wait=30s").await), [1, 2]);
    let wrong = act(&shop, "subscriptionSeek", kind, seek("yesterday")).await;
    assert_eq!(wrong[0]["field"], json!(["input", "to"]), "{wrong}");

    assert_eq!(act(&shop, "subscriptionDelete", "SubscriptionDeleteInput", named).await, none);
    let (status, gone) = answer(shop.request(reqwest::Method::GET, "invoices", "changes")).await;
    assert_eq!((status, &gone["code"]), (404, &json!("unknown_subscription")));
}

#[tokio::test]
async fn one_that_is_declared_in_a_manifest_begins_by_itself() {
    let shop = Shop::open().await;
    shop.write("INSERT INTO orders VALUES (1, 'open')").await;
    shop.apply(&format!(
        "subscriptions:
  invoices:
    service: billing
    datasets: [{ORDERS}]
    deliver: {{ pull: {{ lease: 5s }} }}
    start: earliest
"
    ))
    .await;
    // Capture began before the row was written, so that it is in the log.
    let fetched = shop.get("invoices", "changes?wait=30s").await;
    assert_eq!(ids(&fetched), [1]);
    let listed = async || {
        let ran = shop.server.command().args(["subscription", "list"]).output().await.ok()?;
        let text = String::from_utf8(ran.stdout).ok()?;
        text.contains("invoices  billing  pull  active  0          1        0").then_some(())
    };
    eventually(WAIT, listed).await;
}

#[tokio::test]
async fn what_cannot_be_created_is_refused_with_every_reason_and_leaves_nothing() {
    let shop = Shop::open().await;
    let refused = shop.create("Bad Name", json!({ "deliver": { "pigeon": {} }, "x": 1 })).await;
    let errors = refused["userErrors"].as_array().unwrap();
    let fields: Vec<_> = errors.iter().map(|error| &error["field"]).collect();
    assert_eq!(
        fields,
        [
            &json!(["input", "name"]),
            &json!(["input", "spec"]),
            &json!(["input", "spec", "deliver"]),
        ]
    );
    assert!(errors[2]["message"].as_str().unwrap().contains("expected one of pull: {}"));
    let start = "FF-0000000000000000-00000001";
    let pull = json!({ "deliver": { "pull": {} }, "start": start });
    shop.subscribe("future", pull.clone()).await;
    let twice = shop.create("future", pull).await;
    assert_eq!(twice["userErrors"][0]["code"], "CONFLICT");
    let names = shop.graphql("{ subscriptions { nodes { name } } }", json!({})).await;
    assert_eq!(names["subscriptions"]["nodes"], json!([{ "name": "future" }]));
}

#[tokio::test]
async fn a_dead_letter_is_not_lost_with_its_subscription() {
    let shop = Shop::open().await;
    let spec = json!({ "deliver": { "pull": {} }, "retry": { "maxAttempts": 1 } });
    shop.subscribe("invoices", spec).await;
    shop.write("INSERT INTO orders VALUES (1, 'open')").await;
    let fetched = shop.get("invoices", "changes?wait=30s").await;
    shop.post("invoices", "nack", json!({ "lease": fetched["lease"], "error": "no" })).await;
    let kind = "SubscriptionDeleteInput";
    let refused = act(&shop, "subscriptionDelete", kind, json!({ "name": "invoices" })).await;
    assert_eq!(refused[0]["code"], "CONFLICT");
    assert!(refused[0]["message"].as_str().unwrap().contains("has 1 dead letters"), "{refused}");
    let because = json!({ "name": "invoices", "reason": "the service is retired" });
    assert_eq!(act(&shop, "subscriptionDelete", kind, because).await, json!([]));
    let registry = shop.cluster.connect("registry").await;
    let kept = "SELECT subscription, state, reason, settled_by FROM cadastre_registry.dead_letters";
    let row = registry.query_one(kept, &[]).await.unwrap();
    let row: Vec<String> = (0..4).map(|column| row.get(column)).collect();
    assert_eq!(row, ["invoices", "dropped", "the service is retired", "admin"]);
}
