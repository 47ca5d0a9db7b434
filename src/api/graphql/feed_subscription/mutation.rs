//! Creating, steering and forgetting subscriptions; deciding about dead letters.

use std::time::Duration;

use async_graphql::{Context, ID, InputObject, Json, Object, SimpleObject};
use serde_json::Value;

use super::super::mutation::{Fields, Outcome, UserError, UserErrorCode, change};
use super::super::scalar::{caller, shared};
use super::{DeadLetterNode, FeedSubscriptionNode, subscriptions};
use crate::api::access;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::api::rest::dead_letters::reason;
use crate::feed;
use crate::registry::{self, Revision, StartAt, SubscriptionSpec};
use crate::vocab::{DatasetName, ServiceName};

/// How long a secret stays valid beside its successor when nothing is said, in seconds.
const OVERLAP_SECONDS: i32 = 24 * 3600;

/// A named reader to be created.
#[derive(InputObject)]
struct SubscriptionCreateInput {
    /// Lower-case letters, digits and hyphens.
    name: String,
    /// The service that reads.
    service: String,
    /// What it reads: datasets of one source.
    datasets: Vec<String>,
    /// As in a manifest: `{"deliver": {"pull": {}}, "retry": {…}, "start": "now", …}`.
    spec: Json<Value>,
}

/// A subscription.
#[derive(InputObject)]
struct SubscriptionInput {
    /// Its name.
    name: String,
}

/// A subscription and where it shall go on.
#[derive(InputObject)]
struct SubscriptionSeekInput {
    /// Its name.
    name: String,
    /// `now`, `earliest`, a position to go on after, or a time to go on from.
    to: String,
}

/// A subscription to be forgotten.
#[derive(InputObject)]
struct SubscriptionDeleteInput {
    /// Its name.
    name: String,
    /// Why its dead letters are given up with it; needed when it has any.
    reason: Option<String>,
}

/// A webhook whose secret is to be replaced.
#[derive(InputObject)]
struct SubscriptionSecretRotateInput {
    /// The subscription's name.
    name: String,
    /// How long the present secret stays valid, in seconds; a day when not given.
    #[graphql(default_with = "OVERLAP_SECONDS")]
    overlap_seconds: i32,
}

/// Parked changes to be sent again.
#[derive(InputObject)]
struct DeadLettersRedriveInput {
    /// The subscription's name.
    subscription: String,
    /// This one; all, in order, when it is not given.
    id: Option<ID>,
}

/// Parked changes to be given up.
#[derive(InputObject)]
struct DeadLettersDropInput {
    /// The subscription's name.
    subscription: String,
    /// These.
    ids: Vec<ID>,
    /// Why.
    reason: String,
}

/// A mended event.
#[derive(InputObject)]
struct DeadLetterEditInput {
    /// The subscription's name.
    subscription: String,
    /// The dead letter.
    id: ID,
    /// What is sent instead of what was logged: an object.
    event: Json<Value>,
}

/// What a mutation of a subscription did.
#[derive(SimpleObject, Default)]
struct SubscriptionPayload {
    /// As it is now; null when it is gone, or nothing was changed.
    subscription: Option<FeedSubscriptionNode>,
    /// A webhook's new secret, `whsec_…`.
    secret: Option<String>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// What a mutation of dead letters did.
#[derive(SimpleObject, Default)]
struct DeadLettersPayload {
    /// How many it concerned.
    count: i32,
    /// Those that were dropped or mended, as they are now.
    dead_letters: Vec<DeadLetterNode>,
    /// Why not all, or nothing, was changed; empty when it was.
    user_errors: Vec<UserError>,
}

impl SubscriptionPayload {
    /// What came of an action on a subscription that exists.
    fn of<T>(
        ctx: &Context<'_>,
        name: &str,
        done: Result<T, feed::Error>,
        field: &str,
    ) -> Result<Self, Problem> {
        match done {
            Ok(_) => {
                let snapshot = shared(ctx).context.registry.snapshot();
                let subscription = FeedSubscriptionNode::find(&snapshot, name);
                Ok(Self { subscription, revision: Some(snapshot.revision), ..Self::default() })
            }
            Err(error) => Self::refused(error.into(), field),
        }
    }

