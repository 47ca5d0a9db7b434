//! Pull delivery: fetching changes under a lease, and saying what became of them.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::access;
use crate::api::auth::Caller;
use crate::api::code::Code;
use crate::api::input::{self, Query};
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::feed::{self, Acknowledged, Fetched, Mark, Subscriptions, Which};
use crate::vocab::limits;

/// Changes of a fetch when it does not say.
const FETCH_DEFAULT: usize = 100;

/// Longest error text of a consumer that is kept, in characters.
const ERROR_CHARS_MAX: usize = 1_000;

/// Longest lease that can be asked for, and longest pause.
const SPAN_MAX: Duration = Duration::from_secs(12 * 3600);

/// A batch of changes.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangesAnswer<'a> {
    /// Names what is handed out here; null when there is nothing.
    #[schema(value_type = Option<String>)]
    lease: Option<Uuid>,
    /// When the changes are handed to somebody else unless acknowledged.
    expires_at: Option<DateTime<Utc>>,
    /// In order.
    changes: Vec<ChangeAnswer<'a>>,
}

/// One change.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangeAnswer<'a> {
    /// Where it stands: the idempotency key.
    #[schema(value_type = String, example = "01-00000000016CA548-00000003")]
    position: Mark,
    /// From 1: how often it has been handed out.
    attempt: u32,
    /// The event.
    #[schema(value_type = Object)]
    change: &'a RawValue,
}

/// Which changes are meant: those out under a lease, those at positions, or both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AckRequest {
    /// All that is out under this lease, or of it only the positions given.
    #[schema(value_type = Option<String>)]
    lease: Option<Uuid>,
    /// These.
    #[schema(value_type = Option<Vec<String>>)]
    positions: Option<Vec<Mark>>,
}

/// The same, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NackRequest {
    /// All that is out under this lease, or of it only the positions given.
    #[schema(value_type = Option<String>)]
    lease: Option<Uuid>,
    /// These.
    #[schema(value_type = Option<Vec<String>>)]
    positions: Option<Vec<Mark>>,
    /// What went wrong, for the dead-letter queue.
    error: Option<String>,
    /// Shortest pause before they are handed out again.
    #[schema(example = "30s")]
    delay: Option<String>,
}

/// The same, and for how long.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendRequest {
    /// All that is out under this lease, or of it only the positions given.
    #[schema(value_type = Option<String>)]
    lease: Option<Uuid>,
    /// These.
    #[schema(value_type = Option<Vec<String>>)]
    positions: Option<Vec<Mark>>,
    /// How long the lease lasts from now on.
    #[schema(example = "1m")]
    by: String,
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AckAnswer {
    /// How many changes it concerned.
    changes: usize,
    /// Positions that are not out any more: settled before, or given up.
    #[schema(value_type = Vec<String>)]
    gone: Vec<Mark>,
}

