//! The table of dead letters.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{DeadLetter, LetterState};
use crate::feed::subscription::Mark;
use crate::feed::subscription::held::{Attempt, Item};
use crate::feed::subscription::state::{State, SubscriptionId};
use crate::feed::subscription::store::{json, mark, op, unreadable};

const COLUMNS: &str = "SELECT id, subscription, position, dataset, op, keys, payload, edited, \
     tried, parked_at, state, settled_at, settled_by, reason FROM dead_letters";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    subscription: String,
    #[diesel(sql_type = Text)]
    position: String,
    #[diesel(sql_type = Text)]
    dataset: String,
    #[diesel(sql_type = Text)]
    op: String,
    #[diesel(sql_type = Array<BigInt>)]
    keys: Vec<i64>,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    edited: Option<Vec<u8>>,
    #[diesel(sql_type = Jsonb)]
    tried: serde_json::Value,
    #[diesel(sql_type = Timestamptz)]
    parked_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    settled_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    settled_by: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
}

impl Row {
    fn read(self) -> QueryResult<DeadLetter> {
        let unknown = || unreadable(std::io::Error::other("a dead letter has an unknown state"));
        Ok(DeadLetter {
            id: self.id,
            subscription: self.subscription,
            position: mark(&self.position)?,
            dataset: self.dataset,
            op: op(&self.op)?,
            event: Bytes::from(self.payload),
            edited: self.edited.map(Bytes::from),
            attempts: serde_json::from_value(self.tried).map_err(unreadable)?,
            parked_at: self.parked_at,
            state: LetterState::parse(&self.state).ok_or_else(unknown)?,
            settled_at: self.settled_at,
            settled_by: self.settled_by,
            reason: self.reason,
        })
    }
}

/// A parked change that is to be delivered again.
#[derive(Debug)]
pub(in crate::feed) struct Redriven {
    pub(in crate::feed) id: i64,
    /// With what is to be sent.
    pub(in crate::feed) item: Item,
    pub(in crate::feed) tried: Vec<Attempt>,
}

/// Parks a change.
pub(in crate::feed) async fn park(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    run: i32,
    item: &Item,
    tried: &[Attempt],
) -> QueryResult<()> {
    let sql = "INSERT INTO dead_letters \
               (subscription_id, subscription, run, position, dataset, op, keys, payload, tried) \
               SELECT id, name, $2, $3, $4, $5, $6, $7, $8 FROM subscriptions WHERE id = $1";
    diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<Integer, _>(run)
        .bind::<Text, _>(item.position.to_string())
        .bind::<Text, _>(&item.dataset)
        .bind::<Text, _>(item.op.to_string())
        .bind::<Array<BigInt>, _>(&item.keys)
        .bind::<Binary, _>(&item.json[..])
        .bind::<Jsonb, _>(json(tried)?)
        .execute(connection)
        .await
        .map(drop)
}

/// Parks a redriven change again.
pub(in crate::feed) async fn park_letter(
    connection: &mut AsyncPgConnection,
    letter: i64,
    tried: &[Attempt],
) -> QueryResult<()> {
    let sql = "UPDATE dead_letters SET state = 'parked', tried = $2, parked_at = now() \
               WHERE id = $1";
    let update = diesel::sql_query(sql).bind::<BigInt, _>(letter);
    update.bind::<Jsonb, _>(json(tried)?).execute(connection).await.map(drop)
}

