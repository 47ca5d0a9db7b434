//! How far the snapshots under way are, and how many there may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::gauge;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::SnapshotOptions;
use crate::feed::Error;
use crate::vocab::DatasetName;

/// A snapshot under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Tells it from others of this process.
    pub id: u64,
    /// When its reader connected.
    pub since: DateTime<Utc>,
    /// Its tables.
    pub tables: Vec<SnapshotTable>,
}

/// How far a table of a snapshot is, for this connection of its reader.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotTable {
    /// The table.
    pub dataset: DatasetName,
    /// `waiting`, `running` or `done`.
    pub state: &'static str,
    /// Rows sent.
    pub rows: u64,
    /// Rows the table has, as PostgreSQL estimates; `None` before it was looked at.
    pub rows_estimated: Option<u64>,
    /// How much of it is sent, by that estimate: 100 only when it is done.
    pub percent: Option<f64>,
    /// How long it will take at the pace so far, by that estimate, in milliseconds.
    pub eta_ms: Option<u64>,
}

impl SnapshotTable {
    /// Not begun.
    pub(super) fn waiting(dataset: DatasetName) -> Self {
        let (rows, rows_estimated, percent, eta_ms) = (0, None, None, None);
        Self { dataset, state: "waiting", rows, rows_estimated, percent, eta_ms }
    }

    /// Works out what follows from rows, estimate and pace.
    pub(super) fn update(&mut self, rows: u64, estimated: u64, took: Duration, done: bool) {
        self.rows = rows;
        self.rows_estimated = Some(if done { rows } else { estimated.max(rows) });
        self.state = if done { "done" } else { "running" };
        if done {
            (self.percent, self.eta_ms) = (Some(100.0), Some(0));
            return;
        }
        let share = rows as f64 / estimated.max(rows).max(1) as f64;
        self.percent = Some((share * 1000.0).floor().min(999.0) / 10.0);
        let left = estimated.saturating_sub(rows) as f64;
        let pace = rows as f64 / took.as_secs_f64().max(0.001);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate")]
        let eta_ms = (pace > 0.0).then(|| (left / pace * 1000.0) as u64);
        self.eta_ms = eta_ms;
    }
}

/// The snapshots of this process: their number is bounded, so is their work in the sources. Cheap to
/// clone; clones share.
#[derive(Debug, Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: SnapshotOptions,
    places: Arc<Semaphore>,
    /// Chunks that may be read at the same time.
    chunks: Semaphore,
    /// When the next chunk may be read, as long as a pace is set.
    next: Mutex<Instant>,
    running: Mutex<BTreeMap<u64, Snapshot>>,
    ids: AtomicU64,
}

impl Snapshots {
    /// None yet.
    pub fn new(options: SnapshotOptions) -> Self {
        let places = Arc::new(Semaphore::new(options.snapshots));
        let chunks = Semaphore::new(options.snapshot_chunks.max(1));
        let (next, running, ids) =
            (Mutex::new(Instant::now()), Mutex::default(), AtomicU64::new(1));
        Self { shared: Arc::new(Shared { options, places, chunks, next, running, ids }) }
    }

    /// The snapshots under way, oldest first.
    pub fn list(&self) -> Vec<Snapshot> {
        self.shared.running.lock().values().cloned().collect()
    }

    pub(super) fn options(&self) -> &SnapshotOptions {
        &self.shared.options
    }

    /// A place for one more, given back when it is dropped.
    pub(super) fn enter(&self, tables: Vec<SnapshotTable>) -> Result<Entry, Error> {
        let shared = &self.shared;
        let limit = shared.options.snapshots;
        let place = Arc::clone(&shared.places)
            .try_acquire_owned()
            .map_err(|_| Error::SnapshotsFull { limit })?;
        let id = shared.ids.fetch_add(1, Ordering::Relaxed);
        shared.running.lock().insert(id, Snapshot { id, since: Utc::now(), tables });
        gauge!("cadastre_feed_snapshots").increment(1.0);
        Ok(Entry { snapshots: self.clone(), id, _place: place })
    }

    /// Waits until the next chunk may be read; the permit is held while it is.
    pub(super) async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let permit = self.shared.chunks.acquire().await.ok();
        let next = *self.shared.next.lock();
        tokio::time::sleep_until(next).await;
        permit
    }

    /// These rows were read: with a pace set, the next chunk waits for as long as they may take.
    pub(super) fn took(&self, rows: usize) {
        let rate = self.shared.options.snapshot_rows_per_second;
        if rate > 0 {
            let pause = Duration::from_secs_f64(rows as f64 / f64::from(rate));
            let mut next = self.shared.next.lock();
            *next = (*next).max(Instant::now()) + pause;
        }
    }

    /// Most rows of a chunk: less when a pace is set, so that it is kept within a second.
    pub(super) fn rows_max(&self) -> usize {
        let options = &self.shared.options;
        match usize::try_from(options.snapshot_rows_per_second) {
            Ok(rate) if rate > 0 => options.snapshot_chunk_rows.min(rate).max(1),
            _ => options.snapshot_chunk_rows.max(1),
        }
    }
}

/// A snapshot's place in the list.
#[derive(Debug)]
pub(super) struct Entry {
    snapshots: Snapshots,
    id: u64,
    _place: OwnedSemaphorePermit,
}

impl Entry {
    pub(super) fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Says how a table stands.
    pub(super) fn set(&self, index: usize, table: &SnapshotTable) {
        let mut running = self.snapshots.shared.running.lock();
        if let Some(snapshot) = running.get_mut(&self.id)
            && let Some(place) = snapshot.tables.get_mut(index)
        {
            table.clone_into(place);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.snapshots.shared.running.lock().remove(&self.id);
        gauge!("cadastre_feed_snapshots").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_never_says_that_all_is_done() {
        let mut table = SnapshotTable::waiting("shop.public.orders".parse().unwrap());
        table.update(500, 1_000, Duration::from_secs(5), false);
        assert_eq!((table.percent, table.eta_ms), (Some(50.0), Some(5_000)));
        table.update(3_000, 1_000, Duration::from_secs(5), false);
        assert_eq!((table.percent, table.rows_estimated), (Some(99.9), Some(3_000)));
        table.update(3_001, 1_000, Duration::from_secs(6), true);
        assert_eq!((table.percent, table.eta_ms, table.state), (Some(100.0), Some(0), "done"));
    }

    #[tokio::test]
    async fn places_are_bounded_and_given_back() {
        let options = SnapshotOptions { snapshots: 1, ..SnapshotOptions::default() };
        let snapshots = Snapshots::new(options);
        let first = snapshots.enter(Vec::new()).unwrap();
        assert!(matches!(snapshots.enter(Vec::new()), Err(Error::SnapshotsFull { limit: 1 })));
        assert_eq!(snapshots.list().len(), 1);
        drop(first);
        assert!(snapshots.list().is_empty());
        drop(snapshots.enter(Vec::new()).unwrap());
    }

    #[tokio::test]
    async fn a_pace_spreads_chunks_over_time() {
        let options =
            SnapshotOptions { snapshot_rows_per_second: 100, ..SnapshotOptions::default() };
        let snapshots = Snapshots::new(options);
        assert_eq!(snapshots.rows_max(), 100);
        let begun = Instant::now();
        for _ in 0..5 {
            snapshots.took(100);
        }
        let next = *snapshots.shared.next.lock();
        assert!(next >= begun + Duration::from_secs(5), "{:?}", next - begun);
    }
}
