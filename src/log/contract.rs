//! What a durable store of batches promises.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::{Batch, Error};
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

    /// Drops batches that end at or before `upto`. Readers older than the last one dropped get
    /// [`Error::Trimmed`].
    fn trim(&self, source: SourceId, upto: Position) -> BoxFuture<'_, Result<(), Error>>;
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
