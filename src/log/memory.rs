//! The log's contract kept in memory: what tests of its readers and writers stand on.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::contract::check_order;
use super::{Batch, Error, Extent, Page, Store};
use crate::vocab::{DatasetId, Position, SourceId};

/// A log that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    sources: Mutex<HashMap<SourceId, Held>>,
}

/// What is held of one source.
#[derive(Debug)]
struct Held {
    batches: Vec<Arc<Batch>>,
    trimmed: Position,
    last: Position,
}

impl Default for Held {
    fn default() -> Self {
        Self { batches: Vec::new(), trimmed: Position::MIN, last: Position::MIN }
    }
}

impl Held {
    fn append(&mut self, batches: &[Arc<Batch>]) -> Result<(), Error> {
        self.last = check_order(self.last, batches)?;
        self.batches.extend_from_slice(batches);
        Ok(())
    }

    fn read(
        &self,
        after: Position,
        datasets: Option<&[DatasetId]>,
        bytes: usize,
    ) -> Result<Page, Error> {
        if after < self.trimmed {
            return Err(Error::Trimmed { earliest: self.trimmed });
        }
        let from = self.batches.partition_point(|batch| batch.last() <= after);
        let mut page = Page { batches: Vec::new(), examined: after.max(self.last) };
        let mut taken = 0;
        for batch in &self.batches[from..] {
            let wanted =
                datasets.is_none_or(|wanted| wanted.iter().any(|id| batch.datasets().contains(id)));
            if wanted {
                taken += batch.bytes_len();
                page.examined = batch.last();
                page.batches.push(Arc::clone(batch));
            }
            if taken >= bytes.max(1) {
                break;
            }
        }
        Ok(page)
    }

    fn trim(&mut self, upto: Position) {
        let kept = self.batches.partition_point(|batch| batch.last() <= upto);
        if let Some(dropped) = self.batches.drain(..kept).next_back() {
            self.trimmed = dropped.last();
        }
    }
}

impl MemoryStore {
    /// Runs `work` on what is held of a source.
    fn with<R>(&self, source: SourceId, work: impl FnOnce(&mut Held) -> R) -> R {
        work(self.sources.lock().entry(source).or_default())
    }
}

impl Store for MemoryStore {
    fn append<'a>(
        &'a self,
        source: SourceId,
        batches: &'a [Arc<Batch>],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.with(source, |held| held.append(batches)) })
    }

    fn read<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        datasets: Option<&'a [DatasetId]>,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move { self.with(source, |held| held.read(after, datasets, bytes)) })
    }

    fn extent(&self, source: SourceId) -> BoxFuture<'_, Result<Extent, Error>> {
        Box::pin(async move {
            Ok(self.with(source, |held| Extent {
                trimmed: held.trimmed,
                first: held.batches.first().map(|batch| batch.first()),
                last: held.last,
            }))
        })
    }

    fn trim(&self, source: SourceId, upto: Position) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.with(source, |held| held.trim(upto));
            Ok(())
        })
    }
}
