//! The dead-letter queue of a subscription: looking, mending, sending again, giving up.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::subscription::permitted;
use crate::api::auth::Caller;
use crate::api::code::Code;
use crate::api::input::{self, Query};
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::feed::{self, DeadLetter, LetterState};
use crate::vocab::limits;

/// Longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 1_000;

/// A change that could not be delivered.
#[derive(Serialize, ToSchema)]
pub(super) struct DeadLetterAnswer<'a> {
    /// Ascending in the order of parking.
    id: i64,
    /// `parked`, `redriving`, `delivered`, `dropped` or `expired`.
    #[schema(example = "parked")]
    state: &'static str,
    /// Where the change stands.
    #[schema(example = "01-00000000016CA548-00000003")]
    position: String,
    /// The dataset it belongs to.
    dataset: &'a str,
    /// What happened to the row.
    op: String,
    /// When it was parked, last.
    parked_at: DateTime<Utc>,
    /// Every attempt, oldest first.
    attempts: Vec<AttemptAnswer<'a>>,
    /// The event as it was logged.
    #[schema(value_type = Object)]
    change: &'a RawValue,
    /// The event that is sent instead, if somebody has mended it.
    #[schema(value_type = Option<Object>)]
    edited: Option<&'a RawValue>,
    /// When it was decided about.
    settled_at: Option<DateTime<Utc>>,
    /// By whom.
    settled_by: Option<&'a str>,
    /// Why.
    reason: Option<&'a str>,
}

/// One attempt.
#[derive(Serialize, ToSchema)]
pub(super) struct AttemptAnswer<'a> {
    /// When it ended.
    at: DateTime<Utc>,
    /// Why it failed.
    error: &'a str,
}

/// Some of a queue.
#[derive(Serialize, ToSchema)]
pub(super) struct DeadLettersAnswer<'a> {
    /// In the order of parking.
    dead_letters: Vec<DeadLetterAnswer<'a>>,
    /// Give this as `after` for the next page; null when this is the last.
    next: Option<i64>,
}

/// Which parked changes to send again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedriveRequest {
    /// This one; all, in order, when it is not given.
    #[serde(default)]
    id: Option<i64>,
}

/// What is sent again.
#[derive(Serialize, ToSchema)]
pub(super) struct RedriveAnswer {
    /// How many changes.
    redriven: usize,
}

/// A mended event.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EditRequest {
    /// What is sent instead of what was logged.
    #[schema(value_type = Object)]
    change: serde_json::Map<String, serde_json::Value>,
}

