//! The record of findings.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::unreadable;
use crate::registry::schema::{findings, sources};
use crate::registry::{Finding, FindingFilter, Findings, NewFinding, Page, Question, Severity};
use crate::vocab::{SourceId, limits};

/// Opens what is new and touches what is still there; tells which were new. A row that was inserted
/// has no `xmax`.
const PUT: &str = "
    INSERT INTO findings AS f
      (source_id, question, kind, severity, dataset, object, found, expected, mend)
    SELECT $1, n.question, n.kind, n.severity, n.dataset, n.object, n.found, n.expected, n.mend
    FROM jsonb_to_recordset($2) AS n (question text, kind text, severity text, dataset text,
      object text, found text, expected text, mend text)
    ON CONFLICT (source_id, kind, object) WHERE repaired_at IS NULL DO UPDATE SET
      severity = excluded.severity, dataset = excluded.dataset, found = excluded.found,
      expected = excluded.expected, mend = excluded.mend, last_seen_at = now()
    RETURNING (xmax = 0) AS new, (SELECT name FROM sources WHERE id = f.source_id) AS source, f.id,
      f.question, f.kind, f.severity, f.dataset, f.object, f.found, f.expected, f.mend,
      f.first_seen_at, f.last_seen_at, f.repaired_at";

/// Closes what is not in the list.
const CLOSE: &str = "
    UPDATE findings f SET repaired_at = now()
    WHERE f.source_id = $1 AND f.repaired_at IS NULL
      AND NOT EXISTS (SELECT FROM jsonb_to_recordset($2) AS n (kind text, object text)
                      WHERE n.kind = f.kind AND n.object = f.object)
    RETURNING false AS new, (SELECT name FROM sources WHERE id = f.source_id) AS source, f.id,
      f.question, f.kind, f.severity, f.dataset, f.object, f.found, f.expected, f.mend,
      f.first_seen_at, f.last_seen_at, f.repaired_at";

/// Forgets what was closed long ago.
const FORGET: &str = "
    DELETE FROM findings
    WHERE source_id = $1 AND repaired_at < now() - make_interval(days => $2)";

#[derive(QueryableByName, Queryable, Selectable)]
#[diesel(table_name = findings, check_for_backend(diesel::pg::Pg))]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    question: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    severity: String,
    #[diesel(sql_type = Nullable<Text>)]
    dataset: Option<String>,
    #[diesel(sql_type = Text)]
    object: String,
    #[diesel(sql_type = Text)]
    found: String,
    #[diesel(sql_type = Text)]
    expected: String,
    #[diesel(sql_type = Nullable<Text>)]
    mend: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    first_seen_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    last_seen_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    repaired_at: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Touched {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    new: bool,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(embed)]
    row: Row,
}

impl Row {
    fn read(self, source: &str) -> QueryResult<Finding> {
        let unknown = |what| unreadable(std::io::Error::other(what));
        let question = Question::ALL.into_iter().find(|known| known.as_str() == self.question);
        let severity = Severity::ALL.into_iter().find(|known| known.as_str() == self.severity);
        Ok(Finding {
            id: self.id,
            source: source.parse().map_err(unreadable)?,
            question: question.ok_or_else(|| unknown("a finding has an unknown question"))?,
            kind: self.kind,
            severity: severity.ok_or_else(|| unknown("a finding has an unknown severity"))?,
            dataset: self.dataset,
            object: self.object,
            found: self.found,
            expected: self.expected,
            mend: self.mend,
            first_seen_at: self.first_seen_at,
            last_seen_at: self.last_seen_at,
            repaired_at: self.repaired_at,
        })
    }
}

/// Opens, touches and closes, as `found` says.
pub(in crate::registry) async fn findings_record(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    found: &[NewFinding],
) -> QueryResult<Findings> {
    let found = serde_json::json!(found);
    connection
        .transaction(async |connection| {
            let put: Vec<Touched> = diesel::sql_query(PUT)
                .bind::<Integer, _>(source.0)
                .bind::<Jsonb, _>(&found)
                .load(connection)
                .await?;
            let closed: Vec<Touched> = diesel::sql_query(CLOSE)
                .bind::<Integer, _>(source.0)
                .bind::<Jsonb, _>(&found)
                .load(connection)
                .await?;
            diesel::sql_query(FORGET)
                .bind::<Integer, _>(source.0)
                .bind::<Integer, _>(limits::FINDINGS_KEPT_DAYS)
                .execute(connection)
                .await?;
            let read = |touched: Touched| touched.row.read(&touched.source);
            Ok(Findings {
                opened: put
                    .into_iter()
                    .filter(|put| put.new)
                    .map(read)
                    .collect::<Result<_, _>>()?,
                closed: closed.into_iter().map(read).collect::<Result<_, _>>()?,
            })
        })
        .await
}

/// One page, the latest first.
pub(in crate::registry) async fn findings(
    connection: &mut AsyncPgConnection,
    filter: &FindingFilter,
    page: Page<i64>,
) -> QueryResult<Vec<Finding>> {
    let mut query = findings::table
        .inner_join(sources::table)
        .select((Row::as_select(), sources::name))
        .order(findings::id.desc())
        .limit(i64::try_from(page.first).unwrap_or(i64::MAX))
        .into_boxed();
    if let Some(source) = &filter.source {
        query = query.filter(sources::name.eq(source.as_str()));
    }
    if let Some(dataset) = &filter.dataset {
        query = query.filter(findings::dataset.eq(dataset.as_str()));
    }
    if let Some(kinds) = &filter.kinds {
        query = query.filter(findings::kind.eq_any(kinds));
    }
    match filter.open {
        Some(true) => query = query.filter(findings::repaired_at.is_null()),
        Some(false) => query = query.filter(findings::repaired_at.is_not_null()),
        None => {}
    }
    if let Some(after) = page.after {
        query = query.filter(findings::id.lt(after));
    }
    let rows: Vec<(Row, String)> = query.load(connection).await?;
    rows.into_iter().map(|(row, source)| row.read(&source)).collect()
}