/// The next changes of a pull subscription, under a lease.
///
/// Consumers compete: what is out with one is not handed to another, and neither is any later change
/// of the same key. What is not acknowledged before `expires_at` is handed out again.
#[utoipa::path(
    get, path = "/v1/subscriptions/{name}/changes", tag = "subscriptions",
    params(
        ("name" = String, Path, description = "The subscription"),
        ("max" = Option<usize>, Query, description = "Most changes, 1 to 1000; 100 by default"),
        ("wait" = Option<String>, Query, description = "Longest wait for the first change, up to 30s; none by default"),
    ),
    responses(
        (status = 200, body = ChangesAnswer<'static>),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
        (status = 409, description = "conflict: paused, or not a pull subscription", body = super::openapi::Problem),
        (status = 410, description = "position_trimmed, with `earliest`", body = super::openapi::Problem),
        (status = 503, description = "unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn fetch(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let query = Query::parse(request.query_string(), &["max", "wait"])?;
    let max = query.one("max")?.map_or(Ok(FETCH_DEFAULT), parse_max)?;
    let wait = query.one("wait")?.map(|text| span("wait", text, limits::PULL_WAIT_MAX));
    let wait = wait.transpose()?.unwrap_or_default();
    let fetching = subscriptions.fetch(&name, max, wait);
    let fetched = tokio::select! {
        biased;
        () = shared.stopping.cancelled() => {
            return Err(Problem::new(Code::Unavailable, "the server is stopping"));
        }
        fetched = fetching => fetched?,
    };
    answer(&fetched)
}

/// These changes are handled.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/ack", tag = "subscriptions",
    request_body = AckRequest, params(("name" = String, Path, description = "The subscription")),
    responses(
        (status = 200, body = AckAnswer),
        (status = 400, description = "bad_request", body = super::openapi::Problem),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
        (status = 409, description = "conflict", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn ack(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let asked: AckRequest = input::json(request.headers(), payload).await?;
    let which = which(asked.lease, asked.positions)?;
    acknowledged(&shared, async move { subscriptions.ack(&name, &which).await }).await
}

/// These changes could not be handled: they come again, or are parked when that was the last attempt.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/nack", tag = "subscriptions",
    request_body = NackRequest, params(("name" = String, Path, description = "The subscription")),
    responses(
        (status = 200, body = AckAnswer),
        (status = 400, description = "bad_request", body = super::openapi::Problem),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
        (status = 409, description = "conflict", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn nack(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let asked: NackRequest = input::json(request.headers(), payload).await?;
    let which = which(asked.lease, asked.positions)?;
    let delay = asked.delay.as_deref().map(|text| span("delay", text, SPAN_MAX)).transpose()?;
    let error = asked.error.as_deref().unwrap_or("the consumer gave no reason");
    let error: String = error.chars().filter(|c| *c != '\0').take(ERROR_CHARS_MAX).collect();
    let delay = delay.unwrap_or_default();
    acknowledged(&shared, async move { subscriptions.nack(&name, &which, &error, delay).await })
        .await
}

/// These changes need more time.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/extend", tag = "subscriptions",
    request_body = ExtendRequest, params(("name" = String, Path, description = "The subscription")),
    responses(
        (status = 200, body = AckAnswer),
        (status = 400, description = "bad_request", body = super::openapi::Problem),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
        (status = 409, description = "conflict", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn extend(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let asked: ExtendRequest = input::json(request.headers(), payload).await?;
    let which = which(asked.lease, asked.positions)?;
    let by = span("by", &asked.by, SPAN_MAX)?;
    acknowledged(&shared, async move { subscriptions.extend(&name, &which, by).await }).await
}

/// The secret of a webhook.
#[derive(Serialize, ToSchema)]
pub(super) struct SecretAnswer {
    /// What its requests are signed with, by the Standard Webhooks rules.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
}

/// The secret that requests to a webhook are signed with: the newest.
#[utoipa::path(
    get, path = "/v1/subscriptions/{name}/secret", tag = "subscriptions",
    params(("name" = String, Path, description = "The subscription")),
    responses(
        (status = 200, body = SecretAnswer),
        (status = 404, description = "unknown_subscription", body = super::openapi::Problem),
        (status = 409, description = "conflict: not a webhook", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn secret(
    shared: web::Data<Shared>,
    caller: Caller,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let subscriptions = permitted(&shared, &caller, &name)?;
    let work = async move { subscriptions.secret(&name).await };
    let secret = shared.detached("api.secret", work).await??;
    let mut answer = HttpResponse::Ok();
    Ok(answer.insert_header(("cache-control", "no-store")).json(SecretAnswer { secret }))
}

/// The subscriptions, for who may change this one.
pub(super) fn permitted(
    shared: &Shared,
    caller: &Caller,
    name: &str,
) -> Result<Subscriptions, Problem> {
    access::permit_subscription(caller, &shared.context.registry.snapshot(), name)?;
    Ok(shared.context.subscriptions.clone())
}

/// Carries out what a consumer says of changes, also when it hangs up, and tells what became of it.
async fn acknowledged(
    shared: &Shared,
    work: impl Future<Output = Result<Acknowledged, feed::Error>> + Send + 'static,
) -> Result<HttpResponse, Problem> {
    let Acknowledged { changes, gone } = shared.detached("api.acknowledge", work).await??;
    Ok(HttpResponse::Ok().json(AckAnswer { changes, gone }))
}

fn answer(fetched: &Fetched) -> Result<HttpResponse, Problem> {
    let mut changes = Vec::with_capacity(fetched.changes.len());
    for change in &fetched.changes {
        let event: &RawValue = serde_json::from_slice(&change.event)
            .map_err(|error| Problem::internal(format!("event at {}: {error}", change.position)))?;
        let (position, attempt) = (change.position, change.attempt);
        changes.push(ChangeAnswer { position, attempt, change: event });
    }
    let some = !changes.is_empty();
    Ok(HttpResponse::Ok().insert_header(("cache-control", "no-store")).json(ChangesAnswer {
        lease: some.then_some(fetched.lease),
        expires_at: some.then_some(fetched.expires_at),
        changes,
    }))
}

fn which(lease: Option<Uuid>, positions: Option<Vec<Mark>>) -> Result<Which, Problem> {
    let most = limits::PULL_BATCH_MAX;
    match &positions {
        None if lease.is_none() => {
            Err(Problem::new(Code::BadRequest, "expected \"lease\", \"positions\" or both"))
        }
        Some(positions) if positions.len() > most => {
            let detail = format!("positions: expected at most {most}, got {}", positions.len());
            Err(Problem::new(Code::BadRequest, detail))
        }
        _ => Ok(Which { lease, positions }),
    }
}

fn parse_max(text: &str) -> Result<usize, Problem> {
    let most = limits::PULL_BATCH_MAX;
    text.parse().ok().filter(|max| (1..=most).contains(max)).ok_or_else(|| {
        let detail = format!("max: expected a whole number from 1 to {most}, got \"{text}\"");
        Problem::new(Code::BadRequest, detail)
    })
}

/// A span of time such as `20s`, or in seconds.
fn span(name: &str, text: &str, most: Duration) -> Result<Duration, Problem> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let parsed = seconds.or_else(|| humantime::parse_duration(text).ok());
    parsed.filter(|span| *span <= most).ok_or_else(|| {
        let most = humantime::format_duration(most);
        let detail = format!("{name}: expected a span such as 20s, at most {most}, got \"{text}\"");
        Problem::new(Code::BadRequest, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_read_or_refused_with_what_would_be_right() {
        assert_eq!(span("wait", "20", Duration::from_secs(30)).unwrap().as_secs(), 20);
        assert_eq!(span("wait", "1m", Duration::from_secs(60)).unwrap().as_secs(), 60);
        for text in ["", "soon", "-1", "31s"] {
            let problem = span("wait", text, Duration::from_secs(30)).unwrap_err();
            assert!(problem.detail().contains("at most 30s"), "{}", problem.detail());
        }
        assert_eq!(parse_max("1000").unwrap(), 1000);
        for text in ["0", "1001", "many"] {
            assert!(parse_max(text).unwrap_err().detail().contains("from 1 to 1000"));
        }
        assert!(which(None, None).is_err());
    }
}
