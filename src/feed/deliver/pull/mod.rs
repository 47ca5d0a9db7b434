//! Pull delivery: consumers fetch batches under a lease and say what they have done.
//!
//! ```text
//!  fetch ─► out under a lease ─ ack ──► delivered
//!                │  ▲            nack ─► due again after a pause ─┐
//!                │  └ extend     lease over ─► due again ─────────┤
//!                └────────────────────────── after too many ──────┴─► dead letter
//! ```
//!
//! Any replica answers; each step is one transaction that holds the subscription's row. What is out
//! is held in a table, so that the cursor need not wait for the slowest consumer. Consumers compete:
//! a key that is out with one is not handed to another, so that each key's order holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::FutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use crate::feed::Error;
use crate::feed::deliver::pace;
use crate::feed::subscription::held::{self, Barred, Held, Item, Room, choose};
use crate::feed::subscription::store::{self, Step};
use crate::feed::subscription::{
    Declared, Mark, State, Subscriptions, dead_letter, locked, settle,
};
use crate::log::Start;
use crate::pg::PooledConnection;
use crate::registry::{Deliver, Snapshot};
use crate::vocab::{Position, limits};

/// How often a fetch that waits looks whether what is held has become free.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often it looks otherwise: it may have been paused, or something come back.
const NEWS_EVERY: Duration = Duration::from_secs(1);

/// The attempt that a consumer made of a change without saying how it ended.
const LEASE_OVER: &str = "the lease was over before the change was acknowledged";

/// What a consumer gets.
#[derive(Debug)]
pub struct Fetched {
    /// Names what is handed out here; nil when there is nothing.
    pub lease: Uuid,
    /// When it is handed to somebody else unless acknowledged or extended.
    pub expires_at: DateTime<Utc>,
    /// In order.
    pub changes: Vec<FetchedChange>,
}

/// One change that a consumer gets.
#[derive(Debug)]
pub struct FetchedChange {
    /// Where it stands: the idempotency key.
    pub position: Mark,
    /// From 1: how often it has been handed out.
    pub attempt: u32,
    /// The event.
    pub event: Bytes,
}

/// Which of the changes that are out are meant: all that match.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Those out under this lease.
    pub lease: Option<Uuid>,
    /// Those at these positions.
    pub positions: Option<Vec<Mark>>,
}

/// What a consumer says of changes that it has not handled.
#[derive(Debug, Clone, Copy)]
enum Said<'a> {
    Failed { error: &'a str, delay: Duration },
    NeedsTime { by: Duration },
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// How many it concerned.
    pub changes: usize,
    /// Positions that are not out any more: settled before, or handed to somebody else.
    pub gone: Vec<Mark>,
}

impl Which {
    fn has(&self, held: &Held) -> bool {
        held.lease.is_some()
            && self.lease.is_none_or(|lease| held.lease == Some(lease))
            && self.positions.as_ref().is_none_or(|these| these.contains(&held.position))
    }

    /// The positions named that are not among those found.
    fn gone(&self, found: &[Mark]) -> Vec<Mark> {
        let named = self.positions.iter().flatten();
        named.filter(|position| !found.contains(position)).copied().collect()
    }
}

impl Subscriptions {
    /// Hands out up to `max` changes; waits up to `wait` for the first. What the log has already is
    /// looked through without counting that as waiting.
    ///
    /// # Errors
    /// [`Error::Conflict`] while the subscription is paused, when it is not a pull subscription, or
    /// when nobody looks after its dead letters.
    pub async fn fetch(&self, name: &str, max: usize, wait: Duration) -> Result<Fetched, Error> {
        let declared = self.declared(name)?;
        let lease = lease_of(&declared)?;
        self.begun(&declared).await?;
        let begun = Instant::now();
        let deadline = begun + wait;
        loop {
            let room = Room { changes: max, bytes: limits::DELIVERY_BYTES_MAX };
            let look = async |connection: &mut PooledConnection| {
                hand_out_held(self, connection, &declared, room, lease).await
            };
            let (fetched, view) = self.transaction(look).await?;
            if !fetched.changes.is_empty() {
                return Ok(fetched);
            }
            let mut moved = false;
            if let Some(view) = view {
                let longest = deadline.saturating_duration_since(Instant::now());
                let patience = longest.min(if view.holds { LOOK_EVERY } else { NEWS_EVERY });
                let new = self.read_new(&declared, view.cursor, room, patience).await?;
                let hand_out = async |connection: &mut PooledConnection| {
                    hand_out_new(self, connection, &declared, &new, room, lease).await
                };
                match self.transaction(hand_out).await? {
                    Handed::Out(fetched) => return Ok(fetched),
                    Handed::Moved => moved = true,
                    Handed::Still => {}
                }
            } else {
                tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
            }
            // Where the cursor moves there may be more behind it, which is no waiting.
            let patient = moved && begun.elapsed() < limits::PULL_WAIT_MAX;
            if Instant::now() >= deadline && !patient {
                return Ok(nothing());
            }
        }
    }

