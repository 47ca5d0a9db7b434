//! What installed guards look like, and where they are not known to have stood.

use std::collections::{BTreeMap, HashMap};

use diesel::dsl::{now, sql};
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::unreadable;
use super::write::{finish, take_turn};
use crate::registry::schema::{guard_baselines, guard_gaps};
use crate::registry::{Baseline, Error, GuardGap, Snapshot};
use crate::vocab::{DatasetId, Epoch, Lsn, SourceId};

/// Gaps that ended longer ago than this are not read again from any slot that still streams.
const GAPS_WANTED: &str = "(to_lsn IS NULL OR closed_at > now() - interval '7 days')";

/// The gaps that capture may meet again, by dataset, in the order of the WAL.
pub(super) async fn gaps(
    connection: &mut AsyncPgConnection,
) -> QueryResult<HashMap<i32, Vec<GuardGap>>> {
    let rows: Vec<(i32, i16, i64, Option<i64>)> = guard_gaps::table
        .filter(sql::<Bool>(GAPS_WANTED))
        .order((guard_gaps::epoch, guard_gaps::told_lsn))
        .select((
            guard_gaps::dataset_id,
            guard_gaps::epoch,
            guard_gaps::from_lsn,
            guard_gaps::to_lsn,
        ))
        .load(connection)
        .await?;
    let mut gaps: HashMap<i32, Vec<GuardGap>> = HashMap::new();
    for (dataset, epoch, from, to) in rows {
        gaps.entry(dataset).or_default().push(GuardGap {
            epoch: Epoch::new(u8::try_from(epoch).map_err(unreadable)?),
            from: Lsn::new(from.cast_unsigned()),
            to: to.map(|to| Lsn::new(to.cast_unsigned())),
        });
    }
    Ok(gaps)
}

/// Opens a gap unless one is open, or the same was recorded before.
pub(in crate::registry) async fn gap_open(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
    epoch: Epoch,
    told: Lsn,
    from: Lsn,
) -> Result<Snapshot, Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let open = guard_gaps::table
                .filter(guard_gaps::dataset_id.eq(dataset.0))
                .filter(guard_gaps::to_lsn.is_null());
            let lasts: bool =
                diesel::select(diesel::dsl::exists(open)).get_result(connection).await?;
            if !lasts {
                diesel::insert_into(guard_gaps::table)
                    .values((
                        guard_gaps::dataset_id.eq(dataset.0),
                        guard_gaps::epoch.eq(i16::from(epoch.get())),
                        guard_gaps::told_lsn.eq(told.get().cast_signed()),
                        guard_gaps::from_lsn.eq(from.get().cast_signed()),
                    ))
                    .on_conflict_do_nothing()
                    .execute(connection)
                    .await?;
            }
            finish(connection).await
        })
        .await
}

/// Closes the gap that is open, if it was told of before this commit.
pub(in crate::registry) async fn gap_close(
    connection: &mut AsyncPgConnection,
    dataset: DatasetId,
    epoch: Epoch,
    at: Lsn,
) -> Result<Snapshot, Error> {
    let at = at.get().cast_signed();
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let open = guard_gaps::table
                .filter(guard_gaps::dataset_id.eq(dataset.0))
                .filter(guard_gaps::epoch.eq(i16::from(epoch.get())))
                .filter(guard_gaps::told_lsn.le(at))
                .filter(guard_gaps::to_lsn.is_null());
            diesel::update(open)
                .set((guard_gaps::to_lsn.eq(at), guard_gaps::closed_at.eq(now)))
                .execute(connection)
                .await?;
            // A gap of an earlier generation ended with it: nothing of it is read again.
            let earlier = guard_gaps::table
                .filter(guard_gaps::dataset_id.eq(dataset.0))
                .filter(guard_gaps::epoch.lt(i16::from(epoch.get())))
                .filter(guard_gaps::to_lsn.is_null());
            diesel::update(earlier)
                .set((
                    guard_gaps::to_lsn.eq(guard_gaps::told_lsn.nullable()),
                    guard_gaps::closed_at.eq(now),
                ))
                .execute(connection)
                .await?;
            finish(connection).await
        })
        .await
}

/// The baseline of a source.
pub(in crate::registry) async fn baseline(
    connection: &mut AsyncPgConnection,
    source: SourceId,
) -> QueryResult<Option<Baseline>> {
    let row: Option<(String, serde_json::Value, Option<i64>)> = guard_baselines::table
        .find(source.0)
        .select((guard_baselines::version, guard_baselines::objects, guard_baselines::sound_lsn))
        .first(connection)
        .await
        .optional()?;
    let Some((version, objects, sound)) = row else { return Ok(None) };
    Ok(Some(Baseline {
        version,
        objects: serde_json::from_value(objects).map_err(unreadable)?,
        sound: sound.map(|lsn| Lsn::new(lsn.cast_unsigned())),
    }))
}

/// Replaces what the guard looks like.
pub(in crate::registry) async fn baseline_put(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    version: &str,
    objects: &BTreeMap<String, String>,
    from: Lsn,
) -> QueryResult<()> {
    let objects = serde_json::json!(objects);
    let looks = (guard_baselines::version.eq(version), guard_baselines::objects.eq(&objects));
    diesel::insert_into(guard_baselines::table)
        .values((
            guard_baselines::source_id.eq(source.0),
            looks,
            guard_baselines::sound_lsn.eq(from.get().cast_signed()),
        ))
        .on_conflict(guard_baselines::source_id)
        .do_update()
        .set(looks)
        .execute(connection)
        .await
        .map(drop)
}

/// Moves forward up to where all was well.
pub(in crate::registry) async fn baseline_sound(
    connection: &mut AsyncPgConnection,
    source: SourceId,
    lsn: Lsn,
) -> QueryResult<()> {
    diesel::update(guard_baselines::table.find(source.0))
        .set(guard_baselines::sound_lsn.eq(lsn.get().cast_signed()))
        .execute(connection)
        .await
        .map(drop)
}
