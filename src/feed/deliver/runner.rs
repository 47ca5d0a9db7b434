//! Sends the changes of one subscription, for as long as it holds the subscription's cursor.
//!
//! ```text
//!          log ─► window ─► send (parallel, each key in order) ─► settled ─► cursor, in steps
//!                              │ failed                                         ▲
//!                              └─► pause ─► again ─► … ─► dead letter ──────────┘
//! ```
//!
//! A step is one transaction: the cursor, the counts, rows for what is left behind. It renews the
//! hold on the cursor at the same time; once that is lost, nothing is sent and nothing written any
//! more. What was sent and not yet written is sent again by the next holder: at least once.
//!
//! Memory is bounded by the window; a receiver that takes nothing costs disk in the log.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breaker::{Breaker, Permit};
use super::lots::{Choice, Lots, Plan, Stage};
use super::pace::Pace;
use super::pull::dataset_name;
use super::sink::{Blame, Failure, Sink};
use crate::feed::Error;
use crate::feed::subscription::held::{self, Item, Room, remember};
use crate::feed::subscription::store::{self, Step};
use crate::feed::subscription::{Attempt, Declared, Mark, State, Subscriptions, Tally};
use crate::feed::subscription::{dead_letter, settle};
use crate::log::{Reader, Slice, Start};
use crate::pg::PooledConnection;
use crate::registry::OnPark;
use crate::task::Failpoint;
use crate::telemetry::ErrorChain;
use crate::vocab::{Position, limits};

/// How long what is settled may wait to be written: what a crash repeats.
const WRITE_EVERY: Duration = Duration::from_millis(250);

/// A cursor that was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    /// What it is written with.
    pub(super) fence: i64,
    /// Before it was taken.
    pub(super) claimed: Instant,
    /// How long it is held without being renewed: longer than any sending takes.
    pub(super) hold: Duration,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It was written.
    Ours,
    /// It was written, and something was asked for meanwhile.
    Asked,
    /// Somebody else has the cursor: nothing was written.
    Lost,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was asked to, or there is something new to read.
    Stopped,
    /// Somebody else has the cursor.
    Lost,
}

/// What a subscription is sent by.
pub(super) struct Runner {
    subscriptions: Subscriptions,
    declared: Declared,
    state: State,
    claim: Claim,
    sink: Arc<dyn Sink>,
    reader: Reader,
    lots: Lots,
    flying: FuturesUnordered<BoxFuture<'static, Landed>>,
    breaker: Breaker,
    pace: Pace,
    cursor: Position,
    /// Until then the cursor is held.
    held_until: Instant,
    written_at: Instant,
    /// Something is settled that is not written.
    unwritten: bool,
    parked: usize,
    /// What the receiver said last, while it fails.
    said: Option<String>,
    meters: Meters,
}

/// What became of one sending.
struct Landed {
    positions: Vec<Mark>,
    took: Duration,
    result: Result<(), Failure>,
}

impl Runner {
    /// Takes up a subscription whose cursor was taken.
    pub(super) async fn open(
        subscriptions: Subscriptions,
        declared: Declared,
        sink: Arc<dyn Sink>,
        claim: Claim,
    ) -> Result<Self, Error> {
        let name = declared.subscription.name.clone();
        let load = async |connection: &mut PooledConnection| {
            let state = crate::feed::subscription::locked(connection, &name).await?;
            let held = held::store::held(connection, state.id).await?;
            let keys = dead_letter::store::keys(connection, state.id).await?;
            let parked = dead_letter::store::count(connection, state.id, None).await?;
            Ok((state, held, keys, parked))
        };
        let (state, held, keys, parked) = subscriptions.transaction(load).await?;
        let mut reader = subscriptions.reader(&declared, Start::After(state.cursor));
        reader.locate().await?;
        let blocks = declared.spec.retry.on_park == OnPark::Block;
        let now = Instant::now();
        Ok(Self {
            cursor: state.cursor,
            meters: Meters::new(&name),
            lots: Lots::new(held, keys, blocks),
            flying: FuturesUnordered::new(),
            breaker: Breaker::new(),
            pace: Pace::new(declared.spec.budget, now),
            held_until: claim.claimed + claim.hold,
            written_at: now,
            unwritten: false,
            parked: usize::try_from(parked).unwrap_or(usize::MAX),
            said: None,
            subscriptions,
            declared,
            state,
            claim,
            sink,
            reader,
        })
    }

