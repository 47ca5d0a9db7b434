//! The statements that read a table in chunks.
//!
//! Everything goes by the simple protocol: it gives each value as the text of its type's output
//! function, which is what the stream carries, and takes several statements in one round trip.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::Utc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::shape::KeyColumn;
use super::{Bound, Chunk, Error, Key, Read, Row, Seen, Shape, Wanted, key};
use crate::capture::catalog;
use crate::capture::decode::Tuple;
use crate::capture::envelope;
use crate::capture::relation::{Database, PreparedRelation, Table};
use crate::config::PostgresOptions;
use crate::pg::{Connection, STREAMED_BY, Target, capturer, quote_ident, quote_literal};
use crate::registry::{Dataset, SchemaVersion, TableName};
use crate::vocab::{DatasetName, Lsn, SourceName};

/// The text forms the encoder understands, those of the replication session. A policy that hides
/// rows from the role makes the read fail instead of being incomplete.
const SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO'; \
    SET IntervalStyle = 'iso_8601'; SET TimeZone = 'UTC'; SET bytea_output = 'hex'; \
    SET extra_float_digits = 1; SET row_security = off; SET jit = off";

/// Rows fetched first, before their size is known.
const FIRST_ROWS: usize = 16;

/// Most rows fetched at once.
const FETCH_ROWS_MAX: usize = 2_000;

/// Size of a page of WAL, and the longest header at its beginning, in bytes.
const WAL_PAGE_BYTES: u64 = 8192;
const WAL_HEADER_BYTES_MAX: u64 = 40;

/// First version whose publications have column lists and row filters.
const COLUMN_LISTS_SINCE: u32 = 150_000;

/// First version that can publish generated columns.
const GENERATED_SINCE: u32 = 180_000;

/// A connection to a source that reads tables.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    database: String,
    version: u32,
    /// A table without a key, in the middle of its one transaction.
    open: Option<Open>,
}

#[derive(Debug, Clone)]
struct Open {
    shape: Arc<Shape>,
    seen: Seen,
    lsn: Lsn,
    at_ms: i64,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// When the source cannot be reached.
    pub async fn open(target: &Target, options: &PostgresOptions) -> Result<Self, Error> {
        let connection = target.connect("cadastre snapshot", options).await?;
        connection.batch_execute(SETTINGS).await?;
        let mut session =
            Self { connection, database: target.database().to_owned(), version: 0, open: None };
        let row = session.row("SHOW server_version_num").await?;
        session.version = text(&row, 0)?.parse().unwrap_or_default();
        Ok(session)
    }

