//! Which transactions a snapshot contains.

use serde::{Deserialize, Serialize};

/// What `pg_current_snapshot()` says.
///
/// Every transaction before `xmin` has ended, none from `xmax` on has begun, and of those between, the ones listed are still running. What has ended is seen
/// when it committed; what was rolled back left nothing to see.
///
/// Subtransactions are not listed and need not be: changes name their top transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u64>", try_from = "Vec<u64>")]
pub struct Seen {
    xmin: u64,
    xmax: u64,
    /// Ascending.
    running: Vec<u64>,
}

impl Seen {
    /// Reads `xmin:xmax:xip,xip,…`; `None` when it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let list = parts.next()?;
        let numbers = list.split(',').filter(|number| !number.is_empty());
        let running = numbers.map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let valid = parts.next().is_none() && xmin <= xmax && running.is_sorted();
        valid.then_some(Self { xmin, xmax, running })
    }

    /// Whether the snapshot contains what this transaction did, given that it has committed.
    ///
    /// Changes carry the low 32 bits of the id. Transactions that a snapshot and the changes around
    /// it can both speak of lie less than 2^31 apart (PostgreSQL itself relies on it), so that the
    /// nearest id to the snapshot's end is the right one.
    pub fn contains(&self, transaction: u32) -> bool {
        let id = self.widen(transaction);
        id < self.xmin || (id < self.xmax && self.running.binary_search(&id).is_err())
    }

    /// The full id that is nearest to the snapshot's end.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is meant")]
    fn widen(&self, transaction: u32) -> u64 {
        let ahead = transaction.wrapping_sub(self.xmax as u32).cast_signed();
        self.xmax.wrapping_add_signed(i64::from(ahead))
    }
}

/// `xmin`, then each number as the distance from the one before: short, for positions.
impl From<Seen> for Vec<u64> {
    fn from(seen: Seen) -> Self {
        let mut deltas = vec![seen.xmin, seen.xmax - seen.xmin];
        let mut before = seen.xmin;
        for id in seen.running {
            deltas.push(id - before);
            before = id;
        }
        deltas
    }
}

impl TryFrom<Vec<u64>> for Seen {
    type Error = &'static str;

    fn try_from(deltas: Vec<u64>) -> Result<Self, Self::Error> {
        const TOO_LARGE: &str = "a transaction id out of range";
        let [xmin, width, running @ ..] = deltas.as_slice() else {
            return Err("expected at least two numbers");
        };
        let xmax = xmin.checked_add(*width).ok_or(TOO_LARGE)?;
        let mut before = *xmin;
        let mut ids = Vec::with_capacity(running.len());
        for delta in running {
            before = before.checked_add(*delta).ok_or(TOO_LARGE)?;
            ids.push(before);
        }
        Ok(Self { xmin: *xmin, xmax, running: ids })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_ended_before_is_contained_and_what_runs_or_comes_is_not() {
        let seen = Seen::parse("100:110:100,103,109").unwrap();
        for (id, contained) in
            [(99, true), (100, false), (101, true), (103, false), (108, true), (109, false)]
        {
            assert_eq!(seen.contains(id), contained, "{id}");
        }
        assert!(!seen.contains(110) && !seen.contains(4_000));
        assert!(Seen::parse("7:7:").unwrap().contains(6));
    }

    #[test]
    fn ids_are_compared_across_the_turn_of_their_32_bits() {
        let turn = 1_u64 << 32;
        let seen = Seen::parse(&format!("{}:{}:{}", turn - 2, turn + 5, turn - 2)).unwrap();
        assert!(seen.contains(u32::MAX - 10));
        assert!(!seen.contains(u32::MAX - 1));
        assert!(seen.contains(u32::MAX) && seen.contains(3) && !seen.contains(5));
    }

    #[test]
    fn what_is_no_snapshot_is_none() {
        for text in ["", "1", "1:2", "2:1:", "1:9:5,4", "1:9:x", "1:9::"] {
            assert_eq!(Seen::parse(text), None, "{text}");
        }
        assert!(Seen::try_from(vec![1]).is_err());
        assert!(Seen::try_from(vec![u64::MAX, 1]).is_err());
    }

    proptest! {
        #[test]
        fn deltas_read_back(xmin in 0..u64::MAX / 2, width in 0..1_u64 << 40, ids: std::collections::BTreeSet<u32>) {
            let running = ids.into_iter().map(|id| xmin + u64::from(id)).collect();
            let seen = Seen { xmin, xmax: xmin + width, running };
            prop_assert_eq!(Seen::try_from(Vec::from(seen.clone())).unwrap(), seen);
        }
    }
}
