//! What a subscriber asks for.

use std::str::FromStr;

use super::{Error, Shape};
use crate::log::Start;
use crate::registry::Snapshot;
use crate::vocab::{DatasetId, DatasetName, Op, Position, SourceId, limits};

/// Where a feed starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// With the next change.
    Now,
    /// With the oldest change the log holds.
    Earliest,
    /// With the change after this position, usually the last one the subscriber has handled.
    Position(Position),
}

impl FromStr for After {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        const EXPECTED: &str =
            "expected \"now\", \"earliest\" or a position such as 01-00000000016CA548-00000003";
        match text {
            "now" => Ok(Self::Now),
            "earliest" => Ok(Self::Earliest),
            "snapshot" => Err(Error::Invalid(format!(
                "after: this server does not offer snapshots; {EXPECTED}"
            ))),
            other => other.parse().map(Self::Position).map_err(|_| {
                let cut: String = other.chars().take(64).collect();
                Error::Invalid(format!("after: \"{cut}\" is not a place to start; {EXPECTED}"))
            }),
        }
    }
}

impl From<After> for Start {
    fn from(after: After) -> Self {
        match after {
            After::Now => Self::Now,
            After::Earliest => Self::Earliest,
            After::Position(position) => Self::After(position),
        }
    }
}

/// What a subscriber asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which datasets' changes: at least one, all of one source.
    pub datasets: Vec<DatasetName>,
    /// From where on.
    pub after: After,
    /// Only these operations; `None` is all.
    pub ops: Option<Vec<Op>>,
    /// Which changes of these, and in which form.
    pub shape: Shape,
}

impl Request {
    /// The datasets and their one source as the registry numbers them.
    pub(super) fn resolve(&self, snapshot: &Snapshot) -> Result<(SourceId, Vec<DatasetId>), Error> {
        let most = limits::FEED_DATASETS_MAX;
        if self.datasets.is_empty() || self.datasets.len() > most {
            let count = self.datasets.len();
            return Err(Error::Invalid(format!("datasets: expected 1 to {most}, got {count}")));
        }
        let mut source = None;
        let mut ids = Vec::with_capacity(self.datasets.len());
        for name in &self.datasets {
            let dataset =
                snapshot.dataset(name).ok_or_else(|| Error::UnknownDataset(name.clone()))?;
            let (first, first_name) = *source.get_or_insert((dataset.source_id, name));
            if first != dataset.source_id {
                return Err(Error::Invalid(format!(
                    "datasets: {first_name} and {name} are in different sources, which have no \
                     common order; open one feed per source"
                )));
            }
            ids.push(dataset.id);
        }
        let (source, _) =
            source.ok_or_else(|| Error::Invalid("datasets: expected one".to_owned()))?;
        Ok((source, ids))
    }
}

/// A set of operations. What concerns the dataset itself (a gap, a new owner, a new schema) is always
/// in it: nobody may miss that by choosing among changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ops(u8);

impl Ops {
    const ALWAYS: u8 = Self::bit(Op::Schema) | Self::bit(Op::Ownership) | Self::bit(Op::Gap);

    /// The operations asked for; asking for none is a mistake.
    pub(super) fn new(ops: Option<&[Op]>) -> Result<Self, Error> {
        match ops {
            None => Ok(Self(u8::MAX)),
            Some([]) => {
                Err(Error::Invalid("ops: expected at least one of c, u, d, t, r".to_owned()))
            }
            Some(ops) => Ok(Self(ops.iter().fold(Self::ALWAYS, |set, op| set | Self::bit(*op)))),
        }
    }

    pub(super) fn has(self, op: Op) -> bool {
        self.0 & Self::bit(op) != 0
    }

    const fn bit(op: Op) -> u8 {
        match op {
            Op::Create => 1,
            Op::Update => 1 << 1,
            Op::Delete => 1 << 2,
            Op::Truncate => 1 << 3,
            Op::Read => 1 << 4,
            Op::Schema => 1 << 5,
            Op::Ownership => 1 << 6,
            Op::Gap => 1 << 7,
        }
    }
}
