//! Installing, changing and uninstalling under load: owners write while a transaction holds the table
//! for long. Nobody waits behind the guard for longer than its own lock timeout, and the guard gets its
//! lock by trying again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinHandle;
use tokio::time::Duration;

use super::Shop;
use crate::support::{Server, WAIT, eventually};

/// How long the guard asks for a lock at a time.
const GUARD: &str = "100ms";
/// What PostgreSQL allows a writer to wait for its lock: the guard's turn and what a busy machine
/// adds. Behind a guard that waits for the long transaction it would not be enough.
const WRITER: &str = "5s";
/// Turns in which the guard must be seen to wait before the long transaction ends.
const TURNS: usize = 4;
/// How long it is open, in seconds.
const LONG: u32 = 30;
/// Sessions that write.
const WRITERS: u32 = 4;
/// Writes in a second that are offered, all sessions together: more than one machine may keep up with.
const OFFERED: u32 = 2_000;

/// Writers at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to write the table `busy`, as `orders_app`.
    pub(super) async fn begin(shop: &Shop) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let session = shop.session("orders_app").await;
            session
                .batch_execute(&format!(
                    "SET lock_timeout = '{WRITER}'; SET synchronous_commit = off"
                ))
                .await
                .unwrap();
            let insert = session.prepare("INSERT INTO busy DEFAULT VALUES").await.unwrap();
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            #[expect(clippy::disallowed_methods, reason = "joined at the end of the test")]
            writers.push(tokio::spawn(async move {
                // Missed ticks are made up for, as waiting requests would be.
                let mut turn = tokio::time::interval(Duration::from_secs(1) * WRITERS / OFFERED);
                while !stop.load(Ordering::Relaxed) {
                    turn.tick().await;
                    session.execute(&insert, &[]).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, written, writers }
    }

    /// Runs `change` while a transaction of the owner holds the table for long, and returns in how many
    /// turns the guard was seen to wait for it; writers write before, during and after.
    async fn during(&self, shop: &Shop, change: impl Future<Output = ()>) -> usize {
        self.progress().await;
        let mut slow = shop.session("orders_app").await;
        let held = slow.transaction().await.unwrap();
        held.execute("INSERT INTO busy DEFAULT VALUES", &[]).await.unwrap();
        let (over, watch) = (AtomicBool::new(false), shop.cluster.connect("shop").await);
        let hold = async {
            held.batch_execute(&format!("SELECT pg_sleep({LONG})")).await.unwrap();
            over.store(true, Ordering::Relaxed);
            held.commit().await.unwrap();
        };
        let seen = async {
            let mut turns = BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                // Each attempt is a transaction of its own.
                watch.batch_execute("SELECT pg_sleep(0.02)").await.unwrap();
                let sql = "SELECT xact_start::text FROM pg_stat_activity
                    WHERE application_name = 'cadastre guard' AND wait_event_type = 'Lock'";
                let waiting = watch.query(sql, &[]).await.unwrap();
                turns.extend(waiting.iter().map(|row| row.get::<_, String>(0)));
            }
            turns.len()
        };
        let (turns, (), ()) = tokio::join!(seen, hold, change);
        self.progress().await;
        turns
    }

    /// Waits until every writer is likely to have had a turn.
    async fn progress(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually(WAIT, async || {
            let written = self.written.load(Ordering::Relaxed) - before;
            (written >= 20 * u64::from(WRITERS)).then_some(())
        })
        .await;
    }

    /// Ends it; how many rows were written.
    pub(super) async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.expect("no writer ever waited too long or was rejected");
        }
        self.written.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_come_change_and_go_under_load_and_nobody_waits_for_a_long_transaction() {
    let cluster = crate::support::Cluster::start().await;
    for database in ["registry", "shop"] {
        cluster.create_database(database).await;
    }
    let superuser = cluster.connect("shop").await;
    superuser
        .batch_execute(
            "CREATE ROLE orders_app LOGIN; CREATE TABLE busy (id bigserial PRIMARY KEY);
             ALTER TABLE busy OWNER TO orders_app; CREATE TABLE quiet (id int PRIMARY KEY)",
        )
        .await
        .unwrap();
    let args = ["--guard-lock-timeout", GUARD, "--guard-patience", "120s"];
    let server = Server::start_with(&cluster.url("registry"), &args).await;
    let shop = Shop { server, cluster, role: "postgres" };
    let before = shop.catalog().await;
    let manifest = |table: &str, mode: &str| {
        format!(
            "apiVersion: cadastre/v1\n{}services:\n  orders: {{ roles: {{ shop: [orders_app] }} }}\n\
             datasets:\n  shop.public.{table}: {{ owner: orders, mode: {mode} }}\n",
            shop.source()
        )
    };
    let load = Load::begin(&shop).await;
    // The slot waits for transactions that are open, and nobody waits for it: it comes first.
    assert_eq!(shop.apply(&manifest("quiet", "observe")).await.0, 200);
    for mode in ["observe", "enforce"] {
        let change = async {
            let (status, answer) = shop.apply(&manifest("busy", mode)).await;
            assert_eq!(status, 200, "{mode}: {answer}");
        };
        let turns = load.during(&shop, change).await;
        assert!(turns >= TURNS, "{mode}: {turns}");
    }
    let uninstall = async {
        let said = super::uninstall::mutate(&shop.server, super::uninstall::UNINSTALL).await;
        assert_eq!(said.unwrap(), Vec::<String>::new());
    };
    let turns = load.during(&shop, uninstall).await;
    assert!(turns >= TURNS, "uninstall: {turns}");
    let written = load.end().await;
    assert_eq!(shop.catalog().await, before);
    let kept = superuser.query_one("SELECT count(*) FROM busy", &[]).await.unwrap();
    assert_eq!(kept.get::<_, i64>(0).cast_unsigned(), written + 3, "no accepted write is missing");
}
