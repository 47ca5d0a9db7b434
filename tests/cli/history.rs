//! `history` and `verify`: what happened, and whether the log of it is whole.

use super::{Ran, cadastre, governed_shop};
use crate::support::{WAIT, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_a_row_is_printed_and_the_log_is_shown_to_be_whole() {
    let (cluster, server) = governed_shop().await;
    let orders = cluster.connect_as("shop", "orders_app").await;
    let story =
        "INSERT INTO orders VALUES (1), (2); UPDATE orders SET status = 'paid' WHERE id = 2;
                 DELETE FROM orders WHERE id = 2";
    orders.batch_execute(story).await.unwrap();
    let history = async |more: &[&str]| {
        let args = [&["history", "shop.public.orders"], more].concat();
        let printed = cadastre(&server, &args).await.exited(0).stdout;
        let events = printed.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let events: Vec<serde_json::Value> = events.collect();
        events.iter().filter_map(|event| event["op"].as_str()).collect::<String>()
    };
    eventually(WAIT, async || (history(&[]).await == "ccud").then_some(())).await;
    assert_eq!(history(&["--key", "2"]).await, "cud");
    assert_eq!(history(&["--key", "{\"id\":1}"]).await, "c");
    let Ran { stderr, .. } =
        cadastre(&server, &["history", "shop.public.orders", "--from", "monday"]).await.exited(2);
    assert!(stderr.contains("2026-11-26T10:00:00Z"), "{stderr}");
    let args = ["tail", "shop.public.orders", "--after", "2026-01-01T00:00:00Z", "--count", "1"];
    let first = cadastre(&server, &args).await.exited(0).stdout;
    assert_eq!(first.lines().count(), 1, "{first}");

    let report = eventually(WAIT, async || {
        let report = cadastre(&server, &["verify", "shop"]).await.exited(0).stdout;
        report.contains("shop.public.orders  ").then_some(report)
    })
    .await;
    assert!(report.contains("whole: "), "{report}");
    let registry = cluster.connect("cadastre").await;
    registry.batch_execute("DELETE FROM cadastre_registry.log_chunks").await.unwrap();
    let report = cadastre(&server, &["verify", "shop"]).await.exited(1).stdout;
    assert!(report.contains("BROKEN: after"), "{report}");
    let json = ["verify", "shop", "--format", "json"];
    let report = cadastre(&server, &json).await.exited(1).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("a JSON document");
    assert_eq!(report["ok"], false);
}
