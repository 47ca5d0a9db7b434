//! Tables of every kind: what a subscriber makes of the feed is what is in the table.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Shop;
use crate::support::WAIT;

/// Types of extensions where the server has them; else domains stand in for them.
const SETUP: &str = "
    DO $$
    DECLARE wanted text;
    BEGIN
      FOREACH wanted IN ARRAY ARRAY['hstore', 'citext', 'ltree'] LOOP
        IF EXISTS (SELECT FROM pg_available_extensions e WHERE e.name = wanted) THEN
          EXECUTE format('CREATE EXTENSION %I', wanted);
        ELSE
          EXECUTE format('CREATE DOMAIN %I AS text', wanted);
        END IF;
      END LOOP;
    END $$;
    CREATE SCHEMA kinds AUTHORIZATION orders_app;
    SET ROLE orders_app;
    CREATE TABLE kinds.parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE kinds.parted_low PARTITION OF kinds.parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE kinds.parted_high PARTITION OF kinds.parted FOR VALUES FROM (100) TO (200);
    CREATE TABLE kinds.computed (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
    CREATE TABLE kinds.whole (id int, v text);
    ALTER TABLE kinds.whole REPLICA IDENTITY FULL;
    CREATE TABLE kinds.indexed (id int NOT NULL, v text);
    CREATE UNIQUE INDEX indexed_id ON kinds.indexed (id);
    ALTER TABLE kinds.indexed REPLICA IDENTITY USING INDEX indexed_id;
    CREATE TYPE kinds.mood AS ENUM ('calm');
    CREATE TYPE kinds.pair AS (a int, b text);
    CREATE DOMAIN kinds.positive AS int CHECK (value > 0);
    CREATE TABLE kinds.typed (id int PRIMARY KEY, h public.hstore, c public.citext, l public.ltree,
      mood kinds.mood, pair kinds.pair, amount kinds.positive);
    RESET ROLE;
";

/// What the owner does, each line a transaction.
const STORY: &str = "
    INSERT INTO kinds.parted SELECT i, 'v' FROM generate_series(1, 150, 50) i;
    UPDATE kinds.parted SET v = 'w' WHERE id = 1;
    UPDATE kinds.parted SET id = 120 WHERE id = 51;
    DELETE FROM kinds.parted WHERE id = 101;
    INSERT INTO kinds.parted_low VALUES (7, 'direct');

    INSERT INTO kinds.computed VALUES (1, 10), (2, 20);
    UPDATE kinds.computed SET v = 11 WHERE id = 1;
    UPDATE kinds.computed SET id = 3 WHERE id = 2;

    INSERT INTO kinds.whole VALUES (1, 'a'), (2, 'b'), (3, NULL);
    UPDATE kinds.whole SET v = 'c' WHERE id = 2;
    UPDATE kinds.whole SET id = 4 WHERE v IS NULL;
    DELETE FROM kinds.whole WHERE id = 1;

    INSERT INTO kinds.indexed VALUES (1, 'a'), (2, 'b');
    UPDATE kinds.indexed SET id = 5 WHERE id = 1;
    DELETE FROM kinds.indexed WHERE id = 2;

    INSERT INTO kinds.typed VALUES (1, 'a=>1, b=>NULL', 'CaSe', 'top.sub', 'calm', '(1,x)', 5);
    ALTER TYPE kinds.mood ADD VALUE 'wild';
    INSERT INTO kinds.typed (id, mood) VALUES (2, 'wild');
    ALTER TYPE kinds.mood RENAME VALUE 'calm' TO 'mild';
    INSERT INTO kinds.typed (id, mood) VALUES (3, 'mild');
    ALTER TYPE kinds.pair ADD ATTRIBUTE c int;
    UPDATE kinds.typed SET pair = '(2,y,3)' WHERE id = 2;
    ALTER TABLE kinds.typed ALTER COLUMN amount TYPE bigint;
    UPDATE kinds.typed SET amount = 9007199254740993 WHERE id = 2;
    VACUUM FULL kinds.typed;
    CLUSTER kinds.indexed USING indexed_id;
    INSERT INTO kinds.indexed VALUES (6, 'after'), (7, 'too');
    TRUNCATE kinds.whole;
    INSERT INTO kinds.whole VALUES (9, 'anew');
    INSERT INTO kinds.typed (id) VALUES (999)
";

const TABLES: [&str; 5] = ["computed", "indexed", "parted", "typed", "whole"];

impl Shop {
    /// The shop with tables of every kind, governed, among publications that others have made.
    async fn of_every_kind() -> Self {
        let shop = Self::ungoverned().await;
        let superuser = shop.cluster.connect("shop").await;
        superuser.batch_execute(SETUP).await.unwrap();
        let mut manifest = shop.manifest("enforce");
        for table in TABLES {
            manifest
                .push_str(&format!("  shop.kinds.{table}: {{ owner: orders, mode: enforce }}\n"));
        }
        let (status, answer) = shop.apply(&manifest).await;
        assert_eq!(status, 200, "{answer}");
        let version: i32 = superuser
            .query_one("SELECT current_setting('server_version_num')::int", &[])
            .await
            .unwrap()
            .get(0);
        superuser.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
        if version >= 150_000 {
            // What others publish in part is whole here.
            superuser
                .batch_execute(
                    "DROP PUBLICATION everything;
                     CREATE PUBLICATION some_rows FOR TABLE kinds.typed WHERE (id < 2);
                     CREATE PUBLICATION some_columns FOR TABLE kinds.indexed (id);
                     CREATE PUBLICATION a_schema FOR TABLES IN SCHEMA kinds",
                )
                .await
                .unwrap();
        }
        shop
    }

    /// The events of all these tables up to the row that comes last.
    async fn events_of_every_kind(&self) -> Vec<Value> {
        let names: Vec<String> = TABLES.map(|table| format!("shop.kinds.{table}")).into();
        let url = format!("/v1/feed?datasets={}&after=earliest", names.join(","));
        let request = self.server.client().get(self.server.at(&url));
        let mut response = request.header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let (mut text, mut events) = (String::new(), Vec::<Value>::new());
        while events.last().is_none_or(|event| event["after"]["id"] != 999) {
            let bytes = tokio::time::timeout(WAIT, response.chunk()).await;
            let bytes = bytes.expect("events arrive in time").unwrap().expect("the feed goes on");
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let lines: String = text.drain(..whole).collect();
            let lines = lines.lines().filter(|line| !line.is_empty());
            events.extend(lines.map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        events
    }
}

/// What a subscriber makes of the events: the rows of each table by key.
fn applied(events: &[Value]) -> BTreeMap<(String, i64), Value> {
    let mut rows = BTreeMap::new();
    for event in events {
        let table = event["dataset"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        let key = |row: &Value| row["id"].as_i64();
        if let Some(id) = key(&event["before"]) {
            rows.remove(&(table.clone(), id));
        }
        match event["op"].as_str() {
            Some("t") => rows.retain(|(of, _), _| *of != table),
            Some(_) => {
                if let Some(id) = key(&event["after"]) {
                    rows.insert((table, id), event["after"].clone());
                }
            }
            None => {}
        }
    }
    rows
}

#[tokio::test]
async fn the_feed_is_the_table_whatever_kind_it_is() {
    let shop = Shop::of_every_kind().await;
    let owner = shop.session("orders_app").await;
    for statement in STORY.split(";\n") {
        owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let events = shop.events_of_every_kind().await;
    let version = "SELECT current_setting('server_version_num')::int";
    let version: i32 = owner.query_one(version, &[]).await.unwrap().get(0);
    // Generated columns can be published from 18 on, if they are stored.
    let computed = if version < 180_000 {
        "SELECT id, v FROM kinds.computed"
    } else {
        "SELECT id, v, twice FROM kinds.computed"
    };
    // As the feed writes them: what a value is made of is told by the version that its row names.
    let queries = [
        ("computed", computed),
        ("indexed", "SELECT id, v FROM kinds.indexed"),
        ("parted", "SELECT id, v FROM kinds.parted"),
        ("whole", "SELECT id, v FROM kinds.whole"),
        (
            "typed",
            "SELECT id, h::text, c::text, l::text, mood, pair, \
             CASE WHEN amount > 9007199254740992 THEN to_jsonb(amount::text) ELSE to_jsonb(amount) END AS amount \
             FROM kinds.typed",
        ),
    ];
    let mut expected = BTreeMap::new();
    for (table, query) in queries {
        let rows = format!("SELECT x.id::int8, to_jsonb(x)::text FROM ({query}) x");
        for row in owner.query(&rows, &[]).await.unwrap() {
            let text: &str = row.get(1);
            let value: Value = serde_json::from_str(text).unwrap();
            expected.insert((table.to_owned(), row.get::<_, i64>(0)), value);
        }
    }
    let mut found = applied(&events);
    // Rows that were written before a value was renamed, or a type had another attribute, were told as
    // they were then: the events in between say what became of the type.
    let first = found.get_mut(&("typed".to_owned(), 1)).unwrap();
    assert_eq!((&first["mood"], &first["pair"]), (&json!("calm"), &json!({"a": 1, "b": "x"})));
    first["mood"] = json!("mild");
    first["pair"]["c"] = Value::Null;
    for (key, row) in &expected {
        assert_eq!(found.get(key), Some(row), "{key:?}");
    }
    assert_eq!(found.len(), expected.len());

    let told: Vec<&Value> = events
        .iter()
        .filter(|event| event["dataset"] == "shop.kinds.typed")
        .filter_map(|event| event.get("schema"))
        .collect();
    let differences: Vec<&Value> = told.iter().map(|schema| &schema["difference"]).collect();
    assert_eq!(
        differences[..3],
        [
            &json!({"types": [{"type": "kinds.mood", "added": ["wild"]}]}),
            &json!({"types": [{"type": "kinds.mood", "added": ["mild"], "removed": ["calm"]}]}),
            &json!({"types": [{"type": "kinds.pair", "added": ["c"]}]}),
        ]
    );
    assert_eq!(differences[3]["retyped"][0]["column"], "amount");
    assert_eq!(told.len(), 4, "a table that is only written anew is no other table");
}

#[tokio::test]
async fn rows_that_come_and_go_with_a_part_are_told_as_such() {
    let shop = Shop::of_every_kind().await;
    let owner = shop.session("orders_app").await;
    owner
        .batch_execute(
            "CREATE TABLE kinds.loose (id int PRIMARY KEY, v text);
             INSERT INTO kinds.loose VALUES (250, 'brought');
             ALTER TABLE kinds.parted ATTACH PARTITION kinds.loose FOR VALUES FROM (200) TO (300);
             UPDATE kinds.parted SET v = 'seen' WHERE id = 250;
             ALTER TABLE kinds.parted DETACH PARTITION kinds.loose;
             INSERT INTO kinds.parted VALUES (1, 'stays')",
        )
        .await
        .unwrap();
    let events = shop.changes("shop.kinds.parted", 4).await;
    let part = json!({"schema": "kinds", "table": "loose"});
    let seen: Vec<Value> = events
        .iter()
        .map(|event| match event.get("schema") {
            Some(schema) => json!([schema["kind"], schema["part"], schema.get("version")]),
            None => json!([event["op"], event["after"], event["schema_version"]]),
        })
        .collect();
    assert_eq!(
        seen,
        [
            json!(["attached", part, null]),
            json!(["u", {"id": 250, "v": "seen"}, 1]),
            json!(["detached", part, null]),
            json!(["c", {"id": 1, "v": "stays"}, 1]),
        ]
    );
}

#[tokio::test]
async fn what_would_break_its_owner_once_published_is_refused_with_the_remedy() {
    let shop = Shop::ungoverned().await;
    let superuser = shop.cluster.connect("shop").await;
    let version: i32 = superuser
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap()
        .get(0);
    // From 18 on, FULL means generated columns too, and virtual ones cannot be published.
    let computed = if version < 180_000 { "STORED" } else { "VIRTUAL" };
    superuser
        .batch_execute(&format!(
            "CREATE TABLE silent (id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
             CREATE TABLE heap (id int);
             CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
             CREATE TABLE doubled (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) {computed});
             ALTER TABLE doubled REPLICA IDENTITY FULL"
        ))
        .await
        .unwrap();
    let mut manifest = shop.manifest("enforce");
    for table in ["silent", "heap", "fleeting", "doubled"] {
        manifest.push_str(&format!("  shop.public.{table}: {{ owner: orders }}\n"));
    }
    let (status, answer) = shop.apply(&manifest).await;
    assert_eq!(status, 422, "{answer}");
    for (told, from) in [
        ("ALTER TABLE \\\"public\\\".\\\"silent\\\" REPLICA IDENTITY DEFAULT", 0),
        ("ALTER TABLE \\\"public\\\".\\\"heap\\\" REPLICA IDENTITY FULL", 0),
        ("ALTER TABLE \\\"public\\\".\\\"fleeting\\\" SET LOGGED", 0),
        ("ALTER TABLE \\\"public\\\".\\\"doubled\\\" REPLICA IDENTITY DEFAULT", 180_000),
    ] {
        assert_eq!(answer.contains(told), version >= from, "{told} in {answer}");
    }
}
