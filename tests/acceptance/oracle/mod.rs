//! Random schema, random transactions, random faults: whatever happens, a subscriber that applies
//! what it is told has what PostgreSQL has.
//!
//! One seed settles schema, transactions, faults and the subscriber's own cuts; timing is left to
//! the machine. A failure says its seed: `CADASTRE_ORACLE_SEED=7 cargo nextest run oracle` runs it
//! again, `CADASTRE_ORACLE_SECONDS=600` runs one seed after the other for that long.

#![expect(clippy::print_stderr, reason = "a failing seed has to be seen")]

mod schema;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cadastre::task::Failpoint;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Cluster, Copy, Plan, Proxy, Server, Subscriber, WAIT, Weather};
use schema::Schema;

/// Runs this one seed.
const SEED: &str = "CADASTRE_ORACLE_SEED";
/// Runs seeds for this many seconds.
const SECONDS: &str = "CADASTRE_ORACLE_SECONDS";
/// The seeds of every run of the tests.
const SEEDS: [u64; 2] = [1, 2];
/// Rows of each table before anything begins: some chunks.
const ROWS: usize = 700;
/// Rows of a chunk.
const CHUNK_ROWS: &str = "90";
/// Transactions that each writer commits.
const TRANSACTIONS: usize = 120;
/// Writers at the same time.
const WRITERS: u64 = 3;
/// Faults in one run.
const FAULTS: usize = 3;
/// Longest for a subscriber to have caught up after everything.
const CATCH_UP: Duration = Duration::from_secs(90);

/// Places to die at that every change passes.
const DEATHS: [Failpoint; 3] =
    [Failpoint::CaptureBeforeAppend, Failpoint::LogBeforeDurable, Failpoint::LogAfterDurable];

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The server dies.
    Kill,
    /// The server dies, and again at this place of its next life.
    Die(Failpoint),
    /// PostgreSQL is stopped as if it had crashed.
    Crash,
    /// The source's network does this for a while.
    Network(Weather),
}

impl Fault {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..6) {
            0 => Self::Kill,
            1 | 2 => Self::Die(DEATHS[random.random_range(0..DEATHS.len())]),
            3 => Self::Crash,
            _ => Self::Network(
                [Weather::Cut, Weather::Stalled, Weather::Dripping][random.random_range(0..3)],
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_a_subscriber_has_what_postgresql_has() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}: expected a number")))
    };
    if let Some(seed) = number(SEED) {
        return run(seed).await;
    }
    let Some(seconds) = number(SECONDS) else {
        for seed in SEEDS {
            run(seed).await;
        }
        return;
    };
    let begun = Instant::now();
    let mut seed = rand::random_range(1_000..1_000_000);
    while begun.elapsed() < Duration::from_secs(seconds) {
        run(seed).await;
        seed += 1;
    }
}

/// Everything that one seed settles.
async fn run(seed: u64) {
    eprintln!("oracle: {SEED}={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let schema = Schema::random(&mut random);
    let cluster = Cluster::start().await;
    cluster.create_database("cadastre").await;
    cluster.create_database("shop").await;
    let admin = cluster.connect("shop").await;
    schema.create(&admin, ROWS).await;
    let proxy = Proxy::start(cluster.socket()).await;
    let settings = ["--snapshot-chunk-rows", CHUNK_ROWS, "--silence", "5s", "--backoff", "1s"];
    let mut server = Server::start_with(&cluster.url("cadastre"), &settings).await;
    govern(&server, &proxy, &schema).await;

    let mut plan = Plan {
        datasets: schema.datasets(),
        after: "snapshot",
        cut_after_max: Some(600),
        seed: seed ^ 0xC0,
    };
    let mut cut = Subscriber::start(&server, plan.clone());
    (plan.cut_after_max, plan.seed) = (None, seed);
    let mut steady = Subscriber::start(&server, plan);

    let enough = AtomicBool::new(false);
    let writers = join_all((0..WRITERS).map(|writer| {
        writer::write(&cluster, &schema, seed * 1_000 + writer, TRANSACTIONS, &enough)
    }));
    let faults = async {
        for _ in 0..FAULTS {
            let before = steady.with(Copy::events);
            let more = |copy: &Copy| copy.events() > before + 500;
            steady.until(CATCH_UP, "progress between faults", more).await;
            strike(Fault::random(&mut random), &cluster, &proxy, &mut server).await;
        }
        enough.store(true, Ordering::Relaxed);
    };
    tokio::join!(writers, faults);

    let admin = cluster.connect("shop").await;
    admin.batch_execute("INSERT INTO ends VALUES (1)").await.expect("write the end");
    let expected = schema.contents(&admin).await;
    for subscriber in [&mut steady, &mut cut] {
        let datasets = schema.datasets();
        let ended = |copy: &Copy| {
            copy.done.len() == datasets.len()
                && copy.tables.get("shop.public.ends").is_some_and(|rows| rows.len() == 1)
        };
        subscriber.until(CATCH_UP, "the end", ended).await;
        subscriber.must_have(&expected).await;
        eprintln!("oracle: {}", subscriber.summary());
    }
    assert_eq!(steady.with(|copy| copy.count("gap")), 0, "nothing of this breaks continuity");
    assert_eq!(steady.with(|copy| copy.count("410")), 0, "the log keeps all of this");
}

/// Puts all tables under the ownership of one service.
async fn govern(server: &Server, proxy: &Proxy, schema: &Schema) {
    let datasets = schema.datasets();
    let declared =
        datasets.keys().map(|name| format!("  {name}: {{ owner: orders, mode: enforce }}\n"));
    let manifest = format!(
        "apiVersion: cadastre/v1\nsources:\n  shop: {{ url: \"{}\" }}\nservices:\n  \
         orders: {{ roles: {{ shop: [orders_app] }} }}\ndatasets:\n{}",
        proxy.url("shop"),
        declared.collect::<String>()
    );
    let request = server.client().post(server.at("/v1/manifest/apply"));
    let request = request.header("content-type", "application/yaml").body(manifest);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap_or_default());
}

/// Lets one thing go wrong, and then be right again.
async fn strike(fault: Fault, cluster: &Cluster, proxy: &Proxy, server: &mut Server) {
    eprintln!("oracle: {fault:?}");
    match fault {
        Fault::Kill => {
            server.kill().await;
            server.restart().await;
        }
        Fault::Die(point) => {
            server.kill().await;
            server.restart_to_die_at(point, 2).await;
            server.restart().await;
        }
        Fault::Crash => {
            cluster.stop_immediate().await;
            cluster.start_again().await;
        }
        Fault::Network(weather) => {
            proxy.set(weather);
            let failing = async || {
                let response = server.client().get(server.at("/readyz")).send().await.ok()?;
                (response.status() == 503).then_some(())
            };
            // Drops may be too few to be noticed, and then pass unnoticed.
            let _ = tokio::time::timeout(
                Duration::from_secs(3),
                crate::support::eventually(WAIT, failing),
            )
            .await;
            proxy.set(Weather::Fair);
        }
    }
}
