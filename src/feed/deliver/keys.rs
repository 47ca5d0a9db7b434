//! Which changes must keep their order among each other: those of one row.
//!
//! A row is known by the values of its key columns, before and after the change, so that a change of
//! the key binds both. Where two rows look the same by these columns, or a value is missing, more is
//! kept in order than need be, never less.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::vocab::{DatasetId, Op};

/// The keys of a change, given the columns of its dataset's key: no two changes that share one
/// overtake each other. A change without any stands between what is before and after it: one of the
/// whole dataset, or of a row whose key is not known.
pub(in crate::feed) fn keys(
    columns: Option<&[String]>,
    dataset: DatasetId,
    op: Op,
    json: &[u8],
) -> Vec<i64> {
    match op {
        Op::Create | Op::Update | Op::Delete | Op::Read => {
            columns.and_then(|columns| of_row(dataset, columns, json)).unwrap_or_default()
        }
        Op::Truncate | Op::Schema | Op::Ownership | Op::Gap | Op::Guard => Vec::new(),
    }
}

type Row<'a> = HashMap<String, &'a RawValue>;

fn of_row(dataset: DatasetId, columns: &[String], json: &[u8]) -> Option<Vec<i64>> {
    #[derive(Deserialize)]
    struct Rows<'a> {
        #[serde(borrow)]
        before: Option<Row<'a>>,
        #[serde(borrow)]
        after: Option<Row<'a>>,
    }
    let rows: Rows<'_> = serde_json::from_slice(json).ok()?;
    let key = |row: &Row<'_>| {
        let mut hash = mix(SEED, &dataset.0.to_be_bytes());
        for column in columns {
            hash = mix(hash, column.as_bytes());
            hash = mix(hash, row.get(column).map_or(b"", |value| value.get().as_bytes()));
        }
        hash.cast_signed()
    };
    let mut keys: Vec<i64> = [rows.before, rows.after].iter().flatten().map(key).collect();
    keys.dedup();
    Some(keys)
}

/// FNV-1a, and a byte that no text in JSON has, so that parts cannot flow into one another. Keys are
/// stored: the function never changes.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(hash: u64, text: &[u8]) -> u64 {
    let bytes = text.iter().copied().chain([0]);
    bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<i64> {
        of_row(DatasetId(1), &["id".to_owned()], json.as_bytes()).unwrap()
    }

    #[test]
    fn changes_of_one_row_share_its_key_and_others_do_not() {
        let insert = of(r#"{"op":"c","before":null,"after":{"id":7,"a":"x"}}"#);
        let update = of(r#"{"op":"u","before":null,"after":{"a":"y","id":7}}"#);
        let delete = of(r#"{"op":"d","before":{"id":7},"after":null}"#);
        assert_eq!((insert.len(), &insert, &update), (1, &update, &delete));
        assert_ne!(insert, of(r#"{"op":"c","before":null,"after":{"id":70}}"#));
        let other = of_row(DatasetId(2), &["id".to_owned()], br#"{"after":{"id":7}}"#).unwrap();
        assert_ne!(insert, other, "of another dataset");
    }

    #[test]
    fn a_change_of_the_key_binds_both() {
        let moved = of(r#"{"op":"u","before":{"id":7},"after":{"id":8}}"#);
        let (seven, eight) = (of(r#"{"after":{"id":7}}"#), of(r#"{"after":{"id":8}}"#));
        assert_eq!(moved, [seven[0], eight[0]]);
        let same = of(r#"{"op":"u","before":{"id":7,"a":1},"after":{"id":7,"a":2}}"#);
        assert_eq!(same, seven);
    }
}
