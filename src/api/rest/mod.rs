//! The plain routes: one file a noun.
//!
//! What they answer is described twice: here by types, and in `schema/openapi.json`, which is
//! generated from these types and from the comments on the handlers.

mod check;
mod doctor;
mod feed;
mod health;
mod manifest;
mod openapi;
mod rows;

pub(super) use check::{check_body, check_query};
pub(super) use doctor::doctor;
pub(super) use feed::{feed, parse_after};
pub(super) use health::{healthz, metrics, readyz};
pub(super) use manifest::{apply, export, plan};
pub(super) use openapi::openapi;
pub use openapi::openapi_json;
pub(super) use rows::rows;
