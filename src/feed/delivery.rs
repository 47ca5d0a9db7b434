//! Changes on their way to one subscriber, in the form its transport wants.

use bytes::Bytes;

use super::request::Ops;
use super::shape::Shape;
use crate::log::{Key, Slice};
use crate::vocab::{DatasetId, Op, Position};

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
    /// Of a snapshot, or delivered during one.
    Snapshot(Vec<Event>),
}

/// An event of a snapshot, or one of the log that was delivered during a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// The dataset it is of.
    pub(super) dataset: DatasetId,
    /// Up to where the log was read.
    pub(super) position: Position,
    /// What a subscriber that has handled it resumes after.
    pub(super) id: String,
    /// What subscribers know it as.
    pub(super) name: &'static str,
    /// What it tells; `None` when it tells of the snapshot itself.
    pub(super) op: Option<Op>,
    /// Its JSON object.
    pub(super) json: Bytes,
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

    /// These events; `None` when there are none.
    pub(super) fn of_snapshot(events: Vec<Event>) -> Option<Self> {
        let last = events.last()?.position;
        Some(Self { changes: Changes::Snapshot(events), last })
    }

    /// The events of a snapshot; none when it is not of one.
    pub(super) fn into_snapshot(self) -> Vec<Event> {
        match self.changes {
            Changes::Snapshot(events) => events,
            Changes::Shared { .. } | Changes::Own(_) => Vec::new(),
        }
    }

    /// The changes, those of a snapshot included: each with its JSON object, not copied.
    pub fn iter(&self) -> impl Iterator<Item = (Position, Op, Bytes)> {
        let (shared, own, snapshot) = match &self.changes {
            Changes::Shared { slice, ops, .. } => (Some((slice, *ops)), None, None),
            Changes::Own(own) => (None, Some(own), None),
            Changes::Snapshot(events) => (None, None, Some(events)),
        };
        let shared = shared.into_iter().flat_map(|(slice, ops)| {
            let wanted = slice.iter().filter(move |(entry, _)| ops.has(entry.op));
            wanted.map(|(entry, json)| (entry.position, entry.op, json))
        });
        let snapshot = snapshot.into_iter().flatten();
        let snapshot =
            snapshot.filter_map(|event| Some((event.position, event.op?, event.json.clone())));
        shared.chain(own.into_iter().flatten().cloned()).chain(snapshot)
    }

    /// The events: what to resume after when it has been handled, its place in the log, what it
    /// tells (`None`: how far a snapshot is), and its JSON object.
    pub fn events(&self) -> impl Iterator<Item = (String, Position, Option<Op>, Bytes)> {
        let (log, snapshot) = match &self.changes {
            Changes::Snapshot(events) => (None, Some(events)),
            Changes::Shared { .. } | Changes::Own(_) => (Some(self.iter()), None),
        };
        let log = log.into_iter().flatten();
        let log = log.map(|(position, op, json)| (position.to_string(), position, Some(op), json));
        let snapshot = snapshot.into_iter().flatten();
        log.chain(
            snapshot.map(|event| (event.id.clone(), event.position, event.op, event.json.clone())),
        )
    }

    /// How many changes there are.
    pub fn changes(&self) -> usize {
        match &self.changes {
            Changes::Shared { slice, ops, .. } => wanted(slice, *ops).count(),
            Changes::Own(own) => own.len(),
            Changes::Snapshot(events) => events.iter().filter(|event| event.op.is_some()).count(),
        }
    }

    /// The events as newline-delimited JSON; not copied unless some in between are left out.
    pub fn ndjson(&self) -> Bytes {
        match &self.changes {
            Changes::Shared { slice, ops, whole } => match slice.lines().filter(|_| *whole) {
                Some(lines) => lines,
                None => lines(&wanted(slice, *ops).map(|(.., json)| json)),
            },
            Changes::Own(own) => lines(&own.iter().map(|(.., json)| json.as_ref())),
            Changes::Snapshot(events) => lines(&events.iter().map(|event| event.json.as_ref())),
        }
    }

    /// The events as server-sent events, whose id is the position: `id: POSITION`,
    /// `event: change` (or another [`Op::event`], or `snapshot`), `data: {…}`, an empty line. Written
    /// once for all subscribers that want the same.
    pub fn sse(&self) -> Bytes {
        match &self.changes {
            Changes::Shared { slice, ops, whole } => {
                let write = || sse(&wanted(slice, *ops));
                let shared = if *whole { slice.in_form(write) } else { None };
                shared.unwrap_or_else(|| write().into())
            }
            Changes::Own(own) => sse(&borrowed(own)).into(),
            Changes::Snapshot(events) => {
                let size =
                    |event: &Event| AROUND + event.id.len() + event.name.len() + event.json.len();
                let mut out = Vec::with_capacity(events.iter().map(size).sum());
                for event in events {
                    write_sse(event.id.as_bytes(), event.name, &event.json, &mut out);
                }
                out.into()
            }
        }
    }

    /// What a subscriber that has handled all resumes after.
    pub fn last_id(&self) -> String {
        match &self.changes {
            Changes::Snapshot(events) => {
                events.last().map(|event| event.id.clone()).unwrap_or_default()
            }
            Changes::Shared { .. } | Changes::Own(_) => self.last.to_string(),
        }
    }

    /// Position of the last change; of a snapshot, up to where the log was read.
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

fn lines<'a>(events: &(impl Iterator<Item = &'a [u8]> + Clone)) -> Bytes {
    let mut out = Vec::with_capacity(events.clone().map(|json| json.len() + 1).sum());
    for json in events.clone() {
        out.extend_from_slice(json);
        out.push(b'\n');
    }
    out.into()
}

/// Bytes of a server-sent event besides its id, name and data.
const AROUND: usize = b"id: \nevent: \ndata: \n\n".len();

fn sse<'a>(changes: &(impl Iterator<Item = (Position, Op, &'a [u8])> + Clone)) -> Vec<u8> {
    let size = |(_, op, json): (Position, Op, &[u8])| {
        AROUND + POSITION_BYTES + op.event().len() + json.len()
    };
    let mut out = Vec::with_capacity(changes.clone().map(size).sum());
    for (position, op, json) in changes.clone() {
        write_sse(&position_text(position), op.event(), json, &mut out);
    }
    out
}

/// One server-sent event.
fn write_sse(id: &[u8], name: &str, data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id);
    out.extend_from_slice(b"\nevent: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
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
