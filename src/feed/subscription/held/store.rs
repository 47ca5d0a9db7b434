//! The table of held changes.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::{Attempt, Held, Item};
use crate::feed::subscription::Mark;
use crate::feed::subscription::SubscriptionId;
use crate::feed::subscription::store::{json, mark, op, unreadable};

diesel::table! {
    subscription_held (subscription_id, position) {
        subscription_id -> Integer,
        position -> Text,
        dataset -> Text,
        op -> Text,
        keys -> Array<BigInt>,
        payload -> Binary,
        attempts -> Integer,
        tried -> Jsonb,
        due -> Timestamptz,
        lease -> Nullable<Uuid>,
        letter_id -> Nullable<BigInt>,
    }
}

/// Rows per statement: with 11 parameters each, well below the protocol's limit of 65 535.
const ROWS_PER_STATEMENT: usize = 1_000;

/// What is held, in order of position, without payloads.
pub(in crate::feed) async fn held(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<Vec<Held>> {
    type Row = (
        String,
        Vec<i64>,
        i32,
        serde_json::Value,
        DateTime<Utc>,
        Option<Uuid>,
        Option<i64>,
        Option<i32>,
    );
    let size = diesel::dsl::sql::<diesel::sql_types::Nullable<Integer>>("octet_length(payload)");
    let rows: Vec<Row> = subscription_held::table
        .filter(subscription_held::subscription_id.eq(id.0))
        .order(subscription_held::position)
        .select((
            subscription_held::position,
            subscription_held::keys,
            subscription_held::attempts,
            subscription_held::tried,
            subscription_held::due,
            subscription_held::lease,
            subscription_held::letter_id,
            size,
        ))
        .load(connection)
        .await?;
    let read = |(at, keys, attempts, tried, due, lease, letter, size): Row| {
        Ok(Held {
            position: mark(&at)?,
            keys,
            attempts: u32::try_from(attempts).map_err(unreadable)?,
            tried: serde_json::from_value(tried).map_err(unreadable)?,
            due,
            lease,
            bytes: usize::try_from(size.unwrap_or_default()).map_err(unreadable)?,
            letter,
        })
    };
    rows.into_iter().map(read).collect()
}

/// The changes at these positions, in order.
pub(in crate::feed) async fn items(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    positions: &[Mark],
) -> QueryResult<Vec<Item>> {
    type Row = (String, String, String, Vec<i64>, Vec<u8>);
    let rows: Vec<Row> = subscription_held::table
        .filter(subscription_held::subscription_id.eq(id.0))
        .filter(subscription_held::position.eq_any(texts(positions)))
        .order(subscription_held::position)
        .select((
            subscription_held::position,
            subscription_held::dataset,
            subscription_held::op,
            subscription_held::keys,
            subscription_held::payload,
        ))
        .load(connection)
        .await?;
    let read = |(at, dataset, code, keys, payload): Row| {
        let (position, op) = (mark(&at)?, op(&code)?);
        Ok(Item { position, dataset, op, keys, json: Bytes::from(payload) })
    };
    rows.into_iter().map(read).collect()
}

/// How many are held of those that the counts of run `run` know.
pub(in crate::feed) async fn count(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    run: i32,
) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Number {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let sql = "SELECT count(*) AS number FROM subscription_held h \
               LEFT JOIN dead_letters d ON d.id = h.letter_id \
               WHERE h.subscription_id = $1 AND coalesce(d.run, $2) = $2";
    let count = diesel::sql_query(sql).bind::<Integer, _>(id.0).bind::<Integer, _>(run);
    let found: Number = count.get_result(connection).await?;
    Ok(found.number)
}

/// A change to be held.
#[derive(Debug, Clone)]
pub(in crate::feed) struct New<'a> {
    pub(in crate::feed) item: &'a Item,
    pub(in crate::feed) attempts: u32,
    pub(in crate::feed) tried: &'a [Attempt],
    pub(in crate::feed) due: DateTime<Utc>,
    pub(in crate::feed) lease: Option<Uuid>,
    pub(in crate::feed) letter: Option<i64>,
}

