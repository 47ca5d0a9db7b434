//! The plain routes: one file a noun.
//!
//! What they answer is described twice: here by types, and in `schema/openapi.json`, which is
//! generated from these types and from the comments on the handlers.

mod adopt;
mod check;
mod dead_letter;
mod doctor;
mod feed;
mod health;
mod manifest;
mod openapi;
mod proof;
mod rows;
mod snapshots;
mod subscription;

pub(super) use adopt::{adopt, adoption};
pub(super) use check::{check_body, check_query};
pub(super) use doctor::doctor;
pub(super) use feed::{feed, parse_after, parse_predicate, parse_until};
pub(super) use health::{healthz, metrics, readyz};
pub(super) use manifest::{apply, export, plan};
pub(super) use openapi::openapi;
pub use openapi::openapi_json;
pub(super) use proof::proof;
pub(super) use rows::rows;
pub(super) use subscription::{ack, extend, fetch, nack, secret};

/// The dead-letter queue's handlers.
pub(super) mod dead_letters {
    pub(in crate::api) use super::dead_letter::{drop_letter, edit, get, list, reason, redrive};
}
pub(super) use snapshots::snapshots;
