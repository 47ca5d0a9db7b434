//! Where a change stands for a subscription.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::vocab::Position;

/// A position in the log, or, of what a snapshot gives, `POSITION~COUNT`: how far the log was read by
/// then, and the how manieth event of the snapshot it is.
///
/// Sorts, also as text, as the changes come: what a snapshot gives stands between the position up to
/// which the log was read and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mark {
    position: Position,
    /// From 1; 0 is a change of the log itself.
    count: u64,
}

impl Mark {
    /// Of the event with this place in a snapshot, as the snapshot writes it:
    /// `POSITION~COUNT~STATE`.
    pub(in crate::feed) fn of_snapshot(token: &str) -> Option<Self> {
        let mut parts = token.split('~');
        Self::read(parts.next()?, Some(parts.next()?))
    }

    fn read(position: &str, count: Option<&str>) -> Option<Self> {
        let position = position.parse().ok()?;
        let count = match count {
            None => 0,
            Some(digits) if digits.len() == 10 => {
                u64::from_str_radix(digits, 16).ok().filter(|count| *count > 0)?
            }
            Some(_) => return None,
        };
        Some(Self { position, count })
    }

    /// Up to where the log was read with it.
    pub fn position(self) -> Position {
        self.position
    }
}

impl From<Position> for Mark {
    fn from(position: Position) -> Self {
        Self { position, count: 0 }
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> Self {
        mark.to_string()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => self.position.fmt(f),
            count => write!(f, "{}~{count:010X}", self.position),
        }
    }
}

/// The text is no place of a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "malformed position \"{0}\": expected one such as 01-00000000016CA548-00000003, or, of a row of \
     a snapshot, 01-00000000016CA548-00000003~0000000001"
)]
pub struct MalformedMark(String);

impl FromStr for Mark {
    type Err = MalformedMark;

    fn from_str(text: &str) -> Result<Self, MalformedMark> {
        let (position, count) = match text.split_once('~') {
            Some((position, count)) => (position, Some(count)),
            None => (text, None),
        };
        Self::read(position, count).ok_or_else(|| MalformedMark(text.to_owned()))
    }
}

impl TryFrom<String> for Mark {
    type Error = MalformedMark;

    fn try_from(text: String) -> Result<Self, MalformedMark> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_sorts_as_text_as_the_changes_come() {
        let texts = [
            "01-0000000000000007-00000001",
            "01-0000000000000007-00000001~0000000001",
            "01-0000000000000007-00000001~00000000FF",
            "01-0000000000000007-00000002",
            "02-0000000000000001-00000001",
        ];
        let marks: Vec<Mark> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(marks.is_sorted() && texts.is_sorted());
        assert_eq!(marks.iter().map(Mark::to_string).collect::<Vec<_>>(), texts);
        let token = format!("{}~e30", texts[1]);
        assert_eq!(Mark::of_snapshot(&token), Some(marks[1]));
        for wrong in ["", "7", "01-0000000000000007-00000001~1", &token] {
            assert!(wrong.parse::<Mark>().is_err(), "{wrong}");
        }
    }
}
