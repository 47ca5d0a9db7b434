//! Keeps one runner for each subscription that is sent to, on one replica.
//!
//! Every replica tries to take the cursors that nobody holds. A runner is stopped and begun again
//! when its subscription is declared differently, paused, moved, or has dead letters redriven: it
//! then reads everything anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::nats::Nats;
use super::runner::{Claim, Ended, Runner};
use super::sink::Sink;
use super::webhook::Webhooks;
use crate::config::DeliveryOptions;
use crate::feed::Error;
use crate::feed::subscription::{Declared, State, Subscriptions, store};
use crate::pg::PooledConnection;
use crate::registry::{Deliver, Subscription};
use crate::task::Tasks;
use crate::telemetry::ErrorChain;
use crate::vocab::limits;

/// How often it looks for cursors that nobody holds, and for what was asked for elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a subscription that cannot be sent to is left alone.
const PAUSE: Duration = Duration::from_secs(5);

/// The ways of sending.
#[derive(Clone)]
pub struct Sinks {
    webhooks: Webhooks,
    hold: Duration,
}

impl Sinks {
    /// Sending to the public internet and to the networks that are allowed.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub fn new(options: &DeliveryOptions) -> Result<Self, Error> {
        let webhooks = Webhooks::new(&options.webhook_allow)
            .map_err(|error| Error::Conflict(format!("webhooks cannot be sent: {error}")))?;
        Ok(Self { webhooks, hold: options.delivery_hold })
    }

    /// What sends to this subscription; `None` when it is not sent to.
    fn sink(&self, declared: &Declared, secrets: Vec<Vec<u8>>) -> Option<Arc<dyn Sink>> {
        match &declared.spec.deliver {
            Deliver::Webhook(spec) => Some(Arc::new(self.webhooks.sink(spec, secrets))),
            Deliver::Nats(spec) => Some(Arc::new(Nats::new(spec))),
            Deliver::Pull { .. } | Deliver::Kafka => None,
        }
    }
}

/// A runner of this replica.
struct Running {
    subscription: Arc<Subscription>,
    /// Of the state it has read.
    wishes: i64,
    stop: CancellationToken,
    ended: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
}

impl Subscriptions {
    /// Sends to every subscription that is to be sent to, until the tasks are stopped.
    pub async fn dispatch(self, sinks: Sinks, tasks: Tasks) {
        let stop = tasks.stopping();
        let me = Uuid::now_v7();
        let mut wishes = self.shared.wishes.subscribe();
        let mut running: HashMap<String, Running> = HashMap::new();
        let mut resting: HashMap<String, Instant> = HashMap::new();
        while !stop.is_cancelled() {
            wishes.mark_unchanged();
            running.retain(|name, running| {
                let ended = running.ended.load(Ordering::Acquire);
                if ended && running.failed.load(Ordering::Acquire) {
                    resting.insert(name.clone(), Instant::now() + PAUSE);
                }
                !ended
            });
            match self.oversee(&mut running, &mut resting, &sinks, &tasks, me).await {
                Ok(()) => {}
                Err(error) => tracing::warn!(
                    error = %ErrorChain(&error),
                    "subscriptions cannot be looked at"
                ),
            }
            let woken = async {
                // An error is the end of all handles, and with them of the program.
                let _ = tokio::time::timeout(LOOK_EVERY, wishes.changed()).await;
            };
            stop.run_until_cancelled(woken).await;
        }
    }

    /// Stops what is to be begun anew, and begins what nobody runs.
    async fn oversee(
        &self,
        running: &mut HashMap<String, Running>,
        resting: &mut HashMap<String, Instant>,
        sinks: &Sinks,
        tasks: &Tasks,
        me: Uuid,
    ) -> Result<(), Error> {
        let states = self.transaction(async |c| Ok(store::states(c).await?)).await?;
        let states: HashMap<String, State> = states.into_iter().collect();
        for (name, running) in running.iter() {
            let declared = self.declared(name).ok();
            let same = declared.is_some_and(|it| it.subscription == running.subscription);
            let current = states.get(name).is_some_and(|state| state.wishes == running.wishes);
            if !same || !current {
                running.stop.cancel();
            }
        }
        let now = Instant::now();
        resting.retain(|_, until| *until > now);
        for (name, state) in &states {
            if state.paused
                || running.contains_key(name)
                || resting.contains_key(name)
                || running.len() >= limits::SUBSCRIPTIONS_MAX
            {
                continue;
            }
            let Ok(declared) = self.declared(name) else { continue };
            match self.start(declared, state, sinks, tasks, me).await {
                Ok(Some(started)) => {
                    running.insert(name.clone(), started);
                }
                Ok(None) => {}
                Err(error) => {
                    resting.insert(name.clone(), now + PAUSE);
                    tracing::warn!(
                        subscription = name,
                        error = %ErrorChain(&error),
                        "a subscription cannot be sent to"
                    );
                }
            }
        }
        Ok(())
    }

    /// Takes the cursor and begins to send; `None` when another replica has it.
    async fn start(
        &self,
        declared: Declared,
        state: &State,
        sinks: &Sinks,
        tasks: &Tasks,
        me: Uuid,
    ) -> Result<Option<Running>, Error> {
        let Some(sink) = sinks.sink(&declared, Vec::new()) else { return Ok(None) };
        // What is under way when the hold ends has come to its end before.
        let hold = sinks.hold + sink.timeout();
        let (id, claimed) = (state.id, Instant::now());
        let claim = async |connection: &mut PooledConnection| {
            let Some(fence) = store::claim(connection, id, me, hold).await? else {
                return Ok(None);
            };
            let name = &declared.subscription.name;
            let wishes = store::state(connection, name, false).await?.map(|state| state.wishes);
            Ok(Some((fence, wishes.unwrap_or_default())))
        };
        let Some((fence, wishes)) = self.transaction(claim).await? else {
            return Ok(None);
        };
        let subscription = Arc::clone(&declared.subscription);
        let open = async {
            let secrets = self.secrets(&declared).await?;
            let sink = sinks.sink(&declared, secrets).unwrap_or(sink);
            let claim = Claim { fence, claimed, hold };
            Runner::open(self.clone(), declared, sink, claim).await
        };
        let runner = match open.await {
            Ok(runner) => runner,
            Err(error) => {
                let text = ErrorChain(&error).to_string();
                self.transaction(async |connection| {
                    store::trouble(connection, id, Some(&text)).await?;
                    Ok(store::release(connection, id, fence).await?)
                })
                .await?;
                return Err(error);
            }
        };
        let (stop, this) = (tasks.stopping().child_token(), self.clone());
        let (ended, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (stopping, done, wrong) = (stop.clone(), Arc::clone(&ended), Arc::clone(&failed));
        let name = subscription.name.clone();
        tasks.spawn("delivery", async move {
            match runner.run(stopping).await {
                Ok(Ended::Stopped) => {}
                Ok(Ended::Lost) => {
                    tracing::info!(subscription = name, "begins anew where it is written to be");
                }
                Err(error) => {
                    wrong.store(true, Ordering::Release);
                    tracing::warn!(
                        subscription = name,
                        error = %ErrorChain(&error),
                        "delivery ended; it will be taken up again"
                    );
                }
            }
            done.store(true, Ordering::Release);
            this.wished();
        });
        Ok(Some(Running { subscription, wishes, stop, ended, failed }))
    }
}
