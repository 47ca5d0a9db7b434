//! Publication and slot of a source: what both the guard and capture make sure of.
//!
//! The publication comes first. A slot decodes every change with the catalog as it was when the
//! change was made; a publication that did not exist then makes the stream fail for ever.

use std::sync::LazyLock;

use serde::Deserialize;
use tokio_postgres::error::SqlState;

use super::{Connection, Error, quote_ident};
use crate::vocab::{Lsn, SourceName};

/// What a publication of ours says, on a server of this version: all operations, with partitions
/// published as their root, and generated columns where they can be.
pub fn publication_options(version: u32) -> String {
    let generated = if version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
    format!("publish = 'insert, update, delete, truncate', publish_via_partition_root{generated}")
}

/// What this process is called in a source where it streams: it says which of several servers does.
pub fn capturer() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let name = format!("cadastre capture {}@{}", std::process::id(), host.to_string_lossy());
        // PostgreSQL keeps as much of it, and only of ASCII.
        name.chars().filter(|letter| matches!(letter, ' '..='~')).take(63).collect()
    });
    &NAME
}

/// Who streams a slot, as [`capturer`] names it; `None` while nobody does.
pub const STREAMED_BY: &str = "SELECT a.application_name FROM pg_replication_slots s \
    JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = ";

/// Whether a slot was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotFound {
    /// It was; its content continues from where it was confirmed.
    Existing,
    /// It was not; it begins now.
    Created,
}

/// Makes the publication of a source if it is missing: empty, for all operations, with partitions
/// published as their root, generated columns where they can be.
///
/// A slot that is there all the same is dropped first: it cannot decode what was written while there
/// was no publication (from PostgreSQL 18 on it passes that over in silence), and that it is gone is
/// noticed by whoever streams.
///
/// # Errors
/// When the role may not, or the connection fails.
pub async fn ensure_publication(client: &Connection, source: &SourceName) -> Result<(), Error> {
    let (name, slot) = (source.publication(), source.slot());
    // The slot is looked for first: one that another instance makes now has its publication.
    let orphan = slot_state(client, &slot).await?.is_some();
    let found =
        client.query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name]).await?;
    if found.is_some() {
        return Ok(());
    }
    if orphan {
        tracing::warn!(%source, publication = name, "publication missing: its slot is made anew");
        take_slot_away(client, &slot).await?;
    }
    let options = publication_options(server_version(client).await?);
    let create = format!("CREATE PUBLICATION {} WITH ({options})", quote_ident(&name));
    match client.batch_execute(&create).await {
        // Another instance made it at the same time.
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
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

/// Whether the server is a standby: it takes no writes, and its slots are not ours to make.
///
/// # Errors
/// When the connection fails.
pub async fn in_recovery(client: &Connection) -> Result<bool, Error> {
    Ok(client.query_one("SELECT pg_is_in_recovery()", &[]).await?.try_get(0)?)
}

/// The end of the server's WAL.
///
/// # Errors
/// When the connection fails.
pub async fn wal_end(client: &Connection) -> Result<Lsn, Error> {
    let row = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?;
    lsn(row.try_get(0)?)
}

/// How a slot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// It begins here when it is streamed.
    pub confirmed: Lsn,
    /// Why it can never be streamed again.
    pub lost: Option<String>,
}

/// A row of `pg_replication_slots`, whose columns differ between versions.
#[derive(Debug, Deserialize)]
struct SlotRow {
    plugin: Option<String>,
    database: Option<String>,
    two_phase: Option<bool>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    /// From PostgreSQL 16 on.
    conflicting: Option<bool>,
    /// From PostgreSQL 17 on.
    invalidation_reason: Option<String>,
}

