//! `Service` and what hangs on it.

use std::collections::Bound;
use std::sync::Arc;

use async_graphql::{Context, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::dataset::DatasetNode;
use super::page::{self, DATABASE_COST, Kind, Page};
use super::scalar::Verdict;
use super::violation::{self, ViolationNode};
use crate::api::problem::Problem;
use crate::registry::{Service, Snapshot, ViolationFilter};
use crate::vocab::{DatasetName, RoleName, ServiceName};

/// A service as one snapshot knows it.
#[derive(Clone)]
pub(super) struct ServiceNode {
    /// Where everything below is looked up.
    pub(super) snapshot: Arc<Snapshot>,
    /// The service.
    pub(super) service: Arc<Service>,
}

impl ServiceNode {
    /// The service with this name.
    pub(super) fn find(snapshot: &Arc<Snapshot>, name: &ServiceName) -> Option<Self> {
        let service = Arc::clone(snapshot.services.get(name)?);
        Some(Self { snapshot: Arc::clone(snapshot), service })
    }
}

/// The database roles a service has in one source.
#[derive(SimpleObject)]
#[graphql(name = "ServiceRoles")]
struct RolesNode {
    /// The source's name.
    source: String,
    /// The roles.
    roles: Vec<String>,
}

/// A program that owns or consumes data.
#[Object(name = "Service")]
impl ServiceNode {
    /// Global, opaque.
    pub(super) async fn id(&self) -> ID {
        Kind::Service.id(self.service.id.into())
    }

    /// Unique name.
    async fn name(&self) -> &str {
        self.service.name.as_str()
    }

    /// The team that answers for it.
    async fn team(&self) -> Option<&str> {
        self.service.team.as_deref()
    }

    /// How to reach that team.
    async fn contact(&self) -> Option<&str> {
        self.service.contact.as_deref()
    }

    /// Its database roles, by source.
    async fn roles(&self) -> Vec<RolesNode> {
        let by_source = self.service.roles.iter();
        by_source
            .map(|(source, roles)| RolesNode {
                source: source.to_string(),
                roles: roles.iter().map(RoleName::to_string).collect(),
            })
            .collect()
    }

    /// The datasets it alone may write, by name.
    #[graphql(complexity = "page::cost(first, child_complexity)")]
    async fn owns(
        &self,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<DatasetNode>, Problem>> {
        Some(page::wanted::<DatasetName>(first, after.as_deref()).map(|wanted| {
            let mut owned: Vec<_> = self
                .snapshot
                .owned_by(&self.service.name)
                .filter(|dataset| wanted.after.as_ref().is_none_or(|after| dataset.name > *after))
                .collect();
            owned.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let nodes = owned.into_iter().map(|dataset| {
                let node = DatasetNode {
                    snapshot: Arc::clone(&self.snapshot),
                    dataset: Arc::clone(dataset),
                };
                (dataset.name.to_string(), node)
            });
            page::page(&wanted, nodes)
        }))
    }

    /// Its attempts to write what it does not own, newest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn violations(
        &self,
        ctx: &Context<'_>,
        verdict: Option<Verdict>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<ViolationNode>, Problem>> {
        let filter = ViolationFilter {
            dataset: None,
            service: Some(self.service.name.clone()),
            verdict: verdict.map(Into::into),
        };
        Some(violation::list(ctx, &self.snapshot, &filter, first, after).await)
    }

    /// When it was retired; null while it is not.
    async fn retired_at(&self) -> Option<DateTime<Utc>> {
        self.snapshot.retired.get(&self.service.name).copied()
    }

    /// When it was registered.
    async fn created_at(&self) -> DateTime<Utc> {
        self.service.created_at
    }
}

/// The services of a snapshot, by name.
pub(super) fn list(
    snapshot: &Arc<Snapshot>,
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Page<ServiceNode>, Problem> {
    let wanted = page::wanted::<ServiceName>(first, after)?;
    let start = wanted.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let services = snapshot.services.range((start, Bound::Unbounded)).map(|(name, service)| {
        let node = ServiceNode { snapshot: Arc::clone(snapshot), service: Arc::clone(service) };
        (name.to_string(), node)
    });
    Ok(page::page(&wanted, services))
}
