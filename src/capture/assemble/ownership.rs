//! What the guard says of owners: whose a dataset is from a place of the stream on.
//!
//! The guard puts a `cadastre.ownership` message into the transaction that changes it. That
//! transaction waits for the writers before it and holds up those after it, so that the message
//! stands exactly between what the old owner and what the new one have written. Subscribers are told
//! when the owner or the mode is another than before; that a guard was mended changes neither.

use serde::Serialize;

use super::{AssembleError, Assembler, Output, Received, Sink, ignore};
use crate::capture::attribute::{self, OwnershipMessage};
use crate::capture::control::ControlEvent;
use crate::capture::relation::Database;
use crate::registry::Switch;
use crate::vocab::Op;

/// The details of an `ownership` event; `schema/events/ownership.json` describes them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    from: Option<&'a str>,
    to: &'a str,
    mode_before: Option<&'static str>,
    mode: &'static str,
    transfer: Option<String>,
    reason: Option<&'a str>,
    actor: Option<&'a str>,
}

impl Assembler {
    /// Takes note of a dataset's owner and mode, and tells subscribers when they are others.
    pub(super) fn switch(
        &mut self,
        received: Received,
        content: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Output, AssembleError> {
        let message = attribute::parse::<OwnershipMessage>(content);
        let name = message.as_ref().map(|message| message.dataset.as_str());
        let dataset = match name.map(|name| self.named(received, name)).transpose() {
            Ok(dataset) => dataset.flatten(),
            Err(wanted) => return Ok(wanted),
        };
        let position = self.next_position()?;
        let (message, dataset) = match (message, dataset) {
            (Some(message), Some(dataset)) => (message, dataset),
            (message, _) => {
                ignore(if message.is_some() { "unknown dataset" } else { "malformed" });
                return Ok(Output::Nothing);
            }
        };
        if position <= self.seen {
            return Ok(Output::Nothing);
        }
        let (before, after, transfer) = (message.before(), message.after(), message.transfer);
        let switch = Switch { dataset: dataset.id, position, before, after, transfer };
        if let Some(before) = switch.before.as_ref().filter(|before| **before != switch.after) {
            let details = Details {
                from: Some(before.owner.as_str()),
                to: switch.after.owner.as_str(),
                mode_before: Some(before.mode.as_str()),
                mode: switch.after.mode.as_str(),
                transfer: transfer.map(|id| id.to_string()),
                reason: message.reason.as_deref(),
                actor: message.actor.as_deref(),
            };
            let origin = &self.origin;
            let event = ControlEvent {
                op: Op::Ownership,
                database: &Database { source: &origin.source, database: &origin.database },
                dataset: &dataset.name,
                position,
                committed_ms: self.transaction.committed.unix_ms(),
                now_ms: received.now_ms,
                details: &details,
            };
            sink.push(position, dataset.id, Op::Ownership, |out| event.write(out));
            self.transaction.pushed += 1;
        }
        self.standings.insert(dataset.id, switch.after.clone());
        self.forget_resolutions();
        Ok(Output::Switched(Box::new(switch)))
    }
}
