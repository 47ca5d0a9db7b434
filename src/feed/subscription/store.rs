//! The tables of running subscriptions. Callers own the connection and its transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, TransactionManager};
use serde::Serialize;
use uuid::Uuid;

use super::dead_letter;
use super::held;
use super::mark::Mark;
use super::state::{Checksum, SNAPSHOT, State, SubscriptionId, Tally};
use crate::feed::Error;
use crate::pg::PooledConnection;
use crate::vocab::{Op, Position, SourceId};

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        crate::pg::Error::from(error).into()
    }
}

/// A stored value that this program would not have stored.
pub(in crate::feed) fn unreadable(
    error: impl std::error::Error + Send + Sync + 'static,
) -> DieselError {
    DieselError::DeserializationError(Box::new(error))
}

/// A stored position.
pub(in crate::feed) fn position(text: &str) -> QueryResult<Position> {
    text.parse().map_err(unreadable)
}

/// A stored place of a change.
pub(in crate::feed) fn mark(text: &str) -> QueryResult<Mark> {
    text.parse().map_err(unreadable)
}

/// A stored operation.
pub(in crate::feed) fn op(text: &str) -> QueryResult<Op> {
    let code = text.bytes().next().and_then(Op::from_code);
    code.ok_or_else(|| unreadable(std::io::Error::other("a change has an unknown operation")))
}

/// A value as `jsonb`.
pub(in crate::feed) fn json<T: Serialize + ?Sized>(value: &T) -> QueryResult<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| DieselError::SerializationError(Box::new(error)))
}

/// Runs `work` in a transaction: all of it or nothing. Dropped half-way, the connection is not used
/// again.
pub(super) async fn transaction<T>(
    connection: &mut PooledConnection,
    work: impl AsyncFnOnce(&mut PooledConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    type Manager = <PooledConnection as AsyncConnection>::TransactionManager;
    Manager::begin_transaction(connection).await?;
    match work(connection).await {
        Ok(done) => {
            Manager::commit_transaction(connection).await?;
            Ok(done)
        }
        Err(error) => {
            // What failed is told; a rollback that fails, too, only breaks the connection.
            let _ = Manager::rollback_transaction(connection).await;
            Err(error)
        }
    }
}

const STATES: &str = "SELECT t.*, s.name FROM subscription_states t \
     JOIN subscriptions s ON s.id = t.subscription_id";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Integer)]
    subscription_id: i32,
    #[diesel(sql_type = Bool)]
    paused: bool,
    #[diesel(sql_type = Integer)]
    run: i32,
    #[diesel(sql_type = Text)]
    begun: String,
    #[diesel(sql_type = Text)]
    cursor: String,
    #[diesel(sql_type = BigInt)]
    logged: i64,
    #[diesel(sql_type = BigInt)]
    filtered: i64,
    #[diesel(sql_type = BigInt)]
    delivered: i64,
    #[diesel(sql_type = BigInt)]
    dropped: i64,
    #[diesel(sql_type = BigInt)]
    checksum: i64,
    #[diesel(sql_type = BigInt)]
    wishes: i64,
    #[diesel(sql_type = Text)]
    breaker: String,
    #[diesel(sql_type = Nullable<Text>)]
    trouble: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    delivered_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    snapshot: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    paid_until: DateTime<Utc>,
}

impl Row {
    fn read(self) -> QueryResult<(String, State)> {
        let state = State {
            id: SubscriptionId(self.subscription_id),
            paused: self.paused,
            run: self.run,
            begun: position(&self.begun)?,
            cursor: position(&self.cursor)?,
            tally: Tally {
                logged: self.logged,
                filtered: self.filtered,
                delivered: self.delivered,
                dropped: self.dropped,
            },
            checksum: Checksum::from_stored(self.checksum),
            wishes: self.wishes,
            breaker: self.breaker,
            trouble: self.trouble,
            delivered_at: self.delivered_at,
            snapshot: self.snapshot,
            paid_until: self.paid_until,
        };
        Ok((self.name, state))
    }
}

/// Every running subscription by name.
pub(in crate::feed) async fn states(
    connection: &mut AsyncPgConnection,
) -> QueryResult<Vec<(String, State)>> {
    let rows: Vec<Row> = diesel::sql_query(STATES).load(connection).await?;
    rows.into_iter().map(Row::read).collect()
}

