//! The log: its contract on every store, and its store in PostgreSQL.
#![expect(clippy::unwrap_used, reason = "where it fails the test has")]

mod conformance;
mod days;
mod finding;
mod postgres;
mod proof;

use std::convert::Infallible;
use std::sync::Arc;

use cadastre::log::{Batch, BatchBuilder, KeyColumns, Store};
use cadastre::vocab::{DatasetId, Epoch, Lsn, Op, Position, SourceId};

/// The n-th position, three changes to a transaction.
fn position(n: u64) -> Position {
    Position::new(Epoch::FIRST, Lsn::new(100 + n / 3 * 8), u32::try_from(n % 3 + 1).unwrap())
}

/// A batch of `(n, dataset)`, each change about `bytes` long and hard to compress.
fn batch(changes: &[(u64, i32)], bytes: usize) -> Arc<Batch> {
    let mut builder = BatchBuilder::new();
    for (n, dataset) in changes {
        let mut noise = *n;
        let pad: String = std::iter::repeat_with(|| {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + u8::try_from(noise >> 60).unwrap())
        })
        .take(bytes)
        .collect();
        let json = format!("{{\"n\":{n},\"pad\":\"{pad}\"}}");
        let op = Op::ALL[usize::try_from(n % 5).unwrap()];
        builder
            .push(position(*n), DatasetId(*dataset), op, |out| {
                out.extend_from_slice(json.as_bytes());
                Ok::<_, Infallible>(())
            })
            .unwrap();
    }
    Arc::new(builder.finish().unwrap())
}

/// A batch of `(n, dataset, row, time of commit)`: changes of keyed rows that tell all of it.
fn told(changes: &[(u64, i32, u64, i64)]) -> Arc<Batch> {
    let columns = Arc::new(KeyColumns::new(vec!["id".to_owned()]));
    let mut builder = BatchBuilder::new();
    for (n, dataset, row, at_ms) in changes {
        let json = format!(
            "{{\"op\":\"c\",\"after\":{{\"id\":{row}}},\"source\":{{\"ts_ms\":{at_ms}}},\"ts_ms\":{n},\"n\":{n}}}"
        );
        builder.committed(*at_ms);
        builder
            .push(position(*n), DatasetId(*dataset), Op::Create, |out| {
                out.extend_from_slice(json.as_bytes());
                Ok::<_, Infallible>(())
            })
            .unwrap();
        let mark = columns.mark(0, row.to_string().as_bytes()).unwrap();
        builder.mark(DatasetId(*dataset), &columns, &[mark]);
    }
    Arc::new(builder.finish().unwrap())
}

/// Every change as `(position, dataset, op, JSON)`, wherever the batches end.
fn changes(batches: &[Arc<Batch>]) -> Vec<(Position, DatasetId, Op, Vec<u8>)> {
    batches
        .iter()
        .flat_map(|batch| batch.iter())
        .map(|(entry, json)| (entry.position, entry.dataset, entry.op, json.to_vec()))
        .collect()
}

/// Everything after `after`, page by page.
async fn read_all(
    store: &dyn Store,
    source: SourceId,
    after: Position,
    datasets: Option<&[DatasetId]>,
    bytes: usize,
) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let mut examined = after;
    loop {
        let page = store.read(source, examined, datasets, bytes).await.unwrap();
        assert!(page.examined >= examined, "reading goes forward");
        if page.batches.is_empty() {
            return batches;
        }
        assert_eq!(page.examined, page.batches.last().unwrap().last());
        examined = page.examined;
        batches.extend(page.batches);
    }
}
