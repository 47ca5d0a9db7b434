//! Bytes of pgoutput, protocol versions 1 to 4, to messages.
//!
//! The format is that of
//! <https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html>. A [`Message`]
//! borrows from the bytes it was decoded from and owns nothing, so decoding costs no allocation;
//! columns are decoded as they are walked ([`Tuple::columns`]), definitions of columns likewise.
//!
//! Invariants: no input panics; a message is checked to its last byte before it is returned, so
//! walking it cannot fail; work and memory are bounded by the length of the input, never by a
//! count found in it.
//!
//! Not here: what a message means in its transaction (`assemble`), what becomes of a transaction
//! that arrives in parts (`spill`), what a value means (`json`).

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)
)]

mod dialect;
mod error;
mod parts;
mod reader;
mod tuple;

pub use dialect::Dialect;
pub use error::DecodeError;
pub use parts::{Aborted, TwoPhase};
pub use tuple::{Column, Columns, Tuple};

use reader::Reader;

use crate::vocab::Lsn;

/// Microseconds since 2000-01-01 00:00 UTC, PostgreSQL's own epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PgTime(pub i64);

impl PgTime {
    /// Milliseconds since 1970-01-01 00:00 UTC, rounded down.
    pub fn unix_ms(self) -> i64 {
        const EPOCH_MS: i64 = 946_684_800_000;
        self.0.div_euclid(1_000).saturating_add(EPOCH_MS)
    }
}

