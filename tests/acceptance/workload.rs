//! A random workload that runs inside PostgreSQL, and counts what it committed.

use serde_json::json;
use tokio_postgres::Client;

use super::follower::Rows;
use crate::support::{Cluster, Server};

/// Writers that run at the same time, each on its own rows and on shared ones.
pub(super) const WRITERS: i32 = 4;

/// What the follower compares its copy with.
const TABLES: [&str; 2] = ["shop.public.items", "shop.public.notes"];

/// Tables, the churning procedure and its tally. `items` has a column out of line and a default
/// replica identity, `notes` is small, has a full one and is truncated now and then.
const SETUP: &str = r#"
CREATE ROLE orders_app LOGIN;
CREATE TABLE items (
    id bigint PRIMARY KEY, writer int NOT NULL, name text, payload text,
    amount numeric(20, 4), at timestamptz, flags int[]
);
CREATE INDEX ON items (writer, id);
ALTER TABLE items ALTER payload SET STORAGE EXTERNAL;
CREATE TABLE notes (id bigint PRIMARY KEY, body text);
ALTER TABLE notes REPLICA IDENTITY FULL;
CREATE TABLE tally (op "char", n bigint NOT NULL);
CREATE SEQUENCE ids;
ALTER TABLE items OWNER TO orders_app;
ALTER TABLE notes OWNER TO orders_app;
ALTER TABLE tally OWNER TO orders_app;
ALTER SEQUENCE ids OWNER TO orders_app;
GRANT CREATE ON SCHEMA public TO orders_app;

CREATE PROCEDURE churn(me int, goal bigint) LANGUAGE plpgsql AS $$
DECLARE
    done bigint := 0; c bigint; u bigint; d bigint; t bigint; n bigint; dice int; step int;
BEGIN
    PERFORM setseed(me / 1000.0 + (SELECT count(*) % 97 FROM tally) / 1000.0);
    WHILE done < goal LOOP
        c := 0; u := 0; d := 0; t := 0;
        FOR step IN 1 .. 1 + (random() * 8)::int LOOP
            dice := (random() * 100)::int;
            IF dice < 45 THEN
                INSERT INTO items SELECT nextval('ids'), me, 'n"' || g || E'\\ \u00fc',
                    CASE WHEN random() < 0.1 THEN (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100)) ELSE 'short' END,
                    random() * 1000, clock_timestamp(), ARRAY[g, NULL]
                FROM generate_series(1, 1 + (random() * 12)::int) g;
                GET DIAGNOSTICS n = ROW_COUNT; c := c + n;
            ELSIF dice < 65 THEN
                -- TOASTed payloads stay where they are.
                UPDATE items SET name = NULL, amount = amount + 1
                WHERE id IN (SELECT id FROM items WHERE writer = me ORDER BY id DESC LIMIT 6);
                GET DIAGNOSTICS n = ROW_COUNT; u := u + n;
            ELSIF dice < 72 THEN
                -- The key changes.
                UPDATE items SET id = nextval('ids')
                WHERE id = (SELECT id FROM items WHERE writer = me ORDER BY id DESC LIMIT 1);
                GET DIAGNOSTICS n = ROW_COUNT; u := u + n;
            ELSIF dice < 82 THEN
                DELETE FROM items
                WHERE id IN (SELECT id FROM items WHERE writer = me ORDER BY id DESC LIMIT 3);
                GET DIAGNOSTICS n = ROW_COUNT; d := d + n;
            ELSIF dice < 90 THEN
                -- A savepoint that is rolled back leaves nothing behind.
                BEGIN
                    INSERT INTO items VALUES (nextval('ids'), me, 'never', 'never', 0, now(), '{}');
                    UPDATE items SET name = 'never'
                    WHERE id IN (SELECT id FROM items WHERE writer = me ORDER BY id DESC LIMIT 6);
                    RAISE EXCEPTION 'undo';
                EXCEPTION WHEN raise_exception THEN NULL;
                END;
            ELSIF dice < 98 THEN
                INSERT INTO notes VALUES (nextval('ids'), repeat('x', (random() * 50)::int));
                c := c + 1;
                UPDATE notes SET body = body || 'y' WHERE id = currval('ids');
                GET DIAGNOSTICS n = ROW_COUNT; u := u + n;
            ELSIF me = 1 AND dice = 99 THEN
                TRUNCATE notes; t := t + 1;
            END IF;
        END LOOP;
        INSERT INTO tally VALUES ('c', c), ('u', u), ('d', d), ('t', t);
        COMMIT;
        done := done + c + u + d + t;
    END LOOP;
