//! Changes on their way to one subscriber, in the form its transport wants.

use bytes::Bytes;

use super::request::Ops;
use crate::log::{Entry, Slice};
use crate::vocab::{Op, Position};

/// Some changes for one subscriber, in order, at least one.
#[derive(Debug, Clone)]
pub struct Delivery {
    slice: Slice,
    ops: Ops,
    /// Whether the subscriber wants every change of the slice.
    whole: bool,
    last: Position,
}

impl Delivery {
    /// What of `slice` has one of the operations; `None` when nothing has.
    pub(super) fn new(slice: Slice, ops: Ops) -> Option<Self> {
        let (mut whole, mut last) = (true, None);
        for (entry, _) in slice.entries() {
            if ops.has(entry.op) {
                last = Some(entry.position);
            } else {
                whole = false;
            }
        }
        last.map(|last| Self { slice, ops, whole, last })
    }

    /// The changes: each with its JSON object, not copied.
    pub fn iter(&self) -> impl Iterator<Item = (Position, Op, Bytes)> {
        self.slice
            .iter()
            .filter(|(entry, _)| self.ops.has(entry.op))
            .map(|(entry, json)| (entry.position, entry.op, json))
    }

    /// The changes as newline-delimited JSON; not copied unless some in between are left out.
    pub fn ndjson(&self) -> Bytes {
        if self.whole
            && let Some(lines) = self.slice.lines()
        {
            return lines;
        }
        let mut out = Vec::with_capacity(self.entries().map(|(_, json)| json.len() + 1).sum());
        for (_, json) in self.entries() {
            out.extend_from_slice(json);
            out.push(b'\n');
        }
        out.into()
    }

    /// The changes as server-sent events, whose id is the position: `id: POSITION`,
    /// `event: change` (or another [`Op::event`]), `data: {…}`, an empty line.
    pub fn sse(&self) -> Bytes {
        const ID: &[u8] = b"id: ";
        const EVENT: &[u8] = b"\nevent: ";
        const DATA: &[u8] = b"\ndata: ";
        const END: &[u8] = b"\n\n";
        const AROUND: usize = ID.len() + POSITION_BYTES + EVENT.len() + DATA.len() + END.len();
        let size = |(entry, json): (&Entry, &[u8])| AROUND + entry.op.event().len() + json.len();
        let mut out = Vec::with_capacity(self.entries().map(size).sum());
        for (entry, json) in self.entries() {
            out.extend_from_slice(ID);
            out.extend_from_slice(&position_text(entry.position));
            out.extend_from_slice(EVENT);
            out.extend_from_slice(entry.op.event().as_bytes());
            out.extend_from_slice(DATA);
            out.extend_from_slice(json);
            out.extend_from_slice(END);
        }
        out.into()
    }

    /// Position of the last change: what a subscriber that has handled all resumes after.
    pub fn last(&self) -> Position {
        self.last
    }

    fn entries(&self) -> impl Iterator<Item = (&Entry, &[u8])> {
        self.slice.entries().filter(|(entry, _)| self.ops.has(entry.op))
    }
}

/// Length of a position's text.
const POSITION_BYTES: usize = 28;

/// What `Display` gives, without its machinery: this runs once per change and subscriber.
fn position_text(position: Position) -> [u8; POSITION_BYTES] {
    let mut text = [b'-'; POSITION_BYTES];
    hex(&mut text[0..2], position.epoch().get().into());
    hex(&mut text[3..19], position.lsn().get());
    hex(&mut text[20..28], position.ordinal().into());
    text
}

fn hex(digits: &mut [u8], value: u64) {
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEF"[(rest & 0xF) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vocab::{Epoch, Lsn};

    proptest! {
        #[test]
        fn positions_are_written_as_they_display(epoch: u8, lsn: u64, ordinal: u32) {
            let position = Position::new(Epoch::new(epoch), Lsn::new(lsn), ordinal);
            let text = position_text(position);
            prop_assert_eq!(std::str::from_utf8(&text).unwrap(), position.to_string());
        }
    }
}
