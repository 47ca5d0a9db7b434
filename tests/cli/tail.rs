//! `tail`: the feed on standard output.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::{Ran, cadastre, governed_shop};
use crate::support::{Server, WAIT};

/// A running `tail` from the earliest change on.
fn start(server: &Server, more: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = server.command();
    command.args(["tail", "shop.public.orders", "--after", "earliest"]).args(more);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start tail");
    let stdout = child.stdout.take().expect("its output is piped");
    (child, BufReader::new(stdout).lines())
}

/// The status it ends with, in time.
async fn ended(child: &mut Child) -> Option<i32> {
    let status = tokio::time::timeout(WAIT, child.wait()).await.expect("tail ends in time");
    status.expect("wait for tail").code()
}

/// The key of the next change's row.
async fn next_id(lines: &mut Lines<BufReader<ChildStdout>>) -> i64 {
    let line = tokio::time::timeout(WAIT, lines.next_line()).await.expect("a change in time");
    let line = line.expect("read").expect("one more line");
    let change: serde_json::Value = serde_json::from_str(&line).expect("a JSON object");
    change["after"]["id"].as_i64().expect("a row with an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_changes_are_printed_as_asked_for() {
    let (cluster, server) = governed_shop().await;
    let orders = cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1), (2), (3)").await.unwrap();
    let args = ["tail", "shop.public.orders", "--after", "earliest", "--count", "2"];
    let first = cadastre(&server, &args).await.exited(0).stdout;
    let changes: Vec<serde_json::Value> =
        first.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0]["writer"]["service"], "orders");

    let position = changes[1]["position"].as_str().unwrap();
    let args = ["tail", "shop.public.orders", "--after", position, "--count", "1"];
    let rest = cadastre(&server, &args).await.exited(0).stdout;
    assert!(rest.contains("\"id\":3") && rest.lines().count() == 1, "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_returns_leaves_no_gap_and_no_double() {
    let (cluster, mut server) = governed_shop().await;
    let (mut child, mut lines) = start(&server, &["--count", "2"]);
    let orders = cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    assert_eq!(next_id(&mut lines).await, 1);
    server.kill().await;
    orders.batch_execute("INSERT INTO orders VALUES (2)").await.unwrap();
    server.restart().await;
    assert_eq!(next_id(&mut lines).await, 2);
    assert_eq!(ended(&mut child).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_it_well() {
    let (cluster, server) = governed_shop().await;
    let (mut child, mut lines) = start(&server, &[]);
    let orders = cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    assert_eq!(next_id(&mut lines).await, 1);
    let pid = child.id().expect("it runs");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(ended(&mut child).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_ends_it_quietly() {
    let (cluster, server) = governed_shop().await;
    let (mut child, mut lines) = start(&server, &[]);
    let orders = cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    assert_eq!(next_id(&mut lines).await, 1);
    drop(lines);
    orders.batch_execute("INSERT INTO orders VALUES (2)").await.unwrap();
    assert_eq!(ended(&mut child).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_is_said() {
    let (_cluster, server) = governed_shop().await;
    let Ran { stderr, .. } = cadastre(&server, &["tail", "shop.public.none"]).await.exited(1);
    assert!(stderr.contains("shop.public.none"), "{stderr}");
    let args = ["tail", "shop.public.orders", "--after", "yesterday"];
    let Ran { stderr, .. } = cadastre(&server, &args).await.exited(2);
    assert!(stderr.contains("earliest"), "{stderr}");
}
