//! Which changes must keep their order among each other.

use crate::log::Entry;
use crate::vocab::Op;

/// The keys of a change: no two changes that share one overtake each other. A change of the whole
/// dataset has none, and stands between what is before and after it.
pub(super) fn keys(entry: &Entry) -> Vec<i64> {
    match entry.op {
        Op::Create | Op::Update | Op::Delete | Op::Read => vec![i64::from(entry.dataset.0)],
        Op::Truncate | Op::Schema | Op::Ownership | Op::Gap => Vec::new(),
    }
}
