//! Breaking glass: for a time, one service may write one dataset of another.
//!
//! A grant has a reason and an end at most a day ahead. The guard in the source checks both the
//! service and the end by the source's own clock, so that a grant is over when its time is over,
//! also while this program is down. Every use of it is recorded as a violation.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::vocab::{DatasetName, ServiceName};

/// A grant, as it was given and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakGlass {
    /// Made up by who grants it.
    pub id: Uuid,
    /// What may be written.
    pub dataset: DatasetName,
    /// By whom.
    pub service: ServiceName,
    /// Why.
    pub reason: String,
    /// Who granted it.
    pub granted_by: String,
    /// When.
    pub granted_at: DateTime<Utc>,
    /// From when on it is over.
    pub expires_at: DateTime<Utc>,
    /// When it was taken back before its end.
    pub revoked_at: Option<DateTime<Utc>>,
    /// By whom.
    pub revoked_by: Option<String>,
}

impl BreakGlass {
    /// Whether it holds at `now`.
    pub fn is_active(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_none() && now < self.expires_at
    }
}
