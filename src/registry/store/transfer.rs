//! Transfers and switches of ownership.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::unreadable;
use super::write::{Beginning, begin_period, end_period, finish, take_turn};
use crate::registry::schema::{datasets, ownership_switches, services, sources};
use crate::registry::transfer::{
    Ending, NewTransfer, Standing, Switch, Transfer, TransferFilter, TransferState,
};
use crate::registry::{Error, Page, Snapshot};
use crate::vocab::{DatasetId, DatasetName, Position, SourceId, SourceName};

/// Every transfer with the names of what it is about.
const SELECT: &str = "
    SELECT t.id, s.name AS source, d.schema_name, d.table_name, f.name AS from_name,
      r.name AS to_name, t.reason, t.proposed_by, t.proposed_at, t.expires_at, t.state,
      t.decided_by, t.decided_at
    FROM transfers t JOIN datasets d ON d.id = t.dataset_id JOIN sources s ON s.id = d.source_id
    JOIN services f ON f.id = t.from_id JOIN services r ON r.id = t.to_id";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    schema_name: String,
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    from_name: String,
    #[diesel(sql_type = Text)]
    to_name: String,
    #[diesel(sql_type = Text)]
    reason: String,
    #[diesel(sql_type = Text)]
    proposed_by: String,
    #[diesel(sql_type = Timestamptz)]
    proposed_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    expires_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    decided_by: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    decided_at: Option<DateTime<Utc>>,
}

impl Row {
    fn read(self) -> QueryResult<Transfer> {
        let source: SourceName = self.source.parse().map_err(unreadable)?;
        let dataset = DatasetName::new(&source, &self.schema_name, &self.table_name);
        let stored = TransferState::ALL.into_iter().find(|state| state.as_str() == self.state);
        let unknown = || unreadable(std::io::Error::other("a transfer has an unknown state"));
        Ok(Transfer {
            id: self.id,
            dataset: dataset.map_err(unreadable)?,
            from: self.from_name.parse().map_err(unreadable)?,
            to: self.to_name.parse().map_err(unreadable)?,
            reason: self.reason,
            proposed_by: self.proposed_by,
            proposed_at: self.proposed_at,
            expires_at: self.expires_at,
            stored: stored.ok_or_else(unknown)?,
            decided_by: self.decided_by,
            decided_at: self.decided_at,
        })
    }
}

/// Every proposal that nobody has decided, those past their time included.
pub(super) async fn proposed(
    connection: &mut AsyncPgConnection,
) -> QueryResult<BTreeMap<i64, Transfer>> {
    let sql = format!("{SELECT} WHERE t.state = 'proposed'");
    let rows: Vec<Row> = diesel::sql_query(sql).load(connection).await?;
    rows.into_iter().map(|row| Ok((row.id, row.read()?))).collect()
}

/// The transfer with this number.
pub(in crate::registry) async fn transfer(
    connection: &mut AsyncPgConnection,
    id: i64,
) -> Result<Transfer, Error> {
    let sql = format!("{SELECT} WHERE t.id = $1");
    let row: Option<Row> =
        diesel::sql_query(sql).bind::<BigInt, _>(id).get_result(connection).await.optional()?;
    let row = row.ok_or_else(|| Error::NotFound { kind: "transfer", name: id.to_string() })?;
    Ok(row.read()?)
}