    /// Who captures this source, if that is another server.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub async fn captured_elsewhere(&self, source: &SourceName) -> Result<Option<String>, Error> {
        let query = format!("{STREAMED_BY}{}", quote_literal(&source.slot()));
        let row = self.rows(&query).await?.pop();
        let by = row.as_ref().map(|row| text(row, 0).map(str::to_owned)).transpose()?;
        Ok(by.filter(|by| by != capturer()))
    }

    /// The transactions that may have committed in the WAL and are not visible to snapshots yet, of
    /// those that wrote to these tables.
    ///
    /// A transaction holds its lock on every table it wrote until snapshots see it. One whose
    /// session waits for its client's next statement has not begun to commit; neither has one that
    /// was prepared, while no session runs COMMIT PREPARED.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub async fn writers(
        &mut self,
        tables: impl Iterator<Item = &DatasetName>,
    ) -> Result<HashSet<u32>, Error> {
        self.end().await?;
        let names: Vec<_> = tables
            .map(|name| {
                format!("({}, {})", quote_literal(name.schema()), quote_literal(name.table()))
            })
            .collect();
        let query = format!(
            "WITH RECURSIVE tree (oid) AS (
                 SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE (n.nspname, c.relname) IN ({})
                 UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid),
             held AS (
                 SELECT DISTINCT virtualtransaction, pid FROM pg_locks JOIN tree ON oid = relation
                 WHERE locktype = 'relation' AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND mode NOT IN ('AccessShareLock', 'RowShareLock'))
             SELECT DISTINCT x.transactionid FROM held
             JOIN pg_locks x USING (virtualtransaction)
             LEFT JOIN pg_stat_activity a ON a.pid = held.pid
             WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted
               AND CASE WHEN held.pid IS NULL
                   THEN EXISTS (SELECT FROM pg_stat_activity p
                                WHERE p.state IS DISTINCT FROM 'idle' AND p.pid <> pg_backend_pid()
                                  AND (p.query IS NULL OR p.query ~* 'commit\\s+prepared'))
                   ELSE a.state IS DISTINCT FROM 'idle in transaction' END",
            names.join(", ")
        );
        let rows = self.rows(&query).await?;
        rows.iter().map(|row| number(text(row, 0)?)).collect()
    }

    /// Reads the next chunk of a table. The rows of a table without a key all belong to one
    /// moment: while [`Chunk::more`], [`Session::more`] reads on.
    ///
    /// # Errors
    /// When the source cannot be read. The session is of use again if [`Error::retry`] says so and
    /// its connection lives.
    pub async fn read(&mut self, wanted: &Wanted) -> Result<Read, Error> {
        self.end().await?;
        let read = self.begin_and_read(wanted).await;
        if !matches!(&read, Ok(Read::Chunk(chunk)) if chunk.more) {
            self.end_transaction().await?;
        }
        read
    }

    async fn begin_and_read(&mut self, wanted: &Wanted) -> Result<Read, Error> {
        let name = &wanted.table;
        let table = format!("{}.{}", quote_ident(name.schema()), quote_ident(name.table()));
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {table} IN ACCESS SHARE MODE"
        );
        self.connection
            .batch_execute(&begin)
            .await
            .map_err(|error| refused(error, &wanted.dataset.name, &table))?;
        let row = self
            .row(
                "SELECT pg_current_snapshot(), pg_current_wal_insert_lsn(), \
                 (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            )
            .await?;
        let seen = Seen::parse(text(&row, 0)?).ok_or(Error::Surprise("a snapshot"))?;
        let lsn = text(&row, 1)?.parse().map_err(|_| Error::Surprise("an LSN"))?;
        let at_ms = number(text(&row, 2)?)?;
        if let Some(&transaction) = wanted.must_see.iter().find(|&&it| !seen.contains(it)) {
            return Ok(Read::Unsettled { transaction });
        }
        let shape = self.shape(&wanted.dataset, &wanted.table, &wanted.source, &wanted.versions);
        let shape = Arc::new(shape.await?);
        if wanted.known.as_ref().is_some_and(|known| !known.has_same_key(&shape)) {
            return Ok(Read::Rekeyed(shape));
        }
        let open = Open { shape: Arc::clone(&shape), seen, lsn: reachable(lsn), at_ms };
        let mut rows = Vec::new();
        if shape.has_key() && !wanted.points.is_empty() {
            for row in self.rows(&shape.points(&wanted.points)).await? {
                rows.push(open.encode(&row)?);
            }
        }
        let points = rows.len();
        if wanted.after == Bound::End {
            return Ok(Read::Chunk(open.chunk(rows, points, Bound::End, false)));
        }
        // The key's index gives rows in order from any place on; sorting the table would not.
        let planner = if shape.has_key() {
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
        } else {
            // The reader's pace is the transaction's.
            "SET LOCAL idle_in_transaction_session_timeout = '15min'; "
        };
        let query = shape.range(&wanted.after, wanted.rows_max);
        let declare = format!("{planner}DECLARE chunk NO SCROLL CURSOR FOR {query}");
        self.connection
            .batch_execute(&declare)
            .await
            .map_err(|error| refused(error, name, &table))?;
        let exhausted = self.fetch(&open, wanted.bytes_max, wanted.rows_max, &mut rows).await?;
        if !shape.has_key() {
            let upto = if exhausted { Bound::End } else { Bound::Start };
            self.open = (!exhausted).then(|| open.clone());
            return Ok(Read::Chunk(open.chunk(rows, points, upto, !exhausted)));
        }
        // The query gives no more than `rows_max` rows; with as many there may be more.
        let complete = exhausted && rows.len() - points < wanted.rows_max;
        let last = rows.get(points..).and_then(<[Row]>::last).and_then(|row| row.key.clone());
        let upto = match last {
            Some(key) if !complete => Bound::At(key),
            _ => Bound::End,
        };
        Ok(Read::Chunk(open.chunk(rows, points, upto, false)))
    }

    /// The next rows of a table without a key, of the same moment as those before.
    ///
    /// # Errors
    /// When the transaction is gone: the table has to be read from its beginning.
    pub async fn more(&mut self, rows_max: usize, bytes_max: usize) -> Result<Chunk, Error> {
        let open = self.open.take().ok_or(Error::Surprise("more of a table that is not open"))?;
        let mut rows = Vec::new();
        let exhausted = self.fetch(&open, bytes_max, rows_max, &mut rows).await?;
        if exhausted {
            self.end_transaction().await?;
            return Ok(open.chunk(rows, 0, Bound::End, false));
        }
        self.open = Some(open.clone());
        Ok(open.chunk(rows, 0, Bound::Start, true))
    }

    /// For each key whether it lies at or before each of the bounds.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub async fn places(
        &mut self,
        shape: &Shape,
        keys: &[Key],
        bounds: &[&Key],
    ) -> Result<Vec<Vec<bool>>, Error> {
        self.end().await?;
        let rows = self.rows(&shape.places(keys, bounds)).await?;
        if rows.len() != keys.len() {
            return Err(Error::Surprise("the places of some keys"));
        }
        let places = |row: &SimpleQueryRow| {
            (0..bounds.len()).map(|index| row.get(index) == Some("t")).collect()
        };
        Ok(rows.iter().map(places).collect())
    }

    /// Where the source's WAL ends.
    ///
    /// # Errors
    /// When the source cannot be asked.
    pub async fn end_of_wal(&mut self) -> Result<Lsn, Error> {
        self.end().await?;
        let row = self.row("SELECT pg_current_wal_insert_lsn()").await?;
        text(&row, 0)?.parse().map(reachable).map_err(|_| Error::Surprise("an LSN"))
    }

    /// Fetches rows until there are enough. Whether none is left.
    async fn fetch(
        &mut self,
        open: &Open,
        bytes_max: usize,
        rows_max: usize,
        rows: &mut Vec<Row>,
    ) -> Result<bool, Error> {
        let (mut bytes, mut fetched, mut count) = (0, 0, FIRST_ROWS);
        loop {
            let count_now = count.min(rows_max - fetched);
            let found = self.rows(&format!("FETCH FORWARD {count_now} FROM chunk")).await?;
            fetched += found.len();
            for row in &found {
                let row = open.encode(row)?;
                bytes += row.head.len();
                rows.push(row);
            }
            if found.len() < count_now {
                return Ok(true);
            }
            if bytes >= bytes_max || fetched >= rows_max {
                return Ok(false);
            }
            let width = (bytes / fetched).max(1);
            count = ((bytes_max - bytes) / width).clamp(1, FETCH_ROWS_MAX);
        }
    }

    /// The dataset's table, by this name, as it is, of what is published of it; its rows name the
    /// version of these, the newest first, that they are of.
    ///
    /// # Errors
    /// When the source cannot be asked, or has no such table.
    pub async fn shape(
        &self,
        dataset: &Arc<Dataset>,
        name: &DatasetName,
        source: &SourceName,
        versions: &[SchemaVersion],
    ) -> Result<Shape, Error> {
        let rows = self.rows(&self.description(name, source)).await?;
        let first = rows.first().ok_or_else(|| Error::Gone(dataset.name.clone()))?;
        let is_partitioned = text(first, 5)? == "p";
        let rows_estimated = text(first, 6)?.parse::<f64>().unwrap_or_default();
        let filter = first.try_get(7)?.map(|filter| format!("({filter})"));
        let (mut columns, mut types, mut key) = (Vec::new(), Vec::new(), Vec::new());
        let mut typmods = Vec::new();
        for row in &rows {
            let (column, oid) = (text(row, 0)?, number(text(row, 1)?)?);
            let place: usize = number(text(row, 4)?)?;
            if place > 0 {
                let column = KeyColumn {
                    name: column.to_owned(),
                    index: columns.len(),
                    type_name: text(row, 2)?.to_owned(),
                    collation: text(row, 3)?.to_owned(),
                };
                key.push((place, column));
            }
            columns.push(quote_ident(column));
            types.push((column.to_owned(), oid));
            typmods.push(number(text(row, 9)?)?);
        }
        key.sort_by_key(|(place, _)| *place);
        let key_columns: usize = number(text(first, 8)?)?;
        let mut key: Vec<_> = key.into_iter().map(|(_, column)| column).collect();
        let table_name =
            TableName { schema: name.schema().to_owned(), table: name.table().to_owned() };
        let version = versions.iter().find(|version| {
            let columns = types.iter().zip(&typmods);
            let columns = columns.map(|((name, oid), typmod)| (name.as_str(), *oid, *typmod));
            version.shape.has_rows_of(&table_name, columns)
        });
        let version = version.map(|version| version.number);
        let table =
            Table::of_columns(table_name, types, |column| key.iter().any(|it| it.name == column));
        let unknown: Vec<u32> = table.types().collect();
        let types = catalog::load(&self.connection, &unknown).await?;
        let database = Database { source, database: &self.database };
        let relation = PreparedRelation::new(&table, &database, (dataset, None), &types, version);
        // A key of which a column is not published, or has no text to come back from, is none.
        let readable = |it: &KeyColumn| {
            relation.columns.get(it.index).is_some_and(|column| key::is_readable(&column.kind))
        };
        if key.len() != key_columns || !key.iter().all(readable) {
            key.clear();
        }
        let only = if is_partitioned { "" } else { "ONLY " };
        Ok(Shape {
            from: format!("{only}{}.{}", quote_ident(name.schema()), quote_ident(name.table())),
            columns,
            key,
            filter,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an estimate"
            )]
            rows_estimated: rows_estimated.max(0.0) as u64,
            relation,
        })
    }

    /// One row for each published column: name, type, type for casts, collation, place in the key;
    /// and of the table: kind, estimated rows, row filter, number of columns of the key; and what
    /// the column's type was given.
    ///
    /// The key is the replica identity, since that is what changes name rows by; with FULL any
    /// unique one will do.
    fn description(&self, name: &DatasetName, source: &SourceName) -> String {
        let (schema, table) = (quote_literal(name.schema()), quote_literal(name.table()));
        let published = if self.version < COLUMN_LISTS_SINCE {
            "SELECT NULL::name[] AS attnames, NULL::text AS rowfilter".to_owned()
        } else {
            format!(
                "SELECT attnames, rowfilter FROM pg_publication_tables WHERE pubname = {} \
                 AND schemaname = {schema} AND tablename = {table}",
                quote_literal(&source.publication())
            )
        };
        let generated = if self.version < GENERATED_SINCE { "a.attgenerated = ''" } else { "true" };
        format!(
            "WITH t AS (
                 SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = {schema} AND c.relname = {table}),
             k AS (
                 SELECT i.indkey, i.indnkeyatts::int FROM pg_index i JOIN t ON t.oid = i.indrelid
                 WHERE i.indisvalid AND i.indimmediate AND i.indisunique AND i.indpred IS NULL
                   AND i.indexprs IS NULL
                   AND CASE t.relreplident WHEN 'i' THEN i.indisreplident
                       WHEN 'f' THEN true ELSE i.indisprimary END
                   AND NOT EXISTS (
                       SELECT FROM unnest(i.indkey) WITH ORDINALITY u (attnum, place)
                       JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = u.attnum
                       WHERE u.place <= i.indnkeyatts AND NOT a.attnotnull)
                 ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1),
             p AS ({published})
             SELECT a.attname, a.atttypid, format_type(a.atttypid, -1),
               coalesce((SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co
                         JOIN pg_namespace cn ON cn.oid = co.collnamespace
                         WHERE co.oid = a.attcollation AND co.collname <> 'default'), ''),
               coalesce((SELECT u.place FROM k, unnest(k.indkey) WITH ORDINALITY u (attnum, place)
                         WHERE u.attnum = a.attnum AND u.place <= k.indnkeyatts), 0),
               t.relkind,
               CASE t.relkind WHEN 'p'
                 THEN (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)
                       FROM pg_partition_tree(t.oid) e JOIN pg_class l ON l.oid = e.relid
                       WHERE e.isleaf)
                 ELSE greatest(t.reltuples, 0) END,
               (SELECT rowfilter FROM p),
               coalesce((SELECT indnkeyatts FROM k), 0),
               a.atttypmod
             FROM t JOIN pg_attribute a ON a.attrelid = t.oid
             WHERE a.attnum > 0 AND NOT a.attisdropped
               AND coalesce(a.attname = ANY ((SELECT attnames FROM p)::name[]), a.attgenerated = '')
               AND {generated}
             ORDER BY a.attnum"
        )
    }

    /// Ends a transaction that is left over from a table without a key.
    async fn end(&mut self) -> Result<(), Error> {
        if self.open.take().is_some() {
            self.end_transaction().await?;
        }
        Ok(())
    }

    async fn end_transaction(&self) -> Result<(), Error> {
        Ok(self.connection.batch_execute("ROLLBACK").await?)
    }

    async fn rows(&self, query: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        let messages = self.connection.simple_query(query).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    async fn row(&self, query: &str) -> Result<SimpleQueryRow, Error> {
        self.rows(query).await?.pop().ok_or(Error::Surprise("no row"))
    }
}

