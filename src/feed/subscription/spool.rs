//! Snapshots of subscriptions: the rows of their tables are read from the source and held, from where
//! every way of delivery takes them, followed by the changes that they do not contain.
//!
//! ```text
//! source ─ rows ─┐
//!                ├─► snapshot ─► held, with where in the snapshot to go on, in one transaction
//! log ─ changes ─┘                 └─► consumers and receivers; they read the log when it has ended
//! ```
//!
//! One replica reads a snapshot: who has claimed it, and only until its claim ends. After a crash
//! another goes on where the last step was written. A subscriber that takes nothing fills the room
//! for held changes; then the source is let go, and read again when there is room.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::held::{self, Item};
use super::state::{SNAPSHOT, SubscriptionId, Tally};
use super::{Declared, Mark, Subscriptions, locked, store};
use crate::feed::deliver::pull::dataset_name;
use crate::feed::delivery::Event;
use crate::feed::request::Ops;
use crate::feed::snapshot::reposition;
use crate::feed::{Error, Feed};
use crate::pg::PooledConnection;
use crate::task::{Failpoint, Tasks};
use crate::telemetry::ErrorChain;
use crate::vocab::{DatasetId, Position};

/// How often it looks for snapshots that nobody reads.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a snapshot that failed is left alone.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the source is kept connected for a subscriber that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two looks for room.
const ROOM_EVERY: Duration = Duration::from_millis(50);

/// As many held changes are enough to keep a subscriber busy.
const ENOUGH: usize = 4_000;

/// Events written in one step, about.
const STEP: usize = 1_000;

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepped {
    Written,
    /// There is no room now.
    Full,
    /// It is somebody else's, was paused, or the subscription begins elsewhere.
    Lost,
}

/// Where a step brings a snapshot.
#[derive(Debug, Clone, Copy)]
enum To<'a> {
    /// It stays where it is: nothing was read.
    Here,
    /// To this place in it, with the log read up to a position.
    Place(Position, &'a str),
    /// To its end: the log goes on after this position.
    End(Position),
}

/// A snapshot that is read here.
struct Reading<'a> {
    subscriptions: &'a Subscriptions,
    declared: &'a Declared,
    id: SubscriptionId,
    /// Names the claim.
    reader: Uuid,
    /// How long the claim lasts that is not renewed: by each step, and while waiting for room.
    hold: Duration,
}

impl Subscriptions {
    /// Reads the snapshots that subscriptions begin with, until the tasks are stopped. Each replica
    /// may; a claim that is not renewed for `hold` is another's to take.
    pub async fn spool(self, feed: Feed, hold: Duration, tasks: Tasks) {
        let stop = tasks.stopping();
        let mut wishes = self.shared.wishes.subscribe();
        let running: Arc<Mutex<HashSet<String>>> = Arc::default();
        while !stop.is_cancelled() {
            wishes.mark_unchanged();
            let states = self.transaction(async |c| Ok(store::states(c).await?)).await;
            // When the database is away, delivery says so.
            for (name, state) in states.unwrap_or_default() {
                if state.paused || state.snapshot.is_none() || !running.lock().insert(name.clone())
                {
                    continue;
                }
                let (this, feed, running) = (self.clone(), feed.clone(), Arc::clone(&running));
                let stop = stop.clone();
                tasks.spawn("snapshot of a subscription", async move {
                    let read = Box::pin(this.read_snapshot(&feed, &name, hold, &stop));
                    if let Err(error) = read.await {
                        this.snapshot_failed(&name, state.id, &error).await;
                        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                    }
                    running.lock().remove(&name);
                });
            }
            let woken = tokio::time::timeout(LOOK_EVERY, wishes.changed());
            stop.run_until_cancelled(woken).await;
        }
    }

    async fn snapshot_failed(&self, name: &str, id: SubscriptionId, error: &Error) {
        let text = format!("the snapshot could not be read: {}", ErrorChain(error));
        tracing::warn!(subscription = name, error = text, "a snapshot is tried again");
        let told = self.transaction(async |c| Ok(store::trouble(c, id, Some(&text)).await?)).await;
        if let Err(error) = told {
            tracing::warn!(subscription = name, error = %ErrorChain(&error), "nor can that be kept");
        }
    }

    /// Reads a snapshot as far as there is room, if nobody else does.
    async fn read_snapshot(
        &self,
        feed: &Feed,
        name: &str,
        hold: Duration,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let declared = self.declared(name)?;
        let (id, reader) = (self.begun(&declared).await?.id, Uuid::now_v7());
        let reading = Reading { subscriptions: self, declared: &declared, id, reader, hold };
        let claim = async |connection: &mut PooledConnection| {
            Ok(store::snapshot_claim(connection, id, reader, hold, ENOUGH).await?)
        };
        let Some(place) = self.transaction(claim).await? else { return Ok(()) };
        let done = stop.run_until_cancelled(Box::pin(reading.read(feed, &place))).await;
        let release = async |connection: &mut PooledConnection| {
            Ok(store::snapshot_release(connection, id, reader).await?)
        };
        self.transaction(release).await?;
        done.unwrap_or(Ok(()))
    }
}

