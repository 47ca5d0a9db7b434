//! What the writer, the task behind it and the readers of one source share.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::Utc;
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant};

use super::error::chain;
use super::reader::History;
use super::ring::{Found, Interest, Ring, Wanted};
use super::{Batch, Error};
use crate::vocab::{DatasetId, Lsn, Position, SourceId};

/// Memory a source's live tail may take, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Above this, durable batches leave memory.
    pub(super) tail: usize,
    /// Above this, appending waits for what is pending to become durable.
    pub(super) pending: usize,
}

/// The live side of one source's log.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) source: SourceId,
    pub(super) meters: Meters,
    /// There is something new to make durable. One task waits for it.
    pub(super) work: Notify,
    /// Something has become durable, or never will. One writer waits for it.
    pub(super) room: Notify,
    /// Held while a writer's batches may still be on their way to the store.
    pub(super) seat: Arc<tokio::sync::Mutex<()>>,
    budget: Budget,
    /// Where the store ended when a reader last looked, and when that was.
    stored: tokio::sync::Mutex<(Option<Instant>, Position)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    progress: Progress,
    /// A writer exists.
    written: bool,
    /// Why nothing will become durable any more.
    failure: Option<Error>,
    /// What the store said last, while it fails.
    trouble: Option<String>,
    /// The first chunk found broken: what is whole before it, and what was said of it.
    broken: Option<(Position, String)>,
}

/// Which LSN may be confirmed once how many of a writer's batches are durable.
#[derive(Debug)]
struct Progress {
    appended: u64,
    durable: u64,
    /// Confirmations not due yet: the count of durable batches each waits for, in order.
    due: VecDeque<(u64, Lsn)>,
    confirmed: watch::Sender<Lsn>,
}

impl Progress {
    fn new() -> Self {
        let confirmed = watch::Sender::new(Lsn::ZERO);
        Self { appended: 0, durable: 0, due: VecDeque::new(), confirmed }
    }

    /// `lsn` may be confirmed once all appended so far is durable.
    fn confirm(&mut self, lsn: Lsn) {
        match self.due.back_mut() {
            Some((count, due)) if *count == self.appended => *due = lsn.max(*due),
            _ => self.due.push_back((self.appended, lsn)),
        }
        self.settle();
    }

    fn settle(&mut self) {
        let durable = self.durable;
        while let Some((_, lsn)) = self.due.pop_front_if(|(count, _)| *count <= durable) {
            self.confirmed.send_if_modified(|confirmed| {
                let forward = *confirmed < lsn;
                *confirmed = lsn.max(*confirmed);
                forward
            });
        }
    }
}

impl Live {
    pub(super) fn new(source: SourceId, budget: Budget) -> Self {
        Self {
            source,
            meters: Meters::new(source),
            work: Notify::new(),
            room: Notify::new(),
            seat: Arc::default(),
            budget,
            stored: tokio::sync::Mutex::new((None, Position::MIN)),
            state: Mutex::new(State {
                ring: Ring::new(budget.tail),
                progress: Progress::new(),
                written: false,
                failure: None,
                trouble: None,
                broken: None,
            }),
        }
    }

    // The writer's side.