/// The state of our slot, if there is one.
///
/// # Errors
/// When the name is taken by a slot of another kind, or the connection fails.
pub async fn slot_state(client: &Connection, name: &str) -> Result<Option<SlotState>, Error> {
    let query = "SELECT to_json(s)::text, current_database()::text \
                 FROM pg_replication_slots s WHERE slot_name = $1";
    let Some(row) = client.query_opt(query, &[&name]).await? else { return Ok(None) };
    let (json, ours): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let row: SlotRow = serde_json::from_str(&json)
        .map_err(|_| Error::Unexpected { what: "a row of pg_replication_slots" })?;
    let (database, plugin) = (row.database.unwrap_or_default(), row.plugin.unwrap_or_default());
    if database != ours || plugin != "pgoutput" {
        return Err(Error::SlotTaken { slot: name.to_owned(), database, plugin });
    }
    if row.two_phase == Some(true) {
        return Err(Error::SlotTwoPhase { slot: name.to_owned() });
    }
    let conflicting = (row.conflicting == Some(true)).then(|| "conflict with recovery".to_owned());
    let removed = (row.wal_status.as_deref() == Some("lost")).then(|| "WAL removed".to_owned());
    let lost = row.invalidation_reason.or(conflicting).or(removed);
    let confirmed = match row.confirmed_flush_lsn {
        Some(text) => lsn(&text)?,
        None => Lsn::ZERO,
    };
    Ok(Some(SlotState { confirmed, lost }))
}

/// What a server keeps for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotWal {
    /// WAL kept for it, in bytes.
    pub retained: u64,
    /// How much more may be written before the server gives it up; `None` when it never does.
    pub safe: Option<u64>,
    /// The end of WAL.
    pub end: Lsn,
}

/// What the server keeps for a slot; `None` when there is no slot.
///
/// # Errors
/// When the connection fails.
pub async fn slot_wal(client: &Connection, name: &str) -> Result<Option<SlotWal>, Error> {
    let query = "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, \
                 safe_wal_size, pg_current_wal_lsn()::text \
                 FROM pg_replication_slots WHERE slot_name = $1";
    let Some(row) = client.query_opt(query, &[&name]).await? else { return Ok(None) };
    let (retained, safe): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    let end = lsn(row.try_get(2)?)?;
    Ok(Some(SlotWal { retained: bytes(retained), safe: safe.map(bytes), end }))
}

/// Drops a slot, and ends whoever streams it.
///
/// # Errors
/// When it is streamed again at once, or the connection fails.
pub async fn take_slot_away(client: &Connection, name: &str) -> Result<(), Error> {
    let end = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
               WHERE slot_name = $1 AND active_pid IS NOT NULL";
    client.execute(end, &[&name]).await?;
    drop_slot(client, name).await
}

/// Drops a slot.
///
/// # Errors
/// When somebody streams it, or the connection fails.
pub async fn drop_slot(client: &Connection, name: &str) -> Result<(), Error> {
    client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
    Ok(())
}

fn lsn(text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|_| Error::Unexpected { what: "an LSN" })
}

/// Who has written longest in a transaction that has not ended: a new slot waits for its end.
const WRITING: &str = "
    SELECT format('pid %s of role %s (%s), which has been in a transaction for %s', pid, usename,
      application_name, date_trunc('second', clock_timestamp() - xact_start)), age(backend_xid)
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL
    UNION ALL
    SELECT format('the prepared transaction %L, prepared at %s', gid, prepared), age(transaction)
    FROM pg_prepared_xacts
    ORDER BY 2 DESC LIMIT 1";

/// Makes the logical slot for pgoutput if it is missing. From PostgreSQL 17 on it is a failover
/// slot, so that a standby can take over with it.
///
/// # Errors
/// When the name is taken by a slot of another kind, no slot is free, a transaction that writes
/// does not end within the lock or statement timeout, or the connection fails.
pub async fn ensure_slot(client: &Connection, name: &str) -> Result<SlotFound, Error> {
    if slot_state(client, name).await?.is_some() {
        return Ok(SlotFound::Existing);
    }
    let failover = server_version(client).await? >= 170_000;
    let create = if failover {
        "SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)"
    } else {
        "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"
    };
    match client.execute(create, &[&name]).await {
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(SlotFound::Existing),
        // It waits for them as for a lock, and holds up nobody meanwhile.
        Err(error)
            if [Some(&SqlState::QUERY_CANCELED), Some(&SqlState::LOCK_NOT_AVAILABLE)]
                .contains(&error.code()) =>
        {
            // Whoever has written may be gone by now, or be hidden from this role.
            let by = match client.query_opt(WRITING, &[]).await? {
                Some(row) => row.try_get(0)?,
                None => "a transaction that is not known any more".to_owned(),
            };
            Err(Error::SlotBlocked { slot: name.to_owned(), by })
        }
        other => {
            other?;
            Ok(SlotFound::Created)
        }
    }
}
