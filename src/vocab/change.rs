//! What happened to a row or to its dataset, and who did it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ServiceName;

/// What an event in the log tells: a change of a row, spelled as Debezium's `op`, or something about
/// the dataset itself, in order with its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Op {
    /// A row was inserted (`c`).
    #[serde(rename = "c")]
    Create,
    /// A row was updated (`u`).
    #[serde(rename = "u")]
    Update,
    /// A row was deleted (`d`).
    #[serde(rename = "d")]
    Delete,
    /// The table was truncated (`t`).
    #[serde(rename = "t")]
    Truncate,
    /// A row read by a snapshot (`r`).
    #[serde(rename = "r")]
    Read,
    /// The dataset's columns or key are others from here on (`s`).
    #[serde(rename = "s")]
    Schema,
    /// The dataset's owner or mode is another from here on (`o`).
    #[serde(rename = "o")]
    Ownership,
    /// Changes before here are missing and will not come (`g`).
    #[serde(rename = "g")]
    Gap,
    /// The dataset's guard is off from here on, or stands again (`v`: vouched for).
    #[serde(rename = "v")]
    Guard,
}

impl Op {
    /// Every operation, in the order of their codes in the log.
    pub const ALL: [Self; 9] = [
        Self::Create,
        Self::Update,
        Self::Delete,
        Self::Truncate,
        Self::Read,
        Self::Schema,
        Self::Ownership,
        Self::Gap,
        Self::Guard,
    ];

    /// Every operation on rows, in the order of their codes in the log.
    pub const CHANGES: [Self; 5] =
        [Self::Create, Self::Update, Self::Delete, Self::Truncate, Self::Read];

    /// The one-letter code as a byte, as it stands in events and in the log.
    pub fn code(self) -> u8 {
        match self {
            Self::Create => b'c',
            Self::Update => b'u',
            Self::Delete => b'd',
            Self::Truncate => b't',
            Self::Read => b'r',
            Self::Schema => b's',
            Self::Ownership => b'o',
            Self::Gap => b'g',
            Self::Guard => b'v',
        }
    }

    /// What subscribers know such an event as: `change` for everything that happens to rows.
    pub fn event(self) -> &'static str {
        match self {
            Self::Create | Self::Update | Self::Delete | Self::Truncate | Self::Read => "change",
            Self::Schema => "schema",
            Self::Ownership => "ownership",
            Self::Gap => "gap",
            Self::Guard => "guard",
        }
    }

    /// The operation with this one-letter code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.code() == code)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(self.code()))
    }
}

/// Who wrote a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Writer {
    /// The service, if the role belongs to one.
    pub service: Option<ServiceName>,
    /// The database role that wrote, when a message of the guard named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether the guard vouches for this: false while it was off.
    pub verified: bool,
}
