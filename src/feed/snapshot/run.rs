//! One reader's snapshot, step by step: read chunks, send them, follow the log past them.
//!
//! ```text
//! Settle ──► Plan ──► Read ──► Emit ──► Follow ──► Plan … ──► over: the reader alone goes on
//!            next      tables  rows,     changes, until all
//!            tables    in      one by    that the chunks
//!                      parallel one      contain has passed
//! ```
//!
//! Everything that was begun is kept in [`Run`] until it is done, so that a call that is dropped in
//! the middle loses nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use metrics::{counter, histogram};
use tokio::time::Instant;

use super::Snapshots;
use super::emit::join;
use super::progress::{Entry, SnapshotTable};
use super::table::{State, Window};
use super::token::{Progressed, Token};
use crate::capture::snapshot::{
    Bound, Chunk, Error as ReadError, Key, Read, Row, Session, Shape, Wanted,
};
use crate::config::PostgresOptions;
use crate::feed::Error;
use crate::feed::delivery::{Delivery, Event};
use crate::feed::request::Ops;
use crate::log::{Log, Reader, Slice, Start};
use crate::pg::Target;
use crate::registry::{Dataset, Page, Registry, Source};
use crate::vocab::{DatasetId, DatasetName, Lsn, Op, Position, limits};

/// First and longest pause before a chunk that did not see enough is read again.
const AGAIN_MIN: Duration = Duration::from_millis(5);
const AGAIN_MAX: Duration = Duration::from_millis(500);

/// Versions of a table that the rows of a chunk may be of.
const VERSIONS: Page<i32> = Page { first: 8, after: None };

/// A table of the snapshot.
pub(super) struct Table {
    pub(super) dataset: Arc<Dataset>,
    /// What its table was called when the snapshot was begun or resumed.
    pub(super) name: DatasetName,
    pub(super) state: State,
    pub(super) shape: Option<Arc<Shape>>,
    /// Transactions passed over, which the next chunk has to contain.
    pub(super) must_see: HashSet<u32>,
    pub(super) progress: SnapshotTable,
    pub(super) rows: u64,
    pub(super) begun: Option<Instant>,
    pub(super) reported: Option<Instant>,
    /// Its end has been reported.
    pub(super) closed: bool,
}

/// A chunk on its way to the reader.
pub(super) struct Emission {
    pub(super) table: usize,
    pub(super) rows: VecDeque<Row>,
    pub(super) points: usize,
    pub(super) wanted: Vec<Key>,
    pub(super) upto: Bound,
}

/// What a chunk's task gives back.
type Reads = Vec<(usize, Session, Result<Read, Error>)>;