    /// Takes the place of the source's one writer, unless it is taken.
    pub(super) fn claim(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().written, true)
    }

    /// Gives that place back. Readers learn that they have to look for themselves from now on.
    pub(super) fn release(&self) {
        let interested = {
            let mut state = self.state.lock();
            state.written = false;
            state.ring.interests()
        };
        for interest in interested {
            interest.wake();
        }
    }

    /// Whether the source has a writer in this process.
    pub(super) fn is_written(&self) -> bool {
        self.state.lock().written
    }

    /// Starts a writer's run at the end of what is durable; gives where its confirmations appear.
    pub(super) fn open(&self, durable: Position) -> watch::Receiver<Lsn> {
        let mut state = self.state.lock();
        state.ring.open(durable);
        state.progress = Progress::new();
        state.failure = None;
        state.trouble = None;
        self.meters.pending.set(0.0);
        state.progress.confirmed.subscribe()
    }

    /// Appends if there is room for the batch; a batch larger than all room goes in alone.
    pub(super) fn try_append(
        &self,
        batch: &Arc<Batch>,
        confirm: Option<Lsn>,
    ) -> Result<bool, Error> {
        let mut state = self.state.lock();
        if let Some(failure) = state.failure.take() {
            state.failure = Some(Error::Stopped);
            return Err(failure);
        }
        let pending = state.ring.pending_bytes();
        if pending > 0 && pending + batch.memory_bytes() > self.budget.pending {
            return Ok(false);
        }
        let interested = state.ring.append(batch);
        state.progress.appended += 1;
        if let Some(lsn) = confirm {
            state.progress.confirm(lsn);
        }
        self.meters.pending.set(state.ring.pending_bytes() as f64);
        drop(state);
        self.meters.appended.increment(batch.len() as u64);
        for interest in interested {
            interest.wake();
        }
        self.work.notify_one();
        Ok(true)
    }

    /// `lsn` may be confirmed once all appended so far is durable.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.state.lock().progress.confirm(lsn);
    }

    // The side of the task that makes batches durable.

    /// Memory of what is pending, in bytes.
    pub(super) fn pending_bytes(&self) -> usize {
        self.state.lock().ring.pending_bytes()
    }

    /// The oldest pending batches, up to about `bytes`.
    pub(super) fn pending(&self, bytes: usize) -> Vec<Arc<Batch>> {
        self.state.lock().ring.pending(bytes)
    }

    /// The oldest `batches` pending have become durable.
    pub(super) fn made_durable(&self, batches: &[Arc<Batch>]) {
        let mut state = self.state.lock();
        state.ring.made_durable(batches.len());
        state.progress.durable += batches.len() as u64;
        state.progress.settle();
        state.trouble = None;
        self.meters.pending.set(state.ring.pending_bytes() as f64);
        drop(state);
        self.meters.durable.increment(batches.iter().map(|batch| batch.len() as u64).sum());
        let now_ms = Utc::now().timestamp_millis();
        for (_, committed) in batches.iter().filter_map(|batch| batch.hints().committed) {
            let took = now_ms.saturating_sub(committed).max(0) as f64 / 1000.0;
            self.meters.commit_to_durable_seconds.record(took);
        }
        self.room.notify_one();
    }

    /// The store fails for now. Whether this is news.
    pub(super) fn set_trouble(&self, trouble: String) -> bool {
        self.state.lock().trouble.replace(trouble).is_none()
    }

    /// What keeps batches from becoming durable at present.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        let broken = || state.broken.as_ref().map(|(_, reason)| reason.clone());
        state.trouble.clone().or_else(broken)
    }

    /// Something stored is not what it was, at or after `after`. Said until a look at it finds it
    /// whole.
    pub(super) fn found_broken(&self, after: Position, reason: String) {
        let mut state = self.state.lock();
        if state.broken.as_ref().is_none_or(|(_, known)| *known != reason) {
            self.meters.broken.increment(1);
            tracing::error!(source.id = self.source.0, reason, "the log is damaged");
            state.broken = Some((after, reason));
        }
    }

    /// What lies between was looked at and is whole.
    pub(super) fn found_whole(&self, from: Position, upto: Position) {
        let mut state = self.state.lock();
        state.broken.take_if(|(after, _)| from <= *after && *after < upto);
    }

    /// The place before the first change in memory after `after` that was committed at or after
    /// this time.
    pub(super) fn position_at(&self, after: Position, at_ms: i64) -> Option<Position> {
        let batches = self.state.lock().ring.all();
        batches.iter().find_map(|batch| {
            let late = batch.hints().committed.is_none_or(|(_, upto)| upto >= at_ms);
            if !late || batch.last() <= after {
                return None;
            }
            let index = batch.index_committed_at(at_ms)?;
            let (entry, _) = batch.entry(index)?;
            (entry.position > after).then(|| entry.position.before())
        })
    }

    /// The columns that the newest changes of a dataset in memory are marked with.
    pub(super) fn key_columns(&self, dataset: DatasetId) -> Option<Vec<String>> {
        let batches = self.state.lock().ring.all();
        let mut newest = batches.iter().rev();
        newest.find_map(|batch| Some(batch.key_columns(dataset)?.names().to_vec()))
    }

    /// Nothing more will become durable: the writer is told why when it appends.
    pub(super) fn fail(&self, failure: Error) {
        let mut state = self.state.lock();
        state.trouble = Some(chain(&failure));
        state.failure = Some(failure);
        drop(state);
        self.room.notify_one();
    }

    // The readers' side.

    pub(super) fn join(&self, wanted: Wanted) -> Arc<Interest> {
        self.state.lock().ring.join(wanted)
    }

    pub(super) fn leave(&self, interest: &Interest) {
        self.state.lock().ring.leave(interest);
    }

    pub(super) fn find(&self, interest: &Interest, position: Position) -> Found {
        let state = self.state.lock();
        match state.ring.find(interest, position) {
            // Another process may be writing by now.
            Found::Nothing(_) if !state.written => Found::Behind,
            found => found,
        }
    }

    /// Where the store ends, as it was at most `age` ago: one look for all readers of the source.
    /// A store that does not answer has nothing new.
    pub(super) async fn stored(&self, history: &History, age: Duration) -> Position {
        let mut stored = self.stored.lock().await;
        if stored.0.is_none_or(|looked| looked.elapsed() >= age) {
            if let Ok(extent) = history.extent(self.source).await {
                stored.1 = extent.last;
            }
            stored.0 = Some(Instant::now());
        }
        stored.1
    }

    /// Everything committed before this in the source's WAL is durable here.
    pub(super) fn confirmed(&self) -> Lsn {
        *self.state.lock().progress.confirmed.borrow()
    }

    /// Oldest and newest position in memory: the first is `None` when no change is held, the
    /// second until a writer has opened.
    pub(super) fn ends(&self) -> (Option<Position>, Option<Position>) {
        let state = self.state.lock();
        (state.ring.first(), state.ring.newest())
    }
}

/// What is counted of one source.
pub(super) struct Meters {
    pub(super) appended: Counter,
    pub(super) durable: Counter,
    pub(super) pending: Gauge,
    pub(super) append_seconds: Histogram,
    pub(super) append_errors: Counter,
    pub(super) commit_to_durable_seconds: Histogram,
    pub(super) broken: Counter,
}

impl Meters {
    fn new(source: SourceId) -> Self {
        let label = source.0.to_string();
        Self {
            appended: metrics::counter!("cadastre_log_appended_changes_total", "source" => label.clone()),
            durable: metrics::counter!("cadastre_log_durable_changes_total", "source" => label.clone()),
            pending: metrics::gauge!("cadastre_log_pending_bytes", "source" => label.clone()),
            append_seconds: metrics::histogram!("cadastre_log_append_seconds", "source" => label.clone()),
            append_errors: metrics::counter!("cadastre_log_append_errors_total", "source" => label.clone()),
            commit_to_durable_seconds: metrics::histogram!("cadastre_log_commit_to_durable_seconds", "source" => label.clone()),
            broken: metrics::counter!("cadastre_log_broken_chunks_total", "source" => label),
        }
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meters")
    }
}
