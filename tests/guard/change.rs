//! Changing what is guarded: modes, roles, names, locks, and all or nothing.

use std::time::Duration;

use super::uninstall::small_shop;
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

#[tokio::test]
async fn a_partition_has_the_owner_of_the_table_it_belongs_to() {
    let shop = Shop::ungoverned().await;
    let part = |owner: &str| {
        format!("{}  shop.public.parts_low: {{ owner: {owner} }}\n", shop.manifest("enforce"))
    };
    let (status, answer) = shop.apply(&part("billing")).await;
    assert_eq!(status, 422, "{answer}");
    let told = "it is a partition of \\\"shop.public.parts\\\", which service \\\"orders\\\" owns";
    assert!(answer.contains(told), "{answer}");
    assert_eq!(shop.apply(&part("orders")).await.0, 200);
    // Nor can one of them be handed over alone.
    let alone = part("orders").replace("parts_low: { owner: orders", "parts_low: { owner: billing");
    let (status, answer) = shop.apply(&alone).await;
    assert_eq!(status, 422, "{answer}");
    let insert = "INSERT INTO parts VALUES (3)";
    rejected(insert, shop.session("billing_app").await.batch_execute(insert).await);
    shop.session("orders_app").await.batch_execute(insert).await.unwrap();
}

#[tokio::test]
async fn sources_of_one_cluster_come_in_one_manifest_and_hold_up_no_writers_meanwhile() {
    let shop = small_shop().await;
    let sources = ["ledger", "shop", "stock"];
    for database in ["ledger", "stock"] {
        shop.cluster.create_database(database).await;
        let session = shop.cluster.connect(database).await;
        let table = "CREATE TABLE orders (id int PRIMARY KEY, status text); \
                     ALTER TABLE orders OWNER TO orders_app; GRANT ALL ON orders TO billing_app";
        session.batch_execute(table).await.unwrap();
    }
    let mut manifest = "apiVersion: cadastre/v1\nsources:\n".to_owned();
    for source in sources {
        let url = shop.cluster.url(source);
        manifest.push_str(&format!("  {source}: {{ url: \"{url}\" }}\n"));
    }
    let roles = sources.map(|source| format!("{source}: [orders_app]")).join(", ");
    manifest.push_str(&format!("services:\n  orders: {{ roles: {{ {roles} }} }}\ndatasets:\n"));
    for source in sources {
        manifest
            .push_str(&format!("  {source}.public.orders: {{ owner: orders, mode: enforce }}\n"));
    }
    // The last of them is locked for long, without holding up the slots. Meanwhile the others let go
    // of their tables again and again.
    let mut slow = shop.cluster.connect("stock").await;
    let held = slow.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE orders IN ROW EXCLUSIVE MODE").await.unwrap();
    let watch = shop.cluster.connect("postgres").await;
    let writer = shop.cluster.connect_as("ledger", "orders_app").await;
    writer.batch_execute("SET lock_timeout = '5s'").await.unwrap();
    let release = async {
        let mut turns = std::collections::BTreeSet::new();
        while turns.len() < 4 {
            let turn = eventually(WAIT, async || {
                let sql = "SELECT xact_start::text FROM pg_stat_activity WHERE datname = 'stock'
                    AND application_name = 'cadastre guard' AND wait_event_type = 'Lock'";
                let waiting = watch.query(sql, &[]).await.unwrap();
                waiting.first().map(|row| row.get::<_, String>(0))
            })
            .await;
            turns.insert(turn);
            let write = "INSERT INTO orders SELECT coalesce(max(id), 0) + 1 FROM orders";
            writer.batch_execute(write).await.unwrap();
        }
        held.commit().await.unwrap();
    };
    let ((status, answer), ()) = tokio::join!(shop.apply(&manifest), release);
    assert_eq!(status, 200, "{answer}");
    for source in sources {
        let intruder = shop.cluster.connect_as(source, "billing_app").await;
        rejected(source, intruder.batch_execute("DELETE FROM orders").await);
    }
}
