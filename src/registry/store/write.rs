//! Changes. Each runs in one transaction that begins by taking the writers' turn and ends with a
//! new revision, and returns the snapshot it leaves behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::{break_glass, read, transfer};
use crate::registry::follow::CHANNEL;
use crate::registry::schema::{
    datasets, registry_state, service_roles, services, sources, subscriptions, tokens,
};
use crate::registry::{Decided, Error, GuardState, Mutation, Snapshot, Subscription};
use crate::vocab::{DatasetId, DatasetName, RoleName, ServiceName, SourceName};

const PENDING: &str = "pending";
const INSTALLED: &str = "installed";
const DROPPED: &str = "dropped";

/// The numbers of what mutations name.
struct Known {
    sources: HashMap<String, i32>,
    services: HashMap<String, i32>,
}

impl Known {
    async fn load(connection: &mut AsyncPgConnection) -> QueryResult<Self> {
        let sources: Vec<(String, i32)> = sources::table
            .filter(sources::state.eq("governed"))
            .select((sources::name, sources::id))
            .load(connection)
            .await?;
        let services: Vec<(String, i32)> = services::table
            .filter(services::retired_at.is_null())
            .select((services::name, services::id))
            .load(connection)
            .await?;
        Ok(Self {
            sources: sources.into_iter().collect(),
            services: services.into_iter().collect(),
        })
    }

    fn source(&self, name: &SourceName) -> Result<i32, Error> {
        let id = self.sources.get(name.as_str()).copied();
        id.ok_or_else(|| Error::NotFound { kind: "source", name: name.to_string() })
    }

    fn service(&self, name: &ServiceName) -> Result<i32, Error> {
        let id = self.services.get(name.as_str()).copied();
        id.ok_or_else(|| Error::NotFound { kind: "service", name: name.to_string() })
    }
}

/// Applies all of `mutations` or none. They may refer to one another in any order: sources go
/// first, then services, datasets and subscriptions.
pub(in crate::registry) async fn apply(
    connection: &mut AsyncPgConnection,
    mutations: &[Mutation],
    decided: &Decided,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            for mutation in mutations {
                match mutation {
                    Mutation::SourcePut { name, url } => put_source(connection, name, url).await?,
                    Mutation::ServicePut { name, team, contact, .. } => {
                        put_service(connection, name, team.as_deref(), contact.as_deref()).await?;
                    }
                    Mutation::DatasetPut { .. }
                    | Mutation::OwnershipTransfer { .. }
                    | Mutation::BreakGlassGrant { .. }
                    | Mutation::BreakGlassRevoke { .. }
                    | Mutation::ServiceRetire { .. }
                    | Mutation::SubscriptionPut(_) => {}
                }
            }
            let known = Known::load(connection).await?;
            put_roles(connection, mutations, &known).await?;
            for mutation in mutations {
                put_dataset(connection, mutation, &known, decided).await?;
            }
            for mutation in mutations {
                match mutation {
                    Mutation::OwnershipTransfer { transfer, by } => {
                        transfer::complete(connection, *transfer, by).await?;
                    }
                    Mutation::BreakGlassGrant { dataset, service, .. } => {
                        let dataset = require_dataset(connection, dataset, &known).await?;
                        let parties = (dataset, known.service(service)?);
                        break_glass::put(connection, mutation, parties).await?;
                    }
                    Mutation::BreakGlassRevoke { id, by } => {
                        break_glass::revoke(connection, *id, by).await?;
                    }
                    Mutation::SourcePut { .. }
                    | Mutation::ServicePut { .. }
                    | Mutation::DatasetPut { .. }
                    | Mutation::ServiceRetire { .. }
                    | Mutation::SubscriptionPut(_) => {}
                }
            }
            for mutation in mutations {
                if let Mutation::SubscriptionPut(subscription) = mutation {
                    put_subscription(connection, subscription, &known).await?;
                }
            }
            for mutation in mutations {
                if let Mutation::ServiceRetire { name, by } = mutation {
                    retire(connection, name, by, &known).await?;
                }
            }
            finish(connection).await
        })
        .await
}

/// Records what the guard found or did in a source.
pub(in crate::registry) async fn guard_state(
    connection: &mut AsyncPgConnection,
    which: &[DatasetId],
    state: GuardState,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let ids: Vec<i32> = which.iter().map(|id| id.0).collect();
            diesel::update(datasets::table.filter(datasets::id.eq_any(ids)))
                .set(datasets::guard.eq(match state {
                    GuardState::Pending => PENDING,
                    GuardState::Installed => INSTALLED,
                    GuardState::Dropped => DROPPED,
                }))
                .execute(connection)
                .await?;
            finish(connection).await
        })
        .await
}

