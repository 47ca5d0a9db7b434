//! What a durable store of batches promises.

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;

use super::{Batch, Digest, Error, GapReason, Key};
use crate::vocab::{DatasetId, Position, SourceId};

/// What a source's log has and had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// All changes up to here, inclusive, have been trimmed; [`Position::MIN`] if none has.
    pub trimmed: Position,
    /// Oldest change held; `None` when none is.
    pub first: Option<Position>,
    /// Newest change ever appended, held or trimmed; [`Position::MIN`] if none was.
    pub last: Position,
}

/// What [`Store::read`] found.
#[derive(Debug, Clone)]
pub struct Page {
    /// Batches with changes after the asked position, in order. The first may begin before it.
    /// Batches without any change of the asked datasets may be left out.
    pub batches: Vec<Arc<Batch>>,
    /// The log was examined up to here, inclusive; read on after this. Equal to the asked position
    /// when nothing newer is durable.
    pub examined: Position,
}

/// What is held of a source's log of one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// The source.
    pub source: SourceId,
    /// The day of the appends, in UTC; never falls from one append to the next.
    pub day: NaiveDate,
    /// How many changes.
    pub changes: u64,
    /// Stored bytes of payload.
    pub bytes: u64,
    /// Position of its last change.
    pub last: Position,
}

/// What a source's log has ever held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Changes that became durable, trimmed ones included.
    pub changes: u64,
    /// Changes held.
    pub held: u64,
    /// Stored bytes of payload held.
    pub bytes: u64,
}

/// A reader whose unread changes are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// Who.
    pub holder: String,
    /// It has everything up to here, inclusive, and wants the rest.
    pub position: Position,
}

/// What a part of a source's log was found to be when it was read again and everything in it
/// computed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Exclusive.
    pub from: Position,
    /// Inclusive; how far was looked. Before the end asked for when that is too much for one look,
    /// or when something is broken there.
    pub upto: Position,
    /// Whether `upto` is all that was asked for.
    pub complete: bool,
    /// Chunks read.
    pub chunks: u64,
    /// Of each dataset with changes in the range: its number, how many, and their digest.
    pub datasets: Vec<(DatasetId, u64, Digest)>,
    /// The first thing that is not as it was stored.
    pub broken: Option<Broken>,
}

/// Where a log is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Everything up to here, inclusive, is as it was.
    pub after: Position,
    /// The end of the chunk that is broken; `None` when the end of the log is missing.
    pub chunk: Option<Position>,
    /// What is wrong, in a sentence without a full stop.
    pub reason: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.chunk {
            Some(chunk) => write!(f, "the chunk that ends at {chunk}: {}", self.reason),
            None => write!(f, "after {}: {}", self.after, self.reason),
        }
    }
}

/// Durable storage of batches. Contract, checked by one conformance suite on every implementation:
///
/// - `append` is atomic and in order: all batches or none; each position must be greater than all
///   before it, trimmed ones included, else [`Error::OutOfOrder`] and nothing is written. When it
///   returns `Ok` the batches survive a crash of this process and of the database. When it fails
///   otherwise, or is dropped, they may or may not be there, still all or none.
/// - Two appends to one source never both succeed with the same or with crossing positions.
/// - `read` returns batches in position order, at least one if any change after `after` (exclusive)
///   of the asked datasets is durable, and stops at about `bytes` of encoded changes.
/// - Changes read back are byte for byte the changes appended, or [`Error::Corrupt`]. Batches may
///   come back merged with their neighbours.
/// - Reading after a position older than what was trimmed is [`Error::Trimmed`]; a position older
///   than the first change is fine as long as nothing was.
/// - A cut moves what can be read at once; what it leaves behind on disk goes with a later sweep.
/// - Of the changes of one row none is left out; others may be among those that are read.
/// - Sources do not see each other.
pub trait Store: Send + Sync + 'static {
    /// Makes batches durable.
    fn append<'a>(
        &'a self,
        source: SourceId,
        batches: &'a [Arc<Batch>],
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Batches with changes after `after` (exclusive), oldest first. With `datasets`, chunks that
    /// hold none of them are skipped without being read.
    fn read<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        datasets: Option<&'a [DatasetId]>,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>>;

    /// What the source's log has and had.
    fn extent(&self, source: SourceId) -> BoxFuture<'_, Result<Extent, Error>>;

    /// As [`Store::read`], of one dataset: chunks that cannot hold a change of the row are skipped
    /// as well.
    fn read_row<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        dataset: DatasetId,
        key: &'a Key,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>>;

    /// The columns that the dataset's newest marked changes are marked with.
    fn key_columns(
        &self,
        source: SourceId,
        dataset: DatasetId,
    ) -> BoxFuture<'_, Result<Option<Vec<String>>, Error>>;

    /// The position to read after in order to begin with the first change that was committed at or
    /// after `at`; `None` when no such change is durable. [`Error::Trimmed`] when some may have
    /// been dropped.
    fn position_at(
        &self,
        source: SourceId,
        at: DateTime<Utc>,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>>;

    /// Drops batches that end at or before `upto`, and keeps why. Readers older than the last one
    /// dropped get [`Error::Trimmed`].
    fn cut(
        &self,
        source: SourceId,
        upto: Position,
        reason: GapReason,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// As [`Store::cut`], for reasons of age.
    fn trim(&self, source: SourceId, upto: Position) -> BoxFuture<'_, Result<(), Error>> {
        self.cut(source, upto, GapReason::Retention)
    }

    /// Why the source's log was cut the last time.
    fn cut_reason(&self, source: SourceId) -> BoxFuture<'_, Result<GapReason, Error>>;

    /// Gets ready for the appends of the coming days. An append does without it, only more slowly.
    fn prepare(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Gives back the room of what was cut.
    fn sweep(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// What is held of every source, by day, oldest first.
    fn days(&self) -> BoxFuture<'_, Result<Vec<Day>, Error>>;

    /// The end of the fewest of the oldest chunks that together have stored at least `bytes`.
    fn freeing(
        &self,
        source: SourceId,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>>;

    /// What the source's log has ever held.
    fn totals(&self, source: SourceId) -> BoxFuture<'_, Result<Totals, Error>>;

    /// Keeps what follows `position` for `holder`, until it says otherwise.
    fn protect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
        position: Position,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// `holder` no longer wants anything kept.
    fn unprotect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Whose unread changes are kept, those furthest behind first.
    fn protections(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<Protection>, Error>>;

    /// Reads what lies between two positions again, about `bytes` of stored payload of it, and
    /// computes everything anew. What does not fit is no error but in the [`Proof`].
    fn prove(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
        bytes: usize,
    ) -> BoxFuture<'_, Result<Proof, Error>>;
}

/// The position that `batches` end at, if each follows the one before and the first follows `last`.
pub(super) fn check_order(last: Position, batches: &[Arc<Batch>]) -> Result<Position, Error> {
    let mut last = last;
    for batch in batches {
        if batch.first() <= last {
            return Err(Error::OutOfOrder { first: batch.first(), last });
        }
        last = batch.last();
    }
    Ok(last)
}
