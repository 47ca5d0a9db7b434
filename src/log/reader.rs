//! Reading a source's log from a position on: history from the store, then the live tail.
//!
//! A reader is a position and an interest; it holds no place in a queue and no copy of anything,
//! so that one that stands still costs nobody else anything. While what follows its position is in
//! memory it reads there; when that has left memory, or never was there, it reads the store a page
//! at a time until it meets the tail again. Both hold the same changes under the same positions
//! and overlap, so the crossing needs no care: the position says what comes next.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::live::Live;
use super::ring::{Found, Interest, Wanted};
use super::{Batch, Entry, Error, Extent, Key, Page, Store};
use crate::vocab::limits::BATCH_BYTES_MAX;
use crate::vocab::{DatasetId, Position, Retry, SourceId};

/// Encoded bytes in one slice, about: what a consumer holds at a time. A larger change comes alone.
const SLICE_BYTES_MAX: usize = 64 * 1024;

/// Readers that may query the store at the same time: fewer than the pool has connections, so that
/// appends find one whatever the number of readers.
const HISTORY_READS_MAX: usize = 4;

/// How often a reader looks by itself: one with an end whether it has passed, one of a source that
/// another process writes whether there is more.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Longest that a reader keeps asking a store that fails, before its consumer is told.
const HISTORY_PATIENCE: Duration = Duration::from_secs(30);

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// After the newest change visible when the reader is made, or, as long as the source has had
    /// no writer in this process, when it first looks.
    Now,
    /// At the oldest change held.
    Earliest,
    /// After this position. One ahead of the log is waited for.
    After(Position),
}

/// Reads a source's changes in order, from a position on, without end.
#[derive(Debug)]
pub struct Reader {
    live: Arc<Live>,
    interest: Arc<Interest>,
    wake: watch::Receiver<Option<Position>>,
    history: History,
    /// Where to start, as long as that is not known to be a position the log can be read after.
    start: Option<Start>,
    position: Position,
    /// Batches from the store that are not used up.
    page: VecDeque<Arc<Batch>>,
    /// How far the store has been examined with that page.
    examined: Position,
    /// The only row that is wanted.
    row: Option<(DatasetId, Arc<Key>)>,
    /// The last position that is wanted.
    until: Option<Position>,
}

impl Reader {
    pub(super) fn new(live: Arc<Live>, history: History, start: Start, wanted: Wanted) -> Self {
        let interest = live.join(wanted);
        let wake = interest.subscribe();
        let (_, newest) = live.ends();
        let (start, position) = match (start, newest) {
            (Start::Now, Some(newest)) => (None, newest),
            (Start::After(position), _) => (Some(start), position),
            (Start::Now | Start::Earliest, _) => (Some(start), Position::MIN),
        };
        let (page, examined) = (VecDeque::new(), Position::MIN);
        let (row, until) = (None, None);
        Self { live, interest, wake, history, start, position, page, examined, row, until }
    }

    /// The position examined up to: a new reader that starts after it goes on without a seam.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Finds out where to start and whether the log can be read from there, without reading:
    /// [`Error::Trimmed`] now rather than from [`Reader::next`], which otherwise does this first.
    /// Cancel-safe.
    pub async fn locate(&mut self) -> Result<Position, Error> {
        let Some(start) = self.start else { return Ok(self.position) };
        let in_memory = || self.interest.floor().is_some_and(|floor| self.position >= floor);
        self.position = match start {
            Start::After(position) if in_memory() => position,
            Start::After(position) => {
                let trimmed = self.history.extent(self.live.source).await?.trimmed;
                if position < trimmed {
                    return Err(Error::Trimmed { earliest: trimmed });
                }
                position
            }
            Start::Earliest => self.history.extent(self.live.source).await?.trimmed,
            Start::Now => self.history.extent(self.live.source).await?.last,
        };
        self.start = None;
        Ok(self.position)
    }

    /// Leaves out what the store can tell not to concern this row of the dataset, which must be the
    /// only one wanted. What is given may still hold changes of other rows.
    pub fn only_row(&mut self, dataset: DatasetId, key: Arc<Key>) {
        self.row = Some((dataset, key));
    }

    /// Ends after this position, inclusive.
    pub fn end_at(&mut self, until: Position) {
        self.until = Some(until);
    }