    /// Changes are handled: they are not handed out again.
    ///
    /// # Errors
    /// [`Error::UnknownSubscription`], [`Error::Conflict`], [`Error::Store`].
    pub async fn ack(&self, name: &str, which: &Which) -> Result<Acknowledged, Error> {
        let declared = self.declared(name)?;
        lease_of(&declared)?;
        self.transaction(async |connection| {
            let state = locked(connection, name).await?;
            let positions = which.positions.as_deref();
            let gone = held::store::delete(connection, state.id, positions, which.lease).await?;
            let step = settle::delivered(connection, &state, &gone).await?;
            store::advance(connection, state.id, None, &step).await?;
            let found: Vec<Mark> = gone.iter().map(|(position, _)| *position).collect();
            Ok(Acknowledged { changes: found.len(), gone: which.gone(&found) })
        })
        .await
    }

    /// Changes could not be handled: they are handed out again after a pause, at least `delay` long,
    /// or parked when that was the last attempt.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn nack(
        &self,
        name: &str,
        which: &Which,
        error: &str,
        delay: Duration,
    ) -> Result<Acknowledged, Error> {
        self.said(name, which, Said::Failed { error, delay }).await
    }

    /// Changes need more time: their lease is over `by` from now.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn extend(
        &self,
        name: &str,
        which: &Which,
        by: Duration,
    ) -> Result<Acknowledged, Error> {
        self.said(name, which, Said::NeedsTime { by }).await
    }

    /// Does what a consumer says of changes that are out with it: to all that are meant, or none.
    async fn said(&self, name: &str, which: &Which, said: Said<'_>) -> Result<Acknowledged, Error> {
        let declared = self.declared(name)?;
        lease_of(&declared)?;
        self.transaction(async |connection| {
            let state = locked(connection, name).await?;
            let mut found = Vec::new();
            for mut held in held::store::held(connection, state.id).await? {
                if !which.has(&held) {
                    continue;
                }
                found.push(held.position);
                match said {
                    Said::Failed { error, delay } => {
                        fail(connection, &declared, &state, &mut held, error, delay).await?;
                    }
                    Said::NeedsTime { by } => {
                        held.due = settle::later(Utc::now(), by);
                        held::store::update(connection, state.id, &held).await?;
                    }
                }
            }
            Ok(Acknowledged { changes: found.len(), gone: which.gone(&found) })
        })
        .await
    }

    /// Changes after the cursor, as many as there is room for: what the log has, however long it takes
    /// to read that; when it has none, waits up to `patience` for the first.
    async fn read_new(
        &self,
        declared: &Declared,
        cursor: Position,
        room: Room,
        patience: Duration,
    ) -> Result<New, Error> {
        let mut reader = self.reader(declared, Start::After(cursor));
        reader.locate().await?;
        let snapshot = self.shared.registry.snapshot();
        let mut new = New { after: cursor, upto: cursor, items: Vec::new(), filtered: 0 };
        let mut left = room;
        let mut slice = reader.next_present().await?;
        if slice.is_none() && patience > Duration::ZERO {
            slice = tokio::time::timeout(patience, reader.next()).await.ok().transpose()?;
        }
        while let Some(found) = slice.take() {
            self.learn_keys(declared, &found).await?;
            for (entry, json) in found.iter() {
                let keys = self.keys(entry.dataset, entry.op, &json);
                let Some(json) = declared.wants(entry.position, entry.op, &json) else {
                    new.upto = entry.position;
                    new.filtered += 1;
                    continue;
                };
                if !left.take(json.len(), new.items.is_empty()) {
                    return Ok(new);
                }
                new.upto = entry.position;
                new.items.push(Item {
                    position: entry.position.into(),
                    dataset: dataset_name(&snapshot, entry.dataset),
                    op: entry.op,
                    keys,
                    json,
                });
            }
            // Of more, only what is at hand.
            slice = reader.next_present().now_or_never().transpose()?.flatten();
        }
        // Nothing more of these datasets up to where the reader has looked.
        new.upto = new.upto.max(reader.position());
        Ok(new)
    }
}

