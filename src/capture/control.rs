//! An event about a dataset itself, in order with its changes: what the row changes' envelope is to
//! rows, for everything else.
//!
//! ```text
//! {"event":"schema","source":{"connector":"cadastre","name":"shop","db":"shop","lsn":…,"ts_ms":…},
//!  "ts_ms":…,"dataset":"shop.public.orders","position":"01-…","schema":{…}}
//! ```
//!
//! The member named as the event is carries its details. `schema/events/` describes each.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::relation::Database;
use crate::vocab::{DatasetName, Op, Position};

/// An event and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlEvent<'a, D> {
    /// What it is about: the schema, the owner, the guard.
    pub(super) op: Op,
    /// The database it comes from.
    pub(super) database: &'a Database<'a>,
    /// The dataset it concerns.
    pub(super) dataset: &'a DatasetName,
    /// Its place.
    pub(super) position: Position,
    /// When its transaction committed, in milliseconds since 1970.
    pub(super) committed_ms: i64,
    /// When it was read, in milliseconds since 1970.
    pub(super) now_ms: i64,
    /// What there is to say.
    pub(super) details: &'a D,
}

#[derive(Serialize)]
struct Source<'a> {
    connector: &'static str,
    name: &'a str,
    db: &'a str,
    lsn: u64,
    ts_ms: i64,
}

impl<D: Serialize> ControlEvent<'_, D> {
    /// Appends the event as one JSON object without a line break.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("names and numbers can be written to memory");
    }
}

impl<D: Serialize> Serialize for ControlEvent<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let source = Source {
            connector: "cadastre",
            name: self.database.source.as_str(),
            db: self.database.database,
            lsn: self.position.lsn().get(),
            ts_ms: self.committed_ms,
        };
        let mut event = serializer.serialize_map(Some(6))?;
        event.serialize_entry("event", self.op.event())?;
        event.serialize_entry("source", &source)?;
        event.serialize_entry("ts_ms", &self.now_ms)?;
        event.serialize_entry("dataset", self.dataset.as_str())?;
        event.serialize_entry("position", &self.position)?;
        event.serialize_entry(self.op.event(), self.details)?;
        event.end()
    }
}
