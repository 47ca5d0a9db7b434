//! Least privilege: Cadastre's role is no superuser, and everything works that PostgreSQL allows.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::uninstall::{UNINSTALL, mutate};
use super::{SETUP, Shop, refused, rejected};
use crate::support::{Cluster, Server, WAIT, eventually};

/// The role that Cadastre connects as.
const KEEPER: &str = "keeper";
/// The roles that own the shop's tables.
const OWNERS: [&str; 2] = ["orders_app", "billing_app"];
const UPDATE: &str = "UPDATE orders SET status = 'x' WHERE id = 1";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What a superuser runs for the keeper.
fn bootstrap() -> String {
    let owners = OWNERS.map(|owner| owner.parse().unwrap());
    cadastre::guard::bootstrap(&KEEPER.parse().unwrap(), &owners)
}

impl Shop {
    /// The shop before anything is declared, with a server that connects as the keeper, which nobody
    /// has granted anything. No table is a superuser's.
    async fn kept() -> Self {
        let cluster = Cluster::start().await;
        cluster.create_database("registry").await;
        cluster.create_database("shop").await;
        let owned = "ALTER TABLE parts_low OWNER TO orders_app; \
                     ALTER TABLE parts_high OWNER TO orders_app; CREATE ROLE keeper LOGIN";
        let superuser = cluster.connect("shop").await;
        superuser.batch_execute(&format!("{SETUP}{owned}")).await.unwrap();
        let args = ["--guard-patience", "3s", "--guard-interval", "200ms"];
        let server = Server::start_with(&cluster.url("registry"), &args).await;
        Self { server, cluster, role: KEEPER }
    }

    /// The shop as a superuser prepared it, with all its tables in `mode`.
    async fn kept_in(mode: &str) -> Self {
        let shop = Self::kept().await;
        shop.cluster.connect("shop").await.batch_execute(&bootstrap()).await.unwrap();
        shop.declare(mode).await;
        shop
    }

    /// The shop as its superuser governs it, and as the keeper does.
    pub(super) async fn either(mode: &str) -> [Self; 2] {
        [Self::governed(mode).await, Self::kept_in(mode).await]
    }

    async fn declare(&self, mode: &str) {
        let (status, answer) = self.apply(&self.manifest(mode)).await;
        assert_eq!(status, 200, "{mode}: {answer}");
    }

    /// Kinds and objects of the findings that are open, of one kind or of drift.
    async fn open(&self, field: &str) -> Vec<[String; 2]> {
        let query = format!("{{ {field}(first: 100, open: true) {{ nodes {{ kind object }} }} }}");
        let answer = self.ask(&query).await;
        let nodes = answer[field]["nodes"].as_array().unwrap().clone();
        let text = |node: &Value, name: &str| node[name].as_str().unwrap().to_owned();
        let found = nodes.iter().map(|node| [text(node, "kind"), text(node, "object")]);
        // Logins of both services are part of the shop.
        let known = ["role pooler", "role administrator"];
        found.filter(|[_, object]| !known.contains(&object.as_str())).collect()
    }

    async fn doctor(&self) -> Vec<Value> {
        let request = self.server.client().get(self.server.at("/v1/sources/shop/doctor"));
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer.as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }
}

