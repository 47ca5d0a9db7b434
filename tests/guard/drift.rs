//! Drift: what a superuser changed behind the guard's back is found, told, recorded and mended.

use serde_json::{Value, json};

use super::Shop;
use crate::support::{WAIT, eventually};

/// Quick looks, so that nobody waits for the next.
const OFTEN: [&str; 2] = ["--guard-interval", "200ms"];

impl Shop {
    /// A governed shop that is compared often.
    async fn compared_often(mode: &str) -> Self {
        let shop = Self::ungoverned_with(&OFTEN).await;
        let (status, answer) = shop.apply(&shop.manifest(mode)).await;
        assert_eq!(status, 200, "{answer}");
        shop.sound().await;
        shop
    }

    /// Findings of a kind, the latest first: object, dataset, whether it is still there.
    async fn findings(&self, filter: &str) -> Vec<(String, String, String, bool)> {
        let query = format!(
            "{{ driftFindings(first: 100{filter}) {{ nodes {{ kind object datasetName repairedAt
               firstSeenAt lastSeenAt severity found expected source dataset {{ name }} }} }} }}"
        );
        let answer = self.ask(&query).await;
        let nodes = answer["driftFindings"]["nodes"].as_array().unwrap().clone();
        let text = |node: &Value, name: &str| node[name].as_str().unwrap_or("-").to_owned();
        let finding = |node: &Value| {
            (
                text(node, "kind"),
                text(node, "object"),
                text(node, "datasetName"),
                node["repairedAt"].is_null(),
            )
        };
        // A login of both services is part of the shop; see the test about it.
        nodes.iter().map(finding).filter(|(_, object, ..)| object != "role pooler").collect()
    }

    /// Waits until nothing differs and every guard is vouched for.
    async fn sound(&self) {
        eventually(WAIT, async || {
            let open = self.findings(", open: true").await;
            let answer = self.ask("{ datasets { nodes { guard { state } } } }").await;
            let stands = answer["datasets"]["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .all(|dataset| dataset["guard"]["state"] == "INSTALLED");
            (open.is_empty() && stands).then_some(())
        })
        .await;
    }
}

/// A statement of a superuser, the kind of finding it becomes, and its object.
const TAMPERED: [(&str, &str, &str); 16] = [
    ("ALTER TABLE orders DISABLE TRIGGER _cadastre_guard", "guard_disabled", "public.orders"),
    ("ALTER TABLE orders ENABLE TRIGGER _cadastre_guard", "guard_disabled", "public.orders"),
    ("DROP TRIGGER _cadastre_guard ON parts_low", "guard_missing", "public.parts_low"),
    (
        "CREATE OR REPLACE TRIGGER _cadastre_guard BEFORE INSERT ON orders FOR EACH STATEMENT
         EXECUTE FUNCTION cadastre_guard.guard('shop.public.orders', 'orders', 'cadastre_shop_orders', 'enforce');
         ALTER TABLE orders ENABLE ALWAYS TRIGGER _cadastre_guard",
        "guard_altered",
        "public.orders",
    ),
    (
        "CREATE OR REPLACE FUNCTION cadastre_guard.guard() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN RETURN NULL; END'",
        "object_altered",
        "function cadastre_guard.guard()",
    ),
    (
        "GRANT EXECUTE ON FUNCTION cadastre_guard.guard() TO stranger",
        "object_altered",
        "function cadastre_guard.guard()",
    ),
    (
        "ALTER FUNCTION cadastre.traceparent() RENAME TO elsewhere;
         ALTER FUNCTION cadastre.elsewhere() SET SCHEMA public; DROP FUNCTION public.elsewhere()",
        "object_missing",
        "function cadastre.traceparent()",
    ),
    ("ALTER ROLE cadastre LOGIN", "object_altered", "role cadastre"),
    ("ALTER EVENT TRIGGER cadastre_ddl DISABLE", "event_trigger_altered", "event trigger cadastre_ddl"),
    ("DROP EVENT TRIGGER cadastre_drop", "event_trigger_altered", "event trigger cadastre_drop"),
    (
        "UPDATE cadastre.dataset SET mode = 'observe' WHERE name = 'shop.public.orders'",
        "registration_altered",
        "cadastre.dataset: shop.public.orders",
    ),
    (
        // Their arguments are others from PostgreSQL 17 on.
        "DO $$ DECLARE f regprocedure; BEGIN
           FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
             EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', f);
           END LOOP; END $$",
        "emit_open",
        "pg_logical_emit_message for PUBLIC",
    ),
    (
        "GRANT cadastre_shop_orders TO stranger",
        "membership_altered",
        "role stranger in cadastre_shop_orders",
    ),
    ("GRANT cadastre TO stranger", "membership_altered", "role stranger in cadastre"),
    (
        "ALTER PUBLICATION cadastre_shop SET (publish = 'insert')",
        "publication_altered",
        "publication cadastre_shop",
    ),
    ("ALTER PUBLICATION cadastre_shop DROP TABLE invoices", "unpublished", "public.invoices"),
];