/// One message of pgoutput.
///
/// Names are bytes: a database in `SQL_ASCII` sends them as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; all of it follows, up to its commit.
    Begin {
        /// LSN of the commit record.
        final_lsn: Lsn,
        /// When it committed.
        committed: PgTime,
        /// Transaction id.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// LSN of the commit record.
        lsn: Lsn,
        /// First LSN after the commit record: what may be confirmed.
        end: Lsn,
        /// When it committed.
        committed: PgTime,
    },
    /// The transaction was replicated from elsewhere.
    Origin {
        /// LSN of the commit there.
        lsn: Lsn,
        /// Name of the origin.
        name: &'a [u8],
    },
    /// Describes a table, before its first change in this session and after its definition changed.
    Relation(Relation<'a>),
    /// Names a type that is not built in.
    Type {
        /// OID of the type.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a [u8],
        /// Its name.
        name: &'a [u8],
    },
    /// A row was inserted.
    Insert {
        /// OID of the table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// OID of the table.
        relation: u32,
        /// What the replica identity gives of the row before; often nothing.
        old: Option<Old<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// OID of the table.
        relation: u32,
        /// What the replica identity gives of the row.
        old: Old<'a>,
    },
    /// Tables were truncated by one statement.
    Truncate(Truncate<'a>),
    /// What `pg_logical_emit_message` was called with.
    Logical {
        /// Part of the transaction, or sent at once whatever becomes of it.
        transactional: bool,
        /// LSN of the message.
        lsn: Lsn,
        /// Tells who it is for.
        prefix: &'a [u8],
        /// Whatever the caller wrote.
        content: &'a [u8],
    },
    /// Part of a transaction that has not committed follows, up to [`Message::StreamStop`].
    StreamStart {
        /// Id of the top-level transaction.
        xid: u32,
        /// It is the first part.
        first: bool,
    },
    /// The part ends.
    StreamStop,
    /// A transaction that arrived in parts has committed.
    StreamCommit {
        /// Id of the top-level transaction.
        xid: u32,
        /// LSN of the commit record.
        lsn: Lsn,
        /// First LSN after the commit record: what may be confirmed.
        end: Lsn,
        /// When it committed.
        committed: PgTime,
    },
    /// A transaction that arrived in parts, or one of its subtransactions, was rolled back.
    StreamAbort {
        /// Id of the top-level transaction.
        xid: u32,
        /// What was rolled back: `xid` for all of it.
        subxid: u32,
        /// Where and when, if that was asked for.
        aborted: Option<Aborted>,
    },
    /// A prepared transaction begins; all of it follows, up to [`Message::Prepare`].
    BeginPrepare(TwoPhase<'a>),
    /// The prepared transaction ends; it has not committed.
    Prepare(TwoPhase<'a>),
    /// A transaction that arrived in parts was prepared.
    StreamPrepare(TwoPhase<'a>),
    /// A prepared transaction has committed.
    CommitPrepared(TwoPhase<'a>),
    /// A prepared transaction was rolled back.
    RollbackPrepared {
        /// First LSN after the prepare record.
        prepare_end: Lsn,
        /// First LSN after the rollback record.
        end: Lsn,
        /// When it was prepared.
        prepared: PgTime,
        /// When it was rolled back.
        rolled_back: PgTime,
        /// Transaction id.
        xid: u32,
        /// The name that `PREPARE TRANSACTION` gave it.
        gid: &'a [u8],
    },
}

/// What the WAL holds of a row before it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    /// Columns of the replica identity; all others read NULL. Sent for an update only when one of
    /// them changed.
    Key(Tuple<'a>),
    /// The whole row, under REPLICA IDENTITY FULL.
    Row(Tuple<'a>),
}

/// What identifies a row of a table in its updates and deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// A chosen unique index.
    Index,
}

/// The definition of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// OID of the table.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// What its old rows hold.
    pub identity: ReplicaIdentity,
    /// Exactly the well-formed definitions of its columns.
    columns: &'a [u8],
}

/// The definition of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a [u8],
    /// OID of its type.
    pub type_oid: u32,
    /// `atttypmod`: a length or precision, -1 for none.
    pub type_modifier: i32,
}

impl<'a> Relation<'a> {
    /// The columns in table order.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn<'a>> + use<'a> {
        let mut reader = Reader::new(self.columns);
        std::iter::from_fn(move || relation_column(&mut reader).ok())
    }
}

/// Tables truncated by one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
    /// Exactly the OIDs of the tables.
    relations: &'a [u8],
}

impl<'a> Truncate<'a> {
    /// OIDs of the tables.
    pub fn relations(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (oids, _none_left) = self.relations.as_chunks::<4>();
        oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// Decodes one message, which must take up all of `bytes`, outside the parts of a transaction.
///
/// # Errors
/// When the bytes are cut short, hold something else, or go on after the message.
pub fn decode(bytes: &[u8], dialect: Dialect) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (two, three) = (dialect.streams(), dialect.prepares());
    let abort = if dialect.says_where_aborted() { abort_with_place } else { abort_without_place };
    let decode = match bytes.first() {
        Some(b'B') => begin,
        Some(b'C') => commit,
        Some(b'S') if two => parts::start,
        Some(b'E') if two => parts::stop,
        Some(b'c') if two => parts::commit,
        Some(b'A') if two => abort,
        Some(b'b') if three => parts::begin_prepare,
        Some(b'P') if three => parts::prepare,
        Some(b'p') if two && three => parts::stream_prepare,
        Some(b'K') if three => parts::commit_prepared,
        Some(b'r') if three => parts::rollback_prepared,
        Some(kind) => match content(*kind) {
            Some(decode) => decode,
            None => return reader.expected(dialect.expected_kind()),
        },
        None => return reader.expected(dialect.expected_kind()),
    };
    reader.u8("a message kind")?;
    let message = decode(&mut reader)?;
    reader.end()?;
    Ok(message)
}

/// Decodes one message between [`Message::StreamStart`] and [`Message::StreamStop`]: what says
/// something about rows carries the id of its subtransaction there, which is passed over.
///
/// # Errors
/// As [`decode`].
pub fn decode_part(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let Some((kind, decode)) = bytes.first().and_then(|kind| Some((*kind, content(*kind)?))) else {
        return reader.expected("a message kind inside part of a transaction");
    };
    reader.u8("a message kind")?;
    if kind != b'O' {
        reader.u32("the id of a subtransaction")?;
    }
    let message = decode(&mut reader)?;
    reader.end()?;
    Ok(message)
}

/// The id of the subtransaction that a message inside a part belongs to, without decoding the rest;
/// `None` for one that carries none. Of a logical message it is that of the top-level transaction.
pub fn part_xid(bytes: &[u8]) -> Option<u32> {
    match bytes.split_first_chunk::<5>()? {
        ([b'O', ..], _) => None,
        ([_, xid @ ..], _) => Some(u32::from_be_bytes(*xid)),
    }
}

/// What decodes the rest of a message.
type Decode = for<'a> fn(&mut Reader<'a>) -> Result<Message<'a>, DecodeError>;

/// How to decode a message that may also stand inside part of a transaction.
fn content(kind: u8) -> Option<Decode> {
    Some(match kind {
        b'O' => origin,
        b'R' => relation,
        b'Y' => type_name,
        b'I' => insert,
        b'U' => update,
        b'D' => delete,
        b'T' => truncate,
        b'M' => logical,
        _ => return None,
    })
}

fn abort_with_place<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    parts::abort(reader, true)
}