/// Whether the guard stands on a table.
async fn guarded(client: &Client, table: &str) -> bool {
    let sql = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1)
               AND tgname = '_cadastre_guard' AND tgenabled = 'A')";
    client.query_one(sql, &[&table]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_role_that_is_no_superuser_governs_from_installation_to_the_end() {
    let shop = Shop::kept_in("observe").await;
    let superuser = shop.cluster.connect("shop").await;
    let is = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = 'keeper'";
    assert!(!superuser.query_one(is, &[]).await.unwrap().get::<_, bool>(0));
    let (owner, intruder) = (shop.session("orders_app").await, shop.session("billing_app").await);
    intruder.batch_execute(UPDATE).await.unwrap();
    shop.declare("enforce").await;
    rejected(UPDATE, intruder.batch_execute(UPDATE).await);
    owner.batch_execute(&format!("SET cadastre.traceparent = '{TRACE}'; {UPDATE}")).await.unwrap();
    let mut changes = shop.changes("shop.public.orders", 3).await;
    // The change of mode stands between them.
    changes.retain(|event| event["op"] == "u");
    assert_eq!(
        changes[0]["writer"],
        json!({"service": "billing", "role": "billing_app", "verified": true})
    );
    assert_eq!(changes[1]["writer"]["service"], "orders");
    assert_eq!(changes[1]["writer"]["verified"], true);
    assert_eq!(changes[1]["traceparent"], TRACE);
    let found = shop.violations(2).await;
    assert_eq!(found[0][0], "observed");
    assert_eq!(found[1], ["rejected", "update", "shop.public.orders", "billing", "billing_app"]);

    // Definitions are guarded, and new partitions from their first row on.
    let grown = "CREATE ROLE makers; GRANT makers TO orders_app, billing_app, keeper; \
                 GRANT CREATE ON SCHEMA public TO makers; ALTER TABLE parts OWNER TO makers; ALTER TABLE parts_low OWNER TO makers; \
                 ALTER TABLE parts_high OWNER TO makers";
    superuser.batch_execute(grown).await.unwrap();
    let alter = "ALTER TABLE parts ADD COLUMN x int";
    rejected(alter, intruder.batch_execute(alter).await);
    owner
        .batch_execute("CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM (300) TO (400)")
        .await
        .unwrap();
    assert!(guarded(&superuser, "parts_new").await);
    let off = "ALTER TABLE orders DISABLE TRIGGER _cadastre_guard";
    rejected(off, owner.batch_execute(off).await);

    // What lockdown takes is given back.
    shop.declare("lockdown").await;
    let (code, message) = refused(intruder.batch_execute(UPDATE).await);
    assert_eq!((code.as_str(), message.starts_with("permission denied")), ("42501", true));
    owner.batch_execute(UPDATE).await.unwrap();
    shop.declare("enforce").await;
    rejected(UPDATE, intruder.batch_execute(UPDATE).await);

    // A hand-over.
    let handed = shop
        .manifest("enforce")
        .replace("shop.public.orders: { owner: orders", "shop.public.orders: { owner: billing");
    let (status, answer) = shop.apply(&handed).await;
    assert_eq!(status, 200, "{answer}");
    rejected(UPDATE, owner.batch_execute(UPDATE).await);
    intruder.batch_execute(UPDATE).await.unwrap();
    let needs = shop.doctor().await;
    let missing: Vec<_> = needs.iter().filter(|need| need["ok"] == false).collect();
    let missing: Vec<_> = missing.iter().filter(|it| !it.to_string().contains("pooler")).collect();
    assert!(missing.is_empty(), "{missing:?}");

    // Nothing is left but what the superuser set up, and that is said.
    let left = mutate(&shop.server, UNINSTALL).await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains("DROP OWNED BY cadastre"), "{left:?}");
    let rest: Vec<String> = shop
        .catalog()
        .await
        .into_iter()
        .filter(|line| line.contains("cadastre") || line.contains("slot"))
        .collect();
    let expected = ["member keeper of cadastre", "role cadastre ", "role cadastre_nobody "];
    let ours = |line: &str| {
        expected.iter().any(|it| line.starts_with(it))
            || line.starts_with("privilege on pg_logical_emit_message")
    };
    assert!(rest.iter().all(|line| ours(line)), "{rest:?}");
    owner.batch_execute(UPDATE).await.unwrap();
    // And it can begin again.
    superuser.batch_execute(&bootstrap()).await.unwrap();
    shop.declare("enforce").await;
    rejected(UPDATE, intruder.batch_execute(UPDATE).await);
}

