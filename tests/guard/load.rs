//! Installing, changing and uninstalling under load: owners write as fast as they can while a
//! transaction holds the table for long. Nobody waits behind the guard for longer than its own lock
//! timeout, and the guard gets its lock by trying again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinHandle;

use super::Shop;
use crate::support::{Server, WAIT, eventually};

/// How long the guard asks for a lock at a time.
const GUARD: &str = "100ms";
/// What PostgreSQL allows a writer to wait for its lock: the guard's turn and what a busy machine
/// adds. Behind a guard that waits for the long transaction it would not be enough.
const WRITER: &str = "5s";
/// Turns in which the guard must be seen to wait before the long transaction ends.
const TURNS: usize = 4;
/// A new slot is one turn: it waits for open transactions, and nobody waits for it.
const SLOT: usize = 1;
/// Sessions that write.
const WRITERS: usize = 4;

/// Writers at work.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    async fn begin(shop: &Shop) -> Self {
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
                while !stop.load(Ordering::Relaxed) {
                    session.execute(&insert, &[]).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, written, writers }
    }

    /// Runs `change` while a transaction of the owner holds the table, which ends once the guard was
    /// seen to wait in several turns; writers write before, during and after.
    async fn during(&self, shop: &Shop, wanted: usize, change: impl Future<Output = ()>) {
        self.progress().await;
        let mut slow = shop.session("orders_app").await;
        let held = slow.transaction().await.unwrap();
        held.execute("INSERT INTO busy DEFAULT VALUES", &[]).await.unwrap();
        let watch = shop.cluster.connect("shop").await;
        let release = async move {
            let turns = std::cell::RefCell::new(std::collections::BTreeSet::new());
            eventually(WAIT, async || {
                // Each attempt is a transaction of its own.
                let waiting = watch
                    .query(
                        "SELECT xact_start::text FROM pg_stat_activity
                         WHERE application_name = 'cadastre guard' AND wait_event_type = 'Lock'",
                        &[],
                    )
                    .await
                    .unwrap();
                let mut turns = turns.borrow_mut();
                turns.extend(waiting.iter().map(|row| row.get::<_, String>(0)));
                (turns.len() >= wanted).then_some(())
            })
            .await;
            self.progress().await;
            held.commit().await.unwrap();
        };
        tokio::join!(change, release);
        self.progress().await;
    }

    /// Waits until every writer is likely to have had a turn.
    async fn progress(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually(WAIT, async || {
            let written = self.written.load(Ordering::Relaxed) - before;
            (written >= 20 * WRITERS as u64).then_some(())
        })
        .await;
    }

    async fn end(self) -> u64 {
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
    let shop = Shop { server, cluster };
    let before = shop.catalog().await;
    let manifest = |table: &str, mode: &str| {
        format!(
            "apiVersion: cadastre/v1\n{}services:\n  orders: {{ roles: {{ shop: [orders_app] }} }}\n\
             datasets:\n  shop.public.{table}: {{ owner: orders, mode: {mode} }}\n",
            shop.source()
        )
    };
    let load = Load::begin(&shop).await;
    for (table, mode, turns) in
        [("quiet", "observe", SLOT), ("busy", "observe", TURNS), ("busy", "enforce", TURNS)]
    {
        let change = async {
            let (status, answer) = shop.apply(&manifest(table, mode)).await;
            assert_eq!(status, 200, "{table} {mode}: {answer}");
        };
        load.during(&shop, turns, change).await;
    }
    let uninstall = async {
        let said = super::uninstall::mutate(&shop.server, super::uninstall::UNINSTALL).await;
        assert_eq!(said.unwrap(), Vec::<String>::new());
    };
    load.during(&shop, TURNS, uninstall).await;
    let written = load.end().await;
    assert_eq!(shop.catalog().await, before);
    let kept = superuser.query_one("SELECT count(*) FROM busy", &[]).await.unwrap();
    assert_eq!(kept.get::<_, i64>(0).cast_unsigned(), written + 4, "no accepted write is missing");
}
