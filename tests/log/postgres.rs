//! The log in PostgreSQL: its contract, its rows, and PostgreSQL going away under it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cadastre::config::PostgresOptions;
use cadastre::log::{Batch, Error, Log, PostgresStore, Start, Store};
use cadastre::pg::{Pool, migrate};
use cadastre::task::Tasks;
use cadastre::vocab::{DatasetId, Lsn, Position, SourceId};
use tokio::time::timeout;

use super::conformance::conforms;
use super::{batch, changes, position, read_all};
use crate::support::{Cluster, WAIT, eventually};

const SHOP: SourceId = SourceId(1);

pub(super) async fn migrated(cluster: &Cluster) -> PostgresStore {
    let (target, options) = (cluster.target("postgres"), PostgresOptions::default());
    migrate(&target, &options).await.unwrap();
    PostgresStore::new(Pool::new(&target, &options).unwrap())
}

#[tokio::test]
async fn the_postgres_store_keeps_the_contract() {
    let cluster = Cluster::start().await;
    conforms(&migrated(&cluster).await).await;
}

#[tokio::test]
async fn small_batches_of_one_append_share_a_chunk_and_say_what_is_in_it() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    let large = batch(&[(50, 3)], 900_000);
    let appended: Vec<Arc<Batch>> = (1..=40)
        .map(|n| batch(&[(n, i32::try_from(n % 2).unwrap())], 100))
        .chain([large])
        .collect();
    store.append(SHOP, &appended).await.unwrap();
    store.append(SHOP, &[batch(&[(51, 4)], 200_000)]).await.unwrap();
    let client = cluster.connect("postgres").await;
    let rows = client
        .query(
            "SELECT first_position, last_position, changes, bytes, datasets, \
                 octet_length(payload) < bytes AS compressed, \
                 pg_column_compression(payload) IS NULL AS external \
             FROM cadastre_registry.log_chunks ORDER BY last_position",
            &[],
        )
        .await
        .unwrap();
    let found: Vec<(String, String, i32, Vec<i32>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(4))).collect();
    let expected =
        [(1, 50, 41, vec![0, 1, 3]), (51, 51, 1, vec![4])].map(|(first, last, n, ids)| {
            (position(first).to_string(), position(last).to_string(), n, ids)
        });
    assert_eq!(found, expected);
    let bytes: usize = appended.iter().map(|batch| batch.bytes_len()).sum();
    assert_eq!(rows[0].get::<_, i32>(3), i32::try_from(bytes).unwrap());
    assert!(rows.iter().all(|row| row.get::<_, bool>(5) && row.get::<_, bool>(6)));
}

#[tokio::test]
async fn a_damaged_chunk_is_reported_with_its_place_and_only_by_those_who_read_it() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    store.append(SHOP, &[batch(&[(1, 1)], 100)]).await.unwrap();
    store.append(SHOP, &[batch(&[(2, 2)], 100)]).await.unwrap();
    let client = cluster.connect("postgres").await;
    let damage = "UPDATE cadastre_registry.log_chunks SET payload = set_byte(payload, 40, \
         get_byte(payload, 40) # 1) WHERE datasets = '{1}'";
    assert_eq!(client.execute(damage, &[]).await.unwrap(), 1);
    let error = store.read(SHOP, Position::MIN, None, 1000).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }));
    assert!(error.to_string().contains(&position(1).to_string()), "{error}");
    let intact = store.read(SHOP, Position::MIN, Some(&[DatasetId(2)]), 1000).await.unwrap();
    assert_eq!(changes(&intact.batches).len(), 1);
}

