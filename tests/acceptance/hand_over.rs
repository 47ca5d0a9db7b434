//! Hand-over: at every instant one service can write, and the feed agrees with what was accepted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cadastre::task::Failpoint;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Cluster, Server, WAIT, eventually};

const DATASET: &str = "shop.public.ledger";

/// How often the dataset passes under load.
const HAND_OVERS: u64 = 50;

/// The two services; a role of each is named after it.
const SERVICES: [&str; 2] = ["orders", "billing"];

const SETUP: &str = "
    CREATE ROLE orders_app LOGIN;
    CREATE ROLE billing_app LOGIN;
    CREATE TABLE ledger (id bigint PRIMARY KEY, service text NOT NULL);
    CREATE SEQUENCE ids;
    GRANT ALL ON ledger, ids TO orders_app, billing_app;
";

/// A shop whose ledger is the service orders'.
async fn shop(cluster: &Cluster, env: &[(&str, &str)]) -> Server {
    cluster.create_database("registry").await;
    cluster.create_database("shop").await;
    cluster.connect("shop").await.batch_execute(SETUP).await.unwrap();
    let server = Server::start_with_env(&cluster.url("registry"), &[], env).await;
    let manifest = format!(
        "apiVersion: cadastre/v1\nsources: {{ shop: {{ url: \"{}\" }} }}\n\
         services:\n  orders: {{ roles: {{ shop: [orders_app] }} }}\n  \
         billing: {{ roles: {{ shop: [billing_app] }} }}\n\
         datasets: {{ {DATASET}: {{ owner: orders, mode: enforce }} }}\n",
        cluster.url("shop")
    );
    let apply = server.client().post(server.at("/v1/manifest/apply")).body(manifest);
    let applied = apply.header("content-type", "application/yaml").send().await.unwrap();
    assert_eq!(applied.status(), 200, "{}", applied.text().await.unwrap());
    server
}

async fn graphql(server: &Server, query: String) -> Option<Value> {
    let request = server.client().post(server.at("/graphql")).json(&json!({ "query": query }));
    request.send().await.ok()?.json().await.ok()
}

/// Proposes that the ledger pass to `to`; the transfer's id.
async fn propose(server: &Server, to: &str) -> String {
    let query = format!(
        "mutation {{ ownershipTransferPropose(input: {{dataset: \"{DATASET}\", to: \"{to}\",
            reason: \"by turns\"}}) {{ transfer {{ id }} userErrors {{ message }} }} }}"
    );
    let answer = graphql(server, query).await.unwrap();
    let id = &answer["data"]["ownershipTransferPropose"]["transfer"]["id"];
    id.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn accept(id: &str) -> String {
    format!(
        "mutation {{ ownershipTransferAccept(input: {{id: \"{id}\"}}) {{
            transfer {{ state }} userErrors {{ message }} }} }}"
    )
}

/// Events of the ledger's feed, from the beginning.
struct Feed {
    response: reqwest::Response,
    text: String,
}