#[derive(Insertable)]
#[diesel(table_name = subscription_held)]
struct Row<'a> {
    subscription_id: i32,
    position: String,
    dataset: &'a str,
    op: String,
    keys: &'a [i64],
    payload: &'a [u8],
    attempts: i32,
    tried: serde_json::Value,
    due: DateTime<Utc>,
    lease: Option<Uuid>,
    letter_id: Option<i64>,
}

/// Holds changes.
pub(in crate::feed) async fn insert(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    new: &[New<'_>],
) -> QueryResult<()> {
    for some in new.chunks(ROWS_PER_STATEMENT) {
        let mut rows = Vec::with_capacity(some.len());
        for new in some {
            rows.push(Row {
                subscription_id: id.0,
                position: new.item.position.to_string(),
                dataset: &new.item.dataset,
                op: new.item.op.to_string(),
                keys: &new.item.keys,
                payload: &new.item.json,
                attempts: i32::try_from(new.attempts).unwrap_or(i32::MAX),
                tried: json(new.tried)?,
                due: new.due,
                lease: new.lease,
                letter_id: new.letter,
            });
        }
        diesel::insert_into(subscription_held::table).values(rows).execute(connection).await?;
    }
    Ok(())
}

/// Records where a held change stands after an attempt.
pub(in crate::feed) async fn update(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    held: &Held,
) -> QueryResult<()> {
    diesel::update(subscription_held::table.find((id.0, held.position.to_string())))
        .set((
            subscription_held::attempts.eq(i32::try_from(held.attempts).unwrap_or(i32::MAX)),
            subscription_held::tried.eq(json(&held.tried)?),
            subscription_held::due.eq(held.due),
            subscription_held::lease.eq(held.lease),
        ))
        .execute(connection)
        .await
        .map(drop)
}

/// Hands held changes to a consumer until `due`.
pub(in crate::feed) async fn lease(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    positions: &[Mark],
    lease: Uuid,
    due: DateTime<Utc>,
) -> QueryResult<()> {
    let these = subscription_held::table
        .filter(subscription_held::subscription_id.eq(id.0))
        .filter(subscription_held::position.eq_any(texts(positions)));
    diesel::update(these)
        .set((subscription_held::lease.eq(lease), subscription_held::due.eq(due)))
        .execute(connection)
        .await
        .map(drop)
}

/// Lets held changes go, those that are still held, and with `lease` only those that are out under
/// it; which they were, each with the dead letter it was redriven from.
pub(in crate::feed) async fn delete(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    positions: Option<&[Mark]>,
    lease: Option<Uuid>,
) -> QueryResult<Vec<(Mark, Option<i64>)>> {
    #[derive(QueryableByName)]
    struct Gone {
        #[diesel(sql_type = Text)]
        position: String,
        #[diesel(sql_type = Nullable<BigInt>)]
        letter_id: Option<i64>,
    }
    let sql = "DELETE FROM subscription_held WHERE subscription_id = $1 \
               AND ($2::text[] IS NULL OR position = ANY($2)) AND ($3::uuid IS NULL OR lease = $3) \
               RETURNING position, letter_id";
    let gone: Vec<Gone> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<Nullable<Array<Text>>, _>(positions.map(texts))
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(lease)
        .load(connection)
        .await?;
    gone.into_iter().map(|gone| Ok((mark(&gone.position)?, gone.letter_id))).collect()
}

/// Lets everything go that is held.
pub(in crate::feed) async fn clear(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<()> {
    let of_this = subscription_held::table.filter(subscription_held::subscription_id.eq(id.0));
    diesel::delete(of_this).execute(connection).await.map(drop)
}

fn texts(positions: &[Mark]) -> Vec<String> {
    positions.iter().map(Mark::to_string).collect()
}