/// Parks again what was on its way.
pub(in crate::feed) async fn park_again(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<()> {
    let sql = "UPDATE dead_letters SET state = 'parked' \
               WHERE subscription_id = $1 AND state = 'redriving'";
    diesel::sql_query(sql).bind::<Integer, _>(id.0).execute(connection).await.map(drop)
}

/// Records that redriven changes have been delivered; gives the positions of those that were parked
/// in an earlier run, which the counts of this one do not know.
pub(in crate::feed) async fn delivered(
    connection: &mut AsyncPgConnection,
    letters: &[i64],
    run: i32,
) -> QueryResult<Vec<Mark>> {
    #[derive(QueryableByName)]
    struct Settled {
        #[diesel(sql_type = Integer)]
        run: i32,
        #[diesel(sql_type = Text)]
        position: String,
    }
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "UPDATE dead_letters SET state = 'delivered', settled_at = now() WHERE id = ANY($1) \
               RETURNING run, position";
    let update = diesel::sql_query(sql).bind::<Array<BigInt>, _>(letters);
    let settled: Vec<Settled> = update.load(connection).await?;
    let earlier = settled.iter().filter(|settled| settled.run != run);
    earlier.map(|settled| mark(&settled.position)).collect()
}

#[derive(QueryableByName)]
struct Keys {
    #[diesel(sql_type = Array<BigInt>)]
    keys: Vec<i64>,
}

/// The keys of all parked changes.
pub(in crate::feed) async fn keys(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<Vec<i64>> {
    let sql = "SELECT keys FROM dead_letters WHERE subscription_id = $1 AND state = 'parked'";
    let rows: Vec<Keys> = diesel::sql_query(sql).bind::<Integer, _>(id.0).load(connection).await?;
    Ok(rows.into_iter().flat_map(|row| row.keys).collect())
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// How many changes are parked, of this run or of any.
pub(in crate::feed) async fn count(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    run: Option<i32>,
) -> QueryResult<i64> {
    let sql = "SELECT count(*) AS number FROM dead_letters WHERE subscription_id = $1 \
               AND state = 'parked' AND run = coalesce($2, run)";
    let count = diesel::sql_query(sql).bind::<Integer, _>(id.0);
    let found: Number = count.bind::<Nullable<Integer>, _>(run).get_result(connection).await?;
    Ok(found.number)
}

/// Letters in the order of parking, after one with a number, in this state or in any.
pub(in crate::feed) async fn list(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    state: Option<LetterState>,
    after: i64,
    first: usize,
) -> QueryResult<Vec<DeadLetter>> {
    let sql = format!(
        "{COLUMNS} WHERE subscription_id = $1 AND id > $2 AND state = coalesce($3, state) \
         ORDER BY id LIMIT $4"
    );
    let rows: Vec<Row> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<BigInt, _>(after)
        .bind::<Nullable<Text>, _>(state.map(LetterState::as_str))
        .bind::<BigInt, _>(i64::try_from(first).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
    rows.into_iter().map(Row::read).collect()
}

/// One letter.
pub(in crate::feed) async fn find(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    letter: i64,
) -> QueryResult<Option<DeadLetter>> {
    let sql = format!("{COLUMNS} WHERE subscription_id = $1 AND id = $2");
    let row: Option<Row> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<BigInt, _>(letter)
        .get_result(connection)
        .await
        .optional()?;
    row.map(Row::read).transpose()
}

/// Replaces what is sent; whether there is such a parked change.
pub(in crate::feed) async fn edit(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    letter: i64,
    event: &[u8],
) -> QueryResult<bool> {
    let sql = "UPDATE dead_letters SET edited = $3 \
               WHERE subscription_id = $1 AND id = $2 AND state = 'parked'";
    let update = diesel::sql_query(sql).bind::<Integer, _>(id.0).bind::<BigInt, _>(letter);
    Ok(update.bind::<Binary, _>(event).execute(connection).await? > 0)
}

/// Takes parked changes out of the queue to deliver them again, in order of position: one, or the
/// first `most`. Those after the cursor are left: they come again by themselves.
pub(in crate::feed) async fn redrive(
    connection: &mut AsyncPgConnection,
    state: &State,
    letter: Option<i64>,
    most: usize,
) -> QueryResult<Vec<Redriven>> {
    let sql = format!(
        "WITH chosen AS ( \
             SELECT id FROM dead_letters WHERE subscription_id = $1 AND state = 'parked' \
               AND id = coalesce($2, id) AND left(position, 28) <= $4 \
               AND position NOT IN ( \
                   SELECT position FROM subscription_held WHERE subscription_id = $1) \
             ORDER BY position LIMIT $3 FOR UPDATE \
         ), moved AS ( \
             UPDATE dead_letters SET state = 'redriving' FROM chosen \
             WHERE dead_letters.id = chosen.id RETURNING dead_letters.id \
         ) {COLUMNS} WHERE id IN (SELECT id FROM moved) ORDER BY position"
    );
    let rows: Vec<Row> = diesel::sql_query(sql)
        .bind::<Integer, _>(state.id.0)
        .bind::<Nullable<BigInt>, _>(letter)
        .bind::<BigInt, _>(i64::try_from(most).unwrap_or(i64::MAX))
        .bind::<Text, _>(state.cursor.to_string())
        .load(connection)
        .await?;
    let read = |row: Row| {
        let item = Item {
            position: mark(&row.position)?,
            dataset: row.dataset,
            op: op(&row.op)?,
            keys: row.keys,
            json: Bytes::from(row.edited.unwrap_or(row.payload)),
        };
        let tried = serde_json::from_value(row.tried).map_err(unreadable)?;
        Ok(Redriven { id: row.id, item, tried })
    };
    rows.into_iter().map(read).collect()
}

/// Gives a parked change up; the run it was parked in, if there is such a one.
pub(in crate::feed) async fn settle(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    letter: i64,
    by: &str,
    reason: &str,
) -> QueryResult<Option<i32>> {
    #[derive(QueryableByName)]
    struct Run {
        #[diesel(sql_type = Integer)]
        run: i32,
    }
    let sql = "UPDATE dead_letters SET state = 'dropped', settled_at = now(), settled_by = $3, \
               reason = $4 WHERE subscription_id = $1 AND id = $2 AND state = 'parked' \
               RETURNING run";
    let run: Option<Run> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<BigInt, _>(letter)
        .bind::<Text, _>(by)
        .bind::<Text, _>(reason)
        .get_result(connection)
        .await
        .optional()?;
    Ok(run.map(|found| found.run))
}

/// Gives up what was parked longer ago than `seconds`; how many of run `run`, and how many in all.
pub(in crate::feed) async fn expire(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    run: i32,
    seconds: i64,
) -> QueryResult<(i64, i64)> {
    #[derive(QueryableByName)]
    struct Expired {
        #[diesel(sql_type = BigInt)]
        of_run: i64,
        #[diesel(sql_type = BigInt)]
        total: i64,
    }
    let sql = "WITH gone AS ( \
                   UPDATE dead_letters SET state = 'expired', settled_at = now(), \
                   reason = 'nobody decided in time' WHERE subscription_id = $1 \
                     AND state = 'parked' AND parked_at < now() - $3 * interval '1 second' \
                   RETURNING run \
               ) SELECT count(*) FILTER (WHERE run = $2) AS of_run, count(*) AS total FROM gone";
    let expired: Expired = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<Integer, _>(run)
        .bind::<BigInt, _>(seconds)
        .get_result(connection)
        .await?;
    Ok((expired.of_run, expired.total))
}
