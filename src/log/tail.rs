//! The log of every source: where writers and readers come from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::live::{Budget, Live};
use super::reader::History;
use super::ring::Wanted;
use super::writer::{Flush, Place};
use super::{Error, Extent, GapReason, Proof, Reader, Start, Store, Totals, Writer};
use crate::task::Tasks;
use crate::vocab::{DatasetId, Lsn, Position, SourceId, limits};

/// Stored bytes that one proof reads: a second's work or so.
const PROOF_BYTES: usize = 32 * 1024 * 1024;

/// The first and last position a source's log holds, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Oldest change held.
    pub first: Position,
    /// Newest change held.
    pub last: Position,
}

/// The log of every source. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    history: History,
    tasks: Tasks,
    linger: Duration,
    budget: Budget,
    sources: Mutex<HashMap<SourceId, Arc<Live>>>,
}

impl Log {
    /// A log on this store. A small append lingers this long for company before it is made
    /// durable; readers do not wait for it.
    pub fn new(store: Arc<dyn Store>, tasks: &Tasks, linger: Duration) -> Self {
        let budget = Budget { tail: limits::TAIL_BYTES_MAX, pending: limits::PENDING_BYTES_MAX };
        Self::with_budget(store, tasks, linger, budget)
    }

    pub(super) fn with_budget(
        store: Arc<dyn Store>,
        tasks: &Tasks,
        linger: Duration,
        budget: Budget,
    ) -> Self {
        let history = History::new(Arc::clone(&store));
        let (tasks, sources) = (tasks.clone(), Mutex::default());
        Self { inner: Arc::new(Inner { store, history, tasks, linger, budget, sources }) }
    }

    /// The writer of a source, standing at the end of what is durable. There is one at a time in
    /// this process: [`Error::Busy`] while another lives. What a former one appended is made
    /// durable first.
    pub async fn writer(&self, source: SourceId) -> Result<Writer, Error> {
        let inner = &self.inner;
        let live = inner.live(source);
        let place = Place::claim(Arc::clone(&live))?;
        let seat = Arc::clone(&live.seat).lock_owned().await;
        inner.store.prepare().await?;
        let durable = inner.store.extent(source).await?.last;
        let (gone, stop) = (CancellationToken::new(), inner.tasks.stopping());
        let writer = Writer::open(place, durable, gone.clone().drop_guard(), stop.clone());
        let (store, linger) = (Arc::clone(&inner.store), inner.linger);
        inner.tasks.spawn("log.flush", Flush { live, store, linger, stop, gone, seat }.run());
        Ok(writer)
    }

    /// A reader of a source's changes, all or those of these datasets. It needs no writer: it
    /// serves what is durable and waits for one.
    pub fn reader(
        &self,
        source: SourceId,
        start: Start,
        datasets: Option<Vec<DatasetId>>,
    ) -> Reader {
        let live = self.inner.live(source);
        Reader::new(live, self.inner.history.clone(), start, Wanted::new(datasets))
    }

    /// The first and last change a source's log holds, what is not yet durable included; `None`
    /// when it holds none.
    pub async fn bounds(&self, source: SourceId) -> Result<Option<Bounds>, Error> {
        let extent = self.inner.store.extent(source).await?;
        let (first, newest) = self.inner.live(source).ends();
        let first = extent.first.into_iter().chain(first).min();
        let last = newest.map_or(extent.last, |newest| newest.max(extent.last));
        Ok(first.map(|first| Bounds { first, last }))
    }

    /// The place to read after in order to begin with the first change committed at or after `at`;
    /// the newest position when there is none yet. [`Error::Trimmed`] when some may be gone.
    pub async fn position_at(
        &self,
        source: SourceId,
        at: DateTime<Utc>,
    ) -> Result<Position, Error> {
        let live = self.inner.live(source);
        // The end first: what becomes durable between the two looks is then seen by the second.
        let durable = self.inner.store.extent(source).await?.last;
        if let Some(position) = self.inner.store.position_at(source, at).await? {
            return Ok(position);
        }
        let found = live.position_at(durable, at.timestamp_millis());
        Ok(found.unwrap_or_else(|| live.ends().1.map_or(durable, |newest| newest.max(durable))))
    }

    /// The newest position of a source, durable or not.
    pub async fn newest(&self, source: SourceId) -> Result<Position, Error> {
        match self.inner.live(source).ends() {
            (_, Some(newest)) => Ok(newest),
            (_, None) => Ok(self.inner.store.extent(source).await?.last),
        }
    }

    /// The columns by which one row of a dataset is found, as far as its changes tell.
    pub async fn key_columns(
        &self,
        source: SourceId,
        dataset: DatasetId,
    ) -> Result<Option<Vec<String>>, Error> {
        if let Some(columns) = self.inner.live(source).key_columns(dataset) {
            return Ok(Some(columns));
        }
        self.inner.store.key_columns(source, dataset).await
    }

    /// Why the source's log was cut the last time.
    pub async fn cut_reason(&self, source: SourceId) -> Result<GapReason, Error> {
        self.inner.store.cut_reason(source).await
    }

    /// What the source's log has ever held.
    pub async fn totals(&self, source: SourceId) -> Result<Totals, Error> {
        self.inner.store.totals(source).await
    }

    /// What a source's log has and had.
    pub async fn extent(&self, source: SourceId) -> Result<Extent, Error> {
        self.inner.store.extent(source).await
    }

    /// Keeps what follows `position` for `holder`: retention does not cut it, short of the hard
    /// limit of size. Said again with each step forward.
    pub async fn protect(
        &self,
        source: SourceId,
        holder: &str,
        position: Position,
    ) -> Result<(), Error> {
        self.inner.store.protect(source, holder, position).await
    }

    /// `holder` no longer wants anything kept.
    pub async fn unprotect(&self, source: SourceId, holder: &str) -> Result<(), Error> {
        self.inner.store.unprotect(source, holder).await
    }

    /// Reads what lies between two positions again, computes everything anew, and remembers what is
    /// broken until it has been seen whole.
    pub async fn prove(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
    ) -> Result<Proof, Error> {
        let proof = self.inner.store.prove(source, from, to, PROOF_BYTES).await?;
        let live = self.inner.live(source);
        match &proof.broken {
            Some(broken) => live.found_broken(broken.after, broken.to_string()),
            None => live.found_whole(proof.from, proof.upto),
        }
        Ok(proof)
    }

    /// How far the source's WAL is in the log: a reader that has examined what the log holds after
    /// this is asked has seen every change committed before it. Zero while nothing captures the
    /// source.
    pub fn confirmed(&self, source: SourceId) -> Lsn {
        self.inner.live(source).confirmed()
    }

    /// Why appended changes of a source do not become durable at present, if so, or what is broken
    /// in its log.
    pub fn trouble(&self, source: SourceId) -> Option<String> {
        self.inner.live(source).trouble()
    }
}

impl Inner {
    fn live(&self, source: SourceId) -> Arc<Live> {
        let mut sources = self.sources.lock();
        let live =
            sources.entry(source).or_insert_with(|| Arc::new(Live::new(source, self.budget)));
        Arc::clone(live)
    }
}
