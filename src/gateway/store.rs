//! What the gateway asks of a source: the table's shape, the statements of a request, the answer
//! kept under its key.

use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::Json;

use super::Error;
use super::request::{IdempotencyKey, Request, Written};
use super::shape::{Column, Form, Shape};
use super::statement::{Statement, statements};
use crate::pg::{self, Connection, quote_ident};
use crate::vocab::{DatasetName, ServiceName, SourceName, TraceParent};

/// The columns of a table as the role sees it: the key is the primary key, else the index that is the
/// replica identity.
const SHAPE: &str = "
    SELECT a.attname::text,
      coalesce(nullif(t.typbasetype, 0), t.oid) = 'bytea'::regtype,
      b.typtype::text,
      coalesce(a.attnum = ANY (i.indkey), false),
      a.attidentity = 'a' OR a.attgenerated <> ''
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    JOIN pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
    LEFT JOIN LATERAL (
      SELECT i.indkey FROM pg_index i
      WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)
      ORDER BY i.indisprimary DESC LIMIT 1) i ON true
    WHERE n.nspname = $1 AND c.relname = $2
    ORDER BY a.attnum";

/// A request on its way.
pub(super) struct Work<'a> {
    /// The table.
    pub(super) dataset: &'a DatasetName,
    /// Whose it is.
    pub(super) owner: &'a ServiceName,
    /// What to write.
    pub(super) request: &'a Request,
    /// So that it is written once.
    pub(super) key: Option<&'a IdempotencyKey>,
    /// Of the request that caused it.
    pub(super) trace: Option<&'a TraceParent>,
}

/// Begins a transaction in the caller's trace. Failing here, nothing was sent that could matter.
pub(super) async fn begin(
    client: &Connection,
    trace: Option<&TraceParent>,
) -> Result<(), pg::Error> {
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let trace = trace.map_or("", TraceParent::as_str);
    client.execute("SELECT set_config('cadastre.traceparent', $1, true)", &[&trace]).await?;
    Ok(())
}

