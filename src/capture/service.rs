//! One capture per registered source, started, restarted and stopped as the registry says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use metrics::{counter, gauge};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, WalLevel, WalStatus};
use super::heartbeat::{self, Pulse};
use super::session::Session;
use super::{Error, session};
use crate::config::{CaptureOptions, PostgresOptions};
use crate::log::{Log, Writer};
use crate::registry::{Registry, Source};
use crate::task::Tasks;
use crate::telemetry::ErrorChain;
use crate::vocab::{Retry, SourceName};

/// First pause before a source is tried again; it doubles up to the configured longest.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest wait for a capture to end after it was told to.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How a source's capture stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Not yet streaming, nothing wrong yet.
    Connecting,
    /// Changes are read as they commit.
    Streaming,
    /// It streams, but its heartbeat does not come back.
    Stalled {
        /// Since when, and how far behind.
        reason: String,
    },
    /// It does not stream; it is tried again.
    Failing {
        /// What went wrong, without secrets.
        reason: String,
    },
}

/// How one source stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Which.
    pub source: SourceName,
    /// How.
    #[serde(flatten)]
    pub state: State,
    /// What it keeps for its slot; written out only when that is much.
    #[serde(skip_serializing_if = "is_low")]
    pub wal: Option<WalStatus>,
}

fn is_low(wal: &Option<WalStatus>) -> bool {
    wal.as_ref().is_none_or(|wal| wal.level == WalLevel::Low)
}

/// The captures of all sources. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Captures {
    /// Shared by the clones.
    shared: Arc<Shared>,
}

/// What a capture needs and reports to.
pub(super) struct Shared {
    /// Who owns what, and where violations go.
    pub(super) registry: Registry,
    /// Where changes go.
    pub(super) log: Log,
    /// Deadlines of connections.
    pub(super) postgres: PostgresOptions,
    /// Deadlines of streaming.
    pub(super) options: CaptureOptions,
    /// How each source stands.
    states: RwLock<BTreeMap<SourceName, State>>,
    /// The heartbeat of each source that is captured.
    pulses: RwLock<BTreeMap<SourceName, Arc<Pulse>>>,
    /// What each source keeps for its slot.
    wals: RwLock<BTreeMap<SourceName, WalStatus>>,
}

impl Captures {
    /// Captures that are not running yet.
    pub fn new(
        registry: Registry,
        log: Log,
        postgres: PostgresOptions,
        options: CaptureOptions,
    ) -> Self {
        let (states, pulses, wals) = Default::default();
        let shared = Shared { registry, log, postgres, options, states, pulses, wals };
        Self { shared: Arc::new(shared) }
    }

    /// How each registered source stands, by name. A source whose capture has not begun is
    /// `Connecting`.
    pub fn status(&self) -> Vec<SourceStatus> {
        let now = Instant::now();
        let states = self.shared.states.read();
        let pulses = self.shared.pulses.read();
        let wals = self.shared.wals.read();
        let snapshot = self.shared.registry.snapshot();
        let status = |source: &SourceName| {
            let state = states.get(source).cloned().unwrap_or(State::Connecting);
            let stall = || pulses.get(source)?.stall(now);
            let state = match state {
                State::Streaming => stall().map_or(state, |reason| State::Stalled { reason }),
                other => other,
            };
            SourceStatus { source: source.clone(), state, wal: wals.get(source).cloned() }
        };
        snapshot.sources.values().filter(|it| !it.leaving).map(|it| status(&it.name)).collect()
    }

