//! What is known of each source's slot.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::write::{finish, take_turn};
use crate::registry::schema::{source_slots, sources};
use crate::registry::{Error, SlotRecord, Snapshot};
use crate::vocab::{Epoch, Lsn, SourceId};

/// LSNs as their 64 bits; PostgreSQL has no unsigned type.
#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = source_slots, treat_none_as_null = true, check_for_backend(diesel::pg::Pg))]
struct Row {
    source_id: i32,
    system_identifier: String,
    timeline: i32,
    confirmed: i64,
    heartbeat_lsn: Option<i64>,
    heartbeat_id: Option<String>,
    broken: Option<String>,
}

impl Row {
    fn new(source: SourceId, record: &SlotRecord) -> Self {
        let (lsn, id) = record.heartbeat.clone().unzip();
        Self {
            source_id: source.0,
            system_identifier: record.system_identifier.clone(),
            timeline: record.timeline.cast_signed(),
            confirmed: record.confirmed.get().cast_signed(),
            heartbeat_lsn: lsn.map(|lsn| lsn.get().cast_signed()),
            heartbeat_id: id,
            broken: record.broken.clone(),
        }
    }

    fn record(self) -> SlotRecord {
        let lsn = |value: i64| Lsn::new(value.cast_unsigned());
        SlotRecord {
            system_identifier: self.system_identifier,
            timeline: self.timeline.cast_unsigned(),
            confirmed: lsn(self.confirmed),
            heartbeat: self.heartbeat_lsn.map(lsn).zip(self.heartbeat_id),
            broken: self.broken,
        }
    }
}

pub(in crate::registry) async fn slot_record(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<Option<SlotRecord>> {
    let found = source_slots::table.find(source.0).select(Row::as_select());
    Ok(found.first(connection).await.optional()?.map(Row::record))
}

pub(in crate::registry) async fn slot_record_put(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    record: &SlotRecord,
) -> QueryResult<()> {
    let row = Row::new(source, record);
    diesel::insert_into(source_slots::table)
        .values(&row)
        .on_conflict(source_slots::source_id)
        .do_update()
        .set(&row)
        .execute(connection)
        .await
        .map(drop)
}

pub(in crate::registry) async fn slot_confirm(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    confirmed: Lsn,
    heartbeat: Option<&(Lsn, String)>,
) -> QueryResult<bool> {
    // Once continuity has ended, a session that does not know it yet has nothing more to say.
    let sql = "UPDATE source_slots SET confirmed = greatest(confirmed, $2), \
               heartbeat_lsn = coalesce($3, heartbeat_lsn), heartbeat_id = coalesce($4, heartbeat_id) \
               WHERE source_id = $1 AND broken IS NULL";
    diesel::sql_query(sql)
        .bind::<Integer, _>(source.0)
        .bind::<BigInt, _>(confirmed.get().cast_signed())
        .bind::<Nullable<BigInt>, _>(heartbeat.map(|(lsn, _)| lsn.get().cast_signed()))
        .bind::<Nullable<Text>, _>(heartbeat.map(|(_, id)| id))
        .execute(connection)
        .await
        .map(|updated| updated > 0)
}

pub(in crate::registry) async fn epoch_begin(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    epoch: Epoch,
    record: &SlotRecord,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let updated = diesel::update(sources::table.find(source.0))
                .set(sources::epoch.eq(i16::from(epoch.get())))
                .execute(connection)
                .await?;
            if updated == 0 {
                return Err(Error::NotFound { kind: "source", name: source.0.to_string() });
            }
            slot_record_put(connection, source, record).await?;
            finish(connection).await
        })
        .await
}
