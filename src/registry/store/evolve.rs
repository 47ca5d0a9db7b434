//! Versions of datasets' tables, their other names, and tables that nobody has registered.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::{unreadable, write};
use crate::registry::{
    Author, Cause, Coupling, CouplingKey, Error, Evolution, KnownTables, NewEvolution, Page,
    SchemaVersion, Snapshot, TableName, UnownedTable,
};
use crate::vocab::{DatasetId, DatasetName, Position, SourceId, SourceName};

/// Records, all or none, what comes after everything recorded of this source before. The snapshot
/// is the one left behind if what readers hold in memory has changed.
pub(in crate::registry) async fn evolutions_record(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    new: &[NewEvolution],
) -> Result<Option<Snapshot>, Error> {
    let for_readers = new.iter().any(|new| match &new.what {
        Evolution::Version(version) => {
            version.number > 1 && version.difference.as_ref().is_some_and(|d| d.table.is_some())
        }
        Evolution::Dropped(_) => true,
        Evolution::Relation { .. }
        | Evolution::Unowned { .. }
        | Evolution::Gone { .. }
        | Evolution::Coupled { .. }
        | Evolution::Uncoupled { .. } => false,
    });
    let related: Vec<i32> = new
        .iter()
        .filter_map(|new| match new.what {
            Evolution::Relation { dataset, .. } => Some(dataset.0),
            _ => None,
        })
        .collect();
    connection
        .transaction(async |connection| {
            let for_readers = for_readers || any_dropped(connection, &related).await?;
            if for_readers {
                write::take_turn(connection).await?;
            }
            let seen = recorded_upto(connection, source).await?;
            let mut last = None;
            for new in new.iter().filter(|new| new.position > seen || is_first(new)) {
                record(connection, new).await?;
                last = last.max(Some(new.position));
            }
            let Some(last) = last.filter(|last| *last > seen) else { return Ok(None) };
            diesel::sql_query("UPDATE sources SET schema_position = $2 WHERE id = $1")
                .bind::<Integer, _>(source.0)
                .bind::<Text, _>(last.to_string())
                .execute(connection)
                .await?;
            if for_readers { write::finish(connection).await.map(Some) } else { Ok(None) }
        })
        .await
}

/// Whether this is a dataset's first version: without it nothing later could be told from it, so it is
/// kept also where the stream passes a dataset that was registered in the meantime once more.
fn is_first(new: &NewEvolution) -> bool {
    matches!(&new.what, Evolution::Version(version) if version.number == 1)
}

#[derive(QueryableByName)]
struct Upto {
    #[diesel(sql_type = Nullable<Text>)]
    schema_position: Option<String>,
}

