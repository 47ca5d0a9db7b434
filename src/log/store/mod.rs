//! The log in PostgreSQL: a row per chunk in a partition per day, and what is needed to find them.
//!
//! ```text
//! log_ends    source 1   trimmed_upto ▼                        last_position ▼
//! log_chunks             (gone)  ······│ chunk │ chunk │ chunk │ chunk ──────┘
//!                        └── day ──┴──────── day ───────┴───── day ──────┘
//! log_parts              of each chunk and dataset: changes, keys, running digest
//! log_days               of each source and day: the sums that retention decides by
//! log_totals             of each dataset: everything there ever was
//! ```
//!
//! An append first moves the end forward, only if it stands where this process thinks it does; the
//! row lock of that update is what keeps two writers apart, and a later look at the end is what
//! tells whether an append whose answer was lost took place.
//!
//! `append` writes, `read` finds, `days` makes and drops partitions, `proof` checks.

mod append;
mod days;
mod proof;
mod read;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{Batch, Day, Error, Extent, GapReason, Key, Page, Proof, Protection, Store, Totals};
use crate::pg;
use crate::vocab::{DatasetId, Position, PositionError, SourceId};

diesel::table! {
    log_ends (source_id) {
        source_id -> Integer,
        last_position -> Text,
        trimmed_upto -> Text,
        day -> Date,
        chain -> Binary,
        committed_upto -> Timestamptz,
        trimmed_reason -> Text,
    }
}

diesel::table! {
    log_chunks (source_id, last_position, day) {
        source_id -> Integer,
        day -> Date,
        first_position -> Text,
        last_position -> Text,
        changes -> Integer,
        bytes -> Integer,
        datasets -> Array<Integer>,
        committed_from -> Timestamptz,
        committed_upto -> Timestamptz,
        checksum -> Binary,
        previous -> Binary,
        chain -> Binary,
        payload -> Binary,
    }
}

diesel::table! {
    log_parts (source_id, dataset_id, last_position, day) {
        source_id -> Integer,
        dataset_id -> Integer,
        day -> Date,
        last_position -> Text,
        changes -> Integer,
        key_columns -> Nullable<Array<Text>>,
        key_filter -> Nullable<Binary>,
        total_changes -> BigInt,
        total_digest -> Nullable<Binary>,
    }
}

diesel::table! {
    log_totals (source_id, dataset_id) {
        source_id -> Integer,
        dataset_id -> Integer,
        changes -> BigInt,
        digest -> Binary,
    }
}

diesel::allow_tables_to_appear_in_same_query!(log_ends, log_chunks, log_parts, log_totals);

/// The oldest change held, and both ends.
const EXTENT: &str = "SELECT e.last_position, e.trimmed_upto, \
         (SELECT c.first_position FROM log_chunks c \
          WHERE c.source_id = e.source_id AND c.last_position > e.trimmed_upto \
          ORDER BY c.last_position LIMIT 1) AS first_position \
     FROM log_ends e WHERE e.source_id = $1";

const TOTALS: &str = "SELECT e.changes, \
         coalesce(sum(d.changes), 0)::bigint AS held, coalesce(sum(d.bytes), 0)::bigint AS bytes \
     FROM log_ends e LEFT JOIN log_days d USING (source_id) \
     WHERE e.source_id = $1 GROUP BY e.changes";

const PROTECT: &str = "INSERT INTO log_protections AS p (source_id, holder, position) \
     VALUES ($1, $2, $3) \
     ON CONFLICT (source_id, holder) \
     DO UPDATE SET position = excluded.position, updated_at = now()";

/// The log in the registry's database.
#[derive(Clone)]
pub struct PostgresStore {
    pool: pg::Pool,
    /// What the last append of each source left; looked up again when it is not there.
    ends: Arc<Mutex<HashMap<SourceId, append::Ends>>>,
}

#[derive(QueryableByName)]
struct ExtentRow {
    #[diesel(sql_type = Text)]
    last_position: String,
    #[diesel(sql_type = Text)]
    trimmed_upto: String,
    #[diesel(sql_type = Nullable<Text>)]
    first_position: Option<String>,
}

