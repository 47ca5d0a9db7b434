//! How far one table is read, and what that means for a change of it. Pure.

use serde::{Deserialize, Serialize};

use crate::capture::snapshot::{Bound, Key, Seen};

/// Most keys that may wait to be read again; with more the table begins anew, so that positions,
/// which carry them, stay short.
pub(super) const PENDING_MAX: usize = 64;

/// Rows read at one moment, of which changes may still come that the rows contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// The rows after this belong to it.
    #[serde(rename = "f")]
    pub(super) from: Bound,
    /// The moment.
    #[serde(rename = "s")]
    pub(super) seen: Seen,
    /// Rows outside its range that belong to it too.
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) points: Vec<Key>,
}

/// How far a table is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// All rows up to here have been sent, but for those pending.
    #[serde(rename = "r")]
    pub(super) read: Bound,
    /// Those of the last chunk, until it is known that all it contains has passed.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<Window>,
    /// Keys that moved to where has been read, from where has not, without all of their row.
    #[serde(rename = "k", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pending: Vec<Key>,
    /// Rows were sent without a key to go on after: those of a table that has none, or whose key
    /// has changed.
    #[serde(rename = "h", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) partial: bool,
    /// Tells the key that it is read by from others.
    #[serde(rename = "y", default)]
    pub(super) key: u32,
}

/// Whether a key lies at or before the window's beginning and at or before what was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) before_window: bool,
    pub(super) read: bool,
}

/// What a change of a row is to a reader that has read so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it is.
    Deliver,
    /// Not at all: a row that was or will be sent contains it.
    Drop,
    /// The row has moved to where nothing was read yet: it is gone for now.
    AsDelete,
    /// The row has moved to where everything was read, and is new there.
    AsCreate,
}

impl State {
    /// Nothing is read.
    pub(super) fn start() -> Self {
        Self { read: Bound::Start, window: None, pending: Vec::new(), partial: false, key: 0 }
    }

    /// Everything is read, and everything that may be contained in it has passed.
    pub(super) fn is_done(&self) -> bool {
        self.read == Bound::End && self.window.is_none() && self.pending.is_empty()
    }

    /// Whether rows have been sent.
    pub(super) fn has_begun(&self) -> bool {
        self.read != Bound::Start || self.partial
    }

    /// The keys that have to be compared with to place another: before which the window begins, and
    /// up to which was read. Neither when it goes without saying.
    pub(super) fn boundaries(&self) -> [Option<&Key>; 2] {
        let key = |bound: &'_ Bound| matches!(bound, Bound::At(_));
        let from = self.window.as_ref().map(|window| &window.from).filter(|bound| key(bound));
        [from, Some(&self.read).filter(|bound| key(bound))].map(|bound| match bound {
            Some(Bound::At(key)) => Some(key),
            _ => None,
        })
    }

    /// The place of a key by what its comparison with the boundaries gave.
    pub(super) fn place(&self, compared: [Option<bool>; 2]) -> Place {
        let at = |bound: &Bound, compared: Option<bool>| match bound {
            Bound::Start => false,
            Bound::At(_) => compared.unwrap_or(false),
            Bound::End => true,
        };
        let [before_window, read] = compared;
        Place {
            before_window: self
                .window
                .as_ref()
                .is_some_and(|window| at(&window.from, before_window)),
            read: at(&self.read, read),
        }
    }

    /// Whether a reader knows of a key what it was before this transaction, so that it has to be
    /// told what the transaction did.
    fn follows(&self, key: &Key, place: Place, transaction: u32) -> bool {
        if self.pending.contains(key) {
            return false;
        }
        match &self.window {
            Some(window) if window.points.contains(key) || (place.read && !place.before_window) => {
                !window.seen.contains(transaction)
            }
            _ => place.read,
        }
    }

    /// Judges a change of one row that keeps its key, or that begins or ends it.
    pub(super) fn judge(&self, (key, place): (&Key, Place), transaction: u32) -> Verdict {
        if self.follows(key, place, transaction) { Verdict::Deliver } else { Verdict::Drop }
    }

    /// Judges a change that gives a row another key.
    pub(super) fn judge_move(
        &self,
        before: (&Key, Place),
        after: (&Key, Place),
        transaction: u32,
    ) -> Verdict {
        let follows = |(key, place)| self.follows(key, place, transaction);
        match (follows(before), follows(after)) {
            (true, true) => Verdict::Deliver,
            (true, false) => Verdict::AsDelete,
            (false, true) => Verdict::AsCreate,
            (false, false) => Verdict::Drop,
        }
    }

