//! What is and what was.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{break_glass, evolve, token, transfer, unreadable};
use crate::registry::schema::{
    datasets, ownership_periods, registry_state, service_roles, services, sources, subscriptions,
};
use crate::registry::{
    Dataset, GuardState, OwnershipPeriod, Revision, Service, Snapshot, Source, Subscription, Tenure,
};
use crate::vocab::{DatasetId, DatasetName, Epoch, RoleName, ServiceName, SourceId, SourceName};

/// The last revision.
pub(in crate::registry) async fn revision(
    connection: &mut AsyncPgConnection,
) -> QueryResult<Revision> {
    registry_state::table.select(registry_state::revision).first(connection).await.map(Revision)
}

/// Everything. The caller's transaction must see one state: repeatable read, or the writers' lock.
pub(in crate::registry) async fn snapshot(
    connection: &mut AsyncPgConnection,
) -> QueryResult<Snapshot> {
    let revision = revision(connection).await?;
    let sources = load_sources(connection).await?;
    let services = load_services(connection).await?;
    let datasets = load_datasets(connection).await?;
    let subscriptions = load_subscriptions(connection).await?;
    let grants = token::grants(connection).await?;
    let aliases = evolve::aliases(connection).await?;
    let snapshot = Snapshot::new(revision, services, sources, datasets, subscriptions);
    let tenures = load_tenures(connection).await?;
    let transfers = transfer::proposed(connection).await?;
    let (break_glass, retired) =
        (break_glass::active(connection).await?, load_retired(connection).await?);
    let snapshot = snapshot.with_tenures(tenures, transfers).with_exceptions(break_glass, retired);
    Ok(snapshot.with_grants(grants).with_aliases(aliases))
}

async fn load_sources(connection: &mut AsyncPgConnection) -> QueryResult<Vec<Source>> {
    type Row = (i32, String, String, i16, String, DateTime<Utc>);
    let rows: Vec<Row> = sources::table
        .filter(sources::state.ne("left"))
        .select((
            sources::id,
            sources::name,
            sources::url,
            sources::epoch,
            sources::state,
            sources::created_at,
        ))
        .load(connection)
        .await?;
    let read = |(id, name, url, epoch, state, created_at): Row| {
        Ok(Source {
            id: SourceId(id),
            name: name.parse().map_err(unreadable)?,
            url,
            epoch: Epoch::new(u8::try_from(epoch).map_err(unreadable)?),
            leaving: state == "leaving",
            created_at,
        })
    };
    rows.into_iter().map(read).collect()
}

async fn load_services(connection: &mut AsyncPgConnection) -> QueryResult<Vec<Service>> {
    type Row = (i32, String, Option<String>, Option<String>, DateTime<Utc>);
    let claims: Vec<(i32, String, String)> = service_roles::table
        .inner_join(sources::table)
        .select((service_roles::service_id, sources::name, service_roles::role))
        .load(connection)
        .await?;
    let mut roles: HashMap<i32, BTreeMap<SourceName, Vec<RoleName>>> = HashMap::new();
    for (service, source, role) in claims {
        let source = source.parse().map_err(unreadable)?;
        let role = role.parse().map_err(unreadable)?;
        roles.entry(service).or_default().entry(source).or_default().push(role);
    }
    // Sorted here and not by PostgreSQL: the database's collation is not this program's order.
    roles.values_mut().flat_map(BTreeMap::values_mut).for_each(|roles| roles.sort());
    let columns =
        (services::id, services::name, services::team, services::contact, services::created_at);
    let rows: Vec<Row> = services::table.select(columns).load(connection).await?;
    let read = |(id, name, team, contact, created_at): Row| {
        Ok(Service {
            id,
            name: name.parse().map_err(unreadable)?,
            team,
            contact,
            roles: roles.remove(&id).unwrap_or_default(),
            created_at,
        })
    };
    rows.into_iter().map(read).collect()
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = datasets, check_for_backend(diesel::pg::Pg))]
struct DatasetRow {
    id: i32,
    source_id: i32,
    schema_name: String,
    table_name: String,
    mode: String,
    description: Option<String>,
    tags: Vec<String>,
    column_facts: serde_json::Value,
    derived_from: Vec<String>,
    guard: String,
    created_at: DateTime<Utc>,
}

