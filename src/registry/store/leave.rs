//! Datasets and sources that leave.

use diesel::dsl::{now, sql};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::write::{end_period, finish, take_turn};
use crate::registry::schema::{
    datasets, findings, guard_baselines, guard_gaps, service_roles, sources, subscriptions,
};
use crate::registry::{Error, Snapshot};
use crate::vocab::{DatasetName, SourceId, SourceName};

/// Releases one dataset.
pub(in crate::registry) async fn dataset_release(
    connection: &mut AsyncPgConnection,
    name: &DatasetName,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let id: Option<i32> = datasets::table
                .inner_join(sources::table)
                .filter(sources::name.eq(name.source().as_str()))
                .filter(datasets::schema_name.eq(name.schema()))
                .filter(datasets::table_name.eq(name.table()))
                .filter(datasets::released_at.is_null())
                .select(datasets::id)
                .first(connection)
                .await
                .optional()?;
            let Some(id) = id else {
                return Err(Error::NotFound { kind: "dataset", name: name.to_string() });
            };
            release(connection, id, name.as_str()).await?;
            finish(connection).await
        })
        .await
}

/// Releases all datasets of a source and marks it.
pub(in crate::registry) async fn source_leave(
    connection: &mut AsyncPgConnection,
    name: &SourceName,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let id: Option<i32> = sources::table
                .filter(sources::name.eq(name.as_str()))
                .filter(sources::state.ne("left"))
                .select(sources::id)
                .first(connection)
                .await
                .optional()?;
            let Some(id) = id else {
                return Err(Error::NotFound { kind: "source", name: name.to_string() });
            };
            let all: Vec<(i32, String, String)> = datasets::table
                .filter(datasets::source_id.eq(id))
                .filter(datasets::released_at.is_null())
                .select((datasets::id, datasets::schema_name, datasets::table_name))
                .load(connection)
                .await?;
            for (id, schema, table) in all {
                release(connection, id, &format!("{name}.{schema}.{table}")).await?;
            }
            let claims = service_roles::table.filter(service_roles::source_id.eq(id));
            diesel::delete(claims).execute(connection).await?;
            diesel::update(sources::table.find(id))
                .set(sources::state.eq("leaving"))
                .execute(connection)
                .await?;
            finish(connection).await
        })
        .await
}

/// Marks a leaving source as gone.
pub(in crate::registry) async fn source_left(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            diesel::delete(guard_baselines::table.find(source.0)).execute(connection).await?;
            let open = findings::table
                .filter(findings::source_id.eq(source.0))
                .filter(findings::repaired_at.is_null());
            diesel::update(open).set(findings::repaired_at.eq(now)).execute(connection).await?;
            let leaving = sources::table.find(source.0).filter(sources::state.eq("leaving"));
            diesel::update(leaving).set(sources::state.eq("left")).execute(connection).await?;
            finish(connection).await
        })
        .await
}

/// Ends the ownership of one dataset that nobody reads.
async fn release(connection: &mut AsyncPgConnection, id: i32, name: &str) -> Result<(), Error> {
    let reading: Option<String> = subscriptions::table
        .filter(sql::<Bool>("").bind::<Text, _>(name).sql(" = ANY (subscriptions.datasets)"))
        .select(subscriptions::name)
        .order(subscriptions::name)
        .first(connection)
        .await
        .optional()?;
    if let Some(subscription) = reading {
        return Err(Error::Conflict {
            message: format!(
                "subscription \"{subscription}\" reads dataset \"{name}\": delete it first"
            ),
        });
    }
    end_period(connection, id).await?;
    diesel::update(datasets::table.find(id))
        .set((
            datasets::owned.eq(None::<bool>),
            datasets::released_at.eq(now),
            datasets::guard.eq("pending"),
        ))
        .execute(connection)
        .await?;
    let open = guard_gaps::table
        .filter(guard_gaps::dataset_id.eq(id))
        .filter(guard_gaps::to_lsn.is_null());
    diesel::update(open)
        .set((
            guard_gaps::to_lsn.eq(guard_gaps::told_lsn.nullable()),
            guard_gaps::closed_at.eq(now),
        ))
        .execute(connection)
        .await?;
    Ok(())
}