/// How one subscription stands. With `lock`, nobody else changes that before the transaction ends.
pub(in crate::feed) async fn state(
    connection: &mut AsyncPgConnection,
    name: &str,
    lock: bool,
) -> QueryResult<Option<State>> {
    let lock = if lock { " FOR UPDATE OF t" } else { "" };
    let row: Option<Row> = diesel::sql_query(format!("{STATES} WHERE s.name = $1{lock}"))
        .bind::<Text, _>(name)
        .get_result(connection)
        .await
        .optional()?;
    row.map(|row| row.read().map(|(_, state)| state)).transpose()
}

/// Lets a subscription begin after a position, with a snapshot or without, unless it has begun.
pub(in crate::feed) async fn begin(
    connection: &mut AsyncPgConnection,
    name: &str,
    source: SourceId,
    after: Position,
    snapshot: bool,
) -> QueryResult<()> {
    let sql = "INSERT INTO subscription_states \
               (subscription_id, source_id, begun, cursor, snapshot) \
               SELECT id, $2, $3, $3, $4 FROM subscriptions WHERE name = $1 \
               ON CONFLICT (subscription_id) DO NOTHING";
    diesel::sql_query(sql)
        .bind::<Text, _>(name)
        .bind::<Integer, _>(source.0)
        .bind::<Text, _>(after.to_string())
        .bind::<Nullable<Text>, _>(snapshot.then_some(SNAPSHOT))
        .execute(connection)
        .await
        .map(drop)
}

/// What a step of delivery adds to a subscription's state.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::feed) struct Step {
    pub(in crate::feed) tally: Tally,
    /// Of the positions delivered in this step.
    pub(in crate::feed) checksum: Checksum,
}

/// Moves a cursor, which must not go backwards, and adds to the counts. The caller holds the row.
pub(in crate::feed) async fn advance(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    cursor: Option<Position>,
    step: &Step,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET \
               cursor = greatest(cursor, coalesce($2, cursor)), \
               logged = logged + $3, filtered = filtered + $4, delivered = delivered + $5, \
               dropped = dropped + $6, checksum = checksum # $7, \
               delivered_at = CASE WHEN $5 > 0 THEN now() ELSE delivered_at END \
               WHERE subscription_id = $1";
    diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<Nullable<Text>, _>(cursor.map(|cursor| cursor.to_string()))
        .bind::<BigInt, _>(step.tally.logged)
        .bind::<BigInt, _>(step.tally.filtered)
        .bind::<BigInt, _>(step.tally.delivered)
        .bind::<BigInt, _>(step.tally.dropped)
        .bind::<BigInt, _>(step.checksum.stored())
        .execute(connection)
        .await
        .map(drop)
}

/// Pauses or resumes; whether there is such a subscription.
pub(in crate::feed) async fn pause(
    connection: &mut AsyncPgConnection,
    name: &str,
    paused: bool,
) -> QueryResult<bool> {
    let sql = "UPDATE subscription_states SET paused = $2, wishes = wishes + 1 \
               WHERE subscription_id = (SELECT id FROM subscriptions WHERE name = $1)";
    let updated = diesel::sql_query(sql)
        .bind::<Text, _>(name)
        .bind::<Bool, _>(paused)
        .execute(connection)
        .await?;
    Ok(updated > 0)
}

/// Begins a new run after a position, with a snapshot or without: nothing is held any more, the
/// counts begin anew, and who holds the cursor loses it. Dead letters that were on their way are
/// parked again.
pub(in crate::feed) async fn seek(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    after: Position,
    snapshot: bool,
) -> QueryResult<()> {
    held::store::clear(connection, id).await?;
    dead_letter::store::park_again(connection, id).await?;
    let sql = "UPDATE subscription_states SET begun = $2, cursor = $2, run = run + 1, \
               logged = 0, filtered = 0, delivered = 0, dropped = 0, checksum = 0, \
               fence = fence + 1, wishes = wishes + 1, trouble = NULL, snapshot = $3, \
               snapshot_reader = NULL WHERE subscription_id = $1";
    diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<Text, _>(after.to_string())
        .bind::<Nullable<Text>, _>(snapshot.then_some(SNAPSHOT))
        .execute(connection)
        .await
        .map(drop)
}

