//! Publication and slot of a source: what both the guard and capture make sure of.
//!
//! The publication comes first. A slot decodes every change with the catalog as it was when the
//! change was made; a publication that did not exist then makes the stream fail for ever.

use super::{Connection, Error, quote_ident};

/// What a publication of ours says: all operations, with partitions published as their root.
pub const PUBLICATION_OPTIONS: &str =
    "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";

/// Whether a slot was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotFound {
    /// It was; its content continues from where it was confirmed.
    Existing,
    /// It was not; it begins now.
    Created,
}

/// Makes the publication if it is missing: empty, for all operations, with partitions published as
/// their root.
///
/// # Errors
/// When the role may not, or the connection fails.
pub async fn ensure_publication(client: &Connection, name: &str) -> Result<(), Error> {
    let found =
        client.query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name]).await?;
    if found.is_some() {
        return Ok(());
    }
    let create = format!("CREATE PUBLICATION {} WITH ({PUBLICATION_OPTIONS})", quote_ident(name));
    match client.batch_execute(&create).await {
        // Another instance made it at the same time.
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::DUPLICATE_OBJECT) => {
            Ok(())
        }
        other => Ok(other?),
    }
}

/// The server's `server_version_num`.
///
/// # Errors
/// When the connection fails.
pub async fn server_version(client: &Connection) -> Result<u32, Error> {
    let query = "SELECT current_setting('server_version_num')::int";
    let version: i32 = client.query_one(query, &[]).await?.try_get(0)?;
    Ok(version.unsigned_abs())
}

/// Makes the logical slot for pgoutput if it is missing. From PostgreSQL 17 on it is a failover
/// slot, so that a standby can take over with it.
///
/// # Errors
/// When the name is taken by a slot of another database or plugin, no slot is free, or the
/// connection fails.
pub async fn ensure_slot(client: &Connection, name: &str) -> Result<SlotFound, Error> {
    let found = client
        .query_opt(
            "SELECT coalesce(database, ''), coalesce(plugin, ''), current_database()::text \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    if let Some(row) = found {
        let (database, plugin, ours): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if database == ours && plugin == "pgoutput" {
            return Ok(SlotFound::Existing);
        }
        return Err(Error::SlotTaken { slot: name.to_owned(), database, plugin });
    }
    let failover = server_version(client).await? >= 170_000;
    let create = if failover {
        "SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)"
    } else {
        "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"
    };
    match client.execute(create, &[&name]).await {
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::DUPLICATE_OBJECT) => {
            Ok(SlotFound::Existing)
        }
        other => {
            other?;
            Ok(SlotFound::Created)
        }
    }
}
