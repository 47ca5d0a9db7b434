//! The log's contract kept in memory: what tests of its readers and writers stand on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::contract::check_order;
use super::{
    Batch, Day, Digest, Error, Extent, GapReason, Key, Page, Proof, Protection, Store, Totals,
};
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
    /// The latest commit of what was trimmed.
    trimmed_ms: Option<i64>,
    reason: GapReason,
    last: Position,
    changes: u64,
    protections: BTreeMap<String, Position>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            batches: Vec::new(),
            trimmed: Position::MIN,
            trimmed_ms: None,
            reason: GapReason::Retention,
            last: Position::MIN,
            changes: 0,
            protections: BTreeMap::new(),
        }
    }
}

impl Held {
    fn append(&mut self, batches: &[Arc<Batch>]) -> Result<(), Error> {
        self.last = check_order(self.last, batches)?;
        self.batches.extend_from_slice(batches);
        self.changes += batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
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

    fn cut(&mut self, upto: Position, reason: GapReason) {
        let kept = self.batches.partition_point(|batch| batch.last() <= upto);
        for dropped in self.batches.drain(..kept) {
            self.trimmed = dropped.last();
            self.trimmed_ms = self.trimmed_ms.max(committed(&dropped));
            self.reason = reason;
        }
    }

    fn position_at(&self, at: DateTime<Utc>) -> Result<Option<Position>, Error> {
        let at_ms = at.timestamp_millis();
        if self.trimmed_ms.is_some_and(|trimmed| trimmed >= at_ms) {
            return Err(Error::Trimmed { earliest: self.trimmed });
        }
        let found = self.batches.iter().find(|batch| committed(batch).is_none_or(|ms| ms >= at_ms));
        Ok(found.map(|batch| {
            let entry = batch.index_committed_at(at_ms).and_then(|index| batch.entry(index));
            entry
                .map_or_else(|| batch.first(), |(entry, _)| entry.position)
                .before()
                .max(self.trimmed)
        }))
    }

    fn freeing(&self, bytes: u64) -> Option<Position> {
        let mut freed = 0;
        let enough = |batch: &&Arc<Batch>| {
            freed += batch.bytes_len() as u64;
            freed >= bytes
        };
        self.batches.iter().find(enough).map(|batch| batch.last())
    }

    fn prove(&self, from: Position, to: Position) -> Result<Proof, Error> {
        if from < self.trimmed {
            return Err(Error::Trimmed { earliest: self.trimmed });
        }
        let mut sums = BTreeMap::<DatasetId, (u64, Digest)>::new();
        let mut chunks = 0;
        for batch in self.batches.iter().filter(|it| it.last() > from && it.first() <= to) {
            chunks += 1;
            for (dataset, (changes, digest)) in batch.sums_between(from, to) {
                let sum = sums.entry(dataset).or_default();
                sum.0 += changes;
                sum.1 += digest;
            }
        }
        let datasets = sums.into_iter().map(|(id, (changes, digest))| (id, changes, digest));
        let (upto, datasets) = (self.last.min(to).max(from), datasets.collect());
        Ok(Proof { from, upto, complete: true, chunks, datasets, broken: None })
    }
}

/// The latest commit in a batch, where it was told.
fn committed(batch: &Batch) -> Option<i64> {
    batch.hints().committed.map(|(_, upto)| upto)
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

    fn read_row<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        dataset: DatasetId,
        _key: &'a Key,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move { self.with(source, |held| held.read(after, Some(&[dataset]), bytes)) })
    }

    fn key_columns(
        &self,
        source: SourceId,
        dataset: DatasetId,
    ) -> BoxFuture<'_, Result<Option<Vec<String>>, Error>> {
        Box::pin(async move {
            Ok(self.with(source, |held| {
                let mut newest = held.batches.iter().rev();
                newest.find_map(|batch| Some(batch.key_columns(dataset)?.names().to_vec()))
            }))
        })
    }

    fn position_at(
        &self,
        source: SourceId,
        at: DateTime<Utc>,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
        Box::pin(async move { self.with(source, |held| held.position_at(at)) })
    }

    fn cut(
        &self,
        source: SourceId,
        upto: Position,
        reason: GapReason,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.with(source, |held| held.cut(upto, reason));
            Ok(())
        })
    }

    fn cut_reason(&self, source: SourceId) -> BoxFuture<'_, Result<GapReason, Error>> {
        Box::pin(async move { Ok(self.with(source, |held| held.reason)) })
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn sweep(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// As if all had been appended on the first day there is.
    fn days(&self) -> BoxFuture<'_, Result<Vec<Day>, Error>> {
        Box::pin(async move {
            let sources = self.sources.lock();
            let held = sources.iter().filter(|(_, held)| !held.batches.is_empty());
            let day = |(source, held): (&SourceId, &Held)| Day {
                source: *source,
                day: NaiveDate::default(),
                changes: held.batches.iter().map(|batch| batch.len() as u64).sum(),
                bytes: held.batches.iter().map(|batch| batch.bytes_len() as u64).sum(),
                last: held.last,
            };
            let mut days: Vec<Day> = held.map(day).collect();
            days.sort_unstable_by_key(|day| day.source);
            Ok(days)
        })
    }

    fn freeing(
        &self,
        source: SourceId,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
        Box::pin(async move { Ok(self.with(source, |held| held.freeing(bytes))) })
    }

    fn totals(&self, source: SourceId) -> BoxFuture<'_, Result<Totals, Error>> {
        Box::pin(async move {
            Ok(self.with(source, |held| Totals {
                changes: held.changes,
                held: held.batches.iter().map(|batch| batch.len() as u64).sum(),
                bytes: held.batches.iter().map(|batch| batch.bytes_len() as u64).sum(),
            }))
        })
    }

    fn protect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
        position: Position,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.with(source, |held| held.protections.insert(holder.to_owned(), position));
            Ok(())
        })
    }

    fn unprotect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.with(source, |held| held.protections.remove(holder));
            Ok(())
        })
    }

    fn protections(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<Protection>, Error>> {
        Box::pin(async move {
            let held = self.with(source, |held| held.protections.clone());
            let mut protections: Vec<Protection> = held
                .into_iter()
                .map(|(holder, position)| Protection { holder, position })
                .collect();
            protections.sort_by_key(|protection| protection.position);
            Ok(protections)
        })
    }

    fn prove(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
        _bytes: usize,
    ) -> BoxFuture<'_, Result<Proof, Error>> {
        Box::pin(async move { self.with(source, |held| held.prove(from, to)) })
    }
}
