//! The circuit breaker of one subscription: leaves a receiver alone that takes nothing.
//!
//! ```text
//! closed ── failures of several changes in a row ──► open ── pause over ──► half-open
//!    ▲                                                ▲                        │ one is tried
//!    └──────────────── it arrives ────────────────────┴──── it does not ───────┘
//! ```
//!
//! A single change that fails again and again does not open it: that change is parked. What the
//! receiver refuses for what it is shows that the receiver lives.

use std::time::Duration;

use tokio::time::Instant;

use super::sink::Blame;
use crate::feed::subscription::Mark;
use crate::feed::subscription::settle::pause;
use crate::registry::RetryPolicy;

/// So many failures in a row open it: of different changes, or before the receiver was reached.
const FAILURES: usize = 5;

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// As much as there is.
    All,
    /// One change, to see whether the receiver is back.
    Probe,
    /// Nothing before then.
    NotBefore(Instant),
    /// Nothing until the probe has come back.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Changes that failed since the last success; one that never reached the receiver counts each
    /// time.
    failed: Vec<Mark>,
    /// Openings since the last success: each lasts longer.
    openings: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed, failed: Vec::new(), openings: 0 }
    }

    /// As the API and the metrics name it.
    pub(super) fn name(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What may be sent at `now`.
    pub(super) fn permit(&mut self, now: Instant) -> Permit {
        if let State::Open { until } = self.state {
            if now < until {
                return Permit::NotBefore(until);
            }
            self.state = State::HalfOpen { probing: false };
        }
        match self.state {
            State::HalfOpen { probing: false } => Permit::Probe,
            State::HalfOpen { probing: true } | State::Open { .. } => Permit::Nothing,
            State::Closed => Permit::All,
        }
    }

    /// The probe is under way.
    pub(super) fn probing(&mut self) {
        self.state = State::HalfOpen { probing: true };
    }

    /// Something has arrived; whether the receiver is back by that.
    pub(super) fn arrived(&mut self) -> bool {
        let back = !self.is_closed();
        *self = Self::new();
        back
    }

    /// A change has not arrived; whether that counts towards parking it.
    pub(super) fn failed(
        &mut self,
        position: Mark,
        blame: Blame,
        now: Instant,
        at_least: Duration,
        retry: &RetryPolicy,
    ) -> bool {
        if blame == Blame::Change {
            self.arrived();
            return true;
        }
        let counts = blame == Blame::Unclear && self.is_closed();
        if blame == Blame::Receiver || !self.failed.contains(&position) {
            self.failed.push(position);
        }
        let probed = matches!(self.state, State::HalfOpen { .. });
        if probed || self.failed.len() >= FAILURES {
            if !matches!(self.state, State::Open { .. }) {
                self.openings += 1;
            }
            self.failed.clear();
            let until = now + pause(retry, self.openings).max(at_least);
            self.state = match self.state {
                State::Open { until: before } => State::Open { until: before.max(until) },
                State::Closed | State::HalfOpen { .. } => State::Open { until },
            };
        } else if at_least > Duration::ZERO {
            // The receiver asked to be left alone, all of us.
            self.state = State::Open { until: now + at_least };
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Epoch, Lsn, Position};

    fn position(n: u32) -> Mark {
        Position::new(Epoch::FIRST, Lsn::new(1), n).into()
    }

    fn retry() -> RetryPolicy {
        RetryPolicy {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(8),
            ..RetryPolicy::default()
        }
    }

    fn fail(breaker: &mut Breaker, n: u32, blame: Blame, now: Instant) -> bool {
        breaker.failed(position(n), blame, now, Duration::ZERO, &retry())
    }

    #[tokio::test(start_paused = true)]
    async fn several_changes_in_a_row_open_it_and_one_that_arrives_closes_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for n in 1..=4 {
            assert!(fail(&mut breaker, n, Blame::Unclear, now), "it counts against the change");
        }
        assert_eq!(breaker.permit(now), Permit::All);
        fail(&mut breaker, 5, Blame::Unclear, now);
        assert_eq!(breaker.name(), "open");
        let Permit::NotBefore(until) = breaker.permit(now) else { panic!("{breaker:?}") };
        assert!(!fail(&mut breaker, 6, Blame::Unclear, now), "late ones count against nobody");
        assert_eq!(breaker.permit(until + Duration::from_secs(9)), Permit::Probe);
        assert_eq!(breaker.name(), "half-open");
        breaker.probing();
        assert_eq!(breaker.permit(until), Permit::Nothing);
        assert!(!fail(&mut breaker, 7, Blame::Unclear, until));
        assert_eq!(breaker.name(), "open");
        assert_eq!(breaker.permit(until + Duration::from_secs(60)), Permit::Probe);
        breaker.probing();
        assert!(breaker.arrived(), "it is back");
        assert_eq!(breaker.permit(until), Permit::All);
        assert!(!breaker.arrived());
    }

    #[tokio::test(start_paused = true)]
    async fn one_bad_change_does_not_open_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..100 {
            assert!(fail(&mut breaker, 1, Blame::Unclear, now));
            assert!(fail(&mut breaker, 2, Blame::Change, now));
        }
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_is_not_reached_opens_it_and_no_change_is_blamed() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..5 {
            assert!(!fail(&mut breaker, 1, Blame::Receiver, now));
        }
        assert_eq!(breaker.name(), "open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_asks_for_time_gets_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let asked = Duration::from_secs(30);
        breaker.failed(position(1), Blame::Receiver, now, asked, &retry());
        assert_eq!(breaker.permit(now), Permit::NotBefore(now + asked));
    }
}