/// One page, newest first.
pub(in crate::registry) async fn transfers(
    connection: &mut AsyncPgConnection,
    filter: &TransferFilter,
    page: Page<i64>,
) -> QueryResult<Vec<Transfer>> {
    // A proposal that is over counts as expired whether or not that was written down.
    let sql = format!(
        "{SELECT} WHERE ($1 IS NULL OR concat_ws('.', s.name, d.schema_name, d.table_name) = $1)
           AND ($2 IS NULL OR f.name = $2 OR r.name = $2)
           AND ($3 IS NULL OR $3 = CASE WHEN t.state = 'proposed' AND t.expires_at <= now()
                                        THEN 'expired' ELSE t.state END)
           AND ($4 IS NULL OR t.id < $4)
         ORDER BY t.id DESC LIMIT $5"
    );
    let rows: Vec<Row> = diesel::sql_query(sql)
        .bind::<Nullable<Text>, _>(filter.dataset.as_ref().map(DatasetName::as_str))
        .bind::<Nullable<Text>, _>(filter.service.as_ref().map(|name| name.as_str().to_owned()))
        .bind::<Nullable<Text>, _>(filter.state.map(TransferState::as_str))
        .bind::<Nullable<BigInt>, _>(page.after)
        .bind::<BigInt, _>(i64::try_from(page.first).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
    rows.into_iter().map(Row::read).collect()
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Stores a proposal; one before it whose time is over makes room.
pub(in crate::registry) async fn transfer_propose(
    connection: &mut AsyncPgConnection,
    new: &NewTransfer,
) -> Result<(Transfer, Snapshot), Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let name = &new.dataset;
            let dataset: Option<(i32, i32, String)> = datasets::table
                .inner_join(sources::table)
                .inner_join(services::table)
                .filter(sources::name.eq(name.source().as_str()))
                .filter(datasets::schema_name.eq(name.schema()))
                .filter(datasets::table_name.eq(name.table()))
                .select((datasets::id, datasets::owner_id, services::name))
                .first(connection)
                .await
                .optional()?;
            let missing = |kind, name: String| Error::NotFound { kind, name };
            let (dataset_id, from_id, owner) =
                dataset.ok_or_else(|| missing("dataset", name.to_string()))?;
            if owner != new.from.as_str() {
                let message = format!("dataset \"{name}\" is owned by \"{owner}\" by now");
                return Err(Error::Conflict { message });
            }
            let to_id: Option<i32> = services::table
                .filter(services::name.eq(new.to.as_str()))
                .filter(services::retired_at.is_null())
                .select(services::id)
                .first(connection)
                .await
                .optional()?;
            let to_id = to_id.ok_or_else(|| missing("service", new.to.to_string()))?;
            diesel::sql_query(
                "UPDATE transfers SET state = 'expired', decided_at = expires_at \
                 WHERE dataset_id = $1 AND state = 'proposed' AND expires_at <= now()",
            )
            .bind::<Integer, _>(dataset_id)
            .execute(connection)
            .await?;
            let inserted: Option<Id> = diesel::sql_query(
                "INSERT INTO transfers (dataset_id, from_id, to_id, reason, proposed_by, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) \
                 ON CONFLICT (dataset_id) WHERE state = 'proposed' DO NOTHING RETURNING id",
            )
            .bind::<Integer, _>(dataset_id)
            .bind::<Integer, _>(from_id)
            .bind::<Integer, _>(to_id)
            .bind::<Text, _>(&new.reason)
            .bind::<Text, _>(&new.proposed_by)
            .bind::<Timestamptz, _>(new.expires_at)
            .get_result(connection)
            .await
            .optional()?;
            let Some(Id { id }) = inserted else {
                let message = format!(
                    "a transfer of dataset \"{name}\" is proposed already: have it accepted, \
                     declined or cancelled first"
                );
                return Err(Error::Conflict { message });
            };
            let transfer = transfer(connection, id).await?;
            Ok((transfer, finish(connection).await?))
        })
        .await
}

/// Ends a proposal without the dataset passing.
pub(in crate::registry) async fn transfer_end(
    connection: &mut AsyncPgConnection,
    id: i64,
    ending: Ending,
    by: &str,
) -> Result<(Transfer, Snapshot), Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            require_open(connection, id).await?;
            decide(connection, id, ending.state(), by).await?;
            let transfer = transfer(connection, id).await?;
            Ok((transfer, finish(connection).await?))
        })
        .await
}

