//! Captured, logged, durable: the counters agree, and the log proves that nothing is missing, although
//! the server is killed again and again.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::Value;
use tokio_postgres::Client;

use super::workload;
use crate::support::{Cluster, Server, WAIT, digest, eventually};

/// Changes committed by each writer.
const GOAL: i64 = 4_000;

/// One number out of the registry's database.
async fn number(registry: &Client, expression: &str) -> i64 {
    let sql = format!("SELECT coalesce(({expression})::bigint, 0)");
    registry.query_one(&sql, &[]).await.unwrap().get(0)
}

/// Everything the log holds, line by line.
async fn lines(server: &Server) -> Vec<String> {
    let url = server.at(&format!("{}&after=earliest&until=now", workload::feed_path()));
    let request = server.client().get(url).header("accept", "application/x-ndjson").send();
    let text = request.await.unwrap().text().await.unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The values of a counter, by the name of its source or its number: there is one source.
async fn counter(server: &Server, name: &str) -> Option<u64> {
    let text = server.client().get(server.at("/metrics")).send().await.ok()?.text().await.ok()?;
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_digests_agree_after_every_kill() {
    let cluster = Cluster::start().await;
    let mut server = Server::start(&cluster.url("postgres")).await;
    workload::prepare(&cluster, &server).await;
    let registry = cluster.connect("postgres").await;
    registry.batch_execute("SET search_path = cadastre_registry").await.unwrap();

    let writers = join_all((1..=2).map(|writer| {
        let cluster = &cluster;
        async move {
            let client = cluster.connect_as("shop", "orders_app").await;
            workload::churn(&client, writer, GOAL).await.unwrap();
        }
    }));
    let killer = async {
        for kill in 1..=3 {
            eventually(WAIT, async || {
                let logged = number(&registry, "SELECT sum(changes) FROM log_ends").await;
                (logged >= kill * GOAL / 3).then_some(())
            })
            .await;
            server.kill().await;
            server.restart().await;
        }
    };
    tokio::join!(writers, killer);
    let client = cluster.connect_as("shop", "orders_app").await;
    workload::finish(&client).await;
    let committed: i64 = workload::committed(&client).await.iter().map(|(_, n)| n).sum();

    // Captured: every committed change is in the feed once.
    let is_change = |line: &&String| line.starts_with("{\"op\":");
    let lines = eventually(WAIT, async || {
        let lines = lines(&server).await;
        let changes = lines.iter().filter(is_change).count();
        assert!(changes as i64 <= committed, "{changes} of {committed}");
        (changes as i64 == committed).then_some(lines)
    })
    .await;

    // Logged and durable: by chunk, by day, by dataset, by source.
    let logged = i64::try_from(lines.len()).unwrap();
    for counted in [
        "SELECT sum(changes) FROM log_chunks",
        "SELECT sum(changes) FROM log_parts",
        "SELECT sum(changes) FROM log_days",
        "SELECT sum(changes) FROM log_totals",
        "SELECT sum(changes) FROM log_ends",
    ] {
        eventually(WAIT, async || (number(&registry, counted).await == logged).then_some(())).await;
    }

    // Proved: the server finds its chain unbroken, and the digests are those of the lines.
    let mut by_dataset = BTreeMap::<String, Vec<&str>>::new();
    for line in &lines {
        let event: Value = serde_json::from_str(line).unwrap();
        by_dataset.entry(event["dataset"].as_str().unwrap().to_owned()).or_default().push(line);
    }
    let url = server.at("/v1/sources/shop/proof");
    let text = server.client().get(url).send().await.unwrap().text().await.unwrap();
    let proof: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((proof["ok"].as_bool(), proof["complete"].as_bool()), (Some(true), Some(true)));
    assert_eq!(proof["digest"], digest(lines.iter().map(String::as_str)));
    for of_dataset in proof["datasets"].as_array().unwrap() {
        let lines = &by_dataset[of_dataset["dataset"].as_str().unwrap()];
        assert_eq!(of_dataset["changes"], lines.len(), "{of_dataset}");
        assert_eq!(of_dataset["digest"], digest(lines.iter().copied()), "{of_dataset}");
    }

    // And within a process the metrics say the same.
    client
        .batch_execute("INSERT INTO items SELECT -g, 1 FROM generate_series(2, 101) g")
        .await
        .unwrap();
    eventually(WAIT, async || {
        let captured = counter(&server, "cadastre_capture_changes_total").await?;
        let appended = counter(&server, "cadastre_log_appended_changes_total").await?;
        let durable = counter(&server, "cadastre_log_durable_changes_total").await?;
        (captured >= 100 && captured == appended && appended == durable).then_some(())
    })
    .await;
    let latency = counter(&server, "cadastre_log_commit_to_durable_seconds_count").await;
    assert!(latency.is_some_and(|samples| samples > 0), "{latency:?}");
}