impl Reading<'_> {
    async fn read(&self, feed: &Feed, place: &str) -> Result<(), Error> {
        let resume = match place {
            SNAPSHOT => None,
            token => Some(token.parse().map_err(|error| {
                let error: crate::feed::MalformedToken = error;
                Error::Invalid(error.to_string())
            })?),
        };
        let datasets = &self.declared.subscription.datasets;
        let mut run = feed.snapshot_of(datasets, Ops::new(None)?, resume).await?;
        loop {
            // What comes from the source may take its time; the claim has to outlast that.
            let (mut events, mut over) = (Vec::new(), false);
            match tokio::time::timeout(self.hold / 3, run.next()).await {
                Err(_) => {}
                Ok(delivery) => match delivery? {
                    Some(delivery) => events.extend(delivery.into_snapshot()),
                    None => over = true,
                },
            }
            while !over && events.len() < STEP {
                match run.next().now_or_never().transpose()? {
                    Some(Some(delivery)) => events.extend(delivery.into_snapshot()),
                    Some(None) => over = true,
                    None => break,
                }
            }
            let datasets: HashSet<DatasetId> = events.iter().map(|event| event.dataset).collect();
            for dataset in datasets {
                self.learn(dataset, run.key_columns(dataset)).await?;
            }
            let changes = self.changes(&events)?;
            let place = events.last().map(|event| (event.position, event.id.as_str()));
            let to = match place {
                _ if over => To::End(run.position()),
                Some((position, token)) => To::Place(position, token),
                None => To::Here,
            };
            let began = Instant::now();
            loop {
                match self.step(&changes, to).await? {
                    Stepped::Written => break,
                    Stepped::Lost => return Ok(()),
                    Stepped::Full if began.elapsed() > PATIENCE => return Ok(()),
                    Stepped::Full => tokio::time::sleep(ROOM_EVERY).await,
                }
            }
            if !changes.is_empty() || over {
                self.subscriptions.wished();
            }
            if over {
                let name = &self.declared.subscription.name;
                tracing::info!(subscription = name, "the snapshot is complete");
                return Ok(());
            }
        }
    }

    /// The events as the subscription gets them; `None` for one that it does not want.
    fn changes(&self, events: &[Event]) -> Result<Vec<Option<Item>>, Error> {
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            // How far the snapshot is, is its own affair.
            let Some(op) = event.op else { continue };
            let mark = Mark::of_snapshot(&event.id).ok_or_else(|| {
                Error::Invalid(format!("an event of a snapshot has the place {}", event.id))
            })?;
            let json = Bytes::from(reposition(&event.json, &event.id, &mark.to_string()));
            let keys = self.subscriptions.keys(event.dataset, op, &json);
            let registered = self.subscriptions.shared.registry.snapshot();
            changes.push(self.declared.wants(event.position, op, &json).map(|json| Item {
                position: mark,
                dataset: dataset_name(&registered, event.dataset),
                op,
                keys,
                json,
            }));
        }
        Ok(changes)
    }

    /// Finds out the key of a dataset: from the log, or from what the snapshot has read.
    async fn learn(&self, dataset: DatasetId, read: Option<Vec<String>>) -> Result<(), Error> {
        let shared = &self.subscriptions.shared;
        if shared.key_columns.lock().contains_key(&dataset) {
            return Ok(());
        }
        let columns = shared.log.key_columns(self.declared.source, dataset).await?;
        if let Some(columns) = columns.or(read) {
            self.subscriptions.know_keys(dataset, columns);
        }
        Ok(())
    }

    /// Holds changes and moves the snapshot behind them, or does neither.
    async fn step(&self, changes: &[Option<Item>], to: To<'_>) -> Result<Stepped, Error> {
        let name = &self.declared.subscription.name;
        let step = async |connection: &mut PooledConnection| {
            let state = locked(connection, name).await?;
            if state.paused {
                return Ok(Stepped::Lost);
            }
            let (id, reader) = (self.id, self.reader);
            let held = held::store::held(connection, id).await?.len();
            let full = held >= ENOUGH && !changes.is_empty();
            let (cursor, place) = match to {
                To::Place(position, token) if !full => (Some(position), Some(token)),
                To::End(position) if !full => (Some(position), None),
                To::Place(..) | To::End(_) | To::Here => (None, state.snapshot.as_deref()),
            };
            if !store::snapshot_move(connection, id, reader, place, self.hold).await? {
                return Ok(Stepped::Lost);
            }
            if full {
                return Ok(Stepped::Full);
            }
            let new: Vec<_> = changes
                .iter()
                .flatten()
                .map(|item| held::store::New {
                    item,
                    attempts: 0,
                    tried: &[],
                    due: DateTime::UNIX_EPOCH,
                    lease: None,
                    letter: None,
                })
                .collect();
            held::store::insert(connection, id, &new).await?;
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let logged = count(changes.len());
            let filtered = logged - count(new.len());
            let tally = Tally { logged, filtered, ..Tally::default() };
            let step = store::Step { tally, ..Default::default() };
            store::advance(connection, id, cursor, &step).await?;
            // Whoever sends reads what is held, and the log after the end, anew.
            if !new.is_empty() || matches!(to, To::End(_)) {
                store::wish(connection, id).await?;
            }
            Failpoint::SnapshotBeforeStep.hit();
            Ok(Stepped::Written)
        };
        self.subscriptions.transaction(step).await
    }
}
