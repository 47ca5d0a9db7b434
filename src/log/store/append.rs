//! Appending: batches become rows, and the end of the log moves over them.
//!
//! What the rows need of those before them (the chain, the running totals) is remembered from one
//! append to the next. The end only moves if it stands where the memory says, so that a memory which
//! another writer has made old cannot do harm: it is read again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Date, Integer, Text, Timestamptz};
use diesel_async::{AsyncConnection, RunQueryDsl};

use super::{
    PostgresStore, corrupt, log_chunks, log_ends, log_parts, log_totals, on_blocking_thread,
    position,
};
use crate::log::batch::Marked;
use crate::log::chunk::{self, CHUNK_BYTES_MAX};
use crate::log::contract::check_order;
use crate::log::digest::{Digest, Link, checksum};
use crate::log::{Batch, Error, filter};
use crate::pg;
use crate::vocab::limits::BATCH_BYTES_MAX;
use crate::vocab::{DatasetId, Position, SourceId};

/// Rows of `log_parts` in one statement: PostgreSQL takes 65535 values.
const PARTS_MAX: usize = 4_000;

/// Touches no row when the log does not end at `$3` with the chain `$5`. The confirmation of a slot
/// rests on this commit: whatever the database's default, it waits for the disk.
const MOVE_END: &str = "INSERT INTO log_ends AS e \
         (source_id, last_position, trimmed_upto, day, chain, changes, committed_upto) \
     VALUES ($1, $2, $4, (now() AT TIME ZONE 'UTC')::date, $6, $7, $8) \
     ON CONFLICT (source_id) DO UPDATE SET \
         last_position = excluded.last_position, day = greatest(e.day, excluded.day), \
         chain = excluded.chain, changes = e.changes + excluded.changes, \
         committed_upto = excluded.committed_upto \
     WHERE e.last_position = $3 AND e.chain = $5 \
     RETURNING day, \
         to_regclass('log_chunks_' || to_char(day, 'YYYYMMDD')) IS NOT NULL AS ready, \
         CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') \
              THEN set_config('synchronous_commit', 'on', true) END AS waits";

/// The running totals of the datasets, and the sums of the day.
const COUNT: &str = "WITH totals AS ( \
         INSERT INTO log_totals (source_id, dataset_id, changes, digest) \
         SELECT $1, * FROM unnest($2::integer[], $3::bigint[], $4::bytea[]) \
         ON CONFLICT (source_id, dataset_id) \
         DO UPDATE SET changes = excluded.changes, digest = excluded.digest \
     ) INSERT INTO log_days AS d VALUES ($1, $5, $6, $7, $8, $9, $10) \
     ON CONFLICT (source_id, day) DO UPDATE SET \
         last_position = excluded.last_position, chunks = d.chunks + excluded.chunks, \
         changes = d.changes + excluded.changes, bytes = d.bytes + excluded.bytes";

/// The state of a source's log after its last chunk.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    last: Position,
    chain: Link,
    committed_upto: DateTime<Utc>,
    totals: HashMap<DatasetId, (i64, Digest)>,
}

/// Rows to be appended, all but their day, and the state after them.
struct Rows {
    chunks: Vec<ChunkRow>,
    parts: Vec<PartRow>,
    ends: Ends,
}

#[derive(Debug, Clone, Insertable)]
#[diesel(table_name = log_chunks)]
struct ChunkRow {
    source_id: i32,
    day: NaiveDate,
    first_position: String,
    last_position: String,
    changes: i32,
    bytes: i32,
    datasets: Vec<i32>,
    committed_from: DateTime<Utc>,
    committed_upto: DateTime<Utc>,
    checksum: Vec<u8>,
    previous: Vec<u8>,
    chain: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Debug, Clone, Insertable)]
