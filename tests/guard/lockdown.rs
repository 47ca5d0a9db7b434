//! Lockdown: what others could write with is taken, remembered, and given back.

use tokio_postgres::Client;

use super::{Shop, refused, rejected};
use crate::support::{WAIT, eventually};

/// Privileges as they are granted in the field: to PUBLIC, to a role that owner and others are members
/// of, for single columns, passed on from one to the next, on a partition alone, on a sequence.
const GRANTS: &str = "
    CREATE ROLE app_rw;
    GRANT app_rw TO orders_app, billing_app;
    CREATE ROLE outsourced LOGIN;
    CREATE TABLE items (id serial PRIMARY KEY, status text, note text);
    ALTER TABLE items OWNER TO makers;
    GRANT SELECT, INSERT ON items TO PUBLIC;
    GRANT UPDATE ON items TO app_rw;
    GRANT UPDATE (note), SELECT ON items TO stranger;
    GRANT DELETE ON items TO billing_app WITH GRANT OPTION;
    GRANT TRUNCATE ON items TO orders_app WITH GRANT OPTION;
    GRANT USAGE ON SEQUENCE items_id_seq TO app_rw, stranger;
    SET ROLE billing_app;
    GRANT DELETE ON items TO outsourced WITH GRANT OPTION;
    SET ROLE outsourced;
    GRANT DELETE ON items TO orders_app;
    SET ROLE orders_app;
    GRANT TRUNCATE ON items TO stranger;
    RESET ROLE;
    GRANT INSERT ON parts_low TO outsourced;
";