#[tokio::test]
async fn a_restart_of_postgres_is_survived_without_loss() {
    let cluster = Cluster::start().await;
    let store = Arc::new(migrated(&cluster).await);
    let tasks = Tasks::new();
    let log = Log::new(Arc::<PostgresStore>::clone(&store), &tasks, Duration::from_millis(1));
    let mut writer = log.writer(SHOP).await.unwrap();
    let mut live = log.reader(SHOP, Start::Now, None);
    let confirmed = async |writer: &cadastre::log::Writer, n: u64| {
        let mut durable = writer.durable();
        timeout(WAIT, durable.wait_for(|lsn| lsn.get() == n)).await.unwrap().unwrap();
    };
    let append = async |writer: &mut cadastre::log::Writer, n: u64| {
        let batch = Arc::into_inner(batch(&[(n, 1)], 1000)).unwrap();
        timeout(WAIT, writer.append(batch, Some(Lsn::new(n)))).await.unwrap().unwrap();
    };
    for n in 1..=10 {
        append(&mut writer, n).await;
    }
    confirmed(&writer, 10).await;
    cluster.stop_immediate().await;
    for n in 11..=20 {
        append(&mut writer, n).await;
    }
    let trouble = eventually(WAIT, async || log.trouble(SHOP)).await;
    assert!(trouble.starts_with("the log's database failed: "), "{trouble}");
    assert_eq!(writer.durable().borrow().get(), 10, "what is not durable is not confirmed");
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let slice = timeout(WAIT, live.next()).await.unwrap().unwrap();
        seen.extend(slice.iter().map(|(entry, _)| entry.position));
    }
    assert_eq!(seen, (1..=20).map(position).collect::<Vec<_>>(), "readers go on meanwhile");
    cluster.start_again().await;
    confirmed(&writer, 20).await;
    assert_eq!(log.trouble(SHOP), None);
    assert!(tasks.stop(WAIT).await);
    let kept = changes(&read_all(&*store, SHOP, Position::MIN, None, 1 << 20).await);
    assert_eq!(kept.iter().map(|change| change.0).collect::<Vec<_>>(), seen);
}

#[tokio::test]
async fn killed_sessions_in_the_middle_of_appends_neither_lose_nor_double() {
    let cluster = Cluster::start().await;
    let store = Arc::new(migrated(&cluster).await);
    let tasks = Tasks::new();
    let log = Log::new(Arc::<PostgresStore>::clone(&store), &tasks, Duration::ZERO);
    let mut writer = log.writer(SHOP).await.unwrap();
    let client = cluster.connect("postgres").await;
    for n in 1..=200 {
        let batch = Arc::into_inner(batch(&[(n, 1)], 2000)).unwrap();
        timeout(WAIT, writer.append(batch, Some(Lsn::new(n)))).await.unwrap().unwrap();
        if n % 10 == 0 {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
            client.execute(kill, &[]).await.unwrap();
        }
    }
    let mut durable = writer.durable();
    timeout(WAIT, durable.wait_for(|lsn| lsn.get() == 200)).await.unwrap().unwrap();
    let kept = changes(&read_all(&*store, SHOP, Position::MIN, None, 1 << 20).await);
    let expected: Vec<_> = (1..=200).map(position).collect();
    assert_eq!(kept.iter().map(|change| change.0).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_log_from_before_there_were_days_is_carried_over() {
    let cluster = Cluster::start().await;
    let store = migrated(&cluster).await;
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET search_path = cadastre_registry").await.unwrap();
    let days = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/2026-11-26-000500_log_days");
    let step = |name: &str| {
        let sql = std::fs::read_to_string(days.join(name)).unwrap();
        format!("BEGIN; {sql} COMMIT;")
    };
    client.batch_execute(&step("down.sql")).await.unwrap();
    let old = [batch(&[(1, 1), (2, 2)], 100), batch(&[(3, 1)], 5000)];
    for (batch, days) in old.iter().zip([2, 0]) {
        let sql = format!(
            "INSERT INTO log_chunks VALUES (1, $1, $2, {}, {}, $3, $4, now() - interval '{days} days')",
            batch.len(),
            batch.bytes_len()
        );
        let datasets: Vec<i32> = batch.datasets().iter().map(|id| id.0).collect();
        let (first, last) = (batch.first().to_string(), batch.last().to_string());
        client.execute(&sql, &[&first, &last, &datasets, &batch.compress()]).await.unwrap();
    }
    let ends = "INSERT INTO log_ends VALUES (1, $1, $2)";
    let (end, none) = (position(3).to_string(), Position::MIN.to_string());
    client.execute(ends, &[&end, &none]).await.unwrap();
    client.batch_execute(&step("up.sql")).await.unwrap();

    store.append(SHOP, &[batch(&[(4, 1)], 100)]).await.unwrap();
    let kept = changes(&read_all(&store, SHOP, Position::MIN, None, 1 << 20).await);
    assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [1, 2, 3, 4].map(position));
    let two = read_all(&store, SHOP, Position::MIN, Some(&[DatasetId(2)]), 1 << 20).await;
    assert_eq!(changes(&two).len(), 2, "one chunk, with both datasets");
    let proof = store.prove(SHOP, Position::MIN, Position::MAX, 1 << 20).await.unwrap();
    assert_eq!((proof.chunks, proof.complete, proof.broken), (3, true, None));
    let days = store.days().await.unwrap();
    assert_eq!(days.iter().map(|day| day.changes).collect::<Vec<_>>(), [2, 2]);
    let totals = store.totals(SHOP).await.unwrap();
    assert_eq!((totals.changes, totals.held), (4, 4));
}
