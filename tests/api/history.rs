//! What happened, found again: by time, by row, up to an end; and the proof that nothing is missing.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ORDERS, Shop, answer};
use crate::support::{WAIT, digest, eventually};

/// The events of a feed that ends by itself.
async fn read(shop: &Shop, query: &str) -> Vec<String> {
    let path = format!("/v1/feed?datasets={ORDERS}&{query}");
    let request = shop.get(&path).header("accept", "application/x-ndjson").send();
    let response = tokio::time::timeout(WAIT, request).await.unwrap().unwrap();
    assert_eq!(response.status(), 200, "{query}: {}", response.text().await.unwrap());
    let text = tokio::time::timeout(WAIT, response.text()).await.expect("it ends").unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The keys and operations of row changes.
fn rows(lines: &[String]) -> Vec<(String, i64)> {
    let events = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter_map(|event| {
            let op = event["op"].as_str()?.to_owned();
            let id = event["after"]["id"].as_i64().or_else(|| event["before"]["id"].as_i64())?;
            Some((op, id))
        })
        .collect()
}

/// A shop in which rows 1 to 5 were inserted, then, at a time that is given, 3 updated and deleted.
async fn storied() -> (Shop, String) {
    let shop = Shop::declared().await;
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    for id in 1..=5_i64 {
        orders.execute("INSERT INTO orders VALUES ($1, 'open')", &[&id]).await.unwrap();
    }
    // Events tell milliseconds.
    let between =
        "SELECT pg_sleep(0.002), date_trunc('milliseconds', clock_timestamp()), pg_sleep(0.002)";
    let between: DateTime<Utc> = orders.query_one(between, &[]).await.unwrap().get(1);
    orders.execute("UPDATE orders SET status = 'paid' WHERE id = 3", &[]).await.unwrap();
    orders.execute("DELETE FROM orders WHERE id = 3", &[]).await.unwrap();
    orders.execute("INSERT INTO orders VALUES (6, 'open')", &[]).await.unwrap();
    eventually(WAIT, async || {
        (rows(&read(&shop, "after=earliest&until=now").await).len() == 8).then_some(())
    })
    .await;
    (shop, between.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

fn of(op: &str, id: i64) -> (String, i64) {
    (op.to_owned(), id)
}

#[tokio::test]
async fn a_feed_begins_and_ends_where_it_is_told() {
    let (shop, between) = storied().await;
    let since = read(&shop, &format!("after={between}&until=now")).await;
    assert_eq!(rows(&since), [of("u", 3), of("d", 3), of("c", 6)]);
    let before = read(&shop, &format!("after=earliest&until={between}")).await;
    assert_eq!(rows(&before), (1..=5).map(|id| of("c", id)).collect::<Vec<_>>());
    let second: Value = serde_json::from_str(&since[1]).unwrap();
    let until = second["position"].as_str().unwrap();
    let upto = read(&shop, &format!("after={between}&until={until}")).await;
    assert_eq!(rows(&upto), [of("u", 3), of("d", 3)]);

    let row = read(&shop, "after=earliest&until=now&key=3").await;
    assert_eq!(rows(&row), [of("c", 3), of("u", 3), of("d", 3)]);
    let row = read(&shop, "after=earliest&until=now&key=%7B%22id%22:3%7D&ops=d").await;
    assert_eq!(rows(&row), [of("d", 3)]);
    assert!(rows(&read(&shop, "after=earliest&until=now&key=77").await).is_empty());

    for (query, status, code, hint) in [
        ("after=2099-01-01T00:00:00Z", 400, "bad_request", "in the future"),
        ("until=soon", 400, "bad_request", "2026-11-26T10:00:00Z"),
        ("key=%7B%22id%22:%5B3%5D%7D", 400, "bad_request", "no single value"),
    ] {
        let (got, problem) = answer(shop.get(&format!("/v1/feed?datasets={ORDERS}&{query}"))).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(hint), "{problem}");
    }
}

#[tokio::test]
async fn the_history_of_a_row_is_a_list_in_graphql() {
    let (shop, between) = storied().await;
    let query = "query($key: String, $from: String, $to: String, $first: Int, $after: String) {
        history(dataset: \"shop.public.orders\", key: $key, from: $from, to: $to,
                first: $first, after: $after) {
            nodes { op position event } pageInfo { hasNextPage endCursor } } }";
    let ops = |data: &Value| -> String {
        let nodes = data["history"]["nodes"].as_array().unwrap();
        let ops = nodes.iter().filter(|node| node["event"].get("op").is_some());
        ops.map(|node| node["op"].as_str().unwrap()).collect()
    };
    let all = shop.data(query, json!({ "key": "3", "first": 100 })).await;
    assert_eq!(ops(&all), "cud");
    let late = shop.data(query, json!({ "key": "{\"id\":3}", "from": between })).await;
    assert_eq!(ops(&late), "ud");
    let early = shop.data(query, json!({ "key": "3", "to": between })).await;
    assert_eq!(ops(&early), "c");
    // Page by page, everything comes once.
    let (mut seen, mut after) = (String::new(), Value::Null);
    loop {
        let variables = json!({ "key": "3", "first": 1, "after": after, "from": "earliest" });
        let page = shop.data(query, variables).await;
        seen.push_str(&ops(&page));
        if page["history"]["pageInfo"]["hasNextPage"] == false {
            break;
        }
        after = page["history"]["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(seen, "cud");
    let (_, refused) = shop.graphql(query, json!({ "from": "yesterday" })).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "MALFORMED_POSITION", "{refused}");
}

#[tokio::test]
async fn a_reader_can_check_that_it_missed_nothing() {
    let (shop, between) = storied().await;
    let proof = async |query: &str| {
        let (status, proof) = answer(shop.get(&format!("/v1/sources/shop/proof?{query}"))).await;
        assert_eq!(status, 200, "{proof}");
        proof
    };
    // What was read becomes durable a moment later.
    let lines = read(&shop, "after=earliest&until=now").await;
    let whole = eventually(WAIT, async || {
        let proof = proof("").await;
        (proof["changes"] == lines.len()).then_some(proof)
    })
    .await;
    assert_eq!((&whole["ok"], &whole["complete"]), (&json!(true), &json!(true)), "{whole}");
    assert_eq!(whole["datasets"][0]["dataset"], ORDERS);
    assert_eq!(whole["datasets"][0]["digest"], digest(lines.iter().map(String::as_str)));
    assert_eq!(whole["digest"], digest(lines.iter().map(String::as_str)));
    let since = read(&shop, &format!("after={between}&until=now")).await;
    let part = proof(&format!("from={between}")).await;
    assert_eq!(part["datasets"][0]["digest"], digest(since.iter().map(String::as_str)), "{part}");
    assert_eq!(part["datasets"][0]["changes"], since.len());

    let damage = "UPDATE cadastre_registry.log_chunks SET payload = payload || 'x'
        WHERE last_position = (SELECT min(last_position) FROM cadastre_registry.log_chunks)";
    let registry = shop.cluster.connect("registry").await;
    assert_eq!(registry.execute(damage, &[]).await.unwrap(), 1);
    let broken = proof("").await;
    assert_eq!(broken["ok"], false);
    assert!(broken["broken"]["reason"].as_str().unwrap().contains("checksum"), "{broken}");
    assert!(broken["broken"]["chunk"].is_string());
    // It is said wherever one looks, and by everyone who reads it.
    let (status, ready) = answer(shop.get("/readyz")).await;
    assert!(status == 503 && ready.to_string().contains("checksum"), "{ready}");
    let metrics = shop.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("cadastre_log_broken_chunks_total"), "{metrics}");
}
