//! The other direction, for tests: messages as PostgreSQL writes them.

/// A column to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    /// SQL NULL.
    Null,
    /// An unchanged value stored out of line.
    Unchanged,
    /// A value as text.
    Text(Vec<u8>),
    /// A value in binary format.
    Binary(Vec<u8>),
}

/// A cell with this text.
pub(crate) fn text(value: &str) -> Cell {
    Cell::Text(value.as_bytes().to_vec())
}

/// A message being put together.
#[derive(Debug, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn string(self, text: &[u8]) -> Self {
        self.put(text).put(&[0])
    }

    fn sized(self, bytes: &[u8]) -> Self {
        self.put(&i32::try_from(bytes.len()).unwrap().to_be_bytes()).put(bytes)
    }

    fn count(self, count: usize) -> Self {
        self.put(&i16::try_from(count).unwrap().to_be_bytes())
    }

    fn tuple(self, kind: u8, cells: &[Cell]) -> Self {
        cells.iter().fold(self.put(&[kind]).count(cells.len()), |to, cell| match cell {
            Cell::Null => to.put(b"n"),
            Cell::Unchanged => to.put(b"u"),
            Cell::Text(value) => to.put(b"t").sized(value),
            Cell::Binary(value) => to.put(b"b").sized(value),
        })
    }
}

fn message(kind: u8) -> Bytes {
    Bytes(vec![kind])
}

pub(crate) fn begin(final_lsn: u64, committed: i64, xid: u32) -> Vec<u8> {
    let fixed = message(b'B').put(&final_lsn.to_be_bytes()).put(&committed.to_be_bytes());
    fixed.put(&xid.to_be_bytes()).0
}

pub(crate) fn commit(lsn: u64, end: u64, committed: i64) -> Vec<u8> {
    let fixed = message(b'C').put(&[0]).put(&lsn.to_be_bytes()).put(&end.to_be_bytes());
    fixed.put(&committed.to_be_bytes()).0
}

pub(crate) fn origin(lsn: u64, name: &[u8]) -> Vec<u8> {
    message(b'O').put(&lsn.to_be_bytes()).string(name).0
}

/// A table; columns are (key, name, type OID, type modifier).
pub(crate) fn relation(
    oid: u32,
    (schema, name): (&[u8], &[u8]),
    identity: u8,
    columns: &[(bool, Vec<u8>, u32, i32)],
) -> Vec<u8> {
    let head = message(b'R').put(&oid.to_be_bytes()).string(schema).string(name);
    let head = head.put(&[identity]).count(columns.len());
    let whole = columns.iter().fold(head, |to, (key, name, type_oid, type_modifier)| {
        let to = to.put(&[u8::from(*key)]).string(name);
        to.put(&type_oid.to_be_bytes()).put(&type_modifier.to_be_bytes())
    });
    whole.0
}

pub(crate) fn type_name(oid: u32, schema: &[u8], name: &[u8]) -> Vec<u8> {
    message(b'Y').put(&oid.to_be_bytes()).string(schema).string(name).0
}

pub(crate) fn insert(relation: u32, new: &[Cell]) -> Vec<u8> {
    message(b'I').put(&relation.to_be_bytes()).tuple(b'N', new).0
}

/// `old` is (`K` or `O`, cells).
pub(crate) fn update(relation: u32, old: Option<(u8, &[Cell])>, new: &[Cell]) -> Vec<u8> {
    let head = message(b'U').put(&relation.to_be_bytes());
    let head = match old {
        Some((kind, cells)) => head.tuple(kind, cells),
        None => head,
    };
    head.tuple(b'N', new).0
}

pub(crate) fn delete(relation: u32, (kind, cells): (u8, &[Cell])) -> Vec<u8> {
    message(b'D').put(&relation.to_be_bytes()).tuple(kind, cells).0
}

pub(crate) fn truncate(relations: &[u32], options: u8) -> Vec<u8> {
    let count = u32::try_from(relations.len()).unwrap();
    let head = message(b'T').put(&count.to_be_bytes()).put(&[options]);
    relations.iter().fold(head, |to, oid| to.put(&oid.to_be_bytes())).0
}

pub(crate) fn logical(transactional: bool, lsn: u64, prefix: &[u8], content: &[u8]) -> Vec<u8> {
    let head = message(b'M').put(&[u8::from(transactional)]).put(&lsn.to_be_bytes());
    head.string(prefix).sized(content).0
}

/// The message as it stands inside part of a transaction.
pub(crate) fn in_part(xid: u32, mut message: Vec<u8>) -> Vec<u8> {
    if message[0] != b'O' {
        message.splice(1..1, xid.to_be_bytes());
    }
    message
}

pub(crate) fn stream_start(xid: u32, first: bool) -> Vec<u8> {
    message(b'S').put(&xid.to_be_bytes()).put(&[u8::from(first)]).0
}

pub(crate) fn stream_stop() -> Vec<u8> {
    message(b'E').0
}

pub(crate) fn stream_commit(xid: u32, lsn: u64, end: u64, committed: i64) -> Vec<u8> {
    let fixed = message(b'c').put(&xid.to_be_bytes()).put(&[0]).put(&lsn.to_be_bytes());
    fixed.put(&end.to_be_bytes()).put(&committed.to_be_bytes()).0
}

pub(crate) fn stream_abort(xid: u32, subxid: u32, aborted: Option<(u64, i64)>) -> Vec<u8> {
    let fixed = message(b'A').put(&xid.to_be_bytes()).put(&subxid.to_be_bytes());
    match aborted {
        Some((lsn, at)) => fixed.put(&lsn.to_be_bytes()).put(&at.to_be_bytes()).0,
        None => fixed.0,
    }
}

/// `kind` is one of `b`, `P`, `p`, `K`.
pub(crate) fn two_phase(
    kind: u8,
    (lsn, end, at): (u64, u64, i64),
    xid: u32,
    gid: &[u8],
) -> Vec<u8> {
    let flags: &[u8] = if kind == b'b' { &[] } else { &[0] };
    let fixed = message(kind).put(flags).put(&lsn.to_be_bytes()).put(&end.to_be_bytes());
    fixed.put(&at.to_be_bytes()).put(&xid.to_be_bytes()).string(gid).0
}

pub(crate) fn rollback_prepared(
    (prepare_end, end): (u64, u64),
    (prepared, rolled_back): (i64, i64),
    xid: u32,
    gid: &[u8],
) -> Vec<u8> {
    let fixed = message(b'r').put(&[0]).put(&prepare_end.to_be_bytes()).put(&end.to_be_bytes());
    let fixed = fixed.put(&prepared.to_be_bytes()).put(&rolled_back.to_be_bytes());
    fixed.put(&xid.to_be_bytes()).string(gid).0
}
