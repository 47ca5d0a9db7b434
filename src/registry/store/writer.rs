//! Who was seen writing what.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::registry::TableWriter;
use crate::vocab::SourceId;

/// Writes that were let through, by dataset and role; the service is the one it last had.
const WRITERS: &str = "
    SELECT dataset, role, (array_agg(service ORDER BY id DESC))[1] AS service,
      bool_and(verdict = 'privileged') AS privileged, count(*) AS transactions,
      array_agg(DISTINCT operation ORDER BY operation) AS operations,
      min(at) AS first_seen, max(at) AS last_seen
    FROM violations
    WHERE source_id = $1 AND verdict <> 'rejected'
      AND operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    GROUP BY dataset, role
    ORDER BY dataset, transactions DESC, role";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    dataset: String,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Bool)]
    privileged: bool,
    #[diesel(sql_type = BigInt)]
    transactions: i64,
    #[diesel(sql_type = Array<Text>)]
    operations: Vec<String>,
    #[diesel(sql_type = Timestamptz)]
    first_seen: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    last_seen: DateTime<Utc>,
}

/// Everybody who was let through in a source.
pub(in crate::registry) async fn writers(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<Vec<TableWriter>> {
    let rows: Vec<Row> =
        diesel::sql_query(WRITERS).bind::<Integer, _>(source.0).load(connection).await?;
    let writer = |row: Row| TableWriter {
        dataset: row.dataset,
        role: row.role,
        service: row.service,
        privileged: row.privileged,
        transactions: row.transactions,
        operations: row.operations,
        first_seen: row.first_seen,
        last_seen: row.last_seen,
    };
    Ok(rows.into_iter().map(writer).collect())
}
