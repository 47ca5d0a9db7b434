//! The snapshots under way.

use actix_web::{HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::server::Shared;
use crate::feed;

/// A reader that began with the present rows and has not got all of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotAnswer {
    /// Tells it from others of this server.
    id: u64,
    /// When its reader connected.
    since: DateTime<Utc>,
    /// Its datasets.
    tables: Vec<TableAnswer>,
}

/// How far a dataset of a snapshot is, for this connection of its reader.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableAnswer {
    /// Its name.
    #[schema(example = "shop.public.orders")]
    dataset: String,
    /// `waiting`, `running` or `done`.
    state: String,
    /// Rows sent.
    rows: u64,
    /// Rows there are, as PostgreSQL estimates.
    rows_estimated: Option<u64>,
    /// By that estimate; 100 only when it is done.
    percent: Option<f64>,
    /// What is left at the pace so far, in milliseconds.
    eta_ms: Option<u64>,
}

impl From<feed::Snapshot> for SnapshotAnswer {
    fn from(snapshot: feed::Snapshot) -> Self {
        let table = |table: feed::SnapshotTable| TableAnswer {
            dataset: table.dataset.to_string(),
            state: table.state.to_owned(),
            rows: table.rows,
            rows_estimated: table.rows_estimated,
            percent: table.percent,
            eta_ms: table.eta_ms,
        };
        let tables = snapshot.tables.into_iter().map(table).collect();
        Self { id: snapshot.id, since: snapshot.since, tables }
    }
}

/// Which snapshots are under way, and how far is each?
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "changes",
    responses((status = 200, body = Vec<SnapshotAnswer>)),
)]
pub(in crate::api) async fn snapshots(shared: web::Data<Shared>) -> HttpResponse {
    let snapshots = shared.context.feed.snapshots();
    HttpResponse::Ok().json(snapshots.into_iter().map(SnapshotAnswer::from).collect::<Vec<_>>())
}
