//! How far a subscription has come, as plain values.

use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::mark::Mark;
use crate::vocab::Position;

/// Stands for the place before a snapshot.
pub(in crate::feed) const SNAPSHOT: &str = "snapshot";

/// The registry's number for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::feed) struct SubscriptionId(pub(in crate::feed) i32);

/// What is stored of a running subscription.
#[derive(Debug, Clone)]
pub(in crate::feed) struct State {
    pub(in crate::feed) id: SubscriptionId,
    pub(in crate::feed) paused: bool,
    /// Counts begin again with every run.
    pub(in crate::feed) run: i32,
    /// Where this run began.
    pub(in crate::feed) begun: Position,
    /// Everything up to here, inclusive, is settled or held.
    pub(in crate::feed) cursor: Position,
    /// Rows are still to come of a snapshot: [`SNAPSHOT`], or where in it to go on.
    pub(in crate::feed) snapshot: Option<String>,
    /// When what consumers were handed is within the budget.
    pub(in crate::feed) paid_until: DateTime<Utc>,
    pub(in crate::feed) tally: Tally,
    pub(in crate::feed) checksum: Checksum,
    /// Grows with every wish from outside: a seek, a redrive, a drop.
    pub(in crate::feed) wishes: i64,
    pub(in crate::feed) breaker: String,
    pub(in crate::feed) trouble: Option<String>,
    pub(in crate::feed) delivered_at: Option<DateTime<Utc>>,
}

/// Counts of a run that are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Changes of its datasets in the log, up to the cursor.
    pub logged: i64,
    /// Of these, those it does not want.
    pub filtered: i64,
    /// Acknowledged by the receiver.
    pub delivered: i64,
    /// Given up on purpose, or expired.
    pub dropped: i64,
}

/// The counts of a run. They are read together, so that they reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// What is added up.
    pub tally: Tally,
    /// Out with a consumer, to be tried again, or waiting behind one of these.
    pub pending: i64,
    /// In the dead-letter queue.
    pub parked: i64,
}

impl Counts {
    /// Whether every change logged for the subscription is in exactly one place.
    pub fn reconcile(&self) -> bool {
        let Tally { logged, filtered, delivered, dropped } = self.tally;
        logged == filtered + delivered + dropped + self.pending + self.parked
    }
}

/// The exclusive or of the fingerprints of a set of positions: the same for the same set, in
/// whatever order and however often a consumer got them, if it counts each position once.
///
/// A position's fingerprint is the first 8 bytes of the SHA-256 of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// Adds a position that is not in the set.
    pub fn add(&mut self, position: Mark) {
        let digest = Sha256::digest(position.to_string().as_bytes());
        let (first, _) = digest.split_at(8);
        let fingerprint = first.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        self.0 ^= fingerprint;
    }

    /// Adds the positions of another set, none of which is in this one.
    pub(in crate::feed) fn merge(&mut self, other: Self) {
        self.0 ^= other.0;
    }

    /// The number as PostgreSQL keeps it, which has no unsigned type.
    pub(in crate::feed) fn stored(self) -> i64 {
        self.0.cast_signed()
    }

    /// The inverse of [`Self::stored`].
    pub(in crate::feed) fn from_stored(stored: i64) -> Self {
        Self(stored.cast_unsigned())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A subscription as it is declared and as it stands.
#[derive(Debug, Clone)]
pub struct Status {
    /// Unique name.
    pub name: String,
    /// Whether delivery is stopped on purpose.
    pub paused: bool,
    /// Everything up to here, inclusive, is settled or held.
    pub cursor: Position,
    /// Where this run began: the counts are of what follows.
    pub begun: Position,
    /// The newest change in its source's log.
    pub log_end: Position,
    /// The counts of this run.
    pub counts: Counts,
    /// Of the delivered positions of this run.
    pub checksum: Checksum,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// What stands in its way, if anything does.
    pub trouble: Option<String>,
    /// When something was delivered last.
    pub delivered_at: Option<DateTime<Utc>>,
    /// The declaration.
    pub spec: Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Epoch, Lsn};

    fn position(n: u32) -> Position {
        Position::new(Epoch::FIRST, Lsn::new(1), n)
    }

    #[test]
    fn a_checksum_is_of_the_set_and_can_be_computed_by_anyone() {
        let sum = |positions: &[u32]| {
            let mut sum = Checksum::default();
            positions.iter().for_each(|n| sum.add(position(*n).into()));
            sum
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        assert_ne!(sum(&[1, 2, 3]), sum(&[1, 2]));
        assert_eq!(Checksum::from_stored(sum(&[7]).stored()), sum(&[7]));
        // As `printf 01-0000000000000001-00000001 | sha256sum` has it.
        assert_eq!(sum(&[1]).to_string(), "cffc3cbae9edc4f6");
    }

    #[test]
    fn counts_reconcile_when_nothing_is_missing() {
        let tally = Tally { logged: 10, filtered: 1, delivered: 5, dropped: 1 };
        let mut counts = Counts { tally, pending: 2, parked: 1 };
        assert!(counts.reconcile());
        counts.pending = 1;
        assert!(!counts.reconcile());
    }
}
