//! The feed over a registry and a log in PostgreSQL.
#![expect(clippy::unwrap_used, reason = "where it fails the test has")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cadastre::config::{PostgresOptions, SnapshotOptions};
use cadastre::feed::{After, Cursor, Error, Feed, Request, Shape};
use cadastre::log::{Batch, BatchBuilder, Log, PostgresStore, Store};
use cadastre::pg::{Pool, migrate};
use cadastre::registry::{Mutation, Registry};
use cadastre::task::Tasks;
use cadastre::vocab::{DatasetId, Epoch, Lsn, Mode, Op, Position};
use tokio::time::timeout;

use crate::support::{Cluster, WAIT};

/// A registry with two datasets of one source, and a pool beside it.
async fn registered(cluster: &Cluster) -> (Registry, Pool) {
    let (target, options) = (cluster.target("postgres"), PostgresOptions::default());
    migrate(&target, &options).await.unwrap();
    let pool = Pool::new(&target, &options).unwrap();
    let registry = Registry::open(pool.clone()).await.unwrap();
    let dataset = |name: &str| Mutation::DatasetPut {
        name: name.parse().unwrap(),
        owner: "orders".parse().unwrap(),
        mode: Mode::Enforce,
        description: None,
        tags: Vec::new(),
        columns: Default::default(),
        derived_from: Vec::new(),
    };
    let shop = [
        Mutation::SourcePut {
            name: "shop".parse().unwrap(),
            url: "${SHOP_DATABASE_URL}".to_owned(),
        },
        Mutation::ServicePut {
            name: "orders".parse().unwrap(),
            team: None,
            contact: None,
            roles: Default::default(),
        },
        dataset("shop.public.orders"),
        dataset("shop.public.invoices"),
    ];
    registry.apply(&shop).await.unwrap();
    (registry, pool)
}

fn position(n: u64) -> Position {
    Position::new(Epoch::FIRST, Lsn::new(n), 1)
}

fn batch(n: u64, dataset: DatasetId) -> Batch {
    let mut builder = BatchBuilder::new();
    let encode = |out: &mut Vec<u8>| {
        out.extend_from_slice(format!("{{\"n\":{n}}}").as_bytes());
        Ok::<_, Infallible>(())
    };
    builder.push(position(n), dataset, Op::Create, encode).unwrap();
    builder.finish().unwrap()
}

async fn open(feed: &Feed, datasets: &[&str], after: After) -> Result<Cursor, Error> {
    let datasets = datasets.iter().map(|name| name.parse().unwrap()).collect();
    feed.open(Request { datasets, after, ops: None, shape: Shape::default() }).await
}

/// The next changes are these.
async fn expect(cursor: &mut Cursor, expected: Vec<Position>) {
    let mut found = Vec::new();
    while found.len() < expected.len() {
        let delivery = timeout(WAIT, cursor.next()).await.unwrap().unwrap();
        found.extend(delivery.iter().map(|(position, _, _)| position));
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn subscribers_go_from_history_to_live_across_a_restart_of_the_process() {
    let cluster = Cluster::start().await;
    let (registry, pool) = registered(&cluster).await;
    let orders = Arc::clone(&registry.snapshot().datasets[&"shop.public.orders".parse().unwrap()]);
    let invoices = registry.snapshot().datasets[&"shop.public.invoices".parse().unwrap()].id;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::new(pool));
    let dataset = |n: u64| if n.is_multiple_of(3) { invoices } else { orders.id };
    let of_orders = |from: u64, to: u64| -> Vec<_> {
        (from..=to).filter(|n| dataset(*n) == orders.id).map(position).collect()
    };

    let tasks = Tasks::new();
    let log = Log::new(Arc::clone(&store), &tasks, Duration::from_millis(1));
    let mut writer = log.writer(orders.source_id).await.unwrap();
    for n in 1..=300 {
        writer.append(batch(n, dataset(n)), Some(Lsn::new(n))).await.unwrap();
    }
    let mut durable = writer.durable();
    timeout(WAIT, durable.wait_for(|lsn| lsn.get() == 300)).await.unwrap().unwrap();
    assert!(tasks.stop(WAIT).await);
    drop((writer, log));

    let tasks = Tasks::new();
    let log = Log::new(Arc::clone(&store), &tasks, Duration::from_millis(1));
    let (postgres, snapshots) = (PostgresOptions::default(), SnapshotOptions::default());
    let feed = Feed::new(registry, log.clone(), postgres, snapshots);
    let mut earliest = open(&feed, &["shop.public.orders"], After::Earliest).await.unwrap();
    let mut resumed =
        open(&feed, &["shop.public.orders"], After::Position(position(200))).await.unwrap();
    let mut now = open(&feed, &["shop.public.orders"], After::Now).await.unwrap();
    expect(&mut earliest, of_orders(1, 300)).await;
    let mut writer = log.writer(orders.source_id).await.unwrap();
    assert_eq!(writer.last(), position(300));
    for n in 301..=400 {
        writer.append(batch(n, dataset(n)), None).await.unwrap();
    }
    expect(&mut earliest, of_orders(301, 400)).await;
    expect(&mut resumed, of_orders(201, 400)).await;
    expect(&mut now, of_orders(301, 400)).await;

    store.trim(orders.source_id, position(300)).await.unwrap();
    let gone = open(&feed, &["shop.public.orders"], After::Position(position(10))).await;
    assert!(matches!(gone, Err(Error::Trimmed { .. })));
    let unknown = open(&feed, &["shop.public.nothing"], After::Now).await;
    assert!(matches!(unknown, Err(Error::UnknownDataset(_))));
    assert!(tasks.stop(WAIT).await);
}
