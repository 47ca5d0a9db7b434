//! The API: everything the other rooms offer, over HTTP.
//!
//! ```text
//!              observe            auth               rest/     ─► registry · guard · feed
//! request ──► (ids, span, log) ─► (who is asking) ─►
//!              ◄── problem ──────────────────────    graphql/  ─► the same handles
//! ```
//!
//! A handler reads what it is given strictly, asks a room and writes the answer; it decides
//! nothing about ownership. Whatever fails becomes a [`problem`], by one table for REST and
//! GraphQL.
//!
//! Invariants: what a route or a field needs of its caller stands in one table, and what stands
//! nowhere is closed; every response names its
//! request; no answer is built from more than one registry snapshot; what a slow client has not
//! taken is bounded; every feed ends with a reason its reader can see, or with the server.
//!
//! actix and async-graphql types stop here.

mod access;
mod auth;
mod code;
mod error;
mod graphql;
mod input;
mod negotiate;
mod observe;
mod problem;
mod rest;
mod server;

pub use auth::{Principal, Tokens};
pub use error::Error;
pub use graphql::graphql_sdl;
pub use rest::openapi_json;
pub use server::{Context, Serving, serve};
