//! The private PostgreSQL: made, started, stopped, found again after a crash.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cadastre::embedded::{Error, Options, PrivatePostgres};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio_postgres::{Client, NoTls};

use crate::support::{Cluster, WAIT, data_dir, eventually};

/// Options for a data directory, without syncs.
fn options(data_dir: &Path) -> Options {
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    Options { data_dir: data_dir.to_owned(), bin_dir: None, port: None, settings }
}

/// A session over `url`.
async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connect");
    #[expect(clippy::disallowed_methods, reason = "ends with the client")]
    tokio::spawn(connection);
    client
}

/// A server on the cluster that nobody holds any more, as after `kill -9` of its starter. Its data
/// survive it, so the starter ends it first, with the lock, and it is then started by hand.
async fn abandoned(cluster: &Cluster) -> Child {
    cluster.stop_immediate().await;
    let dir = cluster.data_dir().join("postgres");
    let owner = dir.metadata().unwrap();
    let mut command = Command::new(cluster.bin_dir().join("postgres"));
    command.arg("-D").arg(&dir).arg("-k").arg(cluster.data_dir().join("socket"));
    command.args(["-c", "listen_addresses="]).current_dir("/").stderr(Stdio::null());
    if nix::unistd::Uid::effective().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let server = command.spawn().unwrap();
    let url = cluster.url("postgres");
    let answers = || async { tokio_postgres::connect(&url, NoTls).await.ok().map(drop) };
    eventually(WAIT, answers).await;
    server
}

/// One value as text.
async fn value(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.expect("query").get(0)
}

#[tokio::test]
async fn a_cluster_is_made_started_stopped_and_found_again() {
    let dir = data_dir();
    let data_dir = dir.path().join("made/for/it");
    let postgres = PrivatePostgres::start(options(&data_dir)).await.unwrap();
    let client = connect(&postgres.url("postgres")).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 'yes'::text AS it").await.unwrap();
    assert_eq!(value(&client, "SHOW wal_level").await, "logical");
    assert_eq!(value(&client, "SHOW listen_addresses").await, "");
    assert_eq!(value(&client, "SHOW server_encoding").await, "UTF8");
    assert!(postgres.bin_dir().join("initdb").exists());
    assert!(postgres.socket_dir().is_dir());
    postgres.stop().await.unwrap();

    let log = std::fs::read_to_string(data_dir.join("postgres.log")).unwrap();
    assert!(log.contains("database system is shut down"), "{log}");
    let postgres = PrivatePostgres::start(options(&data_dir)).await.unwrap();
    let client = connect(&postgres.url("postgres")).await;
    assert_eq!(value(&client, "SELECT it FROM kept").await, "yes");
}

#[tokio::test]
async fn creating_a_database_twice_is_no_error() {
    let dir = data_dir();
    let postgres = PrivatePostgres::start(options(dir.path())).await.unwrap();
    postgres.create_database("it's \"odd\"").await.unwrap();
    postgres.create_database("it's \"odd\"").await.unwrap();
    let client = connect(&postgres.url("it's \"odd\"")).await;
    assert_eq!(value(&client, "SELECT current_database()::text").await, "it's \"odd\"");
}

#[tokio::test]
async fn a_server_left_behind_by_a_killed_process_is_stopped_and_its_commits_kept() {
    let cluster = Cluster::durable().await;
    let data_dir = cluster.data_dir().to_owned();
    let client = cluster.connect("postgres").await;
    client.batch_execute("CREATE TABLE kept AS SELECT 'yes'::text AS it").await.unwrap();
    let mut old = abandoned(&cluster).await;
    let postgres = PrivatePostgres::start(options(&data_dir)).await.unwrap();
    assert!(old.try_wait().unwrap().unwrap().success(), "it was asked to stop");
    let client = connect(&postgres.url("postgres")).await;
    assert_eq!(value(&client, "SELECT it FROM kept").await, "yes");
}

