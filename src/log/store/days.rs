//! Days: partitions made ahead, the beginning of the log moved, and what lies before it dropped.
//!
//! The beginning moves first and by itself, so that no reader meets a hole: whoever asks for what
//! is about to go is told that it is gone. A partition goes whole once every source has moved past
//! it; what one source has left behind sooner is deleted row by row.

use chrono::{Days, NaiveDate};
use diesel::dsl::{max, sql};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Date, Integer, Text};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};

use super::{PostgresStore, corrupt, log_ends, position};
use crate::log::{Day, Error, GapReason};
use crate::pg;
use crate::vocab::{Position, SourceId};

/// Days made ahead, today included: as long as the server may be busy or the clocks apart.
const AHEAD: u64 = 3;

/// The partitioned tables.
const TABLES: [&str; 2] = ["log_chunks", "log_parts"];

/// Longest wait for a partition to be free of readers before it is left for another time: whoever
/// wants to read waits behind this.
const LOCK_WAIT_MS: u32 = 500;

/// Held while partitions are made or dropped: "log days" in ASCII.
const DAYS_LOCK: i64 = 0x6c6f_6720_6461_7973;

const TODAY: &str = "(now() AT TIME ZONE 'UTC')::date";

const CUT: &str = "UPDATE log_ends e \
     SET trimmed_upto = last.last_position, trimmed_chain = last.chain, \
         trimmed_committed = last.committed_upto, trimmed_reason = $3 \
     FROM (SELECT last_position, chain, committed_upto FROM log_chunks \
           WHERE source_id = $1 AND last_position <= $2 \
           ORDER BY last_position DESC LIMIT 1) last \
     WHERE e.source_id = $1 AND e.trimmed_upto < last.last_position";

const DAYS: &str = "SELECT d.source_id, d.day, d.changes, d.bytes, d.last_position \
     FROM log_days d JOIN log_ends e USING (source_id) \
     WHERE d.last_position > e.trimmed_upto ORDER BY d.source_id, d.day";

/// The partitions there are, and whether every source has left them behind.
const PARTITIONS: &str = "SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day, \
         NOT EXISTS (SELECT FROM log_days d JOIN log_ends e USING (source_id) \
                     WHERE d.day = to_date(right(c.relname, 8), 'YYYYMMDD') \
                       AND d.last_position > e.trimmed_upto) AS is_over \
     FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
     WHERE i.inhparent = 'log_chunks'::regclass ORDER BY 1";

/// Days of which a source has left a part behind.
const LEFT_BEHIND: &str = "SELECT d.source_id, d.day, d.changes, d.bytes, e.trimmed_upto AS last_position \
     FROM log_days d JOIN log_ends e USING (source_id) \
     WHERE d.first_position <= e.trimmed_upto ORDER BY d.source_id, d.day";

/// Deletes a source's chunks of a day up to a position, and takes them out of its sums.
const DELETE_PART: &str = "WITH parts AS ( \
         DELETE FROM log_parts WHERE source_id = $1 AND day = $2 AND last_position <= $3 \
     ), gone AS ( \
         DELETE FROM log_chunks WHERE source_id = $1 AND day = $2 AND last_position <= $3 \
         RETURNING changes, octet_length(payload) AS bytes \
     ), sums AS ( \
         SELECT count(*) AS chunks, coalesce(sum(changes), 0) AS changes, \
                coalesce(sum(bytes), 0) AS bytes FROM gone \
     ), emptied AS ( \
         DELETE FROM log_days WHERE source_id = $1 AND day = $2 AND last_position <= $3 \
     ) UPDATE log_days d SET chunks = d.chunks - sums.chunks, changes = d.changes - sums.changes, \
         bytes = d.bytes - sums.bytes, \
         first_position = (SELECT min(c.first_position) FROM log_chunks c \
                           WHERE c.source_id = $1 AND c.day = $2 AND c.last_position > $3) \
     FROM sums WHERE d.source_id = $1 AND d.day = $2 AND d.last_position > $3";

const FREEING: &str = "SELECT last_position FROM ( \
         SELECT last_position, \
                sum(octet_length(payload)) OVER (ORDER BY last_position ROWS UNBOUNDED PRECEDING) \
                    AS freed \
         FROM log_chunks WHERE source_id = $1 AND last_position > \
             (SELECT trimmed_upto FROM log_ends WHERE source_id = $1) \
     ) c WHERE freed >= $2 ORDER BY last_position LIMIT 1";

#[derive(QueryableByName)]
struct DayRow {
    #[diesel(sql_type = Integer)]
    source_id: i32,
    #[diesel(sql_type = Date)]
    day: NaiveDate,
    #[diesel(sql_type = BigInt)]
    changes: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = Text)]
    last_position: String,
}

#[derive(QueryableByName)]
struct Partition {
    #[diesel(sql_type = Date)]
    day: NaiveDate,
    #[diesel(sql_type = Bool)]
    is_over: bool,
}

#[derive(QueryableByName)]
struct Freeing {
    #[diesel(sql_type = Text)]
    last_position: String,
}

