//! A subscription's budget: how much may be sent a second.

use std::time::Duration;

use tokio::time::Instant;

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
        let cost = |amount: usize, rate: Option<u64>| match rate {
            #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
            Some(rate) => Duration::from_secs_f64(amount as f64 / rate.max(1) as f64),
            None => Duration::ZERO,
        };
        let time = cost(changes, self.budget.changes_per_second)
            .max(cost(bytes, self.budget.bytes_per_second));
        self.paid = self.paid.max(now) + time;
    }
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

    #[tokio::test(start_paused = true)]
    async fn without_a_budget_nothing_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(Budget::default(), now);
        pace.spend(1_000_000, 1 << 40, now);
        assert!(pace.ready_at() <= now);
    }
}
