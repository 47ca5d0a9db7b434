//! `Source` and how its capture stands.

use std::sync::Arc;

use async_graphql::{Context, Enum, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::scalar::{shared, snapshot};
use crate::api::problem::Problem;
use crate::capture::{SourceStatus, State, WalLevel, WalStatus};
use crate::registry::{Revision, Source};
use crate::vocab::SourceName;

/// A PostgreSQL database under governance.
pub(super) struct SourceNode(pub(super) Arc<Source>);

/// How the capture of a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "CaptureState")]
enum CaptureState {
    /// Not yet streaming, nothing wrong yet.
    Connecting,
    /// Changes are read as they commit.
    Streaming,
    /// It streams, but its heartbeat does not come back.
    Stalled,
    /// It does not stream; it is tried again.
    Failing,
}

/// How much of the WAL budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "WalLevel", remote = "WalLevel")]
enum WalLevelNode {
    /// Little.
    Low,
    /// Much.
    High,
    /// Nearly all: `/readyz` says so, and the policy acts.
    Critical,
}

/// The WAL that a source keeps for its slot.
#[derive(SimpleObject)]
#[graphql(name = "SourceWal")]
struct WalNode {
    /// How much it keeps, in bytes.
    retained_bytes: f64,
    /// How much it may keep; null when nothing limits it.
    budget_bytes: Option<f64>,
    /// When the budget is used up if it goes on like this, in seconds.
    seconds_left: Option<f64>,
    /// How much of the budget is used.
    level: WalLevelNode,
}

impl From<WalStatus> for WalNode {
    fn from(wal: WalStatus) -> Self {
        Self {
            retained_bytes: wal.retained_bytes as f64,
            budget_bytes: wal.budget_bytes.map(|bytes| bytes as f64),
            seconds_left: wal.seconds_left.map(|seconds| seconds as f64),
            level: wal.level.into(),
        }
    }
}

/// How the capture of a source stands, as this instance sees it.
#[derive(SimpleObject)]
#[graphql(name = "SourceStatus")]
struct StatusNode {
    /// Whether it streams.
    state: CaptureState,
    /// Why it does not, or why it stands still; null while nothing is wrong.
    reason: Option<String>,
    /// What it keeps for its slot; null while that is not known.
    wal: Option<WalNode>,
}

impl From<SourceStatus> for StatusNode {
    fn from(status: SourceStatus) -> Self {
        let (state, reason) = match status.state {
            State::Connecting => (CaptureState::Connecting, None),
            State::Streaming => (CaptureState::Streaming, None),
            State::Stalled { reason } => (CaptureState::Stalled, Some(reason)),
            State::Failing { reason } => (CaptureState::Failing, Some(reason)),
        };
        Self { state, reason, wal: status.wal.map(WalNode::from) }
    }
}

/// A PostgreSQL database under governance.
#[Object(name = "Source")]
impl SourceNode {
    /// Unique name.
    async fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// The publication that lists the governed tables.
    async fn publication(&self) -> String {
        self.0.name.publication()
    }

    /// The logical replication slot.
    async fn slot(&self) -> String {
        self.0.name.slot()
    }

    /// How often continuity has ended and begun anew; the first part of every position.
    async fn epoch(&self) -> i32 {
        self.0.epoch.get().into()
    }

    /// How its capture stands; null when it was registered a moment ago.
    async fn status(&self, ctx: &Context<'_>) -> Option<StatusNode> {
        let all = shared(ctx).context.captures.status();
        all.into_iter().find(|status| status.source == self.0.name).map(StatusNode::from)
    }

    /// When it was registered.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}

/// The part of the root of queries that is about sources.
#[derive(Default)]
pub(super) struct SourceQuery;

#[Object]
impl SourceQuery {
    /// All sources, by name.
    async fn sources(
        &self,
        ctx: &Context<'_>,
        at_least: Option<Revision>,
    ) -> Option<Result<Vec<SourceNode>, Problem>> {
        let list = async {
            let snapshot = snapshot(ctx, at_least).await?;
            Ok(snapshot.sources.values().map(Arc::clone).map(SourceNode).collect())
        };
        Some(list.await)
    }

    /// The source with this name.
    async fn source(
        &self,
        ctx: &Context<'_>,
        name: String,
        at_least: Option<Revision>,
    ) -> Option<Result<SourceNode, Problem>> {
        let find = async {
            let name: SourceName = name.parse()?;
            let snapshot = snapshot(ctx, at_least).await?;
            Ok(snapshot.sources.get(&name).map(Arc::clone).map(SourceNode))
        };
        find.await.transpose()
    }
}
