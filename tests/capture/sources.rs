//! Three sources in one process: one that hangs and one that is misconfigured are reported as such,
//! and the third does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixStream};

use crate::support::{Cluster, Server, WAIT, eventually};

/// A way to a cluster that can turn into a hole: what comes in then is taken and never answered.
struct Way {
    port: u16,
    swallows: Arc<AtomicBool>,
}

impl Way {
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    async fn to(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let swallows = Arc::new(AtomicBool::new(false));
        let (socket, hole) = (cluster.socket_dir().join(".s.PGSQL.5432"), Arc::clone(&swallows));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (socket, hole) = (socket.clone(), Arc::clone(&hole));
                tokio::spawn(async move {
                    let swallowed = async {
                        while !hole.load(Ordering::Relaxed) {
                            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        }
                    };
                    if !hole.load(Ordering::Relaxed)
                        && let Ok(mut server) = UnixStream::connect(socket).await
                    {
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
                            () = swallowed => {}
                        }
                    }
                    // Held open, and silent.
                    std::future::pending::<()>().await;
                    drop(client);
                });
            }
        });
        Self { port, swallows }
    }
}

async fn graphql(server: &Server, query: &str) -> Value {
    let request = server.client().post(server.at("/graphql")).json(&json!({ "query": query }));
    let answer = tokio::time::timeout(WAIT, request.send()).await.expect("an answer in time");
    answer.unwrap().json().await.unwrap()
}

/// The ids of the orders in the feed of a dataset, once there are `count`.
async fn orders(server: &Server, count: usize) -> Vec<i64> {
    use futures::StreamExt;
    let feed = server.at("/v1/feed?datasets=shop.public.orders&after=earliest");
    let request = server.client().get(feed).header("accept", "application/x-ndjson");
    let mut body = request.send().await.unwrap().bytes_stream();
    let (mut text, mut ids) = (String::new(), Vec::new());
    let deadline = tokio::time::Instant::now() + WAIT;
    while ids.len() < count {
        let bytes = tokio::time::timeout_at(deadline, body.next()).await.expect("changes in time");
        text.push_str(std::str::from_utf8(&bytes.unwrap().unwrap()).unwrap());
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        ids = events.filter_map(|event| event["after"]["id"].as_i64()).collect();
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_and_one_that_is_wrong_touch_no_other() {
    let cluster = Cluster::start().await;
    cluster.connect("postgres").await.batch_execute("CREATE ROLE orders_app LOGIN").await.unwrap();
    for database in ["registry", "shop", "hole", "wrong"] {
        cluster.create_database(database).await;
        let table = "CREATE TABLE orders (id bigint PRIMARY KEY);
                     ALTER TABLE orders OWNER TO orders_app";
        cluster.connect(database).await.batch_execute(table).await.unwrap();
    }
    let way = Way::to(&cluster).await;
    let patience = [
        ["--heartbeat", "100ms"],
        ["--heartbeat-deadline", "3s"],
        ["--connect-timeout", "3s"],
        ["--silence", "5s"],
        ["--statement-timeout", "5s"],
        ["--guard-patience", "3s"],
    ];
    let patience = patience.as_flattened();
    let server = Server::start_with(&cluster.url("registry"), patience).await;
    let hole = format!("postgresql://postgres@127.0.0.1:{}/hole?sslmode=disable", way.port);
    // One after the other: guards of one cluster share its roles.
    for (source, url) in
        [("shop", cluster.url("shop")), ("hole", hole), ("wrong", cluster.url("wrong"))]
    {
        let manifest = format!(
            "apiVersion: cadastre/v1
sources: {{ {source}: {{ url: \"{url}\" }} }}
services: {{ {source}-app: {{ roles: {{ {source}: [orders_app] }} }} }}
datasets: {{ {source}.public.orders: {{ owner: {source}-app, mode: enforce }} }}
"
        );
        let apply = server.client().post(server.at("/v1/manifest/apply")).body(manifest);
        let answer = apply.header("content-type", "application/yaml").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
    eventually(WAIT, async || {
        let response = server.client().get(server.at("/readyz")).send().await.ok()?;
        (response.status() == 200).then_some(())
    })
    .await;
    let owner = cluster.connect_as("shop", "orders_app").await;
    owner.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    assert_eq!(orders(&server, 1).await, [1]);

    way.swallows.store(true, Ordering::Relaxed);
    let admin = cluster.connect("postgres").await;
    let shut = "ALTER DATABASE wrong ALLOW_CONNECTIONS false;
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'wrong'";
    admin.batch_execute(shut).await.unwrap();

    // Each is reported with its own reason, and the third streams.
    let status = eventually(WAIT, async || {
        let answer = graphql(&server, "{ sources { name status { state reason } } }").await;
        let sources = answer["data"]["sources"].as_array()?.clone();
        let find = |name: &str| sources.iter().find(|source| source["name"] == name).cloned();
        let (hole, wrong) = (find("hole")?["status"].clone(), find("wrong")?["status"].clone());
        let told = ["STALLED", "FAILING"].contains(&hole["state"].as_str()?)
            && wrong["state"] == "FAILING"
            && wrong["reason"].as_str()?.contains("not currently accepting connections");
        told.then(|| (find("shop"), hole))
    })
    .await;
    assert_eq!(status.0.unwrap()["status"], json!({"state": "STREAMING", "reason": null}));
    let response = server.client().get(server.at("/readyz")).send().await.unwrap();
    assert_eq!(response.status(), 503);
    let ready: Value = response.json().await.unwrap();
    let reasons: Vec<&str> =
        ready["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].starts_with("source \"hole\": "), "{reasons:?}");
    assert!(reasons[1].starts_with("source \"wrong\": "), "{reasons:?}");

    // It delivers, and can be governed anew, several times over, as if the others were not there.
    for (id, mode) in (2..).zip(["OBSERVE", "ENFORCE", "OBSERVE", "ENFORCE"]) {
        owner.batch_execute(&format!("INSERT INTO orders VALUES ({id})")).await.unwrap();
        let set = format!(
            "mutation {{ datasetSetMode(input: {{dataset: \"shop.public.orders\", mode: {mode}}}) {{
                dataset {{ mode guard {{ state }} }} userErrors {{ message }} }} }}"
        );
        let answer = graphql(&server, &set).await;
        let set = &answer["data"]["datasetSetMode"];
        assert_eq!(set["userErrors"], json!([]), "{answer}");
        assert_eq!(
            set["dataset"],
            json!({"mode": mode, "guard": {"state": "INSTALLED"}}),
            "{answer}"
        );
    }
    assert_eq!(orders(&server, 5).await, [1, 2, 3, 4, 5]);
    // What concerns the one that hangs fails in its time, with its name.
    let other =
        "mutation { datasetSetMode(input: {dataset: \"hole.public.orders\", mode: OBSERVE}) {
        dataset { name } userErrors { message } } }";
    let answer = graphql(&server, other).await;
    assert!(answer.to_string().contains("hole"), "{answer}");

    // Both come back by themselves.
    way.swallows.store(false, Ordering::Relaxed);
    admin.batch_execute("ALTER DATABASE wrong ALLOW_CONNECTIONS true").await.unwrap();
    eventually(WAIT * 3, async || {
        let response = server.client().get(server.at("/readyz")).send().await.ok()?;
        (response.status() == 200).then_some(())
    })
    .await;
}
