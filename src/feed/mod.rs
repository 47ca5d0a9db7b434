//! The feed: what subscribers read.
//!
//! A request is checked against the registry and the log once; from then on a [`Cursor`] gives the
//! changes asked for, in order, from where it was asked, first out of the log's history, then live,
//! without a seam.
//!
//! A feed may begin with the rows as they are: see the module `snapshot`.
//!
//! A cursor is all there is of a subscriber here: a position, a filter and a permit. Nothing is
//! queued for it, so a slow one falls back into history and holds up nobody; nothing is encoded for
//! it either, the bytes are those capture made. Which transport carries them is not known here.
//!
//! Invariants: a subscriber gets changes of the datasets it asked for and of no other; what it got
//! last is the position to resume after; at most [`limits::FEED_READERS_MAX`] cursors are open.

mod deliver;
mod delivery;
mod error;
mod place;
mod request;
mod shape;
mod snapshot;
mod subscription;

pub use deliver::Sinks;
pub use deliver::pull::{Acknowledged, Fetched, FetchedChange, Which};
pub use delivery::Delivery;
pub use error::Error;
pub use request::{After, Part, Request, Until};
pub use shape::Shape;
pub use snapshot::{MalformedToken, SNAPSHOT_SCHEMA, Snapshot, SnapshotTable, Snapshots, Token};
pub use subscription::{
    Attempt, Checksum, Counts, DeadLetter, LetterState, MalformedMark, Mark, Sealer, Status,
    Subscriptions, Tally,
};

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use chrono::Utc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{PostgresOptions, SnapshotOptions};
use crate::log::{self, BatchBuilder, Gap, Key, Log, Proof, Reader, Slice, Start};
use crate::pg::Target;
use crate::registry::{Dataset, Page, Registry, Snapshot as Registered};
use crate::vocab::{DatasetId, DatasetName, Op, Position, SourceId, SourceName, limits};
use request::Ops;

/// Opens cursors. Cheap to clone; clones share the limit.
#[derive(Clone)]
pub struct Feed {
    registry: Registry,
    desk: Desk,
    postgres: PostgresOptions,
    snapshots: Snapshots,
}

impl Feed {
    /// Feeds of what `registry` knows out of `log`; snapshots are read from the sources within these
    /// limits.
    pub fn new(
        registry: Registry,
        log: Log,
        postgres: PostgresOptions,
        snapshots: SnapshotOptions,
    ) -> Self {
        let desk = Desk::new(log, limits::FEED_READERS_MAX);
        Self { registry, desk, postgres, snapshots: Snapshots::new(snapshots) }
    }

    /// Checks the request (datasets known, all of one source, the log still holds what follows the
    /// position) and takes a reader's place.
    pub async fn open(&self, request: Request) -> Result<Cursor, Error> {
        self.open_part(request, Part::default()).await
    }

    /// The same of a part.
    pub async fn open_part(&self, request: Request, part: Part) -> Result<Cursor, Error> {
        let snapshot = self.registry.snapshot();
        let resume = match &request.after {
            After::Snapshot => None,
            After::Resume(token) => Some(token.as_ref().clone()),
            After::Now | After::Earliest | After::Position(_) | After::Time(_) => {
                return self.desk.open(&snapshot, &request, &part).await;
            }
        };
        self.open_snapshot(&snapshot, &request, &part, resume).await
    }

    /// Begins a snapshot, or goes on with one.
    async fn open_snapshot(
        &self,
        registered: &Registered,
        request: &Request,
        part: &Part,
        resume: Option<Token>,
    ) -> Result<Cursor, Error> {
        let ops = Ops::new(request.ops.as_deref())?;
        if !ops.has(Op::Read) {
            let wanted = "ops: a snapshot gives rows as r, which has to be among the operations";
            return Err(Error::Invalid(wanted.to_owned()));
        }
        if let Some(name) = not_of_a_snapshot(&request.shape, part) {
            return Err(Error::Invalid(format!(
                "{name}: cannot be combined with a snapshot, which gives every row whole; leave it \
                 out, or begin after now, earliest, a position or a time"
            )));
        }
        let (source_id, ids) = request.resolve(registered)?;
        let told = self.desk.told(registered, source_id, &request.datasets, &ids);
        let place = self.desk.enter()?;
        let run = self.snapshot_of(&request.datasets, ops, resume).await?;
        let reading = Reading::Snapshot(Box::new(run));
        let shape = request.shape.clone();
        Ok(Cursor { reading, ops, shape, key: None, told, _place: place })
    }

