//! The snapshots under way.

use async_graphql::{ID, SimpleObject};
use chrono::{DateTime, Utc};

use crate::feed;

/// A reader that began with the present rows and has not got all of them.
#[derive(SimpleObject)]
#[graphql(name = "Snapshot")]
pub(super) struct SnapshotNode {
    /// Tells it from others of this server.
    id: ID,
    /// When its reader connected.
    since: DateTime<Utc>,
    /// Its datasets.
    tables: Vec<SnapshotTableNode>,
}

/// How far a dataset of a snapshot is, for this connection of its reader.
#[derive(SimpleObject)]
#[graphql(name = "SnapshotTable")]
struct SnapshotTableNode {
    /// The dataset's name.
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

impl From<feed::Snapshot> for SnapshotNode {
    fn from(snapshot: feed::Snapshot) -> Self {
        let table = |table: feed::SnapshotTable| SnapshotTableNode {
            dataset: table.dataset.to_string(),
            state: table.state.to_owned(),
            rows: table.rows,
            rows_estimated: table.rows_estimated,
            percent: table.percent,
            eta_ms: table.eta_ms,
        };
        let tables = snapshot.tables.into_iter().map(table).collect();
        Self { id: snapshot.id.to_string().into(), since: snapshot.since, tables }
    }
}
