//! Finding chunks: by position, by dataset, by row, by moment.
//!
//! Every chunk's checksum is compared before anything in it is believed.

use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::{PostgresStore, corrupt, log_parts, on_blocking_thread, position};
use crate::log::chunk::{self, CHUNK_BYTES_MAX};
use crate::log::digest::checksum;
use crate::log::{Batch, Error, Key, Page, filter};
use crate::vocab::{DatasetId, Position, SourceId};

/// Datasets up to which each is looked up by itself; for more, all chunks are looked through.
const LOOKED_UP_MAX: usize = 32;

/// Partitions before the day of the position are not opened.
const FROM_DAY: &str = "day >= coalesce( \
         (SELECT max(d.day) FROM log_days d WHERE d.source_id = $1 AND d.first_position <= $2), \
         DATE 'epoch')";

/// One statement, so that chunks, end and trim point are of one moment. The running sum is taken
/// before a payload is looked at; 256 chunks are examined at most. `FOUND` is the place of the
/// chunks.
const READ: &str = "SELECT e.last_position AS log_end, e.trimmed_upto, \
         c.last_position, c.checksum, c.payload \
     FROM log_ends e LEFT JOIN LATERAL ( \
         SELECT f.last_position, f.checksum, f.payload, \
                sum(f.bytes) OVER (ORDER BY f.last_position ROWS UNBOUNDED PRECEDING) - f.bytes \
                    AS earlier \
         FROM (FOUND) f \
     ) c ON c.earlier < $3 \
     WHERE e.source_id = $1 \
     ORDER BY c.last_position";

/// The chunks in order, those without a change of the datasets `$4` left out if it is given.
const FOUND_IN_ORDER: &str = "SELECT last_position, checksum, payload, bytes FROM log_chunks \
     WHERE source_id = $1 AND last_position > $2 AND FROM_DAY \
       AND ($4::integer[] IS NULL OR datasets && $4) \
     ORDER BY last_position LIMIT 256";

/// The chunks of the datasets `$4`, found by their parts; those whose filter shows that no change
/// has the marks `$6`, `$7` in the columns `$5` left out. Each chunk is looked up by itself, however
/// short the log seems to the planner.
const FOUND_BY_PARTS: &str = "SELECT c.last_position, c.checksum, c.payload, c.bytes \
     FROM (SELECT DISTINCT p.last_position, p.day \
           FROM unnest($4::integer[]) AS wanted (id), LATERAL ( \
               SELECT last_position, day FROM log_parts \
               WHERE source_id = $1 AND dataset_id = wanted.id AND last_position > $2 \
                 AND FROM_DAY AND (key_filter IS NULL OR NOT EXISTS ( \
                     SELECT FROM unnest($5::text[], $6::bigint[], $7::bigint[]) \
                         AS mark (name, low, high), generate_series(0, PROBES - 1) AS probe \
                     WHERE mark.name = ANY (key_columns) \
                       AND get_bit(key_filter, (mark.low + probe * mark.high) \
                                               % (8 * octet_length(key_filter))) = 0)) \
               ORDER BY last_position LIMIT 256 \
           ) p ORDER BY p.last_position LIMIT 256) found \
     CROSS JOIN LATERAL ( \
         SELECT last_position, checksum, payload, bytes FROM log_chunks \
         WHERE source_id = $1 AND day = found.day AND last_position = found.last_position LIMIT 1 \
     ) c";

/// The first chunk at whose end the latest commit is at or after `$2`.
pub(super) const MOMENT: &str = "SELECT e.trimmed_upto, \
         e.trimmed_committed >= $2 AND e.trimmed_upto <> $3 AS is_trimmed, \
         c.first_position, c.last_position, c.checksum, c.payload \
     FROM log_ends e LEFT JOIN LATERAL ( \
         SELECT first_position, last_position, checksum, payload FROM log_chunks \
         WHERE source_id = $1 AND committed_upto >= $2 AND last_position > e.trimmed_upto \
         ORDER BY committed_upto, last_position LIMIT 1 \
     ) c ON true \
     WHERE e.source_id = $1";

