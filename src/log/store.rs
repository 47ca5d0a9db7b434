//! The log in PostgreSQL: a row per chunk, and a row per source that says where its log ends.
//!
//! ```text
//! log_ends    source 1   trimmed_upto ▼            last_position ▼
//! log_chunks             (gone)  ······│ chunk │ chunk │ chunk ──┘
//! ```
//!
//! An append first moves the end forward, only if it stands before the first new position; the
//! row lock of that update is what keeps two writers apart, and a later look at the end is what
//! tells whether an append whose answer was lost took place.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncConnection, RunQueryDsl};
use futures::future::BoxFuture;

use super::chunk::{self, CHUNK_BYTES_MAX};
use super::contract::check_order;
use super::{Batch, Error, Extent, Page, Store};
use crate::pg;
use crate::vocab::limits::BATCH_BYTES_MAX;
use crate::vocab::{DatasetId, Position, PositionError, SourceId};

diesel::table! {
    log_ends (source_id) {
        source_id -> Integer,
        last_position -> Text,
        trimmed_upto -> Text,
    }
}

diesel::table! {
    log_chunks (source_id, last_position) {
        source_id -> Integer,
        first_position -> Text,
        last_position -> Text,
        changes -> Integer,
        bytes -> Integer,
        datasets -> Array<Integer>,
        payload -> Binary,
    }
}

diesel::allow_tables_to_appear_in_same_query!(log_ends, log_chunks);

/// The confirmation of a slot rests on this commit: whatever the database's default, it waits for
/// the disk.
const WAIT_FOR_DISK: &str = "SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// Touches no row when the log already ends at or after `$2`, the first position to be appended.
const MOVE_END: &str = "INSERT INTO log_ends (source_id, last_position, trimmed_upto) \
     VALUES ($1, $3, $4) \
     ON CONFLICT (source_id) DO UPDATE SET last_position = excluded.last_position \
     WHERE log_ends.last_position < $2";

/// One statement, so that chunks, end and trim point are of one moment. The running sum is taken
/// before a payload is looked at; 256 chunks are examined at most.
const READ: &str = "SELECT e.last_position AS log_end, e.trimmed_upto, c.last_position, c.payload \
     FROM log_ends e LEFT JOIN LATERAL ( \
         SELECT last_position, payload, \
                sum(bytes) OVER (ORDER BY last_position ROWS UNBOUNDED PRECEDING) - bytes AS earlier \
         FROM log_chunks \
         WHERE source_id = e.source_id AND last_position > $2 \
           AND ($3::integer[] IS NULL OR datasets && $3) \
         ORDER BY last_position LIMIT 256 \
     ) c ON c.earlier < $4 \
     WHERE e.source_id = $1 \
     ORDER BY c.last_position";

/// One statement, so that no reader sees chunks gone but not the trim point moved.
const TRIM: &str = "WITH gone AS ( \
         DELETE FROM log_chunks WHERE source_id = $1 AND last_position <= $2 \
         RETURNING last_position \
     ) UPDATE log_ends SET trimmed_upto = (SELECT max(last_position) FROM gone) \
     WHERE source_id = $1 AND EXISTS (SELECT FROM gone)";

/// The log in the registry's database.
#[derive(Clone)]
pub struct PostgresStore {
    pool: pg::Pool,
}

#[derive(Insertable)]
#[diesel(table_name = log_chunks)]
struct NewChunk {
    source_id: i32,
    first_position: String,
    last_position: String,
    changes: i32,
    bytes: i32,
    datasets: Vec<i32>,
    payload: Vec<u8>,
}

#[derive(QueryableByName)]
struct FoundChunk {
    #[diesel(sql_type = Text)]
    log_end: String,
    #[diesel(sql_type = Text)]
    trimmed_upto: String,
    #[diesel(sql_type = Nullable<Text>)]
    last_position: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
}

impl PostgresStore {
    /// The log in the database behind this pool.
    pub fn new(pool: pg::Pool) -> Self {
        Self { pool }
    }

    async fn append_batches(&self, source: SourceId, batches: &[Arc<Batch>]) -> Result<(), Error> {
        let [first, ..] = batches else { return Ok(()) };
        let (first, last) = (Batch::first(first), check_order(Position::MIN, batches)?);
        let shared = batches.to_vec();
        let chunks = on_blocking_thread(move || new_chunks(source, &shared)).await?;
        let mut conn = self.pool.get().await?;
        conn.transaction(async |conn: &mut pg::PooledConnection| {
            diesel::sql_query(WAIT_FOR_DISK).execute(conn).await?;
            move_end(conn, source, first, last).await?;
            diesel::insert_into(log_chunks::table).values(&chunks).execute(conn).await?;
            Ok(())
        })
        .await
    }

