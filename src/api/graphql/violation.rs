//! `Violation`: one attempted write by a service that is not the owner.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use chrono::{DateTime, Utc};

use super::dataset::DatasetNode;
use super::page::{self, Kind, Page};
use super::scalar::{Verdict, shared};
use super::service::ServiceNode;
use crate::api::problem::Problem;
use crate::registry::{self, Snapshot, Violation, ViolationFilter};

/// A violation, with the snapshot that knows its dataset and service.
#[derive(Clone)]
pub(super) struct ViolationNode {
    /// Where dataset and service are looked up.
    pub(super) snapshot: Arc<Snapshot>,
    /// The violation.
    pub(super) violation: Arc<Violation>,
}

/// One attempted write or DDL by a service that is not the owner, let through or not.
#[Object(name = "Violation")]
impl ViolationNode {
    /// Global, opaque.
    pub(super) async fn id(&self) -> ID {
        Kind::Violation.id(self.violation.id)
    }

    /// When, by the source's clock.
    async fn at(&self) -> DateTime<Utc> {
        self.violation.report.at
    }

    /// What became of it.
    async fn verdict(&self) -> Verdict {
        self.violation.report.verdict.into()
    }

    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE` or a DDL command tag.
    async fn operation(&self) -> &str {
        &self.violation.report.operation
    }

    /// The name of the dataset written to.
    async fn dataset_name(&self) -> &str {
        &self.violation.report.dataset
    }

    /// The dataset written to, if it is registered still.
    async fn dataset(&self) -> Option<DatasetNode> {
        DatasetNode::find(&self.snapshot, &self.violation.report.dataset.parse().ok()?)
    }

    /// The name of the service the role belongs to, if any.
    async fn service_name(&self) -> Option<&str> {
        self.violation.report.service.as_deref()
    }

    /// The service the role belongs to, if it is registered still.
    async fn service(&self) -> Option<ServiceNode> {
        let name = self.violation.report.service.as_deref()?.parse().ok()?;
        ServiceNode::find(&self.snapshot, &name)
    }

    /// The role that wrote (`current_user`).
    async fn role(&self) -> &str {
        &self.violation.report.role
    }

    /// The login it wrote through (`session_user`).
    async fn login(&self) -> &str {
        &self.violation.report.login
    }

    /// `application_name` of the session.
    async fn application(&self) -> Option<&str> {
        self.violation.report.application.as_deref()
    }

    /// Address of the client; null over a Unix socket.
    async fn client(&self) -> Option<&str> {
        self.violation.report.client.as_deref()
    }

    /// The session's W3C trace context.
    async fn traceparent(&self) -> Option<&str> {
        self.violation.report.traceparent.as_deref()
    }
}

/// Recorded violations that pass a filter, newest first.
pub(super) async fn list(
    ctx: &Context<'_>,
    snapshot: &Arc<Snapshot>,
    filter: &ViolationFilter,
    first: Option<i32>,
    after: Option<String>,
) -> Result<Page<ViolationNode>, Problem> {
    let wanted = page::wanted::<i64>(first, after.as_deref())?;
    let asked = registry::Page { first: wanted.first + 1, after: wanted.after };
    let found = shared(ctx).context.registry.violations(filter, asked).await?;
    let nodes = found.into_iter().map(|violation| {
        let key = violation.id.to_string();
        (key, ViolationNode { snapshot: Arc::clone(snapshot), violation: Arc::new(violation) })
    });
    Ok(page::page(&wanted, nodes))
}

/// The violation with this number.
pub(super) async fn find(
    ctx: &Context<'_>,
    snapshot: &Arc<Snapshot>,
    id: i64,
) -> Result<Option<ViolationNode>, Problem> {
    // Newest first: the one after `id + 1` is `id` or older.
    let Some(next) = id.checked_add(1) else {
        return Ok(None);
    };
    let page = registry::Page { first: 1, after: Some(next) };
    let found = shared(ctx).context.registry.violations(&ViolationFilter::default(), page).await?;
    Ok(found.into_iter().find(|violation| violation.id == id).map(|violation| ViolationNode {
        snapshot: Arc::clone(snapshot),
        violation: Arc::new(violation),
    }))
}
