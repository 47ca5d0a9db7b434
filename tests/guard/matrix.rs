//! The matrix: every route to a governed table, by everyone, in every mode; what happens and what is
//! recorded. The tables in `docs/guard-matrix.md` are what this test found.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use futures::SinkExt;
use tokio_postgres::Client;

use super::{Shop, refused};
use crate::support::{WAIT, eventually};

/// Roles and tables that the routes need beside the shop's, and ways that others made.
const SETUP: &str = "
    CREATE ROLE orders_batch LOGIN IN ROLE orders_app; CREATE ROLE billing_batch LOGIN IN ROLE billing_app;
    CREATE ROLE migrations;
    GRANT CREATE, USAGE ON SCHEMA public TO migrations;
    CREATE TABLE items (id serial PRIMARY KEY, status text);
    CREATE TABLE tree (id int PRIMARY KEY); CREATE TABLE branch (PRIMARY KEY (id)) INHERITS (tree); INSERT INTO branch VALUES (1);
    CREATE TABLE parts_gone PARTITION OF parts FOR VALUES FROM (900) TO (999);
    CREATE TABLE parts_came (id int PRIMARY KEY);
    CREATE TABLE parents (id int PRIMARY KEY); INSERT INTO parents VALUES (1);
    CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE);
    INSERT INTO children VALUES (1, 1);
    CREATE TABLE elders (id int PRIMARY KEY); INSERT INTO elders VALUES (1);
    CREATE TABLE orphans (id int PRIMARY KEY, elder int REFERENCES elders ON DELETE SET NULL);
    INSERT INTO orphans VALUES (1, 1);
    ALTER TABLE items OWNER TO orders_app; ALTER TABLE tree OWNER TO orders_app;
    ALTER TABLE branch OWNER TO orders_app; ALTER TABLE parts_gone OWNER TO orders_app;
    ALTER TABLE parts_came OWNER TO orders_app; ALTER TABLE children OWNER TO orders_app;
    ALTER TABLE orphans OWNER TO migrations;
    ALTER TABLE elders OWNER TO migrations;
    GRANT ALL ON ALL TABLES IN SCHEMA public TO orders_app, billing_app, stranger;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO orders_app, billing_app, stranger;
    ALTER DEFAULT PRIVILEGES FOR ROLE orders_app GRANT ALL ON TABLES TO billing_app, stranger;
    CREATE FUNCTION plainly() RETURNS void LANGUAGE sql AS 'UPDATE orders SET status = ''f''';

    SET ROLE orders_app;
    CREATE FUNCTION interface() RETURNS void LANGUAGE sql SECURITY DEFINER
      AS 'UPDATE orders SET status = ''i''';
    CREATE VIEW owners_view AS SELECT * FROM orders;
    SET ROLE billing_app;
    CREATE FUNCTION others_interface() RETURNS void LANGUAGE sql SECURITY DEFINER
      AS 'UPDATE orders SET status = ''i''';
    CREATE VIEW others_view AS SELECT * FROM orders;
    CREATE TABLE ruled (id int);
    CREATE RULE also AS ON INSERT TO ruled DO ALSO UPDATE orders SET status = 'r';
    CREATE TABLE triggering (id int);
    CREATE FUNCTION triggered() RETURNS trigger LANGUAGE plpgsql AS
      'BEGIN UPDATE orders SET status = ''t''; RETURN NULL; END';
    CREATE TRIGGER t AFTER INSERT ON triggering FOR EACH STATEMENT EXECUTE FUNCTION triggered();
    RESET ROLE;
    GRANT ALL ON owners_view, others_view, ruled, triggering TO PUBLIC;
";

/// What only later versions have: since when, and the SQL.
const SETUP_SINCE: [(i32, &str); 1] = [(
    150_000,
    "SET ROLE orders_app; CREATE VIEW invokers_view WITH (security_invoker) AS SELECT * FROM orders; \
     RESET ROLE; GRANT ALL ON invokers_view TO PUBLIC",
)];

/// The datasets of the service `orders`.
const DATASETS: [&str; 6] = ["orders", "items", "parts", "tree", "children", "orphans"];

