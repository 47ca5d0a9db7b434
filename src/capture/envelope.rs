//! A change as subscribers see it: Debezium's envelope with writer and position beside it.
//!
//! An event is put together from parts that are written out as early as they are known, so that a
//! change costs copies, its values and three numbers:
//!
//! ```text
//! {"op":"u","before":…,"after":…                                       the change
//! ,"source":{"connector":…,"name":…,"db":…,"schema":…,"table":…,       the relation
//! "lsn":…,"txId":…,"ts_ms":…,"snapshot":"false"}
//! ,"transaction":{"id":"741:23897416","total_order":                   the transaction
//! 3},"ts_ms":1780000000004                                             the change
//! ,"dataset":"shop.public.orders","schema_version":1,"position":"      the relation
//! 01-00000000016CA548-                                                 the transaction
//! 00000003                                                             the change
//! ","writer":{…},"traceparent":"…"                                     the relation or a message
//! ,"unchanged":["note"]}                                               the change
//! ```
//!
//! `schema/events/change.json` describes the whole; [`CHANGE_SCHEMA`] is its text.

use super::decode::{Column, Old, PgTime, Tuple};
use super::json::{write_column, write_str};
use super::relation::{Database, PreparedColumn, PreparedRelation, Table};
use crate::vocab::{DatasetName, Epoch, Lsn, Op, TraceParent, Writer};

/// The JSON Schema of an event.
pub const CHANGE_SCHEMA: &str = include_str!("../../schema/events/change.json");

/// The JSON Schema of an event that a table is another from here on.
pub const SCHEMA_SCHEMA: &str = include_str!("../../schema/events/schema.json");

/// The JSON Schema of an event about a dataset's owner.
pub const OWNERSHIP_SCHEMA: &str = include_str!("../../schema/events/ownership.json");

/// The JSON Schema of an event that a dataset's guard is off, or stands again.
pub const GUARD_SCHEMA: &str = include_str!("../../schema/events/guard.json");

/// The part of an event that its table settles, up to the commit's LSN.
pub(super) fn source_part(database: &Database<'_>, table: &Table) -> Vec<u8> {
    let mut out = b",\"source\":{\"connector\":\"cadastre\"".to_vec();
    for (name, value) in [
        (&b",\"name\":"[..], database.source.as_str()),
        (b",\"db\":", database.database),
        (b",\"schema\":", &table.name.schema),
        (b",\"table\":", &table.name.table),
    ] {
        out.extend_from_slice(name);
        write_str(value, &mut out);
    }
    out.extend_from_slice(b",\"lsn\":");
    out
}

/// The part of an event that its dataset and the version of its table settle, up to the position.
pub(super) fn dataset_part(name: &DatasetName, version: Option<u32>) -> Vec<u8> {
    let mut out = b",\"dataset\":".to_vec();
    write_str(name.as_str(), &mut out);
    if let Some(version) = version {
        out.extend_from_slice(b",\"schema_version\":");
        write_integer(version, &mut out);
    }
    out.extend_from_slice(b",\"position\":\"");
    out
}

/// Who wrote, and in which trace.
pub(super) fn writer_part(writer: &Writer, traceparent: Option<&TraceParent>) -> Vec<u8> {
    let mut out = b"\",\"writer\":".to_vec();
    serde_json::to_writer(&mut out, writer).expect("names and flags can be written to memory");
    if let Some(traceparent) = traceparent {
        out.extend_from_slice(b",\"traceparent\":");
        write_str(traceparent.as_str(), &mut out);
    }
    out
}

/// The parts of its events that a transaction settles. The buffers are kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct TransactionParts {
    /// From the commit's LSN to before the ordinal.
    source: Vec<u8>,
    /// The position but for the ordinal.
    position: Vec<u8>,
}

