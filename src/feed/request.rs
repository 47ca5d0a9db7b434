//! What a subscriber asks for.

use std::str::FromStr;

use chrono::{DateTime, Utc};

use super::{Error, Shape, Token};
use crate::registry::Snapshot;
use crate::vocab::{DatasetId, DatasetName, Op, Position, SourceId, limits};

/// Where a feed starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// With the next change.
    Now,
    /// With the oldest change the log holds.
    Earliest,
    /// With the change after this position, usually the last one the subscriber has handled.
    Position(Position),
    /// With the first change committed at or after this time.
    Time(DateTime<Utc>),
    /// With the rows as they are, then with the changes from there on.
    Snapshot,
    /// In the middle of a snapshot, after this event.
    Resume(Box<Token>),
}

impl FromStr for After {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        const EXPECTED: &str = "expected \"now\", \"earliest\", \"snapshot\", a position such as \
             01-00000000016CA548-00000003, or a time such as 2026-11-26T10:00:00Z";
        match text {
            "now" => Ok(Self::Now),
            "earliest" => Ok(Self::Earliest),
            "snapshot" => Ok(Self::Snapshot),
            token if token.contains('~') => match token.parse() {
                Ok(token) => Ok(Self::Resume(Box::new(token))),
                Err(error) => Err(Error::Invalid(format!("after: {error}"))),
            },
            other => place(other).map(Self::from).ok_or_else(|| {
                let cut: String = other.chars().take(64).collect();
                Error::Invalid(format!("after: \"{cut}\" is not a place to start; {EXPECTED}"))
            }),
        }
    }
}

/// Where a feed ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// With the newest change there is when it is opened.
    Now,
    /// With the change at this position, or the last one before it.
    Position(Position),
    /// Before the first change committed at or after this time.
    Time(DateTime<Utc>),
}

impl FromStr for Until {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "now" {
            return Ok(Self::Now);
        }
        match place(text) {
            Some(Place::Position(position)) => Ok(Self::Position(position)),
            Some(Place::Time(at)) => Ok(Self::Time(at)),
            None => {
                let cut: String = text.chars().take(64).collect();
                Err(Error::Invalid(format!(
                    "until: \"{cut}\" is not a place to end; expected \"now\", a position such as \
                     01-00000000016CA548-00000003, or a time such as 2026-11-26T10:00:00Z"
                )))
            }
        }
    }
}

/// A place in the log that a text names.
enum Place {
    Position(Position),
    Time(DateTime<Utc>),
}

impl From<Place> for After {
    fn from(place: Place) -> Self {
        match place {
            Place::Position(position) => Self::Position(position),
            Place::Time(at) => Self::Time(at),
        }
    }
}

/// A position, or a time in RFC 3339.
fn place(text: &str) -> Option<Place> {
    let time = || DateTime::parse_from_rfc3339(text).ok().map(|at| Place::Time(at.to_utc()));
    text.parse().ok().map(Place::Position).or_else(time)
}

/// Which part of what a [`Request`] asks for; by default all of it.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Where it ends; it goes on for ever if nothing is said.
    pub until: Option<Until>,
    /// Only changes of the row with this key, a JSON object of its columns or, of a key of one
    /// column, its value. What concerns every row (a truncate, a gap, a new owner) is among them.
    pub key: Option<String>,
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

/// A set of operations. What concerns the dataset itself (a gap, a new owner, a new schema, a guard
/// that is off) is always in it: nobody may miss that by choosing among changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ops(u16);

impl Ops {
    const ALWAYS: u16 = Self::bit(Op::Schema)
        | Self::bit(Op::Ownership)
        | Self::bit(Op::Gap)
        | Self::bit(Op::Guard);

    /// The operations asked for; asking for none is a mistake.
    pub(super) fn new(ops: Option<&[Op]>) -> Result<Self, Error> {
        match ops {
            None => Ok(Self(u16::MAX)),
            Some([]) => {
                Err(Error::Invalid("ops: expected at least one of c, u, d, t, r".to_owned()))
            }
            Some(ops) => Ok(Self(ops.iter().fold(Self::ALWAYS, |set, op| set | Self::bit(*op)))),
        }
    }

    pub(super) fn has(self, op: Op) -> bool {
        self.0 & Self::bit(op) != 0
    }

    const fn bit(op: Op) -> u16 {
        match op {
            Op::Create => 1,
            Op::Update => 1 << 1,
            Op::Delete => 1 << 2,
            Op::Truncate => 1 << 3,
            Op::Read => 1 << 4,
            Op::Schema => 1 << 5,
            Op::Ownership => 1 << 6,
            Op::Gap => 1 << 7,
            Op::Guard => 1 << 8,
        }
    }
}