    /// A snapshot of datasets, begun or gone on with.
    async fn snapshot_of(
        &self,
        names: &[DatasetName],
        ops: Ops,
        resume: Option<Token>,
    ) -> Result<snapshot::Run, Error> {
        let registered = self.registry.snapshot();
        // By the names they are registered under, whichever they were asked by; each once, in order.
        let named = names.iter().filter_map(|name| registered.dataset(name));
        let datasets: BTreeMap<_, _> =
            named.map(|dataset| (dataset.name.clone(), Arc::clone(dataset))).collect();
        let source_id = datasets.values().next().map(|dataset| dataset.source_id);
        let source = registered.sources.values().find(|source| Some(source.id) == source_id);
        let source = source.ok_or_else(|| Error::Invalid("datasets: no source".to_owned()))?;
        let mut tables = Vec::with_capacity(datasets.len());
        for dataset in datasets.into_values() {
            let table = self.table_of(&dataset).await?;
            tables.push((dataset, table));
        }
        snapshot::Run::begin(
            (self.desk.log.clone(), self.registry.clone()),
            &self.snapshots,
            self.postgres.clone(),
            Arc::clone(source),
            tables,
            ops,
            resume,
        )
        .await
    }

    /// What a dataset's table is called now: it may have been renamed since it was registered.
    async fn table_of(&self, dataset: &Dataset) -> Result<DatasetName, Error> {
        let newest = Page { first: 1, after: None };
        let versions = self.registry.schema_history(dataset.id, newest).await?;
        let known = versions.first().and_then(|version| {
            let name = &version.shape.name;
            DatasetName::new(dataset.name.source(), &name.schema, &name.table).ok()
        });
        Ok(known.unwrap_or_else(|| dataset.name.clone()))
    }

    /// The snapshots under way, oldest first.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.snapshots.list()
    }

    /// Has the log of a source shown to be whole between two places, as far as one look goes; its
    /// durable end stands in for an end beyond it.
    pub async fn prove(&self, source: SourceId, from: After, until: Until) -> Result<Proof, Error> {
        let log = &self.desk.log;
        let extent = log.extent(source).await?;
        let from = match place::start(log, source, &from).await? {
            Start::After(position) => position,
            Start::Earliest => extent.trimmed,
            Start::Now => extent.last,
        };
        let to = place::end(log, source, until).await?.min(extent.last);
        Ok(log.prove(source, from, to).await?)
    }
}

/// The first parameter of a request that says which changes, which columns or which form: a
/// snapshot has no row of the log to ask that of.
fn not_of_a_snapshot(shape: &Shape, part: &Part) -> Option<&'static str> {
    [
        ("until", part.until.is_some()),
        ("key", part.key.is_some()),
        ("where", shape.predicate.is_some()),
        ("columns", shape.columns.is_some()),
        ("format=cloudevents", shape.cloud_event),
    ]
    .into_iter()
    .find_map(|(name, given)| given.then_some(name))
}

/// A feed without its registry.
#[derive(Clone)]
struct Desk {
    log: Log,
    places: Arc<Semaphore>,
    limit: usize,
}

impl Desk {
    fn new(log: Log, limit: usize) -> Self {
        Self { log, places: Arc::new(Semaphore::new(limit)), limit }
    }

    /// Takes a reader's place.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| Error::Full { limit: self.limit })
    }

    /// What is needed to tell a reader of these datasets of a gap.
    fn told(
        &self,
        snapshot: &Registered,
        source: SourceId,
        names: &[DatasetName],
        datasets: &[DatasetId],
    ) -> Told {
        Told {
            log: self.log.clone(),
            source,
            names: Told::names(snapshot, source, names),
            dataset: datasets.first().copied(),
        }
    }

    async fn open(
        &self,
        snapshot: &Registered,
        request: &Request,
        part: &Part,
    ) -> Result<Cursor, Error> {
        let ops = Ops::new(request.ops.as_deref())?;
        let (source, datasets) = request.resolve(snapshot)?;
        let key = match &part.key {
            Some(text) => Some(Arc::new(self.key(source, &datasets, text).await?)),
            None => None,
        };
        let until = match part.until {
            Some(until) => Some(place::end(&self.log, source, until).await?),
            None => None,
        };
        let start = place::start(&self.log, source, &request.after).await?;
        let told = self.told(snapshot, source, &request.datasets, &datasets);
        let row = datasets.first().copied().zip(key.clone());
        let place = self.enter()?;
        let mut reader = self.log.reader(source, start, Some(datasets));
        if let Some((dataset, key)) = row {
            reader.only_row(dataset, key);
        }
        if let Some(until) = until {
            reader.end_at(until);
        }
        reader.locate().await?;
        let (reading, shape) = (Reading::Log(reader), request.shape.clone());
        Ok(Cursor { reading, ops, shape, key, told, _place: place })
    }

    /// The row that `text` names in the one dataset that is asked for.
    async fn key(
        &self,
        source: SourceId,
        datasets: &[DatasetId],
        text: &str,
    ) -> Result<Key, Error> {
        let [dataset] = datasets else {
            let count = datasets.len();
            return Err(Error::Invalid(format!(
                "key: a row is in one dataset, and {count} are asked for"
            )));
        };
        let columns = self.log.key_columns(source, *dataset).await?;
        Key::parse(text, columns.as_deref()).map_err(|error| Error::Invalid(error.to_string()))
    }
}

