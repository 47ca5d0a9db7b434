//! Every way to change what a governed table is, by its owner, by another service that PostgreSQL
//! itself would let, and by a superuser.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::{Shop, refused, rejected};
use crate::support::{WAIT, eventually};

/// Tables of a role that both services may act for, as in many grown databases.
const SETUP: &str = "
    CREATE ROLE makers;
    CREATE ROLE invited;
    GRANT makers TO orders_app, billing_app;
    GRANT CREATE, USAGE ON SCHEMA public TO makers;
    GRANT CREATE ON DATABASE shop TO makers;
    CREATE SCHEMA goods AUTHORIZATION makers;
    GRANT USAGE ON SCHEMA goods TO PUBLIC;
    SET ROLE makers;
    CREATE TYPE goods.mood AS ENUM ('calm', 'wild');
    CREATE TABLE goods.items (id int PRIMARY KEY, name text, mood goods.mood, size int CHECK (size > 0));
    CREATE TABLE goods.copy (LIKE goods.items INCLUDING ALL);
    CREATE INDEX items_name ON goods.items (name);
    CREATE FUNCTION goods.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER items_after AFTER INSERT ON goods.items EXECUTE FUNCTION goods.nothing();
    CREATE RULE items_rule AS ON INSERT TO goods.items WHERE false DO ALSO NOTHING;
    CREATE POLICY items_policy ON goods.items;
    CREATE STATISTICS goods.items_statistics ON id, size FROM goods.items;
    GRANT SELECT ON goods.items TO invited;
    CREATE TABLE goods.lots (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE goods.lots_low PARTITION OF goods.lots FOR VALUES FROM (0) TO (100);
    CREATE TABLE goods.lots_new (id int PRIMARY KEY);
    CREATE PUBLICATION theirs;
    RESET ROLE;
";

const ITEMS: &str = "shop.goods.items";
const LOTS: &str = "shop.goods.lots";

/// A command, the tag that is recorded, and the dataset it is about.
const ROUTES: [(&str, &str, &str); 53] = [
    ("ALTER TABLE goods.items ADD COLUMN x int", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items DROP COLUMN name", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items RENAME TO loot", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items RENAME COLUMN name TO x", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items RENAME CONSTRAINT items_pkey TO x", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items ALTER COLUMN size TYPE bigint", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items ALTER COLUMN size SET DEFAULT 1", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items ALTER COLUMN size SET NOT NULL", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items ADD CHECK (id > 0)", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items DROP CONSTRAINT items_size_check", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items ENABLE ROW LEVEL SECURITY", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items DISABLE ROW LEVEL SECURITY", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items DISABLE TRIGGER items_after", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items CLUSTER ON items_pkey", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items SET (fillfactor = 50)", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items REPLICA IDENTITY FULL", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items SET SCHEMA public", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.items OWNER TO CURRENT_USER", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.copy INHERIT goods.items", "ALTER TABLE", ITEMS),
    ("CREATE TABLE goods.heir () INHERITS (goods.items)", "CREATE TABLE", ITEMS),
    (
        "ALTER TABLE goods.lots ATTACH PARTITION goods.lots_new FOR VALUES FROM (200) TO (300)",
        "ALTER TABLE",
        LOTS,
    ),
    ("ALTER TABLE goods.lots DETACH PARTITION goods.lots_low", "ALTER TABLE", LOTS),
    (
        "CREATE TABLE goods.lots_high PARTITION OF goods.lots FOR VALUES FROM (300) TO (400)",
        "CREATE TABLE",
        LOTS,
    ),
    ("ALTER TABLE goods.lots_low SET (fillfactor = 50)", "ALTER TABLE", LOTS),
    ("DROP TABLE goods.lots_low", "DROP TABLE", LOTS),
    ("CREATE INDEX ON goods.items (size)", "CREATE INDEX", ITEMS),
    ("ALTER INDEX goods.items_name RENAME TO x", "ALTER INDEX", ITEMS),
    ("DROP INDEX goods.items_name", "DROP INDEX", ITEMS),
    (
        "CREATE TRIGGER x BEFORE INSERT ON goods.items EXECUTE FUNCTION goods.nothing()",
        "CREATE TRIGGER",
        ITEMS,
    ),
    ("ALTER TRIGGER items_after ON goods.items RENAME TO x", "ALTER TRIGGER", ITEMS),
    ("DROP TRIGGER items_after ON goods.items", "DROP TRIGGER", ITEMS),
    ("DROP FUNCTION goods.nothing CASCADE", "DROP FUNCTION", ITEMS),
    ("CREATE RULE x AS ON DELETE TO goods.items DO INSTEAD NOTHING", "CREATE RULE", ITEMS),
    ("DROP RULE items_rule ON goods.items", "DROP RULE", ITEMS),
    ("CREATE POLICY x ON goods.items", "CREATE POLICY", ITEMS),
    ("ALTER POLICY items_policy ON goods.items USING (true)", "ALTER POLICY", ITEMS),
    ("DROP POLICY items_policy ON goods.items", "DROP POLICY", ITEMS),
    ("CREATE STATISTICS goods.x ON id, size FROM goods.items", "CREATE STATISTICS", ITEMS),
    ("DROP STATISTICS goods.items_statistics", "DROP STATISTICS", ITEMS),
    ("COMMENT ON TABLE goods.items IS 'x'", "COMMENT", ITEMS),
    ("COMMENT ON COLUMN goods.items.name IS 'x'", "COMMENT", ITEMS),
    ("COMMENT ON INDEX goods.items_name IS 'x'", "COMMENT", ITEMS),
    ("GRANT SELECT ON goods.items TO stranger", "GRANT", ITEMS),
    ("GRANT SELECT (name) ON goods.items TO stranger", "GRANT", ITEMS),
    ("REVOKE ALL ON ALL TABLES IN SCHEMA goods FROM invited", "REVOKE", ITEMS),
    ("ALTER TYPE goods.mood ADD VALUE 'grim'", "ALTER TYPE", ITEMS),
    ("ALTER TYPE goods.mood RENAME VALUE 'wild' TO 'mild'", "ALTER TYPE", ITEMS),
    ("DROP TYPE goods.mood CASCADE", "DROP TYPE", ITEMS),
    ("ALTER PUBLICATION theirs ADD TABLE goods.items", "ALTER PUBLICATION", ITEMS),
    ("DROP TABLE goods.items CASCADE", "DROP TABLE", ITEMS),
    ("ALTER SCHEMA goods RENAME TO wares", "ALTER SCHEMA", ITEMS),
    ("DROP SCHEMA goods CASCADE", "DROP SCHEMA", ITEMS),
    ("DROP OWNED BY makers CASCADE", "DROP OWNED", ITEMS),
];

/// What PostgreSQL lets a table's owner do, and what would take a dataset out of its feed or switch
/// its guard off: nobody may, not even who owns the dataset.
const BLINDING: [(&str, &str, &str); 7] = [
    ("ALTER TABLE goods.items DISABLE TRIGGER _cadastre_guard", "ALTER TABLE", ITEMS),
    ("ALTER TABLE goods.lots_low DISABLE TRIGGER USER", "ALTER TABLE", LOTS),
    ("ALTER TRIGGER _cadastre_guard ON goods.items RENAME TO x", "ALTER TRIGGER", ITEMS),
    ("DROP TRIGGER _cadastre_guard ON goods.lots_low", "DROP TRIGGER", LOTS),
    ("ALTER PUBLICATION cadastre_shop DROP TABLE goods.items", "ALTER PUBLICATION", ITEMS),
    ("ALTER PUBLICATION cadastre_shop SET (publish = 'insert')", "ALTER PUBLICATION", ITEMS),
    ("DROP PUBLICATION cadastre_shop", "DROP PUBLICATION", ITEMS),
];

/// The modes, and what becomes of another service's command in each.
const MODES: [(&str, &str); 3] =
    [("observe", "observed"), ("enforce", "rejected"), ("lockdown", "rejected")];

fn manifest(shop: &Shop, mode: &str) -> String {
    format!(
        "{}  {ITEMS}: {{ owner: orders, mode: {mode} }}\n  {LOTS}: {{ owner: orders, mode: {mode} }}\n",
        shop.manifest(mode)
    )
}

async fn governed(mode: &str) -> Shop {
    let shop = Shop::ungoverned().await;
    shop.cluster.connect("shop").await.batch_execute(SETUP).await.unwrap();
    let (status, answer) = shop.apply(&manifest(&shop, mode)).await;
    assert_eq!(status, 200, "{answer}");
    shop
}

/// Runs one command under a name and leaves nothing of it.
async fn attempt(client: &Client, name: &str, command: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET application_name = '{name}'; BEGIN")).await?;
    let outcome = client.batch_execute(command).await;
    client.batch_execute("ROLLBACK").await?;
    outcome
}

/// What was recorded, by the name it ran under: verdict, command, dataset, service, role. Attempts are
/// recorded in order, so all are there once a last one is.
async fn recorded(shop: &Shop, last: &str) -> BTreeMap<String, [String; 5]> {
    let other = shop.session("billing_app").await;
    let _ = attempt(&other, last, "COMMENT ON TABLE goods.items IS 'the last'").await;
    let registry = shop.cluster.connect("registry").await;
    let query = "SELECT DISTINCT ON (application) application, verdict, operation, dataset, \
                 coalesce(service, '-'), role FROM cadastre_registry.violations \
                 ORDER BY application, id";
    eventually(WAIT, async || {
        let rows = registry.query(query, &[]).await.unwrap();
        let mut found: BTreeMap<String, [String; 5]> = rows
            .iter()
            .map(|row| (row.get(0), std::array::from_fn(|column| row.get(column + 1))))
            .collect();
        found.remove(last).map(|_| found)
    })
    .await
}

/// Asserts that exactly these attempts were recorded.
#[track_caller]
fn as_expected(found: &BTreeMap<String, [String; 5]>, expected: &BTreeMap<String, [&str; 5]>) {
    for (name, found) in found {
        let expected = expected.get(name).unwrap_or_else(|| panic!("{name}: {found:?}"));
        assert_eq!(found, expected, "{name}");
    }
    for (name, expected) in expected {
        assert!(found.contains_key(name), "{name} is not recorded: {expected:?}");
    }
}

#[tokio::test]
async fn what_a_table_is_changes_by_its_owner_alone() {
    let shop = governed("observe").await;
    let owner = shop.session("orders_app").await;
    let other = shop.session("billing_app").await;
    let superuser = shop.cluster.connect("shop").await;
    let mut expected = BTreeMap::new();
    for (mode, verdict) in MODES {
        assert_eq!(shop.apply(&manifest(&shop, mode)).await.0, 200);
        for (number, (command, tag, dataset)) in ROUTES.iter().enumerate() {
            let outcome = attempt(&owner, "owner", command).await;
            outcome.unwrap_or_else(|error| panic!("{command}: {error:?}"));

            let name = format!("{mode} other {number}");
            let outcome = attempt(&other, &name, command).await;
            if verdict == "observed" {
                outcome.unwrap_or_else(|error| panic!("{command}: {error:?}"));
            } else {
                assert!(outcome.is_err(), "{command} passed");
                rejected(command, outcome);
            }
            expected.insert(name, [verdict, tag, dataset, "billing", "billing_app"]);

            let name = format!("{mode} superuser {number}");
            let outcome = attempt(&superuser, &name, command).await;
            outcome.unwrap_or_else(|error| panic!("{command}: {error:?}"));
            expected.insert(name, ["privileged", tag, dataset, "-", "postgres"]);
        }
    }
    // Of what the owner did nothing is there.
    as_expected(&recorded(&shop, "last").await, &expected);
}

#[tokio::test]
async fn nobody_takes_a_dataset_out_of_its_guard_or_its_feed() {
    let shop = governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser.batch_execute("ALTER PUBLICATION cadastre_shop OWNER TO makers").await.unwrap();
    let mut expected = BTreeMap::new();
    for (role, service) in [("orders_app", "orders"), ("billing_app", "billing")] {
        let session = shop.session(role).await;
        for (number, (command, tag, dataset)) in BLINDING.iter().enumerate() {
            let name = format!("{role} {number}");
            rejected(command, attempt(&session, &name, command).await);
            expected.insert(name, ["rejected", tag, dataset, service, role]);
        }
    }
    as_expected(&recorded(&shop, "last").await, &expected);
}

#[tokio::test]
async fn the_error_names_table_owner_and_caller() {
    let shop = governed("enforce").await;
    let other = shop.session("billing_app").await;
    let error = attempt(&other, "psql", "DROP INDEX goods.items_name").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(
        error.message(),
        "cadastre: DROP INDEX on table \"goods.items\" rejected: it is owned by service \"orders\"; \
         caller is service \"billing\" (role \"billing_app\", login \"billing_app\")"
    );
    assert_eq!((error.schema(), error.table()), (Some("goods"), Some("items")));
    assert_eq!(
        error.detail(),
        Some(
            "The command concerns goods.items_name. Dataset \"shop.goods.items\" is in enforce mode. \
             The attempt has been recorded."
        )
    );
    let owner = shop.session("orders_app").await;
    let command = "ALTER TABLE goods.items DISABLE TRIGGER _cadastre_guard";
    let (_, message) = refused(attempt(&owner, "psql", command).await);
    assert!(message.contains("it would switch off the guard of dataset"), "{message}");
}

#[tokio::test]
async fn a_drifted_dataset_holds_up_no_other_command() {
    let shop = governed("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "ALTER EVENT TRIGGER cadastre_ddl DISABLE; \
             ALTER TABLE goods.items DISABLE TRIGGER _cadastre_guard; \
             ALTER EVENT TRIGGER cadastre_ddl ENABLE ALWAYS",
        )
        .await
        .unwrap();
    let (owner, other) = (shop.session("orders_app").await, shop.session("billing_app").await);
    owner.batch_execute("ALTER TABLE goods.lots ADD COLUMN note text").await.unwrap();
    other.batch_execute("ALTER TABLE invoices ADD COLUMN note text").await.unwrap();
    other.batch_execute("CREATE TABLE own (id int); DROP TABLE own").await.unwrap();
    // Its owner can still work with it; only another loss of the guard would be one.
    owner.batch_execute("ALTER TABLE goods.items ADD COLUMN note text").await.unwrap();
}

#[tokio::test]
async fn commands_that_concern_no_governed_table_are_left_alone() {
    let shop = governed("enforce").await;
    let other = shop.session("billing_app").await;
    other
        .batch_execute(
            "CREATE TEMP TABLE scratch (id int); ALTER TABLE scratch ADD COLUMN n int; DROP TABLE scratch; \
             CREATE TYPE own_type AS ENUM ('a'); ALTER TYPE own_type ADD VALUE 'b'; DROP TYPE own_type; \
             CREATE VIEW looks AS SELECT id FROM orders; DROP VIEW looks; \
             GRANT SELECT ON invoices TO stranger; \
             CREATE TABLE bills (id int PRIMARY KEY, order_id int REFERENCES orders); \
             ALTER TABLE bills ADD COLUMN item int REFERENCES goods.items; DROP TABLE bills; \
             COMMENT ON SCHEMA goods IS 'ours'; ALTER TYPE goods.mood OWNER TO makers",
        )
        .await
        .unwrap();
    assert!(shop.violations(0).await.is_empty());
}