impl Open {
    fn chunk(self, rows: Vec<Row>, points: usize, upto: Bound, more: bool) -> Chunk {
        Chunk { shape: self.shape, seen: self.seen, lsn: self.lsn, rows, points, upto, more }
    }

    /// A row as an event, by way of the form in which the stream carries rows.
    fn encode(&self, row: &SimpleQueryRow) -> Result<Row, Error> {
        let shape = &self.shape;
        let mut bytes = Vec::new();
        let values = (0..row.len()).map(|index| row.try_get(index));
        Tuple::write(values.collect::<Result<Vec<_>, _>>()?.into_iter(), &mut bytes)
            .ok_or(Error::Surprise("a row too large to be a row"))?;
        let tuple = Tuple::parse(&bytes).map_err(|_| Error::Surprise("a row"))?;
        let mut head = Vec::with_capacity(bytes.len() + 512);
        let now_ms = Utc::now().timestamp_millis();
        envelope::write_read(&shape.relation, tuple, self.lsn, (self.at_ms, now_ms), &mut head);
        let key = shape.key.iter().map(|column| row.get(column.index).map(str::to_owned));
        let key = match key.collect::<Option<Vec<_>>>() {
            Some(values) if !values.is_empty() => Some(Key(values)),
            _ => None,
        };
        Ok(Row { key, head, tail: envelope::READ_TAIL })
    }
}

/// The end of WAL as a reader of it can reach it: what is inserted next after a full page stands
/// behind that page's header, which nobody has read until there is something behind it.
fn reachable(lsn: Lsn) -> Lsn {
    let into_page = lsn.get() % WAL_PAGE_BYTES;
    if into_page <= WAL_HEADER_BYTES_MAX { Lsn::new(lsn.get() - into_page) } else { lsn }
}

fn refused(error: tokio_postgres::Error, dataset: &DatasetName, table: &str) -> Error {
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Error::Denied {
            dataset: dataset.clone(),
            table: table.to_owned(),
            role: "the role of the source's connection".to_owned(),
        },
        Some(code) if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(code) => {
            Error::Gone(dataset.clone())
        }
        _ => error.into(),
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Source(error.into())
    }
}

fn text(row: &SimpleQueryRow, index: usize) -> Result<&str, Error> {
    row.try_get(index)?.ok_or(Error::Surprise("a NULL"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Surprise("a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_full_page_is_reached_before_its_next_page_has_a_header() {
        for (end, reached) in [(8192, 8192), (8192 + 24, 8192), (8192 + 40, 8192), (8300, 8300)] {
            assert_eq!(reachable(Lsn::new(end)), Lsn::new(reached));
        }
    }
}
