//! Random transactions of one writer, whatever becomes of its server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::{Client, Error};

use super::schema::Schema;
use super::stage::Source;

/// Commits transactions until `goal` have been and `enough` is said, again and again connecting when
/// it has to.
pub(super) async fn write(
    source: &Source,
    schema: &Schema,
    seed: u64,
    goal: usize,
    enough: &AtomicBool,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut committed = 0;
    let wanted = |committed: usize| committed < goal || !enough.load(Ordering::Relaxed);
    while wanted(committed) {
        let Some(client) = connect(source).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while wanted(committed) && !client.is_closed() {
            match transaction(&client, schema, &mut random).await {
                Ok(()) => committed += 1,
                // A deadlock, a row that moved, or the server went away.
                Err(_) => {
                    let _ = client.batch_execute("ROLLBACK").await;
                }
            }
        }
    }
}

/// A session as the owner, if the server takes one now.
async fn connect(source: &Source) -> Option<Client> {
    let mut config: tokio_postgres::Config = source.now().url("shop").parse().expect("a valid URL");
    let (client, connection) =
        config.user("orders_app").connect(tokio_postgres::NoTls).await.ok()?;
    #[expect(clippy::disallowed_methods, reason = "ends with the client, and with the test")]
    tokio::spawn(connection);
    client.batch_execute("SET statement_timeout = '20s'; SET lock_timeout = '5s'").await.ok()?;
    Some(client)
}

/// One transaction of a few statements, some of which are taken back.
async fn transaction(client: &Client, schema: &Schema, random: &mut StdRng) -> Result<(), Error> {
    client.batch_execute("BEGIN").await?;
    for _ in 0..random.random_range(1..=5) {
        if random.random_bool(0.2) {
            client.batch_execute("SAVEPOINT s").await?;
            statement(client, schema, random).await?;
            statement(client, schema, random).await?;
            let end = if random.random_bool(0.5) { "ROLLBACK TO s" } else { "RELEASE s" };
            client.batch_execute(end).await?;
        } else {
            statement(client, schema, random).await?;
        }
    }
    let end = if random.random_bool(0.9) { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await
}

async fn statement(client: &Client, schema: &Schema, random: &mut StdRng) -> Result<(), Error> {
    let table = &schema.tables[random.random_range(0..schema.tables.len())];
    let statement = match random.random_range(0..1000) {
        0..3 => format!("TRUNCATE {}", table.name),
        3..20 => table.insert(random.random_range(100..600)),
        20..420 => table.insert(random.random_range(1..8)),
        _ => table.change(random.random_range(1..8), random),
    };
    client.batch_execute(&statement).await
}