#[tokio::test]
async fn what_was_changed_behind_the_guards_back_is_found_recorded_and_mended() {
    let shop = Shop::compared_often("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    let catalog = shop.catalog().await;
    for (statement, kind, object) in TAMPERED {
        let filter = format!(", kind: \"{kind}\", open: false");
        let mended = async || {
            let found = shop.findings(&filter).await;
            found.iter().filter(|(_, of, ..)| of == object).count()
        };
        let before = mended().await;
        superuser.batch_execute(statement).await.unwrap();
        eventually(WAIT, async || (mended().await > before).then_some(())).await;
        shop.sound().await;
        assert_eq!(shop.catalog().await, catalog, "{statement}");
    }
    let intruder = shop.session("billing_app").await;
    let update = "UPDATE orders SET status = 'x'";
    super::rejected(update, intruder.batch_execute(update).await);
}

#[tokio::test]
async fn what_only_a_person_can_mend_is_reported_once_and_stays() {
    let shop = Shop::compared_often("observe").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "GRANT billing_app TO orders_app;
             CREATE FUNCTION cadastre.mine() RETURNS int LANGUAGE sql RETURN 1;
             DO $$ DECLARE f regprocedure; BEGIN
               FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                 EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO stranger', f);
               END LOOP; END $$;
             ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        )
        .await
        .unwrap();
    // The trigger is mended in observe mode, too; privileges are reported there.
    let reported = [
        ("emit_open", "pg_logical_emit_message for stranger"),
        ("object_foreign", "function cadastre.mine()"),
        ("role_shared", "role orders_app"),
    ];
    eventually(WAIT, async || {
        let mut open = shop.findings(", open: true").await;
        open.sort();
        let open: Vec<(&str, &str)> =
            open.iter().map(|(kind, object, ..)| (kind.as_str(), object.as_str())).collect();
        (open == reported).then_some(())
    })
    .await;
    let repaired = shop.findings(", open: false, kind: \"guard_disabled\"").await;
    assert_eq!(repaired.len(), 1);
    assert_eq!(repaired[0].2, "shop.public.orders");

    let metrics = shop.server.client().get(shop.server.at("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for (kind, count) in [("emit_open", 1), ("object_foreign", 1), ("role_shared", 2)] {
        let gauge =
            format!("cadastre_guard_drift_findings{{source=\"shop\",kind=\"{kind}\"}} {count}");
        assert!(metrics.contains(&gauge), "{gauge} in {metrics}");
    }
    let log = shop.server.log();
    let lines =
        log.lines().filter(|line| line.contains("role orders_app") && line.contains("drift"));
    assert_eq!(lines.count(), 1, "once per change:\n{log}");

    superuser
        .batch_execute(
            "REVOKE billing_app FROM orders_app; DROP FUNCTION cadastre.mine();
             DO $$ DECLARE f regprocedure; BEGIN
               FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                 EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM stranger', f);
               END LOOP; END $$",
        )
        .await
        .unwrap();
    shop.sound().await;
}

#[tokio::test]
async fn a_change_that_passed_while_the_guard_was_off_is_not_vouched_for() {
    let shop = Shop::governed("enforce").await;
    shop.sound().await;
    let owner = shop.session("orders_app").await;
    owner.batch_execute("INSERT INTO orders VALUES (10, 'guarded')").await.unwrap();
    // The command is told by the event trigger, in the transaction that switched the guard off.
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "BEGIN; ALTER TABLE orders DISABLE TRIGGER _cadastre_guard;
             SET LOCAL ROLE stranger; INSERT INTO orders VALUES (11, 'unguarded'); COMMIT",
        )
        .await
        .unwrap();
    let range = eventually(WAIT, async || {
        let unverified = "{ dataset(name: \"shop.public.orders\") {
            guard { state unverified { from to } drift { kind } } } }";
        let guard = shop.ask(unverified).await["dataset"]["guard"].clone();
        let ended = guard["unverified"][0]["to"].is_string();
        (ended && guard["state"] == "INSTALLED").then(|| guard["unverified"][0].clone())
    })
    .await;
    owner.batch_execute("INSERT INTO orders VALUES (12, 'guarded')").await.unwrap();
    // Subscribers are told where, in order with the changes.
    let events = shop.changes("shop.public.orders", 5).await;
    let told = |event: &Value| match event["guard"]["state"].as_str() {
        Some(state) => json!(state),
        None => json!([event["after"]["id"], event["writer"]["verified"]]),
    };
    let told: Vec<_> = events.iter().map(told).collect();
    let expected =
        [json!([10, true]), json!("off"), json!([11, false]), json!("on"), json!([12, true])];
    assert_eq!(told, expected);
    let at = |index: usize| events[index]["position"].as_str().unwrap();
    let (from, to) = (range["from"].as_str().unwrap(), range["to"].as_str().unwrap());
    assert!(at(0) < from && from <= at(2) && at(2) < to && to <= at(4), "{range} {events:?}");
}

