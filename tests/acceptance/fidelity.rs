//! A subscriber that applies the feed has the table.

use futures::future::join_all;

use super::{follower, workload};
use crate::support::{Cluster, Server};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_mixed_changes_arrive_exactly_once_in_order() {
    let cluster = Cluster::start().await;
    let server = Server::start(&cluster.url("postgres")).await;
    workload::prepare(&cluster, &server).await;
    let (following, _) = follower::follow(&server);

    let mut bulk = cluster.connect_as("shop", "orders_app").await;
    let writers = (1..=workload::WRITERS).map(|writer| {
        let cluster = &cluster;
        async move {
            let client = cluster.connect_as("shop", "orders_app").await;
            workload::churn(&client, writer, 25_000).await.unwrap();
        }
    });
    tokio::join!(join_all(writers), workload::bulk_insert(&mut bulk, 100_000));
    workload::finish(&bulk).await;

    let follower = following.await.unwrap();
    let committed = workload::committed(&bulk).await;
    assert!(committed.iter().map(|(_, n)| n).sum::<i64>() >= 200_000);
    assert!(
        committed.iter().any(|(op, _)| *op == 't'),
        "the workload must truncate: {committed:?}"
    );
    follower.assert_equals(&workload::contents(&bulk).await, &committed);
}