#[tokio::test]
async fn a_role_that_is_no_superuser_mends_what_is_its_to_mend() {
    let shop = Shop::kept_in("enforce").await;
    let superuser = shop.cluster.connect("shop").await;
    let sound = async || (shop.open("driftFindings").await.is_empty()).then_some(());
    eventually(WAIT, sound).await;
    let stands = async || {
        let noted = "SELECT format('%s %s %s', name, owner, mode) FROM cadastre.dataset ORDER BY 1";
        let noted = superuser.query(noted, &[]).await.unwrap();
        let mut stands = shop.catalog().await;
        stands.extend(noted.iter().map(|row| row.get::<_, String>(0)));
        stands
    };
    let before = stands().await;
    for tampered in [
        "ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        "DROP TRIGGER _cadastre_guard ON parts_low",
        "CREATE OR REPLACE FUNCTION cadastre_guard.guard() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN RETURN NULL; END'",
        "GRANT EXECUTE ON FUNCTION cadastre.place(oid, text, text, name, text) TO stranger",
        "DROP FUNCTION cadastre.caller(text, name)",
        "ALTER PUBLICATION cadastre_shop DROP TABLE orders",
        "UPDATE cadastre.dataset SET mode = 'observe'",
        // From 16 on a membership is its grantor's to take.
        "SET ROLE keeper; REVOKE cadastre_shop_orders FROM orders_app; RESET ROLE",
    ] {
        superuser.batch_execute(tampered).await.unwrap();
        eventually(WAIT, async || (stands().await == before).then_some(())).await;
        let intruder = shop.session("billing_app").await;
        rejected(tampered, intruder.batch_execute(UPDATE).await);
        shop.session("orders_app").await.batch_execute(UPDATE).await.unwrap();
    }
    eventually(WAIT, sound).await;

    // What a superuser has taken for itself keeps nothing else from being mended.
    superuser
        .batch_execute(
            "ALTER FUNCTION cadastre.traceparent() OWNER TO postgres; \
             ALTER TABLE orders DISABLE TRIGGER _cadastre_guard",
        )
        .await
        .unwrap();
    eventually(WAIT, async || guarded(&superuser, "orders").await.then_some(())).await;
    let taken = [["object_altered", "function cadastre.traceparent()"]];
    eventually(WAIT, async || (shop.open("driftFindings").await == taken).then_some(())).await;
    superuser
        .batch_execute("ALTER FUNCTION cadastre.traceparent() OWNER TO cadastre")
        .await
        .unwrap();
    eventually(WAIT, sound).await;

    // An event trigger is a superuser's: it is said, and stays said, until one has mended it.
    superuser.batch_execute("DROP EVENT TRIGGER cadastre_ddl").await.unwrap();
    eventually(WAIT, async || {
        let open = shop.open("driftFindings").await;
        (open == [["event_trigger_altered", "event trigger cadastre_ddl"]]).then_some(())
    })
    .await;
    superuser.batch_execute(&bootstrap()).await.unwrap();
    eventually(WAIT, sound).await;
}

