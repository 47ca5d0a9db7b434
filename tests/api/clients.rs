//! Stock clients, as users have them, and the consumers of `examples/`: they go on where they were
//! when the connection is cut, and the consumers also when they themselves are.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{ORDERS, Shop};
use crate::support::{ADMIN_TOKEN, WAIT, cadastre_bin, eventually};

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

/// A client that prints the events it gets, a line each.
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Of the last event.
    position: String,
}

impl Client {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, position: String::new() }
    }

    /// The ids of the next rows.
    async fn next(&mut self, count: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = tokio::time::timeout(WAIT, self.lines.next_line()).await;
            let line = line.expect("an event in time").unwrap().expect("the client goes on");
            let event: Value = serde_json::from_str(&line).unwrap();
            event["position"].as_str().unwrap().clone_into(&mut self.position);
            // How far a snapshot is, is no row.
            if event.get("op").is_some() {
                ids.push(event["after"]["id"].as_i64().unwrap());
            }
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
    let wanted = ["graphql-ws@6.4.2", "graphql@16", "ws@8.23.0", "eventsource@4.1.0"];
    let installed = std::fs::read_to_string(home.join("installed")).unwrap_or_default();
    if installed != wanted.join(" ") {
        let npm = Command::new("npm")
            .args(["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"])
            .args(["--prefix", home.to_str().unwrap()])
            .args(wanted)
            .output();
        let done = npm.await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::write(home.join("installed"), wanted.join(" ")).unwrap();
    }
    home
}

async fn insert(shop: &Shop, from: i64, to: i64) {
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    let insert = "INSERT INTO orders SELECT n, 'open' FROM generate_series($1::bigint, $2) n";
    orders.execute(insert, &[&from, &to]).await.unwrap();
}

/// Cuts every connection twice, and checks that each row arrives once and in order.
async fn cut_twice(shop: &mut Shop, client: &mut Client) {
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

/// The same of a consumer, which is then killed itself and goes on from the position it has kept.
async fn cut_every_way(consumer: impl Fn(&Path) -> Command) {
    let mut shop = Shop::declared().await;
    insert(&shop, 1, 5).await;
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("position.txt");
    let start = |shop: &Shop| {
        let mut command = consumer(dir.path());
        command.env("CADASTRE_URL", shop.server.url()).env("CADASTRE_TOKEN", ADMIN_TOKEN);
        Client::start(command.args([ORDERS, kept.to_str().unwrap()]))
    };
    let mut first = start(&shop);
    cut_twice(&mut shop, &mut first).await;
    let has_kept = async || {
        let text = std::fs::read_to_string(&kept).ok()?;
        (text == first.position).then_some(())
    };
    eventually(WAIT, has_kept).await;
    first.child.kill().await.unwrap();
    insert(&shop, 16, 20).await;
    let mut second = start(&shop);
    assert_eq!(second.next(5).await, [16, 17, 18, 19, 20]);
}

/// A file of the example consumers.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumers").join(name)
}

#[tokio::test]
async fn a_stock_graphql_ws_client_goes_on_where_it_was() {
    let mut shop = Shop::declared().await;
    insert(&shop, 1, 5).await;
    let url = shop.server.at("/graphql");
    let mut command = Command::new("node");
    command.args(["-e", GRAPHQL_WS, "--", &url, ADMIN_TOKEN, ORDERS]);
    let mut client = Client::start(command.current_dir(packages().await));
    cut_twice(&mut shop, &mut client).await;
}

#[tokio::test]
async fn a_stock_event_source_goes_on_where_it_was_and_so_does_its_consumer() {
    let packages = packages().await;
    cut_every_way(|dir| {
        for name in ["follow.mjs", "node.mjs"] {
            std::fs::copy(example(name), dir.join(name)).unwrap();
        }
        // Where Node.js looks for packages of a program in this directory.
        let _again =
            std::os::unix::fs::symlink(packages.join("node_modules"), dir.join("node_modules"));
        let mut command = Command::new("node");
        command.arg(dir.join("node.mjs"));
        command
    })
    .await;
}

#[tokio::test]
async fn the_consumer_in_python_goes_on_where_it_was() {
    cut_every_way(|_| {
        let mut command = Command::new("python3");
        command.arg(example("follow.py"));
        command
    })
    .await;
}

#[tokio::test]
async fn the_consumer_in_rust_goes_on_where_it_was() {
    let programs = cadastre_bin().parent().unwrap();
    cut_every_way(|_| Command::new(programs.join("examples/follow"))).await;
}
