//! The feed: what subscribers read.
//!
//! A request is checked against the registry and the log once; from then on a [`Cursor`] gives the
//! changes asked for, in order, from where it was asked, first out of the log's history, then live,
//! without a seam.
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
mod subscription;

pub use deliver::Sinks;
pub use deliver::pull::{Acknowledged, Fetched, FetchedChange, Which};
pub use delivery::Delivery;
pub use error::Error;
pub use request::{After, Part, Request, Until};
pub use shape::Shape;
pub use subscription::{
    Attempt, Checksum, Counts, DeadLetter, LetterState, Status, Subscriptions, Tally,
};

use std::convert::Infallible;
use std::sync::Arc;

use chrono::Utc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::log::{self, BatchBuilder, Gap, Key, Log, Proof, Reader, Slice, Start};
use crate::pg::Target;
use crate::registry::{Registry, Snapshot};
use crate::vocab::{DatasetId, DatasetName, Op, Position, SourceId, SourceName, limits};
use request::Ops;

/// Opens cursors. Cheap to clone; clones share the limit.
#[derive(Clone)]
pub struct Feed {
    registry: Registry,
    desk: Desk,
}

impl Feed {
    /// Feeds of what `registry` knows out of `log`.
    pub fn new(registry: Registry, log: Log) -> Self {
        Self { registry, desk: Desk::new(log, limits::FEED_READERS_MAX) }
    }

    /// Checks the request (datasets known, all of one source, the log still holds what follows the
    /// position) and takes a reader's place.
    pub async fn open(&self, request: Request) -> Result<Cursor, Error> {
        self.open_part(request, Part::default()).await
    }

    /// The same of a part.
    pub async fn open_part(&self, request: Request, part: Part) -> Result<Cursor, Error> {
        self.desk.open(&self.registry.snapshot(), &request, &part).await
    }

    /// Has the log of a source shown to be whole between two places, as far as one look goes; its
    /// durable end stands in for an end beyond it.
    pub async fn prove(&self, source: SourceId, from: After, until: Until) -> Result<Proof, Error> {
        let log = &self.desk.log;
        let extent = log.extent(source).await?;
        let from = match place::start(log, source, from).await? {
            Start::After(position) => position,
            Start::Earliest => extent.trimmed,
            Start::Now => extent.last,
        };
        let to = place::end(log, source, until).await?.min(extent.last);
        Ok(log.prove(source, from, to).await?)
    }
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

    async fn open(
        &self,
        snapshot: &Snapshot,
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
        let start = place::start(&self.log, source, request.after).await?;
        let told = Told {
            log: self.log.clone(),
            source,
            names: Told::names(snapshot, source, &request.datasets),
            dataset: datasets.first().copied(),
        };
        let row = datasets.first().copied().zip(key.clone());
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Error::Full { limit: self.limit })?;
        let mut reader = self.log.reader(source, start, Some(datasets));
        if let Some((dataset, key)) = row {
            reader.only_row(dataset, key);
        }
        if let Some(until) = until {
            reader.end_at(until);
        }
        reader.locate().await?;
        Ok(Cursor { reader, ops, shape: request.shape.clone(), key, told, _place: place })
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
    reader: Reader,
    ops: Ops,
    shape: Shape,
    /// The only row asked for.
    key: Option<Arc<Key>>,
    told: Told,
    /// Given back when the subscriber leaves.
    _place: OwnedSemaphorePermit,
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
            let slice = match self.reader.try_next().await {
                Ok(Some(slice)) => slice,
                Ok(None) => return Ok(None),
                Err(log::Error::Trimmed { earliest }) => {
                    let gap = self.told.gap(self.reader.position(), earliest).await?;
                    self.reader.skip_to(earliest);
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
        snapshot: &Snapshot,
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
