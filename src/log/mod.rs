//! The log: the durable, ordered record of changes, and its live tail. The narrow waist.
//!
//! Capture appends, feed reads, neither sees the table behind it. A [`Batch`] of encoded changes
//! is built once; its bytes are shared by every reader and compressed once for the durable store.
//!
//! ```text
//!            append                          make durable (in order, in the background)
//! capture ──────────► tail in memory ─────────────────────────────────► Store (chunks)
//!                        │ a reader at the tail                             │ a reader behind it
//!                        └──────────────► Reader (no seam) ◄────────────────┘
//! ```
//!
//! Readers see a change as soon as it is appended; they do not wait for it to be durable. After a
//! crash capture sends again, under the same positions, what was not; a reader that has seen it
//! skips it.
//!
//! Invariants: positions within a source strictly increase; a batch leaves memory only after it is
//! durable, so that tail and store always overlap or touch; memory held for a source is bounded; a
//! reader holds no place in any queue, so that a slow one costs nobody anything.

mod batch;
mod chunk;
mod contract;
mod digest;
mod error;
mod filter;
mod gap;
mod key;
mod live;
mod memory;
mod reader;
mod retention;
mod ring;
mod store;
mod tail;
mod writer;

pub use batch::{Batch, BatchBuilder, Entry};
pub use contract::{Broken, Day, Extent, Page, Proof, Protection, Store, Totals};
pub use digest::Digest;
pub use error::Error;
pub use gap::{GAP_SCHEMA, Gap, GapReason};
pub use key::{Key, KeyColumns, KeyError};
pub use memory::MemoryStore;
pub use reader::{Reader, Slice, Start};
pub use retention::{Policies, Policy, Retention};
pub use store::PostgresStore;
pub use tail::{Bounds, Log};
pub use writer::Writer;

#[cfg(test)]
#[macro_use]
mod delegate;
#[cfg(test)]
mod tests;