END $$;
"#;

/// Makes database `shop` with its tables, applies the manifest through the server's API.
pub(super) async fn prepare(cluster: &Cluster, server: &Server) {
    cluster.create_database("shop").await;
    cluster.connect("shop").await.batch_execute(SETUP).await.unwrap();
    let manifest = format!(
        "apiVersion: cadastre/v1\n\
         sources:\n  shop: {{ url: \"{}\" }}\n\
         services:\n  orders: {{ roles: {{ shop: [orders_app] }} }}\n\
         datasets:\n  shop.public.items: {{ owner: orders, mode: enforce }}\n  \
         shop.public.notes: {{ owner: orders, mode: enforce }}\n",
        cluster.url("shop")
    );
    let response = server
        .client()
        .post(server.at("/v1/manifest/apply"))
        .header("content-type", "application/yaml")
        .body(manifest)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
}

/// The feed that carries the whole workload.
pub(super) fn feed_path() -> String {
    format!("/v1/feed?datasets={}", TABLES.join(","))
}

/// Runs one writer until it has committed about `goal` changes.
pub(super) async fn churn(
    client: &Client,
    writer: i32,
    goal: i64,
) -> Result<(), tokio_postgres::Error> {
    client.execute("CALL churn($1, $2)", &[&writer, &goal]).await.map(drop)
}

/// One transaction of `rows` inserts.
pub(super) async fn bulk_insert(client: &mut Client, rows: i64) {
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute(
            "INSERT INTO items SELECT nextval('ids'), 0, 'bulk', 'p', g, now(), '{1,2}' \
             FROM generate_series(1, $1::bigint) g",
            &[&rows],
        )
        .await
        .unwrap();
    transaction.execute("INSERT INTO tally VALUES ('c', $1)", &[&rows]).await.unwrap();
    transaction.commit().await.unwrap();
}

/// The last change of the workload: a follower that has seen it has seen everything.
pub(super) const END: i64 = -1;

/// Writes the last change.
pub(super) async fn finish(client: &Client) {
    client
        .batch_execute(&format!(
            "INSERT INTO items (id, writer) VALUES ({END}, 0); INSERT INTO tally VALUES ('c', 1)"
        ))
        .await
        .unwrap();
}

/// What the tables hold, in the form the feed carries it.
pub(super) async fn contents(client: &Client) -> Rows {
    let mut rows = Rows::new();
    let utc = "set time zone 'UTC'; set intervalstyle = 'iso_8601'";
    client.batch_execute(utc).await.unwrap();
    let items = "SELECT id, writer, name, payload, amount::text, \
        to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US') AS at, flags FROM items";
    for row in client.query(items, &[]).await.unwrap() {
        let (id, flags): (i64, Option<Vec<Option<i32>>>) = (row.get("id"), row.get("flags"));
        let at: Option<String> = row.get("at");
        let value = json!({
            "id": id, "writer": row.get::<_, i32>("writer"), "name": row.get::<_, Option<String>>("name"),
            "payload": row.get::<_, Option<String>>("payload"), "amount": row.get::<_, Option<String>>("amount"),
            "at": at.map(|at| trim_fraction(&at)), "flags": flags,
        });
        rows.insert((TABLES[0].to_owned(), id), value);
    }
    for row in client.query("SELECT id, body FROM notes", &[]).await.unwrap() {
        let id: i64 = row.get(0);
        rows.insert((TABLES[1].to_owned(), id), json!({"id": id, "body": row.get::<_, String>(1)}));
    }
    rows
}

/// PostgreSQL prints no trailing zeros in fractions of a second; the feed keeps to that.
fn trim_fraction(at: &str) -> String {
    format!("{}Z", at.trim_end_matches('0').trim_end_matches('.'))
}

/// How many changes of each kind were committed, by the workload's own count.
pub(super) async fn committed(client: &Client) -> Vec<(char, i64)> {
    let rows = client
        .query(
            "SELECT op::text, sum(n)::bigint FROM tally GROUP BY op HAVING sum(n) > 0 ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get::<_, String>(0).chars().next().unwrap(), row.get(1))).collect()
}