impl TransactionParts {
    /// Writes them for the transaction that now begins.
    pub(super) fn begin(&mut self, epoch: Epoch, lsn: Lsn, xid: u32, committed: PgTime) {
        let out = &mut self.source;
        out.clear();
        write_integer(lsn.get(), out);
        out.extend_from_slice(b",\"txId\":");
        write_integer(xid, out);
        out.extend_from_slice(b",\"ts_ms\":");
        write_integer(committed.unix_ms(), out);
        out.extend_from_slice(b",\"snapshot\":\"false\"},\"transaction\":{\"id\":\"");
        write_integer(xid, out);
        out.push(b':');
        write_integer(lsn.get(), out);
        out.extend_from_slice(b"\",\"total_order\":");

        let out = &mut self.position;
        out.clear();
        write_hex(u64::from(epoch.get()), 2, out);
        out.push(b'-');
        write_hex(lsn.get(), 16, out);
        out.push(b'-');
    }
}

/// The rows of a change as the WAL carried them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The row before, as far as the replica identity gives it.
    pub(super) old: Option<Old<'a>>,
    /// The row after.
    pub(super) new: Option<Tuple<'a>>,
}

/// Everything an event is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event<'a> {
    /// The table it happened to.
    pub(super) relation: &'a PreparedRelation,
    /// The transaction it is part of.
    pub(super) transaction: &'a TransactionParts,
    /// Its place there.
    pub(super) ordinal: u32,
    /// What happened.
    pub(super) op: Op,
    /// To which row.
    pub(super) rows: Rows<'a>,
    /// When it was read, in milliseconds since 1970.
    pub(super) now_ms: i64,
    /// What [`writer_part`] wrote.
    pub(super) writer: &'a [u8],
}

impl Event<'_> {
    /// Appends the event as one JSON object without a line break.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let Self { relation, transaction, ordinal, op, rows, now_ms, writer } = *self;
        out.extend_from_slice(b"{\"op\":\"");
        out.push(op.code());
        out.extend_from_slice(b"\",\"before\":");
        match rows.old {
            Some(old) => write_before(&relation.columns, old, out),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"after\":");
        let is_whole = write_after(&relation.columns, rows, out);

        out.extend_from_slice(&relation.source_part);
        out.extend_from_slice(&transaction.source);
        write_integer(ordinal, out);
        out.extend_from_slice(b"},\"ts_ms\":");
        write_integer(now_ms, out);
        out.extend_from_slice(&relation.dataset_part);
        out.extend_from_slice(&transaction.position);
        write_hex(u64::from(ordinal), 8, out);
        out.extend_from_slice(writer);
        if !is_whole {
            write_unchanged(&relation.columns, rows, out);
        }
        out.push(b'}');
    }
}

/// What follows the position in the event of a row that was read: nobody can say who wrote it.
pub(super) const READ_TAIL: &[u8] = b"\",\"writer\":{\"service\":null,\"verified\":false}}";

/// Appends the event of a row that was read, up to its position. `lsn` is where the source's WAL
/// ended then; the times are that of the snapshot and the present.
pub(super) fn write_read(
    relation: &PreparedRelation,
    row: Tuple<'_>,
    lsn: Lsn,
    times_ms: (i64, i64),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"op\":\"r\",\"before\":null,\"after\":");
    write_after(&relation.columns, Rows { old: None, new: Some(row) }, out);
    write_of_snapshot(relation, lsn, times_ms, out);
}

/// Appends, up to its position, the event that voids the rows read so far: a truncate that nobody
/// made, since all that is left of the table is read anew.
pub(super) fn write_restart(relation: &PreparedRelation, now_ms: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"op\":\"t\",\"before\":null,\"after\":null");
    write_of_snapshot(relation, Lsn::ZERO, (now_ms, now_ms), out);
}

/// From after the rows to before the position, of an event that no transaction made.
fn write_of_snapshot(
    relation: &PreparedRelation,
    lsn: Lsn,
    (at_ms, now_ms): (i64, i64),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&relation.source_part);
    write_integer(lsn.get(), out);
    out.extend_from_slice(b",\"txId\":null,\"ts_ms\":");
    write_integer(at_ms, out);
    out.extend_from_slice(b",\"snapshot\":\"true\"},\"transaction\":null,\"ts_ms\":");
    write_integer(now_ms, out);
    out.extend_from_slice(&relation.dataset_part);
}

/// The key columns or all columns, as the replica identity has it.
fn write_before(columns: &[PreparedColumn], old: Old<'_>, out: &mut Vec<u8>) {
    let (tuple, all) = match old {
        Old::Key(tuple) => (tuple, false),
        Old::Row(tuple) => (tuple, true),
    };
    let mut object = Object::open(out);
    for (column, value) in columns.iter().zip(tuple.columns()) {
        if (all || column.key) && value != Column::Unchanged {
            object.member(column, value);
        }
    }
    object.close();
}

