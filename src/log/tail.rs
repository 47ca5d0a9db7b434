//! The log of every source: where writers and readers come from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::live::{Budget, Live};
use super::reader::History;
use super::ring::Wanted;
use super::writer::{Flush, Place};
use super::{Error, Reader, Start, Store, Writer};
use crate::task::Tasks;
use crate::vocab::{DatasetId, Position, SourceId, limits};

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

    /// Why appended changes of a source do not become durable at present, if so.
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
