//! Who wrote it, as the feed says.

use serde_json::{Value, json};

use super::Shop;
use crate::support::{WAIT, eventually};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Service, role and trace of each change.
fn writers(changes: &[Value]) -> Vec<Value> {
    changes
        .iter()
        .map(|change| {
            json!([change["after"]["status"], change["writer"]["service"], change["traceparent"]])
        })
        .collect()
}

#[tokio::test]
async fn an_observed_write_passes_is_recorded_and_bears_its_writers_name() {
    let shop = Shop::governed("observe").await;
    let billing = shop.session("billing_app").await;
    billing
        .batch_execute(&format!(
            "SET cadastre.traceparent = '{TRACE}'; BEGIN; \
             UPDATE orders SET status = 'seen' WHERE id = 1; DELETE FROM orders WHERE id = 2; COMMIT"
        ))
        .await
        .unwrap();
    let violations = shop.violations(1).await;
    assert_eq!(
        violations,
        [["observed", "update", "shop.public.orders", "billing", "billing_app"]]
    );
    for change in shop.changes("shop.public.orders", 2).await {
        let billing = json!({"service": "billing", "role": "billing_app", "verified": true});
        assert_eq!(change["writer"], billing);
        assert_eq!(change["traceparent"], TRACE);
    }
    // Once for the whole transaction, not for each statement.
    assert_eq!(shop.violations(1).await.len(), 1);
}

#[tokio::test]
async fn several_writers_of_one_transaction_are_told_apart() {
    let shop = Shop::governed("observe").await;
    let pooler = shop.session("pooler").await;
    pooler
        .batch_execute(
            "BEGIN; SET LOCAL ROLE orders_app; UPDATE orders SET status = 'o1' WHERE id = 1; \
             SET LOCAL ROLE billing_app; UPDATE orders SET status = 'b1' WHERE id = 1; \
             INSERT INTO invoices VALUES (1, 1); \
             SET LOCAL ROLE orders_app; UPDATE orders SET status = 'o2' WHERE id = 1; \
             SET LOCAL ROLE billing_app; UPDATE orders SET status = 'b2' WHERE id = 2; COMMIT",
        )
        .await
        .unwrap();
    let changes = shop.changes("shop.public.orders", 4).await;
    assert_eq!(
        writers(&changes),
        [
            json!(["o1", "orders", null]),
            json!(["b1", "billing", null]),
            json!(["o2", "orders", null]),
            json!(["b2", "billing", null]),
        ]
    );
    let invoice = &shop.changes("shop.public.invoices", 1).await[0];
    assert_eq!(invoice["writer"]["service"], "billing");
}

#[tokio::test]
async fn what_a_savepoint_took_back_is_said_again() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(&format!(
            "BEGIN; SET LOCAL cadastre.traceparent = '{TRACE}'; \
             SAVEPOINT s; UPDATE orders SET status = 'gone' WHERE id = 1; ROLLBACK TO s; \
             UPDATE orders SET status = 'kept' WHERE id = 1; \
             UPDATE orders SET status = 'too' WHERE id = 2; COMMIT; \
             UPDATE orders SET status = 'plain' WHERE id = 2"
        ))
        .await
        .unwrap();
    let changes = shop.changes("shop.public.orders", 3).await;
    assert_eq!(
        writers(&changes),
        [
            json!(["kept", "orders", TRACE]),
            json!(["too", "orders", TRACE]),
            json!(["plain", "orders", null]),
        ]
    );
}

#[tokio::test]
async fn a_trace_context_that_is_none_is_left_out() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    let none = [
        "nonsense",
        "\"}{",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-012",
        "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    for trace in none {
        owner
            .batch_execute(&format!(
                "SET cadastre.traceparent = '{trace}'; UPDATE orders SET status = 'x' WHERE id = 1"
            ))
            .await
            .unwrap();
    }
    for change in shop.changes("shop.public.orders", none.len()).await {
        assert_eq!(change.get("traceparent"), None, "{change}");
        assert_eq!(change["writer"]["service"], "orders");
    }
}

#[tokio::test]
async fn an_owner_who_traces_does_not_pay_for_taking_the_call_stack_apart() {
    let shop = Shop::governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser.batch_execute("ALTER DATABASE shop SET track_functions = 'all'").await.unwrap();
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(&format!(
            "SET cadastre.traceparent = '{TRACE}'; UPDATE orders SET status = 'x' WHERE id = 1"
        ))
        .await
        .unwrap();
    // What a session has called is counted by when it has ended.
    drop(owner);
    let calls = "SELECT funcname::text FROM pg_stat_user_functions
                 WHERE schemaname = 'cadastre' AND calls > 0 ORDER BY 1";
    let called = eventually(WAIT, async || {
        let rows = superuser.query(calls, &[]).await.unwrap();
        let called: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        called.iter().any(|name| name == "note").then_some(called)
    })
    .await;
    assert!(!called.iter().any(|name| name == "called_by"), "{called:?}");
}
