//! The log's own proof that nothing is missing, and what it finds when something is.

use std::sync::Arc;
use std::time::Duration;

use cadastre::log::{Error, Log, PostgresStore, Start, Store};
use cadastre::task::Tasks;
use cadastre::vocab::{Position, SourceId};
use tokio_postgres::Client;

use super::postgres::migrated;
use super::{changes, position, read_all, told};
use crate::support::Cluster;

const SHOP: SourceId = SourceId(1);

/// The digest of lines by the documented recipe, with PostgreSQL's SHA-256.
async fn digest(client: &Client, lines: &[Vec<u8>]) -> String {
    let mut sum = 0u128;
    for line in lines {
        let line = std::str::from_utf8(line).unwrap();
        let (before, after) = line.rsplit_once(",\"ts_ms\":").unwrap();
        let content = format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()));
        let sql = "SELECT substr(sha256(convert_to($1, 'UTF8')), 1, 16)";
        let bytes: Vec<u8> = client.query_one(sql, &[&content]).await.unwrap().get(0);
        sum = sum.wrapping_add(u128::from_be_bytes(bytes.try_into().unwrap()));
    }
    format!("{sum:032x}")
}

/// A log of ten chunks of three changes, of two datasets.
async fn ten_chunks(cluster: &Cluster) -> (PostgresStore, Client) {
    let store = migrated(cluster).await;
    for chunk in 0..10 {
        let change = |i: u64| (chunk * 3 + i, i32::try_from(i % 2).unwrap() + 1, i, 0);
        store.append(SHOP, &[told(&[change(0), change(1), change(2)])]).await.unwrap();
    }
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET search_path = cadastre_registry").await.unwrap();
    (store, client)
}

#[tokio::test]
async fn anyone_can_compute_the_digest_of_what_was_read() {
    let cluster = Cluster::start().await;
    let (store, client) = ten_chunks(&cluster).await;
    let lines = changes(&read_all(&store, SHOP, Position::MIN, None, 1 << 20).await);
    for (from, to) in [(0, 99), (4, 17), (17, 18)] {
        let proof = store.prove(SHOP, position(from), position(to), 1 << 20).await.unwrap();
        for (dataset, count, sum) in proof.datasets {
            let ours: Vec<_> = lines
                .iter()
                .filter(|it| it.1 == dataset && position(from) < it.0 && it.0 <= position(to))
                .map(|it| it.3.clone())
                .collect();
            assert_eq!(ours.len() as u64, count);
            assert_eq!(digest(&client, &ours).await, sum.to_string());
        }
    }
    // The chain can be followed without this program.
    let sql = "SELECT bool_and(chain = sha256(previous
                   || convert_to(first_position || last_position, 'UTF8') || checksum)
                   AND checksum = sha256(payload)) FROM log_chunks";
    assert!(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));
    let sql = "SELECT sum(c.changes) = max(e.changes) FROM log_chunks c JOIN log_ends e USING (source_id)";
    assert!(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "counters reconcile");
}

