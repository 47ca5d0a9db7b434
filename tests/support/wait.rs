//! Waiting on a condition, with a deadline: no test sleeps and hopes.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline that only a broken program misses, also on a slow and busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(30);
/// Pause between two looks at the condition.
const POLL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives a value, and returns it.
///
/// # Panics
///
/// When there is none after `wait`.
#[track_caller]
pub(crate) fn eventually<T, F, Fut>(wait: Duration, condition: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    poll(wait, condition, std::panic::Location::caller())
}

/// The loop of [`eventually`], which cannot itself be `async` and still know its caller.
async fn poll<T, F, Fut>(
    wait: Duration,
    mut condition: F,
    caller: &'static std::panic::Location<'static>,
) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + wait;
    loop {
        let looked = tokio::time::timeout_at(deadline, condition()).await;
        if let Ok(Some(value)) = looked {
            return value;
        }
        let now = Instant::now();
        assert!(now < deadline, "the condition at {caller} did not hold within {wait:?}");
        tokio::time::sleep(POLL.min(deadline - now)).await;
    }
}
