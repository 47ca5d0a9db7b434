//! How long changes are kept: what is cut, and the task that cuts it.
//!
//! ```text
//!  by age            whole days, as far as no protected reader still needs them
//!  by size           the oldest chunks, as far as no protected reader still needs them
//!  by hard size      the oldest chunks, whoever needs them; readers are told by a gap
//! ```
//!
//! A day is dropped as a partition; within a day something is deleted only for its size. The same
//! task makes the days to come, so that an append at midnight finds its partition.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Days, Utc};
use metrics::{counter, gauge};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::error::chain;
use super::{Day, Error, GapReason, Store};
use crate::vocab::{Position, SourceId};

/// How long, and how much, is kept of a source's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A day is kept this long after its end.
    pub age: Duration,
    /// Stored bytes above which the oldest are cut.
    pub bytes: u64,
    /// Stored bytes above which the oldest are cut although readers need them.
    pub bytes_max: u64,
}

/// Where whole days can be cut, and how much must go beyond them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Decision {
    /// The end of the last day that is over, or too much.
    days: Option<(Position, GapReason)>,
    /// Bytes to be freed after that, and at most up to the protected position.
    free: u64,
    /// Bytes to be freed after that, whoever needs them.
    free_anyway: u64,
}

/// Decides what to cut of one source's days, which are in order. Nothing after `protected` is cut
/// but for the hard limit.
fn decide(
    days: &[Day],
    policy: &Policy,
    protected: Option<Position>,
    now: DateTime<Utc>,
) -> Decision {
    let spare = |day: &Day| protected.is_none_or(|protected| day.last <= protected);
    let is_over = |day: &Day| {
        let end =
            day.day.checked_add_days(Days::new(1)).map(|next| next.and_time(Default::default()));
        end.is_some_and(|end| (now - end.and_utc()).to_std().is_ok_and(|age| age >= policy.age))
    };
    let mut decision = Decision::default();
    let mut held: u64 = days.iter().map(|day| day.bytes).sum();
    for (index, day) in days.iter().enumerate() {
        let excess = held.saturating_sub(policy.bytes);
        let excess_anyway = held.saturating_sub(policy.bytes_max);
        // The day that is being written is never dropped whole.
        let is_past = index + 1 < days.len();
        let reason = if spare(day) && is_over(day) {
            GapReason::Retention
        } else if is_past && (excess_anyway >= day.bytes || (spare(day) && excess >= day.bytes)) {
            GapReason::Size
        } else {
            break;
        };
        decision.days = Some((day.last, reason));
        held -= day.bytes;
    }
    decision.free = held.saturating_sub(policy.bytes);
    decision.free_anyway = held.saturating_sub(policy.bytes_max);
    decision
}

/// Which policy each source has.
pub type Policies = Arc<dyn Fn(SourceId) -> Policy + Send + Sync>;

/// Cuts every source's log as its policy says.
pub struct Retention {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Which policy each source has.
    pub policies: Policies,
    /// How often to look.
    pub every: Duration,
}

impl Retention {
    /// Looks now and then until `stop`. What fails is tried again the next time.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let looking = async {
            loop {
                ticks.tick().await;
                if let Err(error) = self.once(Utc::now()).await {
                    counter!("cadastre_log_retention_errors_total").increment(1);
                    let error = chain(&error);
                    tracing::warn!(error, "the log could not be trimmed; trying again later");
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = looking => {}
        }
    }

    /// Looks once at every source.
    async fn once(&self, now: DateTime<Utc>) -> Result<(), Error> {
        self.store.prepare().await?;
        let days = self.store.days().await?;
        for of_source in days.chunk_by(|a, b| a.source == b.source) {
            if let [day, ..] = of_source {
                self.trim(day.source, of_source, now).await?;
            }
        }
        self.store.sweep().await
    }

    async fn trim(&self, source: SourceId, days: &[Day], now: DateTime<Utc>) -> Result<(), Error> {
        let policy = (self.policies)(source);
        let protections = self.store.protections(source).await?;
        let protected = protections.first().map(|protection| protection.position);
        let decision = decide(days, &policy, protected, now);
        if let Some((upto, reason)) = decision.days {
            self.cut(source, upto, reason).await?;
        }
        let anyway = match decision.free_anyway {
            0 => None,
            bytes => self.store.freeing(source, bytes).await?,
        };
        if decision.free > 0
            && let Some(upto) = self.store.freeing(source, decision.free).await?
        {
            let upto = protected.map_or(upto, |protected| upto.min(protected));
            self.cut(source, upto, GapReason::Size).await?;
        }
        if let Some(upto) = anyway
            && protections.iter().any(|protection| protection.position < upto)
        {
            let behind: Vec<&str> = protections
                .iter()
                .filter(|protection| protection.position < upto)
                .map(|protection| protection.holder.as_str())
                .collect();
            tracing::error!(
                source.id = source.0,
                position = %upto,
                holders = behind.join(", "),
                limit_bytes = policy.bytes_max,
                "the log is as large as it may be: changes that are still needed are cut"
            );
            self.cut(source, upto, GapReason::Size).await?;
        }
        let held = self.store.totals(source).await?;
        let label = source.0.to_string();
        gauge!("cadastre_log_held_bytes", "source" => label.clone()).set(held.bytes as f64);
        gauge!("cadastre_log_held_changes", "source" => label.clone()).set(held.held as f64);
        gauge!("cadastre_log_changes", "source" => label).set(held.changes as f64);
        Ok(())
    }

