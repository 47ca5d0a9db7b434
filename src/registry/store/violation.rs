//! The record of violations.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::unreadable;
use crate::registry::schema::violations;
use crate::registry::{NewViolation, Page, Verdict, Violation, ViolationFilter};
use crate::vocab::{Epoch, Lsn, SourceId};

/// Rows per statement: with 13 parameters each, well below the protocol's limit of 65 535.
const ROWS_PER_STATEMENT: usize = 1_000;

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = violations, check_for_backend(diesel::pg::Pg))]
struct Row {
    source_id: i32,
    epoch: i16,
    /// The LSN's 64 bits; PostgreSQL has no unsigned type.
    lsn: i64,
    at: DateTime<Utc>,
    verdict: String,
    operation: String,
    dataset: String,
    service: Option<String>,
    role: String,
    login: String,
    application: Option<String>,
    client: Option<String>,
    traceparent: Option<String>,
}

impl From<&NewViolation> for Row {
    fn from(new: &NewViolation) -> Self {
        Self {
            source_id: new.source_id.0,
            epoch: new.epoch.get().into(),
            lsn: new.lsn.get().cast_signed(),
            at: new.at,
            verdict: new.verdict.as_str().to_owned(),
            operation: new.operation.clone(),
            dataset: new.dataset.clone(),
            service: new.service.clone(),
            role: new.role.clone(),
            login: new.login.clone(),
            application: new.application.clone(),
            client: new.client.clone(),
            traceparent: new.traceparent.clone(),
        }
    }
}

impl Row {
    fn read(self, id: i64) -> QueryResult<Violation> {
        let verdict = Verdict::ALL.into_iter().find(|known| known.as_str() == self.verdict);
        let unknown = || unreadable(std::io::Error::other("a violation has an unknown verdict"));
        Ok(Violation {
            id,
            report: NewViolation {
                source_id: SourceId(self.source_id),
                epoch: Epoch::new(u8::try_from(self.epoch).map_err(unreadable)?),
                lsn: Lsn::new(self.lsn.cast_unsigned()),
                at: self.at,
                verdict: verdict.ok_or_else(unknown)?,
                operation: self.operation,
                dataset: self.dataset,
                service: self.service,
                role: self.role,
                login: self.login,
                application: self.application,
                client: self.client,
                traceparent: self.traceparent,
            },
        })
    }
}

/// Stores, all or none, those that are not stored yet, and returns these in the order given.
pub(in crate::registry) async fn violations_record(
    connection: &mut AsyncPgConnection,
    new: &[NewViolation],
) -> QueryResult<Vec<Violation>> {
    connection
        .transaction(async |connection| {
            let mut recorded = Vec::new();
            for some in new.chunks(ROWS_PER_STATEMENT) {
                let rows: Vec<Row> = some.iter().map(Row::from).collect();
                let inserted: Vec<(i64, Row)> = diesel::insert_into(violations::table)
                    .values(rows)
                    .on_conflict((violations::source_id, violations::epoch, violations::lsn))
                    .do_nothing()
                    .returning((violations::id, Row::as_returning()))
                    .get_results(connection)
                    .await?;
                for (id, row) in inserted {
                    recorded.push(row.read(id)?);
                }
            }
            Ok(recorded)
        })
        .await
}

/// One page, newest first.
pub(in crate::registry) async fn violations(
    connection: &mut AsyncPgConnection,
    filter: &ViolationFilter,
    page: Page<i64>,
) -> QueryResult<Vec<Violation>> {
    let mut query = violations::table
        .select((violations::id, Row::as_select()))
        .order(violations::id.desc())
        .limit(i64::try_from(page.first).unwrap_or(i64::MAX))
        .into_boxed();
    if let Some(dataset) = &filter.dataset {
        query = query.filter(violations::dataset.eq(dataset.as_str()));
    }
    if let Some(service) = &filter.service {
        query = query.filter(violations::service.eq(service.as_str()));
    }
    if let Some(verdict) = filter.verdict {
        query = query.filter(violations::verdict.eq(verdict.as_str()));
    }
    if let Some(after) = page.after {
        query = query.filter(violations::id.lt(after));
    }
    let rows: Vec<(i64, Row)> = query.load(connection).await?;
    rows.into_iter().map(|(id, row)| row.read(id)).collect()
}
