//! Why ownership could not be put into a source.

use serde::Serialize;

use crate::vocab::{DatasetName, Retry, SourceName};
use crate::{pg, registry};

/// Something that stands in the way, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// `source`, `service` or `dataset`.
    pub kind: &'static str,
    /// Which one.
    pub name: String,
    /// What is wrong, and the statement that mends it where there is one.
    pub message: String,
}

/// A failure to apply mutations. Nothing was changed, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sources do not allow it as it stands.
    #[error("{} in the way: {}", count(.0.len()), messages(.0))]
    Refused(Vec<Refusal>),
    /// The registry refused or failed.
    #[error("the registry did not take the change")]
    Registry(#[from] registry::Error),
    /// A source could not be reached, or failed. If it failed while committing, the registry holds
    /// the change already and the guard follows once the source is back.
    #[error("source \"{source_name}\" failed")]
    Source {
        /// Which.
        source_name: SourceName,
        /// How.
        #[source]
        cause: pg::Error,
    },
    /// The lock for a change of guard was not to be had in time: transactions stay open on a table.
    #[error(
        "the tables of source \"{source_name}\" stayed locked by open transactions; \
         end them or try again (see pg_stat_activity)"
    )]
    Busy {
        /// Which source.
        source_name: SourceName,
    },
    /// Another change of the source is under way.
    #[error("source \"{source_name}\" is being changed by another request; try again")]
    Occupied {
        /// Which source.
        source_name: SourceName,
    },
    /// No such dataset.
    #[error("no dataset is named \"{0}\"")]
    UnknownDataset(DatasetName),
    /// No such source.
    #[error("no source is named \"{0}\"")]
    UnknownSource(SourceName),
}

/// `one thing` or `n things`.
fn count(things: usize) -> String {
    if things == 1 { "one thing".to_owned() } else { format!("{things} things") }
}

/// All messages, for a log line.
fn messages(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals
        .iter()
        .map(|refusal| format!("{} {}: {}", refusal.kind, refusal.name, refusal.message))
        .collect();
    lines.join("; ")
}

impl Error {
    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(_) | Self::UnknownDataset(_) | Self::UnknownSource(_) => Retry::Never,
            Self::Registry(error) => error.retry(),
            Self::Source { cause, .. } => cause.retry(),
            Self::Busy { .. } | Self::Occupied { .. } => Retry::Later,
        }
    }
}