/// Forgets a subscription.
pub(in crate::registry) async fn subscription_delete(
    connection: &mut AsyncPgConnection,
    name: &str,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let these = subscriptions::table.filter(subscriptions::name.eq(name));
            if diesel::delete(these).execute(connection).await? == 0 {
                return Err(Error::NotFound { kind: "subscription", name: name.to_owned() });
            }
            finish(connection).await
        })
        .await
}

/// Waits, at most `lock_timeout`, until no other writer is at work, and keeps others waiting until
/// the transaction ends.
pub(super) async fn take_turn(connection: &mut AsyncPgConnection) -> QueryResult<()> {
    let turn = registry_state::table.select(registry_state::revision).for_update();
    turn.first::<i64>(connection).await.map(drop)
}

/// Takes the next revision and has other instances told of it when the transaction commits.
pub(super) async fn finish(connection: &mut AsyncPgConnection) -> Result<Snapshot, Error> {
    let revision: i64 = diesel::update(registry_state::table)
        .set(registry_state::revision.eq(registry_state::revision + 1))
        .returning(registry_state::revision)
        .get_result(connection)
        .await?;
    diesel::sql_query("SELECT pg_notify($1, $2)")
        .bind::<Text, _>(CHANNEL)
        .bind::<Text, _>(revision.to_string())
        .execute(connection)
        .await?;
    // Nobody else can write before this transaction ends, so this is one consistent state.
    Ok(read::snapshot(connection).await?)
}

async fn put_source(
    connection: &mut AsyncPgConnection,
    name: &SourceName,
    url: &str,
) -> Result<(), Error> {
    let leaving: i64 = sources::table
        .filter(sources::name.eq(name.as_str()))
        .filter(sources::state.eq("leaving"))
        .count()
        .get_result(connection)
        .await?;
    if leaving > 0 {
        return Err(Error::Conflict {
            message: format!(
                "source \"{name}\" is being uninstalled: declare it again once that is done"
            ),
        });
    }
    let declared = (sources::url.eq(url), sources::state.eq("governed"));
    diesel::insert_into(sources::table)
        .values((sources::name.eq(name.as_str()), declared))
        .on_conflict(sources::name)
        .do_update()
        .set(declared)
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_service(
    connection: &mut AsyncPgConnection,
    name: &ServiceName,
    team: Option<&str>,
    contact: Option<&str>,
) -> QueryResult<()> {
    // Who declares a service that was retired takes it up again.
    let present =
        (services::retired_at.eq(None::<DateTime<Utc>>), services::retired_by.eq(None::<&str>));
    let declared = (services::team.eq(team), services::contact.eq(contact), present);
    diesel::insert_into(services::table)
        .values((services::name.eq(name.as_str()), declared))
        .on_conflict(services::name)
        .do_update()
        .set(declared)
        .execute(connection)
        .await
        .map(drop)
}

/// Retires a service that nothing would miss: its roles are given up and its tokens revoked.
async fn retire(
    connection: &mut AsyncPgConnection,
    name: &ServiceName,
    by: &str,
    known: &Known,
) -> Result<(), Error> {
    let id = known.service(name)?;
    let orphans = read::snapshot(connection).await?.orphans_of(name, Utc::now());
    if !orphans.is_empty() {
        let orphans: Vec<String> = orphans.iter().map(ToString::to_string).collect();
        let message = format!("retiring service \"{name}\" would orphan {}", orphans.join(", "));
        return Err(Error::Conflict { message });
    }
    let roles = service_roles::table.filter(service_roles::service_id.eq(id));
    diesel::delete(roles).execute(connection).await?;
    let valid =
        tokens::table.filter(tokens::service_id.eq(id)).filter(tokens::revoked_at.is_null());
    diesel::update(valid).set(tokens::revoked_at.eq(diesel::dsl::now)).execute(connection).await?;
    diesel::update(services::table.find(id))
        .set((services::retired_at.eq(diesel::dsl::now), services::retired_by.eq(by)))
        .execute(connection)
        .await?;
    Ok(())
}

/// Replaces the roles of every service in the list: all are given up before any is claimed, so
/// that a role can pass from one service to another in either order.
async fn put_roles(
    connection: &mut AsyncPgConnection,
    mutations: &[Mutation],
    known: &Known,
) -> Result<(), Error> {
    let mut declared: BTreeMap<&ServiceName, &BTreeMap<SourceName, Vec<RoleName>>> =
        BTreeMap::new();
    for mutation in mutations {
        if let Mutation::ServicePut { name, roles, .. } = mutation {
            declared.insert(name, roles);
        }
    }
    for service in declared.keys() {
        let of_service = service_roles::service_id.eq(known.service(service)?);
        diesel::delete(service_roles::table.filter(of_service)).execute(connection).await?;
    }
    for (service, roles) in declared {
        for (source, roles) in roles {
            for role in roles {
                claim_role(connection, known, service, source, role).await?;
            }
        }
    }
    Ok(())
}

async fn claim_role(
    connection: &mut AsyncPgConnection,
    known: &Known,
    service: &ServiceName,
    source: &SourceName,
    role: &RoleName,
) -> Result<(), Error> {
    let (service_id, source_id) = (known.service(service)?, known.source(source)?);
    diesel::insert_into(service_roles::table)
        .values((
            service_roles::service_id.eq(service_id),
            service_roles::source_id.eq(source_id),
            service_roles::role.eq(role.as_str()),
        ))
        .on_conflict_do_nothing()
        .execute(connection)
        .await?;
    let holder: i32 = service_roles::table
        .find((source_id, role.as_str()))
        .select(service_roles::service_id)
        .first(connection)
        .await?;
    if holder == service_id {
        return Ok(());
    }
    let other: String =
        services::table.find(holder).select(services::name).first(connection).await?;
    Err(Error::Conflict {
        message: format!(
            "role \"{role}\" of source \"{source}\" is claimed by service \"{other}\" and by \
             service \"{service}\": a role writes for one service"
        ),
    })
}

/// What of a dataset is simply replaced.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = datasets, treat_none_as_null = true)]
struct DeclaredRow<'a> {
    mode: &'a str,
    description: Option<&'a str>,
    tags: Vec<&'a str>,
    column_facts: serde_json::Value,
    derived_from: Vec<&'a str>,
}

