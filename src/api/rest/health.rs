//! Is it alive, is it able to serve, and how busy is it?

use std::time::Duration;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::server::Shared;
use crate::capture::{SourceStatus, State, WalLevel};
use crate::telemetry::ErrorChain;

/// Longest that readiness waits for the registry's database: probes commonly give up after a few
/// seconds and should learn the reason before that.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// Alive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Able to serve, or why not.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready` or `not ready`.
    status: &'static str,
    /// Why not, one sentence each.
    reasons: Vec<String>,
    /// How the capture of each source stands.
    #[schema(value_type = Vec<Object>)]
    sources: Vec<SourceStatus>,
}

/// Is the process alive?
#[utoipa::path(
    get, path = "/healthz", tag = "operation", security(()), responses((status = 200, body = Health)),
)]
pub(in crate::api) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Health { status: "ok" })
}

/// Is every source streaming, every log writable, the registry's database there?
#[utoipa::path(
    get, path = "/readyz", tag = "operation", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)),
)]
pub(in crate::api) async fn readyz(shared: web::Data<Shared>) -> HttpResponse {
    let context = &shared.context;
    let mut reasons = Vec::new();
    match tokio::time::timeout(PING_DEADLINE, context.registry.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => reasons.push(ErrorChain(&error).to_string()),
        Err(_) => reasons.push(format!(
            "the registry's database did not answer within {} s",
            PING_DEADLINE.as_secs()
        )),
    }
    let sources = context.captures.status();
    reasons.extend(sources.iter().filter_map(reason));
    reasons.extend((context.log_troubles)());
    if reasons.is_empty() {
        HttpResponse::Ok().json(Readiness { status: "ready", reasons, sources })
    } else {
        HttpResponse::ServiceUnavailable().json(Readiness { status: "not ready", reasons, sources })
    }
}

/// Why a source is not streaming, or not for much longer; `None` when it is.
fn reason(status: &SourceStatus) -> Option<String> {
    let source = &status.source;
    match &status.state {
        State::Streaming => {
            let wal = status.wal.as_ref().filter(|wal| wal.level == WalLevel::Critical)?;
            Some(format!("source \"{source}\": {}", wal.sentence()))
        }
        State::Connecting => Some(format!("source \"{source}\" is connecting")),
        State::Stalled { reason } | State::Failing { reason } => {
            Some(format!("source \"{source}\": {reason}"))
        }
    }
}

/// The metrics of the process, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "operation", security(()),
    responses((status = 200, content_type = "text/plain", body = String)),
)]
pub(in crate::api) async fn metrics(shared: web::Data<Shared>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body((shared.context.metrics)())
}
