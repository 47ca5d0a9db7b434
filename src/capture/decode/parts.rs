//! Messages about transactions that arrive in parts (protocol 2) or in two phases (protocol 3).

use super::reader::Reader;
use super::{DecodeError, Message, PgTime, lsn};
use crate::vocab::Lsn;

/// Where a transaction stands between its two phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoPhase<'a> {
    /// LSN of the record: of the prepare, or of the commit.
    pub lsn: Lsn,
    /// First LSN after it.
    pub end: Lsn,
    /// When.
    pub at: PgTime,
    /// Transaction id.
    pub xid: u32,
    /// The name that `PREPARE TRANSACTION` gave it.
    pub gid: &'a [u8],
}

/// Where and when a transaction was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted {
    /// LSN of the abort record.
    pub lsn: Lsn,
    /// When.
    pub at: PgTime,
}

const XID: &str = "a transaction id";

pub(super) fn start<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("stream start");
    let xid = reader.u32(XID)?;
    Ok(Message::StreamStart { xid, first: reader.u8("whether it is the first part")? == 1 })
}

pub(super) fn stop<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("stream stop");
    Ok(Message::StreamStop)
}

pub(super) fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("stream commit");
    let xid = reader.u32(XID)?;
    reader.u8("flags")?;
    Ok(Message::StreamCommit {
        xid,
        lsn: lsn(reader, "the LSN of the commit")?,
        end: lsn(reader, "the LSN of the end of the transaction")?,
        committed: PgTime(reader.i64("the time of the commit")?),
    })
}

/// With or without where it happened: that is agreed on when the stream is started.
pub(super) fn abort<'a>(
    reader: &mut Reader<'a>,
    says_where: bool,
) -> Result<Message<'a>, DecodeError> {
    reader.name("stream abort");
    let (xid, subxid) = (reader.u32(XID)?, reader.u32("the id of a subtransaction")?);
    let aborted = if says_where {
        let lsn = lsn(reader, "the LSN of the abort")?;
        Some(Aborted { lsn, at: PgTime(reader.i64("the time of the abort")?) })
    } else {
        None
    };
    Ok(Message::StreamAbort { xid, subxid, aborted })
}

pub(super) fn begin_prepare<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("begin prepare");
    two_phase(reader).map(Message::BeginPrepare)
}

pub(super) fn prepare<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("prepare");
    reader.u8("flags")?;
    two_phase(reader).map(Message::Prepare)
}

pub(super) fn stream_prepare<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("stream prepare");
    reader.u8("flags")?;
    two_phase(reader).map(Message::StreamPrepare)
}

pub(super) fn commit_prepared<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("commit prepared");
    reader.u8("flags")?;
    two_phase(reader).map(Message::CommitPrepared)
}

pub(super) fn rollback_prepared<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.name("rollback prepared");
    reader.u8("flags")?;
    Ok(Message::RollbackPrepared {
        prepare_end: lsn(reader, "the LSN of the end of the prepare")?,
        end: lsn(reader, "the LSN of the end of the rollback")?,
        prepared: PgTime(reader.i64("the time of the prepare")?),
        rolled_back: PgTime(reader.i64("the time of the rollback")?),
        xid: reader.u32(XID)?,
        gid: reader.string("the transaction's name, ended by NUL")?,
    })
}

fn two_phase<'a>(reader: &mut Reader<'a>) -> Result<TwoPhase<'a>, DecodeError> {
    Ok(TwoPhase {
        lsn: lsn(reader, "the LSN of the record")?,
        end: lsn(reader, "the LSN of its end")?,
        at: PgTime(reader.i64("its time")?),
        xid: reader.u32(XID)?,
        gid: reader.string("the transaction's name, ended by NUL")?,
    })
}