/// The new row without the columns that the WAL did not carry; whether it is all there.
fn write_after(columns: &[PreparedColumn], rows: Rows<'_>, out: &mut Vec<u8>) -> bool {
    let Some(new) = rows.new else {
        out.extend_from_slice(b"null");
        return true;
    };
    let mut is_whole = true;
    let mut object = Object::open(out);
    for (column, value) in after(columns, new, rows.old) {
        if value == Column::Unchanged {
            is_whole = false;
        } else {
            object.member(column, value);
        }
    }
    object.close();
    is_whole
}

/// The names of the columns that [`write_after`] left out.
fn write_unchanged(columns: &[PreparedColumn], rows: Rows<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"unchanged\":");
    let mut separator = b'[';
    for (column, value) in rows.new.into_iter().flat_map(|new| after(columns, new, rows.old)) {
        if value == Column::Unchanged {
            out.push(separator);
            out.extend_from_slice(column.label.strip_suffix(b":").unwrap_or(&column.label));
            separator = b',';
        }
    }
    out.push(b']');
}

/// The columns of the new row. One that the WAL did not repeat there is taken from the old row.
fn after<'a>(
    columns: &'a [PreparedColumn],
    new: Tuple<'a>,
    old: Option<Old<'a>>,
) -> impl Iterator<Item = (&'a PreparedColumn, Column<'a>)> {
    let (mut old, all) = match old {
        Some(Old::Row(tuple)) => (Some(tuple.columns()), true),
        Some(Old::Key(tuple)) => (Some(tuple.columns()), false),
        None => (None, false),
    };
    columns.iter().zip(new.columns()).map(move |(column, value)| {
        let before = old.as_mut().and_then(Iterator::next);
        match (value, before) {
            (Column::Unchanged, Some(before)) if all || column.key => (column, before),
            _ => (column, value),
        }
    })
}

/// A JSON object being written.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    separator: &'static [u8],
}

impl<'a> Object<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, separator: b"" }
    }

    fn member(&mut self, column: &PreparedColumn, value: Column<'_>) {
        self.out.extend_from_slice(self.separator);
        self.separator = b",";
        self.out.extend_from_slice(&column.label);
        write_column(&column.kind, value, self.out);
    }

    fn close(self) {
        self.out.push(b'}');
    }
}

fn write_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Upper-case hexadecimal digits, filled up with zeros, as in a position.
fn write_hex(value: u64, digits: u32, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    for digit in (0..digits).rev() {
        out.push(HEX[(value >> (4 * digit) & 0xf) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vocab::Position;

    proptest! {
        #[test]
        fn positions_are_written_as_they_are_displayed(epoch: u8, lsn: u64, ordinal: u32) {
            let mut parts = TransactionParts::default();
            parts.begin(Epoch::new(epoch), Lsn::new(lsn), 1, PgTime(0));
            write_hex(u64::from(ordinal), 8, &mut parts.position);
            let position = Position::new(Epoch::new(epoch), Lsn::new(lsn), ordinal);
            prop_assert_eq!(String::from_utf8(parts.position).unwrap(), position.to_string());
        }
    }

    #[test]
    fn a_writer_is_named_as_far_as_it_is_known() {
        let part = |service: Option<&str>, role: Option<&str>, traceparent| {
            let service = service.map(|name| name.parse().unwrap());
            let writer = Writer { service, role: role.map(str::to_owned), verified: true };
            String::from_utf8(writer_part(&writer, traceparent)).unwrap()
        };
        let trace = TraceParent::from_ids(0xaf, 0xb7);
        assert_eq!(
            part(Some("orders"), None, None),
            "\",\"writer\":{\"service\":\"orders\",\"verified\":true}"
        );
        assert_eq!(
            part(None, Some("x\"y"), Some(&trace)),
            "\",\"writer\":{\"service\":null,\"role\":\"x\\\"y\",\"verified\":true},\
             \"traceparent\":\"00-000000000000000000000000000000af-00000000000000b7-01\""
        );
    }
}
