//! A slot that vanishes, a database that is put back and one that is replaced by its standby: what
//! is missing is said, and nothing is taken for continuity that is none.

use tokio_postgres::Client;

use super::stage::{FAST, Stage, TABLES, epoch, gap, in_order, orders};
use crate::support::{Cluster, Proxy, Server, WAIT, eventually};

impl Stage {
    /// What the doctor says of standbys.
    async fn standbys_are_waited_for(&self) -> bool {
        let doctor = self.server.client().get(self.server.at("/v1/sources/shop/doctor"));
        let found: serde_json::Value = doctor.send().await.unwrap().json().await.unwrap();
        let needs = found.as_array().unwrap();
        let about = "changes are on every standby before they are captured";
        needs.iter().find(|need| need["check"] == about).unwrap()["ok"] == true
    }
}

/// Drops the slot as soon as nobody streams it.
async fn drop_slot(client: &Client) {
    let terminate = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
    eventually(WAIT, async || {
        client.batch_execute(terminate).await.unwrap();
        client.query("SELECT pg_drop_replication_slot('cadastre_shop')", &[]).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_slot_dropped_under_a_running_server_is_a_gap_and_made_anew() {
    let mut stage = Stage::new(&[("fsync", "off")]).await;
    stage.govern(&stage.source.url("shop")).await;
    let shop = stage.source.connect("shop").await;
    stage.insert(&stage.source, 1..=3).await;
    assert_eq!(orders(&stage.events_until(3).await), [1, 2, 3]);

    let paused = stage.server.pause();
    drop_slot(&shop).await;
    stage.insert(&stage.source, 4..=5).await;
    drop(paused);
    eventually(WAIT, async || {
        shop.query_opt("SELECT FROM pg_replication_slots WHERE active", &[]).await.unwrap()
    })
    .await;
    stage.insert(&stage.source, 6..=6).await;
    let events = stage.events_until(6).await;
    assert_eq!(orders(&events), [1, 2, 3, 6]);
    assert_eq!(gap(&events, "02", "slot_lost"), 3);
    in_order(&events);

    // It is announced once, also when somebody moves the slot while the server is down.
    stage.server.terminate().await;
    stage.insert(&stage.source, 7..=7).await;
    stage.server.restart().await;
    stage.insert(&stage.source, 8..=8).await;
    let events = stage.events_until(8).await;
    assert_eq!(orders(&events), [1, 2, 3, 6, 7, 8]);
    assert_eq!(events.iter().filter(|event| event["event"] == "gap").count(), 2);
    stage.server.terminate().await;
    stage.insert(&stage.source, 9..=9).await;
    let advance = "SELECT pg_replication_slot_advance('cadastre_shop', pg_current_wal_lsn())";
    eventually(WAIT, async || shop.query(advance, &[]).await.ok()).await;
    stage.server.restart().await;
    stage.insert(&stage.source, 10..=10).await;
    let events = stage.events_until(10).await;
    assert_eq!(orders(&events), [1, 2, 3, 6, 7, 8, 10]);
    gap(&events, "03", "slot_lost");
    in_order(&events);
}

#[tokio::test]
async fn a_slot_that_postgresql_gave_up_is_a_gap_and_made_anew() {
    let settings = [
        ("fsync", "off"),
        ("max_slot_wal_keep_size", "1MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "32MB"),
    ];
    let stage = Stage::new(&settings).await;
    stage.govern(&stage.source.url("shop")).await;
    let shop = stage.source.connect("shop").await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;

    let paused = stage.server.pause();
    stage.insert(&stage.source, 3..=3).await;
    eventually(WAIT, async || {
        shop.batch_execute("CREATE TABLE IF NOT EXISTS filler (); DROP TABLE filler")
            .await
            .unwrap();
        shop.query("SELECT pg_switch_wal()", &[]).await.unwrap();
        shop.batch_execute("CHECKPOINT").await.unwrap();
        let lost = "SELECT FROM pg_replication_slots WHERE wal_status = 'lost'";
        shop.query_opt(lost, &[]).await.unwrap()
    })
    .await;
    drop(paused);
    eventually(WAIT, async || {
        shop.query_opt("SELECT FROM pg_replication_slots WHERE active", &[]).await.unwrap()
    })
    .await;
    stage.insert(&stage.source, 4..=4).await;
    let events = stage.events_until(4).await;
    assert_eq!(orders(&events), [1, 2, 4]);
    gap(&events, "02", "slot_lost");
    in_order(&events);
}

#[tokio::test]
async fn a_database_put_back_to_an_older_copy_is_not_taken_for_itself() {
    let stage = Stage::new(&[("fsync", "off")]).await;
    stage.govern(&stage.source.url("shop")).await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;
    let saved = stage.source.save().await;
    stage.ready().await;
    stage.insert(&stage.source, 3..=3_000).await;
    stage.events_until(3_000).await;
    stage.written_down().await;

    // Its WAL ends before what was captured.
    stage.source.restore(&saved).await;
    stage.insert(&stage.source, 5_000..=5_000).await;
    let events = stage.events_until(5_000).await;
    let at = gap(&events, "02", "source_replaced");
    assert_eq!(at, 3_000);
    in_order(&events);
    stage.written_down().await;

    // Again, but this time its WAL has passed that place before anyone looks.
    let paused = stage.server.pause();
    stage.source.restore(&saved).await;
    let rows: Vec<_> = (0..4).map(|step| 6_000 + step * 2_000..=7_999 + step * 2_000).collect();
    for rows in rows {
        stage.insert(&stage.source, rows).await;
    }
    drop(paused);
    stage.insert(&stage.source, 20_000..=20_000).await;
    let events = stage.events_until(20_000).await;
    let at = gap(&events, "03", "source_replaced");
    in_order(&events);
    let after: Vec<i64> = orders(&events[at..]);
    let new: Vec<i64> = (6_000..14_000).chain([20_000]).collect();
    assert!(after.ends_with(&new), "every order since is there: {} of {}", after.len(), new.len());
}

#[tokio::test]
async fn what_a_dead_instance_confirmed_last_arrives_after_the_next_has_looked_at_the_slot() {
    let mut stage = Stage::new(&[]).await;
    let proxy = Proxy::start(stage.source.socket()).await;
    stage.govern(&proxy.url("shop")).await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;
    stage.written_down().await;
    stage.server.kill().await;

    // It died after it had written down what it would confirm, with a heartbeat before it. Its
    // walsender is told only once the next instance has looked at the slot.
    let client = stage.source.connect("shop").await;
    client.batch_execute("CREATE TABLE other ()").await.unwrap();
    let end = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint";
    let confirmed: i64 = client.query_one(end, &[]).await.unwrap().get(0);
    let registry = stage.registry.connect("postgres").await;
    let write_down = "UPDATE cadastre_registry.source_slots
        SET confirmed = $1::bigint, heartbeat_lsn = $1::bigint - 1, heartbeat_id = 'x'";
    assert_eq!(registry.execute(write_down, &[&confirmed]).await.unwrap(), 1);
    proxy.hold("START_REPLICATION");
    stage.server.restart().await;
    proxy.held().await;
    let advance = "SELECT pg_replication_slot_advance('cadastre_shop', ($1::bigint::numeric + '0/0'::pg_lsn))";
    eventually(WAIT, async || client.query_one(advance, &[&confirmed]).await.ok()).await;
    proxy.release();

    stage.insert(&stage.source, 3..=3).await;
    let events = stage.events_until(3).await;
    assert_eq!(orders(&events), [1, 2, 3]);
    assert!(events.iter().all(|event| epoch(event) == "01"), "no gap: {events:?}");
}

#[tokio::test]
async fn a_promoted_standby_goes_on_where_its_slot_does_and_is_a_gap_where_it_has_none() {
    let stage = Stage::new(&[("fsync", "off"), ("wal_sender_timeout", "5s")]).await;
    let primary = &stage.source;
    let admin = primary.connect("shop").await;
    let version = "SELECT current_setting('server_version_num')::int";
    let version: i32 = admin.query_one(version, &[]).await.unwrap().get(0);
    let synced = version >= 170_000;
    admin.query("SELECT pg_create_physical_replication_slot('twin', true)", &[]).await.unwrap();
    let mut settings = vec![("primary_slot_name", "twin"), ("hot_standby_feedback", "on")];
    if synced {
        settings.push(("sync_replication_slots", "on"));
        let wait_for_it = "ALTER SYSTEM SET synchronized_standby_slots = 'twin'";
        admin.batch_execute(wait_for_it).await.unwrap();
        admin.query("SELECT pg_reload_conf()", &[]).await.unwrap();
    }
    drop(admin);
    let standby = primary.standby(&settings).await;
    let (one, two) = (primary.socket_dir(), standby.socket_dir());
    let url = format!("host={},{} user=postgres dbname=shop", one.display(), two.display());
    stage.govern(&url).await;
    stage.insert(primary, 1..=3).await;
    stage.events_until(3).await;
    let twin = standby.connect("shop").await;
    eventually(WAIT, async || {
        // The standby has all, and the slot where there can be one.
        let slot = "SELECT FROM pg_replication_slots
                    WHERE slot_name = 'cadastre_shop' AND to_json(pg_replication_slots)->>'synced' = 'true' AND NOT temporary";
        let slot = !synced || twin.query_opt(slot, &[]).await.unwrap().is_some();
        let rows = twin.query_one("SELECT count(*) FROM orders", &[]).await.unwrap();
        (slot && rows.get::<_, i64>(0) == 3).then_some(())
    })
    .await;

    if synced {
        // Without this, what was captured may be missing on the standby.
        let admin = primary.connect("shop").await;
        assert!(stage.standbys_are_waited_for().await);
        admin.batch_execute("ALTER SYSTEM RESET synchronized_standby_slots").await.unwrap();
        admin.query("SELECT pg_reload_conf()", &[]).await.unwrap();
        eventually(WAIT, async || (!stage.standbys_are_waited_for().await).then_some(())).await;
    }

    primary.stop_immediate().await;
    let refused = eventually(WAIT, async || {
        let response = stage.server.client().get(stage.server.at("/readyz")).send().await.ok()?;
        let body = response.text().await.ok()?;
        body.contains("the server is a standby").then_some(body)
    })
    .await;
    assert!(refused.contains("not ready"), "{refused}");
    twin.query("SELECT pg_promote()", &[]).await.unwrap();
    if synced {
        // The standby it is to wait for was itself.
        twin.batch_execute("ALTER SYSTEM RESET synchronized_standby_slots").await.unwrap();
        twin.query("SELECT pg_reload_conf()", &[]).await.unwrap();
    }
    stage.insert(&standby, 4..=4).await;
    stage.ready().await;
    stage.insert(&standby, 5..=5).await;
    let events = stage.events_until(5).await;
    in_order(&events);
    if synced {
        assert_eq!(orders(&events), [1, 2, 3, 4, 5]);
        assert!(events.iter().all(|event| epoch(event) == "01"), "{events:?}");
    } else {
        let at = gap(&events, "02", "slot_lost");
        assert_eq!(at, 3);
        assert!(orders(&events).ends_with(&[5]));
    }
}

#[tokio::test]
async fn a_source_that_keeps_too_much_wal_is_said_and_protected_as_declared() {
    let registry = Cluster::start().await;
    let source = Cluster::start().await;
    source.create_database("shop").await;
    source.connect("shop").await.batch_execute(TABLES).await.unwrap();
    let policy = ["--wal-budget", "40MiB", "--wal-policy", "drop-slot"];
    let args = [&FAST[..], &policy[..]].concat();
    let server = Server::start_with(&registry.url("postgres"), &args).await;
    let stage = Stage { registry, source, server };
    stage.govern(&stage.source.url("shop")).await;
    stage.insert(&stage.source, 1..=2).await;
    stage.events_until(2).await;

    // Nothing can be confirmed while the log cannot be written.
    stage.registry.stop_immediate().await;
    let shop = stage.source.connect("shop").await;
    shop.batch_execute("CREATE TABLE filler (n int)").await.unwrap();
    for _ in 0..4 {
        shop.batch_execute("INSERT INTO filler VALUES (1)").await.unwrap();
        shop.query("SELECT pg_switch_wal()", &[]).await.unwrap();
    }
    let slots = "SELECT count(*) FROM pg_replication_slots";
    eventually(WAIT, async || {
        let left: i64 = shop.query_one(slots, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
    let log = stage.server.log();
    assert!(log.contains("of at most 41943040 bytes of WAL"), "{log}");
    stage.registry.start_again().await;
    stage.ready().await;
    stage.insert(&stage.source, 3..=3).await;
    let events = stage.events_until(3).await;
    assert_eq!(orders(&events), [1, 2, 3]);
    gap(&events, "02", "slot_lost");
}

#[tokio::test]
async fn a_slot_that_waits_for_a_transaction_says_for_whose() {
    let (registry, source) = tokio::join!(Cluster::start(), Cluster::start());
    source.create_database("shop").await;
    source.connect("shop").await.batch_execute(TABLES).await.unwrap();
    let args = [&FAST[..], &["--statement-timeout", "2s", "--guard-patience", "1s"]].concat();
    let server = Server::start_with(&registry.url("postgres"), &args).await;
    let stage = Stage { registry, source, server };
    let idle = stage.source.connect("shop").await;
    idle.batch_execute("BEGIN; INSERT INTO quiet VALUES (1)").await.unwrap();
    let pid: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let manifest = format!(
        "apiVersion: cadastre/v1
sources: {{ shop: {{ url: \"{}\" }} }}
services: {{ orders: {{ roles: {{ shop: [orders_app] }} }} }}
datasets: {{ shop.public.orders: {{ owner: orders, mode: enforce }} }}
",
        stage.source.url("shop")
    );
    let apply = stage.server.client().post(stage.server.at("/v1/manifest/apply")).body(manifest);
    let answer = apply.header("content-type", "application/yaml").send().await.unwrap();
    assert_eq!(answer.status(), 503);
    eventually(WAIT, async || {
        let log = stage.server.log();
        log.contains(&format!("cannot be made: blocked by pid {pid} of role postgres"))
            .then_some(())
    })
    .await;
}
