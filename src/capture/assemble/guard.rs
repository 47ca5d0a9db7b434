//! What is said of a dataset's guard: from a place of the stream on it does not stand, or stands again.
//!
//! Subscribers are told, in order with the changes whose writers nobody vouches for.

use serde::Serialize;

use super::{AssembleError, Assembler, GuardNotice, Output, Received, Sink, ignore};
use crate::capture::attribute::{self, GuardMessage, Stands};
use crate::capture::control::ControlEvent;
use crate::capture::relation::Database;
use crate::vocab::{Op, Position};

/// The details of a `guard` event; `schema/events/guard.json` describes them.
#[derive(Debug, Serialize)]
struct Details {
    state: &'static str,
    since: Option<Position>,
}

impl Assembler {
    /// Takes note of whether a dataset's guard stands, and tells subscribers.
    pub(super) fn vouch(
        &mut self,
        received: Received,
        content: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Output, AssembleError> {
        let message = attribute::parse::<GuardMessage>(content);
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
        let (stands, epoch) = (message.state == Stands::On, self.origin.epoch);
        let since = message.since.and_then(|lsn| lsn.parse().ok());
        if position > self.seen {
            let origin = &self.origin;
            let event = ControlEvent {
                op: Op::Guard,
                database: &Database { source: &origin.source, database: &origin.database },
                dataset: &dataset.name,
                position,
                committed_ms: self.transaction.committed.unix_ms(),
                now_ms: received.now_ms,
                details: &Details {
                    state: if stands { "on" } else { "off" },
                    since: since.map(|lsn| Position::new(epoch, lsn, 0)),
                },
            };
            sink.push(position, dataset.id, Op::Guard, |out| event.write(out));
            self.transaction.pushed += 1;
        }
        let commit = self.transaction.commit;
        Ok(Output::Guard(GuardNotice { dataset: dataset.id, epoch, commit, stands, since }))
    }
}