    /// Judges a change of a table without a key.
    pub(super) fn judge_keyless(&self, transaction: u32) -> Verdict {
        let contained = |window: &Window| window.seen.contains(transaction);
        if self.read == Bound::End && !self.window.as_ref().is_some_and(contained) {
            Verdict::Deliver
        } else {
            Verdict::Drop
        }
    }

    /// Judges a truncate: whether it is delivered, and whether the table then has to be read from
    /// its beginning, because rows of the window that came after it go with it.
    pub(super) fn judge_truncate(&self, transaction: u32) -> (Verdict, bool) {
        if !self.has_begun() {
            return (Verdict::Drop, false);
        }
        match &self.window {
            Some(window) if window.seen.contains(transaction) => {
                let only_window = window.from == Bound::Start && window.points.is_empty();
                if only_window && self.pending.is_empty() {
                    (Verdict::Drop, false)
                } else {
                    (Verdict::Deliver, true)
                }
            }
            _ => (Verdict::Deliver, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key(vec![n.to_string()])
    }

    /// Rows up to 10 read before, 11 to 20 and 3 at a moment that contains transactions before 100,
    /// 5 pending.
    fn state() -> State {
        let seen = Seen::parse("100:100:").unwrap();
        let window = Window { from: Bound::At(key(10)), seen, points: vec![key(3)] };
        State {
            read: Bound::At(key(20)),
            window: Some(window),
            pending: vec![key(5)],
            partial: false,
            key: 0,
        }
    }

    fn at(n: u32) -> (Key, Place) {
        (key(n), state().place([Some(n <= 10), Some(n <= 20)]))
    }

    const CONTAINED: u32 = 99;
    const LATER: u32 = 100;

    #[test]
    fn a_change_is_judged_by_what_was_read_of_its_key() {
        use Verdict::{Deliver, Drop};
        for (n, transaction, verdict) in [
            (1, CONTAINED, Deliver),
            (1, LATER, Deliver),
            (3, CONTAINED, Drop),
            (3, LATER, Deliver),
            (5, CONTAINED, Drop),
            (5, LATER, Drop),
            (15, CONTAINED, Drop),
            (15, LATER, Deliver),
            (25, CONTAINED, Drop),
            (25, LATER, Drop),
        ] {
            let (key, place) = at(n);
            assert_eq!(state().judge((&key, place), transaction), verdict, "{n} {transaction}");
        }
    }

    #[test]
    fn a_moved_row_is_gone_or_new_where_only_one_end_was_read() {
        use Verdict::{AsCreate, AsDelete, Deliver, Drop};
        for (before, after, transaction, verdict) in [
            (1, 2, CONTAINED, Deliver),
            (1, 15, CONTAINED, AsDelete),
            (15, 1, CONTAINED, AsCreate),
            (15, 1, LATER, Deliver),
            (1, 25, LATER, AsDelete),
            (25, 1, LATER, AsCreate),
            (25, 15, CONTAINED, Drop),
            (25, 15, LATER, AsCreate),
            (5, 1, LATER, AsCreate),
            (25, 26, LATER, Drop),
        ] {
            let ((from, a), (to, b)) = (at(before), at(after));
            let judged = state().judge_move((&from, a), (&to, b), transaction);
            assert_eq!(judged, verdict, "{before} to {after} in {transaction}");
        }
    }

    #[test]
    fn a_truncate_that_only_part_of_the_rows_contains_begins_the_table_anew() {
        assert_eq!(State::start().judge_truncate(LATER), (Verdict::Drop, false));
        assert_eq!(state().judge_truncate(LATER), (Verdict::Deliver, false));
        assert_eq!(state().judge_truncate(CONTAINED), (Verdict::Deliver, true));
        let mut first = state();
        first.pending.clear();
        let window = first.window.as_mut().unwrap();
        (window.from, window.points) = (Bound::Start, Vec::new());
        assert_eq!(first.judge_truncate(CONTAINED), (Verdict::Drop, false));
        assert_eq!(first.judge_truncate(LATER), (Verdict::Deliver, false));
    }

    #[test]
    fn a_table_without_a_key_is_one_moment() {
        let mut state = State::start();
        assert_eq!(state.judge_keyless(CONTAINED), Verdict::Drop);
        state.read = Bound::End;
        assert_eq!(state.judge_keyless(CONTAINED), Verdict::Deliver);
        let seen = Seen::parse("100:100:").unwrap();
        state.window = Some(Window { from: Bound::Start, seen, points: Vec::new() });
        assert_eq!(state.judge_keyless(CONTAINED), Verdict::Drop);
        assert_eq!(state.judge_keyless(LATER), Verdict::Deliver);
        assert!(!state.is_done());
    }
}
