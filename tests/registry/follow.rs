//! Several instances on one database, and none.

use std::time::{Duration, Instant};

use cadastre::registry::{Error, Registry, Revision};
use cadastre::task::Tasks;
use cadastre::vocab::{Mode, Retry};

use super::{dataset, migrated, open, service, shop};
use crate::support::{Cluster, eventually};

const GRACE: Duration = Duration::from_secs(5);

/// Has the instance follow the database.
fn following(registry: &Registry) -> Tasks {
    let tasks = Tasks::new();
    tasks.spawn("registry", registry.clone().run(tasks.stopping()));
    tasks
}

/// Waits until the instance has been told of a revision by itself.
async fn sees(registry: &Registry, revision: Revision, deadline: Duration) {
    let mut changes = registry.changes();
    let told = changes.wait_for(|seen| *seen >= revision);
    tokio::time::timeout(deadline, told).await.expect("told in time").expect("a live registry");
    assert!(registry.snapshot().revision >= revision);
}

async fn listening(cluster: &Cluster) {
    let watcher = cluster.connect("postgres").await;
    eventually(Duration::from_secs(10), || async {
        let sql = "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
        watcher.query_opt(sql, &[]).await.expect("look for the listener")
    })
    .await;
}

#[tokio::test]
async fn another_instance_hears_of_a_mutation_at_once() {
    let cluster = migrated().await;
    let (writer, reader) = (open(&cluster).await, open(&cluster).await);
    let tasks = following(&reader);
    listening(&cluster).await;
    shop(&writer).await;
    // Sooner than the look that is only the net.
    sees(&reader, Revision(1), Duration::from_secs(2)).await;
    assert_eq!(reader.snapshot().datasets, writer.snapshot().datasets);
    assert!(tasks.stop(GRACE).await);
}

#[tokio::test]
async fn an_instance_that_heard_nothing_sees_it_soon() {
    let cluster = migrated().await;
    let reader = open(&cluster).await;
    let tasks = following(&reader);
    listening(&cluster).await;
    // A change that nobody announces.
    let sql = "UPDATE cadastre_registry.registry_state SET revision = revision + 1";
    cluster.connect("postgres").await.batch_execute(sql).await.unwrap();
    sees(&reader, Revision(1), Duration::from_secs(10)).await;
    assert!(tasks.stop(GRACE).await);
}

#[tokio::test]
async fn reads_never_wait_while_postgresql_is_stopped() {
    let cluster = migrated().await;
    let (registry, writer) = (open(&cluster).await, open(&cluster).await);
    shop(&registry).await;
    let tasks = following(&registry);
    listening(&cluster).await;
    cluster.stop_immediate().await;
    let (orders, name) = ("orders".parse().unwrap(), "shop.public.orders".parse().unwrap());
    let begun = Instant::now();
    for _ in 0..1_000 {
        assert!(registry.snapshot().can_write(&orders, &name).unwrap().allowed);
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    let error = registry.apply(&[service("late", &[])]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(error.retry(), Retry::Later);
    assert!(registry.ping().await.is_err());
    assert_eq!(registry.snapshot().revision, Revision(1));
    cluster.start_again().await;
    eventually(Duration::from_secs(10), || async { writer.ping().await.ok() }).await;
    let revision = writer.apply(&[dataset("orders", "billing", Mode::Enforce)]).await.unwrap();
    sees(&registry, revision, Duration::from_secs(20)).await;
    assert!(!registry.snapshot().can_write(&orders, &name).unwrap().allowed);
    assert!(tasks.stop(GRACE).await);
}

#[tokio::test]
async fn revisions_that_a_reader_sees_never_go_backwards() {
    let cluster = migrated().await;
    let (registry, other) = (open(&cluster).await, open(&cluster).await);
    let tasks = following(&registry);
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let writer = if number % 2 == 0 { registry.clone() } else { other.clone() };
        let refresher = registry.clone();
        writers.spawn(async move {
            let revision = writer.apply(&[service(&format!("s{number}"), &[])]).await.unwrap();
            assert!(writer.snapshot().revision >= revision);
            assert!(refresher.refresh().await.unwrap() >= revision);
        });
    }
    let mut last = Revision(0);
    while writers.try_join_next().is_some_and(|result| result.map(|()| true).unwrap())
        || !writers.is_empty()
    {
        let snapshot = registry.snapshot();
        assert!(snapshot.revision >= last);
        assert!(snapshot.services.len() >= usize::try_from(last.0).unwrap());
        last = snapshot.revision;
        tokio::task::yield_now().await;
    }
    assert_eq!(registry.refresh().await.unwrap(), Revision(20));
    assert!(tasks.stop(GRACE).await);
}
