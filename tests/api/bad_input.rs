//! What a client does wrong gets the right status, a stable code and a message that says what
//! would be right; and the server keeps serving.

use cadastre::vocab::limits;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::{ORDERS, Shop, answer};

/// Every route and a method it answers.
const ROUTES: [(&str, &str); 10] = [
    ("GET", "/v1/check"),
    ("POST", "/v1/check"),
    ("GET", "/v1/feed"),
    ("GET", "/v1/manifest"),
    ("POST", "/v1/manifest/plan"),
    ("POST", "/v1/manifest/apply"),
    ("GET", "/v1/sources/shop/doctor"),
    ("GET", "/v1/sources/shop/proof"),
    ("GET", "/graphql"),
    ("POST", "/graphql"),
];

/// Asserts that a request is refused with a problem, and gives it back.
async fn refused(request: RequestBuilder, status: u16, code: &str, hint: &str) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let got = response.status().as_u16();
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["request_id"], id, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(hint), "{problem}");
    problem
}

async fn still_serves(shop: &Shop) {
    let (status, _) = answer(shop.get("/healthz")).await;
    assert_eq!(status, 200);
    let path = format!("/v1/check?service=orders&dataset={ORDERS}");
    let (status, decision) = answer(shop.get(&path)).await;
    assert_eq!((status, &decision["allowed"]), (200, &Value::Bool(true)), "{decision}");
}

#[tokio::test]
async fn every_route_but_the_public_ones_needs_a_token() {
    let shop = Shop::declared().await;
    let anonymous = shop.server.anonymous();
    for (method, path) in ROUTES {
        let request = || anonymous.request(method.parse().unwrap(), shop.server.at(path));
        refused(request(), 401, "unauthenticated", "Authorization: Bearer").await;
        let response = request().send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"cadastre\"");
        let wrong = request().bearer_auth("cad_wrong");
        refused(wrong, 401, "invalid_token", "unknown or has been revoked").await;
        refused(request().basic_auth("a", Some("b")), 401, "unauthenticated", "Bearer").await;
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/openapi.json"] {
        let response = anonymous.get(shop.server.at(path)).send().await.unwrap();
        assert_ne!(response.status(), 401, "{path}");
    }
    assert!(!shop.server.log().contains("cad_"), "no token reaches the log");
    still_serves(&shop).await;
}

#[tokio::test]
async fn unknown_and_malformed_names_are_told_apart() {
    let shop = Shop::declared().await;
    let unknown = "shop.public.nothing";
    let check = |service: &str, dataset: &str| {
        shop.post("/v1/check").json(&json!({ "service": service, "dataset": dataset }))
    };
    refused(check("orders", unknown), 404, "unknown_dataset", unknown).await;
    refused(check("nobody", ORDERS), 404, "unknown_service", "nobody").await;
    refused(check("orders", "orders"), 400, "malformed_name", "SOURCE.SCHEMA.TABLE").await;
    refused(check("No One", ORDERS), 400, "malformed_name", "lower-case").await;
    let feed = |query: &str| shop.get(&format!("/v1/feed?{query}"));
    let path = format!("datasets={unknown}");
    refused(feed(&path), 404, "unknown_dataset", unknown).await;
    refused(feed("datasets=orders"), 400, "malformed_name", "SOURCE.SCHEMA.TABLE").await;
    let doctor = shop.get("/v1/sources/nowhere/doctor");
    refused(doctor, 404, "unknown_source", "nowhere").await;
    for query in [
        "{owner(dataset: \"shop.public.nothing\") {name}}",
        "{canWrite(service: \"orders\", dataset: \"shop.public.nothing\") {allowed}}",
        "{violations(dataset: \"shop.public.nothing\") {nodes {id}}}",
    ] {
        let (status, answer) = shop.graphql(query, json!({})).await;
        assert_eq!(status, 200);
        let error = &answer["errors"][0];
        assert_eq!(error["extensions"]["code"], "UNKNOWN_DATASET", "{answer}");
        assert!(error["extensions"]["requestId"].is_string(), "{answer}");
        assert_eq!(error["message"], "no dataset is named \"shop.public.nothing\"");
    }
    still_serves(&shop).await;
}

#[tokio::test]
async fn a_malformed_position_is_refused_with_its_form() {
    let shop = Shop::declared().await;
    let feed = |after: &str| shop.get(&format!("/v1/feed?datasets={ORDERS}&after={after}"));
    for after in ["12", "01-00000000016ca548-00000003", "yesterday"] {
        refused(feed(after), 400, "malformed_position", "01-00000000016CA548-00000003").await;
    }
    let resumed = feed("now").header("last-event-id", "17");
    refused(resumed, 400, "malformed_position", "\"17\" is not a place to start").await;
    refused(feed("01~02"), 400, "malformed_position", "POSITION~COUNT~STATE").await;
    still_serves(&shop).await;
}

#[tokio::test]
async fn an_oversized_body_is_refused_with_the_limit() {
    let shop = Shop::declared().await;
    let body = "x".repeat(limits::REQUEST_BODY_BYTES_MAX + 1);
    let limit = limits::REQUEST_BODY_BYTES_MAX.to_string();
    for (path, media) in [
        ("/v1/check", "application/json"),
        ("/graphql", "application/json"),
        ("/v1/manifest/plan", "application/yaml"),
        ("/v1/manifest/apply", "application/yaml"),
    ] {
        let request = shop.post(path).header("content-type", media).body(body.clone());
        refused(request, 413, "payload_too_large", &limit).await;
        still_serves(&shop).await;
    }
}