/// Every grant on the shop's tables and sequences, in an order of its own.
async fn grants(client: &Client) -> Vec<String> {
    let sql = "
        SELECT format('%s %s %s->%s%s', c.oid::regclass, a.privilege_type, a.grantor::regrole,
          CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
          CASE WHEN a.is_grantable THEN '*' END)
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        WHERE c.relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT format('%s.%s %s %s->%s', c.oid::regclass, t.attname, a.privilege_type,
          a.grantor::regrole, a.grantee::regrole)
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid CROSS JOIN aclexplode(t.attacl) a
        WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The shop's manifest with the items.
fn manifest(shop: &Shop, mode: &str) -> String {
    format!("{}  shop.public.items: {{ owner: orders, mode: {mode} }}\n", shop.manifest(mode))
}

/// Asserts that PostgreSQL's own privileges stopped a statement.
async fn denied(client: &Client, statement: &str) {
    let (code, message) = refused(client.batch_execute(statement).await);
    assert_eq!(code, "42501", "{statement}: {message}");
    assert!(message.starts_with("permission denied"), "{statement}: {message}");
}

#[tokio::test]
async fn what_lockdown_takes_it_gives_back_exactly_and_the_owner_never_misses_it() {
    let shop = Shop::ungoverned().await;
    let superuser = shop.cluster.connect("shop").await;
    superuser.batch_execute("CREATE ROLE makers").await.unwrap();
    superuser.batch_execute(GRANTS).await.unwrap();
    let before = grants(&superuser).await;
    let (status, answer) = shop.apply(&manifest(&shop, "lockdown")).await;
    assert_eq!(status, 200, "{answer}");

    let owner = shop.session("orders_app").await;
    let insert = "INSERT INTO items (status) VALUES ('x')";
    for statement in [
        insert,
        "UPDATE items SET note = 'x'",
        "DELETE FROM items WHERE id = 7",
        "TRUNCATE items",
        "INSERT INTO parts VALUES (3)",
        "INSERT INTO orders VALUES (7, 'x')",
    ] {
        owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let (billing, stranger) = (shop.session("billing_app").await, shop.session("stranger").await);
    let outsourced = shop.session("outsourced").await;
    for (client, statement) in [
        (&billing, insert),
        (&billing, "UPDATE items SET note = 'x'"),
        (&billing, "DELETE FROM items"),
        (&billing, "SELECT nextval('items_id_seq')"),
        (&billing, "INSERT INTO parts VALUES (4)"),
        (&billing, "INSERT INTO parts_low VALUES (4)"),
        (&stranger, "UPDATE items SET note = 'x'"),
        (&stranger, "TRUNCATE items"),
        (&outsourced, "DELETE FROM items"),
        (&outsourced, "INSERT INTO parts_low VALUES (4)"),
    ] {
        denied(client, statement).await;
    }
    // Reading is nobody's loss.
    stranger.batch_execute("SELECT * FROM items").await.unwrap();
    assert!(shop.violations(0).await.is_empty(), "PostgreSQL answered before the guard");

    // Applied again, nothing more is taken; lowered, all is back as it was, and the guard stands.
    assert_eq!(shop.apply(&manifest(&shop, "lockdown")).await.0, 200);
    assert_eq!(shop.apply(&manifest(&shop, "enforce")).await.0, 200);
    assert_eq!(grants(&superuser).await, before);
    let memory = superuser.query_one("SELECT count(*) FROM cadastre.privilege", &[]).await.unwrap();
    assert_eq!(memory.get::<_, i64>(0), 0);
    rejected(insert, billing.batch_execute(insert).await);
}

#[tokio::test]
async fn in_lockdown_a_hand_over_takes_the_old_owners_privileges_and_returns_the_new_ones() {
    let shop = Shop::governed("lockdown").await;
    let superuser = shop.cluster.connect("shop").await;
    let (old, new) = (shop.session("orders_app").await, shop.session("billing_app").await);
    // The table's PostgreSQL owner keeps its privileges; here that is neither.
    superuser.batch_execute("ALTER TABLE invoices OWNER TO postgres").await.unwrap();
    let insert = "INSERT INTO invoices VALUES (7, 1)";
    denied(&old, insert).await;
    let manifest = shop
        .manifest("lockdown")
        .replace("shop.public.invoices: { owner: billing", "shop.public.invoices: { owner: orders");
    assert_eq!(shop.apply(&manifest).await.0, 200);
    denied(&new, insert).await;
    old.batch_execute(insert).await.unwrap();

    // A role that comes to the owner has what it had; one that leaves it loses it.
    let stranger = shop.session("stranger").await;
    denied(&stranger, "DELETE FROM invoices").await;
    let manifest = manifest.replace("[orders_app]", "[stranger]");
    assert_eq!(shop.apply(&manifest).await.0, 200);
    denied(&old, "DELETE FROM invoices").await;
    stranger.batch_execute("DELETE FROM invoices").await.unwrap();
}

#[tokio::test]
async fn privileges_granted_during_lockdown_are_taken_too_and_come_back_with_the_others() {
    let shop = Shop::governed("lockdown").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute("CREATE ROLE late LOGIN; GRANT UPDATE ON orders TO late")
        .await
        .unwrap();
    let late = shop.session("late").await;
    let update = "UPDATE orders SET status = 'x'";
    // By the guard, or by PostgreSQL where the governor has looked already.
    assert_eq!(refused(late.batch_execute(update).await).0, "42501");
    // Any change of the registry makes the governor look, not only its timer.
    let manifest = shop
        .manifest("lockdown")
        .replace("roles: { shop: [billing_app] }", "team: finance, roles: { shop: [billing_app] }");
    assert_eq!(shop.apply(&manifest).await.0, 200);
    eventually(WAIT, async || {
        let (_, message) = refused(late.batch_execute(update).await);
        message.starts_with("permission denied").then_some(())
    })
    .await;
    assert_eq!(shop.apply(&shop.manifest("observe")).await.0, 200);
    late.batch_execute(update).await.unwrap();
}

#[tokio::test]
async fn the_doctor_lists_who_writes_although_not_the_owner() {
    let shop = Shop::ungoverned().await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "CREATE ROLE migrations; CREATE ROLE loader LOGIN; GRANT pg_write_all_data TO loader; \
             CREATE TABLE items (id int PRIMARY KEY, of int CONSTRAINT items_of REFERENCES invoices ON DELETE CASCADE); \
             ALTER TABLE items OWNER TO migrations",
        )
        .await
        .unwrap();
    assert_eq!(shop.apply(&manifest(&shop, "lockdown")).await.0, 200);
    let request = shop.server.client().get(shop.server.at("/v1/sources/shop/doctor"));
    let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    let needs = answer.to_string();
    for told in [
        "foreign key items_of writes shop.public.items as its owner",
        "it writes as role migrations",
        "also loader, migrations, as far as privileges go",
    ] {
        assert!(needs.contains(told), "{told} in {needs}");
    }
}
