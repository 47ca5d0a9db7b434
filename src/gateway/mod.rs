//! The write gateway: rows written over HTTP by services that have no connection of their own.
//!
//! ```text
//! request ─► Request (parsed) ─► session of the service's own role in the source
//!                                   BEGIN; take the key; statements; keep the answer; COMMIT
//!                                             │ the guard answers, as it answers psql
//! ```
//!
//! A request is one transaction in the source, made by the service's own login: what PostgreSQL and
//! the guard say to that login is the answer. Cadastre's own role never runs a service's statement
//! and never becomes the service by `SET ROLE`: a trigger of the service's table could then become
//! Cadastre by `RESET ROLE`.
//!
//! Invariants: a request is applied whole or not at all; one repeated under its idempotency key is
//! applied once, because the key is stored in the same transaction as the rows; values never become
//! part of a statement's text; a service has a bounded number of sessions.
//!
//! Not here: who is asking (the API knows), whether it may (the guard does).

mod error;
mod request;
mod session;
mod shape;
mod statement;
mod store;

pub use error::Error;
pub use request::{IdempotencyKey, Request, Written};
pub use session::{Gateway, Login};
