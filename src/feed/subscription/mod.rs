//! Subscriptions: named readers whose place in the log is kept here.
//!
//! ```text
//!        log   ····· settled or held ·····│ cursor │····· not looked at ·····►
//!                        │                     │
//!   held outside the log ┘ out with a consumer,│ failed and to be tried again, behind one of these
//!   dead letters           parked after too many attempts, until somebody decides
//! ```
//!
//! What is declared of a subscription is the registry's; how far it has come is in tables of this
//! room. The cursor moves in steps, with everything a step settles, in one transaction: a crash
//! repeats a step and loses none. Who wants to write there holds the row (a consumer's request) or
//! the fence (the one runner that sends), so that of two replicas one delivers.
//!
//! Invariants: each change at or before the cursor is in exactly one place, and the counts say so
//! ([`Counts::reconcile`]); a change is out only while no earlier one of its key is unsettled; a
//! dead letter leaves the queue only by delivery, or by a decision that is kept with its reason.

pub(in crate::feed) mod dead_letter;
pub(in crate::feed) mod held;
mod keeper;
mod mark;
mod secret;
pub(in crate::feed) mod settle;
mod spool;
mod state;
pub(in crate::feed) mod store;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use parking_lot::Mutex;

pub use dead_letter::{DeadLetter, LetterState};
pub use held::Attempt;
pub use mark::{MalformedMark, Mark};
pub use secret::Sealer;
pub use state::{Checksum, Counts, Status, Tally};
pub(in crate::feed) use state::{State, SubscriptionId};

use super::deliver::keys::keys;
use super::request::Ops;
use super::{Error, Shape};
use crate::log::{Log, Reader, Slice, Start};
use crate::pg::{self, Pool, PooledConnection};
use crate::registry::{
    OnPark, Registry, SNAPSHOT_NEEDS_ROWS, StartAt, Subscription, SubscriptionSpec,
};
use crate::vocab::{DatasetId, Op, Position, SourceId, limits};

/// Every subscription. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Subscriptions {
    pub(in crate::feed) shared: Arc<Shared>,
}

pub(in crate::feed) struct Shared {
    pub(in crate::feed) registry: Registry,
    pub(in crate::feed) log: Log,
    pub(in crate::feed) pool: Pool,
    /// Keeps the secrets of webhooks.
    sealer: Sealer,
    /// The columns of datasets' keys, as far as the log has told.
    key_columns: Mutex<HashMap<DatasetId, Vec<String>>>,
    /// Ticks when something was asked for, so that runners here need not wait for their next look.
    pub(in crate::feed) wishes: tokio::sync::watch::Sender<u64>,
}

/// A subscription as it is declared, understood.
#[derive(Debug, Clone)]
pub(in crate::feed) struct Declared {
    pub(in crate::feed) subscription: Arc<Subscription>,
    pub(in crate::feed) spec: SubscriptionSpec,
    pub(in crate::feed) source: SourceId,
    pub(in crate::feed) datasets: Vec<DatasetId>,
    ops: Ops,
    shape: Shape,
}

impl Declared {
    /// The change as the subscription wants it; `None` when it does not.
    pub(in crate::feed) fn wants(&self, at: Position, op: Op, json: &Bytes) -> Option<Bytes> {
        if self.ops.has(op) { self.shape.apply(at, op, json) } else { None }
    }
}

impl Subscriptions {
    /// Subscriptions that `registry` knows, to changes in `log`; how far they have come is kept in
    /// the registry's database behind `pool`, their secrets sealed by `sealer`.
    pub fn new(registry: Registry, log: Log, pool: Pool, sealer: Sealer) -> Self {
        let wishes = tokio::sync::watch::Sender::new(0);
        let key_columns = Mutex::default();
        Self { shared: Arc::new(Shared { registry, log, pool, sealer, key_columns, wishes }) }
    }

    /// How a subscription stands.
    ///
    /// # Errors
    /// [`Error::UnknownSubscription`], [`Error::Store`].
    pub async fn status(&self, name: &str) -> Result<Status, Error> {
        let declared = self.declared(name)?;
        self.begun(&declared).await?;
        self.describe(&declared).await
    }

    /// Lets a subscription begin where its declaration says, unless it has begun. From then on it
    /// misses nothing.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when it is to begin before what the log holds.
    pub async fn begin(&self, name: &str) -> Result<(), Error> {
        self.begun(&self.declared(name)?).await?;
        self.wished();
        Ok(())
    }

