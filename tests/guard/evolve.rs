//! What the owner makes of its tables, as the feed and the registry tell it.

use serde_json::{Value, json};

use super::Shop;

/// The events with what matters here: the word, the version, and what is new or the row.
fn told(events: &[Value]) -> Vec<Value> {
    let tell = |event: &Value| match event.get("schema") {
        Some(schema) => json!([schema["kind"], schema["version"], schema["difference"]]),
        None => json!([event["op"], event["schema_version"], event["after"]]),
    };
    events.iter().map(tell).collect()
}

#[tokio::test]
async fn the_feed_tells_of_each_change_of_the_table_in_order_with_the_rows() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(
            "INSERT INTO orders VALUES (10, 'a');
             ALTER TABLE orders ADD COLUMN note text NOT NULL DEFAULT '-';
             INSERT INTO orders VALUES (11, 'b', 'n');
             BEGIN;
             ALTER TABLE orders DROP COLUMN status;
             INSERT INTO orders VALUES (12, 'm');
             ALTER TABLE orders ADD COLUMN status text;
             INSERT INTO orders VALUES (13, 'm', 'again');
             COMMIT;
             CREATE INDEX ON orders (note);
             COMMENT ON TABLE orders IS 'what a row is';
             BEGIN; ALTER TABLE orders ADD COLUMN never int; ROLLBACK;
             ALTER TABLE orders ALTER COLUMN id TYPE bigint;
             ALTER TABLE orders RENAME COLUMN note TO remark;
             INSERT INTO orders VALUES (14, 'r', 's')",
        )
        .await
        .unwrap();
    let events = shop.changes("shop.public.orders", 10).await;
    let retyped = json!({"retyped": [{"column": "id", "from": "integer", "to": "bigint"}]});
    assert_eq!(
        told(&events),
        [
            json!(["c", 1, {"id": 10, "status": "a"}]),
            json!(["altered", 2, {"added": ["note"]}]),
            json!(["c", 2, {"id": 11, "status": "b", "note": "n"}]),
            json!(["altered", 3, {"removed": ["status"]}]),
            json!(["c", 3, {"id": 12, "note": "m"}]),
            json!(["altered", 4, {"added": ["status"]}]),
            json!(["c", 4, {"id": 13, "note": "m", "status": "again"}]),
            json!(["altered", 5, retyped]),
            json!(["altered", 6, {"renamed": [{"from": "note", "to": "remark"}]}]),
            json!(["c", 6, {"id": 14, "remark": "r", "status": "s"}]),
        ]
    );
    let version = &events[3]["schema"];
    assert_eq!(version["compatibility"], "breaking");
    assert_eq!(version["reasons"], json!(["column \"status\" was removed"]));
    assert_eq!(version["by"], json!({"service": "orders", "role": "orders_app"}));
    let positions: Vec<&str> =
        events.iter().map(|event| event["position"].as_str().unwrap()).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
}