    fn refused(problem: Problem, field: &str) -> Result<Self, Problem> {
        let user_errors = vec![user_error(problem, field)?];
        Ok(Self { user_errors, ..Self::default() })
    }
}

/// The problem as an error of the caller. A position that is gone is one here: another can be given.
fn user_error(problem: Problem, field: &str) -> Result<UserError, Problem> {
    let field = ["input", field];
    if problem.code() == Code::PositionTrimmed {
        let message = problem.detail().to_owned();
        let field = field.iter().map(|&part| part.to_owned()).collect();
        return Ok(UserError { code: UserErrorCode::Invalid, message, field });
    }
    UserError::of(problem, &field)
}

/// The part of the root of mutations that is about named readers.
#[derive(Default)]
pub(in crate::api::graphql) struct SubscriptionMutation;

#[Object]
impl SubscriptionMutation {
    /// Creates a named reader, which begins at once. A webhook's first secret is shown.
    async fn subscription_create(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionCreateInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(create(ctx, input).await)
    }

    /// Stops delivery; changes wait in the log.
    async fn subscription_pause(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(pause(ctx, input, true).await)
    }

    /// Lets delivery go on where it stopped.
    async fn subscription_resume(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(pause(ctx, input, false).await)
    }

    /// Begins a new run somewhere else: what is held outside the log is let go, the counts begin
    /// anew, dead letters stay.
    async fn subscription_seek(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionSeekInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(seek(ctx, input).await)
    }

    /// Forgets a subscription and where it was.
    async fn subscription_delete(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionDeleteInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(delete(ctx, input).await)
    }

    /// Makes a new secret for a webhook and shows it. The one before stays valid for a while:
    /// requests carry a signature with each.
    async fn subscription_secret_rotate(
        &self,
        ctx: &Context<'_>,
        input: SubscriptionSecretRotateInput,
    ) -> Option<Result<SubscriptionPayload, Problem>> {
        Some(secret_rotate(ctx, input).await)
    }

    /// Sends parked changes again: one, or all in order.
    async fn dead_letters_redrive(
        &self,
        ctx: &Context<'_>,
        input: DeadLettersRedriveInput,
    ) -> Option<Result<DeadLettersPayload, Problem>> {
        Some(redrive(ctx, input).await)
    }

    /// Gives parked changes up on purpose. They stay on record with who and why.
    async fn dead_letters_drop(
        &self,
        ctx: &Context<'_>,
        input: DeadLettersDropInput,
    ) -> Option<Result<DeadLettersPayload, Problem>> {
        Some(drop_letters(ctx, input).await)
    }

