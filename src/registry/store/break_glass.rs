//! Grants to break glass.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::unreadable;
use crate::registry::break_glass::BreakGlass;
use crate::registry::schema::{break_glass, datasets, services, sources};
use crate::registry::{Error, Mutation};
use crate::vocab::{DatasetId, DatasetName, SourceName};

type Row = (
    Uuid,
    String,
    String,
    String,
    String,
    String,
    String,
    DateTime<Utc>,
    DateTime<Utc>,
    Option<DateTime<Utc>>,
    Option<String>,
);

fn read(row: Row) -> QueryResult<BreakGlass> {
    let (
        id,
        source,
        schema,
        table,
        service,
        reason,
        granted_by,
        granted_at,
        expires_at,
        revoked_at,
        revoked_by,
    ) = row;
    let source: SourceName = source.parse().map_err(unreadable)?;
    Ok(BreakGlass {
        id,
        dataset: DatasetName::new(&source, &schema, &table).map_err(unreadable)?,
        service: service.parse().map_err(unreadable)?,
        reason,
        granted_by,
        granted_at,
        expires_at,
        revoked_at,
        revoked_by,
    })
}

/// Selects grants with the names of what they are about.
macro_rules! grants {
    () => {
        break_glass::table
            .inner_join(datasets::table.inner_join(sources::table))
            .inner_join(services::table)
            .select((
                break_glass::id,
                sources::name,
                datasets::schema_name,
                datasets::table_name,
                services::name,
                break_glass::reason,
                break_glass::granted_by,
                break_glass::granted_at,
                break_glass::expires_at,
                break_glass::revoked_at,
                break_glass::revoked_by,
            ))
    };
}

/// The grants that hold.
pub(super) async fn active(
    connection: &mut AsyncPgConnection,
) -> QueryResult<BTreeMap<Uuid, BreakGlass>> {
    let rows: Vec<Row> = grants!()
        .filter(break_glass::revoked_at.is_null())
        .filter(break_glass::expires_at.gt(diesel::dsl::now))
        .load(connection)
        .await?;
    rows.into_iter().map(|row| Ok((row.0, read(row)?))).collect()
}

/// The latest grants of a dataset, newest first.
pub(in crate::registry) async fn break_glass_of(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
    first: usize,
) -> QueryResult<Vec<BreakGlass>> {
    let rows: Vec<Row> = grants!()
        .filter(break_glass::dataset_id.eq(dataset.0))
        .order(break_glass::granted_at.desc())
        .limit(i64::try_from(first).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
    rows.into_iter().map(read).collect()
}

/// Stores a grant, or that one is taken back. The caller has the writers' turn.
pub(super) async fn put(
    connection: &mut AsyncPgConnection,
    mutation: &Mutation,
    (dataset, service): (i32, i32),
) -> Result<(), Error> {
    if let Mutation::BreakGlassGrant { id, reason, expires_at, by, .. } = mutation {
        diesel::insert_into(break_glass::table)
            .values((
                break_glass::id.eq(id),
                break_glass::dataset_id.eq(dataset),
                break_glass::service_id.eq(service),
                break_glass::reason.eq(reason),
                break_glass::granted_by.eq(by),
                break_glass::expires_at.eq(expires_at),
            ))
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Takes a grant back.
pub(super) async fn revoke(
    connection: &mut AsyncPgConnection,
    id: Uuid,
    by: &str,
) -> Result<(), Error> {
    let still = break_glass::table.find(id).filter(break_glass::revoked_at.is_null());
    let revoked = diesel::update(still)
        .set((break_glass::revoked_at.eq(diesel::dsl::now), break_glass::revoked_by.eq(by)))
        .execute(connection)
        .await?;
    if revoked == 0 {
        let found: bool = diesel::select(diesel::dsl::exists(break_glass::table.find(id)))
            .get_result(connection)
            .await?;
        if !found {
            return Err(Error::NotFound { kind: "permission", name: id.to_string() });
        }
    }
    Ok(())
}
