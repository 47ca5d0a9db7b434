//! What a source still needs.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::guard::Need;
use crate::vocab::SourceName;

/// One thing a source must have.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NeedAnswer {
    /// What was looked at.
    #[schema(example = "wal_level")]
    check: String,
    /// Whether it is as it must be.
    ok: bool,
    /// What was found.
    #[schema(example = "replica")]
    found: String,
    /// The statement that mends it.
    #[schema(example = "ALTER SYSTEM SET wal_level = logical")]
    mend: Option<String>,
}

impl From<Need> for NeedAnswer {
    fn from(need: Need) -> Self {
        Self { check: need.check, ok: need.ok, found: need.found, mend: need.mend }
    }
}

/// What does this source still need, and which statement mends it?
#[utoipa::path(
    get, path = "/v1/sources/{name}/doctor", tag = "sources",
    params(("name" = String, Path, description = "The source")),
    responses(
        (status = 200, body = Vec<NeedAnswer>),
        (status = 404, description = "unknown_source", body = super::openapi::Problem),
        (status = 503, description = "unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn doctor(
    shared: web::Data<Shared>,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let source: SourceName = name.parse()?;
    let governor = shared.context.governor.clone();
    let needs =
        shared.detached("api.doctor", async move { governor.doctor(&source).await }).await??;
    Ok(HttpResponse::Ok().json(needs.into_iter().map(NeedAnswer::from).collect::<Vec<_>>()))
}