    /// Stops delivery, or lets it go on where it stopped.
    ///
    /// # Errors
    /// [`Error::UnknownSubscription`], [`Error::Store`].
    pub async fn pause(&self, name: &str, paused: bool) -> Result<(), Error> {
        self.begun(&self.declared(name)?).await?;
        self.transaction(async |connection| Ok(store::pause(connection, name, paused).await?))
            .await?;
        self.wished();
        Ok(())
    }

    /// Begins a new run somewhere else: what is held is let go, the counts begin anew, dead letters
    /// stay. Gives the position it reads after.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when the log does not hold what follows; [`Error::Invalid`] when it is to
    /// begin with a snapshot and wants no rows.
    pub async fn seek(&self, name: &str, to: StartAt) -> Result<Position, Error> {
        let declared = self.declared(name)?;
        let snapshot = to == StartAt::Snapshot;
        if snapshot && !declared.ops.has(Op::Read) {
            return Err(Error::Invalid(format!("filter.ops: {SNAPSHOT_NEEDS_ROWS}")));
        }
        let after = self.locate(&declared, to).await?;
        self.begun(&declared).await?;
        self.transaction(async |connection| {
            let state = locked(connection, name).await?;
            store::seek(connection, state.id, after, snapshot).await?;
            Ok(())
        })
        .await?;
        self.wished();
        Ok(after)
    }

    /// Forgets a subscription and where it was. Its dead letters must be settled first; with
    /// `reason` they are dropped by `by` for that reason.
    ///
    /// # Errors
    /// [`Error::Conflict`] while it has dead letters and no reason is given.
    pub async fn delete(&self, name: &str, by: &str, reason: Option<&str>) -> Result<(), Error> {
        let declared = self.declared(name)?;
        self.transaction(async |connection| {
            let Some(state) = store::state(connection, name, true).await? else { return Ok(()) };
            dead_letter::store::park_again(connection, state.id).await?;
            let parked = dead_letter::store::list(
                connection,
                state.id,
                Some(LetterState::Parked),
                0,
                usize::MAX,
            )
            .await?;
            let Some(reason) = reason.or_else(|| parked.is_empty().then_some("")) else {
                return Err(Error::Conflict(format!(
                    "subscription \"{name}\" has {} dead letters: redrive or drop them first, or \
                     give a reason to drop them all with it",
                    parked.len()
                )));
            };
            for letter in parked {
                dead_letter::store::settle(connection, state.id, letter.id, by, reason).await?;
            }
            Ok(())
        })
        .await?;
        self.shared.registry.subscription_delete(name).await?;
        self.shared.log.unprotect(declared.source, &holder(name)).await?;
        self.wished();
        Ok(())
    }

    /// Dead letters in the order of parking, after the one with number `after`.
    ///
    /// # Errors
    /// [`Error::UnknownSubscription`], [`Error::Store`].
    pub async fn dead_letters(
        &self,
        name: &str,
        state: Option<LetterState>,
        after: i64,
        first: usize,
    ) -> Result<Vec<DeadLetter>, Error> {
        let id = self.begun(&self.declared(name)?).await?.id;
        self.transaction(async |connection| {
            Ok(dead_letter::store::list(connection, id, state, after, first).await?)
        })
        .await
    }

    /// One dead letter.
    ///
    /// # Errors
    /// [`Error::UnknownDeadLetter`].
    pub async fn dead_letter(&self, name: &str, letter: i64) -> Result<DeadLetter, Error> {
        let id = self.begun(&self.declared(name)?).await?.id;
        let found = self
            .transaction(async |connection| {
                Ok(dead_letter::store::find(connection, id, letter).await?)
            })
            .await?;
        found.ok_or_else(|| unknown_letter(name, letter))
    }