/// Lets the dataset pass: the proposal is completed, the owner's period ends and the receiver's
/// begins. The caller has the writers' turn.
pub(super) async fn complete(
    connection: &mut AsyncPgConnection,
    id: i64,
    by: &str,
) -> Result<(), Error> {
    let transfer = require_open(connection, id).await?;
    let (dataset, owner, from, to): (i32, i32, i32, i32) = parties(connection, id).await?;
    if owner != from {
        let message = format!(
            "transfer {id}: \"{}\" does not own \"{}\" any more",
            transfer.from, transfer.dataset
        );
        return Err(Error::Conflict { message });
    }
    decide(connection, id, TransferState::Completed, by).await?;
    let ended = end_period(connection, dataset).await?;
    let beginning = Beginning { reason: &transfer.reason, actor: by, transfer: Some(id) };
    begin_period(connection, dataset, to, ended, &beginning).await?;
    diesel::update(datasets::table.find(dataset))
        .set((datasets::owner_id.eq(to), datasets::guard.eq("pending")))
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Parties {
    #[diesel(sql_type = Integer)]
    dataset: i32,
    #[diesel(sql_type = Integer)]
    owner: i32,
    #[diesel(sql_type = Integer)]
    from_id: i32,
    #[diesel(sql_type = Integer)]
    to_id: i32,
}

async fn parties(connection: &mut AsyncPgConnection, id: i64) -> QueryResult<(i32, i32, i32, i32)> {
    let sql = "SELECT d.id AS dataset, CASE WHEN d.owned THEN d.owner_id ELSE 0 END AS owner, t.from_id, t.to_id \
               FROM transfers t JOIN datasets d ON d.id = t.dataset_id WHERE t.id = $1";
    let Parties { dataset, owner, from_id, to_id } =
        diesel::sql_query(sql).bind::<BigInt, _>(id).get_result(connection).await?;
    Ok((dataset, owner, from_id, to_id))
}

/// The proposal, if it may still be decided by the database's clock.
async fn require_open(connection: &mut AsyncPgConnection, id: i64) -> Result<Transfer, Error> {
    #[derive(QueryableByName)]
    struct Open {
        #[diesel(sql_type = Bool)]
        open: bool,
    }
    let found = transfer(connection, id).await?;
    let sql = "SELECT state = 'proposed' AND expires_at > clock_timestamp() AS open \
               FROM transfers WHERE id = $1";
    let Open { open } = diesel::sql_query(sql).bind::<BigInt, _>(id).get_result(connection).await?;
    if open {
        return Ok(found);
    }
    let state = match found.stored {
        TransferState::Proposed => TransferState::Expired,
        state => state,
    };
    let message = format!("transfer {id} is {} already", state.as_str());
    Err(Error::Conflict { message })
}

async fn decide(
    connection: &mut AsyncPgConnection,
    id: i64,
    state: TransferState,
    by: &str,
) -> QueryResult<()> {
    let sql = "UPDATE transfers SET state = $2, decided_by = $3, decided_at = clock_timestamp() \
               WHERE id = $1";
    diesel::sql_query(sql)
        .bind::<BigInt, _>(id)
        .bind::<Text, _>(state.as_str())
        .bind::<Text, _>(by)
        .execute(connection)
        .await
        .map(drop)
}

/// Stores switches that are not stored yet.
pub(in crate::registry) async fn switches_record(
    connection: &mut AsyncPgConnection,
    new: &[Switch],
) -> QueryResult<()> {
    let rows: Vec<_> = new
        .iter()
        .map(|switch| {
            (
                ownership_switches::dataset_id.eq(switch.dataset.0),
                ownership_switches::position.eq(switch.position.to_string()),
                ownership_switches::owner_before
                    .eq(switch.before.as_ref().map(|before| before.owner.to_string())),
                ownership_switches::owner.eq(switch.after.owner.to_string()),
                ownership_switches::mode_before
                    .eq(switch.before.as_ref().map(|before| before.mode.as_str())),
                ownership_switches::mode.eq(switch.after.mode.as_str()),
                ownership_switches::transfer_id.eq(switch.transfer),
            )
        })
        .collect();
    diesel::insert_into(ownership_switches::table)
        .values(rows)
        .on_conflict_do_nothing()
        .execute(connection)
        .await
        .map(drop)
}

/// Every switch of a source's datasets, each dataset's in the order of their positions.
pub(in crate::registry) async fn switches(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<Vec<Switch>> {
    type Row = (i32, String, Option<String>, String, Option<String>, String, Option<i64>);
    let rows: Vec<Row> = ownership_switches::table
        .inner_join(datasets::table)
        .filter(datasets::source_id.eq(source.0))
        .order((ownership_switches::dataset_id, ownership_switches::position))
        .select((
            ownership_switches::dataset_id,
            ownership_switches::position,
            ownership_switches::owner_before,
            ownership_switches::owner,
            ownership_switches::mode_before,
            ownership_switches::mode,
            ownership_switches::transfer_id,
        ))
        .load(connection)
        .await?;
    let standing = |owner: &str, mode: &str| {
        let owner = owner.parse().map_err(unreadable)?;
        Ok::<_, diesel::result::Error>(Standing { owner, mode: mode.parse().map_err(unreadable)? })
    };
    let read = |(dataset, position, owner_before, owner, mode_before, mode, transfer): Row| {
        let position: Position = position.parse().map_err(unreadable)?;
        let before = match (owner_before, mode_before) {
            (Some(owner), Some(mode)) => Some(standing(&owner, &mode)?),
            _ => None,
        };
        let after = standing(&owner, &mode)?;
        Ok(Switch { dataset: DatasetId(dataset), position, before, after, transfer })
    };
    rows.into_iter().map(read).collect()
}
