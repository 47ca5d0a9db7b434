//! Breaking glass: for a time, by an admin's leave, on record, and over by itself.

use serde_json::{Value, json};

use super::{Shop, refused, rejected};
use crate::support::{WAIT, eventually};

const INSERT: &str = "INSERT INTO orders (id) SELECT coalesce(max(id), 0) + 1 FROM orders";

impl Shop {
    async fn graphql(&self, query: &str, variables: Value) -> Value {
        let request = self.server.client().post(self.server.at("/graphql"));
        let body = json!({ "query": query, "variables": variables });
        let answer: Value = request.json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].clone()
    }

    /// Lets billing write the orders until `seconds` from now.
    async fn break_glass(&self, seconds: i64) -> Value {
        let expires_at = chrono::Utc::now() + chrono::TimeDelta::seconds(seconds);
        self.grant(json!({"dataset": "shop.public.orders", "service": "billing",
            "reason": "orders is down", "expiresAt": expires_at}))
            .await
    }

    async fn grant(&self, input: Value) -> Value {
        let query = "mutation($input: BreakGlassGrantInput!) { breakGlassGrant(input: $input) {
            id dataset { breakGlass { id active reason grantedBy service { name } revokedBy } }
            userErrors { code message field } } }";
        self.graphql(query, json!({ "input": input })).await["breakGlassGrant"].clone()
    }
}

#[tokio::test]
async fn a_service_writes_the_table_of_another_for_a_time_and_that_is_on_record() {
    let shop = Shop::governed("enforce").await;
    let billing = shop.session("billing_app").await;
    let stranger = shop.session("stranger").await;
    rejected("before", billing.batch_execute(INSERT).await);
    let granted = shop.break_glass(3_600).await;
    let id = granted["id"].clone();
    assert_eq!(
        granted,
        json!({"id": id, "userErrors": [], "dataset": {"breakGlass": [{"id": id, "active": true,
            "reason": "orders is down", "grantedBy": "admin", "service": {"name": "billing"},
            "revokedBy": null}]}})
    );
    billing.batch_execute(INSERT).await.unwrap();
    rejected("another", stranger.batch_execute(INSERT).await);
    let other = "INSERT INTO parts VALUES (1)";
    rejected("another dataset", billing.batch_execute(other).await);
    let ddl = "ALTER TABLE orders ADD COLUMN note text";
    shop.session("billing_app").await.batch_execute(ddl).await.unwrap_err();

    let change = &shop.changes("shop.public.orders", 1).await[0];
    assert_eq!(
        change["writer"],
        json!({"service": "billing", "role": "billing_app", "verified": true})
    );
    let used = shop.violations(2).await;
    assert_eq!(used[1], ["break_glass", "insert", "shop.public.orders", "billing", "billing_app"]);

    let query = "mutation($id: ID!) { breakGlassRevoke(input: {id: $id}) {
        dataset { breakGlass { active revokedBy } } userErrors { code } } }";
    let revoked = shop.graphql(query, json!({ "id": id })).await;
    let expected = json!({"dataset": {"breakGlass": [{"active": false, "revokedBy": "admin"}]},
        "userErrors": []});
    assert_eq!(revoked["breakGlassRevoke"], expected);
    rejected("taken back", billing.batch_execute(INSERT).await);
    let again = shop.graphql(query, json!({ "id": id })).await;
    assert_eq!(again["breakGlassRevoke"]["userErrors"][0]["code"], "NOT_FOUND", "{again}");
}

#[tokio::test]
async fn a_permission_ends_by_itself_while_the_server_is_down() {
    let mut shop = Shop::governed("enforce").await;
    let billing = shop.session("billing_app").await;
    let granted = shop.break_glass(3_600).await;
    assert_eq!(granted["userErrors"], json!([]), "{granted}");
    billing.batch_execute(INSERT).await.unwrap();
    shop.server.kill().await;
    billing.batch_execute(INSERT).await.unwrap();
    // Nobody but the clock ends it: it is brought near its end, and then waited for.
    let hasten =
        "UPDATE cadastre.break_glass SET expires_at = clock_timestamp() + interval '1 second'";
    let admin = shop.session("postgres").await;
    admin.batch_execute(hasten).await.unwrap();
    eventually(WAIT, async || {
        billing.batch_execute(INSERT).await.err().map(|error| rejected("over", Err::<(), _>(error)))
    })
    .await;
    assert_eq!(admin.query("SELECT FROM cadastre.break_glass", &[]).await.unwrap().len(), 1);
    rejected("over for good", billing.batch_execute(INSERT).await);
}

