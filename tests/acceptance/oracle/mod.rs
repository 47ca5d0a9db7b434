//! Random schema, random transactions, random faults: whatever happens, a subscriber that applies
//! what it is told has what PostgreSQL has.
//!
//! One seed settles schema, transactions, faults and the subscriber's own cuts; timing is left to
//! the machine. Some faults that lose nothing come first: nobody may notice. Then one that no slot
//! survives: the gap is announced, once, and who begins anew as it asks has everything again.
//!
//! A failure says its seed: `make soak SEED=7` runs it again, `make soak` runs one seed after the
//! other.

#![expect(clippy::print_stderr, reason = "a failing seed has to be seen")]

mod fault;
mod schema;
mod stage;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::support::{Copy, Plan, Subscriber};
use fault::Fault;
use schema::Schema;
use stage::Stage;

/// Runs this one seed.
const SEED: &str = "CADASTRE_ORACLE_SEED";
/// Runs seeds for this many seconds.
const SECONDS: &str = "CADASTRE_ORACLE_SECONDS";
/// The seeds of every run of the tests: both ways to break continuity.
const SEEDS: [u64; 2] = [1, 2];
/// Rows of each table before anything begins: some chunks.
const ROWS: usize = 700;
/// Transactions that each writer commits.
const TRANSACTIONS: usize = 120;
/// Writers at the same time.
const WRITERS: u64 = 3;
/// Faults in one run that lose nothing.
const FAULTS: usize = 3;
/// Longest for a subscriber to have caught up after everything.
const CATCH_UP: Duration = Duration::from_secs(90);

/// Says which seed it was when the test fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("oracle: `make soak SEED={}` runs this again", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_a_subscriber_has_what_postgresql_has() {
    let number = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
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
    eprintln!("oracle: seed {seed}");
    let _replay = Replay(seed);
    let mut random = StdRng::seed_from_u64(seed);
    let schema = Schema::random(&mut random);
    let mut stage = Stage::new(schema.clone(), ROWS).await;

    let mut plan = Plan {
        datasets: schema.datasets(),
        after: "snapshot",
        cut_after_max: Some(600),
        seed: seed ^ 0xC0,
    };
    let mut cut = Subscriber::start(&stage.server, plan.clone());
    (plan.cut_after_max, plan.seed) = (None, seed);
    let mut steady = Subscriber::start(&stage.server, plan);

    let source = stage.source();
    let enough = AtomicBool::new(false);
    let writers = join_all((0..WRITERS).map(|writer| {
        writer::write(&source, &schema, seed * 1_000 + writer, TRANSACTIONS, &enough)
    }));
    let faults = async {
        let mut faults: Vec<_> = (0..FAULTS).map(|_| Fault::random(&mut random)).collect();
        faults.push(Fault::gap(seed));
        for fault in faults {
            let before = steady.with(Copy::events);
            let more = |copy: &Copy| copy.events() > before + 500;
            steady.until(CATCH_UP, "progress between faults", more).await;
            eprintln!("oracle: {fault:?}");
            stage.strike(fault).await;
        }
        enough.store(true, Ordering::Relaxed);
    };
    tokio::join!(writers, faults);

    let admin = source.now().connect("shop").await;
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
        assert_eq!(subscriber.with(|copy| copy.count("gap")), 1, "one fault breaks continuity");
        assert_eq!(subscriber.with(|copy| copy.count("410")), 0, "the log keeps all of this");
    }
}
