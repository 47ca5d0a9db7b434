//! Names as PostgreSQL allows them: whatever is in one, it is only a name, from the registry through
//! the guard to the feed.

use serde_json::{Value, json};

use super::{Shop, refused, rejected};
use crate::support::WAIT;

/// Names of schemas, tables and columns: quotes of every kind, dots, commas, spaces at the ends, upper
/// case, words of SQL, what other languages and formats escape, and 63 bytes of each kind.
fn names() -> Vec<String> {
    let odd = [
        "UPPER",
        "it's; DROP TABLE orders; --",
        "back\\slash %I $1 {} %s",
        "a.b",
        "x\"; DROP TABLE orders; --",
        " comma, and spaces ",
        "žluťoučký kůň 🐎",
        "select",
        "$$;:name/*--<&>?#",
    ];
    let long = ["t".repeat(63), "名".repeat(21)];
    odd.into_iter().map(str::to_owned).chain(long).collect()
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test]
async fn a_name_is_only_a_name_from_the_registry_to_the_feed() {
    let shop = Shop::ungoverned().await;
    let superuser = shop.cluster.connect("shop").await;
    let (app, other) =
        ("O'Brien \"app\", $1", "røle'; DROP ROLE orders_app; --\"\\ x名名名名名名名名名");
    assert_eq!(other.len(), 63);
    superuser
        .batch_execute(&format!(
            "CREATE ROLE {app} LOGIN; CREATE ROLE {other} LOGIN",
            app = quote(app),
            other = quote(other)
        ))
        .await
        .unwrap();
    let mut tables = Vec::new();
    for name in names() {
        let (schema, column) =
            (quote(&format!("s{}", &name.chars().skip(1).collect::<String>())), quote(&name));
        let table = format!("{schema}.{}", quote(&name));
        superuser
            .batch_execute(&format!(
                "CREATE SCHEMA {schema} AUTHORIZATION {owner}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC; \
                 CREATE TABLE {table} (id int PRIMARY KEY, {column} text) PARTITION BY RANGE (id); \
                 ALTER TABLE {table} OWNER TO {owner}; \
                 GRANT ALL ON {table} TO {other}; GRANT UPDATE ({column}) ON {table} TO {other}; \
                 ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO {other}",
                owner = quote(app),
                other = quote(other)
            ))
            .await
            .unwrap();
        tables.push((schema, name));
    }
    let bare = |schema: &str| schema[1..schema.len() - 1].replace("\"\"", "\"");
    let part = |name: &str| {
        let plain = !name.contains(['.', ',', '"']) && name.trim() == name;
        if plain { name.to_owned() } else { quote(name) }
    };
    let datasets: Vec<String> = tables
        .iter()
        .map(|(schema, table)| format!("shop.{}.{}", part(&bare(schema)), part(table)))
        .collect();
    let manifest = |mode: &str| {
        let datasets: serde_json::Map<String, Value> = datasets
            .iter()
            .map(|name| (name.clone(), json!({"owner": "orders", "mode": mode})))
            .collect();
        // YAML holds JSON.
        json!({
            "apiVersion": "cadastre/v1",
            "sources": {"shop": {"url": shop.cluster.url("shop")}},
            "services": {
                "orders": {"roles": {"shop": [app]}},
                "billing": {"roles": {"shop": [other]}},
            },
            "datasets": datasets,
        })
        .to_string()
    };
    let (status, answer) = shop.apply(&manifest("enforce")).await;
    assert_eq!(status, 200, "{answer}");
    let (owner, intruder) = (shop.session(app).await, shop.session(other).await);

    for (schema, name) in &tables {
        let table = format!("{schema}.{}", quote(name));
        let later = format!(
            "{schema}.{}",
            quote(&format!("p{}", name.chars().skip(1).collect::<String>()))
        );
        // A partition made later, with a name as odd, is guarded at once.
        owner
            .batch_execute(&format!(
                "CREATE TABLE {later} PARTITION OF {table} FOR VALUES FROM (0) TO (10); \
                 INSERT INTO {table} VALUES (1, 'x')"
            ))
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        for statement in [
            format!("INSERT INTO {table} VALUES (2, 'x')"),
            format!("UPDATE {later} SET {} = 'y'", quote(name)),
            format!("ALTER TABLE {table} ADD COLUMN evil int"),
        ] {
            let (code, message) = refused(intruder.batch_execute(&statement).await);
            assert_eq!(code, "42501", "{statement}: {message}");
        }
        let insert = format!("INSERT INTO {table} VALUES (2, 'x')");
        rejected(&insert, intruder.batch_execute(&insert).await);
    }
    let violations = shop.violations(3 * tables.len()).await;
    for name in &datasets {
        let expected =
            ["rejected", "update", &name.to_lowercase(), "billing", &other.to_lowercase()];
        assert!(
            violations.contains(&expected.map(str::to_owned)),
            "{expected:?} in {violations:?}"
        );
    }

    // The feed names them as the registry does, and finds them by these names in one list.
    let list = datasets.join(",");
    let changes = feed(&shop, &list, tables.len()).await;
    for ((schema, table), dataset) in tables.iter().zip(&datasets) {
        let change = changes.iter().find(|change| change["dataset"] == **dataset);
        let change = change.unwrap_or_else(|| panic!("{dataset} in {changes:?}"));
        assert_eq!(change["source"]["schema"], bare(schema));
        assert_eq!(change["source"]["table"], **table);
        assert_eq!(change["after"][table.as_str()], "x");
        assert_eq!(change["writer"]["service"], "orders");
    }

    // Privileges are taken and come back, columns' and partitions' too.
    assert_eq!(shop.apply(&manifest("lockdown")).await.0, 200);
    for (schema, name) in &tables {
        let update = format!("UPDATE {schema}.{} SET {} = 'z'", quote(name), quote(name));
        let (_, message) = refused(intruder.batch_execute(&update).await);
        assert!(message.starts_with("permission denied"), "{update}: {message}");
    }
    assert_eq!(shop.apply(&manifest("observe")).await.0, 200);
    for (schema, name) in &tables {
        let update = format!("UPDATE {schema}.{} SET {} = 'z'", quote(name), quote(name));
        intruder.batch_execute(&update).await.unwrap_or_else(|error| panic!("{update}: {error:?}"));
    }
    let changes = feed(&shop, &list, 2 * tables.len()).await;
    let last = changes.last().unwrap();
    assert_eq!(last["writer"], json!({"service": "billing", "role": other, "verified": true}));

    // What is exported can be applied, and nothing was injected anywhere.
    let exported = shop.server.client().get(shop.server.at("/v1/manifest")).send().await.unwrap();
    let (status, answer) = shop.apply(&exported.text().await.unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    superuser.batch_execute("SELECT FROM orders; SET ROLE orders_app").await.unwrap();
    let left = superuser.query_one("SELECT count(*) FROM cadastre.privilege", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}

/// The first changes of a list of datasets.
async fn feed(shop: &Shop, datasets: &str, count: usize) -> Vec<Value> {
    let asked = [("datasets", datasets), ("after", "earliest")];
    let url = reqwest::Url::parse_with_params(&shop.server.at("/v1/feed"), &asked).unwrap();
    let request = shop.server.client().get(url).header("accept", "application/x-ndjson");
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (mut bytes, mut changes) = (Vec::new(), Vec::new());
    while changes.len() < count {
        let more = tokio::time::timeout(WAIT, response.chunk()).await;
        bytes.extend_from_slice(
            &more.expect("changes arrive in time").unwrap().expect("it goes on"),
        );
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = bytes.drain(..whole).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            if event.get("op").is_some() {
                changes.push(event);
            }
        }
    }
    changes
}
