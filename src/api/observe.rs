//! One request seen from outside: its ids, its span, its log line, its metrics.
//!
//! A request is named by `X-Request-Id`, the client's if it is sensible, else a `UUIDv7`; the name
//! stands in every response, problem and log line. A W3C `traceparent` is recorded in the span and
//! given back. A problem is completed here with the request's id and its cause is logged here,
//! once.

use actix_web::HttpMessage;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::input::header_text;
use super::problem::Problem;
use crate::vocab::TraceParent;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest request id taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What names a request: in its response, its problems and its log lines.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Unique, the client's if it gave a sensible one.
    pub(super) request_id: String,
    /// The caller's trace, if it named one.
    pub(super) traceparent: Option<TraceParent>,
}

impl Identity {
    fn of(headers: &HeaderMap) -> Self {
        let given = header_text(headers, REQUEST_ID.as_str()).filter(|id| is_sensible(id));
        Self {
            request_id: given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned),
            traceparent: header_text(headers, TRACEPARENT.as_str())
                .and_then(|text| text.parse().ok()),
        }
    }

    /// The identity that [`observe`] gave the request.
    pub(super) fn of_request(request: &impl HttpMessage) -> Self {
        let known = request.extensions().get::<Self>().cloned();
        known.unwrap_or_else(|| Self::of(&HeaderMap::new()))
    }
}

/// Whether a client's request id may stand in headers and log lines.
fn is_sensible(id: &str) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(&b))
}

/// Middleware: the outermost, around everything that answers.
pub(super) async fn observe<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = Instant::now();
    let identity = Identity::of(request.headers());
    request.extensions_mut().insert(identity.clone());
    let method = request.method().clone();
    let span = tracing::info_span!(
        "request",
        request_id = %identity.request_id,
        trace_id = identity.traceparent.as_ref().map(TraceParent::trace_id),
    );

    let response = next.call(request).instrument(span.clone()).await?.map_into_boxed_body();
    let (mut response, problem) = complete(response, &identity.request_id);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&identity.request_id) {
        headers.insert(REQUEST_ID, value);
    }
    if let Some(Ok(value)) = identity.traceparent.map(|tp| HeaderValue::from_str(tp.as_str())) {
        headers.insert(TRACEPARENT, value);
    }

    let route = response.request().match_pattern().unwrap_or_else(|| "none".to_owned());
    let entered = span.enter();
    record(method.as_str(), route, response.status(), started, problem.as_ref());
    drop(entered);
    Ok(response)
}

/// Gives a problem the request's id, and an error that is no problem yet the form of one.
fn complete(response: ServiceResponse, request_id: &str) -> (ServiceResponse, Option<Problem>) {
    let Some(error) = response.response().error() else {
        return (response, None);
    };
    let problem = error.as_error::<Problem>().cloned().unwrap_or_else(|| Problem::foreign(error));
    let completed = problem.respond(Some(request_id));
    (response.into_response(completed), Some(problem))
}

/// Writes the request's log line and counts it.
fn record(
    method: &str,
    route: String,
    status: StatusCode,
    started: Instant,
    problem: Option<&Problem>,
) {
    let took = started.elapsed();
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let code = problem.map(|problem| problem.code().as_str());
    let status_text = status.as_u16();
    if status.is_server_error() {
        let error = problem.map(|problem| problem.cause().unwrap_or_else(|| problem.detail()));
        tracing::error!(method, route, status = status_text, duration_ms, code, error, "request");
    } else {
        tracing::info!(method, route, status = status_text, duration_ms, code, "request");
    }
    metrics::counter!(
        "cadastre_http_requests_total",
        "route" => route.clone(),
        "method" => known_method(method),
        "status" => status.as_str().to_owned(),
    )
    .increment(1);
    metrics::histogram!("cadastre_http_request_seconds", "route" => route)
        .record(took.as_secs_f64());
}

/// A client may make up a method; a metric's label may not grow with it.
fn known_method(method: &str) -> &'static str {
    let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    known.into_iter().find(|known| *known == method).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn a_sensible_request_id_is_kept_and_another_replaced() {
        let given = Identity::of(&headers(REQUEST_ID, "deploy-42"));
        assert_eq!(given.request_id, "deploy-42");
        let replaced = Identity::of(&headers(REQUEST_ID, "a b"));
        assert_eq!(Uuid::parse_str(&replaced.request_id).unwrap().get_version_num(), 7);
    }

    #[test]
    fn a_traceparent_is_kept_when_it_is_valid() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let kept = Identity::of(&headers(TRACEPARENT, valid)).traceparent.unwrap();
        assert_eq!(kept.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(Identity::of(&headers(TRACEPARENT, "nonsense")).traceparent.is_none());
    }
}