#[tokio::test]
async fn a_server_killed_together_with_its_starter_recovers() {
    let cluster = Cluster::durable().await;
    let data_dir = cluster.data_dir().to_owned();
    let client = cluster.connect("postgres").await;
    client.batch_execute("CREATE TABLE kept AS SELECT 'yes'::text AS it").await.unwrap();
    let mut old = abandoned(&cluster).await;
    old.kill().unwrap();
    old.wait().unwrap();
    let postgres = PrivatePostgres::start(options(&data_dir)).await.unwrap();
    let client = connect(&postgres.url("postgres")).await;
    assert_eq!(value(&client, "SELECT it FROM kept").await, "yes");
}

#[tokio::test]
async fn the_process_id_of_a_stranger_in_the_pid_file_is_left_alone() {
    let cluster = Cluster::start().await;
    cluster.stop_immediate().await;
    let stranger = Command::new("sleep").arg("60").spawn();
    let mut stranger = stranger.unwrap();
    let pid_file = cluster.data_dir().join("postgres/postmaster.pid");
    std::fs::write(&pid_file, format!("{}\n/elsewhere\n", stranger.id())).unwrap();
    cluster.start_again().await;
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let error = PrivatePostgres::start(options(cluster.data_dir())).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(cluster.data_dir().to_str().unwrap()), "{message}");
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
    assert_eq!(value(&cluster.connect("postgres").await, "SELECT 'fine'").await, "fine");
}

#[tokio::test]
async fn an_interrupted_initdb_is_started_over() {
    let dir = data_dir();
    let unfinished = dir.path().join("postgres.new");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("PG_VERSION"), "15\n").unwrap();
    let postgres = PrivatePostgres::start(options(dir.path())).await.unwrap();
    connect(&postgres.url("postgres")).await;
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn the_loopback_port_asks_for_the_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = data_dir();
    let options = Options { port: Some(free), ..options(dir.path()) };
    let postgres = PrivatePostgres::start(options).await.unwrap();
    connect(&postgres.url("postgres")).await;
    let url = postgres.loopback_url("postgres").unwrap();
    let url = secrecy::ExposeSecret::expose_secret(&url);
    connect(url).await;
    let wrong = url.replace("postgres:", "postgres:x");
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err());
    let file = dir.path().join("postgres.password").metadata().unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o777, 0o600);
}

#[tokio::test]
async fn a_very_long_data_directory_works() {
    let dir = data_dir();
    let data_dir = dir.path().join("long/".repeat(30));
    let postgres = PrivatePostgres::start(options(&data_dir)).await.unwrap();
    connect(&postgres.url("postgres")).await;
    let socket_dir = postgres.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(dir.path()));
    postgres.stop().await.unwrap();
    assert!(!socket_dir.exists());
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let dir = data_dir();
    let mut options = options(dir.path());
    options.settings.push(("no_such_setting".to_owned(), "1".to_owned()));
    let error = PrivatePostgres::start(options).await.unwrap_err();
    assert!(matches!(error, Error::Exited { .. }), "{error:?}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn dropping_the_server_ends_it() {
    let cluster = Cluster::start().await;
    let pid = Pid::from_raw(cluster.pid().cast_signed());
    drop(cluster);
    eventually(WAIT, || async { kill(pid, None).is_err().then_some(()) }).await;
}

#[tokio::test]
async fn a_row_value_in_a_failing_statement_stays_out_of_the_log() {
    let cluster = Cluster::start().await;
    let client = cluster.connect("postgres").await;
    client.batch_execute("CREATE TABLE t (id text PRIMARY KEY)").await.unwrap();
    let insert = "INSERT INTO t VALUES ('sesame'), ('sesame')";
    client.batch_execute(insert).await.unwrap_err();
    let log = cluster.data_dir().join("postgres.log");
    let log = eventually(Duration::from_secs(10), || async {
        std::fs::read_to_string(&log).ok().filter(|log| log.contains("duplicate key"))
    })
    .await;
    assert!(!log.contains("sesame"), "{log}");
}
