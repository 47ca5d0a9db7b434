//! A stock client, as users have it: it goes on where it was when the connection is cut.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{ORDERS, Shop};
use crate::support::{ADMIN_TOKEN, WAIT};

/// The `graphql-ws` package; its user subscribes again after the last position.
const GRAPHQL_WS: &str = "
const { createClient } = require('graphql-ws');
const [url, token, dataset] = process.argv.slice(1);
const client = createClient({
    url: url.replace('http', 'ws'),
    webSocketImpl: require('ws'),
    connectionParams: { Authorization: `Bearer ${token}` },
    retryAttempts: 0,
});
const query = `subscription Follow($datasets: [String!]!, $after: String) {
    changes(datasets: $datasets, after: $after) { position event } }`;
(async () => {
    let after = 'earliest';
    for (;;) {
        try {
            const variables = { datasets: [dataset], after };
            for await (const { data } of client.iterate({ query, variables })) {
                after = data.changes.position;
                console.log(JSON.stringify(data.changes.event));
            }
        } catch (cut) {
            await new Promise((again) => setTimeout(again, 100));
        }
    }
})();
";

/// A client in Node.js that prints the events it gets, a line each.
struct Client {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    async fn start(program: &str, args: &[&str]) -> Self {
        let home = packages().await;
        let mut child = Command::new("node")
            .args(["-e", program, "--"])
            .args(args)
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, lines }
    }

    /// The ids of the next rows.
    async fn next(&mut self, count: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = tokio::time::timeout(WAIT, self.lines.next_line()).await;
            let line = line.expect("an event in time").unwrap().expect("the client goes on");
            let event: Value = serde_json::from_str(&line).unwrap();
            ids.push(event["after"]["id"].as_i64().unwrap());
        }
        ids
    }
}

/// Where the packages are, installed once.
async fn packages() -> PathBuf {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients");
    std::fs::create_dir_all(&home).unwrap();
    let lock = std::fs::File::create(home.join("lock")).unwrap();
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
    let _lock = lock.unwrap().unwrap();
    if !home.join("installed").exists() {
        let wanted = ["graphql-ws@6.4.2", "graphql@16", "ws@8.23.0"];
        let npm = Command::new("npm")
            .args(["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"])
            .args(["--prefix", home.to_str().unwrap()])
            .args(wanted)
            .output();
        let done = npm.await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::write(home.join("installed"), "").unwrap();
    }
    home
}

async fn insert(shop: &Shop, from: i64, to: i64) {
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    let insert = "INSERT INTO orders SELECT n, 'open' FROM generate_series($1::bigint, $2) n";
    orders.execute(insert, &[&from, &to]).await.unwrap();
}

/// Cuts every connection twice, and checks that each row arrives once and in order.
async fn cut_twice(shop: &mut Shop, mut client: Client) {
    assert_eq!(client.next(5).await, [1, 2, 3, 4, 5]);
    shop.server.kill().await;
    insert(shop, 6, 10).await;
    shop.server.restart().await;
    assert_eq!(client.next(5).await, [6, 7, 8, 9, 10]);
    assert!(shop.server.terminate().await.success());
    shop.server.restart().await;
    insert(shop, 11, 15).await;
    assert_eq!(client.next(5).await, [11, 12, 13, 14, 15]);
}

#[tokio::test]
async fn a_stock_graphql_ws_client_goes_on_where_it_was() {
    let mut shop = Shop::declared().await;
    insert(&shop, 1, 5).await;
    let url = shop.server.at("/graphql");
    let client = Client::start(GRAPHQL_WS, &[&url, ADMIN_TOKEN, ORDERS]).await;
    cut_twice(&mut shop, client).await;
}
