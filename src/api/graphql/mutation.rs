//! What can be changed: one action each, by the governor, which checks it against the sources.
//!
//! What a caller can mend stands in `userErrors` of the payload; what only time or an operator can
//! mend is a top-level error.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_graphql::{Context, Enum, InputObject, MergedObject, Object, SimpleObject};
use chrono::Utc;

use super::break_glass::BreakGlassMutation;
use super::dataset::DatasetNode;
use super::feed_subscription::SubscriptionMutation;
use super::leave::LeaveMutation;
use super::scalar::{Mode, caller, shared};
use super::service::ServiceNode;
use super::source::SourceNode;
use super::token::TokenMutation;
use super::transfer::TransferMutation;
use crate::api::access;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::guard;
use crate::registry::{self, ColumnFacts, Decided, Revision, Snapshot};
use crate::vocab::{DatasetName, ServiceName, SourceName};

/// Why a change was not made, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum UserErrorCode {
    /// A value that cannot be.
    Invalid,
    /// Something named does not exist.
    NotFound,
    /// Something else stands in the way.
    Conflict,
    /// The source does not allow it as it is.
    Refused,
}

/// Why a change was not made: something the caller can mend.
#[derive(Debug, SimpleObject)]
pub(super) struct UserError {
    /// For programs.
    pub(super) code: UserErrorCode,
    /// What is wrong and what would be right.
    pub(super) message: String,
    /// Where in the input; empty when it is not about one field.
    pub(super) field: Vec<String>,
}

impl UserError {
    /// The problem as an error of the caller; what the caller cannot mend stays a problem.
    pub(super) fn of(problem: Problem, field: &[&str]) -> Result<Self, Problem> {
        let code = match problem.code() {
            Code::BadRequest | Code::MalformedName | Code::MalformedPosition => {
                UserErrorCode::Invalid
            }
            Code::NotFound
            | Code::UnknownDataset
            | Code::UnknownService
            | Code::UnknownSource
            | Code::UnknownSubscription => UserErrorCode::NotFound,
            Code::Conflict => UserErrorCode::Conflict,
            Code::Refused => UserErrorCode::Refused,
            Code::Unauthenticated
            | Code::InvalidToken
            | Code::Forbidden
            | Code::PositionTrimmed
            | Code::NotOwner
            | Code::RowNotFound
            | Code::ConstraintViolated
            | Code::IdempotencyKeyReused
            | Code::PayloadTooLarge
            | Code::UnsupportedMediaType
            | Code::NotAcceptable
            | Code::MethodNotAllowed
            | Code::Busy
            | Code::TooManyFeeds
            | Code::LogCorrupt
            | Code::TooManySnapshots
            | Code::Unavailable
            | Code::Internal => return Err(problem),
        };
        let field = field.iter().map(|&part| part.to_owned()).collect();
        Ok(Self { code, message: problem.detail().to_owned(), field })
    }

    /// A conflict about one field.
    pub(super) fn conflict(message: String, field: &str) -> Self {
        Self { code: UserErrorCode::Conflict, message, field: vec![field.to_owned()] }
    }
}

/// Parses the fields of an input and collects what is wrong with any of them.
#[derive(Default)]
pub(super) struct Fields {
    /// What is wrong.
    pub(super) errors: Vec<UserError>,
}

impl Fields {
    /// The value of a field, or `None` and an error more.
    pub(super) fn parse<T>(&mut self, text: &str, field: &[&str]) -> Result<Option<T>, Problem>
    where
        T: std::str::FromStr,
        Problem: From<T::Err>,
    {
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.errors.push(UserError::of(Problem::from(error), field)?);
                Ok(None)
            }
        }
    }
}

/// What became of a change.
pub(super) enum Outcome {
    /// It was made.
    Done(Revision),
    /// It was not, for a reason that the caller can mend.
    Refused(Vec<UserError>),
}

