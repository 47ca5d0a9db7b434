//! Scalars and enums: the vocabulary's values under their GraphQL names.

use async_graphql::{Context, Enum};
use std::sync::Arc;

use crate::api::auth::Caller;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::registry::{self, Revision, Snapshot};
use crate::vocab::{self, limits};

async_graphql::scalar!(
    Revision,
    "Revision",
    "Counts changes of the registry. A mutation returns one; a read `atLeast` it sees that mutation."
);

/// What the guard does with a write by a service that is not the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "Mode", remote = "vocab::Mode")]
pub(super) enum Mode {
    /// Record the write and let it through.
    Observe,
    /// Record the write and reject it.
    Enforce,
    /// The same, and others' privileges to write are revoked, until the mode is lowered.
    Lockdown,
}

/// Whether the guard of a dataset stands in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "GuardState", remote = "registry::GuardState")]
pub(super) enum GuardState {
    /// Registered; the guard is not in the source as registered, or not known to be.
    Pending,
    /// The guard stands in the source with the registered owner and mode.
    Installed,
    /// The table was dropped. The dataset stays, with its history.
    Dropped,
}

/// What became of an attempt by a service that is not the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "Verdict", remote = "registry::Verdict")]
pub(super) enum Verdict {
    /// Recorded and let through.
    Observed,
    /// Rejected.
    Rejected,
    /// Let through because PostgreSQL cannot stop a superuser.
    Privileged,
    /// Let through because an admin had permitted it for a time.
    BreakGlass,
}

/// What the resolvers of this request can reach.
pub(super) fn shared<'a>(ctx: &Context<'a>) -> &'a Arc<Shared> {
    ctx.data_unchecked()
}

/// Who asks.
pub(super) fn caller<'a>(ctx: &Context<'a>) -> Result<&'a Caller, Problem> {
    ctx.data_opt().ok_or_else(|| Problem::internal("an operation without a caller"))
}

/// The registry, `at_least` as fresh as a revision.
pub(super) async fn snapshot(
    ctx: &Context<'_>,
    at_least: Option<Revision>,
) -> Result<Arc<Snapshot>, Problem> {
    let registry = &shared(ctx).context.registry;
    let snapshot = registry.snapshot();
    let Some(wanted) = at_least.filter(|wanted| snapshot.revision < *wanted) else {
        return Ok(snapshot);
    };
    let mut changes = registry.changes();
    let arrival = changes.wait_for(|revision| *revision >= wanted);
    match tokio::time::timeout(limits::REVISION_WAIT_MAX, arrival).await {
        Ok(Ok(_)) => Ok(registry.snapshot()),
        Ok(Err(_)) | Err(_) => {
            let detail = format!(
                "revision {} has not arrived here within {} s; the registry is at {}",
                wanted.0,
                limits::REVISION_WAIT_MAX.as_secs(),
                registry.snapshot().revision.0
            );
            Err(Problem::new(Code::Unavailable, detail))
        }
    }
}
