//! What the owner makes of its tables, as the feed and the registry tell it.

use serde_json::{Value, json};

use super::{Shop, rejected};
use crate::support::{WAIT, eventually};

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

async fn graphql(shop: &Shop, query: &str) -> Value {
    let request = shop.server.client().post(shop.server.at("/graphql"));
    let response = request.json(&json!({ "query": query })).send().await.unwrap();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer.get("errors"), None, "{answer}");
    answer["data"].clone()
}

/// What GraphQL answers once it is as expected.
async fn comes_to(shop: &Shop, query: &str, expected: &Value) {
    let last = std::cell::RefCell::new(Value::Null);
    let as_expected = async || {
        let answer = graphql(shop, query).await;
        let found = (answer == *expected).then_some(());
        last.replace(answer);
        found
    };
    let waited = tokio::time::timeout(WAIT, eventually(WAIT * 2, as_expected)).await;
    assert!(waited.is_ok(), "{} is not {expected}", last.borrow());
}

#[tokio::test]
async fn a_renamed_table_is_the_same_dataset_under_either_name() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(
            "ALTER TABLE orders RENAME TO purchases; INSERT INTO purchases VALUES (10, 'a')",
        )
        .await
        .unwrap();
    comes_to(
        &shop,
        "{ dataset(name: \"shop.public.purchases\") { name aliases state
             columns { name type notNull key position }
             schemaHistory(first: 1) { nodes {
               version command serviceName role difference compatibility table { table } } } } }",
        &json!({"dataset": {
            "name": "shop.public.orders", "aliases": ["shop.public.purchases"], "state": "LIVE",
            "columns": [
                {"name": "id", "type": "integer", "notNull": true, "key": true, "position": 1},
                {"name": "status", "type": "text", "notNull": false, "key": false, "position": 2},
            ],
            "schemaHistory": {"nodes": [{
                "version": 2, "command": "ALTER TABLE", "serviceName": "orders",
                "role": "orders_app", "compatibility": "COMPATIBLE",
                "difference": {"table": {"from": {"schema": "public", "table": "orders"},
                                         "to": {"schema": "public", "table": "purchases"}}},
                "table": {"table": "purchases"}}]},
        }}),
    )
    .await;
    for name in ["shop.public.orders", "shop.public.purchases"] {
        let events = shop.changes(name, 2).await;
        assert_eq!(events[0]["schema"]["kind"], "renamed");
        assert_eq!(events[1]["dataset"], "shop.public.orders");
        assert_eq!(events[1]["source"]["table"], "purchases");
    }
    // It is guarded as it was, and the manifest that names it as before still changes it.
    let intruder = shop.session("billing_app").await;
    let insert = "INSERT INTO purchases VALUES (11, 'x')";
    rejected(insert, intruder.batch_execute(insert).await);
    for manifest in [
        shop.manifest("observe"),
        shop.manifest("enforce").replace("shop.public.orders:", "shop.public.purchases:"),
    ] {
        let (status, answer) = shop.apply(&manifest).await;
        assert_eq!(status, 200, "{answer}");
        let outcome = intruder.batch_execute("BEGIN; UPDATE purchases SET status = 'y'").await;
        assert_eq!(outcome.is_ok(), manifest.contains("observe"), "{outcome:?}");
        intruder.batch_execute("ROLLBACK").await.unwrap();
    }
    comes_to(
        &shop,
        "{ datasets { nodes { name } } }",
        &json!({"datasets": {"nodes": [{"name": "shop.public.invoices"},
            {"name": "shop.public.orders"}, {"name": "shop.public.parts"}]}}),
    )
    .await;
}