async fn load_datasets(connection: &mut AsyncPgConnection) -> QueryResult<Vec<Dataset>> {
    let rows: Vec<(DatasetRow, String, String)> = datasets::table
        .inner_join(sources::table)
        .inner_join(services::table)
        .filter(datasets::released_at.is_null())
        .select((DatasetRow::as_select(), sources::name, services::name))
        .load(connection)
        .await?;
    let mut gaps = super::gap::gaps(connection).await?;
    let read = |(row, source, owner): (DatasetRow, String, String)| {
        let source: SourceName = source.parse().map_err(unreadable)?;
        let name = DatasetName::new(&source, &row.schema_name, &row.table_name);
        let guard = match row.guard.as_str() {
            "installed" => GuardState::Installed,
            "dropped" => GuardState::Dropped,
            _ => GuardState::Pending,
        };
        Ok(Dataset {
            id: DatasetId(row.id),
            name: name.map_err(unreadable)?,
            source_id: SourceId(row.source_id),
            owner: owner.parse().map_err(unreadable)?,
            mode: row.mode.parse().map_err(unreadable)?,
            description: row.description,
            tags: row.tags,
            columns: serde_json::from_value(row.column_facts).map_err(unreadable)?,
            derived_from: row.derived_from,
            guard,
            gaps: gaps.remove(&row.id).unwrap_or_default(),
            created_at: row.created_at,
        })
    };
    rows.into_iter().map(read).collect()
}

/// Services that were retired, and when.
async fn load_retired(
    connection: &mut AsyncPgConnection,
) -> QueryResult<BTreeMap<ServiceName, DateTime<Utc>>> {
    let rows: Vec<(String, Option<DateTime<Utc>>)> = services::table
        .filter(services::retired_at.is_not_null())
        .select((services::name, services::retired_at))
        .load(connection)
        .await?;
    let read = |(name, at): (String, Option<DateTime<Utc>>)| {
        Some(at.map(|at| Ok((name.parse().map_err(unreadable)?, at)))).flatten()
    };
    rows.into_iter().filter_map(read).collect()
}

/// Why the present owners are owners.
async fn load_tenures(
    connection: &mut AsyncPgConnection,
) -> QueryResult<HashMap<DatasetId, Tenure>> {
    type Row = (i32, Option<String>, Option<String>, Option<i64>);
    let rows: Vec<Row> = ownership_periods::table
        .filter(ownership_periods::present)
        .select((
            ownership_periods::dataset_id,
            ownership_periods::reason,
            ownership_periods::actor,
            ownership_periods::transfer_id,
        ))
        .load(connection)
        .await?;
    let read = |(dataset, reason, actor, transfer): Row| {
        (DatasetId(dataset), Tenure { reason, actor, transfer })
    };
    Ok(rows.into_iter().map(read).collect())
}

async fn load_subscriptions(connection: &mut AsyncPgConnection) -> QueryResult<Vec<Subscription>> {
    let rows: Vec<(String, String, Vec<String>, serde_json::Value)> = subscriptions::table
        .inner_join(services::table)
        .select((subscriptions::name, services::name, subscriptions::datasets, subscriptions::spec))
        .load(connection)
        .await?;
    let read = |(name, service, datasets, spec): (_, String, Vec<String>, _)| {
        let datasets = datasets.iter().map(|dataset| dataset.parse());
        Ok(Subscription {
            name,
            service: service.parse().map_err(unreadable)?,
            datasets: datasets.collect::<Result<_, _>>().map_err(unreadable)?,
            spec,
        })
    };
    rows.into_iter().map(read).collect()
}

/// Every owner a dataset has had, oldest first.
pub(in crate::registry) async fn ownership_history(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
) -> QueryResult<Vec<OwnershipPeriod>> {
    type Range = (Bound<DateTime<Utc>>, Bound<DateTime<Utc>>);
    type Row = (String, Range, Option<String>, Option<String>, Option<i64>);
    let rows: Vec<Row> = ownership_periods::table
        .inner_join(services::table)
        .filter(ownership_periods::dataset_id.eq(dataset.0))
        .order(ownership_periods::during)
        .select((
            services::name,
            ownership_periods::during,
            ownership_periods::reason,
            ownership_periods::actor,
            ownership_periods::transfer_id,
        ))
        .load(connection)
        .await?;
    let read = |(service, (from, to), reason, actor, transfer): Row| {
        let (Bound::Included(from) | Bound::Excluded(from)) = from else {
            return Err(unreadable(std::io::Error::other("an ownership period has no beginning")));
        };
        let to = match to {
            Bound::Included(to) | Bound::Excluded(to) => Some(to),
            Bound::Unbounded => None,
        };
        let tenure = Tenure { reason, actor, transfer };
        Ok(OwnershipPeriod { service: service.parse().map_err(unreadable)?, from, to, tenure })
    };
    rows.into_iter().map(read).collect()
}

/// The owner at a moment; none before the dataset was registered.
pub(in crate::registry) async fn owner_at(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
    at: DateTime<Utc>,
) -> QueryResult<Option<ServiceName>> {
    let name: Option<String> = ownership_periods::table
        .inner_join(services::table)
        .filter(ownership_periods::dataset_id.eq(dataset.0))
        .filter(sql::<Bool>("during @> ").bind::<Timestamptz, _>(at))
        .select(services::name)
        .first(connection)
        .await
        .optional()?;
    name.map(|name| name.parse().map_err(unreadable)).transpose()
}