/// Does the work in the open transaction, up to before its commit.
pub(super) async fn work(client: &Connection, work: &Work<'_>) -> Result<Written, Error> {
    let (source, owner) = (work.dataset.source(), work.owner);
    let failed = |error: tokio_postgres::Error| failure(source, owner, error);
    if let Some(key) = work.key {
        let taken = "SELECT fresh, same, answered FROM cadastre.gateway_begin($1, $2)";
        let digest: &[u8] = &work.request.digest;
        let row = client.query_one(taken, &[&key.as_str(), &digest]).await.map_err(failed)?;
        let (fresh, same, answered): (bool, Option<bool>, Option<String>) = (
            row.try_get(0).map_err(failed)?,
            row.try_get(1).map_err(failed)?,
            row.try_get(2).map_err(failed)?,
        );
        match (fresh, same, answered) {
            (true, ..) => {}
            (false, Some(true), Some(answer)) => {
                let mut written: Written =
                    serde_json::from_str(&answer).map_err(|_| Error::Busy)?;
                written.replayed = true;
                return Ok(written);
            }
            (false, Some(false), _) => return Err(Error::KeyReused),
            // Forgotten between the two looks at it.
            (false, ..) => return Err(Error::Busy),
        }
    }
    let shape = shape(client, work.dataset).await.map_err(failed)?;
    let mut written =
        Written { tx_id: 0, inserted: Vec::new(), updated: 0, deleted: 0, replayed: false };
    for statement in statements(work.request, &shape)? {
        run(client, work, statement, &mut written).await?;
    }
    let xid = "SELECT (pg_current_xact_id()::text::numeric % 4294967296)::bigint";
    let xid: i64 =
        client.query_one(xid, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    written.tx_id = u32::try_from(xid).unwrap_or_default();
    if let Some(key) = work.key {
        let answer = serde_json::to_string(&written).unwrap_or_default();
        let keep = "SELECT cadastre.gateway_end($1, $2)";
        client.execute(keep, &[&key.as_str(), &answer]).await.map_err(failed)?;
    }
    Ok(written)
}

async fn shape(client: &Connection, dataset: &DatasetName) -> Result<Shape, tokio_postgres::Error> {
    let table = format!("{}.{}", quote_ident(dataset.schema()), quote_ident(dataset.table()));
    let mut columns = Vec::new();
    for row in client.query(SHAPE, &[&dataset.schema(), &dataset.table()]).await? {
        let form = match (row.try_get(1)?, row.try_get(2)?) {
            (true, _) => Form::Bytes,
            (false, "r") => Form::Range,
            (false, "m") => Form::Multirange,
            (false, _) => Form::Plain,
        };
        columns.push(Column {
            name: row.try_get(0)?,
            form,
            is_key: row.try_get(3)?,
            is_generated: row.try_get(4)?,
        });
    }
    Ok(Shape { table, columns })
}

async fn run(
    client: &Connection,
    Work { dataset, owner, .. }: &Work<'_>,
    statement: Statement,
    written: &mut Written,
) -> Result<(), Error> {
    let source = dataset.source();
    let failed = |place: &str, error| at(place, failure(source, owner, error));
    match statement {
        Statement::Insert { sql, rows, place } => {
            let rows = rows.map(Json);
            let answer = match &rows {
                Some(rows) => client.query_one(&sql, &[rows]).await,
                None => client.query_one(&sql, &[]).await,
            };
            let keys: String =
                answer.and_then(|row| row.try_get(0)).map_err(|error| failed(&place, error))?;
            let keys: Vec<Box<serde_json::value::RawValue>> =
                serde_json::from_str(&keys).unwrap_or_default();
            written.inserted.extend(keys);
        }
        Statement::One { sql, key, set, place } => {
            let count = if set.is_some() { &mut written.updated } else { &mut written.deleted };
            let (key, set) = (Json(key), set.map(Json));
            let answer = match &set {
                Some(set) => client.query_one(&sql, &[&key, set]).await,
                None => client.query_one(&sql, &[&key]).await,
            };
            let found: i64 =
                answer.and_then(|row| row.try_get(0)).map_err(|error| failed(&place, error))?;
            if found != 1 {
                let key = serde_json::to_string(&key.0).unwrap_or_default();
                return Err(Error::NoSuchRow { place, key, found });
            }
            *count += 1;
        }
    }
    Ok(())
}

/// What a failed statement means to the caller, by SQLSTATE:
/// <https://www.postgresql.org/docs/18/errcodes-appendix.html>.
pub(super) fn failure(
    source: &SourceName,
    owner: &ServiceName,
    error: tokio_postgres::Error,
) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::Source { source_name: source.clone(), cause: error.into() };
    };
    let message = message(db);
    let code = db.code();
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return if db.message().starts_with("cadastre: ") {
            Error::NotOwner { message, owner: owner.clone() }
        } else {
            Error::NoPrivilege { message }
        };
    }
    if *code == SqlState::LOCK_NOT_AVAILABLE {
        return Error::Busy;
    }
    match code.code().get(..2) {
        Some("23") => Error::Constraint {
            message,
            constraint: db.constraint().map(str::to_owned),
            column: db.column().map(str::to_owned),
        },
        // Bad data, a name or type that is not there, a trigger's or a view's own objection.
        Some("22" | "42" | "P0" | "44" | "09" | "27" | "21") => Error::Refused { message },
        _ => Error::Source { source_name: source.clone(), cause: error.into() },
    }
}

/// An error with its place in the body, where that is the caller's to mend.
fn at(place: &str, error: Error) -> Error {
    let placed = |message: String| format!("{place}: {message}");
    match error {
        Error::Refused { message } => Error::Refused { message: placed(message) },
        Error::Constraint { message, constraint, column } => {
            Error::Constraint { message: placed(message), constraint, column }
        }
        other => other,
    }
}

fn message(db: &DbError) -> String {
    match db.detail() {
        Some(detail) => format!("{} ({detail})", db.message()),
        None => db.message().to_owned(),
    }
}