impl PostgresStore {
    /// Makes the partitions of today and the days after that are not there.
    pub(super) async fn make_days(&self) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        conn.transaction(async |conn: &mut pg::PooledConnection| {
            lock_days(conn).await?;
            let today: NaiveDate = diesel::select(sql::<Date>(TODAY)).get_result(conn).await?;
            // A source whose clock once ran ahead goes on with its last day.
            let latest: Option<NaiveDate> =
                log_ends::table.select(max(log_ends::day)).get_result(conn).await?;
            let ahead = (0..AHEAD).filter_map(|days| today.checked_add_days(Days::new(days)));
            let found: Vec<Partition> = diesel::sql_query(PARTITIONS).load(conn).await?;
            let missing = |day: &NaiveDate| !found.iter().any(|partition| partition.day == *day);
            let late = latest.filter(|latest| *latest > today);
            let mut days: Vec<NaiveDate> = ahead.chain(late).filter(missing).collect();
            days.sort_unstable();
            days.dedup();
            for day in days {
                make_day(conn, day).await?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn move_beginning(
        &self,
        source: SourceId,
        upto: Position,
        reason: GapReason,
    ) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        diesel::sql_query(CUT)
            .bind::<Integer, _>(source.0)
            .bind::<Text, _>(upto.to_string())
            .bind::<Text, _>(reason.as_str())
            .execute(&mut *conn)
            .await?;
        Ok(())
    }

    pub(super) async fn load_cut_reason(&self, source: SourceId) -> Result<GapReason, Error> {
        let mut conn = self.pool.get().await?;
        let reason: Option<String> = log_ends::table
            .find(source.0)
            .select(log_ends::trimmed_reason)
            .first(&mut *conn)
            .await
            .optional()?;
        let known = |word: &str| GapReason::ALL.into_iter().find(|it| it.as_str() == word);
        Ok(reason.as_deref().and_then(known).unwrap_or(GapReason::Retention))
    }

    pub(super) async fn load_days(&self) -> Result<Vec<Day>, Error> {
        let mut conn = self.pool.get().await?;
        let rows: Vec<DayRow> = diesel::sql_query(DAYS).load(&mut *conn).await?;
        rows.iter()
            .map(|row| {
                Ok(Day {
                    source: SourceId(row.source_id),
                    day: row.day,
                    changes: row.changes.max(0).unsigned_abs(),
                    bytes: row.bytes.max(0).unsigned_abs(),
                    last: position(&row.last_position)?,
                })
            })
            .collect()
    }

    /// Drops the partitions that every source has left behind, and deletes what some have.
    pub(super) async fn drop_days(&self) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        let today: NaiveDate = diesel::select(sql::<Date>(TODAY)).get_result(&mut *conn).await?;
        let partitions: Vec<Partition> = diesel::sql_query(PARTITIONS).load(&mut *conn).await?;
        for Partition { day, .. } in partitions.iter().filter(|it| it.is_over && it.day < today) {
            drop_day(&mut conn, *day).await?;
        }
        let left: Vec<DayRow> = diesel::sql_query(LEFT_BEHIND).load(&mut *conn).await?;
        for row in left {
            diesel::sql_query(DELETE_PART)
                .bind::<Integer, _>(row.source_id)
                .bind::<Date, _>(row.day)
                .bind::<Text, _>(&row.last_position)
                .execute(&mut *conn)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn find_freeing(
        &self,
        source: SourceId,
        bytes: u64,
    ) -> Result<Option<Position>, Error> {
        let mut conn = self.pool.get().await?;
        let found: Option<Freeing> = diesel::sql_query(FREEING)
            .bind::<Integer, _>(source.0)
            .bind::<BigInt, _>(i64::try_from(bytes).unwrap_or(i64::MAX))
            .get_result(&mut *conn)
            .await
            .optional()?;
        found.map(|found| position(&found.last_position)).transpose()
    }
}

/// Keeps other instances from making or dropping partitions until the transaction ends.
async fn lock_days(conn: &mut pg::PooledConnection) -> Result<(), Error> {
    diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
        .bind::<BigInt, _>(DAYS_LOCK)
        .execute(conn)
        .await?;
    Ok(())
}

/// Attaching, unlike making a partition in place, lets appends and readers go on.
async fn make_day(conn: &mut pg::PooledConnection, day: NaiveDate) -> Result<(), Error> {
    let suffix = day.format("%Y%m%d");
    let next = day.checked_add_days(Days::new(1));
    let next = next.ok_or_else(|| corrupt(format!("there is no day after {day}")))?;
    for table in TABLES {
        let sql = format!(
            "CREATE TABLE {table}_{suffix} (LIKE {table} INCLUDING ALL); \
             ALTER TABLE {table} ATTACH PARTITION {table}_{suffix} \
                 FOR VALUES FROM ('{day}') TO ('{next}')"
        );
        conn.batch_execute(&sql).await?;
    }
    Ok(())
}

/// Drops a day, unless something was appended to it meanwhile.
async fn drop_day(conn: &mut pg::PooledConnection, day: NaiveDate) -> Result<(), Error> {
    let suffix = day.format("%Y%m%d");
    let [chunks, parts] = TABLES.map(|table| format!("{table}_{suffix}"));
    conn.transaction(async |conn: &mut pg::PooledConnection| {
        lock_days(conn).await?;
        conn.batch_execute(&format!(
            "SET LOCAL lock_timeout = {LOCK_WAIT_MS}; \
             LOCK TABLE {chunks}, {parts} IN ACCESS EXCLUSIVE MODE"
        ))
        .await?;
        let partitions: Vec<Partition> = diesel::sql_query(PARTITIONS).load(conn).await?;
        if partitions.iter().any(|partition| partition.day == day && partition.is_over) {
            conn.batch_execute(&format!(
                "DROP TABLE {chunks}, {parts}; DELETE FROM log_days WHERE day = '{day}'"
            ))
            .await?;
        }
        Ok(())
    })
    .await
}
