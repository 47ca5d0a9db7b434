//! What is said of a dataset's guard: from a place of the stream on it does not stand, or stands again.
//!
//! Subscribers are told, in order with the changes whose writers nobody vouches for.

use serde::Serialize;

use super::{AssembleError, Assembler, GuardNotice, Output, Received, Sink};
use crate::capture::attribute::{GuardMessage, Stands};
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
        let addressed = self.addressed(received, content, |it: &GuardMessage| &it.dataset)?;
        let (message, dataset, position) = match addressed {
            Ok(addressed) => addressed,
            Err(output) => return Ok(output),
        };
        let (stands, epoch) = (message.state == Stands::On, self.origin.epoch);
        let since = message.since.and_then(|lsn| lsn.parse().ok());
        if position > self.seen {
            let details = Details {
                state: if stands { "on" } else { "off" },
                since: since.map(|lsn| Position::new(epoch, lsn, 0)),
            };
            self.tell_of_dataset(received, Op::Guard, (position, &dataset), &details, sink);
        }
        let commit = self.transaction.commit;
        Ok(Output::Guard(GuardNotice { dataset: dataset.id, epoch, commit, stands, since }))
    }
}