/// The last position of which something was recorded; others who record wait for their turn.
async fn recorded_upto(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<Position> {
    let sql = "SELECT schema_position FROM sources WHERE id = $1 FOR UPDATE";
    let upto: Upto =
        diesel::sql_query(sql).bind::<Integer, _>(source.0).get_result(connection).await?;
    upto.schema_position.map_or(Ok(Position::MIN), |text| text.parse().map_err(unreadable))
}

async fn record(connection: &mut AsyncPgConnection, new: &NewEvolution) -> QueryResult<()> {
    match &new.what {
        Evolution::Version(version) => put_version(connection, new.source_id, version).await,
        Evolution::Relation { dataset, relid } => {
            let sql = "INSERT INTO dataset_relations (source_id, relid, dataset_id, epoch) \
                       VALUES ($1, $2, $3, $4) ON CONFLICT (source_id, epoch, relid) \
                       DO UPDATE SET dataset_id = excluded.dataset_id";
            diesel::sql_query(sql)
                .bind::<Integer, _>(new.source_id.0)
                .bind::<BigInt, _>(i64::from(*relid))
                .bind::<Integer, _>(dataset.0)
                .bind::<SmallInt, _>(i16::from(new.position.epoch().get()))
                .execute(connection)
                .await?;
            // A table is there again.
            let sql = "UPDATE datasets SET guard = 'installed', dropped_at = NULL \
                       WHERE id = $1 AND guard = 'dropped'";
            diesel::sql_query(sql).bind::<Integer, _>(dataset.0).execute(connection).await?;
            forget_unowned(connection, new.source_id, *relid).await
        }
        Evolution::Dropped(dataset) => {
            let sql = "UPDATE datasets SET guard = 'dropped', dropped_at = $2 WHERE id = $1";
            diesel::sql_query(sql)
                .bind::<Integer, _>(dataset.0)
                .bind::<Timestamptz, _>(new.at)
                .execute(connection)
                .await
                .map(drop)
        }
        Evolution::Unowned { relid, name } => {
            let sql = "INSERT INTO unowned_tables \
                       (source_id, relid, schema_name, table_name, command, service, role, seen_at) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                       ON CONFLICT (source_id, relid) DO UPDATE SET \
                       schema_name = excluded.schema_name, table_name = excluded.table_name";
            diesel::sql_query(sql)
                .bind::<Integer, _>(new.source_id.0)
                .bind::<BigInt, _>(i64::from(*relid))
                .bind::<Text, _>(&name.schema)
                .bind::<Text, _>(&name.table)
                .bind::<Text, _>(new.by.as_ref().map_or("", |by| &by.command))
                .bind::<Nullable<Text>, _>(new.by.as_ref().and_then(|by| by.service.as_deref()))
                .bind::<Text, _>(new.by.as_ref().map_or("", |by| &by.role))
                .bind::<Timestamptz, _>(new.at)
                .execute(connection)
                .await
                .map(drop)
        }
        Evolution::Gone { relid } => forget_unowned(connection, new.source_id, *relid).await,
        Evolution::Coupled { dataset, coupling } => {
            let sql = "INSERT INTO dataset_couplings \
                       (dataset_id, schema_name, table_name, constraint_name, command, service, role, at) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
            diesel::sql_query(sql)
                .bind::<Integer, _>(dataset.0)
                .bind::<Text, _>(&coupling.from.schema)
                .bind::<Text, _>(&coupling.from.table)
                .bind::<Text, _>(&coupling.constraint)
                .bind::<Text, _>(new.by.as_ref().map_or("", |by| &by.command))
                .bind::<Nullable<Text>, _>(new.by.as_ref().and_then(|by| by.service.as_deref()))
                .bind::<Text, _>(new.by.as_ref().map_or("", |by| &by.role))
                .bind::<Timestamptz, _>(new.at)
                .execute(connection)
                .await
                .map(drop)
        }
        Evolution::Uncoupled { dataset, coupling } => {
            let sql = "DELETE FROM dataset_couplings WHERE dataset_id = $1 AND schema_name = $2 \
                       AND table_name = $3 AND constraint_name = $4";
            diesel::sql_query(sql)
                .bind::<Integer, _>(dataset.0)
                .bind::<Text, _>(&coupling.from.schema)
                .bind::<Text, _>(&coupling.from.table)
                .bind::<Text, _>(&coupling.constraint)
                .execute(connection)
                .await
                .map(drop)
        }
    }
}

async fn forget_unowned(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    relid: u32,
) -> QueryResult<()> {
    diesel::sql_query("DELETE FROM unowned_tables WHERE source_id = $1 AND relid = $2")
        .bind::<Integer, _>(source.0)
        .bind::<BigInt, _>(i64::from(relid))
        .execute(connection)
        .await
        .map(drop)
}

/// The version, and the name it gives the table as another name of the dataset, unless that is a
/// dataset's own.
async fn put_version(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    version: &SchemaVersion,
) -> QueryResult<()> {
    let json = |value: Result<serde_json::Value, serde_json::Error>| value.map_err(unreadable);
    let sql = "INSERT INTO dataset_schemas \
               (dataset_id, version, from_position, at, cause, command, service, role, shape, difference) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
               ON CONFLICT DO NOTHING";
    let by = version.by.as_ref();
    diesel::sql_query(sql)
        .bind::<Integer, _>(version.dataset.0)
        .bind::<Integer, _>(i32::try_from(version.number).map_err(unreadable)?)
        .bind::<Text, _>(version.from.to_string())
        .bind::<Timestamptz, _>(version.at)
        .bind::<Text, _>(version.cause.as_str())
        .bind::<Nullable<Text>, _>(by.map(|by| by.command.as_str()))
        .bind::<Nullable<Text>, _>(by.and_then(|by| by.service.as_deref()))
        .bind::<Nullable<Text>, _>(by.map(|by| by.role.as_str()))
        .bind::<Jsonb, _>(json(serde_json::to_value(&*version.shape))?)
        .bind::<Nullable<Jsonb>, _>(
            version.difference.as_ref().map(|it| json(serde_json::to_value(it))).transpose()?,
        )
        .execute(connection)
        .await?;
    let sql = "INSERT INTO dataset_aliases (source_id, schema_name, table_name, dataset_id) \
               SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM datasets \
               WHERE source_id = $1 AND schema_name = $2 AND table_name = $3) \
               ON CONFLICT (source_id, schema_name, table_name) \
               DO UPDATE SET dataset_id = excluded.dataset_id, since = now()";
    diesel::sql_query(sql)
        .bind::<Integer, _>(source.0)
        .bind::<Text, _>(&version.shape.name.schema)
        .bind::<Text, _>(&version.shape.name.table)
        .bind::<Integer, _>(version.dataset.0)
        .execute(connection)
        .await
        .map(drop)
}

#[derive(QueryableByName)]
struct VersionRow {
    #[diesel(sql_type = Integer)]
    dataset_id: i32,
    #[diesel(sql_type = Integer)]
    version: i32,
    #[diesel(sql_type = Text)]
    from_position: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    cause: String,
    #[diesel(sql_type = Nullable<Text>)]
    command: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    role: Option<String>,
    #[diesel(sql_type = Jsonb)]
    shape: serde_json::Value,
    #[diesel(sql_type = Nullable<Jsonb>)]
    difference: Option<serde_json::Value>,
}

impl VersionRow {
    fn read(self) -> QueryResult<SchemaVersion> {
        let known = [Cause::Installed, Cause::Command, Cause::Stream];
        let cause = known.into_iter().find(|known| known.as_str() == self.cause);
        let unknown = || unreadable(std::io::Error::other("a schema version has an unknown cause"));
        let by = self.command.zip(self.role);
        Ok(SchemaVersion {
            dataset: DatasetId(self.dataset_id),
            number: u32::try_from(self.version).map_err(unreadable)?,
            from: self.from_position.parse().map_err(unreadable)?,
            at: self.at,
            cause: cause.ok_or_else(unknown)?,
            by: by.map(|(command, role)| Author { command, service: self.service, role }),
            shape: Arc::new(serde_json::from_value(self.shape).map_err(unreadable)?),
            difference: self
                .difference
                .map(|it| serde_json::from_value(it).map_err(unreadable))
                .transpose()?,
        })
    }
}

#[derive(QueryableByName)]
struct RelationRow {
    #[diesel(sql_type = BigInt)]
    relid: i64,
    #[diesel(sql_type = Integer)]
    dataset_id: i32,
}

/// What a stream that goes on after `position` needs to know of its tables.
pub(in crate::registry) async fn known_tables(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    position: Position,
) -> QueryResult<KnownTables> {
    let sql = "SELECT s.* FROM dataset_schemas s JOIN datasets d ON d.id = s.dataset_id \
               WHERE d.source_id = $1 AND s.from_position >= coalesce((\
                 SELECT max(f.from_position) FROM dataset_schemas f \
                 WHERE f.dataset_id = s.dataset_id AND f.from_position <= $2), '') \
               ORDER BY s.dataset_id, s.version";
    let rows: Vec<VersionRow> = diesel::sql_query(sql)
        .bind::<Integer, _>(source.0)
        .bind::<Text, _>(position.to_string())
        .get_results(connection)
        .await?;
    let relations: Vec<RelationRow> = diesel::sql_query(
        "SELECT relid, dataset_id FROM dataset_relations WHERE source_id = $1 AND epoch = $2",
    )
    .bind::<Integer, _>(source.0)
    .bind::<SmallInt, _>(i16::from(position.epoch().get()))
    .get_results(connection)
    .await?;
    let relation = |row: RelationRow| {
        Ok((u32::try_from(row.relid).map_err(unreadable)?, DatasetId(row.dataset_id)))
    };
    Ok(KnownTables {
        recorded: recorded_upto(connection, source).await?,
        versions: rows.into_iter().map(VersionRow::read).collect::<QueryResult<_>>()?,
        relations: relations.into_iter().map(relation).collect::<QueryResult<_>>()?,
    })
}

/// A page of a dataset's versions, newest first; `after` is the number the last page ended with.
pub(in crate::registry) async fn schema_history(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
    page: Page<i32>,
) -> QueryResult<Vec<SchemaVersion>> {
    let sql = "SELECT * FROM dataset_schemas WHERE dataset_id = $1 AND version < $2 \
               ORDER BY version DESC LIMIT $3";
    let rows: Vec<VersionRow> = diesel::sql_query(sql)
        .bind::<Integer, _>(dataset.0)
        .bind::<Integer, _>(page.after.unwrap_or(i32::MAX))
        .bind::<BigInt, _>(i64::try_from(page.first).unwrap_or(i64::MAX))
        .get_results(connection)
        .await?;
    rows.into_iter().map(VersionRow::read).collect()
}

#[derive(QueryableByName)]
struct AliasRow {
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    schema_name: String,
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Integer)]
    dataset_id: i32,
}