#[derive(QueryableByName)]
struct TotalsRow {
    #[diesel(sql_type = BigInt)]
    changes: i64,
    #[diesel(sql_type = BigInt)]
    held: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct ProtectionRow {
    #[diesel(sql_type = Text)]
    holder: String,
    #[diesel(sql_type = Text)]
    position: String,
}

impl PostgresStore {
    /// The statements by which chunks are found: in order, by their parts, by a moment. For whoever
    /// wants to see how PostgreSQL runs them.
    pub const STATEMENTS: [fn() -> &'static str; 3] =
        [|| read::READ_IN_ORDER.as_str(), || read::READ_BY_PARTS.as_str(), || read::MOMENT];

    /// The log in the database behind this pool.
    pub fn new(pool: pg::Pool) -> Self {
        Self { pool, ends: Arc::default() }
    }

    async fn load_extent(&self, source: SourceId) -> Result<Extent, Error> {
        let mut conn = self.pool.get().await?;
        let row: Option<ExtentRow> = diesel::sql_query(EXTENT)
            .bind::<Integer, _>(source.0)
            .get_result(&mut *conn)
            .await
            .optional()?;
        let Some(row) = row else {
            return Ok(Extent { trimmed: Position::MIN, first: None, last: Position::MIN });
        };
        Ok(Extent {
            trimmed: position(&row.trimmed_upto)?,
            first: row.first_position.as_deref().map(position).transpose()?,
            last: position(&row.last_position)?,
        })
    }

    async fn load_totals(&self, source: SourceId) -> Result<Totals, Error> {
        let mut conn = self.pool.get().await?;
        let row: Option<TotalsRow> = diesel::sql_query(TOTALS)
            .bind::<Integer, _>(source.0)
            .get_result(&mut *conn)
            .await
            .optional()?;
        Ok(row.map_or_else(Totals::default, |row| Totals {
            changes: row.changes.max(0).unsigned_abs(),
            held: row.held.max(0).unsigned_abs(),
            bytes: row.bytes.max(0).unsigned_abs(),
        }))
    }

    async fn put_protection(
        &self,
        source: SourceId,
        holder: &str,
        position: Position,
    ) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        diesel::sql_query(PROTECT)
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(holder)
            .bind::<Text, _>(position.to_string())
            .execute(&mut *conn)
            .await?;
        Ok(())
    }

    async fn drop_protection(&self, source: SourceId, holder: &str) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        diesel::sql_query("DELETE FROM log_protections WHERE source_id = $1 AND holder = $2")
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(holder)
            .execute(&mut *conn)
            .await?;
        Ok(())
    }

    async fn load_protections(&self, source: SourceId) -> Result<Vec<Protection>, Error> {
        let mut conn = self.pool.get().await?;
        let rows: Vec<ProtectionRow> = diesel::sql_query(
            "SELECT holder, position FROM log_protections WHERE source_id = $1 \
             ORDER BY position, holder",
        )
        .bind::<Integer, _>(source.0)
        .load(&mut *conn)
        .await?;
        rows.into_iter()
            .map(|row| Ok(Protection { position: position(&row.position)?, holder: row.holder }))
            .collect()
    }
}

impl Store for PostgresStore {
    fn append<'a>(
        &'a self,
        source: SourceId,
        batches: &'a [Arc<Batch>],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.append_batches(source, batches))
    }

    fn read<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        datasets: Option<&'a [DatasetId]>,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(self.read_page(source, after, datasets, None, bytes))
    }

    fn extent(&self, source: SourceId) -> BoxFuture<'_, Result<Extent, Error>> {
        Box::pin(self.load_extent(source))
    }

    fn read_row<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        dataset: DatasetId,
        key: &'a Key,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(
            async move { self.read_page(source, after, Some(&[dataset]), Some(key), bytes).await },
        )
    }

    fn key_columns(
        &self,
        source: SourceId,
        dataset: DatasetId,
    ) -> BoxFuture<'_, Result<Option<Vec<String>>, Error>> {
        Box::pin(self.load_key_columns(source, dataset))
    }

    fn position_at(
        &self,
        source: SourceId,
        at: DateTime<Utc>,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
        Box::pin(self.find_moment(source, at))
    }

    fn cut(
        &self,
        source: SourceId,
        upto: Position,
        reason: GapReason,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.move_beginning(source, upto, reason))
    }

    fn cut_reason(&self, source: SourceId) -> BoxFuture<'_, Result<GapReason, Error>> {
        Box::pin(self.load_cut_reason(source))
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.make_days())
    }

    fn sweep(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.drop_days())
    }

    fn days(&self) -> BoxFuture<'_, Result<Vec<Day>, Error>> {
        Box::pin(self.load_days())
    }

    fn freeing(
        &self,
        source: SourceId,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
        Box::pin(self.find_freeing(source, bytes))
    }

    fn totals(&self, source: SourceId) -> BoxFuture<'_, Result<Totals, Error>> {
        Box::pin(self.load_totals(source))
    }

    fn protect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
        position: Position,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.put_protection(source, holder, position))
    }

    fn unprotect<'a>(
        &'a self,
        source: SourceId,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.drop_protection(source, holder))
    }

    fn protections(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<Protection>, Error>> {
        Box::pin(self.load_protections(source))
    }

    fn prove(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
        bytes: usize,
    ) -> BoxFuture<'_, Result<Proof, Error>> {
        Box::pin(self.check(source, from, to, bytes))
    }
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { reason }
}

fn position(text: &str) -> Result<Position, Error> {
    text.parse().map_err(|error: PositionError| corrupt(error.to_string()))
}

/// Compression of a full chunk takes milliseconds, too long to keep a runtime thread from others.
async fn on_blocking_thread<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Error> + Send + 'static,
) -> Result<R, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(Error::Stopped),
        },
    }
}

impl From<pg::Error> for Error {
    fn from(error: pg::Error) -> Self {
        Self::Database { retry: error.retry(), source: Box::new(error) }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        pg::Error::from(error).into()
    }
}
