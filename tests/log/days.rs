//! Days of the log: made ahead, cut when their time is over, dropped whole.

use std::sync::Arc;
use std::time::Duration;

use cadastre::log::{Error, GapReason, Policy, PostgresStore, Retention, Store};
use cadastre::task::Tasks;
use cadastre::vocab::{Position, SourceId};
use tokio_postgres::Client;

use super::postgres::migrated;
use super::{batch, changes, position, read_all};
use crate::support::{Cluster, WAIT, eventually};

const SHOP: SourceId = SourceId(1);
const CRM: SourceId = SourceId(2);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A session in the registry's schema.
async fn session(cluster: &Cluster) -> Client {
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET search_path = cadastre_registry").await.unwrap();
    client
}

/// The days that have a partition, as days from today.
async fn partitions(client: &Client) -> Vec<i32> {
    let sql = "SELECT to_date(right(relname, 8), 'YYYYMMDD') - (now() AT TIME ZONE 'UTC')::date
               FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
               WHERE inhparent = 'log_chunks'::regclass ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Makes what a source appended last look as if it had been on the day so many days ago.
async fn backdate(client: &Client, source: SourceId, n: u64, days: i32) {
    let sql = format!(
        "DO $$ DECLARE old date := (now() AT TIME ZONE 'UTC')::date - {days}; t text; BEGIN
             FOREACH t IN ARRAY ARRAY['log_chunks', 'log_parts'] LOOP
                 IF to_regclass(t || '_' || to_char(old, 'YYYYMMDD')) IS NULL THEN
                     EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                         t || '_' || to_char(old, 'YYYYMMDD'), t, old, old + 1);
                 END IF;
                 EXECUTE format('UPDATE %I SET day = %L WHERE source_id = {source}
                     AND last_position = {position:?}', t, old);
             END LOOP;
             DELETE FROM log_days;
             INSERT INTO log_days SELECT source_id, day, min(first_position), max(last_position),
                 count(*), sum(changes), sum(octet_length(payload)) FROM log_chunks GROUP BY 1, 2;
         END $$",
        source = source.0,
        position = position(n).to_string(),
    );
    client.batch_execute(&sql.replace('"', "''")).await.unwrap();
}

async fn append(store: &dyn Store, source: SourceId, n: u64) {
    store.append(source, &[batch(&[(n, 1)], 2000)]).await.unwrap();
}

/// The positions a source's log holds.
async fn held(store: &dyn Store, source: SourceId) -> Vec<Position> {
    let from = store.extent(source).await.unwrap().trimmed;
    let batches = read_all(store, source, from, None, 1 << 20).await;
    changes(&batches).into_iter().map(|change| change.0).collect()
}

/// Runs retention until `done`.
async fn retain(
    store: &Arc<PostgresStore>,
    policy: impl Fn(SourceId) -> Policy + Send + Sync + 'static,
    done: impl AsyncFn() -> bool,
) {
    let tasks = Tasks::new();
    let store: Arc<dyn Store> = Arc::<PostgresStore>::clone(store);
    let retention =
        Retention { store, policies: Arc::new(policy), every: Duration::from_millis(20) };
    tasks.spawn("retention", retention.run(tasks.stopping()));
    eventually(WAIT, async || done().await.then_some(())).await;
    assert!(tasks.stop(WAIT).await);
}

#[tokio::test]
async fn an_append_finds_a_partition_at_any_time_and_after_any_absence() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    let client = session(&cluster).await;
    assert!(partitions(&client).await.is_empty());
    append(&store, SHOP, 1).await;
    assert_eq!(partitions(&client).await, [0, 1, 2], "the coming days are ready");
    // As after days without a server: none of the days that were made is of use any more.
    let drop = "DO $$ DECLARE t text; BEGIN
        FOR t IN SELECT inhrelid::regclass FROM pg_inherits
            WHERE inhparent IN ('log_chunks'::regclass, 'log_parts'::regclass)
        LOOP EXECUTE 'DROP TABLE ' || t; END LOOP; END $$";
    client.batch_execute(drop).await.unwrap();
    append(&store, SHOP, 2).await;
    assert_eq!(partitions(&client).await, [0, 1, 2]);
    // As if the clock had been ahead: days never fall within a source.
    client.batch_execute("UPDATE log_ends SET day = day + 9").await.unwrap();
    append(&store, SHOP, 3).await;
    append(&store, SHOP, 4).await;
    assert_eq!(partitions(&client).await, [0, 1, 2, 9]);
    let days = store.days().await.unwrap();
    assert!(days.is_sorted_by(|a, b| a.day < b.day && a.last < b.last), "{days:?}");
    // Two instances may get ready at the same time.
    let again = migrated(&cluster).await;
    let (one, other) = tokio::join!(store.prepare(), again.prepare());
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
async fn days_whose_time_is_over_are_dropped_whole_and_others_left_alone() {
    let cluster = Cluster::start().await;
    let store = Arc::new(migrated(&cluster).await);
    let client = session(&cluster).await;
    for (n, age) in [(1, 9), (2, 8), (3, 1), (4, 0)] {
        append(&*store, SHOP, n).await;
        append(&*store, CRM, n).await;
        backdate(&client, SHOP, n, age).await;
        backdate(&client, CRM, n, age).await;
    }
    // One source keeps longer than the other: its day stays, the other's part of it goes.
    let policy = |source| {
        let age = if source == CRM { DAY * 8 } else { DAY * 5 };
        Policy { age, bytes: u64::MAX, bytes_max: u64::MAX }
    };
    let left = async || {
        let sql = "SELECT source_id FROM log_chunks WHERE last_position <= $1 ORDER BY 1";
        let rows = client.query(sql, &[&position(2).to_string()]).await.unwrap();
        rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>()
    };
    retain(&store, policy, async || {
        partitions(&client).await == [-8, -1, 0, 1, 2] && left().await == [CRM.0]
    })
    .await;
    assert_eq!(held(&*store, SHOP).await, [position(3), position(4)]);
    assert_eq!(held(&*store, CRM).await, [position(2), position(3), position(4)]);
    let error = store.read(SHOP, position(1), None, 1000).await.unwrap_err();
    assert!(matches!(error, Error::Trimmed { earliest } if earliest == position(2)), "{error}");
    assert_eq!(store.cut_reason(SHOP).await.unwrap(), GapReason::Retention);
    // The chain holds over what is left.
    let proof = store.prove(SHOP, position(2), Position::MAX, 1 << 20).await.unwrap();
    assert_eq!((proof.chunks, proof.broken), (2, None));
}

#[tokio::test]
async fn size_cuts_within_a_day_and_a_protected_reader_only_at_the_hard_limit() {
    let cluster = Cluster::start().await;
    let store = Arc::new(migrated(&cluster).await);
    for n in 1..=10 {
        append(&*store, SHOP, n).await;
    }
    let each = store.totals(SHOP).await.unwrap().bytes / 10;
    store.protect(SHOP, "billing-orders", position(3)).await.unwrap();
    let soft = move |_| Policy { age: DAY * 100, bytes: 6 * each, bytes_max: u64::MAX };
    retain(&store, soft, async || {
        store.extent(SHOP).await.unwrap().trimmed == position(3)
            && store.totals(SHOP).await.unwrap().held == 7
    })
    .await;
    assert_eq!(held(&*store, SHOP).await, (4..=10).map(position).collect::<Vec<_>>());
    let hard = move |_| Policy { age: DAY * 100, bytes: 6 * each, bytes_max: 6 * each };
    retain(&store, hard, async || store.totals(SHOP).await.unwrap().held < 7).await;
    assert!(store.extent(SHOP).await.unwrap().trimmed > position(3), "the hard limit is hard");
    assert_eq!(store.cut_reason(SHOP).await.unwrap(), GapReason::Size);
    assert_eq!(store.extent(SHOP).await.unwrap().last, position(10));
    append(&*store, SHOP, 11).await;
}

#[tokio::test]
async fn a_day_that_is_being_read_does_not_hold_up_appends() {
    let cluster = Cluster::start().await;
    let store = Arc::new(migrated(&cluster).await);
    let client = session(&cluster).await;
    append(&*store, SHOP, 1).await;
    backdate(&client, SHOP, 1, 9).await;
    append(&*store, SHOP, 2).await;
    let mut reading = session(&cluster).await;
    let held_open = reading.transaction().await.unwrap();
    held_open.query("SELECT count(*) FROM log_chunks", &[]).await.unwrap();
    store.trim(SHOP, position(1)).await.unwrap();
    assert!(store.sweep().await.is_err(), "the partition is in use");
    append(&*store, SHOP, 3).await;
    assert_eq!(held(&*store, SHOP).await, [position(2), position(3)]);
    held_open.rollback().await.unwrap();
    store.sweep().await.unwrap();
    assert!(!partitions(&client).await.contains(&-9));
}
