//! The decoder against an encoder: what is written reads back, what is cut or arbitrary is refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::encode::{self, Cell};
use super::*;

fn cells(tuple: Tuple<'_>) -> Vec<Cell> {
    let cells: Vec<Cell> = tuple
        .columns()
        .map(|column| match column {
            Column::Null => Cell::Null,
            Column::Unchanged => Cell::Unchanged,
            Column::Text(value) => Cell::Text(value.to_vec()),
            Column::Binary(value) => Cell::Binary(value.to_vec()),
        })
        .collect();
    assert_eq!(cells.len(), tuple.len());
    cells
}

/// Writes a decoded message again.
fn again(message: &Message<'_>) -> Vec<u8> {
    match *message {
        Message::Begin { final_lsn, committed, xid } => {
            encode::begin(final_lsn.get(), committed.0, xid)
        }
        Message::Commit { lsn, end, committed } => {
            encode::commit(lsn.get(), end.get(), committed.0)
        }
        Message::Origin { lsn, name } => encode::origin(lsn.get(), name),
        Message::Relation(relation) => {
            let identity = match relation.identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            };
            let columns: Vec<_> = relation
                .columns()
                .map(|c| (c.key, c.name.to_vec(), c.type_oid, c.type_modifier))
                .collect();
            encode::relation(relation.oid, (relation.schema, relation.name), identity, &columns)
        }
        Message::Type { oid, schema, name } => encode::type_name(oid, schema, name),
        Message::Insert { relation, new } => encode::insert(relation, &cells(new)),
        Message::Update { relation, old, new } => {
            let old = old.map(old_cells);
            let old = old.as_ref().map(|(kind, cells)| (*kind, cells.as_slice()));
            encode::update(relation, old, &cells(new))
        }
        Message::Delete { relation, old } => {
            let (kind, cells) = old_cells(old);
            encode::delete(relation, (kind, &cells))
        }
        Message::Truncate(truncate) => {
            let options = u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1;
            encode::truncate(&truncate.relations().collect::<Vec<_>>(), options)
        }
        Message::Logical { transactional, lsn, prefix, content } => {
            encode::logical(transactional, lsn.get(), prefix, content)
        }
    }
}

fn old_cells(old: Old<'_>) -> (u8, Vec<Cell>) {
    match old {
        Old::Key(tuple) => (b'K', cells(tuple)),
        Old::Row(tuple) => (b'O', cells(tuple)),
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..20)
}

fn row() -> impl Strategy<Value = Vec<Cell>> {
    let cell = prop_oneof![
        Just(Cell::Null),
        Just(Cell::Unchanged),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        vec(any::<u8>(), 0..40).prop_map(Cell::Binary),
    ];
    vec(cell, 0..12)
}

fn old() -> impl Strategy<Value = (u8, Vec<Cell>)> {
    (prop_oneof![Just(b'K'), Just(b'O')], row())
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>());
    let identity = prop_oneof![Just(b'd'), Just(b'n'), Just(b'f'), Just(b'i')];
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(lsn, time, xid)| encode::begin(lsn, time, xid)),
        any::<(u64, u64, i64)>().prop_map(|(lsn, end, time)| encode::commit(lsn, end, time)),
        (any::<u64>(), name()).prop_map(|(lsn, name)| encode::origin(lsn, &name)),
        (any::<u32>(), name(), name(), identity, vec(column, 0..10)).prop_map(
            |(oid, schema, name, identity, columns)| {
                encode::relation(oid, (&schema, &name), identity, &columns)
            }
        ),
        (any::<u32>(), name(), name())
            .prop_map(|(oid, schema, name)| encode::type_name(oid, &schema, &name)),
        (any::<u32>(), row()).prop_map(|(oid, new)| encode::insert(oid, &new)),
        (any::<u32>(), proptest::option::of(old()), row()).prop_map(|(oid, old, new)| {
            let old = old.as_ref().map(|(kind, cells)| (*kind, cells.as_slice()));
            encode::update(oid, old, &new)
        }),
        (any::<u32>(), old()).prop_map(|(oid, (kind, cells))| encode::delete(oid, (kind, &cells))),
        (vec(any::<u32>(), 0..10), 0..4u8)
            .prop_map(|(oids, options)| encode::truncate(&oids, options)),
        (any::<bool>(), any::<u64>(), name(), vec(any::<u8>(), 0..60)).prop_map(
            |(transactional, lsn, prefix, content)| {
                encode::logical(transactional, lsn, &prefix, &content)
            }
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_written_reads_back(bytes in message()) {
        let decoded = decode(&bytes).unwrap();
        prop_assert_eq!(again(&decoded), bytes);
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_an_error(bytes in message(), extra: u8) {
        for length in 0..bytes.len() {
            let error = decode(&bytes[..length]).unwrap_err();
            prop_assert!(error.offset <= length);
        }
        let mut longer = bytes;
        longer.push(extra);
        prop_assert!(decode(&longer).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in proptest::option::of(proptest::sample::select(&b"BCORYIUDTM"[..])),
        rest in vec(any::<u8>(), 0..200),
    ) {
        let bytes: Vec<u8> = kind.into_iter().chain(rest).collect();
        if let Ok(message) = decode(&bytes) {
            again(&message);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(bytes in message(), at: prop::sample::Index, value: u8) {
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = decode(&bytes) {
            again(&message);
        }
    }
}

#[test]
fn an_error_says_which_message_where_and_what_was_expected() {
    let insert = encode::insert(7, &[encode::text("a")]);
    for (bytes, says) in [
        (&b""[..], "malformed unknown message at byte 0: expected a message kind of protocol 1"),
        (b"S", "malformed unknown message at byte 0: expected a message kind of protocol 1"),
        (b"I\0\0", "malformed insert message at byte 1: expected the OID of a table"),
        (b"I\0\0\0\x07K", "malformed insert message at byte 5: expected a new row: 'N'"),
        (
            &insert[..insert.len() - 1],
            "malformed insert message at byte 9: expected the length and bytes of a column",
        ),
        (
            b"U\0\0\0\x07X",
            "malformed update message at byte 5: expected an old key or row: 'K' or 'O'",
        ),
        (
            b"I\0\0\0\x07N\xff\xff",
            "malformed insert message at byte 6: expected the number of columns",
        ),
    ] {
        assert_eq!(decode(bytes).unwrap_err().to_string(), says);
    }
    let mut trailing = encode::begin(1, 2, 3);
    trailing.push(0);
    assert_eq!(
        decode(&trailing).unwrap_err().to_string(),
        "malformed begin message at byte 21: expected the end of the message"
    );
}

#[test]
fn times_are_milliseconds_since_1970_rounded_down() {
    assert_eq!(PgTime(0).unix_ms(), 946_684_800_000);
    assert_eq!(PgTime(1_999).unix_ms(), 946_684_800_001);
    assert_eq!(PgTime(-1).unix_ms(), 946_684_799_999);
    assert_eq!(PgTime(i64::MAX).unix_ms(), i64::MAX / 1_000 + 946_684_800_000);
}
