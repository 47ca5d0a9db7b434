//! A feed that begins with the rows as they are, then goes on with the changes, exactly.
//!
//! Rows are read from the source in chunks, each from one moment of the database
//! ([`capture::snapshot`](crate::capture::snapshot)); changes come from the log, in commit order.
//! The two are joined so that a reader that applies what it gets has, for each key, first the row,
//! then precisely the changes that the row did not contain: none lost, none twice, none that takes
//! a row back to what it was. The idea of reading in chunks beside the stream is `DBLog`'s, which
//! Debezium's DDD-3 took over; both mark a chunk's place by writing to the source and let a change
//! *replace* the row it meets, which loses what a change does not carry (values stored out of
//! line). Here nothing is written and nothing is guessed: a chunk knows which transactions it
//! contains, `pg_current_snapshot()`, and a change knows its transaction.
//!
//! # One table
//!
//! ```text
//! key order   ├───── read before ─────┤── window: read at S ──┤┄┄┄┄┄ not read ┄┄┄┄┄▶
//!             Start                  from                   read                   End
//! a change    delivered               S contains it? dropped   dropped: the chunk to
//!                                     else delivered           come contains it
//! ```
//!
//! 1. *Read* a chunk at S and send its rows. The window `(from, read]` is open.
//! 2. *Follow* the log until everything that S contains has passed: capture has confirmed the
//!    source's WAL up to where it ended just after S was taken, and all that the log then holds
//!    was examined. From there on every change is one that S does not contain: the window closes.
//! 3. Again, until no row is left; then it is a feed like any other.
//!
//! Why this is exact, for a key k in the chunk read at S, and a committed transaction T that
//! changes k, with the log at position P when the chunk was read:
//!
//! - *T after P, S contains T*: k's row has it; dropped. It comes before the window closes, since
//!   its commit lies before the WAL's end at S.
//! - *T after P, S does not contain T*: delivered after the row, in commit order, which per key is
//!   the order in which PostgreSQL let the writers in.
//! - *T at or before P*: it was dropped, or (T before the snapshot began) never looked at, so S must
//!   contain it. A commit is in the WAL a moment before snapshots see it, so this does not go by
//!   itself: a chunk that does not contain every transaction dropped since the last one is read
//!   again. For what lies before the beginning, the transactions that hold a lock to write the table
//!   when the beginning is fixed, other than those that certainly have not begun to commit, are
//!   awaited ([`Session::writers`](crate::capture::snapshot::Session::writers)).
//! - *T is never in the log*: it was rolled back; snapshots do not contain it.
//! - *T not durable in the log yet* when its change is sent: after a crash it is captured again
//!   under the same position.
//!
//! A deleted row is this with no row in the chunk. A change of key is a delete of the one and an
//! insert of the other, each judged by itself: both delivered is an update; only the former, a
//! delete; only the latter, an insert, or, when the change does not carry the whole row, a key that
//! the next chunk reads besides its range. A truncate is wholly before or after a chunk, because
//! the chunk locks the table before S is taken; one that the open window contains but the rows read
//! before do not makes the table begin anew, after the truncate was delivered.
//!
//! Compared are keys, in PostgreSQL's own order, by PostgreSQL. A table without a key (or with one
//! that has no plain text) is one chunk, read in one transaction. Partitions are read through their
//! root, whose changes carry its name.
//!
//! # Where a reader stands
//!
//! During a snapshot the position of every event is longer: `POSITION~COUNT~STATE`
//! ([`Token`]). It sorts as text like any position, and it holds all that is needed to go on: how
//! far each table is read and which window is open. The server keeps nothing, so that a snapshot
//! outlives both ends of its connection.
//!
//! When the columns of a table change meanwhile, rows read from then on have the new ones, as the
//! changes in the log do from the change of schema on. When its key changes, or a table without one
//! is broken off, what was sent is void: an event `t` with `source.snapshot` true says so, and the
//! rows come again.

mod change;
mod emit;
mod follow;
mod progress;
mod run;
mod table;
mod token;

pub(super) use change::reposition;
pub use progress::{Snapshot, SnapshotTable, Snapshots};
pub(super) use run::Run;
pub use token::{Malformed as MalformedToken, Token};

/// The JSON Schema of the event that tells how far a snapshot is.
pub const SNAPSHOT_SCHEMA: &str = include_str!("../../../schema/events/snapshot.json");
