//! Changes on this side of the cursor that are neither delivered nor given up, and which of them
//! may be tried now.
//!
//! Order within a key rests on one rule: a change is tried only when no earlier change of any of
//! its keys is unsettled elsewhere. It holds across consumers, retries and restarts, because all
//! that is unsettled is either here or after the cursor.

pub(in crate::feed) mod store;

use std::collections::HashSet;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::mark::Mark;
use crate::vocab::Op;

/// Attempts of one change that are remembered; of more, the first and the latest.
const TRIED_MAX: usize = 50;

/// One attempt to deliver a change, as the dead-letter queue shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Why it failed.
    pub error: String,
}

/// Adds an attempt to those remembered.
pub(in crate::feed) fn remember(tried: &mut Vec<Attempt>, attempt: Attempt) {
    if tried.len() >= TRIED_MAX {
        tried.remove(TRIED_MAX / 2);
    }
    tried.push(attempt);
}

/// A change that is held, without its payload.
#[derive(Debug, Clone)]
pub(in crate::feed) struct Held {
    pub(in crate::feed) position: Mark,
    pub(in crate::feed) keys: Vec<i64>,
    /// Attempts that count towards parking.
    pub(in crate::feed) attempts: u32,
    pub(in crate::feed) tried: Vec<Attempt>,
    /// Not before then.
    pub(in crate::feed) due: DateTime<Utc>,
    /// Out with a consumer until it is due.
    pub(in crate::feed) lease: Option<Uuid>,
    /// Size of its payload.
    pub(in crate::feed) bytes: usize,
    /// The dead letter it is redriven from.
    pub(in crate::feed) letter: Option<i64>,
}

/// A change with all that delivery needs.
#[derive(Debug, Clone)]
pub(in crate::feed) struct Item {
    pub(in crate::feed) position: Mark,
    pub(in crate::feed) dataset: String,
    pub(in crate::feed) op: Op,
    pub(in crate::feed) keys: Vec<i64>,
    pub(in crate::feed) json: Bytes,
}

/// The most that one consumer gets.
#[derive(Debug, Clone, Copy)]
pub(in crate::feed) struct Room {
    pub(in crate::feed) changes: usize,
    pub(in crate::feed) bytes: usize,
}

impl Room {
    /// No more than fits into `other` as well.
    pub(in crate::feed) fn limit(&mut self, other: Self) {
        self.changes = self.changes.min(other.changes);
        self.bytes = self.bytes.min(other.bytes);
    }

