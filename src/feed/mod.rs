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
mod request;
mod shape;
mod subscription;

pub use deliver::Sinks;
pub use deliver::pull::{Acknowledged, Fetched, FetchedChange, Which};
pub use delivery::Delivery;
pub use error::Error;
pub use request::{After, Request};
pub use shape::Shape;
pub use subscription::{
    Attempt, Checksum, Counts, DeadLetter, LetterState, Status, Subscriptions, Tally,
};

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::log::{Log, Reader};
use crate::registry::{Registry, Snapshot};
use crate::vocab::limits;
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
        self.desk.open(&self.registry.snapshot(), &request).await
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

    async fn open(&self, snapshot: &Snapshot, request: &Request) -> Result<Cursor, Error> {
        let ops = Ops::new(request.ops.as_deref())?;
        let (source, datasets) = request.resolve(snapshot)?;
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Error::Full { limit: self.limit })?;
        let mut reader = self.log.reader(source, request.after.into(), Some(datasets));
        reader.locate().await?;
        Ok(Cursor { reader, ops, shape: request.shape.clone(), _place: place })
    }
}

/// One subscriber's place in a source's changes.
#[derive(Debug)]
pub struct Cursor {
    reader: Reader,
    ops: Ops,
    shape: Shape,
    /// Given back when the subscriber leaves.
    _place: OwnedSemaphorePermit,
}

impl Cursor {
    /// The next changes the subscriber asked for, at least one; waits for them. Cancel-safe: what a
    /// dropped call would have given, the next one gives. After an error that is not
    /// [`Error::Trimmed`], calling again goes on where it was.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            let slice = self.reader.next().await?;
            if let Some(delivery) = Delivery::new(slice, self.ops, &self.shape) {
                return Ok(delivery);
            }
        }
    }
}

#[cfg(test)]
mod tests;