/// Has the governor make a change.
pub(super) async fn change(
    ctx: &Context<'_>,
    mutation: registry::Mutation,
) -> Result<Outcome, Problem> {
    let context = &shared(ctx).context;
    let snapshot = context.registry.snapshot();
    let (caller, mutations) = (caller(ctx)?, [mutation]);
    access::permit_mutations(caller, &snapshot, &mutations)?;
    let decided = Decided::on(&snapshot, &mutations, caller.actor());
    let governor = context.governor.clone();
    let work = async move { governor.apply_decided(&mutations, &decided).await };
    outcome(shared(ctx).detached("api.mutation", work).await?)
}

/// What the governor's answer means for the caller.
pub(super) fn outcome(result: Result<Revision, guard::Error>) -> Result<Outcome, Problem> {
    match result {
        Ok(revision) => Ok(Outcome::Done(revision)),
        Err(guard::Error::Refused(refusals)) => {
            let error = |refusal: guard::Refusal| UserError {
                code: UserErrorCode::Refused,
                message: refusal.message,
                field: Vec::new(),
            };
            Ok(Outcome::Refused(refusals.into_iter().map(error).collect()))
        }
        Err(error) => Ok(Outcome::Refused(vec![UserError::of(error.into(), &[])?])),
    }
}

/// The database roles of a service in one source.
#[derive(InputObject)]
struct ServiceRolesInput {
    /// The source's name.
    source: String,
    /// The roles.
    roles: Vec<String>,
}

/// A service as declared.
#[derive(InputObject)]
struct ServiceRegisterInput {
    /// Lower-case letters, digits and hyphens.
    name: String,
    /// The team that answers for it.
    team: Option<String>,
    /// How to reach that team.
    contact: Option<String>,
    /// Its roles in each source; those not listed are taken away.
    #[graphql(default)]
    roles: Vec<ServiceRolesInput>,
}

/// A service to be retired.
#[derive(InputObject)]
struct ServiceRetireInput {
    /// Its name.
    name: String,
}

/// A source as declared.
#[derive(InputObject)]
struct SourceRegisterInput {
    /// Lower-case letters, digits and underscores.
    name: String,
    /// Connection string; `${VARIABLE}` is resolved where the server runs and stored unresolved.
    url: String,
}

/// Facts about one column.
#[derive(InputObject)]
struct ColumnInput {
    /// Its name.
    name: String,
    /// Sensitivity, such as `pii`.
    classification: Option<String>,
    /// What it means.
    description: Option<String>,
}

/// A dataset as declared.
#[derive(InputObject)]
struct DatasetRegisterInput {
    /// `SOURCE.SCHEMA.TABLE`.
    name: String,
    /// The one service that may write it.
    owner: String,
    /// What the guard does with anyone else's write.
    mode: Mode,
    /// One line on what a row is.
    description: Option<String>,
    /// Free labels.
    #[graphql(default)]
    tags: Vec<String>,
    /// Facts about columns.
    #[graphql(default)]
    columns: Vec<ColumnInput>,
    /// Datasets it derives from.
    #[graphql(default)]
    derived_from: Vec<String>,
}

/// A dataset and its new mode.
#[derive(InputObject)]
struct DatasetSetModeInput {
    /// `SOURCE.SCHEMA.TABLE`.
    dataset: String,
    /// What the guard shall do.
    mode: Mode,
}

/// What a mutation of a service did.
#[derive(SimpleObject)]
struct ServiceRegisterPayload {
    /// As it is now.
    service: Option<ServiceNode>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// What `sourceRegister` did.
#[derive(SimpleObject)]
struct SourceRegisterPayload {
    /// As it is now.
    source: Option<SourceNode>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// What a mutation of a dataset did.
#[derive(SimpleObject)]
struct DatasetPayload {
    /// As it is now.
    dataset: Option<DatasetNode>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

impl DatasetPayload {
    fn new(snapshot: &Arc<Snapshot>, name: &DatasetName, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done(revision) => Self {
                dataset: DatasetNode::find(snapshot, name),
                user_errors: Vec::new(),
                revision: Some(revision),
            },
            Outcome::Refused(user_errors) => Self::refused(user_errors),
        }
    }

