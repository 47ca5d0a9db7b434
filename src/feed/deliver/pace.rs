//! A subscription's budget: how much may be sent a second.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::feed::subscription::held::Room;
use crate::registry::Budget;

/// What may be sent at once after a silence, in time: a second's worth.
const BURST: Duration = Duration::from_secs(1);

/// Spreads sending over time.
#[derive(Debug)]
pub(super) struct Pace {
    budget: Budget,
    /// When what was sent so far is paid for.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(budget: Budget, now: Instant) -> Self {
        Self { budget, paid: now }
    }

    /// When something may be sent again.
    pub(super) fn ready_at(&self) -> Instant {
        self.paid.checked_sub(BURST).unwrap_or(self.paid)
    }

    /// So much is sent at `now`.
    pub(super) fn spend(&mut self, changes: usize, bytes: usize, now: Instant) {
        self.paid = self.paid.max(now) + cost(self.budget, changes, bytes);
    }
}

/// The time that so much takes by a budget.
pub(super) fn cost(budget: Budget, changes: usize, bytes: usize) -> Duration {
    let time = |amount: usize, rate: Option<u64>| match rate {
        #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        Some(rate) => Duration::from_secs_f64(amount as f64 / rate.max(1) as f64),
        None => Duration::ZERO,
    };
    time(changes, budget.changes_per_second).max(time(bytes, budget.bytes_per_second))
}

/// What may be handed out at once at `now`, when what was so far is paid for at `paid`; `None` when
/// nothing is. At most what a silence saves up, and of changes at least one.
pub(super) fn affordable(budget: Budget, paid: DateTime<Utc>, now: DateTime<Utc>) -> Option<Room> {
    let unlimited = Room { changes: usize::MAX, bytes: usize::MAX };
    if budget == Budget::default() {
        return Some(unlimited);
    }
    let owed = (paid - now).to_std().unwrap_or_default();
    let saved = BURST.checked_sub(owed).filter(|saved| *saved > Duration::ZERO)?;
    let amount = |rate: Option<u64>, none: usize| match rate {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an amount below what a second allows"
        )]
        Some(rate) => (saved.as_secs_f64() * rate as f64) as usize,
        None => none,
    };
    Some(Room {
        changes: amount(budget.changes_per_second, unlimited.changes).max(1),
        bytes: amount(budget.bytes_per_second, unlimited.bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_is_sent_than_the_budget_allows_for_long() {
        let budget = Budget { changes_per_second: Some(10), bytes_per_second: Some(1000) };
        let start = Instant::now();
        let mut pace = Pace::new(budget, start);
        let mut sent = 0;
        while Instant::now() - start < Duration::from_secs(60) {
            tokio::time::sleep_until(pace.ready_at()).await;
            pace.spend(1, 50, Instant::now());
            sent += 1;
        }
        assert!((600..=620).contains(&sent), "{sent}");
    }

    #[test]
    fn a_consumer_is_handed_what_a_silence_saved_up_and_then_what_time_brings() {
        let budget = Budget { changes_per_second: Some(10), bytes_per_second: None };
        let at = |ms: i64| DateTime::UNIX_EPOCH + chrono::TimeDelta::milliseconds(ms);
        let changes = |paid, now| affordable(budget, paid, now).map(|room| room.changes);
        assert_eq!(changes(at(0), at(3_600_000)), Some(10));
        assert_eq!(changes(at(1_000), at(0)), None);
        assert_eq!(changes(at(1_000), at(500)), Some(5));
        assert_eq!(changes(at(1_000), at(10)), Some(1), "one at least");
        assert_eq!(cost(budget, 5, 1 << 40), Duration::from_millis(500));
        assert_eq!(
            affordable(Budget::default(), at(9), at(0)).map(|it| it.changes),
            Some(usize::MAX)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_budget_nothing_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(Budget::default(), now);
        pace.spend(1_000_000, 1 << 40, now);
        assert!(pace.ready_at() <= now);
    }
}