#[tokio::test]
async fn an_invalid_manifest_is_refused_with_file_and_line() {
    let shop = Shop::declared().await;
    let manifest = "apiVersion: cadastre/v1\nservices:\n  orders: { teem: checkout }\n";
    for action in ["plan", "apply"] {
        let path = format!("/v1/manifest/{action}?file=shop.yaml");
        let send = |media: &str, body: &str| {
            shop.post(&path).header("content-type", media).body(body.to_owned())
        };
        let problem =
            refused(send("application/yaml", manifest), 422, "refused", "shop.yaml:3").await;
        assert_eq!(problem["errors"][0]["file"], "shop.yaml", "{problem}");
        assert_eq!(problem["errors"][0]["line"], 3, "{problem}");
        refused(send("application/yaml", "a: ["), 422, "refused", "shop.yaml:").await;
        refused(send("application/json", "{}"), 415, "unsupported_media_type", "application/yaml")
            .await;
    }
    let undeclared = shop.manifest().replace("owner: orders", "owner: nobody");
    let (status, problem) = shop.apply(&undeclared).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("refused")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nobody"), "{problem}");
    let missing = shop.manifest().replace(ORDERS, "shop.public.nothing");
    let (status, problem) = shop.apply(&missing).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("refused")), "{problem}");
    assert_eq!(problem["errors"][0]["line"], 8, "the line of the dataset: {problem}");
    still_serves(&shop).await;
}

#[tokio::test]
async fn malformed_graphql_is_refused_by_the_rules() {
    let shop = Shop::declared().await;
    let post = |body: &str| {
        shop.post("/graphql").header("content-type", "application/json").body(body.to_owned())
    };
    for (body, status, code) in [
        ("{\"query\": ", 400, "BAD_REQUEST"),
        (r#"{"query": "{ dataset("}"#, 400, "GRAPHQL_PARSE_FAILED"),
        (r#"{"query": "{ datset { name } }"}"#, 422, "GRAPHQL_VALIDATION_FAILED"),
        (r#"{"query": "query($n: String!){dataset(name:$n){name}}"}"#, 422, "BAD_USER_INPUT"),
        (r#"{"variables": {}}"#, 422, "BAD_REQUEST"),
        (
            r#"{"query": "query A{__typename} query B{__typename}"}"#,
            422,
            "OPERATION_RESOLUTION_FAILURE",
        ),
    ] {
        let (got, answer) = answer(post(body)).await;
        assert_eq!(got, status, "{body}: {answer}");
        assert_eq!(answer["errors"][0]["extensions"]["code"], code, "{body}: {answer}");
        assert!(answer["errors"][0]["extensions"]["requestId"].is_string(), "{answer}");
        assert!(answer.get("data").is_none(), "{answer}");
    }
    let plain = shop.post("/graphql").header("content-type", "text/plain").body("{}");
    refused(plain, 415, "unsupported_media_type", "application/json").await;
    let csv = shop.get("/graphql?query=%7B__typename%7D").header("accept", "text/csv");
    refused(csv, 406, "not_acceptable", "application/graphql-response+json").await;
    let mutation = "/graphql?query=mutation%7BdatasetSetMode(input%3A%7Bdataset%3A%22a%22%2C\
                    mode%3AOBSERVE%7D)%7Brevision%7D%7D";
    refused(shop.get(mutation), 405, "method_not_allowed", "POST").await;
    still_serves(&shop).await;
}

#[tokio::test]
async fn unknown_routes_methods_members_and_parameters_are_answered_with_the_known_ones() {
    let shop = Shop::declared().await;
    refused(shop.get("/v1/nothing"), 404, "not_found", "/v1/openapi.json").await;
    let delete = shop.server.client().delete(shop.server.at("/v1/check"));
    refused(delete, 405, "method_not_allowed", "GET, POST").await;
    let response = shop.post("/v1/feed").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET");
    let member = json!({"service": "orders", "dataset": ORDERS, "when": "now"});
    refused(shop.post("/v1/check").json(&member), 400, "bad_request", "`action`").await;
    let action = json!({"service": "orders", "dataset": ORDERS, "action": "drop"});
    refused(shop.post("/v1/check").json(&action), 400, "bad_request", "\"write\"").await;
    refused(shop.get("/v1/check?service=orders"), 400, "bad_request", "dataset=shop.").await;
    let feed = |query: &str| shop.get(&format!("/v1/feed?datasets={ORDERS}&{query}"));
    refused(feed("since=now"), 400, "bad_request", "datasets, after, until, ops").await;
    refused(feed("ops=x"), 400, "bad_request", "c, u, d, t, r").await;
    refused(feed("format=xml"), 400, "bad_request", "cloudevents").await;
    for alone in ["until=now", "key=1", "where=id%3D1", "columns=id", "format=cloudevents"] {
        let (name, _) = alone.split_once('=').unwrap();
        let said = format!("{name}{}", if name == "format" { "=cloudevents: " } else { ": " });
        refused(feed(&format!("after=snapshot&{alone}")), 400, "bad_request", &said).await;
    }
    let html = feed("").header("accept", "text/html");
    refused(html, 406, "not_acceptable", "text/event-stream").await;
    still_serves(&shop).await;
}
