//! The same promise when Cadastre or PostgreSQL dies in the middle.

use std::time::Duration;

use cadastre::task::Failpoint;
use futures::future::join_all;

use super::{follower, workload};
use crate::support::{Cluster, Server, WAIT, eventually};

/// Changes committed by each writer.
const GOAL: i64 = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_five_times_loses_and_doubles_nothing() {
    let cluster = Cluster::start().await;
    let mut server = Server::start(&cluster.url("postgres")).await;
    workload::prepare(&cluster, &server).await;
    let (following, mut progress) = follower::follow(&server);

    let writers = async {
        join_all((1..=workload::WRITERS).map(|writer| {
            let cluster = &cluster;
            async move {
                let client = cluster.connect_as("shop", "orders_app").await;
                workload::churn(&client, writer, GOAL).await.unwrap();
            }
        }))
        .await;
        let mut client = cluster.connect_as("shop", "orders_app").await;
        workload::bulk_insert(&mut client, 20_000).await;
        workload::finish(&client).await;
        client
    };
    let killer = async {
        for kill in 1..=5 {
            let seen = progress.wait_for(|seen| *seen >= kill * 15_000);
            tokio::time::timeout(Duration::from_secs(120), seen)
                .await
                .expect("the follower must make progress")
                .expect("the follower must be running");
            server.kill().await;
            server.restart().await;
        }
    };
    let (client, ()) = tokio::join!(writers, killer);

    let follower = following.await.unwrap();
    assert!(follower.connections > 5, "{} connections", follower.connections);
    follower.assert_equals(&workload::contents(&client).await, &workload::committed(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_between_any_two_steps_loses_and_doubles_nothing() {
    let cluster = Cluster::start().await;
    let mut server = Server::start(&cluster.url("postgres")).await;
    workload::prepare(&cluster, &server).await;
    let (following, _) = follower::follow(&server);

    let mut client = cluster.connect_as("shop", "orders_app").await;
    for point in
        [Failpoint::CaptureBeforeAppend, Failpoint::LogBeforeDurable, Failpoint::LogAfterDurable]
    {
        server.kill().await;
        // More than one step of the log, so that it dies in the middle of what is to be captured.
        workload::bulk_insert(&mut client, 20_000).await;
        workload::churn(&client, 1, 1_000).await.unwrap();
        server.restart_to_die_at(point, 2).await;
        server.restart().await;
    }
    workload::finish(&client).await;

    let follower = following.await.unwrap();
    follower.assert_equals(&workload::contents(&client).await, &workload::committed(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_stopped_at_once_in_the_middle_is_said_and_survived() {
    let cluster = Cluster::durable().await;
    let server = Server::start(&cluster.url("postgres")).await;
    workload::prepare(&cluster, &server).await;
    let (following, mut progress) = follower::follow(&server);

    let writers = join_all((1..=workload::WRITERS).map(|writer| {
        let cluster = &cluster;
        async move {
            let client = cluster.connect_as("shop", "orders_app").await;
            // Cut off in the middle; what it committed is in the tally.
            assert!(workload::churn(&client, writer, 1_000_000).await.is_err());
        }
    }));
    let crash = async {
        progress.wait_for(|seen| *seen >= 20_000).await.unwrap();
        cluster.stop_immediate().await;
        // Said, with the reason, for as long as it lasts.
        let reason = eventually(WAIT, async || {
            let response = server.client().get(server.at("/readyz")).send().await.ok()?;
            let status = response.status();
            let body = response.text().await.ok()?;
            (status == 503 && body.contains("shop")).then_some(body)
        })
        .await;
        assert!(reason.contains("failing"), "{reason}");
        cluster.start_again().await;
    };
    tokio::join!(writers, crash);
    eventually(WAIT, async || {
        let response = server.client().get(server.at("/readyz")).send().await.ok()?;
        (response.status() == 200).then_some(())
    })
    .await;

    let client = cluster.connect_as("shop", "orders_app").await;
    workload::churn(&client, 1, GOAL).await.unwrap();
    workload::finish(&client).await;
    let follower = following.await.unwrap();
    follower.assert_equals(&workload::contents(&client).await, &workload::committed(&client).await);
}