#[tokio::test]
async fn what_is_missing_is_refused_with_the_statement_that_mends_it_and_nothing_else_is() {
    let shop = Shop::kept().await;
    let superuser = shop.cluster.connect("shop").await;
    let (status, answer) = shop.apply(&shop.manifest("enforce")).await;
    assert_eq!(status, 422, "{answer}");
    let mut mended = 0;
    for round in 1.. {
        let (status, answer) = shop.apply(&shop.manifest("enforce")).await;
        if status == 200 {
            break;
        }
        assert!(round < 4, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let mut statements = BTreeSet::new();
        for line in answer["detail"].as_str().unwrap().lines() {
            statements.extend(line.split_once("there, as a superuser: ").map(|(_, it)| it));
        }
        for statement in statements {
            let outcome = superuser.batch_execute(statement).await;
            outcome.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
            mended += 1;
        }
    }
    assert!(mended >= 6, "{mended}");
    rejected(UPDATE, shop.session("billing_app").await.batch_execute(UPDATE).await);
    // A table of a superuser's cannot be governed so, and what would be right is said.
    superuser.batch_execute("CREATE TABLE treasure (id int PRIMARY KEY)").await.unwrap();
    let manifest =
        format!("{}  shop.public.treasure: {{ owner: orders }}\n", shop.manifest("enforce"));
    let (_, answer) = shop.apply(&manifest).await;
    assert!(answer.contains("ALTER TABLE treasure OWNER TO a role of service orders"), "{answer}");
}

/// A shop of a managed service: its administrator may make roles and grant those that are there, and is
/// no superuser.
async fn managed() -> Shop {
    let shop = Shop::kept().await;
    let superuser = shop.cluster.connect("shop").await;
    superuser
        .batch_execute(
            "DROP ROLE keeper; CREATE ROLE administrator LOGIN CREATEROLE; \
             GRANT orders_app, billing_app, pg_read_all_stats TO administrator WITH ADMIN OPTION; \
             ALTER DATABASE shop OWNER TO administrator",
        )
        .await
        .unwrap();
    shop.session("administrator").await.batch_execute(&bootstrap()).await.unwrap();
    // The service's own way.
    superuser.batch_execute("ALTER ROLE keeper REPLICATION CREATEROLE").await.unwrap();
    shop.declare("enforce").await;
    shop
}

#[tokio::test]
async fn without_event_triggers_rows_are_guarded_and_what_is_lost_is_said() {
    let shop = managed().await;
    let superuser = shop.cluster.connect("shop").await;
    let none = "SELECT count(*) FROM pg_event_trigger";
    assert_eq!(superuser.query_one(none, &[]).await.unwrap().get::<_, i64>(0), 0);
    let (owner, intruder) = (shop.session("orders_app").await, shop.session("billing_app").await);
    rejected(UPDATE, intruder.batch_execute(UPDATE).await);
    owner.batch_execute(UPDATE).await.unwrap();

    // Each capability by itself, to the doctor's caller and to who asks for findings.
    eventually(WAIT, async || {
        let found = shop.open("findings").await;
        let lost = found.iter().filter(|[kind, _]| kind == "capability_lost").count();
        (lost == 6).then_some(())
    })
    .await;
    let needs = json!(shop.doctor().await).to_string();
    for said in [
        "commands on governed tables by others are rejected",
        "0 of 3 event triggers stand",
        "it is guarded at the next comparison",
        "cadastre schema bootstrap --role keeper",
        "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message",
    ] {
        assert!(needs.contains(said), "{said} in {needs}");
    }

    // No drift but the truth: anybody can emit messages, so nobody vouches for who wrote.
    let emit = [["emit_open", "pg_logical_emit_message for PUBLIC"]];
    eventually(WAIT, async || (shop.open("driftFindings").await == emit).then_some(())).await;
    eventually(WAIT, async || {
        owner.batch_execute(UPDATE).await.unwrap();
        let query = "{ dataset(name: \"shop.public.orders\") { guard { unverified { to } } } }";
        let answer = shop.ask(query).await;
        (answer["dataset"]["guard"]["unverified"][0]["to"].is_null()
            && answer["dataset"]["guard"]["unverified"][0].is_object())
        .then_some(())
    })
    .await;
    // And nothing is tried again and again that cannot be.
    let tries = async || {
        superuser.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
        let sql = "SELECT n_tup_ins FROM pg_stat_all_tables WHERE relid = 'cadastre.installing'::regclass";
        superuser.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let looks = async |since: Option<String>| {
        eventually(WAIT, async || {
            let query = "{ driftFindings(first: 1, open: true) { nodes { lastSeenAt } } }";
            let seen = shop.ask(query).await["driftFindings"]["nodes"][0]["lastSeenAt"].clone();
            let seen = seen.as_str().unwrap().to_owned();
            (since.as_ref() != Some(&seen)).then_some(seen)
        })
        .await
    };
    let mut seen = looks(None).await;
    let before = tries().await;
    for _ in 0..5 {
        seen = looks(Some(seen)).await;
    }
    assert_eq!(tries().await, before);

    // What the event triggers would have told is found by looking.
    owner
        .batch_execute("CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM (300) TO (400)")
        .await
        .unwrap();
    owner.batch_execute("ALTER TABLE orders DISABLE TRIGGER _cadastre_guard").await.unwrap();
    owner.batch_execute("CREATE TABLE nobodys (id int PRIMARY KEY)").await.unwrap();
    eventually(WAIT, async || {
        let unowned = shop
            .open("findings")
            .await
            .iter()
            .any(|[kind, object]| kind == "table_unowned" && object.contains("nobodys"));
        (unowned && guarded(&superuser, "parts_new").await && guarded(&superuser, "orders").await)
            .then_some(())
    })
    .await;
    rejected(UPDATE, intruder.batch_execute(UPDATE).await);

    // Once a superuser has come by, nothing is lost any more, and what is written is vouched for.
    superuser.batch_execute(&bootstrap()).await.unwrap();
    eventually(WAIT, async || {
        let lost = shop.open("findings").await;
        let lost = lost.iter().any(|[kind, _]| kind == "capability_lost");
        let query = "{ dataset(name: \"shop.public.orders\") { guard { unverified { to } } } }";
        let answer = shop.ask(query).await;
        let gaps = answer["dataset"]["guard"]["unverified"].as_array().unwrap().clone();
        let closed = gaps.iter().all(|gap| !gap["to"].is_null());
        (!lost && closed && shop.open("driftFindings").await.is_empty()).then_some(())
    })
    .await;
    let off = "ALTER TABLE orders DISABLE TRIGGER _cadastre_guard";
    rejected(off, owner.batch_execute(off).await);
}
