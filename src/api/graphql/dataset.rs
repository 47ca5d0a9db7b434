//! `Dataset` and what hangs on it.

#![expect(clippy::unused_async, reason = "async-graphql calls every resolver as a future")]

use std::collections::Bound;
use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::break_glass::BreakGlassNode;
use super::finding::{self, FindingNode, UnverifiedRangeNode};
use super::page::{self, DATABASE_COST, Kind, Page};
use super::scalar::{GuardState, Mode, Verdict, shared};
use super::service::ServiceNode;
use super::source::SourceNode;
use super::table::{self, ColumnNode, CouplingNode, SchemaVersionNode, State};
use super::violation::{self, ViolationNode};
use crate::api::problem::Problem;
use crate::registry::{self, Dataset, FindingFilter, Snapshot, ViolationFilter};
use crate::vocab::{self, DatasetName, ServiceName, SourceName, limits};

/// A dataset as one snapshot knows it.
#[derive(Clone)]
pub(super) struct DatasetNode {
    /// Where everything below is looked up.
    pub(super) snapshot: Arc<Snapshot>,
    /// The dataset.
    pub(super) dataset: Arc<Dataset>,
}

impl DatasetNode {
    /// The dataset with this name.
    pub(super) fn find(snapshot: &Arc<Snapshot>, name: &DatasetName) -> Option<Self> {
        let dataset = Arc::clone(snapshot.dataset(name)?);
        Some(Self { snapshot: Arc::clone(snapshot), dataset })
    }
}

/// A service that held a dataset for a span of time.
#[derive(SimpleObject)]
#[graphql(name = "OwnershipPeriod")]
struct OwnershipPeriodNode {
    /// The owner's name.
    service_name: String,
    /// The owner, if it is still registered.
    service: Option<ServiceNode>,
    /// From, inclusive.
    from: DateTime<Utc>,
    /// To, exclusive; null for the present owner.
    to: Option<DateTime<Utc>>,
    /// Why it began.
    reason: Option<String>,
    /// Who had it begin.
    actor: Option<String>,
}

/// The guard of a dataset.
struct GuardNode {
    snapshot: Arc<Snapshot>,
    dataset: Arc<Dataset>,
}

/// The guard of a dataset.
#[Object(name = "Guard")]
impl GuardNode {
    /// Whether it stands in the source.
    async fn state(&self) -> GuardState {
        if self.dataset.gaps.iter().any(|gap| gap.to.is_none()) {
            return GuardState::Pending;
        }
        self.dataset.guard.into()
    }

    /// How it differs now from what is registered; empty when it does not.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn drift(&self, ctx: &Context<'_>) -> Option<Result<Vec<FindingNode>, Problem>> {
        let filter = FindingFilter {
            dataset: Some(self.dataset.name.clone()),
            open: Some(true),
            ..finding::drift_filter()
        };
        let first = i32::try_from(limits::PAGE_ITEMS_MAX).ok();
        let found = finding::list(ctx, &self.snapshot, &filter, first, None).await;
        Some(found.map(|page| page.edges.into_iter().map(|edge| edge.node).collect()))
    }

    /// Where in the feed nobody vouches for the writers of its changes, as far back as some days.
    async fn unverified(&self) -> Vec<UnverifiedRangeNode> {
        finding::unverified(&self.dataset)
    }
}

/// A governed table: exactly one owner.
#[Object(name = "Dataset")]
impl DatasetNode {
    /// Global, opaque.
    pub(super) async fn id(&self) -> ID {
        Kind::Dataset.id(self.dataset.id.0.into())
    }

    /// `SOURCE.SCHEMA.TABLE`.
    async fn name(&self) -> &str {
        self.dataset.name.as_str()
    }

    /// The one service that may write it.
    async fn owner(&self) -> Result<ServiceNode, Problem> {
        ServiceNode::find(&self.snapshot, &self.dataset.owner).ok_or_else(|| {
            let (dataset, owner) = (&self.dataset.name, &self.dataset.owner);
            Problem::internal(format!("owner {owner} of {dataset} is not in the snapshot"))
        })
    }

    /// What the guard does with anyone else's write.
    async fn mode(&self) -> Mode {
        self.dataset.mode.into()
    }

    /// One line on what a row is.
    async fn description(&self) -> Option<&str> {
        self.dataset.description.as_deref()
    }

    /// Free labels, sorted.
    async fn tags(&self) -> &[String] {
        &self.dataset.tags
    }