#[tokio::test]
async fn every_way_to_lose_or_change_something_is_found_where_it_is() {
    let cluster = Cluster::start().await;
    let (store, client) = ten_chunks(&cluster).await;
    let at = |n: u64| position(n).to_string();
    let (fourth, last) = (at(11), at(29));
    for (damage, place, said) in [
        (
            format!(
                "UPDATE log_chunks SET payload = payload || 'x' WHERE last_position = '{fourth}'"
            ),
            Some(11),
            "checksum",
        ),
        (
            format!(
                "UPDATE log_chunks SET payload = o.payload, checksum = o.checksum FROM \
                 (SELECT * FROM log_chunks WHERE last_position = '{}') o \
                 WHERE log_chunks.last_position = '{fourth}'",
                at(8)
            ),
            Some(11),
            "not what it says",
        ),
        (format!("DELETE FROM log_chunks WHERE last_position = '{fourth}'"), Some(14), "missing"),
        (format!("DELETE FROM log_chunks WHERE last_position = '{}'", at(2)), Some(5), "missing"),
        (format!("DELETE FROM log_chunks WHERE last_position = '{last}'"), None, "goes on to"),
        ("DELETE FROM log_chunks".to_owned(), None, "goes on to"),
        (
            format!(
                "UPDATE log_parts SET total_digest = total_digest || '' , changes = 7 \
                     WHERE dataset_id = 1 AND last_position = '{fourth}'"
            ),
            Some(11),
            "2 changes, not 7",
        ),
        (
            format!(
                "UPDATE log_parts SET total_changes = total_changes + 1 \
                     WHERE dataset_id = 2 AND last_position = '{fourth}'"
            ),
            Some(11),
            "running digest",
        ),
        (
            format!("UPDATE log_chunks SET changes = 2 WHERE last_position = '{fourth}'"),
            Some(11),
            "3 changes, not 2",
        ),
    ] {
        client
            .batch_execute("CREATE TABLE c AS TABLE log_chunks; CREATE TABLE p AS TABLE log_parts")
            .await
            .unwrap();
        client.batch_execute(&damage).await.unwrap();
        let proof = store.prove(SHOP, Position::MIN, Position::MAX, 1 << 20).await.unwrap();
        let broken = proof.broken.unwrap_or_else(|| panic!("not found: {damage}"));
        assert!(broken.reason.contains(said), "{damage}: {broken}");
        assert_eq!(broken.chunk, place.map(position), "{damage}: {broken}");
        assert!(!proof.complete);
        let repair = "TRUNCATE log_chunks, log_parts; INSERT INTO log_chunks TABLE c; \
                      INSERT INTO log_parts TABLE p; DROP TABLE c, p";
        client.batch_execute(repair).await.unwrap();
        let proof = store.prove(SHOP, Position::MIN, Position::MAX, 1 << 20).await.unwrap();
        assert_eq!((proof.broken, proof.complete), (None, true), "after {damage}");
    }
}

#[tokio::test]
async fn a_large_log_is_proved_look_by_look() {
    let cluster = Cluster::start().await;
    let (store, _client) = ten_chunks(&cluster).await;
    let (mut from, mut looks, mut count) = (Position::MIN, 0, 0);
    loop {
        let proof = store.prove(SHOP, from, position(28), 300).await.unwrap();
        assert_eq!(proof.broken, None);
        (from, looks) = (proof.upto, looks + 1);
        count += proof.datasets.iter().map(|(_, changes, _)| changes).sum::<u64>();
        if proof.complete {
            break;
        }
    }
    assert_eq!((from, count), (position(28), 29));
    assert!(looks > 2, "{looks}");
}

#[tokio::test]
async fn damage_is_told_to_the_reader_and_stays_said_until_it_is_mended() {
    let cluster = Cluster::start().await;
    let (store, client) = ten_chunks(&cluster).await;
    let tasks = Tasks::new();
    let log = Log::new(Arc::new(store), &tasks, Duration::ZERO);
    let damage = format!(
        "CREATE TABLE kept AS SELECT * FROM log_chunks WHERE last_position = '{0}'; \
         UPDATE log_chunks SET payload = set_byte(payload, 9, get_byte(payload, 9) # 4) \
         WHERE last_position = '{0}'",
        position(11)
    );
    client.batch_execute(&damage).await.unwrap();
    let mut reader = log.reader(SHOP, Start::Earliest, None);
    let error = loop {
        if let Err(error) = reader.next().await {
            break error;
        }
    };
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("checksum"));
    let said = log.trouble(SHOP).unwrap();
    assert!(said.contains(&position(11).to_string()), "{said}");
    assert!(log.prove(SHOP, Position::MIN, Position::MAX).await.unwrap().broken.is_some());
    assert!(log.trouble(SHOP).is_some());
    let mend = "UPDATE log_chunks c SET payload = k.payload FROM kept k \
                WHERE c.last_position = k.last_position";
    client.batch_execute(mend).await.unwrap();
    assert_eq!(log.prove(SHOP, Position::MIN, Position::MAX).await.unwrap().broken, None);
    assert_eq!(log.trouble(SHOP), None);
}
