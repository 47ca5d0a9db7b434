//! Rows as they stand now, read from the source for a reader that begins with the present state.
//!
//! A table is read in chunks by its key, each chunk in one short transaction that sees one moment
//! of the database. With the rows comes that moment, [`Seen`]: which transactions the chunk
//! contains. Whoever joins the chunk to the changes of the log decides by it, change for change;
//! nothing is written to the source and no slot is made.
//!
//! A row becomes an event by the same encoder as a change, from the same text that PostgreSQL
//! writes into the stream, so that a value is the same bytes whichever way it comes.
//!
//! Three orders matter inside a chunk's transaction:
//!
//! 1. The table is locked (`ACCESS SHARE`) before the snapshot is taken. TRUNCATE and rewrites do
//!    not respect snapshots; with the lock they are wholly before the chunk or wholly after it.
//! 2. The snapshot is taken before the end of WAL is asked for, so that the commit of every
//!    transaction the chunk contains lies before that [`Chunk::lsn`].
//! 3. A transaction's commit is in the WAL, and by that in the log, a moment before snapshots see
//!    it (for as long as a synchronous standby takes, when there is one). A chunk that does not yet
//!    see a transaction whose changes the reader has already passed is given back as
//!    [`Read::Unsettled`] and read again.
//!
//! Which chunk comes next, and which change is part of which, is the feed's business.

mod error;
mod key;
mod seen;
mod shape;
mod store;

pub use error::Error;
pub use key::{Bound, Key};
pub use seen::Seen;
pub use shape::{Shape, digest};
pub use store::Session;

use std::collections::HashSet;
use std::sync::Arc;

use crate::registry::{Dataset, SchemaVersion};
use crate::vocab::{DatasetName, Lsn, SourceName};

/// What to read next of a dataset.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The dataset.
    pub dataset: Arc<Dataset>,
    /// What its table is called now, which may not be what it is registered under.
    pub table: DatasetName,
    /// Its source.
    pub source: SourceName,
    /// Versions of the table, the newest first, of which the rows name theirs.
    pub versions: Vec<SchemaVersion>,
    /// The table as the chunks before saw it: one whose key is another by now is not read on.
    pub known: Option<Arc<Shape>>,
    /// Rows after this.
    pub after: Bound,
    /// Rows before that which are wanted all the same.
    pub points: Vec<Key>,
    /// Transactions that the chunk has to contain.
    pub must_see: HashSet<u32>,
    /// At most this many rows.
    pub rows_max: usize,
    /// At most about this many bytes.
    pub bytes_max: usize,
}

/// What became of an attempt to read.
#[derive(Debug)]
pub enum Read {
    /// Rows.
    Chunk(Chunk),
    /// The table's key is another than that of the chunks before, so that "after" says nothing.
    Rekeyed(Arc<Shape>),
    /// A transaction that the chunk has to contain is not visible yet.
    Unsettled {
        /// One of them.
        transaction: u32,
    },
}

/// Rows of one moment.
#[derive(Debug)]
pub struct Chunk {
    /// The table as it was at that moment.
    pub shape: Arc<Shape>,
    /// The moment.
    pub seen: Seen,
    /// The commits of all transactions the chunk contains lie before this.
    pub lsn: Lsn,
    /// The rows: the wanted points that exist, then those that follow, in the order of the key.
    pub rows: Vec<Row>,
    /// How many of the rows are points.
    pub points: usize,
    /// All rows up to here have been read; [`Bound::End`] when none is left.
    pub upto: Bound,
    /// Rows of the same moment follow: ask [`Session::more`]. Only for tables without a key.
    pub more: bool,
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Its place in the table's order; `None` in a table without a key.
    pub key: Option<Key>,
    /// The event up to its position.
    pub head: Vec<u8>,
    /// The event from after its position.
    pub tail: &'static [u8],
}
