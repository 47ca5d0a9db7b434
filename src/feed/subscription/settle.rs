//! What becomes of held changes: delivered, to be tried again, parked. The same for consumers that
//! fetch and for receivers that are sent to.

use std::time::Duration;

use crate::pg::PooledConnection;
use chrono::{DateTime, TimeDelta, Utc};

use super::dead_letter;
use super::held::{self, Attempt, Held, remember};
use super::mark::Mark;
use super::state::State;
use super::store::Step;
use crate::feed::Error;
use crate::registry::RetryPolicy;

/// Lets delivered changes go; what that adds to the counts of the present run.
pub(in crate::feed) async fn delivered(
    connection: &mut PooledConnection,
    state: &State,
    gone: &[(Mark, Option<i64>)],
) -> Result<Step, Error> {
    let letters: Vec<i64> = gone.iter().filter_map(|(_, letter)| *letter).collect();
    let earlier = dead_letter::store::delivered(connection, &letters, state.run).await?;
    let mut step = Step::default();
    for (position, letter) in gone {
        if letter.is_none() || !earlier.contains(position) {
            step.tally.delivered += 1;
            step.checksum.add(*position);
        }
    }
    Ok(step)
}

/// Parks a held change.
pub(in crate::feed) async fn park(
    connection: &mut PooledConnection,
    state: &State,
    held: &Held,
) -> Result<(), Error> {
    let items = held::store::items(connection, state.id, &[held.position]).await?;
    held::store::delete(connection, state.id, Some(&[held.position]), None).await?;
    match (held.letter, items.first()) {
        (Some(letter), _) => {
            dead_letter::store::park_letter(connection, letter, &held.tried).await?;
        }
        (None, Some(item)) => {
            dead_letter::store::park(connection, state.id, state.run, item, &held.tried).await?;
        }
        (None, None) => {}
    }
    Ok(())
}

/// What a failed attempt makes of a change: whether it is to be parked; else it is due again after
/// a pause, at least `at_least` long.
pub(in crate::feed) fn failed(
    held: &mut Held,
    error: String,
    now: DateTime<Utc>,
    at_least: Duration,
    retry: &RetryPolicy,
) -> bool {
    remember(&mut held.tried, Attempt { at: now, error });
    held.attempts += 1;
    held.lease = None;
    held.due = later(now, pause(retry, held.attempts).max(at_least));
    held.attempts >= retry.max_attempts
}

/// The pause after that many attempts: doubled each time, up to a longest, and of that a random
/// part between a half and all, so that what failed together does not come back together.
pub(in crate::feed) fn pause(retry: &RetryPolicy, attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1).min(30));
    let pause = retry.initial.saturating_mul(doubled).min(retry.max);
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// A moment that much later, as far as the calendar goes.
pub(in crate::feed) fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
    now.checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        let retry = RetryPolicy {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            ..RetryPolicy::default()
        };
        for (attempts, most) in [(1, 1), (2, 2), (3, 4), (7, 60), (1000, 60)] {
            let most = Duration::from_secs(most);
            for _ in 0..100 {
                let pause = pause(&retry, attempts);
                assert!(pause >= most / 2 && pause <= most, "{attempts}: {pause:?}");
            }
        }
        let some: Vec<_> = (0..10).map(|_| pause(&retry, 3)).collect();
        assert!(some.iter().any(|pause| *pause != some[0]), "{some:?}");
    }
}