/// The name of a dataset by its number, as messages and events have it.
pub(in crate::feed) fn dataset_name(
    snapshot: &Arc<Snapshot>,
    id: crate::vocab::DatasetId,
) -> String {
    snapshot.datasets_by_id.get(&id).map(|found| found.name.to_string()).unwrap_or_default()
}

/// Changes read from the log, to be handed out.
struct New {
    /// Read after this cursor.
    after: Position,
    /// Examined up to here.
    upto: Position,
    items: Vec<Item>,
    /// How many of those examined are not wanted.
    filtered: i64,
}

/// What became of changes read from the log.
enum Handed {
    /// Some are out with this consumer.
    Out(Fetched),
    /// None, but the cursor stands elsewhere now: moved here, or by somebody else.
    Moved,
    /// None, and the cursor stands where it stood.
    Still,
}

/// What a fetch that found nothing held has to know to go on.
struct View {
    cursor: Position,
    /// Whether something is held that may become free.
    holds: bool,
}

fn lease_of(declared: &Declared) -> Result<Duration, Error> {
    match declared.spec.deliver {
        Deliver::Pull { lease } => Ok(lease),
        _ => Err(Error::Conflict(format!(
            "subscription \"{}\" is delivered by {}: only those with deliver: {{pull: {{}}}} are \
             fetched",
            declared.subscription.name,
            declared.spec.deliver.kind()
        ))),
    }
}

fn nothing() -> Fetched {
    Fetched { lease: Uuid::nil(), expires_at: Utc::now(), changes: Vec::new() }
}

/// How a subscription stands, if it may be fetched from now.
async fn open(connection: &mut PooledConnection, declared: &Declared) -> Result<State, Error> {
    let name = &declared.subscription.name;
    let state = locked(connection, name).await?;
    if state.paused {
        return Err(Error::Conflict(format!("subscription \"{name}\" is paused: resume it first")));
    }
    let parked = dead_letter::store::count(connection, state.id, None).await?;
    if usize::try_from(parked).is_ok_and(|parked| parked >= limits::DEAD_LETTERS_MAX) {
        return Err(Error::Conflict(format!(
            "subscription \"{name}\" has {parked} dead letters, as many as may be: redrive or drop \
             them first"
        )));
    }
    Ok(state)
}

/// Hands out what is held and free. When nothing is, and there is room to hold more, says what to
/// read from the log.
async fn hand_out_held(
    subscriptions: &Subscriptions,
    connection: &mut PooledConnection,
    declared: &Declared,
    mut room: Room,
    lease: Duration,
) -> Result<(Fetched, Option<View>), Error> {
    let state = open(connection, declared).await?;
    let now = Utc::now();
    let mut all = Vec::new();
    for mut held in held::store::held(connection, state.id).await? {
        let over = held.lease.is_some() && held.due <= now;
        let pause = Duration::ZERO;
        if over && fail(connection, declared, &state, &mut held, LEASE_OVER, pause).await? {
            continue;
        }
        all.push(held);
    }
    let Some(affordable) = pace::affordable(declared.spec.budget, state.paid_until, now) else {
        return Ok((nothing(), None));
    };
    room.limit(affordable);
    let blocked = subscriptions.blocked(connection, declared, &state).await?;
    let chosen = choose(&all, now, &mut Barred::new(blocked), &mut room);
    if chosen.is_empty() {
        let holds = !all.is_empty();
        let view = View { cursor: state.cursor, holds };
        // What a snapshot gives is held; the log goes on after its end.
        let reads = state.snapshot.is_none() && all.len() < limits::SUBSCRIPTION_HELD_MAX;
        return Ok((nothing(), reads.then_some(view)));
    }
    let (id, expires_at) = (Uuid::now_v7(), settle::later(now, lease));
    held::store::lease(connection, state.id, &chosen, id, expires_at).await?;
    let items = held::store::items(connection, state.id, &chosen).await?;
    let attempt = |item: &Item| {
        let held = all.iter().find(|held| held.position == item.position);
        held.map_or(1, |held| held.attempts + 1)
    };
    let changes: Vec<_> = items
        .into_iter()
        .map(|item| FetchedChange {
            position: item.position,
            attempt: attempt(&item),
            event: item.json,
        })
        .collect();
    spend(connection, declared, &state, &changes, now).await?;
    Ok((Fetched { lease: id, expires_at, changes }, None))
}

