//! What the guard says of owners: whose a dataset is from a place of the stream on.
//!
//! The guard puts a `cadastre.ownership` message into the transaction that changes it. That
//! transaction waits for the writers before it and holds up those after it, so that the message
//! stands exactly between what the old owner and what the new one have written. Subscribers are told
//! when the owner or the mode is another than before; that a guard was mended changes neither.

use serde::Serialize;

use super::{AssembleError, Assembler, Output, Received, Sink};
use crate::capture::attribute::OwnershipMessage;
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
        let addressed = self.addressed(received, content, |it: &OwnershipMessage| &it.dataset)?;
        let (message, dataset, position) = match addressed {
            Ok(addressed) => addressed,
            Err(output) => return Ok(output),
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
            self.tell_of_dataset(received, Op::Ownership, (position, &dataset), &details, sink);
        }
        self.standings.insert(dataset.id, switch.after.clone());
        self.forget_resolutions();
        Ok(Output::Switched(Box::new(switch)))
    }
}