    fn refused(user_errors: Vec<UserError>) -> Self {
        Self { dataset: None, user_errors, revision: None }
    }
}

/// The root of mutations: a part for each noun that has many.
#[derive(Default, MergedObject)]
pub(in crate::api) struct Mutation(
    RegistryMutation,
    SubscriptionMutation,
    LeaveMutation,
    TransferMutation,
    BreakGlassMutation,
    TokenMutation,
);

/// The part of the root of mutations that declares services, sources and datasets.
#[derive(Default)]
pub(super) struct RegistryMutation;

#[Object]
impl RegistryMutation {
    /// Registers a service, or replaces what is declared of it.
    async fn service_register(
        &self,
        ctx: &Context<'_>,
        input: ServiceRegisterInput,
    ) -> Option<Result<ServiceRegisterPayload, Problem>> {
        Some(service_register(ctx, input).await)
    }

    /// Retires a service: its roles and tokens are taken away, its name and history stay. Refused
    /// with the list of what it would orphan.
    async fn service_retire(
        &self,
        ctx: &Context<'_>,
        input: ServiceRetireInput,
    ) -> Option<Result<ServiceRegisterPayload, Problem>> {
        Some(service_retire(ctx, &input.name).await)
    }

    /// Registers a source, or replaces its connection string.
    async fn source_register(
        &self,
        ctx: &Context<'_>,
        input: SourceRegisterInput,
    ) -> Option<Result<SourceRegisterPayload, Problem>> {
        Some(source_register(ctx, input).await)
    }

    /// Registers a dataset, or replaces what is declared of it; the owner stays.
    async fn dataset_register(
        &self,
        ctx: &Context<'_>,
        input: DatasetRegisterInput,
    ) -> Option<Result<DatasetPayload, Problem>> {
        Some(dataset_register(ctx, input).await)
    }

