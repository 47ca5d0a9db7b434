//! Transfers: a dataset proposed by its owner, accepted by the next.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::dataset::DatasetNode;
use super::mutation::{Fields, Outcome, UserError, outcome};
use super::page::{self, DATABASE_COST, Page};
use super::scalar::{caller, shared, snapshot};
use super::service::ServiceNode;
use crate::api::access;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::registry::{self, Ending, NewTransfer, Revision, Snapshot, Transfer, TransferFilter};
use crate::vocab::{DatasetName, ServiceName, limits};

/// How a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "TransferState", remote = "registry::TransferState")]
enum TransferState {
    /// Waits for the receiver.
    Proposed,
    /// The dataset has passed.
    Completed,
    /// The receiver does not want it.
    Declined,
    /// The owner has thought better of it.
    Cancelled,
    /// Nobody decided in time.
    Expired,
}

/// A transfer as one snapshot knows its parties.
struct TransferNode {
    snapshot: std::sync::Arc<Snapshot>,
    transfer: Transfer,
}

/// A dataset on its way to another owner, or what became of that.
#[Object(name = "Transfer")]
impl TransferNode {
    /// What accepting, declining and cancelling take.
    async fn id(&self) -> ID {
        self.transfer.id.into()
    }

    /// The dataset.
    async fn dataset(&self) -> Option<DatasetNode> {
        DatasetNode::find(&self.snapshot, &self.transfer.dataset)
    }

    /// The owner who gives it.
    async fn from(&self) -> Option<ServiceNode> {
        ServiceNode::find(&self.snapshot, &self.transfer.from)
    }

    /// The service that takes it.
    async fn to(&self) -> Option<ServiceNode> {
        ServiceNode::find(&self.snapshot, &self.transfer.to)
    }

    /// How it stands.
    async fn state(&self) -> TransferState {
        self.transfer.state(Utc::now()).into()
    }

    /// Why.
    async fn reason(&self) -> &str {
        &self.transfer.reason
    }

    /// Who proposed it.
    async fn proposed_by(&self) -> &str {
        &self.transfer.proposed_by
    }

    /// When.
    async fn proposed_at(&self) -> DateTime<Utc> {
        self.transfer.proposed_at
    }

    /// Until then it may be accepted.
    async fn expires_at(&self) -> DateTime<Utc> {
        self.transfer.expires_at
    }

    /// Who accepted, declined or cancelled it.
    async fn decided_by(&self) -> Option<&str> {
        self.transfer.decided_by.as_deref()
    }

    /// When.
    async fn decided_at(&self) -> Option<DateTime<Utc>> {
        self.transfer.decided_at
    }
}

/// A transfer to be proposed.
#[derive(InputObject)]
struct TransferProposeInput {
    /// `SOURCE.SCHEMA.TABLE`.
    dataset: String,
    /// The service that shall own it.
    to: String,
    /// Why.
    reason: String,
    /// Until when it may be accepted: at most 90 days ahead, 7 days when not given.
    expires_at: Option<DateTime<Utc>>,
}

/// A transfer to be decided.
#[derive(InputObject)]
struct TransferInput {
    /// Its id.
    id: ID,
}

