//! The write gateway: rows for services that have no connection of their own.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::access;
use crate::api::auth::Caller;
use crate::api::input::{self, header_text};
use crate::api::observe::Identity;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::gateway::{IdempotencyKey, Request};
use crate::vocab::DatasetName;

/// The request's name for itself: <https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Rows to write: first the inserts, then the updates, then the deletes, each in the order given.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what gateway::Request reads")]
pub(super) struct RowsRequest {
    /// Rows; a column that is not named gets its default.
    #[schema(example = json!([{"id": 7, "status": "open"}]))]
    insert: Option<Vec<serde_json::Value>>,
    /// A row each by its key, and the columns to set.
    update: Option<Vec<RowUpdate>>,
    /// A row each by its key.
    delete: Option<Vec<RowDelete>>,
}

/// A row to change.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what gateway::Request reads")]
pub(super) struct RowUpdate {
    /// The value of each column of the primary key.
    #[schema(example = json!({"id": 7}))]
    key: serde_json::Value,
    /// The columns to set.
    #[schema(example = json!({"status": "paid"}))]
    set: serde_json::Value,
}

/// A row to delete.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what gateway::Request reads")]
pub(super) struct RowDelete {
    /// The value of each column of the primary key.
    #[schema(example = json!({"id": 7}))]
    key: serde_json::Value,
}

/// What was written.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RowsAnswer {
    /// The transaction, as `source.txId` of its changes in the feed.
    tx_id: u32,
    /// The keys of the inserted rows, in the order given.
    #[schema(example = json!([{"id": 7}]))]
    inserted: Vec<serde_json::Value>,
    /// How many rows were updated.
    updated: u32,
    /// How many rows were deleted.
    deleted: u32,
    /// Whether this answers an earlier request with the same `Idempotency-Key`.
    replayed: bool,
}

/// Writes rows of one dataset, in one transaction under the role of the service whose token is used;
/// the guard in the database answers as it answers any client. All rows are written or none is.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/rows", tag = "ownership", request_body = RowsRequest,
    params(
        ("dataset" = String, Path, description = "SOURCE.SCHEMA.TABLE"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating a request under its key within a day writes nothing again and gives the same answer"),
        ("traceparent" = Option<String>, Header, description = "W3C Trace Context; arrives with the changes"),
    ),
    responses(
        (status = 200, body = RowsAnswer),
        (status = 400, description = "bad_request, malformed_name", body = super::openapi::Problem),
        (status = 403, description = "not_owner, forbidden", body = super::openapi::Problem),
        (status = 404, description = "unknown_dataset, row_not_found", body = super::openapi::Problem),
        (status = 409, description = "constraint_violated", body = super::openapi::Problem),
        (status = 422, description = "refused, idempotency_key_reused", body = super::openapi::Problem),
        (status = 503, description = "busy, unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn rows(
    shared: web::Data<Shared>,
    caller: Caller,
    dataset: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let service = access::service(&caller, "writing rows")?.clone();
    let dataset: DatasetName = dataset.parse()?;
    let key = header_text(request.headers(), IDEMPOTENCY_KEY)
        .map(str::parse::<IdempotencyKey>)
        .transpose()?;
    let body = input::body(request.headers(), payload, &["application/json"]).await?;
    let asked = Request::parse(&body)?;
    let trace = Identity::of_request(&request).traceparent;
    let context = shared.context.clone();
    let work = async move {
        context.gateway.write(&service, &dataset, &asked, key.as_ref(), trace.as_ref()).await
    };
    let written = shared.detached("api.rows", work).await??;
    Ok(HttpResponse::Ok().json(written))
}