    /// Changes what the guard does with a write by anyone but the owner.
    async fn dataset_set_mode(
        &self,
        ctx: &Context<'_>,
        input: DatasetSetModeInput,
    ) -> Option<Result<DatasetPayload, Problem>> {
        Some(dataset_set_mode(ctx, input).await)
    }
}

async fn service_register(
    ctx: &Context<'_>,
    input: ServiceRegisterInput,
) -> Result<ServiceRegisterPayload, Problem> {
    let refused =
        |user_errors| ServiceRegisterPayload { service: None, user_errors, revision: None };
    let mut fields = Fields::default();
    let name: Option<ServiceName> = fields.parse(&input.name, &["input", "name"])?;
    let mut roles: BTreeMap<SourceName, Vec<_>> = BTreeMap::new();
    for of_source in &input.roles {
        let source = fields.parse(&of_source.source, &["input", "roles", "source"])?;
        for role in &of_source.roles {
            let role = fields.parse(role, &["input", "roles", "roles"])?;
            if let (Some(source), Some(role)) = (&source, role) {
                roles.entry(SourceName::clone(source)).or_default().push(role);
            }
        }
    }
    let Some(name) = name.filter(|_| fields.errors.is_empty()) else {
        return Ok(refused(fields.errors));
    };
    let (team, contact) = (input.team, input.contact);
    let put = registry::Mutation::ServicePut { name: name.clone(), team, contact, roles };
    Ok(match change(ctx, put).await? {
        Outcome::Done(revision) => ServiceRegisterPayload {
            service: ServiceNode::find(&shared(ctx).context.registry.snapshot(), &name),
            user_errors: Vec::new(),
            revision: Some(revision),
        },
        Outcome::Refused(user_errors) => refused(user_errors),
    })
}

async fn service_retire(ctx: &Context<'_>, name: &str) -> Result<ServiceRegisterPayload, Problem> {
    let refused =
        |user_errors| ServiceRegisterPayload { service: None, user_errors, revision: None };
    let mut fields = Fields::default();
    let Some(name) = fields.parse::<ServiceName>(name, &["input", "name"])? else {
        return Ok(refused(fields.errors));
    };
    let registry = &shared(ctx).context.registry;
    let orphans = registry.snapshot().orphans_of(&name, Utc::now());
    if !orphans.is_empty() {
        let orphan = |orphan: &registry::Orphan| {
            UserError::conflict(format!("retiring \"{name}\" would orphan {orphan}"), "name")
        };
        return Ok(refused(orphans.iter().map(orphan).collect()));
    }
    let retire = registry::Mutation::ServiceRetire { name: name.clone(), by: caller(ctx)?.actor() };
    Ok(match change(ctx, retire).await? {
        Outcome::Done(revision) => ServiceRegisterPayload {
            service: ServiceNode::find(&registry.snapshot(), &name),
            user_errors: Vec::new(),
            revision: Some(revision),
        },
        Outcome::Refused(user_errors) => refused(user_errors),
    })
}

async fn source_register(
    ctx: &Context<'_>,
    input: SourceRegisterInput,
) -> Result<SourceRegisterPayload, Problem> {
    let refused = |user_errors| SourceRegisterPayload { source: None, user_errors, revision: None };
    let mut fields = Fields::default();
    let Some(name) = fields.parse::<SourceName>(&input.name, &["input", "name"])? else {
        return Ok(refused(fields.errors));
    };
    let put = registry::Mutation::SourcePut { name: name.clone(), url: input.url };
    Ok(match change(ctx, put).await? {
        Outcome::Done(revision) => {
            let snapshot = shared(ctx).context.registry.snapshot();
            SourceRegisterPayload {
                source: snapshot.sources.get(&name).map(Arc::clone).map(SourceNode),
                user_errors: Vec::new(),
                revision: Some(revision),
            }
        }
        Outcome::Refused(user_errors) => refused(user_errors),
    })
}

async fn dataset_register(
    ctx: &Context<'_>,
    input: DatasetRegisterInput,
) -> Result<DatasetPayload, Problem> {
    let mut fields = Fields::default();
    let name: Option<DatasetName> = fields.parse(&input.name, &["input", "name"])?;
    let owner: Option<ServiceName> = fields.parse(&input.owner, &["input", "owner"])?;
    let (Some(name), Some(owner)) = (name, owner) else {
        return Ok(DatasetPayload::refused(fields.errors));
    };
    let registry = &shared(ctx).context.registry;
    if let Some(present) = registry.snapshot().datasets.get(&name)
        && present.owner != owner
    {
        let message = format!(
            "dataset \"{name}\" is owned by \"{}\": registering it again does not change its owner",
            present.owner
        );
        return Ok(DatasetPayload::refused(vec![UserError::conflict(message, "owner")]));
    }
    let columns = input.columns.into_iter().map(|column| {
        let facts =
            ColumnFacts { classification: column.classification, description: column.description };
        (column.name, facts)
    });
    let put = registry::Mutation::DatasetPut {
        name: name.clone(),
        owner,
        mode: input.mode.into(),
        description: input.description,
        tags: input.tags,
        columns: columns.collect(),
        derived_from: input.derived_from,
    };
    let outcome = change(ctx, put).await?;
    Ok(DatasetPayload::new(&registry.snapshot(), &name, outcome))
}

async fn dataset_set_mode(
    ctx: &Context<'_>,
    input: DatasetSetModeInput,
) -> Result<DatasetPayload, Problem> {
    let mut fields = Fields::default();
    let Some(name) = fields.parse::<DatasetName>(&input.dataset, &["input", "dataset"])? else {
        return Ok(DatasetPayload::refused(fields.errors));
    };
    let context = &shared(ctx).context;
    let (snapshot, by) = (context.registry.snapshot(), caller(ctx)?.actor());
    if let Some(dataset) = snapshot.datasets.get(&name) {
        let what = format!("changing the mode of \"{name}\"");
        access::permit(caller(ctx)?, &dataset.owner, &what)?;
    }
    let governor = context.governor.clone();
    let (dataset, mode) = (name.clone(), input.mode.into());
    let work = async move { governor.set_mode(&dataset, mode, &snapshot, &by).await };
    let outcome = outcome(shared(ctx).detached("api.mutation", work).await?)?;
    Ok(DatasetPayload::new(&shared(ctx).context.registry.snapshot(), &name, outcome))
}
