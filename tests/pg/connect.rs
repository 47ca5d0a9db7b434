//! Deadlines, listening and the pool.

use std::time::{Duration, Instant};

use cadastre::config::PostgresOptions;
use cadastre::pg::{Error, Pool, Target, migrate};
use cadastre::vocab::Retry;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use tokio_postgres::error::SqlState;

use crate::support::{Cluster, eventually};

#[tokio::test]
async fn every_deadline_is_set_on_a_new_connection() {
    let cluster = Cluster::start().await;
    let connection =
        cluster.target("postgres").connect("a test", &PostgresOptions::default()).await.unwrap();
    for (setting, value) in [
        ("statement_timeout", "15s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "15s"),
        ("application_name", "a test"),
    ] {
        let row = connection.query_one(&format!("SHOW {setting}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }
}

#[tokio::test]
async fn a_dropped_connection_ends_on_the_server() {
    let cluster = Cluster::start().await;
    let watcher = cluster.connect("postgres").await;
    let connection =
        cluster.target("postgres").connect("doomed", &PostgresOptions::default()).await.unwrap();
    drop(connection);
    eventually(Duration::from_secs(5), || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'doomed'";
        let left: i64 = watcher.query_one(sql, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_listener_hears_and_notices_that_the_connection_is_lost() {
    let cluster = Cluster::start().await;
    let options = PostgresOptions::default();
    let mut listener =
        cluster.target("postgres").listen("ears", &options, "a Channel").await.unwrap();
    cluster.connect("postgres").await.batch_execute("NOTIFY \"a Channel\", 'hello'").await.unwrap();
    assert_eq!(listener.next().await.as_deref(), Some("hello"));
    cluster.stop_immediate().await;
    assert_eq!(listener.next().await, None);
}

#[tokio::test]
async fn an_unanswered_connection_attempt_ends_at_its_deadline() {
    // Accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let target = Target::parse(&format!("postgresql://app:geheim@127.0.0.1:{port}/shop")).unwrap();
    let after = Duration::from_millis(200);
    let options = PostgresOptions { connect_timeout: after, ..PostgresOptions::default() };
    let error = target.connect("test", &options).await.unwrap_err();
    assert!(matches!(error, Error::ConnectTimeout { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Later);
    assert!(!error.to_string().contains("geheim"));
}

#[tokio::test]
async fn a_refusal_keeps_its_sqlstate() {
    let cluster = Cluster::start().await;
    let error =
        cluster.target("nowhere").connect("test", &PostgresOptions::default()).await.unwrap_err();
    assert_eq!(error.sqlstate().map(SqlState::code), Some("3D000"));
}

#[derive(diesel::QueryableByName)]
struct SearchPath {
    #[diesel(sql_type = Text)]
    search_path: String,
}

async fn search_path(pool: &Pool) -> Result<String, Error> {
    let mut connection = pool.get().await?;
    let row: SearchPath = diesel::sql_query("SHOW search_path").get_result(&mut connection).await?;
    Ok(row.search_path)
}

#[tokio::test]
async fn the_pool_is_bounded_and_its_wait_too() {
    let cluster = Cluster::start().await;
    let options = PostgresOptions {
        pool_size: 1,
        pool_wait: Duration::from_millis(300),
        ..PostgresOptions::default()
    };
    migrate(&cluster.target("postgres"), &options).await.unwrap();
    let pool = Pool::new(&cluster.target("postgres"), &options).unwrap();
    assert_eq!(search_path(&pool).await.unwrap(), "cadastre_registry");
    let held = pool.get().await.unwrap();
    let begun = Instant::now();
    let error = pool.get().await.err().unwrap();
    assert!(matches!(error, Error::PoolTimeout { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(held);
    assert!(pool.get().await.is_ok());
}

#[tokio::test]
async fn the_pool_recovers_from_a_restart_of_postgresql() {
    let cluster = Cluster::start().await;
    let options = PostgresOptions::default();
    let pool = Pool::new(&cluster.target("postgres"), &options).unwrap();
    search_path(&pool).await.unwrap();
    cluster.stop_immediate().await;
    let error = search_path(&pool).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Later);
    cluster.start_again().await;
    eventually(Duration::from_secs(10), || async { search_path(&pool).await.ok() }).await;
}