fn abort_without_place<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    parts::abort(reader, false)
}

fn lsn(reader: &mut Reader<'_>, expected: &'static str) -> Result<Lsn, DecodeError> {
    reader.u64(expected).map(Lsn::new)
}

fn begin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("begin");
    Ok(Message::Begin {
        final_lsn: lsn(reader, "the LSN of the commit")?,
        committed: PgTime(reader.i64("the time of the commit")?),
        xid: reader.u32("a transaction id")?,
    })
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("commit");
    reader.u8("flags")?;
    Ok(Message::Commit {
        lsn: lsn(reader, "the LSN of the commit")?,
        end: lsn(reader, "the LSN of the end of the transaction")?,
        committed: PgTime(reader.i64("the time of the commit")?),
    })
}

fn origin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("origin");
    Ok(Message::Origin {
        lsn: lsn(reader, "the LSN of the commit at the origin")?,
        name: reader.string("the name of the origin, ended by NUL")?,
    })
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("relation");
    let oid = reader.u32("the OID of the table")?;
    let schema = reader.string("the schema, ended by NUL")?;
    let name = reader.string("the name of the table, ended by NUL")?;
    let expected = "a replica identity: 'd', 'n', 'f' or 'i'";
    let identity = match reader.rest().first() {
        Some(b'd') => ReplicaIdentity::Default,
        Some(b'n') => ReplicaIdentity::Nothing,
        Some(b'f') => ReplicaIdentity::Full,
        Some(b'i') => ReplicaIdentity::Index,
        _ => return reader.expected(expected),
    };
    reader.u8(expected)?;
    let count = reader.count("the number of columns")?;
    let from = reader.rest();
    for _ in 0..count {
        relation_column(reader)?;
    }
    let length = from.len().saturating_sub(reader.rest().len());
    let columns = from.get(..length).unwrap_or_default();
    Ok(Message::Relation(Relation { oid, schema, name, identity, columns }))
}

fn relation_column<'a>(reader: &mut Reader<'a>) -> Result<RelationColumn<'a>, DecodeError> {
    Ok(RelationColumn {
        key: reader.u8("the flags of a column")? & 1 != 0,
        name: reader.string("the name of a column, ended by NUL")?,
        type_oid: reader.u32("the OID of a type")?,
        type_modifier: reader.i32("a type modifier")?,
    })
}

fn type_name<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("type");
    Ok(Message::Type {
        oid: reader.u32("the OID of the type")?,
        schema: reader.string("the schema, ended by NUL")?,
        name: reader.string("the name of the type, ended by NUL")?,
    })
}

const RELATION: &str = "the OID of a table";

fn insert<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("insert");
    Ok(Message::Insert { relation: reader.u32(RELATION)?, new: new(reader)? })
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("update");
    let relation = reader.u32(RELATION)?;
    let old = if reader.rest().first() == Some(&b'N') { None } else { Some(old(reader)?) };
    Ok(Message::Update { relation, old, new: new(reader)? })
}

fn delete<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("delete");
    Ok(Message::Delete { relation: reader.u32(RELATION)?, old: old(reader)? })
}

fn new<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    let expected = "a new row: 'N'";
    if reader.rest().first() != Some(&b'N') {
        return reader.expected(expected);
    }
    reader.u8(expected)?;
    Tuple::read(reader)
}

fn old<'a>(reader: &mut Reader<'a>) -> Result<Old<'a>, DecodeError> {
    let expected = "an old key or row: 'K' or 'O'";
    let wrap = match reader.rest().first() {
        Some(b'K') => Old::Key,
        Some(b'O') => Old::Row,
        _ => return reader.expected(expected),
    };
    reader.u8(expected)?;
    Tuple::read(reader).map(wrap)
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("truncate");
    let count = reader.u32("the number of tables")?;
    let options = reader.u8("options")?;
    let from = reader.rest();
    for _ in 0..count {
        reader.u32(RELATION)?;
    }
    let length = from.len().saturating_sub(reader.rest().len());
    Ok(Message::Truncate(Truncate {
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
        relations: from.get(..length).unwrap_or_default(),
    }))
}

fn logical<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("logical");
    Ok(Message::Logical {
        transactional: reader.u8("flags")? & 1 != 0,
        lsn: lsn(reader, "the LSN of the message")?,
        prefix: reader.string("the prefix, ended by NUL")?,
        content: reader.bytes("the length and bytes of the content")?,
    })
}

#[cfg(test)]
pub(crate) mod encode;
#[cfg(test)]
mod tests;
