//! Breaking glass: a permission for one service to write another's dataset for a time.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::dataset::DatasetNode;
use super::mutation::{Fields, Outcome, UserError, change};
use super::scalar::{caller, shared};
use super::service::ServiceNode;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::registry::{self, BreakGlass, Revision, Snapshot};
use crate::vocab::{DatasetName, ServiceName, limits};

/// A permission to break glass, as one snapshot knows its service.
pub(super) struct BreakGlassNode {
    /// Where the service is looked up.
    pub(super) snapshot: std::sync::Arc<Snapshot>,
    /// The permission.
    pub(super) grant: BreakGlass,
}

/// A permission for one service to write another's dataset for a time.
#[Object(name = "BreakGlass")]
impl BreakGlassNode {
    /// What `breakGlassRevoke` takes.
    async fn id(&self) -> ID {
        self.grant.id.into()
    }

    /// The service that may write.
    async fn service(&self) -> Option<ServiceNode> {
        ServiceNode::find(&self.snapshot, &self.grant.service)
    }

    /// Why.
    async fn reason(&self) -> &str {
        &self.grant.reason
    }

    /// Whether it holds now.
    async fn active(&self) -> bool {
        self.grant.is_active(Utc::now())
    }

    /// Who granted it.
    async fn granted_by(&self) -> &str {
        &self.grant.granted_by
    }

    /// When.
    async fn granted_at(&self) -> DateTime<Utc> {
        self.grant.granted_at
    }

    /// From when on it is over, by the source's clock.
    async fn expires_at(&self) -> DateTime<Utc> {
        self.grant.expires_at
    }

    /// When it was taken back before its end.
    async fn revoked_at(&self) -> Option<DateTime<Utc>> {
        self.grant.revoked_at
    }

    /// By whom.
    async fn revoked_by(&self) -> Option<&str> {
        self.grant.revoked_by.as_deref()
    }
}

/// A permission to be granted.
#[derive(InputObject)]
struct BreakGlassGrantInput {
    /// `SOURCE.SCHEMA.TABLE`.
    dataset: String,
    /// The service that may write it.
    service: String,
    /// Why.
    reason: String,
    /// From when on it is over: at most 24 hours ahead.
    expires_at: DateTime<Utc>,
}

/// A permission to be taken back.
#[derive(InputObject)]
struct BreakGlassRevokeInput {
    /// Its id.
    id: ID,
}

/// What became of a permission.
#[derive(SimpleObject)]
struct BreakGlassPayload {
    /// The dataset with its permissions.
    dataset: Option<DatasetNode>,
    /// The id of the permission.
    id: Option<ID>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

impl BreakGlassPayload {
    fn refused(user_errors: Vec<UserError>) -> Self {
        Self { dataset: None, id: None, user_errors, revision: None }
    }
}

/// The part of the root of mutations that is about breaking glass.
#[derive(Default)]
pub(super) struct BreakGlassMutation;

#[Object]
impl BreakGlassMutation {
    /// Lets one service write another's dataset for a time. Every use is recorded; it ends by itself,
    /// also while this server is down.
    async fn break_glass_grant(
        &self,
        ctx: &Context<'_>,
        input: BreakGlassGrantInput,
    ) -> Option<Result<BreakGlassPayload, Problem>> {
        Some(grant(ctx, input).await)
    }

    /// Takes a permission back before its end.
    async fn break_glass_revoke(
        &self,
        ctx: &Context<'_>,
        input: BreakGlassRevokeInput,
    ) -> Option<Result<BreakGlassPayload, Problem>> {
        Some(revoke(ctx, &input.id).await)
    }
}

async fn grant(
    ctx: &Context<'_>,
    input: BreakGlassGrantInput,
) -> Result<BreakGlassPayload, Problem> {
    let mut fields = Fields::default();
    let dataset: Option<DatasetName> = fields.parse(&input.dataset, &["input", "dataset"])?;
    let service: Option<ServiceName> = fields.parse(&input.service, &["input", "service"])?;
    let mut invalid = |detail: String, field: &str| {
        let error = UserError::of(Problem::new(Code::BadRequest, detail), &["input", field]);
        error.map(|error| fields.errors.push(error))
    };
    let now = Utc::now();
    let ahead = input.expires_at - now;
    if ahead <= TimeDelta::zero() || ahead > limits::BREAK_GLASS_VALID_MAX {
        let hours = limits::BREAK_GLASS_VALID_MAX.num_hours();
        let detail = format!("expected a time to come, at most {hours} hours ahead");
        invalid(detail, "expiresAt")?;
    }
    let reason = input.reason.trim();
    if reason.is_empty() || reason.len() > limits::REASON_BYTES_MAX {
        let max = limits::REASON_BYTES_MAX;
        invalid(format!("expected a reason of 1 to {max} bytes"), "reason")?;
    }
    let snapshot = shared(ctx).context.registry.snapshot();
    let present = dataset.as_ref().and_then(|dataset| snapshot.datasets.get(dataset));
    if let (Some(dataset), Some(service)) = (present, &service) {
        let name = &dataset.name;
        if dataset.owner == *service {
            invalid(format!("\"{service}\" owns \"{name}\" and may write it anyway"), "service")?;
        }
    }
    let (Some(dataset), Some(service)) = (dataset, service) else {
        return Ok(BreakGlassPayload::refused(fields.errors));
    };
    if !fields.errors.is_empty() {
        return Ok(BreakGlassPayload::refused(fields.errors));
    }
    let id = Uuid::now_v7();
    let mutation = registry::Mutation::BreakGlassGrant {
        id,
        dataset: dataset.clone(),
        service,
        reason: reason.to_owned(),
        expires_at: input.expires_at,
        by: caller(ctx)?.actor(),
    };
    done(ctx, &dataset, id, change(ctx, mutation).await?)
}

async fn revoke(ctx: &Context<'_>, id: &ID) -> Result<BreakGlassPayload, Problem> {
    let context = &shared(ctx).context;
    let snapshot = context.registry.snapshot();
    let held = id.parse().ok().and_then(|id: Uuid| snapshot.break_glass.get(&id));
    let Some(held) = held else {
        let detail = format!("no permission \"{}\" holds", id.chars().take(64).collect::<String>());
        let error = UserError::of(Problem::new(Code::NotFound, detail), &["input", "id"])?;
        return Ok(BreakGlassPayload::refused(vec![error]));
    };
    let mutation = registry::Mutation::BreakGlassRevoke { id: held.id, by: caller(ctx)?.actor() };
    done(ctx, &held.dataset, held.id, change(ctx, mutation).await?)
}

fn done(
    ctx: &Context<'_>,
    dataset: &DatasetName,
    id: Uuid,
    outcome: Outcome,
) -> Result<BreakGlassPayload, Problem> {
    Ok(match outcome {
        Outcome::Done(revision) => BreakGlassPayload {
            dataset: DatasetNode::find(&shared(ctx).context.registry.snapshot(), dataset),
            id: Some(id.into()),
            user_errors: Vec::new(),
            revision: Some(revision),
        },
        Outcome::Refused(errors) => BreakGlassPayload::refused(errors),
    })
}