/// Every other name of a dataset.
pub(in crate::registry) async fn aliases(
    connection: &mut AsyncPgConnection,
) -> QueryResult<HashMap<DatasetName, DatasetId>> {
    let sql = "SELECT s.name AS source, a.schema_name, a.table_name, a.dataset_id \
               FROM dataset_aliases a JOIN sources s ON s.id = a.source_id";
    let rows: Vec<AliasRow> = diesel::sql_query(sql).get_results(connection).await?;
    // A table may have a name that no dataset can have; nobody can ask for it either.
    let read = |row: AliasRow| {
        let source: SourceName = row.source.parse().map_err(unreadable)?;
        let name = DatasetName::new(&source, &row.schema_name, &row.table_name).ok();
        Ok(name.map(|name| (name, DatasetId(row.dataset_id))))
    };
    rows.into_iter().filter_map(|row| read(row).transpose()).collect()
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Integer)]
    dataset_id: i32,
}

/// The dataset that has this as another name.
pub(super) async fn named(
    connection: &mut AsyncPgConnection,
    source: i32,
    name: &DatasetName,
) -> QueryResult<Option<i32>> {
    let sql = "SELECT dataset_id FROM dataset_aliases \
               WHERE source_id = $1 AND schema_name = $2 AND table_name = $3";
    let found: Option<Id> = diesel::sql_query(sql)
        .bind::<Integer, _>(source)
        .bind::<Text, _>(name.schema())
        .bind::<Text, _>(name.table())
        .get_result(connection)
        .await
        .optional()?;
    Ok(found.map(|id| id.dataset_id))
}

