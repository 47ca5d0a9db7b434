//! The heartbeat: a message sent through the source every few seconds and expected back.
//!
//! ```text
//! Sender ── pg_logical_emit_message ──► WAL ──► slot ──► session ──► durable in the log
//!    │  its own connection                                                 │
//!    └──────────────► Pulse ◄──────────────────────────────────────────────┘
//! ```
//!
//! That a connection is open, or that no error was seen, says little: a walsender that hangs, a
//! decoder that spins and a log that never answers all look like a quiet database. A heartbeat that
//! does not come back in its time looks like nothing else. It counts as back only once everything
//! that was read before it is durable.
//!
//! It is a logical message without a transaction, so that it needs no table, takes no transaction
//! id and waits for nobody's commit. It is also what moves the slot of a source in which nothing
//! else happens, and with it the WAL that the slot holds back.
//!
//! A message names the process that sent it: those of an earlier one are replayed after a restart
//! and count for nothing.

use std::collections::VecDeque;
use std::time::Duration;

use metrics::gauge;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{CaptureOptions, PostgresOptions};
use crate::pg::{self, Connection, Target};
use crate::registry::Source;
use crate::telemetry::ErrorChain;
use crate::vocab::{Lsn, SourceName};

/// Heartbeats remembered on their way; older ones no longer matter once a later one is back.
const UNDERWAY_MAX: usize = 256;

/// How often the age of the heartbeat is shown in the metrics.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// The message, and how far the slot's confirmation is behind the end of WAL, in bytes.
const BEAT: &str = "SELECT pg_logical_emit_message(false, 'cadastre.heartbeat', $1)::text, \
     (SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint \
      FROM pg_replication_slots WHERE slot_name = $2 AND database = current_database())";

/// When the heartbeats of a source were sent and which of them are back.
#[derive(Debug)]
pub(super) struct Pulse {
    deadline: Duration,
    /// Distinguishes this process's messages from those of others.
    nonce: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// Sent and not back.
    sent: VecDeque<(u64, Instant)>,
    /// Read from the stream, and what must be durable for each to count as back.
    read: VecDeque<(u64, Lsn)>,
    /// What is durable, while a session streams.
    durable: Option<watch::Receiver<Lsn>>,
    /// When the newest heartbeat that is back was sent, or since when one is expected.
    fresh_at: Instant,
    /// Why none can be sent.
    trouble: Option<String>,
    /// How far the slot is behind.
    lag_bytes: Option<i64>,
}

impl Pulse {
    /// Nothing sent yet. A heartbeat must be back within `deadline`.
    pub(super) fn new(deadline: Duration) -> Self {
        let state = State {
            next: 0,
            sent: VecDeque::new(),
            read: VecDeque::new(),
            durable: None,
            fresh_at: Instant::now(),
            trouble: None,
            lag_bytes: None,
        };
        Self { deadline, nonce: rand::random(), state: Mutex::new(state) }
    }

    /// A session begins to stream: from here on a heartbeat is expected back through it.
    pub(super) fn expect(&self, durable: watch::Receiver<Lsn>, now: Instant) {
        let mut state = self.state.lock();
        state.read.clear();
        state.durable = Some(durable);
        state.fresh_at = now;
    }

    /// A heartbeat came out of the stream. It is back once everything up to `required` is durable.
    pub(super) fn read(&self, id: &str, required: Lsn) {
        let Some(number) = self.number_of(id) else { return };
        let mut state = self.state.lock();
        if state.read.len() == UNDERWAY_MAX {
            state.read.pop_front();
        }
        state.read.push_back((number, required));
    }

    /// Why the stream counts as standing still; `None` while it moves.
    pub(super) fn stall(&self, now: Instant) -> Option<String> {
        let age = self.age(now);
        if age <= self.deadline {
            return None;
        }
        let whole = |duration: Duration| {
            humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
        };
        let state = self.state.lock();
        let mut text = format!(
            "no heartbeat has come back through its slot for {} (expected within {})",
            whole(age),
            humantime::format_duration(self.deadline)
        );
        if let Some(trouble) = &state.trouble {
            text.push_str(&format!("; none can be sent: {trouble}"));
        } else if let Some(bytes) = state.lag_bytes {
            text.push_str(&format!("; the slot is {bytes} bytes of WAL behind"));
        }
        Some(text)
    }

    /// How old the newest heartbeat that is back is: what readers see is at most this stale.
    fn age(&self, now: Instant) -> Duration {
        let mut state = self.state.lock();
        state.settle();
        now.saturating_duration_since(state.fresh_at)
    }

    fn id_of(&self, number: u64) -> String {
        format!("{:016x}-{number}", self.nonce)
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        let (nonce, number) = id.split_once('-')?;
        (nonce == format!("{:016x}", self.nonce)).then(|| number.parse().ok())?
    }

    /// Notes that a heartbeat is about to be sent; gives its id.
    fn send(&self, now: Instant) -> String {
        let mut state = self.state.lock();
        state.next += 1;
        if state.sent.len() == UNDERWAY_MAX {
            state.sent.pop_front();
        }
        let number = state.next;
        state.sent.push_back((number, now));
        self.id_of(number)
    }

    fn sent(&self, outcome: Result<Option<i64>, String>) {
        let mut state = self.state.lock();
        match outcome {
            Ok(lag) => (state.trouble, state.lag_bytes) = (None, lag),
            Err(trouble) => state.trouble = Some(trouble),
        }
    }