    /// Runs one capture per registered source until `tasks` stop: begins those that were added,
    /// begins anew those whose connection string changed, ends those that are gone.
    pub async fn run(self, tasks: Tasks) {
        let stop = tasks.stopping();
        let mut changes = self.shared.registry.changes();
        let mut running: BTreeMap<SourceName, (String, Tasks)> = BTreeMap::new();
        loop {
            changes.mark_unchanged();
            let snapshot = self.shared.registry.snapshot();
            let outdated: Vec<SourceName> = running
                .iter()
                .filter(|(name, (url, _))| {
                    let source = snapshot.sources.get(*name);
                    source.is_none_or(|source| source.url != *url || source.leaving)
                })
                .map(|(name, _)| name.clone())
                .collect();
            for name in outdated {
                if let Some((_, capture)) = running.remove(&name) {
                    capture.stop(STOP_GRACE).await;
                }
                self.shared.states.write().remove(&name);
                self.shared.pulses.write().remove(&name);
                self.shared.wals.write().remove(&name);
            }
            for (name, source) in snapshot.sources.iter().filter(|(_, source)| !source.leaving) {
                running.entry(name.clone()).or_insert_with(|| {
                    let child = tasks.child();
                    let capture =
                        capture(Arc::clone(&self.shared), Arc::clone(source), child.clone());
                    tasks.spawn("capture", capture);
                    (source.url.clone(), child)
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
            }
        }
        for (_, (_, capture)) in running {
            capture.stop(STOP_GRACE).await;
        }
    }
}

impl Shared {
    /// Notes what a source keeps for its slot; gives what was known before.
    pub(super) fn set_wal(&self, source: &SourceName, wal: Option<WalStatus>) -> Option<WalStatus> {
        let mut wals = self.wals.write();
        match wal {
            Some(wal) => wals.insert(source.clone(), wal),
            None => wals.remove(source),
        }
    }

    /// Notes how a source stands, and says so once per change.
    pub(super) fn set_state(&self, source: &SourceName, state: State) {
        gauge!("cadastre_capture_streaming", "source" => source.to_string())
            .set(if state == State::Streaming { 1.0 } else { 0.0 });
        let previous = self.states.write().insert(source.clone(), state.clone());
        if previous.as_ref() == Some(&state) {
            return;
        }
        match state {
            State::Connecting => tracing::debug!(%source, "connecting"),
            State::Streaming => tracing::info!(%source, "streaming"),
            State::Stalled { reason } => tracing::warn!(%source, reason, "capture stands still"),
            State::Failing { reason } => {
                tracing::warn!(%source, reason, "capture interrupted; trying again");
            }
        }
    }
}

/// Captures one source until stopped: session after session, with backoff in between.
async fn capture(shared: Arc<Shared>, source: Arc<Source>, tasks: Tasks) {
    let stop = tasks.stopping();
    let mut writer: Option<Writer> = None;
    let mut backoff = Backoff::new(shared.options.backoff);
    let mut in_parts = shared.options.streaming;
    shared.set_state(&source.name, State::Connecting);
    let pulse = Arc::new(Pulse::new(shared.options.heartbeat_deadline));
    shared.pulses.write().insert(source.name.clone(), Arc::clone(&pulse));
    tasks.spawn("capture heartbeat", {
        let (shared, source) = (Arc::clone(&shared), Arc::clone(&source));
        let (pulse, stop) = (Arc::clone(&pulse), stop.clone());
        async move {
            let (postgres, options) = (&shared.postgres, &shared.options);
            let (source, pulse) = (source.as_ref(), pulse.as_ref());
            heartbeat::Sender { pulse, source, postgres, options }.run(stop).await;
        }
    });
    tasks.spawn("capture budget", {
        let budget = Budget { shared: Arc::clone(&shared), source: Arc::clone(&source) };
        budget.run(stop.clone())
    });
    while !stop.is_cancelled() {
        let (pulse, tasks) = (&pulse, &tasks);
        let session = Session { shared: &shared, source: &source, tasks, pulse, in_parts };
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            outcome = run_session(&shared, &source, &mut writer, session) => outcome,
        };
        let Err(ended) = outcome else { continue };
        counter!(
            "cadastre_capture_interruptions_total",
            "source" => source.name.to_string(),
            "kind" => ended.error.kind()
        )
        .increment(1);
        // What cannot be kept here is left to PostgreSQL, until the next interruption.
        in_parts = shared.options.streaming && !matches!(ended.error, Error::Spill(_));
        if ended.streamed {
            backoff = Backoff::new(shared.options.backoff);
        } else {
            // Another instance may be the one that writes, and readers here have to look for that.
            writer = None;
        }
        let reason = ErrorChain(&ended.error).to_string();
        shared.set_state(&source.name, State::Failing { reason });
        match ended.error.retry() {
            Retry::Now | Retry::Later => backoff.wait(&stop).await,
            Retry::Never => {
                // The writer's state may be what is wrong: begin from what the log holds.
                writer = None;
                backoff.wait(&stop).await;
            }
        }
    }
}

/// One session, with the writer made first if there is none.
async fn run_session(
    shared: &Shared,
    source: &Source,
    writer: &mut Option<Writer>,
    session: Session<'_>,
) -> Result<(), session::Ended> {
    let writer = match writer {
        Some(writer) => writer,
        None => {
            let made = shared.log.writer(source.id).await;
            writer.insert(made.map_err(|error| session::Ended::early(Error::Log(error)))?)
        }
    };
    session.run(writer).await
}

/// Pauses between attempts: exponential with jitter, without end.
struct Backoff {
    /// The longest pause.
    max: Duration,
    /// The pauses still to come before all are the longest.
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// From the shortest pause.
    fn new(max: Duration) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(BACKOFF_MIN).with_max_delay(max);
        Self { max, pauses: builder.with_jitter().without_max_times().build() }
    }

    /// Waits for the next pause or until `stop`.
    async fn wait(&mut self, stop: &CancellationToken) {
        let pause = self.pauses.next().unwrap_or(self.max);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
