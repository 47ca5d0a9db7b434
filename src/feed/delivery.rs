//! Changes on their way to one subscriber, in the form its transport wants.

use bytes::Bytes;

use super::request::Ops;
use super::shape::Shape;
use crate::log::{Key, Slice};
use crate::vocab::{Op, Position};

/// Some changes for one subscriber, in order, at least one.
#[derive(Debug, Clone)]
pub struct Delivery {
    changes: Changes,
    last: Position,
}

#[derive(Debug, Clone)]
enum Changes {
    /// Those of the slice that have one of the operations, untouched.
    Shared {
        slice: Slice,
        ops: Ops,
        /// Whether the subscriber wants every change of the slice.
        whole: bool,
    },
    /// Written anew for this subscriber.
    Own(Vec<(Position, Op, Bytes)>),
}

impl Delivery {
    /// What of `slice` has one of the operations, concerns the row and is wanted; `None` when nothing
    /// is.
    pub(super) fn new(slice: Slice, ops: Ops, shape: &Shape, key: Option<&Key>) -> Option<Self> {
        if !shape.is_plain() || key.is_some() {
            let concerned = |json: &[u8]| key.is_none_or(|key| key.concerns(json));
            let wanted = slice.iter().filter(|(entry, json)| ops.has(entry.op) && concerned(json));
            let own: Vec<_> = wanted
                .filter_map(|(entry, json)| {
                    let json = match shape.is_plain() {
                        true => json,
                        false => shape.apply(entry.position, entry.op, &json)?,
                    };
                    Some((entry.position, entry.op, json))
                })
                .collect();
            let last = own.last().map(|(position, ..)| *position)?;
            return Some(Self { changes: Changes::Own(own), last });
        }
        let (mut whole, mut last) = (true, None);
        for (entry, _) in slice.entries() {
            if ops.has(entry.op) {
                last = Some(entry.position);
            } else {
                whole = false;
            }
        }
        last.map(|last| Self { changes: Changes::Shared { slice, ops, whole }, last })
    }

    /// The changes: each with its JSON object, not copied.
    pub fn iter(&self) -> impl Iterator<Item = (Position, Op, Bytes)> {
        let (shared, own) = match &self.changes {
            Changes::Shared { slice, ops, .. } => (Some((slice, *ops)), None),
            Changes::Own(own) => (None, Some(own)),
        };
        let shared = shared.into_iter().flat_map(|(slice, ops)| {
            let wanted = slice.iter().filter(move |(entry, _)| ops.has(entry.op));
            wanted.map(|(entry, json)| (entry.position, entry.op, json))
        });
        shared.chain(own.into_iter().flatten().cloned())
    }

    /// The changes as newline-delimited JSON; not copied unless some in between are left out.
    pub fn ndjson(&self) -> Bytes {
        match &self.changes {
            Changes::Shared { slice, ops, whole } => match slice.lines().filter(|_| *whole) {
                Some(lines) => lines,
                None => lines(&wanted(slice, *ops)),
            },
            Changes::Own(own) => lines(&borrowed(own)),
        }
    }

    /// The changes as server-sent events, whose id is the position: `id: POSITION`,
    /// `event: change` (or another [`Op::event`]), `data: {…}`, an empty line.
    pub fn sse(&self) -> Bytes {
        match &self.changes {
            Changes::Shared { slice, ops, .. } => events(&wanted(slice, *ops)),
            Changes::Own(own) => events(&borrowed(own)),
        }
    }

    /// Position of the last change: what a subscriber that has handled all resumes after.
    pub fn last(&self) -> Position {
        self.last
    }
}

fn wanted(slice: &Slice, ops: Ops) -> impl Iterator<Item = (Position, Op, &[u8])> + Clone {
    let wanted = slice.entries().filter(move |(entry, _)| ops.has(entry.op));
    wanted.map(|(entry, json)| (entry.position, entry.op, json))
}

fn borrowed(own: &[(Position, Op, Bytes)]) -> impl Iterator<Item = (Position, Op, &[u8])> + Clone {
    own.iter().map(|(position, op, json)| (*position, *op, json.as_ref()))
}

fn lines<'a>(changes: &(impl Iterator<Item = (Position, Op, &'a [u8])> + Clone)) -> Bytes {
    let mut out = Vec::with_capacity(changes.clone().map(|(.., json)| json.len() + 1).sum());
    for (.., json) in changes.clone() {
        out.extend_from_slice(json);
        out.push(b'\n');
    }
    out.into()
}

fn events<'a>(changes: &(impl Iterator<Item = (Position, Op, &'a [u8])> + Clone)) -> Bytes {
    const ID: &[u8] = b"id: ";
    const EVENT: &[u8] = b"\nevent: ";
    const DATA: &[u8] = b"\ndata: ";
    const END: &[u8] = b"\n\n";
    const AROUND: usize = ID.len() + POSITION_BYTES + EVENT.len() + DATA.len() + END.len();
    let size = |(_, op, json): (Position, Op, &[u8])| AROUND + op.event().len() + json.len();
    let mut out = Vec::with_capacity(changes.clone().map(size).sum());
    for (position, op, json) in changes.clone() {
        out.extend_from_slice(ID);
        out.extend_from_slice(&position_text(position));
        out.extend_from_slice(EVENT);
        out.extend_from_slice(op.event().as_bytes());
        out.extend_from_slice(DATA);
        out.extend_from_slice(json);
        out.extend_from_slice(END);
    }
    out.into()
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