/// One subscriber's place in a source's changes.
#[derive(Debug)]
pub struct Cursor {
    reading: Reading,
    ops: Ops,
    shape: Shape,
    /// The only row asked for.
    key: Option<Arc<Key>>,
    told: Told,
    /// Given back when the subscriber leaves.
    _place: OwnedSemaphorePermit,
}

/// Where what a subscriber gets comes from.
#[derive(Debug)]
enum Reading {
    Log(Reader),
    Snapshot(Box<snapshot::Run>),
    /// Between the two, which nobody sees.
    Over,
}

impl Cursor {
    /// As [`Cursor::try_next`], for a feed without an end; one that has ended waits for ever.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        match self.try_next().await? {
            Some(delivery) => Ok(delivery),
            None => std::future::pending().await,
        }
    }

    /// The next changes the subscriber asked for, at least one; waits for them. `None` at the end
    /// that was asked for. Cancel-safe: what a dropped call would have given, the next one gives.
    /// After an error, calling again goes on where it was.
    ///
    /// When the log was cut where this cursor stands, a gap is what it gives next, and then what
    /// follows it.
    pub async fn try_next(&mut self) -> Result<Option<Delivery>, Error> {
        loop {
            let reader = match &mut self.reading {
                Reading::Log(reader) => reader,
                Reading::Over => return Err(Error::Log(log::Error::Stopped)),
                Reading::Snapshot(run) => {
                    if let Some(delivery) = run.next().await? {
                        return Ok(Some(delivery));
                    }
                    if let Reading::Snapshot(run) =
                        std::mem::replace(&mut self.reading, Reading::Over)
                    {
                        self.reading = Reading::Log(run.into_reader());
                    }
                    continue;
                }
            };
            let slice = match reader.try_next().await {
                Ok(Some(slice)) => slice,
                Ok(None) => return Ok(None),
                Err(log::Error::Trimmed { earliest }) => {
                    let gap = self.told.gap(reader.position(), earliest).await?;
                    reader.skip_to(earliest);
                    gap
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(delivery) = Delivery::new(slice, self.ops, &self.shape, self.key.as_deref())
            {
                return Ok(Some(delivery));
            }
        }
    }
}

/// What is needed to tell a subscriber of a gap.
#[derive(Clone)]
struct Told {
    log: Log,
    source: SourceId,
    names: Option<(SourceName, Option<String>, Vec<DatasetName>)>,
    dataset: Option<DatasetId>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Told {
    /// The names of the source, its database and the datasets asked for.
    fn names(
        snapshot: &Registered,
        source: SourceId,
        datasets: &[DatasetName],
    ) -> Option<(SourceName, Option<String>, Vec<DatasetName>)> {
        let source = snapshot.sources.values().find(|it| it.id == source)?;
        let target = Target::resolve(&source.url).ok();
        let database = target.map(|target| target.database().to_owned());
        let mut datasets = datasets.to_vec();
        datasets.sort_unstable();
        datasets.dedup();
        Some((source.name.clone(), database, datasets))
    }

    /// The event that says that the log was cut between two positions.
    async fn gap(&self, from: Position, to: Position) -> Result<Slice, Error> {
        let trimmed = || Error::Trimmed { earliest: to };
        let reason = self.log.cut_reason(self.source).await?;
        let (source, database, datasets) = self.names.as_ref().ok_or_else(trimmed)?;
        let (first, dataset) = datasets.first().zip(self.dataset).ok_or_else(trimmed)?;
        let gap = Gap {
            source,
            database: database.as_deref(),
            dataset: first,
            datasets,
            reason,
            from,
            to,
            position: to,
            now_ms: Utc::now().timestamp_millis(),
        };
        let mut batch = BatchBuilder::new();
        let Ok(()) = batch.push(to, dataset, Op::Gap, |out| {
            gap.encode(out);
            Ok::<_, Infallible>(())
        });
        metrics::counter!("cadastre_feed_gaps_total", "reason" => reason.as_str()).increment(1);
        batch.finish().map(Slice::of_one).ok_or_else(trimmed)
    }
}

#[cfg(test)]
mod tests;
