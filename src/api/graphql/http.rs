//! GraphQL over HTTP, by its specification: media types, statuses, what GET may do.
//!
//! A request without `data` in its answer failed as a request: 400 when it could not be read, 422
//! when it could not be executed. With `data`, even partial, the status is 200: the specification
//! suggests 294 for partial data in one place and shows 200 in another, and 200 is what clients
//! and proxies of today understand.

use actix_web::http::header;
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, web};
use async_graphql::parser::types::OperationType;
use async_graphql::{Executor, Response, ServerError};
use serde::Serialize;

use super::failure::{self, BAD_REQUEST};
use super::operation::{self, Operation, Unreadable};
use super::{Schema, ws};
use crate::api::auth::Caller;
use crate::api::code::Code;
use crate::api::input::{self, header_text};
use crate::api::negotiate;
use crate::api::observe::Identity;
use crate::api::problem::Problem;
use crate::api::server::Shared;

/// What answers are sent as; the first when the client does not care.
const MEDIA: [&str; 2] = ["application/graphql-response+json", "application/json"];

/// `GET /graphql`: a query, or a WebSocket.
pub(in crate::api) async fn get(
    shared: web::Data<Shared>,
    schema: web::Data<Schema>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    if request.headers().contains_key(header::UPGRADE) {
        return ws::upgrade(shared.into_inner(), schema.as_ref().clone(), &request, payload);
    }
    let media = acceptable(&request)?;
    let operation = operation::from_query_string(request.query_string());
    answer(schema.as_ref(), request.method(), operation, media, &request).await
}

/// `POST /graphql`: a query or a mutation.
pub(in crate::api) async fn post(
    schema: web::Data<Schema>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let media = acceptable(&request)?;
    let body = input::body(request.headers(), payload, &["application/json"]).await?;
    answer(schema.as_ref(), request.method(), operation::from_body(&body), media, &request).await
}

/// The media type to answer in.
fn acceptable(request: &HttpRequest) -> Result<&'static str, Problem> {
    let accept = header_text(request.headers(), header::ACCEPT.as_str());
    let best = negotiate::best(accept, &MEDIA).and_then(|index| MEDIA.get(index).copied());
    best.ok_or_else(|| {
        Problem::new(Code::NotAcceptable, format!("expected Accept: {}", MEDIA.join(" or ")))
    })
}

/// Executes an operation as far as its method allows and writes the answer.
async fn answer(
    executor: &impl Executor,
    method: &Method,
    operation: Result<Operation, Unreadable>,
    media: &'static str,
    request: &HttpRequest,
) -> Result<HttpResponse, Problem> {
    let request_id = Identity::of_request(request).request_id;
    let failed = |status, error| Ok(refuse(status, vec![error], media, &request_id));
    let operation = match operation {
        Ok(operation) => operation,
        Err(Unreadable::Malformed(error)) => return failed(StatusCode::BAD_REQUEST, error),
        Err(Unreadable::Unprocessable(error)) => {
            return failed(StatusCode::UNPROCESSABLE_ENTITY, error);
        }
    };
    match operation.kind {
        OperationType::Query => {}
        OperationType::Mutation if *method == Method::POST => {}
        OperationType::Mutation => return Err(Problem::method_not_allowed("POST")),
        OperationType::Subscription => {
            let message = "subscriptions need a WebSocket with graphql-transport-ws, \
                           or GET /v1/feed";
            let error = failure::error(BAD_REQUEST, message);
            return failed(StatusCode::UNPROCESSABLE_ENTITY, error);
        }
    }
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.ok_or_else(|| Problem::internal("a request without a caller"))?;
    let response = match operation.by(&caller) {
        Ok(operation) => executor.execute(operation.request).await,
        Err(refusal) => *refusal,
    };
    Ok(write(response, media, &request_id))
}

/// The answer with the status it deserves.
fn write(mut response: Response, media: &'static str, request_id: &str) -> HttpResponse {
    if failed_as_request(&response) {
        let errors = response.errors;
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, errors, media, request_id);
    }
    failure::complete(&mut response.errors, request_id);
    respond(StatusCode::OK, media, &response)
}