#[tokio::test]
async fn what_cannot_be_permitted_is_refused_with_what_can() {
    let shop = Shop::governed("enforce").await;
    let soon = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    let right = json!({"dataset": "shop.public.orders", "service": "billing", "reason": "why",
        "expiresAt": soon});
    for (change, code, field) in [
        (json!({ "service": "orders" }), "INVALID", json!(["input", "service"])),
        (json!({ "service": "nobody" }), "NOT_FOUND", json!([])),
        (json!({ "dataset": "shop.public.none" }), "NOT_FOUND", json!([])),
        (json!({ "reason": " " }), "INVALID", json!(["input", "reason"])),
        (json!({ "expiresAt": "2001-01-01T00:00:00Z" }), "INVALID", json!(["input", "expiresAt"])),
        (
            json!({ "expiresAt": soon + chrono::TimeDelta::hours(24) }),
            "INVALID",
            json!(["input", "expiresAt"]),
        ),
    ] {
        let mut input = right.clone();
        input.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let refused = shop.grant(input).await;
        let error = &refused["userErrors"][0];
        assert_eq!((&error["code"], &error["field"]), (&json!(code), &field), "{change} {refused}");
    }
    let admin = shop.session("postgres").await;
    assert!(admin.query("SELECT FROM cadastre.break_glass", &[]).await.unwrap().is_empty());
    // What somebody put there by hand is no permission for long.
    let forged = "INSERT INTO cadastre.break_glass VALUES
        ('x', 'shop.public.orders', 'billing', 'forged', 'infinity')";
    shop.session("billing_app").await.batch_execute(forged).await.unwrap_err();
    admin.batch_execute(forged).await.unwrap();
    shop.grant(right).await;
    let billing = shop.session("billing_app").await;
    billing.batch_execute(INSERT).await.unwrap();
    let held = admin.query("SELECT id FROM cadastre.break_glass", &[]).await.unwrap();
    assert!(held.len() == 1 && held[0].get::<_, &str>(0) != "x");
}

#[tokio::test]
async fn in_lockdown_a_permission_lends_what_was_taken_and_no_more_than_for_its_time() {
    let mut shop = Shop::ungoverned_with(&["--guard-interval", "200ms"]).await;
    let admin = shop.session("postgres").await;
    // What it had by PUBLIC, and what it never had.
    let grants = "REVOKE ALL ON orders FROM billing_app; GRANT SELECT, UPDATE ON orders TO billing_app; \
                  GRANT INSERT ON orders TO PUBLIC";
    admin.batch_execute(grants).await.unwrap();
    let acl = async || {
        let sql = "SELECT relacl::text FROM pg_class WHERE relname = 'orders'";
        admin.query_one(sql, &[]).await.unwrap().get::<_, String>(0)
    };
    let before = acl().await;
    assert_eq!(shop.apply(&shop.manifest("lockdown")).await.0, 200);
    let locked = acl().await;
    let (billing, stranger) = (shop.session("billing_app").await, shop.session("stranger").await);
    let update = "UPDATE orders SET status = 'x' WHERE id = 1";
    for statement in [INSERT, update] {
        assert!(refused(billing.batch_execute(statement).await).1.starts_with("permission denied"));
    }
    let granted = shop.break_glass(3_600).await;
    assert_eq!(granted["userErrors"], json!([]), "{granted}");
    billing.batch_execute(INSERT).await.unwrap();
    billing.batch_execute(update).await.unwrap();
    assert!(refused(billing.batch_execute("DELETE FROM orders").await).1.starts_with("permission"));
    assert!(refused(stranger.batch_execute(update).await).1.starts_with("permission denied"));
    let used = shop.violations(2).await;
    assert!(used.iter().all(|it| it[0] == "break_glass" && it[3] == "billing"), "{used:?}");
    // It stays, through every look, as long as it holds.
    assert_eq!(shop.apply(&shop.manifest("lockdown")).await.0, 200);
    billing.batch_execute(update).await.unwrap();

    // Its time ends while nobody is there to take anything back: the guard answers then.
    shop.server.kill().await;
    let end = "UPDATE cadastre.break_glass SET expires_at = clock_timestamp()";
    admin.batch_execute(end).await.unwrap();
    rejected(update, billing.batch_execute(update).await);
    let end = "UPDATE cadastre_registry.break_glass SET expires_at = granted_at + interval '1 microsecond'";
    shop.cluster.connect("registry").await.batch_execute(end).await.unwrap();
    shop.server.restart().await;
    eventually(WAIT, async || (acl().await == locked).then_some(())).await;
    assert!(refused(billing.batch_execute(update).await).1.starts_with("permission denied"));

    // Taken back before its end, the privileges go with it.
    let granted = shop.break_glass(3_600).await;
    billing.batch_execute(update).await.unwrap();
    let query = "mutation($id: ID!) { breakGlassRevoke(input: {id: $id}) { userErrors { code } } }";
    shop.graphql(query, json!({ "id": granted["id"] })).await;
    assert_eq!(acl().await, locked);
    assert_eq!(shop.apply(&shop.manifest("enforce")).await.0, 200);
    assert_eq!(acl().await, before);
}