/// What is to be done next.
pub(super) enum Step {
    /// Find out which transactions may have committed unseen.
    Settle,
    /// Choose the tables to read from.
    Plan,
    /// Chunks are being read.
    Read(BoxFuture<'static, Reads>),
    /// Chunks are being sent; then the log is followed.
    Emit,
    /// Changes are sent until the log has passed this.
    Follow(Lsn),
    /// A table without a key has more rows of the same moment.
    More { table: usize, reading: BoxFuture<'static, (Session, Result<Chunk, ReadError>)> },
    /// Nothing: the snapshot is complete.
    Over,
}

/// A snapshot under way.
pub(in crate::feed) struct Run {
    pub(super) reader: Reader,
    pub(super) log: Log,
    registry: Registry,
    pub(super) source: Arc<Source>,
    pub(super) target: Target,
    postgres: PostgresOptions,
    pub(super) ops: Ops,
    pub(super) entry: Entry,
    pub(super) tables: Vec<Table>,
    pub(super) index: HashMap<DatasetId, usize>,
    /// Tells these datasets from others, in positions.
    pub(super) digest: u32,
    /// Events so far, in positions.
    pub(super) count: u64,
    /// How far the log has been read, for positions.
    pub(super) position: Position,
    /// Connections to the source that are free.
    pub(super) sessions: Vec<Session>,
    pub(super) step: Step,
    /// Chunks to be sent.
    pub(super) emissions: VecDeque<Emission>,
    /// The session of a table without a key, between its pieces.
    paused: Option<(usize, Session)>,
    /// Where the WAL ended when the chunks of this round were read.
    until: Lsn,
    /// Of the log, to be passed next.
    pub(super) slice: Option<Slice>,
    /// Ready to be sent, before the chunks.
    pub(super) out: VecDeque<Event>,
}

impl Run {
    /// Begins a snapshot of these datasets, sorted by name, each with what its table is called now;
    /// or goes on with one.
    pub(in crate::feed) async fn begin(
        (log, registry): (Log, Registry),
        snapshots: &Snapshots,
        postgres: PostgresOptions,
        source: Arc<Source>,
        datasets: Vec<(Arc<Dataset>, DatasetName)>,
        ops: Ops,
        resume: Option<Token>,
    ) -> Result<Self, Error> {
        let target = Target::resolve(&source.url).map_err(|error| Error::Source(error.into()))?;
        let digest = Progressed::digest(datasets.iter().map(|(dataset, _)| &dataset.name));
        let mut tables: Vec<_> =
            datasets.into_iter().map(|(dataset, name)| Table::new(dataset, name)).collect();
        let (start, count) = match &resume {
            None => (Start::Now, 0),
            Some(token) => {
                restore(&mut tables, &token.state, digest)?;
                (Start::After(token.position), token.count)
            }
        };
        let progress = tables.iter().map(|table| table.progress.clone()).collect();
        let entry = snapshots.enter(progress)?;
        let ids = tables.iter().map(|table| table.dataset.id).collect();
        let mut reader = log.reader(source.id, start, Some(ids));
        let position = reader.locate().await?;
        let index = tables.iter().enumerate().map(|(i, table)| (table.dataset.id, i)).collect();
        let mut run = Self {
            reader,
            log,
            registry,
            source,
            target,
            postgres,
            ops,
            entry,
            tables,
            index,
            digest,
            count,
            position,
            sessions: Vec::new(),
            step: Step::Settle,
            emissions: VecDeque::new(),
            paused: None,
            until: Lsn::ZERO,
            slice: None,
            out: VecDeque::new(),
        };
        // Whether the source can be read at all is known before the feed opens.
        run.settle().await?;
        Ok(run)
    }

    /// The next events, at least one; `None` when the snapshot is complete. Cancel-safe. After an
    /// error, calling again goes on where it was.
    pub(in crate::feed) async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        loop {
            if !self.out.is_empty() || !self.emissions.is_empty() {
                match self.deliver() {
                    Some(delivery) => return Ok(Some(delivery)),
                    None => continue,
                }
            }
            match &mut self.step {
                Step::Settle => self.settle().await?,
                Step::Plan => self.plan().await?,
                Step::Read(reading) => {
                    let reads = reading.await;
                    self.step = Step::Plan;
                    self.take(reads)?;
                }
                Step::More { table, reading } => {
                    let table = *table;
                    let (session, read) = reading.await;
                    self.step = Step::Plan;
                    self.take_more(table, session, read)?;
                }
                Step::Emit => match self.paused.take() {
                    Some((table, session)) => self.read_more(table, session),
                    None => self.step = Step::Follow(self.until),
                },
                Step::Follow(until) => {
                    let until = *until;
                    self.follow(until).await?;
                }
                Step::Over => return Ok(None),
            }
        }
    }

    /// Up to where the log was read.
    pub(in crate::feed) fn position(&self) -> Position {
        self.position
    }

    /// The columns of a dataset's key, when its table has been looked at and has one.
    pub(in crate::feed) fn key_columns(&self, dataset: DatasetId) -> Option<Vec<String>> {
        let shape = self.tables.get(*self.index.get(&dataset)?)?.shape.as_ref()?;
        Some(shape.key_columns()).filter(|columns| !columns.is_empty())
    }

    /// The reader of the log, which goes on by itself when the snapshot is complete.
    pub(in crate::feed) fn into_reader(self) -> Reader {
        self.reader
    }

    /// Connects, looks at the tables that were begun, and notes which transactions the first chunks
    /// have to wait for.
    async fn settle(&mut self) -> Result<(), Error> {
        if self.tables.iter().all(|table| table.state.is_done()) {
            // Resumed after its end: nothing is left to be asked of the source.
            self.step = Step::Over;
            return Ok(());
        }
        let mut session = Session::open(&self.target, &self.postgres).await?;
        // How far the source's WAL is in the log, only the server knows that captures it.
        if let Some(by) = session.captured_elsewhere(&self.source.name).await? {
            return Err(Error::CapturedElsewhere { source_name: self.source.name.clone(), by });
        }
        let open = self.tables.iter().filter(|table| !table.state.is_done());
        let writers = session.writers(open.map(|table| &table.name)).await?;
        for table in self.tables.iter_mut().filter(|table| !table.state.is_done()) {
            table.must_see.extend(&writers);
            if !table.state.has_begun() {
                continue;
            }
            let (dataset, name) = (&table.dataset, &table.name);
            let shape = session.shape(dataset, name, &self.source.name, &[]).await?;
            // The rows of a table without a key belong together, and a place in the order of one
            // key is none in that of another: what was sent of these is void.
            if table.state.partial || table.state.key != shape.key_digest() {
                table.state = State { partial: true, ..State::start() };
            }
            table.shape = Some(Arc::new(shape));
        }
        self.sessions.push(session);
        self.step = Step::Plan;
        Ok(())
    }

    /// Chooses tables and begins to read their next chunks.
    async fn plan(&mut self) -> Result<(), Error> {
        // After a resumption windows are open, and nothing says yet when they close.
        if self.tables.iter().any(|table| table.state.window.is_some()) {
            let asked = self.session().await?.end_of_wal().await;
            let until = self.or_hang_up(asked)?;
            self.step = Step::Follow(until);
            return Ok(());
        }
        let parallel = self.entry.snapshots().options().snapshot_chunks.max(1);
        let open = (0..self.tables.len()).filter(|&index| !self.tables[index].state.is_done());
        let chosen: Vec<usize> = open.take(parallel).collect();
        if chosen.is_empty() {
            self.step = Step::Over;
            return Ok(());
        }
        while self.sessions.len() < chosen.len() {
            self.sessions.push(Session::open(&self.target, &self.postgres).await?);
        }
        let sessions = self.sessions.split_off(self.sessions.len() - chosen.len());
        let jobs = chosen.into_iter().zip(sessions);
        let jobs: Vec<_> = jobs.map(|(index, session)| self.job(index, session)).collect();
        self.step = Step::Read(join_all(jobs).boxed());
        Ok(())
    }

    /// Gives up all connections to a source that failed on one.
    pub(super) fn or_hang_up<T>(&mut self, asked: Result<T, ReadError>) -> Result<T, Error> {
        if asked.is_err() {
            self.sessions.clear();
        }
        Ok(asked?)
    }

    /// A session that is free.
    pub(super) async fn session(&mut self) -> Result<&mut Session, Error> {
        if self.sessions.is_empty() {
            self.sessions.push(Session::open(&self.target, &self.postgres).await?);
        }
        self.sessions.last_mut().ok_or(Error::Source(ReadError::Surprise("no session")))
    }

    /// Reads the next chunk of a table, as often as it takes for it to contain what it has to.
    fn job(
        &mut self,
        index: usize,
        mut session: Session,
    ) -> impl Future<Output = (usize, Session, Result<Read, Error>)> + use<> {
        let snapshots = self.entry.snapshots().clone();
        let patience = snapshots.options().snapshot_settle;
        let registry = self.registry.clone();
        let table = &mut self.tables[index];
        table.begun.get_or_insert_with(Instant::now);
        let mut wanted = Wanted {
            dataset: Arc::clone(&table.dataset),
            table: table.name.clone(),
            source: self.source.name.clone(),
            versions: Vec::new(),
            known: table.shape.clone(),
            after: table.state.read.clone(),
            points: table.state.pending.clone(),
            must_see: table.must_see.clone(),
            rows_max: snapshots.rows_max(),
            bytes_max: limits::SNAPSHOT_CHUNK_BYTES_MAX,
        };
        async move {
            let begun = Instant::now();
            let mut pause = AGAIN_MIN;
            match registry.schema_history(wanted.dataset.id, VERSIONS).await {
                Ok(versions) => wanted.versions = versions,
                Err(error) => return (index, session, Err(error.into())),
            }
            let read = loop {
                let turn = snapshots.turn().await;
                let read = session.read(&wanted).await;
                drop(turn);
                match read {
                    Ok(Read::Unsettled { transaction }) if begun.elapsed() >= patience => {
                        let dataset = wanted.dataset.name.clone();
                        break Err(Error::Unsettled { dataset, transaction });
                    }
                    Ok(Read::Unsettled { .. }) => {}
                    Err(error) if is_lock_timeout(&error) && begun.elapsed() < patience => {}
                    read => break read.map_err(Error::from),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            };
            if let Ok(Read::Chunk(chunk)) = &read {
                snapshots.took(chunk.rows.len());
                histogram!("cadastre_feed_snapshot_chunk_seconds").record(begun.elapsed());
            }
            (index, session, read)
        }
    }

    /// Takes over what the jobs read.
    fn take(&mut self, reads: Reads) -> Result<(), Error> {
        let mut failed = None;
        self.until = Lsn::ZERO;
        for (index, session, read) in reads {
            match read {
                Err(error) => failed = Some(error),
                Ok(Read::Unsettled { .. }) => self.sessions.push(session),
                Ok(Read::Rekeyed(shape)) => {
                    self.sessions.push(session);
                    self.restart(index, &shape);
                    self.step = Step::Emit;
                }
                Ok(Read::Chunk(chunk)) => {
                    if chunk.more {
                        self.paused = Some((index, session));
                    } else {
                        self.sessions.push(session);
                    }
                    self.begin_chunk(index, chunk);
                    self.step = Step::Emit;
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// A chunk has been read: its window opens, its rows are to be sent.
    fn begin_chunk(&mut self, index: usize, chunk: Chunk) {
        self.until = self.until.max(chunk.lsn);
        let table = &mut self.tables[index];
        let wanted = if chunk.shape.has_key() { table.state.pending.clone() } else { Vec::new() };
        if table.state.partial {
            // Rows were sent that are void.
            self.restart(index, &chunk.shape);
        }
        // What this moment contains, every later one does, also for tables whose turn is far off.
        for table in &mut self.tables {
            table.must_see.retain(|transaction| !chunk.seen.contains(*transaction));
        }
        let table = &mut self.tables[index];
        table.must_see.clear();
        table.state.key = chunk.shape.key_digest();
        table.shape = Some(Arc::clone(&chunk.shape));
        table.state.window =
            Some(Window { from: table.state.read.clone(), seen: chunk.seen, points: Vec::new() });
        self.queue(index, chunk.rows, chunk.points, wanted, chunk.upto);
    }

    fn read_more(&mut self, table: usize, mut session: Session) {
        let snapshots = self.entry.snapshots().clone();
        let reading = async move {
            let turn = snapshots.turn().await;
            let read = session.more(snapshots.rows_max(), limits::SNAPSHOT_CHUNK_BYTES_MAX).await;
            drop(turn);
            if let Ok(chunk) = &read {
                snapshots.took(chunk.rows.len());
            }
            (session, read)
        };
        self.step = Step::More { table, reading: reading.boxed() };
    }

    fn take_more(
        &mut self,
        index: usize,
        session: Session,
        read: Result<Chunk, ReadError>,
    ) -> Result<(), Error> {
        match read {
            Ok(chunk) => {
                if chunk.more {
                    self.paused = Some((index, session));
                } else {
                    self.sessions.push(session);
                }
                self.queue(index, chunk.rows, 0, Vec::new(), chunk.upto);
                self.step = Step::Emit;
                Ok(())
            }
            Err(error) => {
                // Its transaction is gone: the next attempt begins the table anew.
                self.tables[index].state = State { partial: true, ..State::start() };
                Err(error.into())
            }
        }
    }

    /// What was sent of a table is void; it is read from its beginning.
    pub(super) fn restart(&mut self, index: usize, shape: &Arc<Shape>) {
        let table = &mut self.tables[index];
        table.shape = Some(Arc::clone(shape));
        table.state = State::start();
        table.rows = 0;
        let (head, tail) = shape.restart(Utc::now().timestamp_millis());
        if self.ops.has(Op::Truncate) {
            let (position, dataset) = (self.position, table.dataset.id);
            let event =
                self.event(Op::Truncate, position, dataset, |token| join(&head, token, tail));
            self.out.push_back(event);
        }
        tracing::info!(dataset = %self.tables[index].dataset.name, "snapshot begins a table anew");
        counter!("cadastre_feed_snapshot_restarts_total").increment(1);
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Table {
    fn new(dataset: Arc<Dataset>, name: DatasetName) -> Self {
        let progress = SnapshotTable::waiting(dataset.name.clone());
        Self {
            dataset,
            name,
            state: State::start(),
            shape: None,
            must_see: HashSet::new(),
            progress,
            rows: 0,
            begun: None,
            reported: None,
            closed: false,
        }
    }
}

/// Puts tables where a position says they were.
fn restore(tables: &mut [Table], state: &Progressed, digest: u32) -> Result<(), Error> {
    let foreign = || {
        Error::Invalid(
            "after: the position belongs to a snapshot of other datasets; ask for the same ones, in \
             any order"
                .to_owned(),
        )
    };
    if state.datasets != digest || state.begun > tables.len() {
        return Err(foreign());
    }
    for table in tables.iter_mut().take(state.begun) {
        table.state.read = Bound::End;
    }
    for (index, state) in &state.tables {
        tables.get_mut(*index).ok_or_else(foreign)?.state = state.clone();
    }
    for table in tables {
        table.closed = table.state.is_done();
    }
    Ok(())
}

fn is_lock_timeout(error: &ReadError) -> bool {
    matches!(error, ReadError::Source(error) if error.is_lock_timeout())
}