#[derive(QueryableByName)]
struct FoundChunk {
    #[diesel(sql_type = Text)]
    log_end: String,
    #[diesel(sql_type = Text)]
    trimmed_upto: String,
    #[diesel(sql_type = Nullable<Text>)]
    last_position: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    checksum: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct FoundMoment {
    #[diesel(sql_type = Text)]
    trimmed_upto: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    is_trimmed: bool,
    #[diesel(sql_type = Nullable<Text>)]
    first_position: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    last_position: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    checksum: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
}

pub(super) static READ_IN_ORDER: LazyLock<String> = LazyLock::new(|| statement(FOUND_IN_ORDER));
pub(super) static READ_BY_PARTS: LazyLock<String> = LazyLock::new(|| statement(FOUND_BY_PARTS));

/// The statement that reads with this place of the chunks.
fn statement(found: &str) -> String {
    READ.replace("FOUND", found)
        .replace("FROM_DAY", FROM_DAY)
        .replace("PROBES", &filter::PROBES.to_string())
}

impl PostgresStore {
    pub(super) async fn read_page(
        &self,
        source: SourceId,
        after: Position,
        datasets: Option<&[DatasetId]>,
        key: Option<&Key>,
        bytes: usize,
    ) -> Result<Page, Error> {
        let datasets = datasets.map(|ids| ids.iter().map(|id| id.0).collect::<Vec<_>>());
        let by_parts = datasets.as_ref().is_some_and(|ids| ids.len() <= LOOKED_UP_MAX);
        let query = diesel::sql_query(if by_parts { &**READ_BY_PARTS } else { &**READ_IN_ORDER })
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(after.to_string())
            .bind::<BigInt, _>(bytes.clamp(1, CHUNK_BYTES_MAX) as i64)
            .bind::<Nullable<Array<Integer>>, _>(datasets);
        let mut conn = self.pool.get().await?;
        let rows: Vec<FoundChunk> = if by_parts {
            let marks: Vec<_> = key.iter().flat_map(|key| key.marks()).collect();
            let names: Vec<&str> = marks.iter().map(|(name, _)| *name).collect();
            let halves = marks.iter().map(|(_, mark)| filter::halves(*mark));
            let (low, high): (Vec<i64>, Vec<i64>) = halves.unzip();
            query
                .bind::<Array<Text>, _>(names)
                .bind::<Array<BigInt>, _>(low)
                .bind::<Array<BigInt>, _>(high)
                .load(&mut *conn)
                .await?
        } else {
            query.load(&mut *conn).await?
        };
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

    pub(super) async fn find_moment(
        &self,
        source: SourceId,
        at: DateTime<Utc>,
    ) -> Result<Option<Position>, Error> {
        let mut conn = self.pool.get().await?;
        let found: Option<FoundMoment> = diesel::sql_query(MOMENT)
            .bind::<Integer, _>(source.0)
            .bind::<Timestamptz, _>(at)
            .bind::<Text, _>(Position::MIN.to_string())
            .get_result(&mut *conn)
            .await
            .optional()?;
        drop(conn);
        let Some(found) = found else { return Ok(None) };
        let trimmed = position(&found.trimmed_upto)?;
        if found.is_trimmed {
            return Err(Error::Trimmed { earliest: trimmed });
        }
        let (Some(first), Some(last), Some(checksum), Some(payload)) =
            (found.first_position, found.last_position, found.checksum, found.payload)
        else {
            return Ok(None);
        };
        let first = position(&first)?;
        let batch = on_blocking_thread(move || batch(&last, &checksum, &payload)).await?;
        let index = batch.index_committed_at(at.timestamp_millis());
        let change = index.and_then(|index| batch.entry(index));
        let change = change.map_or(first, |(entry, _)| entry.position);
        Ok(Some(change.before().max(trimmed)))
    }

    pub(super) async fn load_key_columns(
        &self,
        source: SourceId,
        dataset: DatasetId,
    ) -> Result<Option<Vec<String>>, Error> {
        let mut conn = self.pool.get().await?;
        let columns: Option<Option<Vec<String>>> = log_parts::table
            .filter(log_parts::source_id.eq(source.0))
            .filter(log_parts::dataset_id.eq(dataset.0))
            .filter(log_parts::key_columns.is_not_null())
            .order(log_parts::last_position.desc())
            .select(log_parts::key_columns)
            .first(&mut *conn)
            .await
            .optional()?;
        Ok(columns.flatten())
    }
}

fn found_batches(rows: &[FoundChunk]) -> Result<Vec<Arc<Batch>>, Error> {
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        let (Some(last), Some(checksum), Some(payload)) =
            (&row.last_position, &row.checksum, &row.payload)
        else {
            continue;
        };
        batches.push(Arc::new(batch(last, checksum, payload)?));
    }
    Ok(batches)
}

/// The batch in the chunk that ends at `last`.
fn batch(last: &str, expected: &[u8], payload: &[u8]) -> Result<Batch, Error> {
    let broken = |reason: String| corrupt(format!("the one that ends at {last}: {reason}"));
    if checksum(payload) != expected {
        return Err(broken("its bytes do not have its checksum".to_owned()));
    }
    chunk::decode(payload).map_err(broken)
}