    /// Goes on after this position, whatever lies between.
    pub fn skip_to(&mut self, position: Position) {
        self.page.clear();
        self.examined = Position::MIN;
        self.position = self.position.max(position);
    }

    /// As [`Reader::try_next`], for a reader without an end; one that has reached its end waits for
    /// ever.
    pub async fn next(&mut self) -> Result<Slice, Error> {
        match self.try_next().await? {
            Some(slice) => Ok(slice),
            None => std::future::pending().await,
        }
    }

    /// The next changes of the wanted datasets, at least one; waits for them at the tail. `None`
    /// when everything up to the end that was set has been given.
    /// Cancel-safe: what a dropped call would have given, the next one gives.
    ///
    /// [`Error::Trimmed`] when the log has lost changes after the position; [`Error::Database`]
    /// when the store has failed for long. Calling again goes on where it was.
    pub async fn try_next(&mut self) -> Result<Option<Slice>, Error> {
        loop {
            if let Some(slice) = self.next_present().await? {
                return Ok(Some(slice));
            }
            if self.is_at_end() {
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// The next changes of the wanted datasets if there are any yet; `None` when everything that the
    /// log has at present, or up to the end that was set, has been examined. Cancel-safe, and fails,
    /// as [`Reader::try_next`].
    pub async fn next_present(&mut self) -> Result<Option<Slice>, Error> {
        self.locate().await?;
        while !self.is_at_end() {
            // A reader that always finds something would otherwise never let others run.
            tokio::task::consume_budget().await;
            if let Some(slice) = self.next_of_page() {
                return Ok(Some(slice));
            }
            self.wake.mark_unchanged();
            let idle = match self.live.find(&self.interest, self.position) {
                Found::Batch(batch) => match self.cut(&batch) {
                    Some(slice) => return Ok(Some(slice)),
                    None => false,
                },
                Found::Nothing(examined) => {
                    self.position = examined;
                    true
                }
                Found::Behind => !self.turn_page().await?,
            };
            if idle {
                break;
            }
        }
        Ok(None)
    }

    fn is_at_end(&self) -> bool {
        self.until.is_some_and(|until| self.position >= until)
    }

    /// Waits until there may be something new. A reader with an end looks by itself now and then:
    /// others' changes, by which it sees that the end has passed, do not wake it. So does one of a
    /// source that has no writer in this process: what another appends wakes nobody here.
    async fn wait(&mut self) -> Result<(), Error> {
        loop {
            let changed = self.wake.changed();
            let woken = if self.until.is_none() && self.live.is_written() {
                changed.await
            } else {
                match tokio::time::timeout(LOOK_EVERY, changed).await {
                    Ok(woken) => woken,
                    Err(_) if self.until.is_some() => Ok(()),
                    Err(_) if self.live.stored(&self.history, LOOK_EVERY).await > self.position => {
                        Ok(())
                    }
                    Err(_) => continue,
                }
            };
            return woken.map_err(|_| Error::Stopped);
        }
    }

    /// The next wanted changes of the page; `None` when it is used up.
    fn next_of_page(&mut self) -> Option<Slice> {
        while let Some(batch) = self.page.pop_front() {
            if let Some(slice) = self.cut(&batch) {
                self.page.push_front(batch);
                return Some(slice);
            }
        }
        self.position = self.position.max(self.examined);
        None
    }

    /// Loads the next page from the store. Whether there was anything new.
    async fn turn_page(&mut self) -> Result<bool, Error> {
        let wanted = self.interest.wanted();
        let row = self.row.as_ref();
        let page = match self.history.read(self.live.source, self.position, wanted, row).await {
            Err(Error::Corrupt { reason }) => {
                self.live.found_broken(self.position, reason.clone());
                return Err(Error::Corrupt { reason });
            }
            page => page?,
        };
        self.page = page.batches.into();
        self.examined = page.examined;
        Ok(page.examined > self.position)
    }

    /// The wanted changes of a batch after the position, as many as a slice takes. Moves the
    /// position past what was examined; `None` when that is the whole batch.
    fn cut(&mut self, batch: &Arc<Batch>) -> Option<Slice> {
        let wanted = self.interest.wanted();
        let from = batch.index_after(self.position);
        let (mut range, mut bytes, mut all_match) = (from..from, 0, true);
        for (index, (entry, json)) in (from..).zip(batch.entries(from..batch.len())) {
            if self.until.is_some_and(|until| entry.position > until) {
                break;
            }
            if !wanted.has(entry.dataset) {
                continue;
            }
            if range.is_empty() {
                range.start = index;
            } else if bytes + json.len() > SLICE_BYTES_MAX {
                break;
            }
            bytes += json.len();
            all_match &= range.is_empty() || range.end == index;
            range.end = index + 1;
            self.position = entry.position;
        }
        if range.is_empty() {
            self.position = self.position.max(batch.last());
            return None;
        }
        Some(Slice { batch: Arc::clone(batch), range, all_match, wanted: wanted.clone() })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.live.leave(&self.interest);
    }
}

/// Consecutive changes of one batch that a reader wants, shared with every other reader of it.
#[derive(Debug, Clone)]
pub struct Slice {
    batch: Arc<Batch>,
    /// Begins and ends with a wanted change; never empty.
    range: Range<usize>,
    all_match: bool,
    wanted: Wanted,
}

impl Slice {
    /// A slice of one event that is in no log: what is told to one reader alone.
    pub fn of_one(batch: Batch) -> Self {
        let range = 0..batch.len();
        Self { batch: Arc::new(batch), range, all_match: true, wanted: Wanted::new(None) }
    }

    /// The wanted changes in order: each with its JSON object without the newline, not copied.
    pub fn iter(&self) -> impl Iterator<Item = (Entry, Bytes)> {
        self.range
            .clone()
            .filter_map(|index| self.batch.entry(index))
            .filter(|(entry, _)| self.all_match || self.wanted.has(entry.dataset))
    }

    /// As [`Slice::iter`], borrowed: for those who copy the JSON into something else.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, &[u8])> + Clone {
        self.batch
            .entries(self.range.clone())
            .filter(|(entry, _)| self.all_match || self.wanted.has(entry.dataset))
    }

    /// The changes as newline-delimited JSON, not copied, when no unwanted one lies between them.
    pub fn lines(&self) -> Option<Bytes> {
        self.all_match.then(|| self.batch.lines(self.range.clone()))
    }

    /// The changes in another form, when no unwanted one lies between them: as `write` writes them,
    /// which has to give every reader the same. It is done once for all who read at a time.
    pub fn in_form(&self, write: impl FnOnce() -> Vec<u8>) -> Option<Bytes> {
        self.all_match.then(|| self.batch.in_form(self.range.clone(), write))
    }

    /// Position of the last change.
    pub fn last(&self) -> Position {
        let last = self.range.end.saturating_sub(1);
        self.batch.entry(last).map_or(Position::MIN, |(entry, _)| entry.position)
    }
}

/// The store as readers use it: a few at a time, patient with a store that fails for a while.
#[derive(Clone)]
pub(super) struct History {
    store: Arc<dyn Store>,
    places: Arc<Semaphore>,
}

impl History {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, places: Arc::new(Semaphore::new(HISTORY_READS_MAX)) }
    }

    async fn read(
        &self,
        source: SourceId,
        after: Position,
        wanted: &Wanted,
        row: Option<&(DatasetId, Arc<Key>)>,
    ) -> Result<Page, Error> {
        let read = async || {
            let _place = self.places.acquire().await.map_err(|_closed| Error::Stopped)?;
            match row {
                Some((dataset, key)) => {
                    self.store.read_row(source, after, *dataset, key, BATCH_BYTES_MAX).await
                }
                None => self.store.read(source, after, wanted.datasets(), BATCH_BYTES_MAX).await,
            }
        };
        read.retry(patience()).when(may_pass).await
    }

    pub(super) async fn extent(&self, source: SourceId) -> Result<Extent, Error> {
        let _place = self.places.acquire().await.map_err(|_closed| Error::Stopped)?;
        self.store.extent(source).await
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("History")
    }
}

fn patience() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .with_total_delay(Some(HISTORY_PATIENCE))
}

fn may_pass(error: &Error) -> bool {
    match error.retry() {
        Retry::Now | Retry::Later => true,
        Retry::Never => false,
    }
}
