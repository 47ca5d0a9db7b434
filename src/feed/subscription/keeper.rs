//! What is done for subscriptions when nobody asks: they begin, their dead letters expire, and how
//! they stand is measured.

use std::time::Duration;

use metrics::gauge;
use tokio_util::sync::CancellationToken;

use super::state::{State, Tally};
use super::{Declared, Subscriptions, dead_letter, held, holder, locked, store};
use crate::feed::Error;
use crate::registry::Deliver;
use crate::telemetry::ErrorChain;
use crate::vocab::limits;

/// How often it looks without having been told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Subscriptions {
    /// Looks after every subscription until `stop`. Each replica may: what is done twice changes
    /// nothing.
    pub async fn keep(self, stop: CancellationToken) {
        let mut changes = self.shared.registry.changes();
        let keep = async {
            loop {
                changes.mark_unchanged();
                self.look_after_all().await;
                // An error is the registry's end, which is that of the program.
                let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    async fn look_after_all(&self) {
        let snapshot = self.shared.registry.snapshot();
        for name in snapshot.subscriptions.keys().take(limits::SUBSCRIPTIONS_MAX) {
            let kept = async {
                let declared = self.declared(name)?;
                self.begun(&declared).await?;
                self.look_after(&declared).await
            };
            if let Err(error) = kept.await {
                tracing::warn!(
                    subscription = name,
                    error = %ErrorChain(&error),
                    "a subscription cannot be looked after"
                );
            }
        }
    }

    async fn look_after(&self, declared: &Declared) -> Result<(), Error> {
        let name = declared.subscription.name.as_str();
        let look = async |connection: &mut crate::pg::PooledConnection| {
            let state = locked(connection, name).await?;
            if let Some(after) = declared.spec.expire_after {
                let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
                let (dropped, all) =
                    dead_letter::store::expire(connection, state.id, state.run, seconds).await?;
                if all > 0 {
                    let tally = Tally { dropped, ..Tally::default() };
                    let step = store::Step { tally, ..Default::default() };
                    store::advance(connection, state.id, None, &step).await?;
                    store::wish(connection, state.id).await?;
                    tracing::warn!(subscription = name, letters = all, "dead letters expired");
                }
            }
            let pending = held::store::count(connection, state.id, state.run).await?;
            let parked = dead_letter::store::count(connection, state.id, None).await?;
            Ok((state, pending, parked))
        };
        let (state, pending, parked) = self.transaction(look).await?;
        if !matches!(declared.spec.deliver, Deliver::Kafka) {
            // What is held has its own copy: only what follows the cursor is still needed.
            self.shared.log.protect(declared.source, &holder(name), state.cursor).await?;
        }
        let end = self.shared.log.bounds(declared.source).await?.map(|bounds| bounds.last);
        measure(name, &state, pending, parked, end.map_or(0, |end| end.lsn().get()));
        Ok(())
    }
}

/// Gauges: every replica that looks shows the same.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and exact up to 2^53")]
fn measure(name: &str, state: &State, pending: i64, parked: i64, end: u64) {
    let label = || name.to_owned();
    let behind = end.saturating_sub(state.cursor.lsn().get());
    gauge!("cadastre_feed_subscription_pending", "subscription" => label()).set(pending as f64);
    gauge!("cadastre_feed_subscription_dead_letters", "subscription" => label()).set(parked as f64);
    gauge!("cadastre_feed_subscription_lag_bytes", "subscription" => label()).set(behind as f64);
    gauge!("cadastre_feed_subscription_paused", "subscription" => label())
        .set(f64::from(u8::from(state.paused)));
    let breaker = match state.breaker.as_str() {
        "open" => 2.0,
        "half-open" => 1.0,
        _ => 0.0,
    };
    gauge!("cadastre_feed_subscription_breaker", "subscription" => label()).set(breaker);
}
