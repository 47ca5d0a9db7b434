//! The dead-letter queue: changes that could not be delivered, each with every attempt.
//!
//! A parked change stays until somebody redrives or drops it, or it expires; then its row says what
//! became of it and who said so. No row is ever deleted.

pub(in crate::feed) mod store;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::held::Attempt;
use super::mark::Mark;
use crate::vocab::Op;

/// What became of a parked change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    /// It waits for somebody to decide.
    Parked,
    /// It is being delivered again.
    Redriving,
    /// It has been delivered after all.
    Delivered,
    /// It was given up on purpose.
    Dropped,
    /// It was given up because nobody decided in time.
    Expired,
}

impl LetterState {
    const ALL: [Self; 5] =
        [Self::Parked, Self::Redriving, Self::Delivered, Self::Dropped, Self::Expired];

    /// The lower-case word used in the database and outside.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Redriving => "redriving",
            Self::Delivered => "delivered",
            Self::Dropped => "dropped",
            Self::Expired => "expired",
        }
    }

    /// The state with this word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A change that could not be delivered.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Ascending in the order of parking.
    pub id: i64,
    /// The subscription it was for.
    pub subscription: String,
    /// Where the change stands.
    pub position: Mark,
    /// The dataset it belongs to.
    pub dataset: String,
    /// What happened to the row.
    pub op: Op,
    /// The event as it was logged.
    pub event: Bytes,
    /// The event that is sent instead, if somebody has mended it.
    pub edited: Option<Bytes>,
    /// Every attempt, oldest first.
    pub attempts: Vec<Attempt>,
    /// When it was parked, last.
    pub parked_at: DateTime<Utc>,
    /// What became of it.
    pub state: LetterState,
    /// When that was decided.
    pub settled_at: Option<DateTime<Utc>>,
    /// Who decided.
    pub settled_by: Option<String>,
    /// Why.
    pub reason: Option<String>,
}
