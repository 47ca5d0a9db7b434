//! Capture: from a source's slot to encoded changes in the log.
//!
//! ```text
//! stream ──► decode ──► assemble ──► relation, json, envelope ──► log
//! socket     pgoutput   transactions,  one event, written from       │
//!    ▲       messages   positions,     PostgreSQL's text             │
//!    │          │   ▲   writers                                      │
//!    │          ▼   │                                                │
//!    │        spill: transactions that have not committed, on disk   ▼
//!    └──────────────── progress: only what is durable in the log ◄───┘
//! ```
//!
//! Invariants: the slot is confirmed only up to what the log holds durably; a position depends on
//! the WAL alone, so a replay repeats it and is dropped; what cannot be understood ends the session
//! and is said in [`SourceStatus`], it is never skipped; whose a change is, its place in the stream
//! decides, not when it is read; each source is captured by itself and a broken one touches no other.
//!
//! A [`heartbeat`] through each source tells a stream that stands still from one that is quiet.
//!
//! Not here: who may write (the guard decides that, inside PostgreSQL), who reads (the feed).

mod budget;
mod confirm;
mod heartbeat;
mod intake;
mod service;
mod session;
mod setup;
mod spill;
mod stream;

pub mod assemble;
mod attribute;
pub mod catalog;
mod control;
pub mod decode;
pub mod envelope;
mod error;
pub mod json;
mod mark;
mod relation;
pub mod snapshot;
mod timeline;

pub use budget::{WalLevel, WalStatus};
pub use envelope::{CHANGE_SCHEMA, GUARD_SCHEMA, OWNERSHIP_SCHEMA, SCHEMA_SCHEMA};
pub use error::Error;
pub use service::{Captures, SourceStatus, State};
pub use spill::SpillError;