    /// Mends the event of a parked change: what is sent when it is redriven.
    async fn dead_letter_edit(
        &self,
        ctx: &Context<'_>,
        input: DeadLetterEditInput,
    ) -> Option<Result<DeadLettersPayload, Problem>> {
        Some(edit_letter(ctx, input).await)
    }
}

/// Creates a subscription and lets it begin.
async fn create(
    ctx: &Context<'_>,
    input: SubscriptionCreateInput,
) -> Result<SubscriptionPayload, Problem> {
    let mut fields = Fields::default();
    let name = input.name;
    if !registry::is_subscription_name(&name) {
        let message = format!(
            "invalid subscription name \"{name}\": expected {}",
            registry::SUBSCRIPTION_NAME_FORM
        );
        fields.errors.push(invalid(message, &["name"]));
    }
    let service: Option<ServiceName> = fields.parse(&input.service, &["input", "service"])?;
    let mut datasets = Vec::with_capacity(input.datasets.len());
    for dataset in &input.datasets {
        datasets.extend(fields.parse::<DatasetName>(dataset, &["input", "datasets"])?);
    }
    let Json(spec) = input.spec;
    for error in SubscriptionSpec::parse(&spec).err().unwrap_or_default() {
        let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
        let message = error.about(&format!("subscription \"{name}\""));
        fields.errors.push(invalid(message, &[&["spec"], &path[..]].concat()));
    }
    let snapshot = shared(ctx).context.registry.snapshot();
    if snapshot.subscriptions.contains_key(&name) {
        let message = format!("subscription \"{name}\" exists: expected another name");
        fields.errors.push(UserError::conflict(message, "name"));
    }
    let Some(service) = service.filter(|_| fields.errors.is_empty()) else {
        return Ok(SubscriptionPayload { user_errors: fields.errors, ..Default::default() });
    };
    let signed = spec.get("deliver").is_some_and(|deliver| deliver.get("webhook").is_some());
    let put = registry::Subscription { name: name.clone(), service, datasets, spec };
    let revision = match change(ctx, registry::Mutation::SubscriptionPut(put)).await? {
        Outcome::Done(revision) => revision,
        Outcome::Refused(user_errors) => {
            return Ok(SubscriptionPayload { user_errors, ..Default::default() });
        }
    };
    let (handle, named) = (subscriptions(ctx), name.clone());
    let work = async move {
        handle.begin(&named).await?;
        if signed { handle.secret(&named).await.map(Some) } else { Ok(None) }
    };
    match shared(ctx).detached("api.subscription", work).await? {
        Ok(secret) => {
            let snapshot = shared(ctx).context.registry.snapshot();
            let subscription = FeedSubscriptionNode::find(&snapshot, &name);
            let (user_errors, revision) = (Vec::new(), Some(revision));
            Ok(SubscriptionPayload { subscription, secret, user_errors, revision })
        }
        Err(error) => {
            // It was never there: one that cannot begin is of no use to anybody.
            shared(ctx).context.registry.subscription_delete(&name).await?;
            SubscriptionPayload::refused(error.into(), "spec")
        }
    }
}

/// Pauses or resumes.
async fn pause(
    ctx: &Context<'_>,
    input: SubscriptionInput,
    paused: bool,
) -> Result<SubscriptionPayload, Problem> {
    acting(ctx, &input.name)?;
    let (handle, name) = (subscriptions(ctx), input.name.clone());
    let work = async move { handle.pause(&name, paused).await };
    let done = shared(ctx).detached("api.subscription", work).await?;
    SubscriptionPayload::of(ctx, &input.name, done, "name")
}

/// Goes on somewhere else.
async fn seek(
    ctx: &Context<'_>,
    input: SubscriptionSeekInput,
) -> Result<SubscriptionPayload, Problem> {
    acting(ctx, &input.name)?;
    let to = match input.to.parse::<StartAt>() {
        Ok(to) => to,
        Err(expected) => {
            let problem = Problem::new(Code::BadRequest, format!("to: {expected}"));
            return SubscriptionPayload::refused(problem, "to");
        }
    };
    let (handle, name) = (subscriptions(ctx), input.name.clone());
    let work = async move { handle.seek(&name, to).await };
    let done = shared(ctx).detached("api.subscription", work).await?;
    let field =
        if matches!(done, Err(feed::Error::UnknownSubscription(_))) { "name" } else { "to" };
    SubscriptionPayload::of(ctx, &input.name, done, field)
}

/// Forgets a subscription.
async fn delete(
    ctx: &Context<'_>,
    input: SubscriptionDeleteInput,
) -> Result<SubscriptionPayload, Problem> {
    let because = match input.reason.as_deref().map(reason).transpose() {
        Ok(because) => because,
        Err(problem) => return SubscriptionPayload::refused(problem, "reason"),
    };
    let by = acting(ctx, &input.name)?;
    let (handle, name) = (subscriptions(ctx), input.name.clone());
    let work = async move { handle.delete(&name, &by, because.as_deref()).await };
    let done = shared(ctx).detached("api.subscription", work).await?;
    SubscriptionPayload::of(ctx, &input.name, done, "name")
}

/// Replaces a secret.
async fn secret_rotate(
    ctx: &Context<'_>,
    input: SubscriptionSecretRotateInput,
) -> Result<SubscriptionPayload, Problem> {
    acting(ctx, &input.name)?;
    let Ok(overlap) = u64::try_from(input.overlap_seconds) else {
        let problem = Problem::new(Code::BadRequest, "expected a number of seconds, 0 or more");
        return SubscriptionPayload::refused(problem, "overlapSeconds");
    };
    let (handle, name) = (subscriptions(ctx), input.name.clone());
    let work = async move { handle.secret_rotate(&name, Duration::from_secs(overlap)).await };
    let done = shared(ctx).detached("api.subscription", work).await?;
    let secret = done.as_ref().ok().cloned();
    Ok(SubscriptionPayload { secret, ..SubscriptionPayload::of(ctx, &input.name, done, "name")? })
}

/// Sends parked changes again.
async fn redrive(
    ctx: &Context<'_>,
    input: DeadLettersRedriveInput,
) -> Result<DeadLettersPayload, Problem> {
    acting(ctx, &input.subscription)?;
    let id = match input.id.as_ref().map(letter_id).transpose() {
        Ok(id) => id,
        Err(error) => return Ok(DeadLettersPayload::refused(error)),
    };
    let (handle, name) = (subscriptions(ctx), input.subscription);
    let work = async move { handle.redrive(&name, id).await };
    match shared(ctx).detached("api.redrive", work).await? {
        Ok(count) => {
            let count = i32::try_from(count).unwrap_or(i32::MAX);
            Ok(DeadLettersPayload { count, ..Default::default() })
        }
        Err(error) => Ok(DeadLettersPayload::refused(user_error(error.into(), "id")?)),
    }
}

/// Gives parked changes up, one after the other; those that cannot be are told.
async fn drop_letters(
    ctx: &Context<'_>,
    input: DeadLettersDropInput,
) -> Result<DeadLettersPayload, Problem> {
    let by = acting(ctx, &input.subscription)?;
    let mut payload = DeadLettersPayload::default();
    let because = match reason(&input.reason) {
        Ok(because) => because,
        Err(problem) => return Ok(DeadLettersPayload::refused(user_error(problem, "reason")?)),
    };
    for id in &input.ids {
        let id = match letter_id(id) {
            Ok(id) => id,
            Err(error) => {
                payload.user_errors.push(error);
                continue;
            }
        };
        let (handle, name) = (subscriptions(ctx), input.subscription.clone());
        let (by, because) = (by.clone(), because.clone());
        let work = async move { handle.dead_letter_drop(&name, id, &by, &because).await };
        match shared(ctx).detached("api.dead_letter_drop", work).await? {
            Ok(letter) => payload.dead_letters.push(DeadLetterNode(letter)),
            Err(error) => payload.user_errors.push(user_error(error.into(), "ids")?),
        }
    }
    payload.count = i32::try_from(payload.dead_letters.len()).unwrap_or(i32::MAX);
    Ok(payload)
}

/// Mends the event of a parked change.
async fn edit_letter(
    ctx: &Context<'_>,
    input: DeadLetterEditInput,
) -> Result<DeadLettersPayload, Problem> {
    acting(ctx, &input.subscription)?;
    let id = match letter_id(&input.id) {
        Ok(id) => id,
        Err(error) => return Ok(DeadLettersPayload::refused(error)),
    };
    let Json(Value::Object(event)) = input.event else {
        return Ok(DeadLettersPayload::refused(invalid("expected an object".into(), &["event"])));
    };
    let (handle, name) = (subscriptions(ctx), input.subscription);
    let work = async move { handle.dead_letter_edit(&name, id, &event).await };
    match shared(ctx).detached("api.dead_letter_edit", work).await? {
        Ok(letter) => {
            let dead_letters = vec![DeadLetterNode(letter)];
            Ok(DeadLettersPayload { count: 1, dead_letters, user_errors: Vec::new() })
        }
        Err(error) => Ok(DeadLettersPayload::refused(user_error(error.into(), "id")?)),
    }
}

impl DeadLettersPayload {
    fn refused(error: UserError) -> Self {
        Self { user_errors: vec![error], ..Self::default() }
    }
}

fn letter_id(id: &ID) -> Result<i64, UserError> {
    let message = || format!("unknown dead letter \"{}\": expected a number", id.as_str());
    id.parse().map_err(|_| invalid(message(), &["id"]))
}

fn invalid(message: String, field: &[&str]) -> UserError {
    let field = ["input"].iter().chain(field).map(|&part| part.to_owned()).collect();
    UserError { code: UserErrorCode::Invalid, message, field }
}

/// Who is asking, as records name them, if they may act for the service of this subscription. One
/// that does not exist is told later.
fn acting(ctx: &Context<'_>, subscription: &str) -> Result<String, Problem> {
    let caller = caller(ctx)?;
    let snapshot = shared(ctx).context.registry.snapshot();
    access::permit_subscription(caller, &snapshot, subscription)?;
    Ok(caller.actor())
}