/// Around what is written into the documentation.
const BEGIN: &str = "<!-- found by tests/guard/matrix.rs -->";
const END: &str = "<!-- end -->";

/// The modes in the order of the columns.
const MODES: [&str; 3] = ["observe", "enforce", "lockdown"];

/// Who tries.
const ACTORS: [(&str, Group); 6] = [
    ("orders_app", Group::Owner),
    ("orders_batch", Group::Owner),
    ("billing_app", Group::Other),
    ("billing_batch", Group::Other),
    ("stranger", Group::Other),
    ("postgres", Group::Superuser),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// A login of the owner, or a member of one.
    Owner,
    /// A login of another service, a member of one, or of none.
    Other,
    Superuser,
}

/// How the actor comes to the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    /// In a session of its own.
    Session,
    /// A superuser's session says this first, with the actor's name in it.
    Superuser(&'static str),
    /// In a session of its own, by COPY.
    Copy,
    /// In a session of its own, in a transaction that is prepared.
    Prepared,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Let through; nothing to record.
    Passes,
    /// Let through without a trace, although it is another's.
    Unseen,
    /// Let through and recorded as `observed`.
    Recorded,
    /// Let through and recorded as `privileged`.
    Privileged,
    /// Rejected by the guard and recorded.
    Rejected,
    /// Refused by PostgreSQL, for want of the privilege, before the guard is asked.
    Denied,
}
use Outcome::{Denied, Passes, Privileged, Recorded, Rejected, Unseen};

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Passes => "passes",
            Unseen => "unseen",
            Recorded => "recorded",
            Privileged => "privileged",
            Rejected => "rejected",
            Denied => "denied",
        }
    }

    /// The verdict of the record it leaves.
    fn verdict(self) -> Option<&'static str> {
        match self {
            Passes | Unseen | Denied => None,
            Recorded => Some("observed"),
            Privileged => Some("privileged"),
            Rejected => Some("rejected"),
        }
    }
}

/// What happens to owner, others and superuser, in each mode.
type Expected = [[Outcome; 3]; 3];

/// The statement writes as whoever runs it.
const PLAIN: Expected = [[Passes; 3], [Recorded, Rejected, Denied], [Privileged; 3]];
/// The same, but PostgreSQL asks for the privileges of somebody who keeps them.
const LENT: Expected = [[Passes; 3], [Recorded, Rejected, Rejected], [Privileged; 3]];
/// The statement writes as the owner, whoever runs it.
const AS_OWNER: Expected = [[Passes; 3]; 3];
/// The statement writes as another service, whoever runs it.
const AS_OTHER: Expected = [[Recorded, Rejected, Denied]; 3];
/// The statement writes as the table's PostgreSQL owner, who is not the owner's.
const AS_TABLE_OWNER: Expected = [[Recorded, Rejected, Rejected]; 3];
/// Whoever runs it writes, but PostgreSQL asks for the privileges of another service.
const THROUGH_OTHER: Expected =
    [[Passes, Passes, Denied], [Recorded, Rejected, Denied], [Privileged, Privileged, Denied]];
/// No trigger sees it: only a privilege can stop it.
const PRIVILEGE_ONLY: Expected = [[Passes; 3], [Unseen, Unseen, Denied], [Unseen; 3]];
/// It locks rows and changes none; the privilege it takes is that to change them.
const LOCKS: Expected = [[Passes; 3], [Passes, Passes, Denied], [Passes; 3]];

/// One way to write.
struct Route {
    /// As the table in the documentation calls it.
    name: &'static str,
    via: Via,
    /// Its SQL; for COPY the statement that takes the data.
    sql: &'static str,
    /// The operation that is recorded.
    operation: &'static str,
    /// The dataset it is recorded for.
    dataset: &'static str,
    /// The role it is recorded for; the actor when empty.
    role: &'static str,
    expected: Expected,
    /// First version that has it.
    since: i32,
}

fn route(name: &'static str, sql: &'static str, operation: &'static str) -> Route {
    let (via, expected) = (Via::Session, PLAIN);
    Route { name, via, sql, operation, dataset: "orders", role: "", expected, since: 0 }
}