#[tokio::test]
async fn a_dropped_table_is_not_forgotten_and_guarded_again_when_it_is_back() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    owner.batch_execute("DROP TABLE orders").await.unwrap();
    let query = "{ dataset(name: \"shop.public.orders\") { state guard { state }
                   owner { name } schemaHistory { nodes { version } } } }";
    let there = |state: &str, guard: &str, versions: &[u32]| {
        let versions: Vec<Value> = versions.iter().map(|it| json!({"version": it})).collect();
        json!({"dataset": {"state": state, "guard": {"state": guard}, "owner": {"name": "orders"},
                           "schemaHistory": {"nodes": versions}}})
    };
    comes_to(&shop, query, &there("DROPPED", "DROPPED", &[1])).await;
    // What else is declared can be changed meanwhile.
    let manifest = |team: &str| {
        let billing = format!("{{ team: {team}, roles: {{ shop: [billing_app] }} }}");
        shop.manifest("enforce").replace("{ roles: { shop: [billing_app] } }", &billing)
    };
    let (status, answer) = shop.apply(&manifest("finance")).await;
    assert_eq!(status, 200, "{answer}");

    owner
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, status text);
             GRANT ALL ON orders TO billing_app",
        )
        .await
        .unwrap();
    // Any change of the registry makes the reconciler look, not only its timer.
    let (status, answer) = shop.apply(&manifest("money")).await;
    assert_eq!(status, 200, "{answer}");
    comes_to(&shop, query, &there("LIVE", "INSTALLED", &[2, 1])).await;
    let intruder = shop.session("billing_app").await;
    let insert = "INSERT INTO orders VALUES (1, 'x')";
    rejected(insert, intruder.batch_execute(insert).await);
    owner.batch_execute("INSERT INTO orders VALUES (1, 'back')").await.unwrap();
    let events = shop.changes("shop.public.orders", 3).await;
    let dropped = json!(["dropped", null, null]);
    assert_eq!(told(&events[..1]), [dropped]);
    assert_eq!(events[1]["schema"]["kind"], "recreated");
    assert_eq!(events[2]["schema_version"], 2);
}

#[tokio::test]
async fn tables_that_nobody_registered_are_reported_until_somebody_does() {
    let shop = Shop::governed("enforce").await;
    let billing = shop.session("billing_app").await;
    billing
        .batch_execute(
            "CREATE TABLE made (id int PRIMARY KEY);
             CREATE TABLE copied AS SELECT 1 AS id;
             SELECT 1 AS id INTO selected;
             CREATE TEMP TABLE passing (id int);
             CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE piece PARTITION OF whole FOR VALUES FROM (0) TO (9);
             CREATE TABLE gone (id int); DROP TABLE gone;
             ALTER TABLE copied RENAME TO renamed",
        )
        .await
        .unwrap();
    let query = "{ unownedTables(source: \"shop\") { nodes {
                   schema table command serviceName role } } }";
    let expected = |tables: &[(&str, &str)]| {
        let nodes: Vec<Value> = tables
            .iter()
            .map(|(table, command)| {
                json!({"schema": "public", "table": table, "command": command,
                       "serviceName": "billing", "role": "billing_app"})
            })
            .collect();
        json!({"unownedTables": {"nodes": nodes}})
    };
    let unowned = [
        ("made", "CREATE TABLE"),
        ("renamed", "CREATE TABLE AS"),
        ("selected", "SELECT INTO"),
        ("whole", "CREATE TABLE"),
    ];
    comes_to(&shop, query, &expected(&unowned)).await;
    let metrics = shop.server.client().get(shop.server.at("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let gauge = "cadastre_registry_unowned_tables{source=\"shop\"} 4";
    assert!(metrics.contains(gauge), "{metrics}");
    let manifest =
        format!("{}  shop.public.made: {{ owner: billing }}\n", shop.manifest("enforce"));
    let (status, answer) = shop.apply(&manifest).await;
    assert_eq!(status, 200, "{answer}");
    comes_to(&shop, query, &expected(&unowned[1..])).await;
}

#[tokio::test]
async fn a_foreign_key_of_another_service_is_a_coupling_not_an_offence() {
    let shop = Shop::governed("enforce").await;
    let billing = shop.session("billing_app").await;
    billing
        .batch_execute(
            "ALTER TABLE invoices ADD COLUMN order_id int;
             ALTER TABLE invoices ADD CONSTRAINT of_order FOREIGN KEY (order_id) REFERENCES orders",
        )
        .await
        .unwrap();
    let query = "{ dataset(name: \"shop.public.orders\") { couplings {
                   from { schema table } constraint serviceName role } } }";
    let coupling = json!({"from": {"schema": "public", "table": "invoices"},
        "constraint": "of_order", "serviceName": "billing", "role": "billing_app"});
    comes_to(&shop, query, &json!({"dataset": {"couplings": [coupling]}})).await;
    billing.batch_execute("ALTER TABLE invoices DROP CONSTRAINT of_order").await.unwrap();
    comes_to(&shop, query, &json!({"dataset": {"couplings": []}})).await;
    assert!(shop.violations(0).await.is_empty());
}
