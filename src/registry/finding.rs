//! Findings: what was found in a source that is not as it should be, from when to when.
//!
//! A finding is a fact with its remedy, filed under one of the four questions that an audit answers.
//! Its identity while it lasts is (source, kind, object): looking again changes only when it was last
//! seen. What is no longer found is closed, never removed within
//! [`FINDINGS_KEPT_DAYS`](crate::vocab::limits::FINDINGS_KEPT_DAYS); what
//! comes back is a finding of its own.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Error, Page, Registry, store};
use crate::vocab::{DatasetName, SourceId, SourceName};

/// Which question of an audit a finding belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Where does data flow?
    DataFlow,
    /// Who owns it?
    Ownership,
    /// What happens when a part fails?
    FailureHandling,
    /// Is anything being dropped?
    Observability,
}

impl Question {
    /// Every question.
    pub const ALL: [Self; 4] =
        [Self::DataFlow, Self::Ownership, Self::FailureHandling, Self::Observability];

    /// The word used in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DataFlow => "data_flow",
            Self::Ownership => "ownership",
            Self::FailureHandling => "failure_handling",
            Self::Observability => "observability",
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// It weakens a promise, or will.
    Warning,
    /// A promise does not hold.
    Error,
}

impl Severity {
    /// Every severity, the lightest first.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// The word used in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A finding as somebody looking makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewFinding {
    /// The question it belongs to.
    pub question: Question,
    /// What kind of finding, for programs.
    pub kind: &'static str,
    /// How bad.
    pub severity: Severity,
    /// The dataset it is about; `None` when it is about the source.
    pub dataset: Option<DatasetName>,
    /// What exactly, as the source calls it.
    pub object: String,
    /// What was found.
    pub found: String,
    /// What should be.
    pub expected: String,
    /// The statement that mends it, where there is one.
    pub mend: Option<String>,
}

/// A recorded finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Ascending in the order of first sight.
    pub id: i64,
    /// The source it was found in.
    pub source: SourceName,
    /// The question it belongs to.
    pub question: Question,
    /// What kind of finding, for programs.
    pub kind: String,
    /// How bad.
    pub severity: Severity,
    /// The name of the dataset it is about, if it is about one.
    pub dataset: Option<String>,
    /// What exactly, as the source calls it.
    pub object: String,
    /// What was found, when it was last seen.
    pub found: String,
    /// What should be.
    pub expected: String,
    /// The statement that mends it, where there is one.
    pub mend: Option<String>,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen_at: DateTime<Utc>,
    /// When it was no longer there; `None` while it is.
    pub repaired_at: Option<DateTime<Utc>>,
}

/// What recording findings changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Seen for the first time, or again.
    pub opened: Vec<Finding>,
    /// No longer there.
    pub closed: Vec<Finding>,
}

/// Which findings to list; everything that is `None` matches.
#[derive(Debug, Clone, Default)]
pub struct FindingFilter {
    /// Found in this source.
    pub source: Option<SourceName>,
    /// About this dataset.
    pub dataset: Option<DatasetName>,
    /// Of these kinds.
    pub kinds: Option<Vec<String>>,
    /// Still there (true), or no longer (false).
    pub open: Option<bool>,
}

impl Registry {
    /// Records everything that was found in a source in one look: what is new is opened, what is
    /// still there was seen now, what is not in `found` any more is closed.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn findings_record(
        &self,
        source: SourceId,
        found: &[NewFinding],
    ) -> Result<Findings, Error> {
        self.within(async |connection| Ok(store::findings_record(connection, source, found).await?))
            .await
    }

    /// One page of findings, the latest first; `after` is the id the last page ended with.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn findings(
        &self,
        filter: &FindingFilter,
        page: Page<i64>,
    ) -> Result<Vec<Finding>, Error> {
        self.within(async |connection| Ok(store::findings(connection, filter, page).await?)).await
    }
}