impl Route {
    fn via(self, via: Via) -> Self {
        Self { via, ..self }
    }

    fn on(self, dataset: &'static str) -> Self {
        Self { dataset, ..self }
    }

    fn writes_as(self, role: &'static str, expected: Expected) -> Self {
        Self { role, expected, ..self }
    }

    fn since(self, since: i32) -> Self {
        Self { since, ..self }
    }
}

/// Every route, by what it is about.
fn routes() -> Vec<(&'static str, Vec<Route>)> {
    let update = "UPDATE orders SET status = 'x'";
    vec![
        (
            "Statements",
            vec![
                route("`INSERT`", "INSERT INTO orders VALUES (10, 'x')", "INSERT"),
                route(
                    "`INSERT … SELECT` of no row",
                    "INSERT INTO orders SELECT 11, 'x' FROM generate_series(1, 0)",
                    "INSERT",
                ),
                route("`UPDATE`", update, "UPDATE"),
                route("`UPDATE` of no row", "UPDATE orders SET status = 'x' WHERE false", "UPDATE"),
                route("`DELETE`", "DELETE FROM orders WHERE id = 1", "DELETE"),
                route("`TRUNCATE`", "TRUNCATE orders", "TRUNCATE"),
                route("`COPY … FROM`", "COPY orders FROM STDIN", "INSERT").via(Via::Copy),
                route(
                    "`INSERT … ON CONFLICT DO UPDATE`",
                    "INSERT INTO orders VALUES (1, 'y') ON CONFLICT (id) DO UPDATE SET status = 'y'",
                    "INSERT",
                ),
                route(
                    "`INSERT … ON CONFLICT DO NOTHING`",
                    "INSERT INTO orders VALUES (1, 'y') ON CONFLICT DO NOTHING",
                    "INSERT",
                ),
                route(
                    "`MERGE … UPDATE` (15)",
                    "MERGE INTO orders o USING (VALUES (1)) AS v (id) ON o.id = v.id \
                     WHEN MATCHED THEN UPDATE SET status = 'merged'",
                    "UPDATE",
                )
                .since(150_000),
                route(
                    "`MERGE … INSERT` (15)",
                    "MERGE INTO orders o USING (VALUES (20)) AS v (id) ON o.id = v.id \
                     WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'merged')",
                    "INSERT",
                )
                .since(150_000),
                route(
                    "`WITH … AS (DELETE …)`",
                    "WITH gone AS (DELETE FROM orders WHERE id = 1 RETURNING *) SELECT * FROM gone",
                    "DELETE",
                ),
                route(
                    "`UPDATE … WHERE CURRENT OF`",
                    "DECLARE c CURSOR FOR SELECT * FROM orders WHERE id = 1; FETCH c; \
                     UPDATE orders SET status = 'c' WHERE CURRENT OF c",
                    "UPDATE",
                ),
                route("`EXPLAIN ANALYZE`", "EXPLAIN ANALYZE DELETE FROM orders", "DELETE"),
                route(
                    "Prepared statement, generic plan",
                    "SET plan_cache_mode = force_generic_plan; \
                     PREPARE p AS UPDATE orders SET status = 'x'; EXECUTE p",
                    "UPDATE",
                ),
                route(
                    "Dynamic SQL in `DO`",
                    "DO $$ BEGIN EXECUTE 'UPDATE orders SET status = ''x'''; END $$",
                    "UPDATE",
                ),
                route("In a transaction for `PREPARE TRANSACTION`", update, "UPDATE")
                    .via(Via::Prepared),
            ],
        ),
        (
            "Through something else",
            vec![
                route("Function", "SELECT plainly()", "UPDATE"),
                route("`SECURITY DEFINER` function of the owner", "SELECT interface()", "UPDATE")
                    .writes_as("orders_app", AS_OWNER),
                route(
                    "`SECURITY DEFINER` function of another service",
                    "SELECT others_interface()",
                    "UPDATE",
                )
                .writes_as("billing_app", AS_OTHER),
                route("View of the owner", "UPDATE owners_view SET status = 'v'", "UPDATE")
                    .writes_as("", LENT),
                route(
                    "View of the owner with `security_invoker` (15)",
                    "UPDATE invokers_view SET status = 'v'",
                    "UPDATE",
                )
                .since(150_000),
                route("View of another service", "UPDATE others_view SET status = 'v'", "UPDATE")
                    .writes_as("", THROUGH_OTHER),
                route("Rule on another service's table", "INSERT INTO ruled VALUES (1)", "UPDATE")
                    .writes_as("", THROUGH_OTHER),
                route(
                    "Trigger on another service's table",
                    "INSERT INTO triggering VALUES (1)",
                    "UPDATE",
                ),
            ],
        ),
        (
            "Partitions and children",
            vec![
                route("Through the root", "INSERT INTO parts VALUES (5)", "INSERT").on("parts"),
                route("Partition itself", "INSERT INTO parts_low VALUES (5)", "INSERT").on("parts"),
                route("Partition itself, `TRUNCATE`", "TRUNCATE parts_low", "TRUNCATE").on("parts"),
                route("Partition made later", "INSERT INTO parts_new VALUES (205)", "INSERT")
                    .on("parts"),
                route("Partition attached later", "INSERT INTO parts_came VALUES (405)", "INSERT")
                    .on("parts"),
                route("Partition since detached", "INSERT INTO parts_gone VALUES (905)", "INSERT")
                    .on("parts"),
                route("Through an inheritance parent", "UPDATE tree SET id = id + 1", "UPDATE")
                    .on("tree"),
                route("Inheritance child itself", "DELETE FROM branch", "DELETE").on("tree"),
                route("Inheritance child made later", "INSERT INTO twig VALUES (1)", "INSERT")
                    .on("tree"),
            ],
        ),
        (
            "Foreign keys",
            vec![
                route(
                    "`ON DELETE CASCADE` to a table of a role of the owner",
                    "DELETE FROM parents",
                    "DELETE",
                )
                .on("children")
                .writes_as("orders_app", AS_OWNER),
                route(
                    "`ON UPDATE CASCADE` to a table of a role of the owner",
                    "UPDATE parents SET id = id + 1",
                    "UPDATE",
                )
                .on("children")
                .writes_as("orders_app", AS_OWNER),
                route(
                    "`ON DELETE SET NULL` to a table of a role of nobody",
                    "DELETE FROM elders",
                    "UPDATE",
                )
                .on("orphans")
                .writes_as("migrations", AS_TABLE_OWNER),
            ],
        ),
        (
            "Roles and sessions",
            vec![
                route("`SET ROLE` from a superuser's session", update, "UPDATE")
                    .via(Via::Superuser("SET LOCAL ROLE")),
                route("`SET SESSION AUTHORIZATION`", update, "UPDATE")
                    .via(Via::Superuser("SET LOCAL SESSION AUTHORIZATION")),
                route("`session_replication_role = replica`", update, "UPDATE").via(
                    Via::Superuser("SET LOCAL session_replication_role = replica; SET LOCAL ROLE"),
                ),
                route(
                    "With a `search_path` and settings of its own",
                    "SET LOCAL search_path = public, pg_catalog; SET LOCAL quote_all_identifiers = on; \
                     SET LOCAL cadastre.marker = 'x'; UPDATE public.orders SET status = 'x'",
                    "UPDATE",
                ),
            ],
        ),
        (
            "Beside rows",
            vec![
                route("`nextval` of a column's sequence", "SELECT nextval('items_id_seq')", "-")
                    .writes_as("", PRIVILEGE_ONLY),
                route("`setval` of a column's sequence", "SELECT setval('items_id_seq', 9)", "-")
                    .writes_as("", PRIVILEGE_ONLY),
                route("`SELECT … FOR UPDATE`", "SELECT * FROM orders FOR UPDATE", "-")
                    .writes_as("", LOCKS),
            ],
        ),
    ]
}