    /// Takes the place of one change; the first one fits whatever its size.
    pub(in crate::feed) fn take(&mut self, bytes: usize, first: bool) -> bool {
        if self.changes == 0 || (bytes > self.bytes && !first) {
            return false;
        }
        self.changes -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

/// Keys of which nothing may go out.
///
/// A change without keys is about its whole dataset (a truncate, a new schema): it waits for
/// everything before it, and everything after it waits for it.
#[derive(Debug, Default)]
pub(in crate::feed) struct Barred {
    /// Of parked changes and what is behind them: nobody knows when they become free.
    blocked: HashSet<i64>,
    /// Of what is unsettled otherwise.
    busy: HashSet<i64>,
    all: bool,
}

impl Barred {
    /// With the keys of parked changes, if these block.
    pub(in crate::feed) fn new(blocked: impl IntoIterator<Item = i64>) -> Self {
        Self { blocked: blocked.into_iter().collect(), ..Self::default() }
    }

    /// Whether a change with these keys has to wait. Then those behind it have to, too.
    pub(in crate::feed) fn bars(&mut self, keys: &[i64]) -> bool {
        if keys.iter().any(|key| self.blocked.contains(key)) {
            self.blocked.extend(keys);
            return true;
        }
        let busy = keys.iter().any(|key| self.busy.contains(key));
        let waits = self.all || busy || (keys.is_empty() && !self.busy.is_empty());
        if waits {
            self.bar(keys);
        }
        waits
    }

    /// From here on nothing with one of these keys may go out, until somebody decides.
    pub(in crate::feed) fn block(&mut self, keys: &[i64]) {
        self.blocked.extend(keys);
    }

    /// From here on nothing with one of these keys may go out.
    pub(in crate::feed) fn bar(&mut self, keys: &[i64]) {
        self.all |= keys.is_empty();
        self.busy.extend(keys);
    }
}

/// Chooses, of `held` in order of position, what one consumer may get together at `now`. What it
/// may not get is barred afterwards, for the changes that follow.
pub(in crate::feed) fn choose(
    held: &[Held],
    now: DateTime<Utc>,
    barred: &mut Barred,
    room: &mut Room,
) -> Vec<Mark> {
    // A change can be out while an earlier one of its key has come back.
    for out in held.iter().filter(|held| held.lease.is_some() && held.due > now) {
        barred.bar(&out.keys);
    }
    let mut chosen = Vec::new();
    for held in held {
        if barred.bars(&held.keys) {
            continue;
        }
        if held.due <= now && room.take(held.bytes, chosen.is_empty()) {
            chosen.push(held.position);
        } else {
            barred.bar(&held.keys);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::vocab::{Epoch, Lsn, Position};

    fn position(n: u32) -> Mark {
        Position::new(Epoch::FIRST, Lsn::new(1), n).into()
    }

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn held(n: u32, keys: &[i64]) -> Held {
        Held {
            position: position(n),
            keys: keys.to_vec(),
            attempts: 0,
            tried: Vec::new(),
            due: now(),
            lease: None,
            bytes: 10,
            letter: None,
        }
    }

    fn later(held: Held) -> Held {
        Held { due: now() + TimeDelta::seconds(1), ..held }
    }

    fn out(held: Held) -> Held {
        Held { lease: Some(Uuid::nil()), ..later(held) }
    }

    fn chosen(held: &[Held], blocked: &[i64], changes: usize) -> Vec<u32> {
        let mut barred = Barred::new(blocked.iter().copied());
        let mut room = Room { changes, bytes: 1000 };
        let chosen = choose(held, now(), &mut barred, &mut room);
        chosen.iter().map(|mark| mark.position().ordinal()).collect()
    }

    #[test]
    fn changes_of_one_key_go_out_together_in_order() {
        assert_eq!(chosen(&[held(1, &[7]), held(2, &[8]), held(3, &[7])], &[], 10), [1, 2, 3]);
        assert_eq!(chosen(&[held(1, &[7]), held(2, &[8]), held(3, &[7])], &[], 1), [1]);
    }

    #[test]
    fn nothing_overtakes_an_earlier_change_of_its_key() {
        assert_eq!(chosen(&[later(held(1, &[7])), held(2, &[8]), held(3, &[7])], &[], 10), [2]);
        assert_eq!(chosen(&[held(1, &[7]), held(2, &[8])], &[7], 10), [2], "behind a parked one");
        let both = [later(held(1, &[7])), held(2, &[7, 8]), held(3, &[8])];
        assert!(chosen(&both, &[], 10).is_empty(), "a change of key binds both");
    }

    #[test]
    fn a_key_that_is_out_is_not_handed_to_another() {
        assert_eq!(chosen(&[out(held(1, &[7])), held(2, &[7]), held(3, &[8])], &[], 10), [3]);
        let came_back = [held(1, &[7]), out(held(2, &[7]))];
        assert!(chosen(&came_back, &[], 10).is_empty());
    }

    #[test]
    fn what_is_about_the_whole_dataset_stands_between_before_and_after() {
        assert!(chosen(&[later(held(1, &[7])), held(2, &[]), held(3, &[8])], &[], 10).is_empty());
        assert!(chosen(&[later(held(1, &[])), held(2, &[8])], &[], 10).is_empty());
        let together = [held(1, &[7]), held(2, &[]), held(3, &[8])];
        assert_eq!(chosen(&together, &[], 10), [1, 2, 3]);
        let blocked = [held(1, &[7]), held(2, &[]), held(3, &[8])];
        assert_eq!(chosen(&blocked, &[7], 10), [2, 3], "it does not wait for a parked change");
    }

    #[test]
    fn a_change_larger_than_all_room_goes_alone() {
        let large = Held { bytes: 5000, ..held(1, &[7]) };
        assert_eq!(chosen(&[large, held(2, &[8])], &[], 10), [1]);
    }

    #[test]
    fn the_first_and_the_latest_attempts_are_remembered() {
        let mut tried = Vec::new();
        for n in 0..200 {
            remember(&mut tried, Attempt { at: now(), error: n.to_string() });
        }
        assert_eq!(tried.len(), TRIED_MAX);
        assert_eq!((tried[0].error.as_str(), tried[49].error.as_str()), ("0", "199"));
    }
}