/// The changes that could not be delivered.
#[utoipa::path(
    get, path = "/v1/subscriptions/{name}/dead-letters", tag = "subscriptions",
    params(
        ("name" = String, Path, description = "The subscription"),
        ("state" = Option<String>, Query, description = "`parked` (default), `redriving`, `delivered`, `dropped`, `expired` or `all`"),
        ("first" = Option<usize>, Query, description = "How many, 1 to 100; 20 by default"),
        ("after" = Option<i64>, Query, description = "`next` of the page before"),
    ),
    responses(
        (status = 200, body = DeadLettersAnswer<'static>),
        (status = 400, description = "bad_request", body = super::openapi::Problem),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn list(
    shared: web::Data<Shared>,
    request: HttpRequest,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let query = Query::parse(request.query_string(), &["state", "first", "after"])?;
    let state = letter_state(query.one("state")?)?;
    let most = limits::PAGE_ITEMS_MAX;
    let first = number(&query, "first")?.unwrap_or(20);
    let first = usize::try_from(first).ok().filter(|first| (1..=most).contains(first));
    let first = first.ok_or_else(|| {
        Problem::new(Code::BadRequest, format!("first: expected a whole number from 1 to {most}"))
    })?;
    let after = number(&query, "after")?.unwrap_or(0);
    let found = shared.context.subscriptions.dead_letters(&name, state, after, first + 1).await?;
    let (shown, more) = found.split_at(found.len().min(first));
    let letters = shown.iter().map(describe).collect::<Result<Vec<_>, _>>()?;
    let next = shown.last().filter(|_| !more.is_empty()).map(|letter| letter.id);
    Ok(HttpResponse::Ok().json(DeadLettersAnswer { dead_letters: letters, next }))
}

/// One of them.
#[utoipa::path(
    get, path = "/v1/subscriptions/{name}/dead-letters/{id}", tag = "subscriptions",
    params(
        ("name" = String, Path, description = "The subscription"),
        ("id" = i64, Path, description = "The dead letter"),
    ),
    responses(
        (status = 200, body = DeadLetterAnswer<'static>),
        (status = 404, description = "unknown_subscription, not_found", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn get(
    shared: web::Data<Shared>,
    path: web::Path<(String, i64)>,
) -> Result<HttpResponse, Problem> {
    let (name, id) = path.into_inner();
    let letter = shared.context.subscriptions.dead_letter(&name, id).await?;
    Ok(HttpResponse::Ok().json(describe(&letter)?))
}

/// Mends the event of a parked change: what is sent when it is redriven.
#[utoipa::path(
    put, path = "/v1/subscriptions/{name}/dead-letters/{id}", tag = "subscriptions",
    request_body = EditRequest,
    params(
        ("name" = String, Path, description = "The subscription"),
        ("id" = i64, Path, description = "The dead letter"),
    ),
    responses(
        (status = 200, body = DeadLetterAnswer<'static>),
        (status = 404, description = "unknown_subscription, not_found", body = super::openapi::Problem),
        (status = 409, description = "conflict: it is not parked any more", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn edit(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    path: web::Path<(String, i64)>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let (name, id) = path.into_inner();
    let subscriptions = permitted(&shared, &caller, &name)?;
    let asked: EditRequest = input::json(request.headers(), payload).await?;
    let work = async move { subscriptions.dead_letter_edit(&name, id, &asked.change).await };
    decided(&shared, work).await
}

/// Sends parked changes again: one, or all in order.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/dead-letters/redrive", tag = "subscriptions",
    request_body = RedriveRequest, params(("name" = String, Path, description = "The subscription")),
    responses(
        (status = 200, body = RedriveAnswer),
        (status = 404, description = "unknown_subscription, not_found", body = super::openapi::Problem),
        (status = 409, description = "conflict: it is not parked any more", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn redrive(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let asked: RedriveRequest = input::json(request.headers(), payload).await?;
    let work = async move { subscriptions.redrive(&name, asked.id).await };
    let redriven = shared.detached("api.redrive", work).await??;
    Ok(HttpResponse::Ok().json(RedriveAnswer { redriven }))
}

/// Gives a parked change up on purpose. It stays on record with who and why.
#[utoipa::path(
    delete, path = "/v1/subscriptions/{name}/dead-letters/{id}", tag = "subscriptions",
    params(
        ("name" = String, Path, description = "The subscription"),
        ("id" = i64, Path, description = "The dead letter"),
        ("reason" = String, Query, description = "Why it is given up"),
    ),
    responses(
        (status = 200, body = DeadLetterAnswer<'static>),
        (status = 400, description = "bad_request: no reason", body = super::openapi::Problem),
        (status = 404, description = "unknown_subscription, not_found", body = super::openapi::Problem),
        (status = 409, description = "conflict: it is not parked any more", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn drop_letter(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    path: web::Path<(String, i64)>,
) -> Result<HttpResponse, Problem> {
    let (name, id) = path.into_inner();
    let subscriptions = permitted(&shared, &caller, &name)?;
    let query = Query::parse(request.query_string(), &["reason"])?;
    let reason = reason(query.required("reason", "reason=the%20order%20was%20a%20test")?)?;
    let by = caller.actor();
    let work = async move { subscriptions.dead_letter_drop(&name, id, &by, &reason).await };
    decided(&shared, work).await
}

/// Carries out what was decided about a dead letter, also when the caller hangs up, and shows it.
async fn decided(
    shared: &Shared,
    work: impl Future<Output = Result<DeadLetter, feed::Error>> + Send + 'static,
) -> Result<HttpResponse, Problem> {
    let letter = shared.detached("api.dead_letter", work).await??;
    Ok(HttpResponse::Ok().json(describe(&letter)?))
}

/// A reason that says something.
pub(in crate::api) fn reason(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > REASON_CHARS_MAX || text.contains('\0') {
        let detail =
            format!("reason: expected 1 to {REASON_CHARS_MAX} characters, none of them NUL");
        return Err(Problem::new(Code::BadRequest, detail));
    }
    Ok(text.to_owned())
}

fn letter_state(text: Option<&str>) -> Result<Option<LetterState>, Problem> {
    match text {
        None => Ok(Some(LetterState::Parked)),
        Some("all") => Ok(None),
        Some(text) => LetterState::parse(text).map(Some).ok_or_else(|| {
            let detail = format!(
                "unknown state \"{text}\": expected parked, redriving, delivered, dropped, expired \
                 or all"
            );
            Problem::new(Code::BadRequest, detail)
        }),
    }
}

fn number(query: &Query, name: &str) -> Result<Option<i64>, Problem> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let detail = format!("{name}: expected a whole number, got \"{text}\"");
            Problem::new(Code::BadRequest, detail)
        })
    };
    query.one(name)?.map(parse).transpose()
}

fn describe(letter: &DeadLetter) -> Result<DeadLetterAnswer<'_>, Problem> {
    let raw = |event| {
        serde_json::from_slice::<&RawValue>(event)
            .map_err(|error| Problem::internal(format!("dead letter {}: {error}", letter.id)))
    };
    let attempts = letter.attempts.iter();
    Ok(DeadLetterAnswer {
        id: letter.id,
        state: letter.state.as_str(),
        position: letter.position.to_string(),
        dataset: &letter.dataset,
        op: letter.op.to_string(),
        parked_at: letter.parked_at,
        attempts: attempts
            .map(|attempt| AttemptAnswer { at: attempt.at, error: &attempt.error })
            .collect(),
        change: raw(&letter.event)?,
        edited: letter.edited.as_ref().map(|event| raw(event)).transpose()?,
        settled_at: letter.settled_at,
        settled_by: letter.settled_by.as_deref(),
        reason: letter.reason.as_deref(),
    })
}