impl Feed {
    async fn open(server: &Server) -> Self {
        let url = server.at(&format!("/v1/feed?datasets={DATASET}&after=earliest"));
        let request = server.client().get(url).header("accept", "application/x-ndjson");
        Self { response: request.send().await.unwrap(), text: String::new() }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.text.find('\n') {
                let line: String = self.text.drain(..=end).collect();
                if line.trim().is_empty() {
                    continue;
                }
                return serde_json::from_str(&line).unwrap();
            }
            let chunk = tokio::time::timeout(WAIT, self.response.chunk()).await;
            let chunk = chunk.expect("the feed goes on").unwrap().expect("the feed is open");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

/// Writes as fast as it can, one transaction of two rows after the other, until told to stop: the
/// ids that were accepted.
async fn write(
    mut client: Client,
    service: &str,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Vec<i64> {
    let mut accepted = Vec::new();
    let insert = "INSERT INTO ledger VALUES (nextval('ids'), $1) RETURNING id";
    while !stop.load(Ordering::Relaxed) {
        let written = async {
            let transaction = client.transaction().await?;
            let one: i64 = transaction.query_one(insert, &[&service]).await?.get(0);
            let two: i64 = transaction.query_one(insert, &[&service]).await?.get(0);
            transaction.commit().await?;
            Ok::<_, tokio_postgres::Error>([one, two])
        };
        match written.await {
            Ok(ids) => {
                accepted.extend(ids);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
                assert_eq!(error.code().code(), "42501", "{error:?}");
                assert!(error.message().contains("is owned by service"), "{error:?}");
            }
        }
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_writing_through_fifty_hand_overs_never_write_at_the_same_time() {
    let cluster = Cluster::start().await;
    let server = shop(&cluster, &[]).await;
    let mut feed = Feed::open(&server).await;
    let stop = Arc::new(AtomicBool::new(false));
    let counts = SERVICES.map(|_| Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for (service, count) in SERVICES.into_iter().zip(&counts) {
        let client = cluster.connect_as("shop", &format!("{service}_app")).await;
        let (stop, count) = (Arc::clone(&stop), Arc::clone(count));
        #[expect(clippy::disallowed_methods, reason = "joined below")]
        writers.push(tokio::spawn(async move { write(client, service, &stop, &count).await }));
    }
    let mut ids = Vec::new();
    for turn in 0..HAND_OVERS {
        let (owner, next) = ((turn % 2) as usize, ((turn + 1) % 2) as usize);
        let before = counts[owner].load(Ordering::Relaxed);
        let wrote = async || (counts[owner].load(Ordering::Relaxed) > before).then_some(());
        eventually(WAIT, wrote).await;
        let id = propose(&server, SERVICES[next]).await;
        let answer = graphql(&server, accept(&id)).await.unwrap();
        let state = &answer["data"]["ownershipTransferAccept"]["transfer"]["state"];
        assert_eq!(state, "COMPLETED", "{answer}");
        ids.push(id);
    }
    let last = (HAND_OVERS % 2) as usize;
    let before = counts[last].load(Ordering::Relaxed);
    eventually(WAIT, async || (counts[last].load(Ordering::Relaxed) > before).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let mut accepted = BTreeMap::new();
    for (service, writer) in SERVICES.into_iter().zip(writers) {
        accepted.extend(writer.await.unwrap().into_iter().map(|id| (id, service.to_owned())));
    }
    let end = cluster.connect_as("shop", &format!("{}_app", SERVICES[last])).await;
    end.execute("INSERT INTO ledger VALUES (-1, $1)", &[&SERVICES[last]]).await.unwrap();

    let (mut owner, mut seen, mut passed) = (SERVICES[0].to_owned(), BTreeMap::new(), Vec::new());
    loop {
        let event = feed.next().await;
        if event["event"] == "ownership" {
            let change = &event["ownership"];
            assert_eq!(change["from"], json!(owner), "{event}");
            passed.push(change["transfer"].as_str().unwrap().to_owned());
            change["to"].as_str().unwrap().clone_into(&mut owner);
            continue;
        }
        assert_eq!(event["writer"]["service"], json!(owner), "{event}");
        assert_eq!(event["writer"]["verified"], true, "{event}");
        assert_eq!(event["after"]["service"], json!(owner), "{event}");
        let id = event["after"]["id"].as_i64().unwrap();
        if id == -1 {
            break;
        }
        assert!(seen.insert(id, owner.clone()).is_none(), "twice: {event}");
    }
    assert_eq!(passed, ids, "every hand-over is in the feed, once, in order");
    assert!(seen == accepted, "{} seen, {} accepted", seen.len(), accepted.len());
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) > 0));
}

/// Whether this role may write now.
async fn may_write(cluster: &Cluster, service: &str, id: i64) -> bool {
    let client = cluster.connect_as("shop", &format!("{service}_app")).await;
    let written = client.execute("INSERT INTO ledger VALUES ($1, $2)", &[&id, &service]).await;
    if let Err(error) = &written {
        assert_eq!(error.code().unwrap().code(), "42501", "{error:?}");
    }
    written.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_cut_short_by_a_crash_is_taken_back_or_completed_and_told_as_it_was() {
    // Of the six steps of a change, as Governor::apply takes them: the new guard waits in the source and
    // the registry does not know of it; the registry has committed, the source has not; both have.
    for (step, completed) in [(3, false), (4, true), (6, true)] {
        let point = format!("step {step}");
        let cluster = Cluster::start().await;
        // The manifest takes all of them once, the hand-over is the second.
        let failpoint = format!("{}={}", Failpoint::GuardApply.name(), 6 + step);
        let mut server = shop(&cluster, &[("CADASTRE_FAILPOINTS", &failpoint)]).await;
        let id = propose(&server, "billing").await;
        assert!(graphql(&server, accept(&id)).await.is_none(), "{point}: the server dies");
        server.kill().await;

        // Exactly one of them can write, as the source has it.
        let switched = step == 6;
        eventually(WAIT, async || {
            // The source takes back what was not committed once it notices that the server is gone.
            let open = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'cadastre guard'";
            let client = cluster.connect("shop").await;
            client.query_opt(open, &[]).await.unwrap().is_none().then_some(())
        })
        .await;
        assert_eq!(may_write(&cluster, "billing", 1).await, switched, "{point}");
        assert_eq!(may_write(&cluster, "orders", 2).await, !switched, "{point}");

        server.restart().await;
        let query = format!(
            "{{ dataset(name: \"{DATASET}\") {{ owner {{ name }} guard {{ state }} }}
                transfers {{ nodes {{ state }} }} }}"
        );
        let owner = if completed { "billing" } else { "orders" };
        let state = if completed { "COMPLETED" } else { "PROPOSED" };
        eventually(WAIT, async || {
            let answer = graphql(&server, query.clone()).await?;
            let expected = json!({"dataset": {"owner": {"name": owner}, "guard": {"state": "INSTALLED"}},
                "transfers": {"nodes": [{"state": state}]}});
            (answer["data"] == expected).then_some(())
        })
        .await;
        assert_eq!(may_write(&cluster, "billing", 3).await, completed, "{point}");
        assert_eq!(may_write(&cluster, "orders", 4).await, !completed, "{point}");

        let mut feed = Feed::open(&server).await;
        let mut told = Vec::new();
        while told.len() < if completed { 3 } else { 2 } {
            let event = feed.next().await;
            if event["event"] == "ownership" {
                let change = &event["ownership"];
                assert_eq!(change["transfer"], json!(id), "{point}: {event}");
                assert_eq!(change["reason"], "by turns", "{point}: {event}");
                told.push(format!("{} to {}", change["from"], change["to"]).replace('"', ""));
            } else {
                assert_eq!(event["writer"]["service"], event["after"]["service"], "{event}");
                told.push(
                    format!("{} {}", event["after"]["service"], event["after"]["id"])
                        .replace('"', ""),
                );
            }
        }
        let expected: &[&str] = match step {
            3 => &["orders 2", "orders 4"],
            4 => &["orders 2", "orders to billing", "billing 3"],
            _ => &["orders to billing", "billing 1", "billing 3"],
        };
        assert_eq!(told, expected, "{point}");
    }
}
