//! `adopt` and `audit`: a database that grew without owners comes under observation, and what is
//! seen there proposes who owns what.

use serde_json::Value;

use super::{cadastre, shop};
use crate::support::{Server, WAIT, eventually};

/// Beside the shop's tables: one that several write, one that cannot be governed, a foreign key.
const GROWN: &str = "
    CREATE ROLE stock_app LOGIN;
    CREATE TABLE stock (id int PRIMARY KEY, n int);
    GRANT ALL ON stock TO stock_app, billing_app;
    CREATE TABLE heap (id int);
    CREATE TABLE lines (id int PRIMARY KEY, order_id bigint REFERENCES orders ON DELETE CASCADE);
    REVOKE ALL ON orders FROM billing_app;
    REVOKE ALL ON invoices FROM orders_app;
";

async fn tables(server: &Server, args: &[&str]) -> Vec<Value> {
    let args = [&["adopt", "shop", "--format", "json"], args].concat();
    let printed = cadastre(server, &args).await.exited(0).stdout;
    serde_json::from_str::<Value>(&printed).expect("JSON").as_array().expect("a list").clone()
}

fn table<'a>(tables: &'a [Value], name: &str) -> &'a Value {
    tables.iter().find(|it| it["dataset"] == format!("shop.public.{name}")).expect(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_use_is_adopted_in_one_step_and_owners_are_proposed_by_what_is_seen() {
    let (cluster, server) = shop().await;
    let superuser = cluster.connect("shop").await;
    superuser.batch_execute(GROWN).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cadastre.yaml");
    let file = file.to_str().unwrap();

    let known = ["--database", "${SHOP_DATABASE_URL}", "--service", "orders=orders_app"];
    let adopted = tables(&server, &[&known[..], &["-o", file]].concat()).await;
    assert_eq!(table(&adopted, "orders")["owner"], "orders", "its role alone may write it");
    for name in ["invoices", "stock", "lines"] {
        assert_eq!(table(&adopted, name)["owner"], "unowned", "{name}");
        assert_eq!(table(&adopted, name)["mode"], "observe", "{name}");
    }
    assert_eq!(table(&adopted, "heap")["owner"], Value::Null);
    assert!(table(&adopted, "heap")["problem"].as_str().unwrap().contains("REPLICA IDENTITY FULL"));
    let planned = cadastre(&server, &["plan", "-f", file]).await.exited(0).stdout;
    assert_eq!(planned, "nothing to change\n");

    // Nothing is rejected, and everything is seen.
    for (role, statement) in [
        ("billing_app", "INSERT INTO invoices VALUES (1, 1)"),
        ("billing_app", "UPDATE invoices SET amount = 2"),
        ("billing_app", "INSERT INTO stock VALUES (1, 1)"),
        ("stock_app", "UPDATE stock SET n = 2"),
        ("stock_app", "UPDATE stock SET n = 3"),
    ] {
        let session = cluster.connect_as("shop", role).await;
        session.batch_execute(statement).await.unwrap();
    }
    let seen = eventually(WAIT, async || {
        let seen = tables(&server, &["--report", "-o", file]).await;
        let transactions = |name: &str| -> i64 {
            let writers = table(&seen, name)["writers"].as_array().unwrap().clone();
            writers.iter().map(|writer| writer["transactions"].as_i64().unwrap()).sum()
        };
        (transactions("invoices") == 2 && transactions("stock") == 3).then_some(seen)
    })
    .await;
    let invoices = table(&seen, "invoices");
    assert_eq!(invoices["proposed"], "billing");
    assert_eq!(invoices["severalWriters"], false);
    assert_eq!(invoices["writers"][0]["operations"], serde_json::json!(["INSERT", "UPDATE"]));
    let stock = table(&seen, "stock");
    assert_eq!((&stock["proposed"], &stock["severalWriters"]), (&"stock".into(), &true.into()));
    let roles: Vec<_> = stock["writers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["stock_app", "billing_app"], "most transactions first");

    // The manifest that proposes the owners can be applied, and then nothing is left to do.
    let planned = cadastre(&server, &["plan", "-f", file]).await.exited(0).stdout;
    assert!(planned.contains("owner: unowned → billing"), "{planned}");
    cadastre(&server, &["apply", "-f", file, "--yes"]).await.exited(0);
    let planned = cadastre(&server, &["plan", "-f", file]).await.exited(0).stdout;
    assert_eq!(planned, "nothing to change\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_lists_what_weakens_a_promise_and_fails_from_the_severity_asked_for() {
    let (cluster, server) = shop().await;
    let superuser = cluster.connect("shop").await;
    superuser.batch_execute(GROWN).await.unwrap();
    cadastre(&server, &["audit", "--fail-on", "info"]).await.exited(0);
    let adopt =
        ["adopt", "shop", "--database", "${SHOP_DATABASE_URL}", "--service", "orders=orders_app"];
    cadastre(&server, &adopt).await.exited(0);
    let expected = [
        ("coupling", "public.lines lines_order_id_fkey", "WARNING"),
        ("owner_undecided", "shop.public.invoices", "WARNING"),
        ("owner_undecided", "shop.public.lines", "WARNING"),
        ("owner_undecided", "shop.public.stock", "WARNING"),
        ("table_unowned", "public.heap", "INFO"),
    ];
    eventually(WAIT, async || {
        let printed = cadastre(&server, &["audit", "--format", "json"]).await.exited(0).stdout;
        let findings: Value = serde_json::from_str(&printed).expect("JSON");
        let text = |it: &Value, field: &str| it[field].as_str().unwrap().replace('"', "");
        let mut found: Vec<_> = findings
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (text(it, "kind"), text(it, "object"), text(it, "severity")))
            .collect();
        found.sort();
        let expected: Vec<_> = expected
            .iter()
            .map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned()))
            .collect();
        (found == expected).then_some(())
    })
    .await;
    cadastre(&server, &["audit", "shop", "--fail-on", "error"]).await.exited(0);
    cadastre(&server, &["audit", "shop", "--fail-on", "warning"]).await.exited(1);
    cadastre(&server, &["audit", "nowhere"]).await.exited(1);
}