/// What a mutation of a transfer did.
#[derive(SimpleObject)]
struct TransferPayload {
    /// As it is now.
    transfer: Option<TransferNode>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

impl TransferPayload {
    fn refused(user_errors: Vec<UserError>) -> Self {
        Self { transfer: None, user_errors, revision: None }
    }
}

/// The part of the root of queries that is about transfers.
#[derive(Default)]
pub(super) struct TransferQuery;

#[Object]
impl TransferQuery {
    /// Transfers of ownership, newest first.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    #[expect(clippy::too_many_arguments, reason = "the filters are the interface")]
    async fn transfers(
        &self,
        ctx: &Context<'_>,
        dataset: Option<String>,
        #[graphql(desc = "From or to this service.")] service: Option<String>,
        state: Option<TransferState>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<TransferNode>, Problem>> {
        let list = async {
            let dataset: Option<DatasetName> = dataset.map(|name| name.parse()).transpose()?;
            let service: Option<ServiceName> = service.map(|name| name.parse()).transpose()?;
            let snapshot = snapshot(ctx, at_least).await?;
            let filter = TransferFilter { dataset, service, state: state.map(Into::into) };
            let wanted = page::wanted::<i64>(first, after.as_deref())?;
            let page = registry::Page { first: wanted.first + 1, after: wanted.after };
            let transfers = shared(ctx).context.registry.transfers(&filter, page).await?;
            let nodes = transfers.into_iter().map(|transfer| {
                let snapshot = std::sync::Arc::clone(&snapshot);
                (transfer.id.to_string(), TransferNode { snapshot, transfer })
            });
            Ok(page::page(&wanted, nodes))
        };
        Some(list.await)
    }
}

/// The part of the root of mutations that is about transfers.
#[derive(Default)]
pub(super) struct TransferMutation;

#[Object]
impl TransferMutation {
    /// Proposes that a dataset pass to another service, which then accepts or declines.
    async fn ownership_transfer_propose(
        &self,
        ctx: &Context<'_>,
        input: TransferProposeInput,
    ) -> Option<Result<TransferPayload, Problem>> {
        Some(propose(ctx, input).await)
    }

    /// Accepts a proposal, by the receiver: from one commit to the next the dataset is theirs.
    async fn ownership_transfer_accept(
        &self,
        ctx: &Context<'_>,
        input: TransferInput,
    ) -> Option<Result<TransferPayload, Problem>> {
        Some(accept(ctx, &input.id).await)
    }

    /// Declines a proposal, by the receiver.
    async fn ownership_transfer_decline(
        &self,
        ctx: &Context<'_>,
        input: TransferInput,
    ) -> Option<Result<TransferPayload, Problem>> {
        Some(end(ctx, &input.id, Ending::Declined).await)
    }

