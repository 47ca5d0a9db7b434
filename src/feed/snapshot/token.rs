//! Where a reader stands in the middle of a snapshot: a position with the snapshot's state.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::table::State;
use crate::capture::snapshot::digest;
use crate::vocab::{DatasetName, Position};

/// Longest token that is read, in bytes.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// `POSITION~COUNT~STATE`.
///
/// The log was read up to the position, this is event COUNT of the snapshot, and STATE says how far
/// each table is. Sorts as text in the order of the events, among themselves
/// and with plain positions. The state is not signed: it says nothing that its reader has not seen,
/// and what is made up leads its own reader astray and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// How far the log was read.
    pub(super) position: Position,
    /// Events of the snapshot so far.
    pub(super) count: u64,
    /// How far the snapshot is.
    pub(super) state: Progressed,
}

/// How far each table of a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progressed {
    /// Tells apart which datasets, in which order.
    #[serde(rename = "d")]
    pub(super) datasets: u32,
    /// Tables from here on have not been begun.
    #[serde(rename = "n")]
    pub(super) begun: usize,
    /// Those that were begun and are not done.
    #[serde(rename = "t")]
    pub(super) tables: Vec<(usize, State)>,
}

impl Progressed {
    /// A number for a list of datasets.
    pub(super) fn digest<'a>(datasets: impl Iterator<Item = &'a DatasetName>) -> u32 {
        digest(datasets.map(DatasetName::as_str))
    }
}

impl Token {
    /// How far the log was read.
    pub fn position(&self) -> Position {
        self.position
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = serde_json::to_vec(&self.state).map_err(|_| fmt::Error)?;
        let state = BASE64_URL_SAFE_NO_PAD.encode(state);
        write!(f, "{}~{:010X}~{state}", self.position, self.count)
    }
}

/// The text is not a position in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "malformed position in a snapshot: expected it whole as the feed gave it, \
     POSITION~COUNT~STATE"
)]
pub struct Malformed;

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let read = || {
            if text.len() > TOKEN_BYTES_MAX {
                return None;
            }
            let mut parts = text.split('~');
            let position = parts.next()?.parse().ok()?;
            let count = parts.next().filter(|count| count.len() == 10)?;
            let count = u64::from_str_radix(count, 16).ok()?;
            let state = BASE64_URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
            let state = serde_json::from_slice(&state).ok()?;
            parts.next().is_none().then_some(Self { position, count, state })
        };
        read().ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::snapshot::{Bound, Key, Seen};
    use crate::feed::snapshot::table::Window;
    use crate::vocab::{Epoch, Lsn};

    fn token(lsn: u64, count: u64, key: &str) -> Token {
        let key = |suffix: &str| Key(vec![format!("{key}{suffix}"), "é\"~".to_owned()]);
        let state = State {
            read: Bound::At(key("b")),
            window: Some(Window {
                from: Bound::Start,
                seen: Seen::parse("740:760:741,755").unwrap(),
                points: vec![key("p")],
            }),
            pending: vec![key("q")],
            partial: false,
            key: 9,
        };
        let datasets = Progressed::digest(["shop.public.orders".parse().unwrap()].iter());
        let state = Progressed { datasets, begun: 3, tables: vec![(1, state)] };
        Token { position: Position::new(Epoch::FIRST, Lsn::new(lsn), 2), count, state }
    }

    proptest! {
        #[test]
        fn a_token_reads_back_and_sorts_as_its_events_come(
            a: (u32, u32, String), b: (u32, u32, String)
        ) {
            let [a, b] = [a, b].map(|(lsn, count, key)| token(lsn.into(), count.into(), &key));
            prop_assert_eq!(&a.to_string().parse::<Token>().unwrap(), &a);
            let order = (a.position, a.count).cmp(&(b.position, b.count));
            if order.is_ne() {
                prop_assert_eq!(a.to_string().cmp(&b.to_string()), order);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Token>();
        }
    }

    #[test]
    fn a_token_stands_between_its_position_and_the_next() {
        let text = token(7, 1, "k").to_string();
        let position = |ordinal| Position::new(Epoch::FIRST, Lsn::new(7), ordinal).to_string();
        assert!(position(2) < text && text < position(3), "{text}");
    }

    #[test]
    fn what_was_cut_or_changed_is_no_token() {
        let text = token(7, 1, "k").to_string();
        for broken in [&text[..text.len() - 3], &text[..28], &format!("{text}~"), "~~", ""] {
            assert_eq!(broken.parse::<Token>(), Err(Malformed), "{broken}");
        }
    }
}
