//! Where a change stands in its source's order.
//!
//! A position is (epoch, commit LSN, ordinal in the transaction). Written out it is fixed-width
//! hexadecimal, so that its text sorts as it does:
//!
//! ```text
//! 01-00000000016CA548-00000003
//! ── ──────────────── ────────
//! │         │            └ ordinal of the change in its transaction, from 1
//! │         └ LSN of the transaction's commit record
//! └ epoch: grows when the slot is recreated and continuity ends
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place in PostgreSQL's write-ahead log, in bytes. Displayed as PostgreSQL does: `0/16CA548`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// The invalid LSN, before every other.
    pub const ZERO: Self = Self(0);

    /// The LSN with this byte offset.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The byte offset.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is not a position or an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Not the form of a position.
    #[error(
        "malformed position \"{0}\": expected EE-LLLLLLLLLLLLLLLL-OOOOOOOO in upper-case hexadecimal, \
         such as 01-00000000016CA548-00000003"
    )]
    Position(String),
    /// Not the form of an LSN.
    #[error("malformed LSN \"{0}\": expected two hexadecimal numbers such as 0/16CA548")]
    Lsn(String),
}

impl FromStr for Lsn {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Self(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| PositionError::Lsn(text.to_owned()))
    }
}

/// How often a source's slot has been recreated. Within one epoch LSNs are continuous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u8);

impl Epoch {
    /// The epoch of a source's first slot.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    pub const fn new(value: u8) -> Self {
        Self(value)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Where a change stands in its source's order; a subscriber's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    epoch: Epoch,
    lsn: Lsn,
    ordinal: u32,
}

impl Position {
    /// Before every change.
    pub const MIN: Self = Self { epoch: Epoch(0), lsn: Lsn(0), ordinal: 0 };
    /// After every change.
    pub const MAX: Self = Self { epoch: Epoch(u8::MAX), lsn: Lsn(u64::MAX), ordinal: u32::MAX };

    /// The position of change `ordinal` (from 1) of the transaction that committed at `lsn`.
    pub const fn new(epoch: Epoch, lsn: Lsn, ordinal: u32) -> Self {
        Self { epoch, lsn, ordinal }
    }

    /// A position before this one, and not before what precedes it in the log: ordinals count from
    /// 1, so that there is one before the first.
    pub const fn before(self) -> Self {
        Self { ordinal: self.ordinal.saturating_sub(1), ..self }
    }

    /// The slot generation.
    pub const fn epoch(self) -> Epoch {
        self.epoch
    }

    /// The LSN of the transaction's commit record.
    pub const fn lsn(self) -> Lsn {
        self.lsn
    }

    /// The change's place in its transaction, from 1.
    pub const fn ordinal(self) -> u32 {
        self.ordinal
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02X}-{:016X}-{:08X}", self.epoch.0, self.lsn.0, self.ordinal)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let part = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            let upper_hex =
                digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            if upper_hex { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        let parse = || {
            if text.len() != 28 || text.get(2..3)? != "-" || text.get(19..20)? != "-" {
                return None;
            }
            let epoch = u8::try_from(part(0..2)?).ok()?;
            let ordinal = u32::try_from(part(20..28)?).ok()?;
            Some(Self::new(Epoch(epoch), Lsn(part(3..19)?), ordinal))
        };
        parse().ok_or_else(|| PositionError::Position(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Position {
    type Error = PositionError;

    fn try_from(text: String) -> Result<Self, PositionError> {
        text.parse()
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_example_reads_back() {
        let text = "01-00000000016CA548-00000003";
        let position: Position = text.parse().unwrap();
        assert_eq!(position, Position::new(Epoch::FIRST, Lsn::new(23_897_416), 3));
        assert_eq!(position.lsn().to_string(), "0/16CA548");
        assert_eq!("0/16CA548".parse::<Lsn>().unwrap(), position.lsn());
    }

    #[test]
    fn malformed_positions_are_refused_with_the_form() {
        for text in [
            "",
            "now",
            "01-00000000016ca548-00000003",
            "1-16CA548-3",
            "é1-00000000016CA548-0000000",
        ] {
            let error = text.parse::<Position>().unwrap_err();
            assert!(error.to_string().contains("expected EE-"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn text_order_is_position_order(a: (u8, u64, u32), b: (u8, u64, u32)) {
            let position = |(e, l, o)| Position::new(Epoch::new(e), Lsn::new(l), o);
            let (a, b) = (position(a), position(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(a.to_string().parse::<Position>().unwrap(), a);
            prop_assert_eq!(a.lsn().to_string().parse::<Lsn>().unwrap(), a.lsn());
        }
    }
}
