//! NATS JetStream, with the real server.

use std::collections::BTreeSet;
use std::process::Stdio;

use async_nats::jetstream;
use async_nats::jetstream::context::GetStreamErrorKind;
use cadastre::task::Failpoint;
use futures::StreamExt;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Shop;
use crate::support::{WAIT, eventually};

/// A `nats-server` with JetStream; it ends with the test.
pub(super) struct NatsServer {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl NatsServer {
    pub(super) async fn start() -> Self {
        // Free now; only another test that is as unlucky could take it in between.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(&dir, port);
        let server = Self { dir, port, child };
        server.context().await;
        server
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// JetStream as a client sees it, once it answers.
    async fn context(&self) -> jetstream::Context {
        eventually(WAIT, async || {
            let client = async_nats::connect(self.url()).await.ok()?;
            let context = jetstream::new(client);
            let missing = context.get_stream("NONE").await.err()?;
            matches!(missing.kind(), GetStreamErrorKind::JetStream(_)).then_some(context)
        })
        .await
    }

    async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    async fn start_again(&mut self) {
        self.child = spawn(&self.dir, self.port);
        self.context().await;
    }

    /// The events in a stream, in its order.
    pub(super) async fn events(&self, stream: &str) -> Vec<serde_json::Value> {
        let Ok(stream) = self.context().await.get_stream(stream).await else { return Vec::new() };
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        let mut events = Vec::new();
        for _ in 0..stream.cached_info().state.messages {
            let message = messages.next().await.unwrap().unwrap();
            events.push(serde_json::from_slice(&message.payload).unwrap());
        }
        events
    }

    /// The positions and ids in a stream, in its order.
    async fn messages(&self, stream: &str) -> Vec<(String, String, i64)> {
        let Ok(stream) = self.context().await.get_stream(stream).await else { return Vec::new() };
        let state = stream.cached_info().state.clone();
        let mut messages = Vec::new();
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let event: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            let id = message.headers.get("Nats-Msg-Id").unwrap().to_string();
            assert_eq!(event["position"], json!(id), "the id is the position");
            messages.push((
                message.subject.to_string(),
                id,
                event["after"]["id"].as_i64().unwrap(),
            ));
        }
        messages
    }
}

fn spawn(dir: &TempDir, port: u16) -> Child {
    // Debian keeps it where only root's PATH leads.
    let debian = std::path::Path::new("/usr/sbin/nats-server");
    let program = if debian.exists() { debian } else { std::path::Path::new("nats-server") };
    Command::new(program)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("start nats-server: scripts/setup installs it")
}

#[tokio::test]
async fn a_stream_gets_every_change_once_through_crashes_of_both_sides() {
    let mut nats = NatsServer::start().await;
    let mut shop = Shop::with_env(&[("CADASTRE_DELIVERY_HOLD", "500ms")]).await;
    let spec = json!({
        "deliver": { "nats": {
            "url": nats.url(), "stream": "SHOP", "subject": "changes", "timeout": "1s"
        } },
        "retry": { "initial": "20ms", "max": "200ms" },
    });
    shop.subscribe("stream", spec).await;
    let delivered = async |shop: &Shop, count: u64| {
        eventually(WAIT * 2, async || {
            let status = shop.status("stream").await;
            (status["counts"]["delivered"] == count).then_some(status)
        })
        .await
    };
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 50) n").await;
    delivered(&shop, 50).await;

    // The server dies in the middle; what is written meanwhile waits.
    nats.kill().await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(51, 100) n").await;
    eventually(WAIT, async || shop.status("stream").await["trouble"].as_str().map(drop)).await;
    nats.start_again().await;
    let status = delivered(&shop, 100).await;
    assert_eq!(status["counts"]["reconcile"], true, "{status}");

    // This side dies: with the changes chosen, with them acknowledged, with that about to be written.
    let steps =
        [Failpoint::DeliverBeforeSend, Failpoint::DeliverAfterSend, Failpoint::DeliverBeforeCursor];
    for (to, step) in [150_u64, 200, 250].into_iter().zip(steps) {
        shop.server.kill().await;
        let rows = format!("SELECT n, 'open' FROM generate_series({}, {to}) n", to - 49);
        shop.write(&format!("INSERT INTO orders {rows}")).await;
        shop.server.restart_to_die_at(step, 1).await;
        shop.server.restart().await;
        delivered(&shop, to).await;
    }

    let messages = nats.messages("SHOP").await;
    let ids: BTreeSet<&str> = messages.iter().map(|(_, id, _)| id.as_str()).collect();
    assert_eq!((messages.len(), ids.len()), (250, 250), "each once");
    assert!(messages.iter().all(|(subject, ..)| subject == "changes.shop.public.orders"));
    let rows: Vec<i64> = messages.iter().map(|(.., row)| *row).collect();
    assert_eq!(rows, (1..=250).collect::<Vec<_>>(), "in order");
}

#[tokio::test]
async fn a_change_that_the_stream_cannot_take_is_parked_and_all_others_arrive_once() {
    let nats = NatsServer::start().await;
    let shop = Shop::open().await;
    let spec = json!({
        "deliver": { "nats": { "url": nats.url(), "stream": "SHOP" } },
        "retry": { "maxAttempts": 2, "initial": "5ms", "max": "5ms", "onPark": "pass" },
    });
    shop.subscribe("stream", spec).await;
    // The server takes messages of up to 1 MiB.
    shop.write(
        "INSERT INTO orders SELECT n, CASE n WHEN 6 THEN repeat('x', 1100000) ELSE 'open' END
         FROM generate_series(1, 10) n",
    )
    .await;
    let status = eventually(WAIT, async || {
        let status = shop.status("stream").await;
        let counts = &status["counts"];
        (counts["delivered"] == 9 && counts["parked"] == 1).then_some(status)
    })
    .await;
    assert_eq!(status["counts"]["reconcile"], true, "{status}");
    assert_eq!(status["breaker"], "closed", "the stream is not to blame: {status}");
    let letters = shop.get("stream", "dead-letters").await;
    assert_eq!(letters["dead_letters"][0]["change"]["after"]["id"], 6);
    let mut rows: Vec<i64> = nats.messages("SHOP").await.into_iter().map(|(.., row)| row).collect();
    rows.sort_unstable();
    assert_eq!(rows, [1, 2, 3, 4, 5, 7, 8, 9, 10], "each once");
}

#[tokio::test]
async fn a_stream_that_takes_other_subjects_is_refused_with_what_it_takes() {
    let nats = NatsServer::start().await;
    let shop = Shop::open().await;
    let config = jetstream::stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["elsewhere.>".to_owned()],
        ..Default::default()
    };
    nats.context().await.create_stream(config).await.unwrap();
    let spec = json!({ "deliver": { "nats": { "url": nats.url(), "stream": "OTHER" } } });
    shop.subscribe("stream", spec).await;
    shop.write("INSERT INTO orders VALUES (1, 'open')").await;
    let trouble = eventually(WAIT, async || {
        shop.status("stream").await["trouble"].as_str().map(str::to_owned)
    })
    .await;
    assert!(trouble.contains("takes elsewhere.>, not cadastre.>"), "{trouble}");
}
