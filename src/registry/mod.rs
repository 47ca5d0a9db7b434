//! The registry: which services, sources and datasets there are, and who owns what.
//!
//! A [`Registry`] answers every question about the present from a [`Snapshot`]: an immutable value
//! in memory, swapped whole when something changes. Reading it never waits, not for PostgreSQL and
//! not for a writer. Changes are lists of [`Mutation`]s, applied whole or not at all; each such list
//! takes the next [`Revision`].
//!
//! ```text
//!   apply ─► one transaction: lock registry_state, change, revision + 1, NOTIFY ─► new snapshot
//!                                                                  │
//!   other instances: LISTEN (and a look every few seconds) ◄───────┘ ─► new snapshot
//! ```
//!
//! Invariants
//! - A dataset has exactly one owner, and its ownership periods never overlap: the tables cannot
//!   hold anything else.
//! - Writers take turns on the row of `registry_state`, so revisions have no gaps and no two
//!   writers see each other half done.
//! - A snapshot is one consistent state, and revisions a reader sees never go backwards.
//! - Of a token only its digest is kept, and a revoked one is in no later snapshot.
//! - Connection strings are kept as declared, references to the environment unresolved.
//!
//! A [`manifest`] is the declared state as a file. What this room does *not* do: touch a source;
//! the guard does, and reports here with [`Registry::guard_state`].

mod break_glass;
mod error;
mod evolve;
mod finding;
mod follow;
mod gap;
mod handle;
mod leave;
pub mod manifest;
mod model;
mod mutation;
mod schema;
pub mod shape;
mod slot;
mod snapshot;
mod store;
mod subscription;
mod token;
mod transfer;
mod writer;

pub use break_glass::BreakGlass;
pub use error::Error;
pub use evolve::*;
pub use finding::{Finding, FindingFilter, Findings, NewFinding, Question, Severity};
pub use gap::{Baseline, GuardGap};
pub use handle::{Page, Registry, ViolationFilter};
pub use model::*;
pub use mutation::Decided;
pub use shape::{
    Column, Compatibility, Difference, ReplicaIdentity, Shape, StreamColumn, StreamTable,
    TableName, TypeKind, TypeShape,
};
pub use slot::SlotRecord;
pub use snapshot::{Decision, Orphan};
pub use subscription::{
    Budget, Deliver, Filter, NatsSpec, OnPark, RetryPolicy, SNAPSHOT_NEEDS_ROWS, SPEC_FIELDS,
    SUBSCRIPTION_NAME_FORM, SpecError, StartAt, SubscriptionSpec, WebhookSpec,
    is_subscription_name,
};
pub use token::{Grant, NewToken, Principal, Token, TokenDigest, TokenId, TokenIdError};
pub use transfer::{
    Ending, NewTransfer, Standing, Switch, Tenure, Transfer, TransferFilter, TransferState,
};
pub use writer::{TableWriter, UNOWNED};