    /// Sends until `stop`, until something new was asked for, or until the cursor is lost.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<Ended, Error> {
        let mut ended = self.drive(&stop).await;
        // What is under way has its own deadline; the hold on the cursor outlasts it.
        while let Some(landed) = self.flying.next().await {
            self.land(landed);
        }
        if !matches!(ended, Ok(Ended::Lost)) {
            let trouble = ended.as_ref().err().map(|error| ErrorChain(error).to_string());
            match self.write(trouble.as_deref()).await {
                Ok(Written::Ours | Written::Asked) => {
                    let (id, fence) = (self.state.id, self.claim.fence);
                    let release = async |connection: &mut PooledConnection| {
                        Ok(store::release(connection, id, fence).await?)
                    };
                    self.subscriptions.transaction(release).await?;
                }
                Ok(Written::Lost) => ended = Ok(Ended::Lost),
                Err(error) => ended = ended.and(Err(error)),
            }
        }
        ended
    }

    async fn drive(&mut self, stop: &CancellationToken) -> Result<Ended, Error> {
        loop {
            let now = Instant::now();
            if now >= self.held_until {
                return Ok(Ended::Lost);
            }
            let wake = self.launch(now).min(self.write_at());
            // What a snapshot gives is held; the log goes on after its end.
            let in_log = self.state.snapshot.is_none();
            let reads = in_log && self.lots.has_room() && !self.is_stuck();
            let Self { flying, reader, .. } = self;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                Some(landed) = flying.next(), if !flying.is_empty() => self.land(landed),
                slice = reader.next(), if reads => {
                    let slice = slice?;
                    self.subscriptions.learn_keys(&self.declared, &slice).await?;
                    self.take(&slice);
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            if Instant::now() >= self.write_at() {
                let trouble = self.trouble();
                match self.write(trouble.as_deref()).await {
                    Ok(Written::Ours) => {}
                    Ok(Written::Asked) => return Ok(Ended::Stopped),
                    Ok(Written::Lost) => return Ok(Ended::Lost),
                    Err(error) => {
                        tracing::warn!(
                            subscription = self.declared.subscription.name,
                            error = %ErrorChain(&error),
                            "a step of delivery could not be written; trying again"
                        );
                        self.written_at = Instant::now();
                    }
                }
            }
        }
    }

    /// How often the hold is renewed when nothing is to be written: often enough that a sending
    /// which begins in between may take its time.
    fn renew_every(&self) -> Duration {
        self.claim.hold.saturating_sub(self.sink.timeout()) / 2
    }

    /// When something is to be written at the latest.
    fn write_at(&self) -> Instant {
        let renew = self.renew_every();
        self.written_at + if self.unwritten { WRITE_EVERY.min(renew) } else { renew }
    }

    /// Whether somebody has to look after it first.
    fn is_stuck(&self) -> bool {
        self.parked >= limits::DEAD_LETTERS_MAX
    }

    /// What stands in its way, for people.
    fn trouble(&self) -> Option<String> {
        if self.is_stuck() {
            let parked = self.parked;
            return Some(format!(
                "stopped: {parked} dead letters, as many as may be: redrive or drop them"
            ));
        }
        if self.lots.is_full() {
            let most = limits::SUBSCRIPTION_HELD_MAX;
            return Some(format!(
                "nothing more is read from the log: {most} changes wait to be tried again or for a \
                 parked change"
            ));
        }
        self.said.clone()
    }

    /// Adds what was read.
    fn take(&mut self, slice: &Slice) {
        let snapshot = self.subscriptions.shared.registry.snapshot();
        for (entry, json) in slice.iter() {
            let keys = self.subscriptions.keys(entry.dataset, entry.op, &json);
            let wanted = self.declared.wants(entry.position, entry.op, &json);
            let (is_wanted, json) = (wanted.is_some(), wanted.unwrap_or_default());
            let (position, op) = (Mark::from(entry.position), entry.op);
            let dataset = dataset_name(&snapshot, entry.dataset);
            self.lots.push(Item { position, dataset, op, keys, json }, is_wanted);
        }
    }

    /// Sends what may be sent now; when to look again.
    fn launch(&mut self, now: Instant) -> Instant {
        let far = now + self.renew_every();
        while self.flying.len() < self.sink.parallel() && !self.is_stuck() {
            if self.pace.ready_at() > now {
                return self.pace.ready_at();
            }
            let probe = match self.breaker.permit(now) {
                Permit::All => false,
                Permit::Probe => true,
                Permit::NotBefore(until) => return until,
                Permit::Nothing => return far,
            };
            let room = Room { changes: self.sink.batch(), bytes: limits::DELIVERY_BYTES_MAX };
            let time = Utc::now();
            match self.lots.choose(time, room, probe) {
                Choice::Send(positions) => {
                    if probe {
                        self.breaker.probing();
                    }
                    self.send(positions, now);
                }
                Choice::Nothing { until } => {
                    let pause = until.and_then(|until| (until - time).to_std().ok());
                    return pause.map_or(far, |pause| now + pause);
                }
            }
        }
        far
    }

    fn send(&mut self, positions: Vec<Mark>, now: Instant) {
        let mut items = Vec::with_capacity(positions.len());
        let mut bytes = 0;
        for position in &positions {
            let Some(lot) = self.lots.get_mut(*position) else { continue };
            lot.stage = Stage::Out;
            bytes += lot.held.bytes;
            items.extend(lot.item.clone());
        }
        self.pace.spend(positions.len(), bytes, now);
        let (sink, subscriptions, id) =
            (Arc::clone(&self.sink), self.subscriptions.clone(), self.state.id);
        // Nothing is under way any more when the cursor may have passed to another.
        let deadline = (now + sink.timeout()).min(self.held_until);
        Failpoint::DeliverBeforeSend.hit();
        self.flying.push(Box::pin(async move {
            let attempt = async {
                if items.len() < positions.len() {
                    let load = async |connection: &mut PooledConnection| {
                        Ok(held::store::items(connection, id, &positions).await?)
                    };
                    let loaded = subscriptions.transaction(load).await;
                    items = loaded.map_err(|error| {
                        let error = ErrorChain(&error).to_string();
                        Failure::new(Blame::Receiver, format!("not sent: {error}"))
                    })?;
                }
                sink.send(&items).await
            };
            let result = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(result) => result,
                Err(_) => {
                    let after = humantime::format_duration(deadline - now).to_string();
                    Err(Failure::new(Blame::Unclear, format!("no answer within {after}")))
                }
            };
            Landed { positions, took: now.elapsed(), result }
        }));
    }

    fn land(&mut self, landed: Landed) {
        let Landed { positions, took, result } = landed;
        self.meters.attempt(took, result.is_ok());
        self.unwritten = true;
        let time = Utc::now();
        match result {
            Ok(()) => {
                Failpoint::DeliverAfterSend.hit();
                self.meters.delivered.increment(positions.len() as u64);
                self.said = None;
                for position in positions {
                    if let Some(lot) = self.lots.get_mut(position) {
                        (lot.stage, lot.item) = (Stage::Delivered, None);
                    }
                }
                if self.breaker.arrived() {
                    self.lots.all_due(time);
                    tracing::info!(
                        subscription = self.declared.subscription.name,
                        "the receiver takes changes again"
                    );
                }
            }
            Err(failure) => self.failed(&positions, failure, time),
        }
    }

    fn failed(&mut self, positions: &[Mark], failure: Failure, time: DateTime<Utc>) {
        let Some(first) = positions.first() else { return };
        let retry = &self.declared.spec.retry;
        let asked = failure.retry_after.unwrap_or_default();
        let was = self.breaker.name();
        let counts = self.breaker.failed(*first, failure.blame, Instant::now(), asked, retry);
        // Of a batch nobody knows which was meant: they are tried again one by one.
        let counts = counts && positions.len() == 1;
        for position in positions {
            let Some(lot) = self.lots.get_mut(*position) else { continue };
            remember(&mut lot.held.tried, Attempt { at: time, error: failure.error.clone() });
            lot.held.attempts += u32::from(counts);
            let tries = u32::try_from(lot.held.tried.len()).unwrap_or(u32::MAX);
            let pause = if positions.len() > 1 && failure.blame == Blame::Change {
                Duration::ZERO
            } else {
                settle::pause(retry, tries).max(asked)
            };
            lot.held.due = settle::later(time, pause);
            lot.dirty = lot.stored;
            lot.stage = Stage::Waits;
            if lot.held.attempts >= retry.max_attempts {
                lot.stage = Stage::Parked;
                self.parked += 1;
                self.meters.parked.increment(1);
                tracing::warn!(
                    subscription = self.declared.subscription.name,
                    %position,
                    attempts = lot.held.attempts,
                    "a change is parked in the dead-letter queue"
                );
            }
        }
        if self.breaker.name() != was && self.breaker.name() == "open" {
            tracing::warn!(
                subscription = self.declared.subscription.name,
                error = failure.error,
                "the receiver is left alone for a while"
            );
        }
        self.said = Some(failure.error);
    }

    /// Writes a step and renews the hold on the cursor; whether it still is ours, and nothing new
    /// was asked for meanwhile.
    async fn write(&mut self, trouble: Option<&str>) -> Result<Written, Error> {
        let in_log = self.state.snapshot.is_none() && self.lots.has_room();
        let examined = if in_log { self.reader.position() } else { self.cursor };
        let plan = self.lots.plan(self.cursor, examined);
        if plan != Plan::default() {
            Failpoint::DeliverBeforeCursor.hit();
        }
        let started = Instant::now();
        let (state, claim, lots) = (&self.state, self.claim, &self.lots);
        let breaker = self.breaker.name();
        let written = async |connection: &mut PooledConnection| {
            let Claim { fence, hold, .. } = claim;
            let renewed = store::renew(connection, state.id, fence, hold, breaker, trouble).await?;
            if renewed.is_some() {
                write_plan(connection, state, lots, &plan).await?;
            }
            Ok(renewed)
        };
        let wishes = self.subscriptions.transaction(written).await?;
        let Some(wishes) = wishes else { return Ok(Written::Lost) };
        self.lots.done(&plan);
        self.cursor = plan.cursor.unwrap_or(self.cursor);
        self.held_until = started + self.claim.hold;
        self.written_at = Instant::now();
        self.unwritten = false;
        self.meters.breaker(self.breaker.name());
        if plan == Plan::default() {
            // Another replica may be the one that captures: this one's log has no tail to wait at.
            let after = Start::After(self.reader.position());
            self.reader = self.subscriptions.reader(&self.declared, after);
        }
        Ok(if wishes == self.state.wishes { Written::Ours } else { Written::Asked })
    }
}