/// Moves the cursor over new changes and hands out those whose keys are free, unless somebody else
/// has moved it.
async fn hand_out_new(
    subscriptions: &Subscriptions,
    connection: &mut PooledConnection,
    declared: &Declared,
    new: &New,
    mut room: Room,
    lease: Duration,
) -> Result<Handed, Error> {
    let state = open(connection, declared).await?;
    if state.cursor != new.after {
        return Ok(Handed::Moved);
    }
    if state.snapshot.is_some() || (new.items.is_empty() && new.upto == new.after) {
        return Ok(Handed::Still);
    }
    let now = Utc::now();
    let Some(affordable) = pace::affordable(declared.spec.budget, state.paid_until, now) else {
        return Ok(Handed::Still);
    };
    room.limit(affordable);
    let blocked = subscriptions.blocked(connection, declared, &state).await?;
    let mut barred = Barred::new(blocked);
    for held in held::store::held(connection, state.id).await? {
        if !barred.bars(&held.keys) {
            barred.bar(&held.keys);
        }
    }
    let (id, expires_at) = (Uuid::now_v7(), settle::later(now, lease));
    let mut changes = Vec::new();
    let mut rows = Vec::with_capacity(new.items.len());
    for item in &new.items {
        let free = !barred.bars(&item.keys);
        let goes = free && room.take(item.json.len(), changes.is_empty());
        if free && !goes {
            barred.bar(&item.keys);
        }
        rows.push(held::store::New {
            item,
            attempts: 0,
            tried: &[],
            due: if goes { expires_at } else { now },
            lease: goes.then_some(id),
            letter: None,
        });
        if goes {
            let (position, event) = (item.position, item.json.clone());
            changes.push(FetchedChange { position, attempt: 1, event });
        }
    }
    held::store::insert(connection, state.id, &rows).await?;
    let mut step = Step::default();
    step.tally.filtered = new.filtered;
    step.tally.logged = new.filtered + i64::try_from(new.items.len()).unwrap_or(i64::MAX);
    store::advance(connection, state.id, Some(new.upto), &step).await?;
    if changes.is_empty() {
        return Ok(Handed::Moved);
    }
    spend(connection, declared, &state, &changes, now).await?;
    Ok(Handed::Out(Fetched { lease: id, expires_at, changes }))
}

/// Takes what is handed out from the budget.
async fn spend(
    connection: &mut PooledConnection,
    declared: &Declared,
    state: &State,
    changes: &[FetchedChange],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let bytes = changes.iter().map(|change| change.event.len()).sum();
    let cost = pace::cost(declared.spec.budget, changes.len(), bytes);
    if cost > Duration::ZERO {
        let paid_until = settle::later(state.paid_until.max(now), cost);
        store::spend(connection, state.id, paid_until).await?;
    }
    Ok(())
}

/// Counts an attempt of a change that was out; whether that was its last and it is parked.
async fn fail(
    connection: &mut PooledConnection,
    declared: &Declared,
    state: &State,
    held: &mut Held,
    error: &str,
    delay: Duration,
) -> Result<bool, Error> {
    let retry = &declared.spec.retry;
    if settle::failed(held, error.to_owned(), Utc::now(), delay, retry) {
        settle::park(connection, state, held).await?;
        return Ok(true);
    }
    held::store::update(connection, state.id, held).await?;
    Ok(false)
}
