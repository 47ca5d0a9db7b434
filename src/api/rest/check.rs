//! May this service write that dataset? Answered from memory.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::code::Code;
use crate::api::input::{self, Query};
use crate::api::problem::Problem;
use crate::api::server::Shared;

/// The question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckRequest {
    /// The service that would act.
    #[schema(example = "billing")]
    service: String,
    /// What it would act on.
    #[schema(example = "shop.public.orders")]
    dataset: String,
    /// What it would do. Only `write` is asked for: everyone may read.
    #[serde(default)]
    #[schema(example = "write")]
    action: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CheckAnswer {
    /// Whether the service is the owner.
    allowed: bool,
    /// The one service that may write the dataset.
    #[schema(example = "orders")]
    owner: String,
    /// What the guard does with anyone else's write: `observe`, `enforce` or `lockdown`.
    #[schema(example = "enforce")]
    mode: &'static str,
    /// The registry's revision the answer is from.
    revision: i64,
}

/// May this service write that dataset?
#[utoipa::path(
    post, path = "/v1/check", tag = "ownership", request_body = CheckRequest,
    responses(
        (status = 200, body = CheckAnswer),
        (status = 400, description = "bad_request, malformed_name", body = super::openapi::Problem),
        (status = 404, description = "unknown_dataset, unknown_service", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn check_body(
    shared: web::Data<Shared>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    answer(&shared, &input::json(request.headers(), payload).await?)
}

/// May this service write that dataset?
#[utoipa::path(
    get, path = "/v1/check", tag = "ownership",
    params(
        ("service" = String, Query, description = "The service that would act"),
        ("dataset" = String, Query, description = "What it would act on"),
        ("action" = Option<String>, Query, description = "`write`, which is the default"),
    ),
    responses(
        (status = 200, body = CheckAnswer),
        (status = 400, description = "bad_request, malformed_name", body = super::openapi::Problem),
        (status = 404, description = "unknown_dataset, unknown_service", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn check_query(
    shared: web::Data<Shared>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let query = Query::parse(request.query_string(), &["service", "dataset", "action"])?;
    let asked = CheckRequest {
        service: query.required("service", "service=billing")?.to_owned(),
        dataset: query.required("dataset", "dataset=shop.public.orders")?.to_owned(),
        action: query.one("action")?.map(str::to_owned),
    };
    answer(&shared, &asked)
}

fn answer(shared: &Shared, asked: &CheckRequest) -> Result<HttpResponse, Problem> {
    if let Some(action) = asked.action.as_deref().filter(|action| *action != "write") {
        let detail = format!("unknown action \"{action}\": expected \"write\"");
        return Err(Problem::new(Code::BadRequest, detail));
    }
    let (service, dataset) = (asked.service.parse()?, asked.dataset.parse()?);
    let decision = shared.context.registry.snapshot().can_write(&service, &dataset)?;
    Ok(HttpResponse::Ok().json(CheckAnswer {
        allowed: decision.allowed,
        owner: decision.owner.to_string(),
        mode: decision.mode.as_str(),
        revision: decision.revision.0,
    }))
}