    /// Its columns in table order, as last seen in the stream, with what was declared of them.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn columns(&self, ctx: &Context<'_>) -> Result<Vec<ColumnNode>, Problem> {
        table::columns_now(ctx, &self.dataset).await
    }

    /// What its table was when, newest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn schema_history(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<SchemaVersionNode>, Problem>> {
        Some(table::history(ctx, &self.dataset, first, after.as_deref()).await)
    }

    /// Other names it can be asked for by: those its table has or had since it was registered.
    async fn aliases(&self) -> Vec<&str> {
        let aliases = self.snapshot.aliases_of(self.dataset.id);
        aliases.into_iter().map(DatasetName::as_str).collect()
    }

    /// Whether its table is there.
    async fn state(&self) -> State {
        match self.dataset.guard {
            registry::GuardState::Dropped => State::Dropped,
            registry::GuardState::Pending | registry::GuardState::Installed => State::Live,
        }
    }

    /// Foreign keys of other services' tables to it, made since it was registered.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn couplings(&self, ctx: &Context<'_>) -> Option<Result<Vec<CouplingNode>, Problem>> {
        let couplings = shared(ctx).context.registry.couplings(self.dataset.id).await;
        let nodes = |found: Vec<registry::Coupling>| found.into_iter().map(Into::into).collect();
        Some(couplings.map(nodes).map_err(Problem::from))
    }

    /// Who owned it when, the present owner first.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn ownership_history(
        &self,
        ctx: &Context<'_>,
    ) -> Option<Result<Vec<OwnershipPeriodNode>, Problem>> {
        let registry = &shared(ctx).context.registry;
        let periods = registry.ownership_history(self.dataset.id).await;
        Some(periods.map_err(Problem::from).map(|mut periods| {
            periods.sort_by_key(|period| std::cmp::Reverse(period.from));
            let node = |period: crate::registry::OwnershipPeriod| OwnershipPeriodNode {
                service_name: period.service.to_string(),
                service: ServiceNode::find(&self.snapshot, &period.service),
                from: period.from,
                to: period.to,
                reason: period.tenure.reason,
                actor: period.tenure.actor,
            };
            periods.into_iter().map(node).collect()
        }))
    }

    /// Attempts to write it by services that are not the owner, newest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn violations(
        &self,
        ctx: &Context<'_>,
        verdict: Option<Verdict>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<ViolationNode>, Problem>> {
        let filter = ViolationFilter {
            dataset: Some(self.dataset.name.clone()),
            service: None,
            verdict: verdict.map(Into::into),
        };
        Some(violation::list(ctx, &self.snapshot, &filter, first, after).await)
    }

    /// Permissions for others to write it for a time, the newest hundred.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn break_glass(&self, ctx: &Context<'_>) -> Option<Result<Vec<BreakGlassNode>, Problem>> {
        let registry = &shared(ctx).context.registry;
        let grants = registry.break_glass_of(self.dataset.id, limits::BREAK_GLASS_SHOWN_MAX).await;
        Some(grants.map_err(Problem::from).map(|grants| {
            let node = |grant| BreakGlassNode { snapshot: Arc::clone(&self.snapshot), grant };
            grants.into_iter().map(node).collect()
        }))
    }

    /// Its guard.
    async fn guard(&self) -> GuardNode {
        let (snapshot, dataset) = (Arc::clone(&self.snapshot), Arc::clone(&self.dataset));
        GuardNode { snapshot, dataset }
    }

    /// The database it lives in.
    async fn source(&self) -> Option<SourceNode> {
        self.snapshot.sources.get(self.dataset.name.source()).map(Arc::clone).map(SourceNode)
    }

    /// When it was registered.
    async fn created_at(&self) -> DateTime<Utc> {
        self.dataset.created_at
    }
}

/// Which datasets to list; all that is given must hold.
#[derive(Default, InputObject)]
pub(super) struct DatasetFilter {
    /// Owned by this service.
    owner: Option<String>,
    /// Of this source.
    source: Option<String>,
    /// With this label.
    tag: Option<String>,
    /// In this mode.
    mode: Option<Mode>,
}

/// The datasets of a snapshot that pass a filter, by name.
pub(super) fn list(
    snapshot: &Arc<Snapshot>,
    filter: Option<DatasetFilter>,
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Page<DatasetNode>, Problem> {
    let wanted = page::wanted::<DatasetName>(first, after)?;
    let filter = filter.unwrap_or_default();
    let owner: Option<ServiceName> = filter.owner.map(|name| name.parse()).transpose()?;
    let source: Option<SourceName> = filter.source.map(|name| name.parse()).transpose()?;
    let mode: Option<vocab::Mode> = filter.mode.map(Into::into);
    let passes = |dataset: &Dataset| {
        owner.as_ref().is_none_or(|owner| dataset.owner == *owner)
            && source.as_ref().is_none_or(|source| dataset.name.source() == source)
            && filter.tag.as_ref().is_none_or(|tag| dataset.tags.contains(tag))
            && mode.is_none_or(|mode| dataset.mode == mode)
    };
    let start = wanted.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let datasets = snapshot
        .datasets
        .range((start, Bound::Unbounded))
        .filter(|(_, dataset)| passes(dataset))
        .map(|(name, dataset)| {
            let node = DatasetNode { snapshot: Arc::clone(snapshot), dataset: Arc::clone(dataset) };
            (name.to_string(), node)
        });
    Ok(page::page(&wanted, datasets))
}
