//! W4: latency at ten live subscribers while one is stalled for ever, one replays from the earliest
//! change again and again and a webhook always fails, beside the same without those three.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use serde_json::json;
use tokio::task::JoinSet;

use super::latency::{Times, follow, write};
use super::stage::{Server, Stage, TOKEN};
use super::{Plan, Row, median, percentile};

/// Subscribers that read as they should.
const LIVE: usize = 10;

/// Transactions a second.
const RATE: usize = 500;

/// Both percentiles.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let stage = Stage::set(
        "CREATE ROLE orders_app LOGIN; \
         CREATE TABLE w4 (id bigserial PRIMARY KEY, mark text); \
         ALTER TABLE w4 OWNER TO orders_app",
    )
    .await;
    let server = stage.serve();
    stage.govern(&server, &["w4"]).await;
    let count = RATE * if plan.full { 30 } else { 3 };
    let (mut p50, mut p99, mut first) = (Vec::new(), Vec::new(), 0);
    for round in 0..plan.rounds {
        let alone = live(&stage, &server, first, count).await;
        let mut others = others(&server, round).await;
        let beside = live(&stage, &server, first + count, count).await;
        others.shutdown().await;
        let gone = json!({ "name": failing(round), "reason": "the round is over" });
        mutate(&server, "subscriptionDelete", "SubscriptionDeleteInput", &gone).await;
        first += 2 * count;
        p50.push((median(&beside), median(&alone)));
        p99.push((percentile(&beside, 0.99), percentile(&alone, 0.99)));
    }
    let size = |which: &str| format!("{LIVE} live, {RATE} transactions/s, {which}");
    vec![
        Row::new("W4 isolation", size("p50"), "µs", "≤ 1.2", &p50),
        Row::new("W4 isolation", size("p99"), "µs", "≤ 1.2", &p99),
    ]
}

/// Latencies of all live subscribers, in microseconds.
async fn live(stage: &Stage, server: &Server, first: usize, count: usize) -> Vec<f64> {
    let (start, committed) = (Instant::now(), Times::new(first, count));
    let mut readers = JoinSet::new();
    let mut all = Vec::new();
    for _ in 0..LIVE {
        let seen = Times::new(first, count);
        let query = "datasets=shop.public.w4&after=now";
        let body = server.feed("text/event-stream", query).await.bytes_stream();
        readers.spawn(follow(body, Arc::clone(&seen), start));
        all.push(seen);
    }
    write(stage, "w4", RATE, first..first + count, &committed, start).await;
    while let Some(ended) = readers.join_next().await {
        ended.expect("a reader ends");
    }
    all.iter().flat_map(|seen| seen.since(&committed)).collect()
}

/// The three that are not to be noticed; they end with what is returned.
async fn others(server: &Server, round: usize) -> JoinSet<()> {
    let mut others = JoinSet::new();
    let earliest = "datasets=shop.public.w4&after=earliest";
    let stalled = server.feed("text/event-stream", earliest).await;
    others.spawn(async move {
        // Holds the connection and reads nothing.
        std::future::pending::<()>().await;
        drop(stalled);
    });
    let server_url = server.url.clone();
    others.spawn(async move {
        let client = reqwest::Client::new();
        let path = format!("{server_url}/v1/feed?{earliest}&until=now");
        loop {
            let feed =
                client.get(&path).bearer_auth(TOKEN).header("accept", "application/x-ndjson");
            let mut body = feed.send().await.expect("a feed").bytes_stream();
            while let Some(Ok(_)) = body.next().await {}
        }
    });
    // Nobody listens there.
    let spec = json!({
        "deliver": { "webhook": { "url": "http://127.0.0.1:1/", "timeout": "1s" } },
        "retry": { "initial": "10ms", "max": "100ms" }, "start": "earliest",
    });
    let input = json!({
        "name": failing(round), "service": "orders",
        "datasets": ["shop.public.w4"], "spec": spec,
    });
    mutate(server, "subscriptionCreate", "SubscriptionCreateInput", &input).await;
    others
}

/// The subscription whose webhook fails.
fn failing(round: usize) -> String {
    format!("failing-{round}")
}

/// Sends a mutation, which must succeed.
async fn mutate(server: &Server, field: &str, input_type: &str, input: &serde_json::Value) {
    let query = format!(
        "mutation Change($input: {input_type}!) {{ {field}(input: $input) {{ userErrors {{ message }} }} }}"
    );
    let done = reqwest::Client::new()
        .post(format!("{}/graphql", server.url))
        .bearer_auth(TOKEN)
        .json(&json!({ "query": query, "variables": { "input": input } }))
        .send()
        .await
        .expect("the server answers");
    let text = done.text().await.expect("an answer");
    assert!(text.contains("\"userErrors\":[]"), "{text}");
}
