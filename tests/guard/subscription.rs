//! Rows that a subscription of PostgreSQL's own logical replication applies to a governed table.

use super::{Shop, version};
use crate::support::{WAIT, eventually};

#[tokio::test]
async fn rows_that_a_subscription_applies_are_guarded_too() {
    let shop = Shop::governed("enforce").await;
    shop.cluster.create_database("upstream").await;
    let upstream = shop.cluster.connect("upstream").await;
    upstream
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, status text); \
             CREATE PUBLICATION upstream FOR TABLE orders",
        )
        .await
        .unwrap();
    upstream
        .batch_execute("SELECT pg_create_logical_replication_slot('upstream', 'pgoutput')")
        .await
        .unwrap();
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION upstream CONNECTION '{}' PUBLICATION upstream \
             WITH (create_slot = false, slot_name = 'upstream', copy_data = false)",
            shop.cluster.url("upstream")
        ))
        .await
        .unwrap();
    let there = async |id: i32| {
        let row = superuser.query_opt("SELECT 1 FROM orders WHERE id = $1", &[&id]).await;
        row.unwrap().map(drop)
    };
    let version = version(&superuser).await;

    // From 16 on, rows are applied as the table's PostgreSQL owner, here a role of its service.
    if version >= 160_000 {
        upstream.batch_execute("INSERT INTO orders VALUES (10, 'owners')").await.unwrap();
        eventually(WAIT, async || there(10).await).await;
        let change = &shop.changes("shop.public.orders", 1).await[0];
        assert_eq!(change["writer"]["service"], "orders");
        let as_subscriber = "ALTER SUBSCRIPTION upstream SET (run_as_owner = true)";
        superuser.batch_execute(as_subscriber).await.unwrap();
    } else {
        upstream.batch_execute("INSERT INTO orders VALUES (10, 'superusers')").await.unwrap();
        eventually(WAIT, async || there(10).await).await;
    }
    // As the subscription's owner, a superuser: recorded, once for the rows of a transaction.
    upstream
        .batch_execute(
            "BEGIN; INSERT INTO orders VALUES (20, 'x'), (21, 'x'); DELETE FROM orders WHERE id = 20; COMMIT",
        )
        .await
        .unwrap();
    eventually(WAIT, async || there(21).await).await;
    let privileged = ["privileged", "insert", "shop.public.orders", "-", "postgres"];
    let expected = if version >= 160_000 { 1 } else { 2 };
    let recorded = shop.violations(expected).await;
    assert_eq!(recorded, vec![privileged.map(str::to_owned); expected]);
    let changes = shop.changes("shop.public.orders", 4).await;
    for change in &changes[1..] {
        assert_eq!(change["writer"]["role"], "postgres", "{change}");
        assert_eq!(change["writer"]["service"], serde_json::Value::Null);
    }

    // As a role that is not the owner's: rejected and recorded, and nothing gets in.
    if version >= 160_000 {
        superuser
            .batch_execute(
                "ALTER SUBSCRIPTION upstream SET (run_as_owner = false, disable_on_error = true); \
                 ALTER TABLE orders OWNER TO stranger",
            )
            .await
            .unwrap();
        upstream.batch_execute("INSERT INTO orders VALUES (30, 'x')").await.unwrap();
        eventually(WAIT, async || {
            let recorded = shop.violations(0).await;
            let rejected = ["rejected", "insert", "shop.public.orders", "-", "stranger"];
            recorded.contains(&rejected.map(str::to_owned)).then_some(())
        })
        .await;
        assert!(there(30).await.is_none());
    }
    // The slot would keep its database from going away with the cluster in order.
    superuser.batch_execute("DROP SUBSCRIPTION upstream").await.unwrap();
}