    async fn cut(&self, source: SourceId, upto: Position, reason: GapReason) -> Result<(), Error> {
        let before = self.store.extent(source).await?.trimmed;
        self.store.cut(source, upto, reason).await?;
        let after = self.store.extent(source).await?.trimmed;
        if after > before {
            tracing::info!(
                source.id = source.0,
                position = %after,
                reason = reason.as_str(),
                "the log was trimmed"
            );
            let source = source.0.to_string();
            counter!("cadastre_log_cuts_total", "source" => source, "reason" => reason.as_str())
                .increment(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;
    use crate::vocab::{Epoch, Lsn};

    const SHOP: SourceId = SourceId(1);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(n: u64) -> Position {
        Position::new(Epoch::FIRST, Lsn::new(n), 1)
    }

    /// Days 1, 2, … of a month, each with so many bytes and its last change at ten times its number.
    fn days(bytes: &[u64]) -> Vec<Day> {
        let day = |(index, bytes): (usize, &u64)| Day {
            source: SHOP,
            day: NaiveDate::from_ymd_opt(2026, 11, index as u32 + 1).unwrap(),
            changes: 1,
            bytes: *bytes,
            last: at(10 * (index as u64 + 1)),
        };
        bytes.iter().enumerate().map(day).collect()
    }

    fn policy(days: u32, bytes: u64, bytes_max: u64) -> Policy {
        Policy { age: DAY * days, bytes, bytes_max }
    }

    fn now(day: u32, hour: u32) -> DateTime<Utc> {
        NaiveDate::from_ymd_opt(2026, 11, day).unwrap().and_hms_opt(hour, 0, 0).unwrap().and_utc()
    }

    #[test]
    fn a_day_goes_when_its_last_moment_is_old_enough() {
        let (days, policy) = (days(&[5, 5, 5, 5]), policy(2, 100, 100));
        let upto = |now| decide(&days, &policy, None, now).days;
        assert_eq!(upto(now(3, 23)), None);
        assert_eq!(upto(now(4, 0)), Some((at(10), GapReason::Retention)));
        assert_eq!(upto(now(5, 12)), Some((at(20), GapReason::Retention)));
        assert_eq!(upto(now(30, 0)), Some((at(40), GapReason::Retention)), "an idle log empties");
    }

    #[test]
    fn too_much_goes_by_days_and_the_rest_by_chunks() {
        let (days, policy) = (days(&[5, 5, 8]), policy(30, 10, 100));
        let decision = decide(&days, &policy, None, now(3, 12));
        assert_eq!(decision.days, Some((at(10), GapReason::Size)));
        assert_eq!((decision.free, decision.free_anyway), (3, 0));
        let one = decide(&days[2..], &policy, None, now(3, 12));
        assert_eq!((one.days, one.free), (None, 0));
        let large = super::tests::days(&[50]);
        let decision = decide(&large, &policy, None, now(1, 12));
        assert_eq!((decision.days, decision.free), (None, 40), "the last day is cut within");
    }

    #[test]
    fn what_a_protected_reader_needs_stays_until_the_hard_limit() {
        let days = days(&[5, 5, 5, 5]);
        let old = policy(1, 100, 100);
        let upto = |protected| decide(&days, &old, Some(protected), now(20, 0)).days;
        assert_eq!(upto(at(25)), Some((at(20), GapReason::Retention)));
        assert_eq!(upto(at(9)), None);
        assert_eq!(upto(at(10)), Some((at(10), GapReason::Retention)), "it has day one");
        let soft = policy(30, 8, 100);
        assert_eq!(decide(&days, &soft, Some(at(1)), now(4, 0)).days, None);
        let hard = policy(30, 8, 11);
        let decision = decide(&days, &hard, Some(at(1)), now(4, 0));
        assert_eq!(decision.days, Some((at(10), GapReason::Size)));
        assert_eq!(decision.free_anyway, 4);
    }
}