    /// Replaces what is sent when a parked change is redriven: a JSON object.
    ///
    /// # Errors
    /// [`Error::UnknownDeadLetter`], [`Error::Conflict`] when it is not parked any more.
    pub async fn dead_letter_edit(
        &self,
        name: &str,
        letter: i64,
        event: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<DeadLetter, Error> {
        let text = serde_json::to_vec(event).expect("a JSON object can be written");
        let found = self.dead_letter(name, letter).await?;
        let id = self.begun(&self.declared(name)?).await?.id;
        let edited = self
            .transaction(async |connection| {
                Ok(dead_letter::store::edit(connection, id, letter, &text).await?)
            })
            .await?;
        if !edited {
            return Err(not_parked(&found));
        }
        Ok(DeadLetter { edited: Some(Bytes::from(text)), ..found })
    }

    /// Delivers parked changes again: one, or all in order. How many.
    ///
    /// # Errors
    /// [`Error::UnknownDeadLetter`]; [`Error::Conflict`] when it is not parked any more.
    pub async fn redrive(&self, name: &str, letter: Option<i64>) -> Result<usize, Error> {
        if let Some(letter) = letter {
            let found = self.dead_letter(name, letter).await?;
            if found.state != LetterState::Parked {
                return Err(not_parked(&found));
            }
        }
        let redrive = async |connection: &mut PooledConnection| {
            let state = locked(connection, name).await?;
            let most = limits::SUBSCRIPTION_HELD_MAX;
            let redriven = dead_letter::store::redrive(connection, &state, letter, most).await?;
            let new: Vec<_> = redriven
                .iter()
                .map(|redriven| held::store::New {
                    item: &redriven.item,
                    attempts: 0,
                    tried: &redriven.tried,
                    due: DateTime::UNIX_EPOCH,
                    lease: None,
                    letter: Some(redriven.id),
                })
                .collect();
            held::store::insert(connection, state.id, &new).await?;
            store::wish(connection, state.id).await?;
            Ok(new.len())
        };
        let count = self.transaction(redrive).await?;
        self.wished();
        match letter {
            Some(letter) if count == 0 => Err(Error::Conflict(format!(
                "dead letter {letter} comes again by itself: the subscription was set back to \
                 before it"
            ))),
            _ => Ok(count),
        }
    }

    /// Gives a parked change up on purpose. It stays on record with who and why.
    ///
    /// # Errors
    /// [`Error::UnknownDeadLetter`]; [`Error::Conflict`] when it is not parked any more.
    pub async fn dead_letter_drop(
        &self,
        name: &str,
        letter: i64,
        by: &str,
        reason: &str,
    ) -> Result<DeadLetter, Error> {
        let found = self.dead_letter(name, letter).await?;
        self.transaction(async |connection| {
            let state = locked(connection, name).await?;
            let run = dead_letter::store::settle(connection, state.id, letter, by, reason).await?;
            let Some(run) = run else { return Err(not_parked(&found)) };
            let dropped = i64::from(run == state.run);
            let step =
                store::Step { tally: Tally { dropped, ..Tally::default() }, ..Default::default() };
            store::advance(connection, state.id, None, &step).await?;
            store::wish(connection, state.id).await?;
            Ok(())
        })
        .await?;
        self.wished();
        self.dead_letter(name, letter).await
    }

    /// What the registry says of a subscription, understood.
    pub(in crate::feed) fn declared(&self, name: &str) -> Result<Declared, Error> {
        let snapshot = self.shared.registry.snapshot();
        let subscription = snapshot
            .subscriptions
            .get(name)
            .ok_or_else(|| Error::UnknownSubscription(name.to_owned()))?;
        let spec = SubscriptionSpec::parse(&subscription.spec).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Error::Invalid(format!("subscription \"{name}\": {}", errors.join("; ")))
        })?;
        let mut source = None;
        let mut datasets = Vec::with_capacity(subscription.datasets.len());
        for dataset in &subscription.datasets {
            let found = snapshot
                .datasets
                .get(dataset)
                .ok_or_else(|| Error::UnknownDataset(dataset.clone()))?;
            source = Some(found.source_id);
            datasets.push(found.id);
        }
        let source = source.ok_or_else(|| Error::Invalid("datasets: expected one".to_owned()))?;
        let ops = Ops::new(spec.filter.ops.as_deref())?;
        let (predicate, columns) = (spec.filter.predicate.clone(), spec.filter.columns.clone());
        let shape = Shape { predicate, columns, cloud_event: false };
        let subscription = Arc::clone(subscription);
        Ok(Declared { subscription, spec, source, datasets, ops, shape })
    }

    /// Asks the log for the key columns of the datasets in a slice that are not known yet.
    pub(in crate::feed) async fn learn_keys(
        &self,
        declared: &Declared,
        slice: &Slice,
    ) -> Result<(), Error> {
        let mut unknown: Vec<DatasetId> = {
            let known = self.shared.key_columns.lock();
            let datasets = slice.entries().map(|(entry, _)| entry.dataset);
            datasets.filter(|dataset| !known.contains_key(dataset)).collect()
        };
        unknown.sort_unstable();
        unknown.dedup();
        for dataset in unknown {
            if let Some(columns) = self.shared.log.key_columns(declared.source, dataset).await? {
                self.know_keys(dataset, columns);
            }
        }
        Ok(())
    }

    /// The columns of a dataset's key, whoever tells of them in which order.
    fn know_keys(&self, dataset: DatasetId, mut columns: Vec<String>) {
        columns.sort_unstable();
        self.shared.key_columns.lock().entry(dataset).or_insert(columns);
    }

    /// The keys of a change; see [`keys`].
    pub(in crate::feed) fn keys(&self, dataset: DatasetId, op: Op, json: &[u8]) -> Vec<i64> {
        let known = self.shared.key_columns.lock();
        keys(known.get(&dataset).map(Vec::as_slice), dataset, op, json)
    }

    /// A reader of what the subscription is to.
    pub(in crate::feed) fn reader(&self, declared: &Declared, start: Start) -> Reader {
        self.shared.log.reader(declared.source, start, Some(declared.datasets.clone()))
    }

    /// How a subscription stands; it begins now if it has not.
    pub(in crate::feed) async fn begun(&self, declared: &Declared) -> Result<State, Error> {
        let name = &declared.subscription.name;
        let found = self
            .transaction(async |connection| Ok(store::state(connection, name, false).await?))
            .await?;
        if let Some(state) = found {
            return Ok(state);
        }
        let start = declared.spec.start;
        let (after, snapshot) = (self.locate(declared, start).await?, start == StartAt::Snapshot);
        self.transaction(async |connection| {
            store::begin(connection, name, declared.source, after, snapshot).await?;
            locked(connection, name).await
        })
        .await
    }

    /// The position to read after in order to begin there.
    async fn locate(&self, declared: &Declared, start: StartAt) -> Result<Position, Error> {
        let start = match start {
            // The rows come first; meanwhile the log keeps what follows.
            StartAt::Now | StartAt::Snapshot => Start::Now,
            StartAt::Earliest => Start::Earliest,
            StartAt::After(position) => Start::After(position),
            StartAt::Time(time) => {
                Start::After(self.shared.log.position_at(declared.source, time).await?)
            }
        };
        Ok(self.reader(declared, start).locate().await?)
    }

    async fn describe(&self, declared: &Declared) -> Result<Status, Error> {
        let name = declared.subscription.name.as_str();
        let look = async |connection: &mut PooledConnection| {
            // With the row locked no step is under way, so that the counts are of one moment.
            let state = locked(connection, name).await?;
            let pending = held::store::count(connection, state.id, state.run).await?;
            let parked = dead_letter::store::count(connection, state.id, Some(state.run)).await?;
            let counts = Counts { tally: state.tally, pending, parked };
            Ok((state, counts))
        };
        let (state, counts) = self.transaction(look).await?;
        let log_end = self.shared.log.bounds(declared.source).await?;
        Ok(Status {
            name: name.to_owned(),
            paused: state.paused,
            cursor: state.cursor,
            begun: state.begun,
            log_end: log_end.map_or(state.cursor, |bounds| bounds.last),
            counts,
            checksum: state.checksum,
            breaker: state.breaker,
            trouble: state.trouble,
            delivered_at: state.delivered_at,
            spec: declared.subscription.spec.clone(),
        })
    }

    /// Runs `work` in one transaction. PostgreSQL's own timeouts end a slow statement; this ends the
    /// wait for a server that does not answer at all.
    pub(in crate::feed) async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut PooledConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut connection = self.shared.pool.get().await?;
        let after = self.shared.pool.options().statement_timeout * 2;
        tokio::time::timeout(after, store::transaction(&mut connection, work))
            .await
            .unwrap_or_else(|_| Err(pg::Error::Silent { after }.into()))
    }

    /// The keys that wait for somebody to decide about a parked change.
    pub(in crate::feed) async fn blocked(
        &self,
        connection: &mut PooledConnection,
        declared: &Declared,
        state: &State,
    ) -> Result<Vec<i64>, Error> {
        match declared.spec.retry.on_park {
            OnPark::Block => Ok(dead_letter::store::keys(connection, state.id).await?),
            OnPark::Pass => Ok(Vec::new()),
        }
    }

    /// Wakes those who send, here.
    pub(in crate::feed) fn wished(&self) {
        self.shared.wishes.send_modify(|wishes| *wishes = wishes.wrapping_add(1));
    }
}

/// As whom a subscription keeps the log from being cut.
fn holder(name: &str) -> String {
    format!("subscription {name}")
}

/// How a subscription stands, which nobody else changes before the transaction ends.
pub(in crate::feed) async fn locked(
    connection: &mut PooledConnection,
    name: &str,
) -> Result<State, Error> {
    let state = store::state(connection, name, true).await?;
    state.ok_or_else(|| Error::UnknownSubscription(name.to_owned()))
}

fn unknown_letter(subscription: &str, id: i64) -> Error {
    Error::UnknownDeadLetter { subscription: subscription.to_owned(), id }
}

fn not_parked(letter: &DeadLetter) -> Error {
    let (id, state) = (letter.id, letter.state.as_str());
    Error::Conflict(format!("dead letter {id} is not parked: it is {state}"))
}
