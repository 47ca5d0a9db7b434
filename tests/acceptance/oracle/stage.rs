//! What the oracle plays on: a source behind a network, a registry elsewhere, and a server between.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::fault::{Fault, Victim};
use super::schema::Schema;
use crate::support::{Cluster, Proxy, Server, WAIT, Weather, eventually};

/// Rows of a chunk, and deadlines short enough for a test: a source that idles is not silent.
const SETTINGS: [&str; 8] =
    ["--snapshot-chunk-rows", "90", "--heartbeat", "1s", "--silence", "5s", "--backoff", "1s"];
/// Longest that a fault of the network may stay unnoticed.
const UNNOTICED: Duration = Duration::from_secs(3);

/// The cluster of the source: another one once its standby has been promoted.
pub(super) struct Source(Mutex<Arc<Cluster>>);

impl Source {
    /// The cluster that takes writes now.
    pub(super) fn now(&self) -> Arc<Cluster> {
        Arc::clone(&self.0.lock())
    }
}

pub(super) struct Stage {
    source: Arc<Source>,
    pub(super) server: Server,
    registry: Cluster,
    proxy: Proxy,
    schema: Schema,
}

impl Stage {
    /// Everything runs, and all tables are owned by one service.
    pub(super) async fn new(schema: Schema, rows: usize) -> Self {
        let (registry, source) = tokio::join!(Cluster::start(), Cluster::start());
        source.create_database("shop").await;
        schema.create(&source.connect("shop").await, rows).await;
        let proxy = Proxy::start(source.socket()).await;
        let server = Server::start_with(&registry.url("postgres"), &SETTINGS).await;
        let source = Arc::new(Source(Mutex::new(Arc::new(source))));
        let stage = Self { source, server, registry, proxy, schema };
        stage.govern().await;
        stage
    }

    /// The source, which stays the same while its cluster does not.
    pub(super) fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    async fn govern(&self) {
        let datasets = self.schema.datasets();
        let declared =
            datasets.keys().map(|name| format!("  {name}: {{ owner: orders, mode: enforce }}\n"));
        let manifest = format!(
            "apiVersion: cadastre/v1\nsources:\n  shop: {{ url: \"{}\" }}\nservices:\n  \
             orders: {{ roles: {{ shop: [orders_app] }} }}\ndatasets:\n{}",
            self.proxy.url("shop"),
            declared.collect::<String>()
        );
        let request = self.server.client().post(self.server.at("/v1/manifest/apply"));
        let request = request.header("content-type", "application/yaml").body(manifest);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap_or_default());
    }

    /// Lets one thing go wrong, and then be right again.
    pub(super) async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.server.kill().await;
                self.server.restart().await;
            }
            Fault::Die(point) => {
                self.server.kill().await;
                self.server.restart_to_die_at(point, 2).await;
                self.server.restart().await;
            }
            Fault::Crash(victim) => {
                let source = self.source.now();
                let cluster = match victim {
                    Victim::Source => &*source,
                    Victim::Registry => &self.registry,
                };
                cluster.stop_immediate().await;
                cluster.start_again().await;
            }
            Fault::Network(weather) => {
                self.proxy.set(weather);
                let failing = async || {
                    let ready = self.server.client().get(self.server.at("/readyz"));
                    (ready.send().await.ok()?.status() == 503).then_some(())
                };
                // Drops may be too few to be noticed, and then pass unnoticed.
                let _ = tokio::time::timeout(UNNOTICED, eventually(WAIT, failing)).await;
                self.proxy.set(Weather::Fair);
            }
            Fault::SlotDropped => self.drop_slot().await,
            Fault::Promoted => self.promote().await,
        }
    }

    /// The slot goes while nobody streams it, and what is committed then is in no stream.
    async fn drop_slot(&mut self) {
        self.server.kill().await;
        let source = self.source.now();
        let admin = source.connect("shop").await;
        let drop = "SELECT pg_drop_replication_slot('cadastre_shop')";
        // The walsender notices a little later that its client has died.
        eventually(WAIT, async || admin.query(drop, &[]).await.ok()).await;
        let owner = source.connect_as("shop", "orders_app").await;
        owner.batch_execute(&self.schema.tables[0].insert(3)).await.expect("insert some rows");
        self.server.restart().await;
    }

    /// A standby without the slot takes the place of the source, maybe without its last changes.
    async fn promote(&mut self) {
        let old = self.source.now();
        let standby = old.standby(&[]).await;
        let admin = standby.connect("shop").await;
        let streams = "SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        eventually(WAIT, async || admin.query_opt(streams, &[]).await.expect("ask the standby"))
            .await;
        old.stop_immediate().await;
        admin.query("SELECT pg_promote()", &[]).await.expect("promote the standby");
        self.proxy.lead_to(standby.socket());
        *self.source.0.lock() = Arc::new(standby);
    }
}