/// Writes what was planned. The cursor is ours until the transaction ends.
async fn write_plan(
    connection: &mut PooledConnection,
    state: &State,
    lots: &Lots,
    plan: &Plan,
) -> Result<(), Error> {
    let id = state.id;
    let gone = held::store::delete(connection, id, Some(&plan.gone), None).await?;
    let mut step: Step = settle::delivered(connection, state, &gone).await?;
    step.tally = Tally {
        logged: plan.logged,
        filtered: plan.filtered,
        delivered: step.tally.delivered + plan.delivered,
        dropped: 0,
    };
    step.checksum.merge(plan.checksum);
    for position in &plan.park_stored {
        if let Some(lot) = lots.get(*position) {
            settle::park(connection, state, &lot.held).await?;
        }
    }
    for position in &plan.park {
        if let Some((lot, item)) =
            lots.get(*position).and_then(|lot| Some((lot, lot.item.as_ref()?)))
        {
            let (run, tried) = (state.run, &lot.held.tried);
            dead_letter::store::park(connection, id, run, item, tried).await?;
        }
    }
    let new = plan.store.iter().filter_map(|position| {
        let lot = lots.get(*position)?;
        Some(held::store::New {
            item: lot.item.as_ref()?,
            attempts: lot.held.attempts,
            tried: &lot.held.tried,
            due: lot.held.due,
            lease: None,
            letter: None,
        })
    });
    held::store::insert(connection, id, &new.collect::<Vec<_>>()).await?;
    for position in &plan.update {
        if let Some(lot) = lots.get(*position) {
            held::store::update(connection, id, &lot.held).await?;
        }
    }
    store::advance(connection, id, plan.cursor, &step).await?;
    Ok(())
}