async fn put_dataset(
    connection: &mut AsyncPgConnection,
    mutation: &Mutation,
    known: &Known,
    decided: &Decided,
) -> Result<(), Error> {
    let Mutation::DatasetPut { name, owner, mode, description, tags, columns, derived_from } =
        mutation
    else {
        return Ok(());
    };
    let (source_id, owner_id) = (known.source(name.source())?, known.service(owner)?);
    let declared = DeclaredRow {
        mode: mode.as_str(),
        description: description.as_deref(),
        tags: sorted(tags),
        column_facts: serde_json::to_value(columns).map_err(unwritable)?,
        derived_from: sorted(derived_from),
    };
    let present: Option<(i32, i32, String, bool)> = datasets::table
        .filter(datasets::source_id.eq(source_id))
        .filter(datasets::schema_name.eq(name.schema()))
        .filter(datasets::table_name.eq(name.table()))
        .select((
            datasets::id,
            datasets::owner_id,
            datasets::mode,
            datasets::released_at.is_not_null(),
        ))
        .first(connection)
        .await
        .optional()?;
    let present = match present {
        Some(present) => Some(present),
        None => match super::evolve::named(connection, source_id, name).await? {
            Some(id) => {
                let columns = (
                    datasets::id,
                    datasets::owner_id,
                    datasets::mode,
                    datasets::released_at.is_not_null(),
                );
                Some(datasets::table.find(id).select(columns).first(connection).await?)
            }
            None => None,
        },
    };
    let Some((id, owner_before, mode_before, released)) = present else {
        let (id, now) = diesel::insert_into(datasets::table)
            .values((
                datasets::source_id.eq(source_id),
                datasets::schema_name.eq(name.schema()),
                datasets::table_name.eq(name.table()),
                datasets::owner_id.eq(owner_id),
                declared,
            ))
            .returning((datasets::id, datasets::created_at))
            .get_result(connection)
            .await?;
        let beginning = Beginning { reason: "registered", actor: &decided.by, transfer: None };
        return Ok(begin_period(connection, id, owner_id, now, &beginning).await?);
    };
    if let Some(owners) = &decided.owners
        && !released
        && owners.get(name).and_then(|owner| known.services.get(owner.as_str()))
            != Some(&owner_before)
    {
        let message = format!("dataset \"{name}\" has passed to another owner meanwhile");
        return Err(Error::Conflict { message });
    }
    if released {
        // It comes back: a period of its own, after those it had.
        let began: Ended =
            diesel::sql_query(BACK).bind::<Integer, _>(id).get_result(connection).await?;
        let beginning = Beginning { reason: "registered", actor: &decided.by, transfer: None };
        begin_period(connection, id, owner_id, began.at, &beginning).await?;
        diesel::update(datasets::table.find(id))
            .set((
                datasets::owned.eq(Some(true)),
                datasets::released_at.eq(None::<DateTime<Utc>>),
                datasets::owner_id.eq(owner_id),
                datasets::guard.eq(PENDING),
            ))
            .execute(connection)
            .await?;
    } else if owner_before != owner_id {
        let ended = end_period(connection, id).await?;
        let beginning = Beginning { reason: "declared", actor: &decided.by, transfer: None };
        begin_period(connection, id, owner_id, ended, &beginning).await?;
    }
    if owner_before != owner_id || mode_before != mode.as_str() {
        // The guard in the source still holds the old owner or mode.
        diesel::update(datasets::table.find(id))
            .set((datasets::owner_id.eq(owner_id), datasets::guard.eq(PENDING)))
            .execute(connection)
            .await?;
    }
    diesel::update(datasets::table.find(id)).set(declared).execute(connection).await?;
    Ok(())
}

