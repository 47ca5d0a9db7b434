//! Changing what is guarded: modes, roles, names, locks, and all or nothing.

use std::time::Duration;

use super::{Shop, rejected};
use crate::support::{WAIT, eventually};

#[tokio::test]
async fn a_mode_changes_and_the_guard_with_it() {
    let shop = Shop::governed("observe").await;
    let billing = shop.session("billing_app").await;
    let update = "UPDATE orders SET status = 'x' WHERE id = 1";
    billing.batch_execute(update).await.unwrap();
    assert_eq!(shop.apply(&shop.manifest("enforce")).await.0, 200);
    rejected(update, billing.batch_execute(update).await);
    assert_eq!(shop.apply(&shop.manifest("observe")).await.0, 200);
    billing.batch_execute(update).await.unwrap();
}

#[tokio::test]
async fn a_role_taken_from_a_service_writes_for_it_no_longer() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    let update = "UPDATE orders SET status = 'x' WHERE id = 1";
    owner.batch_execute(update).await.unwrap();
    let manifest = shop.manifest("enforce").replace("[orders_app]", "[stranger]");
    assert_eq!(shop.apply(&manifest).await.0, 200);
    rejected(update, owner.batch_execute(update).await);
    shop.session("stranger").await.batch_execute(update).await.unwrap();
}

#[tokio::test]
async fn a_change_of_guard_waits_in_short_turns_and_gives_up_in_time() {
    let shop = Shop::governed("observe").await;
    let mut slow = shop.session("orders_app").await;
    let transaction = slow.transaction().await.unwrap();
    transaction.batch_execute("UPDATE orders SET status = 'slow' WHERE id = 1").await.unwrap();
    let (status, answer) = shop.apply(&shop.manifest("enforce")).await;
    assert!(matches!(status, 409 | 503), "{status}: {answer}");
    assert!(answer.contains("\"busy\""), "{answer}");

    // While it waits again, a writer gets its turn; and once the slow one ends, the change is made.
    let manifest = shop.manifest("enforce");
    let writer = shop.session("orders_app").await;
    let meanwhile = async {
        writer
            .batch_execute(
                "SET statement_timeout = '2s'; UPDATE orders SET status = 'y' WHERE id = 2",
            )
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    };
    let ((status, answer), ()) = tokio::join!(shop.apply(&manifest), meanwhile);
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_behind() {
    let shop = Shop::ungoverned().await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute("CREATE TABLE heap (id int); CREATE VIEW looks AS SELECT * FROM orders")
        .await
        .unwrap();
    let manifest = format!(
        "{}  shop.public.heap: {{ owner: orders }}\n  shop.public.looks: {{ owner: orders }}\n  \
         shop.public.nothing: {{ owner: orders }}\n",
        shop.manifest("enforce").replace("[billing_app]", "[nobody_at_all]")
    );
    let (status, answer) = shop.apply(&manifest).await;
    assert_eq!(status, 422, "{answer}");
    for told in [
        "ALTER TABLE \\\"public\\\".\\\"heap\\\" REPLICA IDENTITY FULL",
        "\\\"public\\\".\\\"looks\\\" is not a table",
        "\\\"public\\\".\\\"nothing\\\" does not exist",
        "CREATE ROLE \\\"nobody_at_all\\\" LOGIN",
    ] {
        assert!(answer.contains(told), "{told} in {answer}");
    }
    let left = superuser
        .query_one(
            "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%cadastre%'), \
                    (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'cadastre%'), \
                    (SELECT count(*) FROM pg_replication_slots), \
                    (SELECT count(*) FROM pg_publication), \
                    (SELECT count(*) FROM pg_namespace WHERE nspname = 'cadastre')",
            &[],
        )
        .await
        .unwrap();
    for column in 0..5 {
        assert_eq!(left.get::<_, i64>(column), 0, "column {column}");
    }
    let exported = shop.server.client().get(shop.server.at("/v1/manifest")).send().await.unwrap();
    assert!(!exported.text().await.unwrap().contains("shop"), "the registry knows nothing either");
}

#[tokio::test]
async fn a_guard_that_was_taken_away_comes_back_by_itself() {
    let shop = Shop::governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "SET session_replication_role = replica; ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        )
        .await
        .unwrap();
    let billing = shop.session("billing_app").await;
    // Any change of the registry makes the governor look, not only its timer.
    let manifest = shop.manifest("enforce").replace("billing:", "billing: ");
    let manifest = manifest.replace(
        "{ roles: { shop: [billing_app] } }",
        "{ team: finance, roles: { shop: [billing_app] } }",
    );
    assert_eq!(shop.apply(&manifest).await.0, 200);
    eventually(WAIT.max(Duration::from_secs(40)), async || {
        let update = "UPDATE orders SET status = 'x' WHERE id = 1";
        billing.batch_execute(update).await.err().map(drop)
    })
    .await;
}
