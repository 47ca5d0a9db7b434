//! What operators hold on to: ids, logs, metrics, readiness.

use serde_json::{Value, json};

use super::{ORDERS, Shop, answer};
use crate::support::{WAIT, eventually};

#[tokio::test]
async fn a_request_is_named_in_its_response_and_in_the_log() {
    let shop = Shop::declared().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let response = shop
        .get("/v1/check?service=orders&dataset=shop.public.nothing")
        .header("x-request-id", "deploy-42")
        .header("traceparent", traceparent)
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "deploy-42");
    assert_eq!(response.headers()["traceparent"], traceparent);
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(problem["request_id"], "deploy-42");
    let lines: Vec<Value> = eventually(WAIT, || async {
        let log = shop.server.log();
        let lines = log.lines().filter(|line| line.contains("deploy-42"));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        (!lines.is_empty()).then_some(lines)
    })
    .await;
    assert_eq!(lines.len(), 1, "one line a request: {lines:?}");
    let line = &lines[0];
    assert_eq!(line["request_id"], "deploy-42", "{line}");
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c", "{line}");
    assert_eq!(line["route"], "/v1/check", "{line}");
    assert_eq!((&line["method"], &line["status"]), (&json!("GET"), &json!(404)), "{line}");
    assert_eq!(line["code"], "unknown_dataset", "{line}");
    assert!(line["duration_ms"].is_u64(), "{line}");

    let unnamed = shop.get("/healthz").send().await.unwrap();
    let id = unnamed.headers()["x-request-id"].to_str().unwrap();
    assert_eq!(id.len(), 36, "a UUID: {id}");
}

#[tokio::test]
async fn a_server_with_a_streaming_source_is_ready_and_counts_what_it_does() {
    let shop = Shop::declared().await;
    let ready = eventually(WAIT, || async {
        let (status, ready) = answer(shop.get("/readyz")).await;
        (status == 200).then_some(ready)
    })
    .await;
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["sources"], json!([{"source": "shop", "state": "streaming"}]));

    let feed = shop.get(&format!("/v1/feed?datasets={ORDERS}")).send().await.unwrap();
    let metrics = shop.get("/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        "cadastre_http_requests_total{route=\"/v1/manifest/apply\",method=\"POST\",status=\"200\"} 1",
        "cadastre_feed_readers 1",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line} is missing in:\n{metrics}");
    }
    assert!(metrics.contains("cadastre_http_request_seconds_bucket{route=\"/v1/manifest/apply\""));
    drop(feed);
    eventually(WAIT, || async {
        let metrics = shop.get("/metrics").send().await.unwrap().text().await.unwrap();
        metrics.lines().any(|line| line == "cadastre_feed_readers 0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_without_its_database_is_alive_but_not_ready_and_says_why() {
    let shop = Shop::declared().await;
    shop.cluster.stop_immediate().await;
    let problem = eventually(WAIT, || async {
        let (status, ready) = answer(shop.get("/readyz")).await;
        let source = ready["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .any(|reason| reason.as_str().unwrap().starts_with("source \"shop\""));
        (status == 503 && source).then_some(ready)
    })
    .await;
    assert_eq!(problem["status"], "not ready");
    let (status, _) = answer(shop.get("/healthz")).await;
    assert_eq!(status, 200);
    let path = format!("/v1/check?service=orders&dataset={ORDERS}");
    let (status, decision) = answer(shop.get(&path)).await;
    assert_eq!((status, &decision["allowed"]), (200, &json!(true)), "answered from memory");
    let query = "{ dataset(name: \"shop.public.orders\") { name violations { nodes { id } } } }";
    let (status, partial) = shop.graphql(query, json!({})).await;
    assert_eq!(status, 200, "{partial}");
    assert_eq!(partial["data"]["dataset"], json!({"name": ORDERS, "violations": null}));
    assert_eq!(partial["errors"][0]["extensions"]["code"], "UNAVAILABLE", "{partial}");
    shop.cluster.start_again().await;
    eventually(WAIT, || async {
        let (status, _) = answer(shop.get("/readyz")).await;
        (status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_description_is_served_as_it_is_kept() {
    let shop = Shop::undeclared().await;
    let served = shop.get("/v1/openapi.json").send().await.unwrap().text().await.unwrap();
    assert_eq!(served, include_str!("../../schema/openapi.json"));
}