#[diesel(table_name = log_parts)]
struct PartRow {
    source_id: i32,
    dataset_id: i32,
    day: NaiveDate,
    last_position: String,
    changes: i32,
    key_columns: Option<Vec<String>>,
    key_filter: Option<Vec<u8>>,
    total_changes: i64,
    total_digest: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct Moved {
    #[diesel(sql_type = Date)]
    day: NaiveDate,
    #[diesel(sql_type = Bool)]
    ready: bool,
}

/// What became of an attempt that did not fail.
enum Attempt {
    Done(Ends),
    /// The log does not end where it was thought to.
    Moved,
    /// The day has no partition yet.
    NoDay,
}

/// Takes an attempt's transaction back without counting as a failure.
enum Undo {
    NoDay,
    Failed(Error),
}

impl From<diesel::result::Error> for Undo {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl PostgresStore {
    pub(super) async fn append_batches(
        &self,
        source: SourceId,
        batches: &[Arc<Batch>],
    ) -> Result<(), Error> {
        let [first, ..] = batches else { return Ok(()) };
        let first = Batch::first(first);
        check_order(Position::MIN, batches)?;
        let mut remembered = self.ends.lock().remove(&source);
        let mut made_day = false;
        loop {
            let (known, is_fresh) = match remembered.take() {
                Some(ends) => (ends, false),
                None => (self.load_ends(source).await?, true),
            };
            if first <= known.last {
                if is_fresh {
                    return Err(Error::OutOfOrder { first, last: known.last });
                }
                continue;
            }
            match self.attempt(source, batches, known).await? {
                Attempt::Done(ends) => {
                    self.ends.lock().insert(source, ends);
                    return Ok(());
                }
                Attempt::Moved => {}
                Attempt::NoDay if made_day => {
                    return Err(corrupt("it has no partition for its day".to_owned()));
                }
                Attempt::NoDay => {
                    made_day = true;
                    self.make_days().await?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        source: SourceId,
        batches: &[Arc<Batch>],
        known: Ends,
    ) -> Result<Attempt, Error> {
        let (before, before_chain) = (known.last, known.chain);
        let shared = batches.to_vec();
        let now = Utc::now();
        let rows = on_blocking_thread(move || rows(source, &shared, known, now)).await?;
        let mut conn = self.pool.get().await?;
        let outcome = conn
            .transaction(async |conn: &mut pg::PooledConnection| {
                let moved = move_end(conn, source, &rows, before, before_chain).await?;
                let Some(Moved { day, ready }) = moved else { return Ok(None) };
                if !ready {
                    return Err(Undo::NoDay);
                }
                insert(conn, source, rows, day).await.map(Some)
            })
            .await;
        match outcome {
            Ok(Some(ends)) => Ok(Attempt::Done(ends)),
            Ok(None) => Ok(Attempt::Moved),
            Err(Undo::NoDay) => Ok(Attempt::NoDay),
            Err(Undo::Failed(error)) => Err(error),
        }
    }

    async fn load_ends(&self, source: SourceId) -> Result<Ends, Error> {
        let mut conn = self.pool.get().await?;
        let row: Option<(String, Vec<u8>, DateTime<Utc>)> = log_ends::table
            .find(source.0)
            .select((log_ends::last_position, log_ends::chain, log_ends::committed_upto))
            .first(&mut *conn)
            .await
            .optional()?;
        let Some((last, chain, committed_upto)) = row else {
            let (last, chain) = (Position::MIN, Link::default());
            let committed_upto = DateTime::UNIX_EPOCH;
            return Ok(Ends { last, chain, committed_upto, totals: HashMap::new() });
        };
        let rows: Vec<(i32, i64, Vec<u8>)> = log_totals::table
            .filter(log_totals::source_id.eq(source.0))
            .select((log_totals::dataset_id, log_totals::changes, log_totals::digest))
            .load(&mut *conn)
            .await?;
        let unreadable = || corrupt("its end cannot be read".to_owned());
        let mut totals = HashMap::with_capacity(rows.len());
        for (dataset, changes, digest) in rows {
            let digest = Digest::from_bytes(&digest).ok_or_else(unreadable)?;
            totals.insert(DatasetId(dataset), (changes, digest));
        }
        let chain = Link::from_bytes(&chain).ok_or_else(unreadable)?;
        Ok(Ends { last: position(&last)?, chain, committed_upto, totals })
    }
}

/// Moves the end of the log and holds its row until the transaction ends; `None` when it does not
/// stand where it should.
async fn move_end(
    conn: &mut pg::PooledConnection,
    source: SourceId,
    rows: &Rows,
    before: Position,
    before_chain: Link,
) -> Result<Option<Moved>, diesel::result::Error> {
    let changes: i64 = rows.chunks.iter().map(|chunk| i64::from(chunk.changes)).sum();
    diesel::sql_query(MOVE_END)
        .bind::<Integer, _>(source.0)
        .bind::<Text, _>(rows.ends.last.to_string())
        .bind::<Text, _>(before.to_string())
        .bind::<Text, _>(Position::MIN.to_string())
        .bind::<Binary, _>(before_chain.as_bytes())
        .bind::<Binary, _>(rows.ends.chain.as_bytes())
        .bind::<BigInt, _>(changes)
        .bind::<Timestamptz, _>(rows.ends.committed_upto)
        .get_result(conn)
        .await
        .optional()
}

async fn insert(
    conn: &mut pg::PooledConnection,
    source: SourceId,
    rows: Rows,
    day: NaiveDate,
) -> Result<Ends, Undo> {
    let Rows { mut chunks, mut parts, ends } = rows;
    chunks.iter_mut().for_each(|chunk| chunk.day = day);
    parts.iter_mut().for_each(|part| part.day = day);
    diesel::insert_into(log_chunks::table).values(&chunks).execute(conn).await?;
    for parts in parts.chunks(PARTS_MAX) {
        diesel::insert_into(log_parts::table).values(parts).execute(conn).await?;
    }
    // The last part of a dataset has its total.
    let totals: BTreeMap<i32, &PartRow> =
        parts.iter().map(|part| (part.dataset_id, part)).collect();
    let ids: Vec<i32> = totals.keys().copied().collect();
    let changes: Vec<i64> = totals.values().map(|part| part.total_changes).collect();
    let digests: Vec<&[u8]> =
        totals.values().map(|part| part.total_digest.as_deref().unwrap_or_default()).collect();
    let ([first, ..], [.., last]) = (&*chunks, &*chunks) else { return Ok(ends) };
    diesel::sql_query(COUNT)
        .bind::<Integer, _>(source.0)
        .bind::<Array<Integer>, _>(ids)
        .bind::<Array<BigInt>, _>(changes)
        .bind::<Array<Binary>, _>(digests)
        .bind::<Date, _>(day)
        .bind::<Text, _>(&first.first_position)
        .bind::<Text, _>(&last.last_position)
        .bind::<BigInt, _>(chunks.len() as i64)
        .bind::<BigInt, _>(chunks.iter().map(|chunk| i64::from(chunk.changes)).sum::<i64>())
        .bind::<BigInt, _>(chunks.iter().map(|chunk| chunk.payload.len() as i64).sum::<i64>())
        .execute(conn)
        .await?;
    Ok(ends)
}

/// The batches as rows: neighbours share a chunk as long as it stays within the size of a batch.
fn rows(
    source: SourceId,
    batches: &[Arc<Batch>],
    ends: Ends,
    now: DateTime<Utc>,
) -> Result<Rows, Error> {
    let mut rows = Rows { chunks: Vec::new(), parts: Vec::new(), ends };
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
        let run: Vec<&Batch> = run.iter().map(Arc::as_ref).collect();
        rows.push(source, &run, bytes, now)?;
        rest = after;
    }
    Ok(rows)
}

impl Rows {
    /// Adds the chunk of a run of batches.
    fn push(
        &mut self,
        source: SourceId,
        run: &[&Batch],
        bytes: usize,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let too_large = || Error::TooLarge { bytes, bytes_max: CHUNK_BYTES_MAX };
        let count = |count: usize| i32::try_from(count).map_err(|_| too_large());
        let ([first, ..], [.., last]) = (run, run) else { return Ok(()) };
        if bytes > CHUNK_BYTES_MAX {
            return Err(too_large());
        }
        let (first, last) = (Batch::first(first), Batch::last(last));
        let payload = chunk::encode(run);
        let checksum = checksum(&payload);
        let previous = self.ends.chain;
        let committed = commits(run, now);
        self.ends.last = last;
        self.ends.chain = previous.next(first, last, &checksum);
        self.ends.committed_upto = self.ends.committed_upto.max(committed.1);
        let datasets = self.push_parts(source, run, last);
        self.chunks.push(ChunkRow {
            source_id: source.0,
            day: NaiveDate::default(),
            first_position: first.to_string(),
            last_position: last.to_string(),
            changes: count(run.iter().map(|batch| batch.len()).sum())?,
            bytes: count(bytes)?,
            datasets,
            committed_from: committed.0,
            committed_upto: self.ends.committed_upto,
            checksum: checksum.to_vec(),
            previous: previous.as_bytes().to_vec(),
            chain: self.ends.chain.as_bytes().to_vec(),
            payload,
        });
        Ok(())
    }

    /// Adds what the chunk that ends at `last` holds of each dataset; gives their numbers, sorted.
    fn push_parts(&mut self, source: SourceId, run: &[&Batch], last: Position) -> Vec<i32> {
        let mut sums = BTreeMap::<DatasetId, (u64, Digest)>::new();
        for (dataset, (changes, digest)) in run.iter().flat_map(|batch| batch.sums()) {
            let sum = sums.entry(dataset).or_default();
            sum.0 += changes;
            sum.1 += digest;
        }
        for (dataset, (changes, digest)) in &sums {
            let total = self.ends.totals.entry(*dataset).or_default();
            total.0 += changes.cast_signed();
            total.1 += *digest;
            let (key_columns, key_filter) = keys(run, *dataset, *changes).unzip();
            self.parts.push(PartRow {
                source_id: source.0,
                dataset_id: dataset.0,
                day: NaiveDate::default(),
                last_position: last.to_string(),
                changes: i32::try_from(*changes).unwrap_or(i32::MAX),
                key_columns,
                key_filter,
                total_changes: total.0,
                total_digest: Some(total.1.to_bytes().to_vec()),
            });
        }
        sums.keys().map(|dataset| dataset.0).collect()
    }
}

/// The earliest and the latest commit of a run.
fn commits(run: &[&Batch], now: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    let time = |ms: i64| DateTime::from_timestamp_millis(ms).unwrap_or(now);
    run.iter()
        .map(|batch| batch.hints().committed.map_or((now, now), |(a, b)| (time(a), time(b))))
        .reduce(|(from, upto), (a, b)| (from.min(a), upto.max(b)))
        .unwrap_or((now, now))
}

/// Key columns and filter of a dataset's changes in a run, if all of them were marked alike.
fn keys(run: &[&Batch], dataset: DatasetId, changes: u64) -> Option<(Vec<String>, Vec<u8>)> {
    let marked =
        || run.iter().flat_map(|batch| &batch.hints().marked).filter(|it| it.dataset == dataset);
    let columns = &marked().next()?.columns;
    let alike = marked().all(|it| it.columns == *columns);
    let count: usize = marked().map(|it: &Marked| it.changes).sum();
    if !alike || count as u64 != changes {
        return None;
    }
    let marks = marked().flat_map(|it| it.marks.iter().copied()).collect();
    Some((columns.names().to_vec(), filter::build(marks)))
}
