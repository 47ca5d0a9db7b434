//! What can be asked.

use async_graphql::{Context, ID, Interface, MergedObject, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::dataset::{self, DatasetFilter, DatasetNode};
use super::feed_subscription::SubscriptionQuery;
use super::finding::{self, FindingNode};
use super::history::HistoryQuery;
use super::page::{self, DATABASE_COST, Kind, Page};
use super::scalar::{Mode, Verdict, shared, snapshot};
use super::service::{self, ServiceNode};
use super::snapshot::SnapshotNode;
use super::source::SourceQuery;
use super::table::{self, UnownedTableNode};
use super::token::TokenQuery;
use super::transfer::TransferQuery;
use super::violation::{self, ViolationNode};
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::registry::{FindingFilter, Revision, ViolationFilter};
use crate::vocab::{DatasetName, ServiceName};

/// An object with a global id.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID", desc = "Global, opaque."))]
pub(super) enum Node {
    /// A service.
    Service(ServiceNode),
    /// A dataset.
    Dataset(DatasetNode),
    /// A violation.
    Violation(ViolationNode),
    /// A finding.
    Finding(FindingNode),
}

/// Whether a service may write a dataset.
#[derive(SimpleObject)]
struct WriteDecision {
    /// Whether the service is the owner.
    allowed: bool,
    /// The one service that may write the dataset.
    owner: Option<ServiceNode>,
    /// What the guard does with anyone else's write.
    mode: Mode,
    /// The revision the answer is from.
    revision: Revision,
}

/// The root of queries: a part for each noun that has many. `atLeast` makes a read wait for the
/// revision a mutation returned.
#[derive(Default, MergedObject)]
pub(in crate::api) struct Query(
    RegistryQuery,
    SourceQuery,
    SubscriptionQuery,
    TransferQuery,
    TokenQuery,
    HistoryQuery,
);

/// The part of the root of queries that is about services, datasets and violations.
#[derive(Default)]
pub(super) struct RegistryQuery;

#[Object]
impl RegistryQuery {
    /// The object with this global id.
    async fn node(&self, ctx: &Context<'_>, id: ID) -> Option<Result<Node, Problem>> {
        let (kind, number) = Kind::parse(&id)?;
        find_node(ctx, kind, number).await.transpose()
    }

    /// The service with this name.
    async fn service(
        &self,
        ctx: &Context<'_>,
        name: String,
        at_least: Option<Revision>,
    ) -> Option<Result<ServiceNode, Problem>> {
        let find = async {
            let name = name.parse()?;
            Ok(ServiceNode::find(&snapshot(ctx, at_least).await?, &name))
        };
        find.await.transpose()
    }

    /// All services, by name.
    #[graphql(complexity = "page::cost(first, child_complexity)")]
    async fn services(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<ServiceNode>, Problem>> {
        let list =
            async { service::list(&snapshot(ctx, at_least).await?, first, after.as_deref()) };
        Some(list.await)
    }

    /// The snapshots under way, oldest first: a few at most.
    async fn snapshots(&self, ctx: &Context<'_>) -> Vec<SnapshotNode> {
        shared(ctx).context.feed.snapshots().into_iter().map(SnapshotNode::from).collect()
    }

    /// The dataset with this name.
    async fn dataset(
        &self,
        ctx: &Context<'_>,
        name: String,
        at_least: Option<Revision>,
    ) -> Option<Result<DatasetNode, Problem>> {
        let find = async {
            let name = name.parse()?;
            Ok(DatasetNode::find(&snapshot(ctx, at_least).await?, &name))
        };
        find.await.transpose()
    }

    /// The datasets that pass a filter, by name.
    #[graphql(complexity = "page::cost(first, child_complexity)")]
    async fn datasets(
        &self,
        ctx: &Context<'_>,
        filter: Option<DatasetFilter>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<DatasetNode>, Problem>> {
        let list = async {
            dataset::list(&snapshot(ctx, at_least).await?, filter, first, after.as_deref())
        };
        Some(list.await)
    }

    /// The owner of a dataset, now or at a time. Null when nobody owned it then.
    async fn owner(
        &self,
        ctx: &Context<'_>,
        dataset: String,
        as_of: Option<DateTime<Utc>>,
        at_least: Option<Revision>,
    ) -> Option<Result<ServiceNode, Problem>> {
        let find = async {
            let name: DatasetName = dataset.parse()?;
            let snapshot = snapshot(ctx, at_least).await?;
            let dataset = snapshot.dataset(&name).ok_or_else(|| unknown_dataset(&name))?;
            let owner = match as_of {
                None => Some(dataset.owner.clone()),
                Some(at) => shared(ctx).context.registry.owner_at(dataset.id, at).await?,
            };
            Ok(owner.and_then(|owner| ServiceNode::find(&snapshot, &owner)))
        };
        find.await.transpose()
    }

    /// Whether a service may write a dataset.
    async fn can_write(
        &self,
        ctx: &Context<'_>,
        service: String,
        dataset: String,
        at_least: Option<Revision>,
    ) -> Option<Result<WriteDecision, Problem>> {
        let decide = async {
            let (service, dataset) = (service.parse()?, dataset.parse()?);
            let snapshot = snapshot(ctx, at_least).await?;
            let decision = snapshot.can_write(&service, &dataset)?;
            Ok(WriteDecision {
                allowed: decision.allowed,
                owner: ServiceNode::find(&snapshot, &decision.owner),
                mode: decision.mode.into(),
                revision: decision.revision,
            })
        };
        Some(decide.await)
    }

    /// Tables made in a source, or in any, that nobody has registered.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn unowned_tables(
        &self,
        ctx: &Context<'_>,
        source: Option<String>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<UnownedTableNode>, Problem>> {
        let list = async {
            let snapshot = snapshot(ctx, at_least).await?;
            table::unowned(ctx, &snapshot, source.as_deref(), first, after.as_deref()).await
        };
        Some(list.await)
    }

    /// Attempts to write by services that are not the owner, newest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    #[expect(clippy::too_many_arguments, reason = "the filters are the interface")]
    async fn violations(
        &self,
        ctx: &Context<'_>,
        dataset: Option<String>,
        service: Option<String>,
        verdict: Option<Verdict>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<ViolationNode>, Problem>> {
        let list = async {
            let dataset: Option<DatasetName> = dataset.map(|name| name.parse()).transpose()?;
            let service: Option<ServiceName> = service.map(|name| name.parse()).transpose()?;
            let snapshot = snapshot(ctx, at_least).await?;
            if let Some(name) = dataset.as_ref().filter(|name| snapshot.dataset(name).is_none()) {
                return Err(unknown_dataset(name));
            }
            if let Some(name) =
                service.as_ref().filter(|name| !snapshot.services.contains_key(name))
            {
                return Err(unknown_service(name));
            }
            let filter = ViolationFilter { dataset, service, verdict: verdict.map(Into::into) };
            violation::list(ctx, &snapshot, &filter, first, after).await
        };
        Some(list.await)
    }

    /// Everything found in the sources that is not as it should be, the latest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    #[expect(clippy::too_many_arguments, reason = "the filters are the interface")]
    async fn findings(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Found in this source.")] source: Option<String>,
        #[graphql(desc = "About this dataset.")] dataset: Option<String>,
        #[graphql(desc = "Of this kind, such as several_writers.")] kind: Option<String>,
        #[graphql(desc = "Still there (true), or no longer (false).")] open: Option<bool>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<FindingNode>, Problem>> {
        let list = async {
            let filter = FindingFilter {
                source: source.map(|name| name.parse()).transpose()?,
                dataset: dataset.map(|name| name.parse()).transpose()?,
                kinds: kind.map(|kind| vec![kind]),
                open,
            };
            let snapshot = snapshot(ctx, at_least).await?;
            finding::known_source(&snapshot, &filter)?;
            finding::list(ctx, &snapshot, &filter, first, after).await
        };
        Some(list.await)
    }

    /// Differences between what stands in the sources and what the registry says, the latest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    #[expect(clippy::too_many_arguments, reason = "the filters are the interface")]
    async fn drift_findings(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Found in this source.")] source: Option<String>,
        #[graphql(desc = "About this dataset.")] dataset: Option<String>,
        #[graphql(desc = "Of this kind, such as guard_disabled.")] kind: Option<String>,
        #[graphql(desc = "Still there (true), or no longer (false).")] open: Option<bool>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<FindingNode>, Problem>> {
        let list = async {
            let mut filter = finding::drift_filter();
            filter.source = source.map(|name| name.parse()).transpose()?;
            filter.dataset = dataset.map(|name| name.parse()).transpose()?;
            filter.open = open;
            if let (Some(kind), Some(kinds)) = (kind, &mut filter.kinds) {
                kinds.retain(|known| *known == kind);
                if kinds.is_empty() {
                    let known = crate::guard::DRIFT_KINDS.join(", ");
                    let detail = format!("unknown kind \"{kind}\": expected one of {known}");
                    return Err(Problem::new(Code::BadRequest, detail));
                }
            }
            let snapshot = snapshot(ctx, at_least).await?;
            finding::known_source(&snapshot, &filter)?;
            finding::list(ctx, &snapshot, &filter, first, after).await
        };
        Some(list.await)
    }
}

async fn find_node(ctx: &Context<'_>, kind: Kind, number: i64) -> Result<Option<Node>, Problem> {
    let snapshot = snapshot(ctx, None).await?;
    Ok(match kind {
        Kind::Service => {
            let mut services = snapshot.services.values();
            let service = services.find(|service| i64::from(service.id) == number);
            service
                .and_then(|service| ServiceNode::find(&snapshot, &service.name))
                .map(Node::Service)
        }
        Kind::Dataset => {
            let id = i32::try_from(number).ok().map(crate::vocab::DatasetId);
            let dataset = id.and_then(|id| snapshot.datasets_by_id.get(&id));
            dataset
                .and_then(|dataset| DatasetNode::find(&snapshot, &dataset.name))
                .map(Node::Dataset)
        }
        Kind::Finding => finding::find(ctx, &snapshot, number).await?.map(Node::Finding),
        Kind::Violation => violation::find(ctx, &snapshot, number).await?.map(Node::Violation),
    })
}

/// The problem of a dataset name that nobody registered.
pub(super) fn unknown_dataset(name: &DatasetName) -> Problem {
    Problem::new(Code::UnknownDataset, format!("no dataset is named \"{name}\""))
}

fn unknown_service(name: &ServiceName) -> Problem {
    Problem::new(Code::UnknownService, format!("no service is named \"{name}\""))
}