    /// Takes a proposal back, by the owner.
    async fn ownership_transfer_cancel(
        &self,
        ctx: &Context<'_>,
        input: TransferInput,
    ) -> Option<Result<TransferPayload, Problem>> {
        Some(end(ctx, &input.id, Ending::Cancelled).await)
    }
}

/// Done, as it is now.
async fn done(
    ctx: &Context<'_>,
    transfer: Transfer,
    revision: Revision,
) -> Result<TransferPayload, Problem> {
    let snapshot = snapshot(ctx, Some(revision)).await?;
    Ok(TransferPayload {
        transfer: Some(TransferNode { snapshot, transfer }),
        user_errors: Vec::new(),
        revision: Some(revision),
    })
}

async fn propose(
    ctx: &Context<'_>,
    input: TransferProposeInput,
) -> Result<TransferPayload, Problem> {
    let mut fields = Fields::default();
    let dataset: Option<DatasetName> = fields.parse(&input.dataset, &["input", "dataset"])?;
    let to: Option<ServiceName> = fields.parse(&input.to, &["input", "to"])?;
    let now = Utc::now();
    let expires_at = input.expires_at.unwrap_or(now + limits::TRANSFER_VALID_DEFAULT);
    let invalid = |detail: String, field: &str| {
        UserError::of(Problem::new(Code::BadRequest, detail), &["input", field])
    };
    if expires_at <= now || expires_at > now + limits::TRANSFER_VALID_MAX {
        let days = limits::TRANSFER_VALID_MAX.num_days();
        let detail = format!("expected a time to come, at most {days} days ahead");
        fields.errors.push(invalid(detail, "expiresAt")?);
    }
    let reason = input.reason.trim();
    if reason.is_empty() || reason.len() > limits::REASON_BYTES_MAX {
        let max = limits::REASON_BYTES_MAX;
        fields.errors.push(invalid(format!("expected a reason of 1 to {max} bytes"), "reason")?);
    }
    let (Some(name), Some(to)) = (dataset, to) else {
        return Ok(TransferPayload::refused(fields.errors));
    };
    let registry = shared(ctx).context.registry.clone();
    let snapshot = registry.snapshot();
    let dataset = snapshot.datasets.get(&name);
    let from = match dataset {
        Some(dataset) => dataset.owner.clone(),
        None => return Err(super::query::unknown_dataset(&name)),
    };
    let caller = caller(ctx)?;
    access::permit(caller, &from, &format!("giving away dataset \"{name}\""))?;
    if to == from {
        let detail = format!("dataset \"{name}\" is owned by \"{to}\" already");
        fields.errors.push(invalid(detail, "to")?);
    }
    if !fields.errors.is_empty() {
        return Ok(TransferPayload::refused(fields.errors));
    }
    let new = NewTransfer {
        dataset: name,
        from,
        to,
        reason: reason.to_owned(),
        proposed_by: caller.actor(),
        expires_at,
    };
    let work = async move { registry.transfer_propose(new).await };
    match shared(ctx).detached("api.mutation", work).await? {
        Ok((transfer, revision)) => done(ctx, transfer, revision).await,
        Err(error) => Ok(TransferPayload::refused(vec![UserError::of(error.into(), &["input"])?])),
    }
}

/// The transfer with this id, or why there is none.
async fn find(ctx: &Context<'_>, id: &ID) -> Result<Result<Transfer, UserError>, Problem> {
    let found = match id.parse::<i64>() {
        Ok(id) => shared(ctx).context.registry.transfer(id).await,
        Err(_) => {
            let (kind, name) = ("transfer", id.chars().take(64).collect());
            Err(registry::Error::NotFound { kind, name })
        }
    };
    Ok(match found {
        Ok(transfer) => Ok(transfer),
        Err(error) => Err(UserError::of(error.into(), &["input", "id"])?),
    })
}

async fn accept(ctx: &Context<'_>, id: &ID) -> Result<TransferPayload, Problem> {
    let transfer = match find(ctx, id).await? {
        Ok(transfer) => transfer,
        Err(error) => return Ok(TransferPayload::refused(vec![error])),
    };
    let caller = caller(ctx)?;
    let what = format!("accepting dataset \"{}\"", transfer.dataset);
    access::permit(caller, &transfer.to, &what)?;
    let context = &shared(ctx).context;
    let mutation =
        registry::Mutation::OwnershipTransfer { transfer: transfer.id, by: caller.actor() };
    let governor = context.governor.clone();
    let work = async move { governor.apply(&[mutation]).await };
    match outcome(shared(ctx).detached("api.mutation", work).await?)? {
        Outcome::Done(revision) => {
            done(ctx, context.registry.transfer(transfer.id).await?, revision).await
        }
        Outcome::Refused(errors) => Ok(TransferPayload::refused(errors)),
    }
}

async fn end(ctx: &Context<'_>, id: &ID, ending: Ending) -> Result<TransferPayload, Problem> {
    let transfer = match find(ctx, id).await? {
        Ok(transfer) => transfer,
        Err(error) => return Ok(TransferPayload::refused(vec![error])),
    };
    let (party, word) = match ending {
        Ending::Declined => (&transfer.to, "declining"),
        Ending::Cancelled => (&transfer.from, "taking back"),
    };
    let caller = caller(ctx)?;
    access::permit(caller, party, &format!("{word} the transfer of \"{}\"", transfer.dataset))?;
    let registry = shared(ctx).context.registry.clone();
    let (id, by) = (transfer.id, caller.actor());
    let work = async move { registry.transfer_end(id, ending, &by).await };
    match shared(ctx).detached("api.mutation", work).await? {
        Ok((transfer, revision)) => done(ctx, transfer, revision).await,
        Err(error) => {
            Ok(TransferPayload::refused(vec![UserError::of(error.into(), &["input", "id"])?]))
        }
    }
}