    async fn read_page(
        &self,
        source: SourceId,
        after: Position,
        datasets: Option<&[DatasetId]>,
        bytes: usize,
    ) -> Result<Page, Error> {
        let datasets = datasets.map(|ids| ids.iter().map(|id| id.0).collect::<Vec<_>>());
        let mut conn = self.pool.get().await?;
        let rows: Vec<FoundChunk> = diesel::sql_query(READ)
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(after.to_string())
            .bind::<Nullable<Array<Integer>>, _>(datasets)
            .bind::<BigInt, _>(bytes.clamp(1, CHUNK_BYTES_MAX) as i64)
            .load(&mut *conn)
            .await?;
        drop(conn);
        let [any, ..] = rows.as_slice() else {
            return Ok(Page { batches: Vec::new(), examined: after });
        };
        let trimmed = position(&any.trimmed_upto)?;
        if after < trimmed {
            return Err(Error::Trimmed { earliest: trimmed });
        }
        let end = position(&any.log_end)?;
        let batches = on_blocking_thread(move || found_batches(&rows)).await?;
        let examined = batches.last().map_or_else(|| after.max(end), |batch| batch.last());
        Ok(Page { batches, examined })
    }

    async fn load_extent(&self, source: SourceId) -> Result<Extent, Error> {
        let mut conn = self.pool.get().await?;
        let first = log_chunks::table
            .filter(log_chunks::source_id.eq(source.0))
            .order(log_chunks::last_position)
            .select(log_chunks::first_position)
            .limit(1)
            .single_value();
        let row: Option<(String, String, Option<String>)> = log_ends::table
            .find(source.0)
            .select((log_ends::trimmed_upto, log_ends::last_position, first))
            .first(&mut *conn)
            .await
            .optional()?;
        let Some((trimmed, last, first)) = row else {
            return Ok(Extent { trimmed: Position::MIN, first: None, last: Position::MIN });
        };
        Ok(Extent {
            trimmed: position(&trimmed)?,
            first: first.as_deref().map(position).transpose()?,
            last: position(&last)?,
        })
    }

    async fn trim_upto(&self, source: SourceId, upto: Position) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        diesel::sql_query(TRIM)
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(upto.to_string())
            .execute(&mut *conn)
            .await?;
        Ok(())
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
        Box::pin(self.read_page(source, after, datasets, bytes))
    }

    fn extent(&self, source: SourceId) -> BoxFuture<'_, Result<Extent, Error>> {
        Box::pin(self.load_extent(source))
    }

    fn trim(&self, source: SourceId, upto: Position) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.trim_upto(source, upto))
    }
}

/// Moves the end of a source's log from before `first` to `last`, and holds its row until the
/// transaction ends.
async fn move_end(
    conn: &mut pg::PooledConnection,
    source: SourceId,
    first: Position,
    last: Position,
) -> Result<(), Error> {
    let moved = diesel::sql_query(MOVE_END)
        .bind::<Integer, _>(source.0)
        .bind::<Text, _>(first.to_string())
        .bind::<Text, _>(last.to_string())
        .bind::<Text, _>(Position::MIN.to_string())
        .execute(conn)
        .await?;
    if moved == 1 {
        return Ok(());
    }
    let end: String =
        log_ends::table.find(source.0).select(log_ends::last_position).first(conn).await?;
    Err(Error::OutOfOrder { first, last: position(&end)? })
}

/// The batches as rows: neighbours share a chunk as long as it stays within the size of a batch.
fn new_chunks(source: SourceId, batches: &[Arc<Batch>]) -> Result<Vec<NewChunk>, Error> {
    let mut chunks = Vec::new();
    let mut rest = batches;
    while let [first, ..] = rest {
        let mut bytes = first.bytes_len();
        let mut count = 1;
        while let Some(next) = rest.get(count)
            && bytes + next.bytes_len() <= BATCH_BYTES_MAX
        {
            bytes += next.bytes_len();
            count += 1;
        }
        let (run, after) = rest.split_at(count);
        chunks.push(new_chunk(source, run, bytes)?);
        rest = after;
    }
    Ok(chunks)
}

fn new_chunk(source: SourceId, run: &[Arc<Batch>], bytes: usize) -> Result<NewChunk, Error> {
    let too_large = || Error::TooLarge { bytes, bytes_max: CHUNK_BYTES_MAX };
    if bytes > CHUNK_BYTES_MAX {
        return Err(too_large());
    }
    let (first, last) = (run[0].as_ref(), run[run.len() - 1].as_ref());
    let run: Vec<&Batch> = run.iter().map(Arc::as_ref).collect();
    let mut datasets: Vec<i32> =
        run.iter().flat_map(|batch| batch.datasets()).map(|dataset| dataset.0).collect();
    datasets.sort_unstable();
    datasets.dedup();
    let count = |count: usize| i32::try_from(count).map_err(|_| too_large());
    Ok(NewChunk {
        source_id: source.0,
        first_position: Batch::first(first).to_string(),
        last_position: last.last().to_string(),
        changes: count(run.iter().map(|batch| batch.len()).sum())?,
        bytes: count(bytes)?,
        datasets,
        payload: chunk::encode(&run),
    })
}

fn found_batches(rows: &[FoundChunk]) -> Result<Vec<Arc<Batch>>, Error> {
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        let (Some(last), Some(payload)) = (&row.last_position, &row.payload) else { continue };
        let batch = chunk::decode(payload)
            .map_err(|reason| corrupt(format!("the one that ends at {last}: {reason}")))?;
        batches.push(Arc::new(batch));
    }
    Ok(batches)
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