/// When the next period of a dataset without an owner may begin: now, but not before the last ended.
const BACK: &str = "
    SELECT greatest(clock_timestamp(), max(upper(during))) AS at FROM ownership_periods
    WHERE dataset_id = $1";

/// The moment a period ended.
#[derive(QueryableByName)]
struct Ended {
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// Why a period begins.
pub(super) struct Beginning<'a> {
    /// In words.
    pub(super) reason: &'a str,
    /// Who has it begin.
    pub(super) actor: &'a str,
    /// The transfer that begins it.
    pub(super) transfer: Option<i64>,
}

/// Ends the present period now; a microsecond after its beginning if the clock went back.
pub(super) async fn end_period(
    connection: &mut AsyncPgConnection,
    dataset: i32,
) -> QueryResult<DateTime<Utc>> {
    let sql = "UPDATE ownership_periods SET during = tstzrange(lower(during), \
               greatest(clock_timestamp(), lower(during) + interval '1 microsecond')) \
               WHERE dataset_id = $1 AND present RETURNING upper(during) AS at";
    let ended: Ended =
        diesel::sql_query(sql).bind::<Integer, _>(dataset).get_result(connection).await?;
    Ok(ended.at)
}

/// Begins the next period.
pub(super) async fn begin_period(
    connection: &mut AsyncPgConnection,
    dataset: i32,
    service: i32,
    from: DateTime<Utc>,
    beginning: &Beginning<'_>,
) -> QueryResult<()> {
    let sql = "INSERT INTO ownership_periods \
               (dataset_id, service_id, during, reason, actor, transfer_id) \
               VALUES ($1, $2, tstzrange($3, NULL), $4, $5, $6)";
    diesel::sql_query(sql)
        .bind::<Integer, _>(dataset)
        .bind::<Integer, _>(service)
        .bind::<Timestamptz, _>(from)
        .bind::<Text, _>(beginning.reason)
        .bind::<Text, _>(beginning.actor)
        .bind::<Nullable<BigInt>, _>(beginning.transfer)
        .execute(connection)
        .await
        .map(drop)
}

async fn put_subscription(
    connection: &mut AsyncPgConnection,
    subscription: &Subscription,
    known: &Known,
) -> Result<(), Error> {
    for dataset in &subscription.datasets {
        require_dataset(connection, dataset, known).await?;
    }
    let datasets: Vec<&str> = subscription.datasets.iter().map(DatasetName::as_str).collect();
    let declared = (
        subscriptions::service_id.eq(known.service(&subscription.service)?),
        subscriptions::datasets.eq(&datasets),
        subscriptions::spec.eq(&subscription.spec),
    );
    diesel::insert_into(subscriptions::table)
        .values((subscriptions::name.eq(&subscription.name), declared))
        .on_conflict(subscriptions::name)
        .do_update()
        .set(declared)
        .execute(connection)
        .await?;
    Ok(())
}

async fn require_dataset(
    connection: &mut AsyncPgConnection,
    name: &DatasetName,
    known: &Known,
) -> Result<i32, Error> {
    let registered: Option<i32> = datasets::table
        .filter(datasets::source_id.eq(known.source(name.source())?))
        .filter(datasets::schema_name.eq(name.schema()))
        .filter(datasets::table_name.eq(name.table()))
        .select(datasets::id)
        .first(connection)
        .await
        .optional()?;
    registered.ok_or_else(|| Error::NotFound { kind: "dataset", name: name.to_string() })
}

/// As stored: sorted, each once.
fn sorted(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect()
}

fn unwritable(error: serde_json::Error) -> DieselError {
    DieselError::SerializationError(Box::new(error))
}