#[tokio::test]
async fn where_nothing_told_of_it_the_range_reaches_back_to_the_last_sound_look() {
    let shop = Shop::compared_often("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "BEGIN; ALTER EVENT TRIGGER cadastre_ddl DISABLE;
             ALTER TABLE orders DISABLE TRIGGER _cadastre_guard;
             SET LOCAL ROLE stranger; INSERT INTO orders VALUES (11, 'unguarded'); COMMIT",
        )
        .await
        .unwrap();
    let range = eventually(WAIT, async || {
        let unverified =
            "{ dataset(name: \"shop.public.orders\") { guard { unverified { from to } } } }";
        let ranges = shop.ask(unverified).await["dataset"]["guard"]["unverified"].clone();
        ranges[0]["to"].is_string().then(|| ranges[0].clone())
    })
    .await;
    let events = shop.changes("shop.public.orders", 3).await;
    let at = events[0]["position"].as_str().unwrap();
    let told: Vec<_> = events[1..].iter().map(|event| &event["guard"]["state"]).collect();
    assert_eq!(told, ["off", "on"]);
    let since = events[1]["guard"]["since"].as_str().unwrap();
    assert!(since <= at, "what was written since is not vouched for: {events:?}");
    assert!(range["from"].as_str().unwrap() <= at && at < range["to"].as_str().unwrap(), "{range}");
    shop.sound().await;
}

#[tokio::test]
async fn a_dataset_that_is_noted_twice_keeps_its_guard() {
    let shop = Shop::compared_often("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    let twice = "CREATE TABLE stray (); INSERT INTO cadastre.dataset
         SELECT 'stray'::regclass, name, owner, owner_role, mode FROM cadastre.dataset
         WHERE name = 'shop.public.orders'";
    superuser.batch_execute(twice).await.unwrap();
    let object = "cadastre.dataset: shop.public.orders";
    eventually(WAIT, async || {
        let open = shop.findings(", open: true").await;
        open.iter().any(|(_, of, ..)| of == object).then_some(())
    })
    .await;
    superuser.batch_execute("DELETE FROM cadastre.dataset d USING pg_class c WHERE c.oid = d.relid AND c.relname = 'stray'; DROP TABLE stray").await.unwrap();
    shop.sound().await;
    assert_eq!(shop.findings(", kind: \"guard_missing\"").await, [], "it stood all the time");
    let intruder = shop.session("billing_app").await;
    let update = "UPDATE orders SET status = 'x'";
    super::rejected(update, intruder.batch_execute(update).await);
}
