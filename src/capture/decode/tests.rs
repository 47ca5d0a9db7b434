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
        Message::StreamStart { xid, first } => encode::stream_start(xid, first),
        Message::StreamStop => encode::stream_stop(),
        Message::StreamCommit { xid, lsn, end, committed } => {
            encode::stream_commit(xid, lsn.get(), end.get(), committed.0)
        }
        Message::StreamAbort { xid, subxid, aborted } => {
            encode::stream_abort(xid, subxid, aborted.map(|it| (it.lsn.get(), it.at.0)))
        }
        Message::BeginPrepare(it) => two_phase(b'b', it),
        Message::Prepare(it) => two_phase(b'P', it),
        Message::StreamPrepare(it) => two_phase(b'p', it),
        Message::CommitPrepared(it) => two_phase(b'K', it),
        Message::RollbackPrepared { prepare_end, end, prepared, rolled_back, xid, gid } => {
            let (ends, times) = ((prepare_end.get(), end.get()), (prepared.0, rolled_back.0));
            encode::rollback_prepared(ends, times, xid, gid)
        }
    }
}

fn two_phase(kind: u8, it: TwoPhase<'_>) -> Vec<u8> {
    encode::two_phase(kind, (it.lsn.get(), it.end.get(), it.at.0), it.xid, it.gid)
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

/// What stands only outside the parts of a transaction, and only in protocol 4.
fn control() -> impl Strategy<Value = Vec<u8>> {
    let kind = proptest::sample::select(&b"bPpK"[..]);
    prop_oneof![
        any::<(u32, bool)>().prop_map(|(xid, first)| encode::stream_start(xid, first)),
        Just(encode::stream_stop()),
        any::<(u32, u64, u64, i64)>()
            .prop_map(|(xid, lsn, end, time)| encode::stream_commit(xid, lsn, end, time)),
        any::<(u32, u32, (u64, i64))>().prop_map(|(xid, sub, place)| encode::stream_abort(
            xid,
            sub,
            Some(place)
        )),
        (kind, any::<(u64, u64, i64)>(), any::<u32>(), name())
            .prop_map(|(kind, places, xid, gid)| encode::two_phase(kind, places, xid, &gid)),
        (any::<(u64, u64)>(), any::<(i64, i64)>(), any::<u32>(), name())
            .prop_map(|(ends, times, xid, gid)| encode::rollback_prepared(ends, times, xid, &gid)),
    ]
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

const NEWEST: Dialect = Dialect::newest(180_000, true);

proptest! {
    #[test]
    fn what_is_written_reads_back(bytes in prop_oneof![message(), control()]) {
        let decoded = decode(&bytes, NEWEST).unwrap();
        prop_assert_eq!(again(&decoded), bytes);
    }

    #[test]
    fn inside_a_part_everything_carries_a_transaction(bytes in message(), xid: u32) {
        prop_assume!(!b"BC".contains(&bytes[0]));
        let part = encode::in_part(xid, bytes.clone());
        prop_assert_eq!(part_xid(&part), (bytes[0] != b'O').then_some(xid));
        prop_assert_eq!(again(&decode_part(&part).unwrap()), bytes);
        for length in 0..part.len() {
            prop_assert!(decode_part(&part[..length]).is_err());
        }
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_an_error(
        bytes in prop_oneof![message(), control()],
        extra: u8,
    ) {
        for length in 0..bytes.len() {
            let error = decode(&bytes[..length], NEWEST).unwrap_err();
            prop_assert!(error.offset <= length);
        }
        let mut longer = bytes;
        longer.push(extra);
        prop_assert!(decode(&longer, NEWEST).is_err());
    }

    #[test]
    fn protocol_1_knows_nothing_of_the_later_ones(bytes in control()) {
        prop_assert!(decode(&bytes, Dialect::WHOLE).is_err());
        prop_assert!(decode_part(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in proptest::option::of(proptest::sample::select(&b"BCORYIUDTMSEcAbPpKr"[..])),
        rest in vec(any::<u8>(), 0..200),
        server in 13..19_u32,
    ) {
        let bytes: Vec<u8> = kind.into_iter().chain(rest).collect();
        if let Ok(message) = decode(&bytes, Dialect::newest(server * 10_000, true)) {
            again(&message);
        }
        part_xid(&bytes);
        if let Ok(message) = decode_part(&bytes) {
            again(&message);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(
        bytes in prop_oneof![message(), control()],
        at: prop::sample::Index,
        value: u8,
    ) {
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = decode(&bytes, NEWEST) {
            again(&message);
        }
    }
}

#[test]
fn an_abort_is_read_as_it_was_asked_for() {
    let (on, parallel) = (Dialect::newest(150_000, true), NEWEST);
    let (short, long) =
        (encode::stream_abort(7, 8, None), encode::stream_abort(7, 8, Some((9, 1))));
    let aborted = None;
    assert_eq!(decode(&short, on).unwrap(), Message::StreamAbort { xid: 7, subxid: 8, aborted });
    assert!(decode(&long, on).unwrap_err().to_string().contains("the end of the message"));
    assert!(decode(&short, parallel).unwrap_err().to_string().contains("the LSN of the abort"));
    let aborted = Some(Aborted { lsn: Lsn::new(9), at: PgTime(1) });
    assert_eq!(
        decode(&long, parallel).unwrap(),
        Message::StreamAbort { xid: 7, subxid: 8, aborted }
    );
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
        assert_eq!(decode(bytes, Dialect::WHOLE).unwrap_err().to_string(), says);
    }
    let mut trailing = encode::begin(1, 2, 3);
    trailing.push(0);
    assert_eq!(
        decode(&trailing, Dialect::WHOLE).unwrap_err().to_string(),
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
