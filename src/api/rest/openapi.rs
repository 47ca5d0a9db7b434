//! The description of the plain routes, generated from their types.

use actix_web::HttpResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

/// RFC 9457, as every failed request is answered.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what api::problem writes")]
pub(super) struct Problem {
    /// A URN that ends in the code.
    #[schema(example = "urn:cadastre:problem:unknown_dataset")]
    r#type: String,
    /// The same for every problem of the code.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong and what would be right.
    detail: String,
    /// Stable, for programs.
    #[schema(example = "unknown_dataset")]
    code: String,
    /// The request, as in the header `X-Request-Id` and in the server's log.
    request_id: String,
    /// With `position_trimmed`: where the log begins.
    earliest: Option<String>,
    /// With `refused`: what stands in the way, each with its place.
    errors: Option<Vec<serde_json::Value>>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cadastre",
        description = "Ownership of data, enforced inside PostgreSQL, and a feed of every change \
            with its writer. GraphQL is at /graphql; its schema is schema/graphql/cadastre.graphql."
    ),
    paths(
        super::check::check_body,
        super::check::check_query,
        super::feed::feed,
        super::rows::rows,
        super::subscription::fetch,
        super::subscription::ack,
        super::subscription::nack,
        super::subscription::extend,
        super::subscription::secret,
        super::dead_letter::list,
        super::dead_letter::get,
        super::dead_letter::edit,
        super::dead_letter::redrive,
        super::dead_letter::drop_letter,
        super::snapshots::snapshots,
        super::manifest::plan,
        super::manifest::apply,
        super::manifest::export,
        super::doctor::doctor,
        super::proof::proof,
        super::adopt::adopt,
        super::adopt::adoption,
        super::health::healthz,
        super::health::readyz,
        super::health::metrics,
    ),
    components(schemas(Problem)),
    modifiers(&BearerToken),
    security(("bearer" = [])),
)]
struct Description;

/// Declares the token that every route needs unless it says otherwise.
struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("cad_…");
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    }
}

/// The description of the plain routes as OpenAPI, in JSON.
///
/// # Panics
/// Never: the description is made of plain values.
pub fn openapi_json() -> String {
    let mut json = Description::openapi().to_pretty_json().expect("plain values become JSON");
    json.push('\n');
    json
}

/// The description itself.
pub(in crate::api) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(openapi_json())
}