/// What the owner does to its tables while they are governed.
const MEANWHILE: &str = "
    CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM (200) TO (300);
    ALTER TABLE parts ATTACH PARTITION parts_came FOR VALUES FROM (400) TO (500);
    ALTER TABLE parts DETACH PARTITION parts_gone;
    CREATE TABLE twig () INHERITS (tree)";
const MEANWHILE_UNDONE: &str = "
    DROP TABLE parts_new, twig;
    ALTER TABLE parts DETACH PARTITION parts_came;
    ALTER TABLE parts ATTACH PARTITION parts_gone FOR VALUES FROM (900) TO (999)";

/// The shop's manifest with the matrix's datasets.
fn manifest(shop: &Shop, mode: &str) -> String {
    let mut text = format!(
        "apiVersion: cadastre/v1\n{}services:\n  \
         orders: {{ roles: {{ shop: [orders_app] }} }}\n  \
         billing: {{ roles: {{ shop: [billing_app] }} }}\ndatasets:\n",
        shop.source()
    );
    for dataset in DATASETS {
        writeln!(text, "  shop.public.{dataset}: {{ owner: orders, mode: {mode} }}").unwrap();
    }
    text
}

/// Runs one route under a name and leaves nothing of it. True when it was let through, false when the
/// guard rejected it, none when PostgreSQL did.
async fn attempt(client: &Client, actor: &str, name: &str, route: &Route) -> Option<bool> {
    let begin = match route.via {
        Via::Superuser(setting) => {
            let actor = if actor == "postgres" { "NONE" } else { actor };
            let setting = if actor == "NONE" {
                setting.replace("SESSION AUTHORIZATION", "ROLE")
            } else {
                setting.to_owned()
            };
            format!("BEGIN; SET LOCAL application_name = '{name}'; {setting} {actor}")
        }
        _ => format!("BEGIN; SET LOCAL application_name = '{name}'"),
    };
    let run = async {
        if route.via == Via::Copy {
            client.batch_execute(&begin).await?;
            let sink = client.copy_in::<_, &[u8]>(route.sql).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(b"10\tx\n".as_slice()).await?;
            sink.finish().await?;
        } else {
            client.batch_execute(&format!("{begin}; {}", route.sql)).await?;
        }
        if route.via == Via::Prepared {
            client.batch_execute("PREPARE TRANSACTION 'p'").await?;
            client.batch_execute("ROLLBACK PREPARED 'p'").await?;
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    let outcome = run.await;
    if route.via != Via::Copy {
        client.batch_execute("ROLLBACK; DEALLOCATE ALL; RESET ALL").await.unwrap();
    }
    if outcome.is_ok() {
        return Some(true);
    }
    let (code, message) = refused(outcome);
    assert_eq!(code, "42501", "{} by {actor}: {message}", route.name);
    message.starts_with("cadastre: ").then_some(false)
}

/// What was recorded, by the name it ran under: verdict, operation, dataset, role.
async fn recorded(shop: &Shop, last: &str) -> BTreeMap<String, [String; 4]> {
    let registry = shop.cluster.connect("registry").await;
    let query = "SELECT application, verdict, operation, dataset, role \
                 FROM cadastre_registry.violations WHERE application IS NOT NULL ORDER BY id";
    eventually(WAIT, async || {
        let rows = registry.query(query, &[]).await.unwrap();
        let found: BTreeMap<String, [String; 4]> = rows
            .iter()
            .map(|row| (row.get(0), std::array::from_fn(|column| row.get(column + 1))))
            .collect();
        // Attempts are recorded in order.
        found.contains_key(last).then_some(found)
    })
    .await
}

#[tokio::test]
async fn every_route_ends_as_the_documentation_says() {
    let shop = Shop::with_settings(&[("max_prepared_transactions", "5")]).await;
    let superuser = shop.cluster.connect("shop").await;
    superuser.batch_execute(SETUP).await.unwrap();
    let version = super::version(&superuser).await;
    for (since, sql) in SETUP_SINCE {
        if version >= since {
            superuser.batch_execute(sql).await.unwrap();
        }
    }
    let mut sessions = Vec::new();
    for (actor, _) in ACTORS {
        sessions.push(shop.session(actor).await);
    }
    let routes = routes();
    let mut outcomes = BTreeMap::new();
    for mode in MODES {
        let (status, answer) = shop.apply(&manifest(&shop, mode)).await;
        assert_eq!(status, 200, "{answer}");
        sessions[0].batch_execute(MEANWHILE).await.unwrap();
        for route in routes.iter().flat_map(|(_, routes)| routes) {
            for ((actor, _), session) in ACTORS.iter().zip(&sessions) {
                if version < route.since {
                    continue;
                }
                // A session whose COPY failed is of no more use to the client; it ends with it.
                let copying;
                let client = match route.via {
                    Via::Session | Via::Prepared => session,
                    Via::Superuser(_) => &superuser,
                    Via::Copy => {
                        copying = shop.session(actor).await;
                        &copying
                    }
                };
                let name = format!("m{}", outcomes.len());
                let outcome = attempt(client, actor, &name, route).await;
                outcomes.insert((mode, route.name, *actor), (name, outcome));
            }
        }
        sessions[0].batch_execute(MEANWHILE_UNDONE).await.unwrap();
    }
    let last = "UPDATE orders SET status = 'x' WHERE false";
    superuser.batch_execute(&format!("SET application_name = 'last'; {last}")).await.unwrap();
    let mut recorded = recorded(&shop, "last").await;

    let mut wrong = Vec::new();
    for route in routes.iter().flat_map(|(_, routes)| routes) {
        for (mode_at, mode) in MODES.into_iter().enumerate() {
            for (actor, group) in ACTORS {
                let Some((name, outcome)) = outcomes.get(&(mode, route.name, actor)) else {
                    continue;
                };
                let expected = route.expected[group as usize][mode_at];
                let passed = match expected {
                    Passes | Unseen | Recorded | Privileged => Some(true),
                    Rejected => Some(false),
                    Denied => None,
                };
                let found = recorded.remove(name);
                let record = expected.verdict().map(|verdict| {
                    let role = if route.role.is_empty() { actor } else { route.role };
                    let dataset = format!("shop.public.{}", route.dataset);
                    [verdict, route.operation, &dataset, role].map(str::to_owned)
                });
                if *outcome != passed || found != record {
                    wrong.push(format!(
                        "{} by {actor} in {mode}: expected {expected:?} and {record:?}, \
                         was {outcome:?} and {found:?}",
                        route.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells:\n{}", wrong.len(), wrong.join("\n"));
    recorded.remove("last");
    assert!(recorded.is_empty(), "recorded beside what was tried: {recorded:?}");
    assert_documented(&tables(&routes));
}

/// Asserts that the documentation holds these tables, or makes it so when `CADASTRE_UPDATE` is set.
#[track_caller]
fn assert_documented(tables: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guard-matrix.md");
    let kept = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = kept.split_once(BEGIN).unwrap();
    let (_, foot) = rest.split_once(END).unwrap();
    let found = format!("{head}{BEGIN}\n{tables}\n{END}{foot}");
    if std::env::var_os("CADASTRE_UPDATE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(
        kept == found,
        "docs/guard-matrix.md is stale; CADASTRE_UPDATE=1 with this test writes it"
    );
}

/// The tables, as found: every cell was asserted.
fn tables(routes: &[(&str, Vec<Route>)]) -> String {
    let mut text = String::new();
    for (about, routes) in routes {
        write!(
            text,
            "\n### {about}\n\n| route | owner | others: observe | enforce | lockdown | superuser |\n\
             |---|---|---|---|---|---|\n"
        )
        .unwrap();
        for route in routes {
            let together = |outcomes: [Outcome; 3]| {
                if outcomes == [outcomes[0]; 3] {
                    outcomes[0].word().to_owned()
                } else {
                    outcomes.map(Outcome::word).join(" · ")
                }
            };
            let [owner, others, superuser] = route.expected;
            let (owner, superuser) = (together(owner), together(superuser));
            let others = others.map(Outcome::word).join(" | ");
            writeln!(text, "| {} | {owner} | {others} | {superuser} |", route.name).unwrap();
        }
    }
    text
}