/// Whether nothing was executed: an error of execution has a path.
pub(super) fn failed_as_request(response: &Response) -> bool {
    response.errors.iter().any(|error| error.path.is_empty())
}

/// An answer without `data`.
fn refuse(
    status: StatusCode,
    mut errors: Vec<ServerError>,
    media: &'static str,
    request_id: &str,
) -> HttpResponse {
    #[derive(Serialize)]
    struct Errors {
        errors: Vec<ServerError>,
    }
    failure::complete(&mut errors, request_id);
    respond(status, media, &Errors { errors })
}

fn respond(status: StatusCode, media: &'static str, body: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(body) {
        Ok(json) => HttpResponseBuilder::new(status).content_type(media).body(json),
        Err(error) => HttpResponse::from_error(Problem::internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use actix_web::test::TestRequest;
    use async_graphql::{EmptySubscription, Object, Schema};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::auth::Principal;

    struct Query;

    #[Object]
    impl Query {
        async fn one(&self) -> i32 {
            1
        }

        async fn twice(&self, n: i32) -> i32 {
            2 * n
        }

        async fn failing(&self) -> Option<Result<i32, Problem>> {
            Some(Err(Problem::new(Code::UnknownDataset, "no dataset is named \"a.b.c\"")))
        }

        async fn again(&self) -> Query {
            Query
        }
    }

    struct Mutation;

    #[Object]
    impl Mutation {
        async fn act(&self) -> bool {
            true
        }
    }

    /// Status, media type and body of the answer to `body`.
    async fn ask(method: Method, accept: &str, body: &str) -> (u16, String, Value) {
        let schema = Schema::build(Query, Mutation, EmptySubscription)
            .limit_depth(crate::vocab::limits::GRAPHQL_DEPTH_MAX)
            .limit_complexity(crate::vocab::limits::GRAPHQL_COMPLEXITY_MAX)
            .finish();
        let request = TestRequest::with_uri("/graphql")
            .method(method.clone())
            .insert_header((header::ACCEPT, accept))
            .to_http_request();
        request.extensions_mut().insert(Caller { principal: Principal::Admin, token: None });
        let operation = if method == Method::GET {
            operation::from_query_string(body)
        } else {
            operation::from_body(body.as_bytes())
        };
        let media = acceptable(&request).unwrap();
        let response = match answer(&schema, &method, operation, media, &request).await {
            Ok(response) => response,
            Err(problem) => problem.respond(None),
        };
        let status = response.status().as_u16();
        let media = header_text(response.headers(), "content-type").unwrap().to_owned();
        let body = to_bytes(response.into_body()).await.unwrap();
        (status, media, serde_json::from_slice(&body).unwrap())
    }

    async fn post(query: &str) -> (u16, Value) {
        let body = json!({ "query": query }).to_string();
        let (status, _, answer) = ask(Method::POST, "*/*", &body).await;
        (status, answer)
    }

    fn code(answer: &Value) -> &str {
        answer["errors"][0]["extensions"]["code"].as_str().unwrap()
    }

    #[actix_web::test]
    async fn the_media_type_follows_the_accept_header() {
        let body = r#"{"query":"{one}"}"#;
        for (accept, expected) in [
            ("*/*", MEDIA[0]),
            ("application/graphql-response+json", MEDIA[0]),
            ("application/json", MEDIA[1]),
            ("application/json;q=0.5, application/graphql-response+json;q=0.4", MEDIA[1]),
        ] {
            let (status, media, answer) = ask(Method::POST, accept, body).await;
            assert_eq!((status, media.as_str()), (200, expected), "{accept}");
            assert_eq!(answer, json!({"data": {"one": 1}}));
        }
        let request =
            TestRequest::default().insert_header((header::ACCEPT, "text/csv")).to_http_request();
        assert_eq!(acceptable(&request).unwrap_err().code(), Code::NotAcceptable);
    }

    #[actix_web::test]
    async fn a_request_that_cannot_be_read_is_a_400_without_data() {
        let (status, _, answer) = ask(Method::POST, "*/*", "{\"query\":").await;
        assert_eq!((status, code(&answer)), (400, "BAD_REQUEST"));
        let (status, answer) = post("{ one").await;
        assert_eq!((status, code(&answer)), (400, "GRAPHQL_PARSE_FAILED"));
        assert!(answer.get("data").is_none());
        assert!(answer["errors"][0]["locations"][0]["line"].is_number());
        assert!(answer["errors"][0]["extensions"]["requestId"].is_string());
    }

    #[actix_web::test]
    async fn a_request_that_cannot_be_executed_is_a_422_without_data() {
        for (body, expected) in [
            (json!([{"query": "{one}"}]), "BAD_REQUEST"),
            (json!({"operationName": "A"}), "BAD_REQUEST"),
            (json!({"query": "{one}", "variables": []}), "BAD_REQUEST"),
            (json!({"query": "{nothing}"}), "GRAPHQL_VALIDATION_FAILED"),
            (json!({"query": "{twice(n: \"x\")}"}), "GRAPHQL_VALIDATION_FAILED"),
            (json!({"query": "query($n: Int!){twice(n: $n)}"}), "BAD_USER_INPUT"),
            (
                json!({"query": "query($n: Int!){twice(n: $n)}", "variables": {"n": null}}),
                "BAD_USER_INPUT",
            ),
            (
                json!({"query": "query($n: Int!){twice(n: $n)}", "variables": {"n": "x"}}),
                "GRAPHQL_VALIDATION_FAILED",
            ),
            (
                json!({"query": "query A{one} query B{one}", "operationName": "C"}),
                "OPERATION_RESOLUTION_FAILURE",
            ),
            (json!({"query": "query A{one} query B{one}"}), "OPERATION_RESOLUTION_FAILURE"),
        ] {
            let (status, _, answer) = ask(Method::POST, "*/*", &body.to_string()).await;
            assert_eq!((status, code(&answer)), (422, expected), "{body} {answer}");
            assert!(answer.get("data").is_none(), "{answer}");
        }
    }

    #[actix_web::test]
    async fn an_error_of_one_field_leaves_its_neighbours() {
        let (status, answer) = post("{one failing}").await;
        assert_eq!(status, 200);
        assert_eq!(answer["data"], json!({"one": 1, "failing": null}));
        assert_eq!(code(&answer), "UNKNOWN_DATASET");
        assert_eq!(answer["errors"][0]["message"], "no dataset is named \"a.b.c\"");
        assert_eq!(answer["errors"][0]["path"], json!(["failing"]));
    }

    #[actix_web::test]
    async fn limits_are_named_in_the_error() {
        let deep = format!("{{{}one{}", "again{".repeat(20), "}".repeat(21));
        let (status, answer) = post(&deep).await;
        assert_eq!(status, 422);
        assert_eq!(
            answer["errors"][0]["message"],
            "Query is nested too deep. Expected at most 15 levels."
        );
        let wide: String = (0..6000).map(|i| format!("a{i}:one ")).collect();
        let (_, answer) = post(&format!("{{{wide}}}")).await;
        assert_eq!(
            answer["errors"][0]["message"],
            "Query is too complex. Expected at most 5000 fields, pages multiplied out."
        );
    }

    #[actix_web::test]
    async fn get_queries_but_never_changes() {
        let query = "query=query%20A(%24n%3AInt!)%7Btwice(n%3A%24n)%7D&operationName=A\
                     &variables=%7B%22n%22%3A4%7D";
        let (status, _, answer) = ask(Method::GET, "*/*", query).await;
        assert_eq!((status, answer), (200, json!({"data": {"twice": 8}})));
        let (status, media, answer) = ask(Method::GET, "*/*", "query=mutation%7Bact%7D").await;
        assert_eq!((status, media.as_str()), (405, "application/problem+json"));
        assert_eq!(answer["code"], "method_not_allowed");
        let (status, _, answer) = ask(Method::GET, "*/*", "").await;
        assert_eq!((status, code(&answer)), (422, "BAD_REQUEST"));
        let (status, answer) = post("mutation{act}").await;
        assert_eq!((status, answer), (200, json!({"data": {"act": true}})));
    }

    #[actix_web::test]
    async fn subscriptions_are_sent_to_their_transport() {
        let (status, answer) = post("subscription{changes}").await;
        assert_eq!(status, 422);
        assert!(answer["errors"][0]["message"].as_str().unwrap().contains("WebSocket"));
    }
}
