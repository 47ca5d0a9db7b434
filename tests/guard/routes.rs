//! Ways to write a governed table, beside the matrix: what the error says, who is named.

use super::{Shop, rejected};

#[tokio::test]
async fn the_error_names_table_owner_and_caller() {
    let shop = Shop::governed("enforce").await;
    let intruder = shop.session("billing_app").await;
    let error = intruder.execute("DELETE FROM orders", &[]).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(
        error.message(),
        "cadastre: DELETE on table \"public.orders\" rejected: it is owned by service \"orders\"; \
         caller is service \"billing\" (role \"billing_app\", login \"billing_app\")"
    );
    assert_eq!((error.schema(), error.table()), (Some("public"), Some("orders")));
    assert!(error.hint().unwrap().contains("subscribe to the feed of \"shop.public.orders\""));
    let stranger = shop.session("stranger").await;
    let error = stranger.execute("DELETE FROM orders", &[]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("caller is no registered service"));
}

#[tokio::test]
async fn partitions_are_guarded_directly_and_through_their_root() {
    let shop = Shop::governed("enforce").await;
    let (owner, intruder) = (shop.session("orders_app").await, shop.session("billing_app").await);
    for table in ["parts", "parts_low"] {
        let insert = format!("INSERT INTO {table} VALUES (5)");
        rejected(&insert, intruder.batch_execute(&insert).await);
        owner.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).await.unwrap();
    }
    // A row that moves to another partition is still the owner's.
    owner
        .batch_execute("INSERT INTO parts VALUES (7); UPDATE parts SET id = 150 WHERE id = 7")
        .await
        .unwrap();
    let violations = shop.violations(2).await;
    assert!(violations.iter().all(|violation| violation[2] == "shop.public.parts"));
}

#[tokio::test]
async fn a_pooler_writes_as_whom_it_has_become() {
    let shop = Shop::governed("enforce").await;
    let pooler = shop.session("pooler").await;
    pooler
        .batch_execute("SET ROLE orders_app; UPDATE orders SET status = 'pooled' WHERE id = 1")
        .await
        .unwrap();
    let as_billing = "SET ROLE billing_app; UPDATE orders SET status = 'x' WHERE id = 1";
    rejected(as_billing, pooler.batch_execute(as_billing).await);
}

#[tokio::test]
async fn a_function_of_the_owner_is_its_interface() {
    let shop = Shop::governed("enforce").await;
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(
            "CREATE FUNCTION pay(int) RETURNS void LANGUAGE sql SECURITY DEFINER \
             AS 'UPDATE orders SET status = ''paid'' WHERE id = $1'",
        )
        .await
        .unwrap();
    let billing = shop.session("billing_app").await;
    billing.batch_execute("SELECT pay(1)").await.unwrap();
    let change = &shop.changes("shop.public.orders", 1).await[0];
    assert_eq!(change["writer"]["service"], "orders");
}

#[tokio::test]
async fn replica_mode_does_not_silence_the_guard_and_a_superuser_is_never_unseen() {
    let shop = Shop::governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "SET session_replication_role = replica; UPDATE orders SET status = 'su' WHERE id = 1",
        )
        .await
        .unwrap();
    let violations = shop.violations(1).await;
    assert_eq!(violations[0][..3], ["privileged", "update", "shop.public.orders"]);
    let change = &shop.changes("shop.public.orders", 1).await[0];
    assert_eq!(change["writer"]["service"], serde_json::Value::Null);
    assert!(change["writer"]["role"].is_string());
}

#[tokio::test]
async fn the_shape_of_a_table_is_its_owners_too() {
    let shop = Shop::governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    // As in many grown databases, one service may act for the role that made another's table.
    superuser.batch_execute("GRANT orders_app TO stranger").await.unwrap();
    superuser
        .batch_execute("CREATE ROLE makers; GRANT makers TO orders_app, billing_app")
        .await
        .unwrap();
    superuser.batch_execute("ALTER TABLE orders OWNER TO makers").await.unwrap();
    let (owner, intruder) = (shop.session("orders_app").await, shop.session("billing_app").await);
    for ddl in [
        "ALTER TABLE orders ADD COLUMN evil int",
        "ALTER TABLE orders RENAME TO loot",
        "ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        "DROP TRIGGER _cadastre_guard ON orders",
        "CREATE INDEX ON orders (status)",
        "DROP TABLE orders",
    ] {
        rejected(ddl, intruder.batch_execute(ddl).await);
    }
    owner.batch_execute("ALTER TABLE orders ADD COLUMN note text").await.unwrap();
    for ddl in [
        "ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        "DROP TRIGGER _cadastre_guard ON orders",
    ] {
        rejected(ddl, owner.batch_execute(ddl).await);
    }
    let mine = shop.violations(9).await;
    let by_billing: Vec<&str> = mine
        .iter()
        .filter(|violation| violation[4] == "billing_app")
        .map(|violation| violation[1].as_str())
        .collect();
    assert_eq!(
        by_billing,
        ["alter table", "alter table", "alter table", "drop trigger", "create index", "drop table"]
    );
}
