//! GraphQL: the registry as a graph, its changes as mutations, the feed as a subscription.
//!
//! ```text
//! http ──► operation ──► schema (query · mutation · subscription) ──► failure ──► http
//! ws   ──►    │                     │ objects: dataset, service …       │    ──► ws
//!             └ parsed once         └ each holds its snapshot           └ codes, ids
//! ```
//!
//! Transport is our own, by the GraphQL-over-HTTP rules and by graphql-transport-ws; execution is
//! async-graphql's. An object carries the registry snapshot it was read from, so that everything
//! below it agrees with it. A field that may fail on its own is nullable (`Option<Result<_>>`): its
//! failure does not take its neighbours with it.
//!
//! Resolvers fail with a [`Problem`](super::problem::Problem); `failure` gives every error its
//! `extensions.code` and the request's id in one place.

mod break_glass;
mod dataset;
mod failure;
mod feed_subscription;
mod finding;
mod history;
mod http;
mod leave;
mod mutation;
mod operation;
mod page;
mod query;
mod scalar;
mod service;
mod snapshot;
mod source;
mod subscription;
mod table;
mod token;
mod transfer;
mod violation;
mod ws;

pub(super) use http::{get, post};

use std::sync::Arc;

use async_graphql::{SDLExportOptions, SchemaBuilder};

use self::mutation::Mutation;
use self::query::Query;
use self::subscription::Subscription;
use super::server::Shared;
use crate::vocab::limits;

/// The schema with its resolvers.
pub(super) type Schema = async_graphql::Schema<Query, Mutation, Subscription>;

/// The schema over these rooms.
pub(super) fn schema(shared: Arc<Shared>) -> Schema {
    builder().data(shared).finish()
}

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query::default(), Mutation::default(), Subscription)
        .limit_depth(limits::GRAPHQL_DEPTH_MAX)
        .limit_complexity(limits::GRAPHQL_COMPLEXITY_MAX)
}

/// The schema in GraphQL's own language.
pub fn graphql_sdl() -> String {
    builder().finish().sdl_with_options(SDLExportOptions::new().prefer_single_line_descriptions())
}
