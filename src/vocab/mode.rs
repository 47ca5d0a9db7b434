//! How strictly a dataset's ownership is held.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The mode of a dataset: what the guard does with a write by a service that is not the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Record the write and let it through.
    Observe,
    /// Record the write and reject it with SQLSTATE 42501.
    Enforce,
    /// The same, and others have not even the privilege: what they had is taken away, remembered,
    /// and given back when the mode is lowered. PostgreSQL answers before the guard then, so that
    /// most attempts fail without a record.
    Lockdown,
}

impl Mode {
    /// The lower-case word used in manifests, the database and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
            Self::Lockdown => "lockdown",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode \"{0}\": expected \"observe\", \"enforce\" or \"lockdown\"")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "observe" => Ok(Self::Observe),
            "enforce" => Ok(Self::Enforce),
            "lockdown" => Ok(Self::Lockdown),
            other => Err(ModeError(other.to_owned())),
        }
    }
}
