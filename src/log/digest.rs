//! Digests by which a log and whoever reads it can show each other that nothing is missing.
//!
//! A change's digest is taken from its line alone, so that a reader can compute it too; digests are
//! added up, so that a range has one whatever chunks or connections it came in. The recipe:
//!
//! ```text
//! line    = the event as NDJSON delivers it, without the line break
//! content = line without the last `,"ts_ms":` that has digits after it, and those: when the change
//!           was read is the one thing that may differ when it is read again after a crash
//! digest  = the first 16 bytes of SHA-256(content), as a big-endian number
//! range   = the sum of the digests of its changes, modulo 2^128, in 32 hexadecimal digits
//! ```
//!
//! The position is part of the line and strictly increases: a change that is lost, doubled or
//! altered gives another sum, and one out of place is seen without it.
//!
//! Chunks are chained besides: each has the digest of the one before in its own, so that a chunk
//! that is gone or replaced breaks a link.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;
use std::sync::LazyLock;

use memchr::memmem::FinderRev;
use sha2::{Digest as _, Sha256};

use crate::vocab::Position;

/// What stands before the time at which a change was read.
static READ_AT: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(b",\"ts_ms\":"));

/// The digest of a set of changes; of none it is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(u128);

impl Digest {
    /// The digest of one change, of its line without the line break.
    pub fn of_line(line: &[u8]) -> Self {
        let (before, after) = around_read_at(line);
        let mut hash = Sha256::new();
        hash.update(before);
        hash.update(after);
        let bytes: [u8; 32] = hash.finalize().into();
        let first: [u8; 16] = std::array::from_fn(|index| bytes[index]);
        Self(u128::from_be_bytes(first))
    }

    /// As it is stored.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`Digest::to_bytes`]; `None` when it is not one.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u128::from_be_bytes(bytes)))
    }
}

/// What stands before and after the time at which the change was read. A member of that name in an
/// event's details has no number.
fn around_read_at(line: &[u8]) -> (&[u8], &[u8]) {
    let mut head = line;
    while let Some(at) = READ_AT.rfind(head) {
        let (before, rest) = line.split_at(at);
        let rest = rest.get(READ_AT.needle().len()..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            return (before, rest.get(digits..).unwrap_or_default());
        }
        head = before;
    }
    (line, &[])
}

impl Add for Digest {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Digest {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("\"{text}\" is not a digest: expected 32 hexadecimal digits");
        if text.len() != 32 {
            return Err(malformed());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| malformed())
    }
}

/// A link of the chain of chunks: the SHA-256 of the link before, the chunk's place and its
/// checksum. Before the first chunk it is all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Link([u8; 32]);

impl Link {
    /// The link of a chunk that follows this one.
    pub(super) fn next(self, first: Position, last: Position, checksum: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(first.to_string());
        hash.update(last.to_string());
        hash.update(checksum);
        Self(hash.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The link with these bytes; `None` when there are not 32.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The SHA-256 of a payload: PostgreSQL computes the same with `sha256(payload)`, so that a log can
/// be checked without this program.
pub(super) fn checksum(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_change_was_read_does_not_count_and_everything_else_does() {
        let line = |read: &str, row: &str| {
            format!(
                "{{\"op\":\"c\",\"after\":{{\"ts_ms\":1,\"x\":{row}}},\"source\":{{\"ts_ms\":7}},\"ts_ms\":{read},\
                 \"position\":\"01-00000000016CA548-00000003\"}}"
            )
        };
        let of = |line: String| Digest::of_line(line.as_bytes());
        assert_eq!(of(line("1", "5")), of(line("1780000000004", "5")));
        assert_ne!(of(line("1", "5")), of(line("1", "6")));
        // The row's own column of that name is part of it.
        assert_ne!(
            of(line("1", "5")),
            of(line("1", "5").replace("\"ts_ms\":1,\"x\"", "\"ts_ms\":2,\"x\""))
        );
        // echo -n '{"a":1}' | sha256sum
        let plain = Digest::of_line(b"{\"a\":1}");
        assert_eq!(plain.to_string(), "015abd7f5cc57a2dd94b7590f04ad808");
        assert_eq!(Digest::of_line(b"{\"a\":1,\"ts_ms\":99}"), plain);
        let renamed = |read: &str| {
            format!(
                "{{\"event\":\"schema\",\"ts_ms\":{read},\"schema\":{{\"x\":1,\"ts_ms\":\"at\"}}}}"
            )
        };
        assert_eq!(of(renamed("5")), of(renamed("6")), "a column may be called so too");
    }

    #[test]
    fn digests_add_up_in_any_order_and_read_back() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|line| Digest::of_line(line));
        assert_eq!(a + b + c, c + (b + a));
        assert_eq!(a + b - b, a);
        assert_eq!((a + c).to_string().parse::<Digest>().unwrap(), a + c);
        assert_eq!(Digest::from_bytes(&b.to_bytes()), Some(b));
        assert!("xyz".parse::<Digest>().unwrap_err().contains("32 hexadecimal digits"));
        assert_eq!(Digest::default().to_string(), "0".repeat(32));
    }
}