    fn lag_bytes(&self) -> Option<i64> {
        self.state.lock().lag_bytes
    }
}

impl State {
    /// Takes off what has come back.
    fn settle(&mut self) {
        let Some(durable) = self.durable.as_ref().map(|durable| *durable.borrow()) else { return };
        while let Some((number, _)) = self.read.pop_front_if(|(_, required)| *required <= durable) {
            while let Some((_, at)) = self.sent.pop_front_if(|(sent, _)| *sent <= number) {
                self.fresh_at = self.fresh_at.max(at);
            }
        }
    }
}

/// Sends the heartbeats of one source.
pub(super) struct Sender<'a> {
    /// Where it is noted.
    pub(super) pulse: &'a Pulse,
    /// The source.
    pub(super) source: &'a Source,
    /// Deadlines of the connection.
    pub(super) postgres: &'a PostgresOptions,
    /// How often, and how long one may take.
    pub(super) options: &'a CaptureOptions,
}

impl Sender<'_> {
    /// Sends until `stop`. What goes wrong is noted, and tried again with the next heartbeat.
    pub(super) async fn run(self, stop: CancellationToken) {
        let beating = async { tokio::join!(self.beat(), self.show()) };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = beating => {}
        }
    }

    async fn beat(&self) {
        let mut ticks = interval(self.options.heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        loop {
            ticks.tick().await;
            let outcome =
                match timeout(self.options.heartbeat_deadline, self.once(&mut connection)).await {
                    Ok(outcome) => outcome.map_err(|error| ErrorChain(&error).to_string()),
                    Err(_) => Err("PostgreSQL does not answer".to_owned()),
                };
            if outcome.is_err() {
                connection = None;
            }
            self.pulse.sent(outcome);
        }
    }

    /// Sends one, over the connection there is or a new one; how far the slot is behind.
    async fn once(&self, connection: &mut Option<Connection>) -> Result<Option<i64>, pg::Error> {
        let client = match connection {
            Some(client) => client,
            None => {
                let target = Target::resolve(&self.source.url)?;
                connection.insert(target.connect("cadastre heartbeat", self.postgres).await?)
            }
        };
        let message =
            serde_json::json!({ "v": 1, "id": self.pulse.send(Instant::now()) }).to_string();
        let row = client.query_one(BEAT, &[&message, &self.source.name.slot()]).await?;
        Ok(row.try_get(1)?)
    }

    async fn show(&self) {
        let mut ticks = interval(SHOWN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            show(&self.source.name, self.pulse);
        }
    }
}

fn show(source: &SourceName, pulse: &Pulse) {
    let age = pulse.age(Instant::now()).as_secs_f64();
    gauge!("cadastre_capture_heartbeat_age_seconds", "source" => source.to_string()).set(age);
    if let Some(lag) = pulse.lag_bytes() {
        gauge!("cadastre_capture_lag_bytes", "source" => source.to_string()).set(lag as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_heartbeat_is_back_when_all_before_it_is_durable() {
        let (pulse, start) = (Pulse::new(DEADLINE), Instant::now());
        let (durable, watched) = watch::channel(Lsn::new(10));
        pulse.expect(watched, start);
        let id = pulse.send(start);
        let said = pulse.stall(at(start, 31)).unwrap();
        assert!(said.contains("for 31s (expected within 30s)"), "{said}");
        pulse.read(&id, Lsn::new(20));
        assert!(pulse.stall(at(start, 31)).is_some(), "what was before it is not durable");
        let later = pulse.send(at(start, 36));
        pulse.read(&later, Lsn::new(30));
        durable.send_replace(Lsn::new(20));
        assert_eq!(pulse.age(at(start, 36)), Duration::from_secs(36), "as old as when it was sent");
        durable.send_replace(Lsn::new(30));
        assert_eq!(pulse.age(at(start, 36)), Duration::ZERO);
        assert!(pulse.stall(at(start, 36)).is_none());
    }

    #[test]
    fn those_of_another_process_count_for_nothing() {
        let (pulse, other) = (Pulse::new(DEADLINE), Pulse::new(DEADLINE));
        let start = Instant::now();
        let (_durable, watched) = watch::channel(Lsn::new(10));
        pulse.expect(watched, start);
        pulse.send(at(start, 5));
        for id in [&other.send(start), "", "1", "x-1", "0-"] {
            pulse.read(id, Lsn::ZERO);
        }
        assert_eq!(pulse.age(at(start, 9)), Duration::from_secs(9));
    }

    #[test]
    fn a_new_session_gets_its_time_and_the_reason_is_told() {
        let (pulse, start) = (Pulse::new(DEADLINE), Instant::now());
        let (_durable, watched) = watch::channel(Lsn::ZERO);
        pulse.expect(watched, at(start, 60));
        assert!(pulse.stall(at(start, 61)).is_none());
        let late = at(start, 100);
        pulse.sent(Ok(Some(512)));
        assert!(pulse.stall(late).unwrap().contains("512 bytes of WAL behind"));
        pulse.sent(Err("permission denied".to_owned()));
        assert!(pulse.stall(late).unwrap().contains("none can be sent: permission denied"));
        for _ in 0..2 * UNDERWAY_MAX {
            let id = pulse.send(late);
            pulse.read(&id, Lsn::new(9));
        }
        let state = pulse.state.lock();
        assert!(state.sent.len() <= UNDERWAY_MAX && state.read.len() <= UNDERWAY_MAX);
    }
}