/// Which of these datasets are dropped, as far as is recorded.
async fn any_dropped(connection: &mut AsyncPgConnection, of: &[i32]) -> QueryResult<bool> {
    let sql =
        "SELECT id AS dataset_id FROM datasets WHERE id = ANY ($1) AND guard = 'dropped' LIMIT 1";
    let found: Vec<Id> =
        diesel::sql_query(sql).bind::<Array<Integer>, _>(of).get_results(connection).await?;
    Ok(!found.is_empty())
}

#[derive(QueryableByName)]
struct UnownedRow {
    #[diesel(sql_type = Integer)]
    source_id: i32,
    #[diesel(sql_type = BigInt)]
    relid: i64,
    #[diesel(sql_type = Text)]
    schema_name: String,
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    command: String,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Timestamptz)]
    seen_at: DateTime<Utc>,
}

/// A page of the tables that nobody has registered, by source and OID; of these sources.
pub(in crate::registry) async fn unowned_tables(
    connection: &mut AsyncPgConnection,
    sources: &[SourceId],
    page: Page<(SourceId, u32)>,
) -> QueryResult<Vec<UnownedTable>> {
    let sql = "SELECT u.* FROM unowned_tables u WHERE u.source_id = ANY ($1) \
               AND (u.source_id, u.relid) > ($2, $3) \
               AND NOT EXISTS (SELECT FROM dataset_relations r \
                 WHERE r.source_id = u.source_id AND r.relid = u.relid) \
               ORDER BY u.source_id, u.relid LIMIT $4";
    let ids: Vec<i32> = sources.iter().map(|source| source.0).collect();
    let (source, relid) = page.after.map_or((i32::MIN, 0), |(id, relid)| (id.0, relid.into()));
    let rows: Vec<UnownedRow> = diesel::sql_query(sql)
        .bind::<Array<Integer>, _>(ids)
        .bind::<Integer, _>(source)
        .bind::<BigInt, _>(relid)
        .bind::<BigInt, _>(i64::try_from(page.first).unwrap_or(i64::MAX))
        .get_results(connection)
        .await?;
    let read = |row: UnownedRow| {
        Ok(UnownedTable {
            source_id: SourceId(row.source_id),
            relid: u32::try_from(row.relid).map_err(unreadable)?,
            name: TableName { schema: row.schema_name, table: row.table_name },
            by: Author { command: row.command, service: row.service, role: row.role },
            seen_at: row.seen_at,
        })
    };
    rows.into_iter().map(read).collect()
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// How many tables of a source nobody has registered.
pub(in crate::registry) async fn unowned_count(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<i64> {
    let sql = "SELECT count(*) FROM unowned_tables u WHERE u.source_id = $1 \
               AND NOT EXISTS (SELECT FROM dataset_relations r \
                 WHERE r.source_id = u.source_id AND r.relid = u.relid)";
    let count: Count =
        diesel::sql_query(sql).bind::<Integer, _>(source.0).get_result(connection).await?;
    Ok(count.count)
}

#[derive(QueryableByName)]
struct CouplingRow {
    #[diesel(sql_type = Text)]
    schema_name: String,
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    constraint_name: String,
    #[diesel(sql_type = Text)]
    command: String,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// Foreign keys of others' tables to a dataset, by table and name.
pub(in crate::registry) async fn couplings(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
) -> QueryResult<Vec<Coupling>> {
    let sql = "SELECT * FROM dataset_couplings WHERE dataset_id = $1 \
               ORDER BY schema_name, table_name, constraint_name";
    let rows: Vec<CouplingRow> =
        diesel::sql_query(sql).bind::<Integer, _>(dataset.0).get_results(connection).await?;
    let read = |row: CouplingRow| Coupling {
        key: CouplingKey {
            from: TableName { schema: row.schema_name, table: row.table_name },
            constraint: row.constraint_name,
        },
        by: Author { command: row.command, service: row.service, role: row.role },
        at: row.at,
    };
    Ok(rows.into_iter().map(read).collect())
}