/// Tells whoever runs the subscription that what it holds has changed.
pub(in crate::feed) async fn wish(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET wishes = wishes + 1 WHERE subscription_id = $1";
    diesel::sql_query(sql).bind::<Integer, _>(id.0).execute(connection).await.map(drop)
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// Takes the cursor for `runner` until `ttl` has passed, unless another holds it; the fence to write
/// with.
pub(in crate::feed) async fn claim(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    runner: Uuid,
    ttl: Duration,
) -> QueryResult<Option<i64>> {
    let sql = "UPDATE subscription_states SET fence = fence + 1, runner = $2, \
               leased_until = clock_timestamp() + $3 * interval '1 millisecond' \
               WHERE subscription_id = $1 AND NOT paused \
                 AND (runner = $2 OR leased_until IS NULL OR leased_until < clock_timestamp()) \
               RETURNING fence AS number";
    let fence: Option<Number> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<diesel::sql_types::Uuid, _>(runner)
        .bind::<BigInt, _>(milliseconds(ttl))
        .get_result(connection)
        .await
        .optional()?;
    Ok(fence.map(|found| found.number))
}

/// Holds the cursor for `ttl` more, and locks its row until the transaction ends. How many wishes
/// there are, or `None` when another has taken the cursor.
pub(in crate::feed) async fn renew(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    fence: i64,
    ttl: Duration,
    breaker: &str,
    trouble: Option<&str>,
) -> QueryResult<Option<i64>> {
    let sql = "UPDATE subscription_states SET breaker = $4, trouble = $5, \
               leased_until = clock_timestamp() + $3 * interval '1 millisecond' \
               WHERE subscription_id = $1 AND fence = $2 RETURNING wishes AS number";
    let wishes: Option<Number> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<BigInt, _>(fence)
        .bind::<BigInt, _>(milliseconds(ttl))
        .bind::<Text, _>(breaker)
        .bind::<Nullable<Text>, _>(trouble)
        .get_result(connection)
        .await
        .optional()?;
    Ok(wishes.map(|found| found.number))
}

/// Gives the cursor up, if it still is the caller's.
pub(in crate::feed) async fn release(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    fence: i64,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET runner = NULL, leased_until = NULL \
               WHERE subscription_id = $1 AND fence = $2";
    let release = diesel::sql_query(sql).bind::<Integer, _>(id.0).bind::<BigInt, _>(fence);
    release.execute(connection).await.map(drop)
}

/// Takes the snapshot of a subscription, which must have room for more, until `ttl` has passed,
/// unless another reads it; where in it to go on.
pub(in crate::feed) async fn snapshot_claim(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    reader: Uuid,
    ttl: Duration,
    most_held: usize,
) -> QueryResult<Option<String>> {
    #[derive(QueryableByName)]
    struct Place {
        #[diesel(sql_type = Text)]
        snapshot: String,
    }
    let sql = "UPDATE subscription_states s SET snapshot_reader = $2, \
               snapshot_until = clock_timestamp() + $3 * interval '1 millisecond' \
               WHERE subscription_id = $1 AND NOT paused AND snapshot IS NOT NULL \
                 AND (snapshot_reader IS NULL OR snapshot_until < clock_timestamp()) \
                 AND $4 > (SELECT count(*) FROM subscription_held h \
                           WHERE h.subscription_id = s.subscription_id) \
               RETURNING snapshot";
    let place: Option<Place> = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<diesel::sql_types::Uuid, _>(reader)
        .bind::<BigInt, _>(milliseconds(ttl))
        .bind::<BigInt, _>(i64::try_from(most_held).unwrap_or(i64::MAX))
        .get_result(connection)
        .await
        .optional()?;
    Ok(place.map(|place| place.snapshot))
}

/// Keeps a snapshot for `ttl` more and moves it to `place`, `None` being its end; whether it was
/// still `reader`'s.
pub(in crate::feed) async fn snapshot_move(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    reader: Uuid,
    place: Option<&str>,
    ttl: Duration,
) -> QueryResult<bool> {
    let sql = "UPDATE subscription_states SET snapshot = $3, \
               snapshot_until = clock_timestamp() + $4 * interval '1 millisecond' \
               WHERE subscription_id = $1 AND snapshot_reader = $2 AND snapshot IS NOT NULL";
    let moved = diesel::sql_query(sql)
        .bind::<Integer, _>(id.0)
        .bind::<diesel::sql_types::Uuid, _>(reader)
        .bind::<Nullable<Text>, _>(place)
        .bind::<BigInt, _>(milliseconds(ttl));
    Ok(moved.execute(connection).await? > 0)
}

/// Gives a snapshot up, if it still is `reader`'s.
pub(in crate::feed) async fn snapshot_release(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    reader: Uuid,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET snapshot_reader = NULL \
               WHERE subscription_id = $1 AND snapshot_reader = $2";
    let release = diesel::sql_query(sql).bind::<Integer, _>(id.0);
    release.bind::<diesel::sql_types::Uuid, _>(reader).execute(connection).await.map(drop)
}

/// What consumers were handed is within the budget from then on.
pub(in crate::feed) async fn spend(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    paid_until: DateTime<Utc>,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET paid_until = $2 WHERE subscription_id = $1";
    let update = diesel::sql_query(sql).bind::<Integer, _>(id.0);
    update.bind::<Timestamptz, _>(paid_until).execute(connection).await.map(drop)
}

/// Records what stands in a subscription's way.
pub(in crate::feed) async fn trouble(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    trouble: Option<&str>,
) -> QueryResult<()> {
    let sql = "UPDATE subscription_states SET trouble = $2 \
               WHERE subscription_id = $1 AND trouble IS DISTINCT FROM $2";
    let update = diesel::sql_query(sql).bind::<Integer, _>(id.0);
    update.bind::<Nullable<Text>, _>(trouble).execute(connection).await.map(drop)
}

#[derive(QueryableByName)]
struct Secret {
    #[diesel(sql_type = Binary)]
    secret: Vec<u8>,
}

/// The secrets that are valid now, sealed, the newest first.
pub(in crate::feed) async fn secrets(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<Vec<Vec<u8>>> {
    let sql = "SELECT secret FROM subscription_secrets WHERE subscription_id = $1 AND sealed \
               AND (valid_until IS NULL OR valid_until > now()) ORDER BY made_at DESC";
    let found: Vec<Secret> =
        diesel::sql_query(sql).bind::<Integer, _>(id.0).load(connection).await?;
    Ok(found.into_iter().map(|found| found.secret).collect())
}

/// Secrets that were stored in the clear, before there was a key.
pub(super) async fn secrets_unsealed(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
) -> QueryResult<Vec<Vec<u8>>> {
    let sql = "SELECT secret FROM subscription_secrets WHERE subscription_id = $1 AND NOT sealed \
               FOR UPDATE";
    let found: Vec<Secret> =
        diesel::sql_query(sql).bind::<Integer, _>(id.0).load(connection).await?;
    Ok(found.into_iter().map(|found| found.secret).collect())
}

/// Replaces a secret in the clear by its sealed form.
pub(super) async fn secret_seal(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    plain: &[u8],
    sealed: &[u8],
) -> QueryResult<()> {
    let sql = "UPDATE subscription_secrets SET secret = $3, sealed = true \
               WHERE subscription_id = $1 AND secret = $2 AND NOT sealed";
    let seal = diesel::sql_query(sql).bind::<Integer, _>(id.0).bind::<Binary, _>(plain);
    seal.bind::<Binary, _>(sealed).execute(connection).await.map(drop)
}

/// Adds a sealed secret; those before it stay valid for `overlap`, and are then forgotten.
pub(in crate::feed) async fn secret_add(
    connection: &mut AsyncPgConnection,
    id: SubscriptionId,
    secret: &[u8],
    overlap: Duration,
) -> QueryResult<()> {
    let expire = "UPDATE subscription_secrets SET valid_until = \
                  least(valid_until, now() + $2 * interval '1 millisecond') \
                  WHERE subscription_id = $1";
    diesel::sql_query(expire)
        .bind::<Integer, _>(id.0)
        .bind::<BigInt, _>(milliseconds(overlap))
        .execute(connection)
        .await?;
    let forget = "DELETE FROM subscription_secrets \
                  WHERE subscription_id = $1 AND valid_until <= now()";
    diesel::sql_query(forget).bind::<Integer, _>(id.0).execute(connection).await?;
    let add =
        "INSERT INTO subscription_secrets (subscription_id, secret, sealed) VALUES ($1, $2, true)";
    let add = diesel::sql_query(add).bind::<Integer, _>(id.0).bind::<Binary, _>(secret);
    add.execute(connection).await.map(drop)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
