//! What a snapshot has to read in a change of the log, and what it makes of it.
//!
//! Outside of snapshots nobody looks into an event; here its transaction and keys decide. The bytes
//! stay what they are: an event made into another is cut and joined from its own parts.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::vocab::Op;

/// The parts of a change that matter here, borrowed from its event.
#[derive(Debug, Deserialize)]
pub(super) struct Change<'a> {
    #[serde(borrow)]
    pub(super) before: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) after: Option<&'a RawValue>,
    source: Source,
    #[serde(borrow)]
    unchanged: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Source {
    #[serde(rename = "txId")]
    transaction: Option<u64>,
}

impl<'a> Change<'a> {
    /// Reads an event; `None` when it is not one of a change.
    pub(super) fn read(event: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(event).ok()
    }

    /// Its transaction, in 32 bits.
    pub(super) fn transaction(&self) -> Option<u32> {
        self.source.transaction.and_then(|id| u32::try_from(id & 0xFFFF_FFFF).ok())
    }

    /// Whether the new row is all there.
    pub(super) fn is_whole(&self) -> bool {
        self.unchanged.is_none()
    }

    /// The update as a delete of its former row.
    pub(super) fn as_delete(&self, event: &[u8]) -> Option<Vec<u8>> {
        let (before, after) = (self.before?, self.after?);
        let (rest, end) = self.rest(event, after)?;
        let head: &[u8] = b"{\"op\":\"d\",\"before\":";
        Some([head, before.get().as_bytes(), b",\"after\":null", rest, end].concat())
    }

    /// The update as an insert of its new row.
    pub(super) fn as_create(&self, event: &[u8]) -> Option<Vec<u8>> {
        let after = self.after?;
        let (rest, end) = self.rest(event, after)?;
        let head: &[u8] = b"{\"op\":\"c\",\"before\":null,\"after\":";
        Some([head, after.get().as_bytes(), rest, end].concat())
    }

    /// What follows the new row, and the end, without the list of its missing columns.
    fn rest<'e>(&self, event: &'e [u8], after: &RawValue) -> Option<(&'e [u8], &'e [u8])> {
        let from = offset(event, after)? + after.get().len();
        let Some(list) = self.unchanged else { return Some((event.get(from..)?, b"")) };
        let at = offset(event, list)?;
        let upto = at.checked_sub(b",\"unchanged\":".len())?;
        Some((event.get(from..upto)?, event.get(at + list.get().len()..)?))
    }
}

/// Where in the event a part of it begins.
fn offset(event: &[u8], part: &RawValue) -> Option<usize> {
    (part.get().as_ptr() as usize).checked_sub(event.as_ptr() as usize)
}

/// The event with another position in the place of its own, which is the last member of this name
/// that an event has: what comes after it are names and a trace.
pub(in crate::feed) fn reposition(event: &[u8], own: &str, position: &str) -> Vec<u8> {
    let member = format!("\"position\":\"{own}\"");
    let Some(at) = memchr::memmem::rfind(event, member.as_bytes()) else { return event.to_vec() };
    let at = at + "\"position\":\"".len();
    let mut out = Vec::with_capacity(event.len() + position.len());
    out.extend_from_slice(&event[..at]);
    out.extend_from_slice(position.as_bytes());
    out.extend_from_slice(&event[at + own.len()..]);
    out
}

/// Whether an event of this kind tells of the dataset itself rather than of its rows.
pub(super) fn is_control(op: Op) -> bool {
    match op {
        Op::Schema | Op::Ownership | Op::Gap | Op::Guard => true,
        Op::Create | Op::Update | Op::Delete | Op::Truncate | Op::Read => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OWN: &str = "01-00000000016CA548-00000003";

    fn event(unchanged: bool) -> Vec<u8> {
        let list = if unchanged { ",\"unchanged\":[\"note\"]" } else { "" };
        format!(
            "{{\"op\":\"u\",\"before\":{{\"id\":1}},\"after\":{{\"id\":2,\"position\":\"{OWN}\"}},\
             \"source\":{{\"lsn\":5,\"txId\":741}},\"dataset\":\"s.p.t\",\"position\":\"{OWN}\",\
             \"writer\":{{\"service\":null}}{list}}}"
        )
        .into_bytes()
    }

    #[test]
    fn an_update_becomes_a_delete_or_an_insert_from_its_own_bytes() {
        for unchanged in [false, true] {
            let event = event(unchanged);
            let change = Change::read(&event).unwrap();
            assert_eq!((change.transaction(), change.is_whole()), (Some(741), !unchanged));
            let deleted = change.as_delete(&event).unwrap();
            let deleted: Value = serde_json::from_slice(&deleted).unwrap();
            assert_eq!(deleted["op"], "d");
            assert_eq!((&deleted["before"], &deleted["after"]), (&json!({"id": 1}), &Value::Null));
            assert_eq!((&deleted["position"], deleted.get("unchanged")), (&json!(OWN), None));
        }
        let event = event(false);
        let created = Change::read(&event).unwrap().as_create(&event).unwrap();
        let created: Value = serde_json::from_slice(&created).unwrap();
        assert_eq!((&created["op"], &created["before"]), (&json!("c"), &Value::Null));
        assert_eq!((&created["after"]["id"], &created["source"]["txId"]), (&json!(2), &json!(741)));
    }

    #[test]
    fn only_the_envelopes_own_position_is_replaced() {
        let text = reposition(&event(true), OWN, "01-X~Y");
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&value["position"], &value["after"]["position"]),
            (&json!("01-X~Y"), &json!(OWN))
        );
    }

    #[test]
    fn what_is_no_change_is_none() {
        assert!(Change::read(b"{\"event\":\"gap\",\"position\":\"x\"}").is_none());
        assert!(Change::read(b"[]").is_none());
    }
}