/// What is measured of one subscription's sending.
struct Meters {
    name: String,
    delivered: metrics::Counter,
    parked: metrics::Counter,
    arrived: metrics::Counter,
    failed: metrics::Counter,
    seconds: metrics::Histogram,
}

impl Meters {
    fn new(name: &str) -> Self {
        let label = || name.to_owned();
        let attempts = |outcome: &'static str| {
            metrics::counter!(
                "cadastre_feed_attempts_total", "subscription" => label(), "outcome" => outcome
            )
        };
        Self {
            name: label(),
            delivered: metrics::counter!("cadastre_feed_delivered_total", "subscription" => label()),
            parked: metrics::counter!("cadastre_feed_parked_total", "subscription" => label()),
            arrived: attempts("arrived"),
            failed: attempts("failed"),
            seconds: metrics::histogram!("cadastre_feed_attempt_seconds", "subscription" => label()),
        }
    }

    fn attempt(&self, took: Duration, arrived: bool) {
        self.seconds.record(took);
        if arrived { &self.arrived } else { &self.failed }.increment(1);
    }

    fn breaker(&self, state: &str) {
        let state = match state {
            "closed" => 0.0,
            "half-open" => 1.0,
            _ => 2.0,
        };
        metrics::gauge!("cadastre_feed_breaker_state", "subscription" => self.name.clone())
            .set(state);
    }
}
