//! Ownership that passes from one service to another.
//!
//! ```text
//!               accept, before expires_at
//!   proposed ──────────────────────────────► completed: the next ownership period
//!      │ │ │
//!      │ │ └─ cancel (by the owner) ───────► cancelled
//!      │ └─── decline (by the receiver) ───► declined
//!      └───── its time is over ────────────► expired
//! ```
//!
//! The owner proposes, the receiver accepts. What accepting does in the source is the guard's work;
//! here a proposal and its end are kept, and the next period begins in the same transaction.
//!
//! Where the new owner begins in the stream of changes is another matter than when the registry
//! took note: a [`Switch`] says it, as capture has read it. The last switch at or before a change
//! tells who its owner was, also when the stream is read again later.

use chrono::{DateTime, Utc};

use crate::vocab::{DatasetId, DatasetName, Mode, Position, ServiceName};

/// How a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferState {
    /// Waits for the receiver.
    Proposed,
    /// The dataset has passed.
    Completed,
    /// The receiver does not want it.
    Declined,
    /// The owner has thought better of it.
    Cancelled,
    /// Nobody decided in time.
    Expired,
}

impl TransferState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Proposed, Self::Completed, Self::Declined, Self::Cancelled, Self::Expired];

    /// The lower-case word used in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Completed => "completed",
            Self::Declined => "declined",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// A dataset on its way to another owner, or what became of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Ascending in the order of proposal.
    pub id: i64,
    /// Which dataset.
    pub dataset: DatasetName,
    /// The owner who gives it.
    pub from: ServiceName,
    /// The service that takes it.
    pub to: ServiceName,
    /// Why.
    pub reason: String,
    /// Who proposed it.
    pub proposed_by: String,
    /// When.
    pub proposed_at: DateTime<Utc>,
    /// Until then it may be accepted.
    pub expires_at: DateTime<Utc>,
    /// As stored; see [`Transfer::state`].
    pub(super) stored: TransferState,
    /// Who accepted, declined or cancelled it.
    pub decided_by: Option<String>,
    /// When.
    pub decided_at: Option<DateTime<Utc>>,
}

impl Transfer {
    /// How it stands at `now`.
    pub fn state(&self, now: DateTime<Utc>) -> TransferState {
        if self.stored == TransferState::Proposed && self.expires_at <= now {
            return TransferState::Expired;
        }
        self.stored
    }
}

/// A transfer to be proposed.
#[derive(Debug, Clone)]
pub struct NewTransfer {
    /// Which dataset.
    pub dataset: DatasetName,
    /// The owner it was proposed for: who owns it when it is stored must be the same.
    pub from: ServiceName,
    /// The service that shall take it.
    pub to: ServiceName,
    /// Why.
    pub reason: String,
    /// Who proposes it.
    pub proposed_by: String,
    /// Until when it may be accepted.
    pub expires_at: DateTime<Utc>,
}

/// How a proposal ends without the dataset passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The receiver does not want it.
    Declined,
    /// The owner has thought better of it.
    Cancelled,
}

impl Ending {
    /// The state it leads to.
    pub(super) fn state(self) -> TransferState {
        match self {
            Self::Declined => TransferState::Declined,
            Self::Cancelled => TransferState::Cancelled,
        }
    }
}

/// Which transfers to list; everything that is `None` matches.
#[derive(Debug, Clone, Default)]
pub struct TransferFilter {
    /// Of this dataset.
    pub dataset: Option<DatasetName>,
    /// From or to this service.
    pub service: Option<ServiceName>,
    /// That stand so.
    pub state: Option<TransferState>,
}

/// Why the present owner of a dataset is its owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tenure {
    /// Why the period began.
    pub reason: Option<String>,
    /// Who had it begin.
    pub actor: Option<String>,
    /// The transfer that began it.
    pub transfer: Option<i64>,
}

/// Who owns a dataset from a place in the stream on, and how that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The owner.
    pub owner: ServiceName,
    /// What the guard does with anyone else's write.
    pub mode: Mode,
}

/// A place in the stream where a dataset's owner or mode begins, or was said again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Which dataset.
    pub dataset: DatasetId,
    /// Where: the changes after it are the new owner's.
    pub position: Position,
    /// What was before; `None` when the dataset was not governed.
    pub before: Option<Standing>,
    /// What is from here on.
    pub after: Standing,
    /// The transfer that it completes.
    pub transfer: Option<i64>,
}

/// The standing of a dataset for who goes on reading after `seen`, from all its `switches` in the
/// order of their positions.
///
/// Every switch that readers are told of is in the log, and the stream never goes on past what the
/// log has: so those beyond `seen` come again, and until the first of them what it found holds. One
/// that nobody is told of may not come again, but it changes nothing either: it repeats what was, or
/// it is where the dataset began to be governed, with no change before it.
pub(super) fn standing_after(switches: &[Switch], seen: Position) -> Option<Standing> {
    let beyond = switches.iter().find(|switch| switch.position > seen);
    match beyond {
        Some(Switch { before: Some(before), .. }) => Some(before.clone()),
        Some(Switch { before: None, after, .. }) => Some(after.clone()),
        None => switches.last().map(|switch| switch.after.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Epoch, Lsn};

    fn at(lsn: u64) -> Position {
        Position::new(Epoch::FIRST, Lsn::new(lsn), 1)
    }

    fn standing(owner: &str) -> Standing {
        Standing { owner: owner.parse().unwrap(), mode: Mode::Enforce }
    }

    fn switch(lsn: u64, before: Option<&str>, after: &str) -> Switch {
        Switch {
            dataset: DatasetId(1),
            position: at(lsn),
            before: before.map(standing),
            after: standing(after),
            transfer: None,
        }
    }

    #[test]
    fn who_owns_a_place_is_told_by_the_switches_around_it() {
        let switches = [
            switch(10, None, "a"),
            switch(20, Some("a"), "b"),
            switch(25, Some("b"), "b"),
            switch(30, Some("b"), "c"),
        ];
        for (seen, owner) in
            [(5, "a"), (10, "a"), (15, "a"), (20, "b"), (24, "b"), (26, "b"), (30, "c"), (90, "c")]
        {
            assert_eq!(standing_after(&switches, at(seen)), Some(standing(owner)), "{seen}");
        }
        assert_eq!(standing_after(&[], at(5)), None);
    }

    #[test]
    fn a_proposal_past_its_time_has_expired() {
        let now = Utc::now();
        let mut transfer = Transfer {
            id: 1,
            dataset: "shop.public.orders".parse().unwrap(),
            from: "a".parse().unwrap(),
            to: "b".parse().unwrap(),
            reason: "why".to_owned(),
            proposed_by: "admin".to_owned(),
            proposed_at: now,
            expires_at: now,
            stored: TransferState::Proposed,
            decided_by: None,
            decided_at: None,
        };
        assert_eq!(transfer.state(now), TransferState::Expired);
        transfer.stored = TransferState::Completed;
        assert_eq!(transfer.state(now), TransferState::Completed);
    }
}
