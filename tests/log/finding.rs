//! Changes of one dataset, of one row, since one moment: found without reading what is not asked for.

use cadastre::log::{Key, PostgresStore, Store};
use cadastre::vocab::{DatasetId, Position, SourceId};
use tokio_postgres::Client;

use super::postgres::migrated;
use super::{changes, position, told};
use crate::support::Cluster;

const SHOP: SourceId = SourceId(1);

/// A long log written straight into the tables: chunk n of 20000 holds dataset 1, every 500th
/// dataset 2 as well.
const LONG_LOG: &str = "
    SET search_path = cadastre_registry;
    WITH long AS (
        SELECT n, format('01-%s-00000001', lpad(upper(to_hex(n * 8)), 16, '0')) AS at
        FROM generate_series(100, 20099) n
    ), chunks AS (
        INSERT INTO log_chunks (source_id, day, first_position, last_position, changes, bytes,
            datasets, committed_from, committed_upto, checksum, previous, chain, payload)
        SELECT 1, (now() AT TIME ZONE 'UTC')::date, at, at, 1, 100,
            CASE WHEN n % 500 = 0 THEN '{1,2}'::int[] ELSE '{1}' END,
            to_timestamp(n), to_timestamp(n), '', '', '', 'x' FROM long
    ) INSERT INTO log_parts (source_id, dataset_id, day, last_position, changes, key_columns,
            key_filter, total_changes)
        SELECT 1, d, (now() AT TIME ZONE 'UTC')::date, at, 1, '{id}',
            CASE WHEN d = 1 THEN '\\x0000000000000000'::bytea END, n
        FROM long, unnest(CASE WHEN n % 500 = 0 THEN '{1,2}'::int[] ELSE '{1}' END) AS d;
    UPDATE log_ends SET last_position = (SELECT max(last_position) FROM log_chunks);
    UPDATE log_days SET last_position = (SELECT max(last_position) FROM log_chunks);
    ANALYZE log_chunks; ANALYZE log_parts;";

/// How PostgreSQL runs a statement of the store with these values, and what it takes from where.
async fn plan(client: &Client, statement: &str, values: &[&str]) -> String {
    let mut sql = statement.to_owned();
    for (index, value) in values.iter().enumerate().rev() {
        sql = sql.replace(&format!("${}", index + 1), value);
    }
    let explain = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}");
    let rows = client.query(&explain, &[]).await.unwrap();
    rows.iter().map(|row| format!("{}\n", row.get::<_, String>(0))).collect()
}

/// Rows that a plan takes from a table, over all its scans.
fn rows_of(plan: &str, table: &str) -> f64 {
    let scans = plan.lines().filter(|line| line.contains("Scan") && line.contains(table));
    scans
        .filter_map(|line| {
            let number = |name: &str| {
                let rest = line.split_once(name)?.1;
                rest.split([' ', ')']).next()?.parse::<f64>().ok()
            };
            Some(number("rows=")? * number("loops=")?)
        })
        .sum()
}

/// Whether a scan of chunks looks at some that it does not want.
fn reads_in_vain(plan: &str) -> bool {
    let scans =
        plan.split("->").filter(|node| node.contains("Scan") && node.contains("log_chunks"));
    scans.into_iter().any(|node| node.contains("Rows Removed by Filter"))
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_read() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    store.append(SHOP, &[told(&[(0, 1, 1, 1)])]).await.unwrap();
    let client = cluster.connect("postgres").await;
    client.batch_execute(LONG_LOG).await.unwrap();
    let [in_order, by_parts, moment] = PostgresStore::STATEMENTS.map(|statement| statement());
    let min = format!("'{}'", Position::MIN);
    let none = "'{}'";

    let rare = plan(&client, by_parts, &["1", &min, "100000", "'{2}'", none, none, none]).await;
    assert_eq!(rows_of(&rare, "log_parts"), 40.0, "{rare}");
    assert_eq!(rows_of(&rare, "log_chunks"), 40.0, "{rare}");
    assert!(!reads_in_vain(&rare), "{rare}");

    // Dataset 1 has a change in every chunk, but by their filters none of this row.
    let row = ["1", &min, "100000", "'{1}'", "'{id}'", "'{5}'", "'{7}'"];
    let row = plan(&client, by_parts, &row).await;
    assert!(rows_of(&row, "log_chunks") <= 1.0, "{row}");

    let late = format!("'{}'", position(3 * 19_000));
    let some = plan(&client, in_order, &["1", &late, "300", "NULL"]).await;
    assert!(rows_of(&some, "log_chunks") <= 256.0, "{some}");
    assert!(!reads_in_vain(&some), "{some}");

    let found = plan(&client, moment, &["1", "to_timestamp(19000)", &min]).await;
    assert_eq!(rows_of(&found, "log_chunks"), 1.0, "{found}");
}

#[tokio::test]
async fn chunks_that_cannot_hold_a_row_are_skipped() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    for n in 0..200 {
        // Ten rows a chunk, row 7 in every fiftieth.
        let row = |i: u64| if n % 50 == 0 && i == 5 { 7 } else { 1000 + n * 10 + i };
        let chunk: Vec<_> = (0..10).map(|i| (n * 10 + i, 1, row(i), 0)).collect();
        store.append(SHOP, &[told(&chunk)]).await.unwrap();
    }
    let key = Key::parse("7", Some(&["id".to_owned()])).unwrap();
    let page = store.read_row(SHOP, Position::MIN, DatasetId(1), &key, 1 << 20).await.unwrap();
    assert!((4..=12).contains(&page.batches.len()), "{} chunks of 200", page.batches.len());
    let rows = changes(&page.batches);
    let found: Vec<_> =
        rows.iter().filter(|(.., line)| key.concerns(line)).map(|change| change.0).collect();
    assert_eq!(found, [5, 505, 1005, 1505].map(position));
    let all = store.read(SHOP, Position::MIN, None, 1 << 20).await.unwrap();
    assert_eq!(all.batches.len(), 200);
}
