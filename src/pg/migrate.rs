//! Bringing the registry's database to the schema this program was built with.

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{Error, Target, pool, quote_ident};
use crate::config::PostgresOptions;

/// The schema that holds everything of ours in the registry's database.
pub const REGISTRY_SCHEMA: &str = "cadastre_registry";

/// Every migration, oldest first.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The key of the advisory lock that lets one instance migrate at a time: "cadastre" in ASCII.
const MIGRATION_LOCK: i64 = 0x6361_6461_7374_7265;

/// Creates the registry's schema if need be and runs the migrations it lacks.
///
/// Each runs in its own transaction. Several instances may start together: one migrates, the others wait for it, at
/// most `statement_timeout`. Returns how many migrations were run.
///
/// # Errors
/// [`Error::SchemaNewer`] when the database has a migration this program does not know.
pub async fn migrate(target: &Target, options: &PostgresOptions) -> Result<usize, Error> {
    let mut connection = pool::establish(target, "cadastre-migrate", options).await?;
    // Held until the connection is closed.
    connection
        .batch_execute(&format!(
            "SET lock_timeout = 0; SELECT pg_advisory_lock({MIGRATION_LOCK}); \
             SET lock_timeout = {}; CREATE SCHEMA IF NOT EXISTS {}",
            options.lock_timeout.as_millis(),
            quote_ident(REGISTRY_SCHEMA),
        ))
        .await?;
    // diesel's harness is synchronous.
    tokio::task::spawn_blocking(move || run_pending(connection))
        .await
        .map_err(|error| Error::Migration(error.into()))?
}

fn run_pending(connection: AsyncPgConnection) -> Result<usize, Error> {
    let mut harness = AsyncConnectionWrapper::<_>::from(connection);
    let known: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().map_err(Error::Migration)?;
    let mut applied = harness.applied_migrations().map_err(Error::Migration)?;
    applied.sort_unstable();
    let versions: Vec<String> = applied
        .iter()
        .filter(|version| !known.iter().any(|migration| migration.name().version() == **version))
        .map(ToString::to_string)
        .collect();
    if !versions.is_empty() {
        return Err(Error::SchemaNewer { versions });
    }
    let run = harness.run_pending_migrations(MIGRATIONS).map_err(Error::Migration)?;
    Ok(run.len())
}
