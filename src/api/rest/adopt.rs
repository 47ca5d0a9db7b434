//! Adoption: a database in use, put under observation, and what is then seen of it.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::input;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::vocab::{RoleName, ServiceName, SourceName};

/// How to adopt a source.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdoptRequest {
    /// Its connection string, when it is not registered; `${VARIABLE}` is resolved where the server
    /// runs and stored unresolved.
    #[serde(default)]
    url: Option<String>,
    /// Services and their roles there.
    #[serde(default)]
    services: BTreeMap<String, Vec<String>>,
}

/// Put every table of this source that can be governed and is not under observation.
#[utoipa::path(
    post, path = "/v1/sources/{name}/adopt", tag = "sources",
    params(("name" = String, Path, description = "The source")),
    request_body = AdoptRequest,
    responses(
        (status = 200, description = "what the tables are and who writes them", body = serde_json::Value),
        (status = 404, description = "unknown_source", body = super::openapi::Problem),
        (status = 422, description = "refused", body = super::openapi::Problem),
        (status = 503, description = "busy, unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn adopt(
    shared: web::Data<Shared>,
    name: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let source: SourceName = name.parse()?;
    let asked: AdoptRequest = input::json(request.headers(), payload).await?;
    let mut services: BTreeMap<ServiceName, Vec<RoleName>> = BTreeMap::new();
    for (service, roles) in &asked.services {
        let roles: Result<Vec<RoleName>, _> = roles.iter().map(|role| role.parse()).collect();
        services.insert(service.parse()?, roles?);
    }
    let governor = shared.context.governor.clone();
    let work = async move { governor.adopt(&source, asked.url, services).await };
    let adoption = shared.detached("api.adopt", work).await??;
    Ok(HttpResponse::Ok().json(adoption))
}

/// What are the tables of this source, who writes them, and who should own them?
#[utoipa::path(
    get, path = "/v1/sources/{name}/adoption", tag = "sources",
    params(("name" = String, Path, description = "The source")),
    responses(
        (status = 200, description = "what the tables are and who writes them", body = serde_json::Value),
        (status = 404, description = "unknown_source", body = super::openapi::Problem),
        (status = 503, description = "unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn adoption(
    shared: web::Data<Shared>,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let source: SourceName = name.parse()?;
    let governor = shared.context.governor.clone();
    let work = async move { governor.adoption(&source).await };
    let adoption = shared.detached("api.adoption", work).await??;
    Ok(HttpResponse::Ok().json(adoption))
}
