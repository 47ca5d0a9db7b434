//! What the guard says of a dataset itself, and what subscribers are told of it: common to schemas,
//! owners and guards.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AssembleError, Assembler, Output, Received, Sink, ignore};
use crate::capture::attribute;
use crate::capture::control::ControlEvent;
use crate::capture::relation::Database;
use crate::registry::Dataset;
use crate::vocab::{DatasetName, Op, Position};

/// A message, the dataset it names, and where it stands.
pub(super) type Addressed<M> = (M, Arc<Dataset>, Position);

impl Assembler {
    /// The dataset that a message of the guard names. `Err` asks for the registry's latest state:
    /// another instance may have registered it a moment ago.
    pub(super) fn named(
        &mut self,
        received: Received,
        name: &str,
    ) -> Result<Option<Arc<Dataset>>, Output> {
        let found = name.parse::<DatasetName>().ok();
        let found = found.and_then(|name| self.registry.dataset(&name).cloned());
        if found.is_none() && self.asked_at != Some(received.wal) {
            self.asked_at = Some(received.wal);
            return Err(Output::RegistryWanted);
        }
        Ok(found)
    }

    /// Reads a message about one dataset, which `name` finds in it. `Ok(Err(output))` is what to answer
    /// instead, when the registry's latest state is wanted or the message says nothing of use.
    pub(super) fn addressed<M: for<'de> Deserialize<'de>>(
        &mut self,
        received: Received,
        content: &[u8],
        name: impl Fn(&M) -> &str,
    ) -> Result<Result<Addressed<M>, Output>, AssembleError> {
        let message = attribute::parse::<M>(content);
        let dataset = message.as_ref().map(|message| self.named(received, name(message)));
        let dataset = match dataset.transpose() {
            Ok(dataset) => dataset.flatten(),
            Err(wanted) => return Ok(Err(wanted)),
        };
        let position = self.next_position()?;
        Ok(match (message, dataset) {
            (Some(message), Some(dataset)) => Ok((message, dataset, position)),
            (message, _) => {
                ignore(if message.is_some() { "unknown dataset" } else { "malformed" });
                Err(Output::Nothing)
            }
        })
    }

    /// Tells subscribers something of a dataset itself.
    pub(super) fn tell_of_dataset(
        &mut self,
        received: Received,
        op: Op,
        (position, dataset): (Position, &Dataset),
        details: &impl Serialize,
        sink: &mut impl Sink,
    ) {
        let event = ControlEvent {
            op,
            database: &Database { source: &self.origin.source, database: &self.origin.database },
            dataset: &dataset.name,
            position,
            committed_ms: self.transaction.committed.unix_ms(),
            now_ms: received.now_ms,
            details,
        };
        sink.push(position, dataset.id, op, |out| event.write(out));
        self.transaction.pushed += 1;
    }
}
