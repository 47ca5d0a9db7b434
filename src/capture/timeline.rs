//! Which shape each dataset's table has at which position: a function of the stream alone.
//!
//! A version begins at the position of the message that announced it, or, where none did, at a
//! position of its own just before the first change that the stream describes otherwise. Versions
//! are stored with their positions before the changes they concern, so a stream that is read again
//! finds the same versions at the same positions and makes no new ones:
//!
//! ```text
//! ordinal   7        8          9            10       11
//!           insert   ALTER      insert       (stream  insert
//!                    message                  differs)
//! version   1        2          2            3        3
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::registry::{Cause, KnownTables, SchemaVersion, StreamTable, TableName};
use crate::vocab::{DatasetId, Position};

/// The versions that a stream passes.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Of each dataset, in order.
    versions: HashMap<DatasetId, Vec<Arc<SchemaVersion>>>,
    /// The dataset of each table's OID.
    relations: HashMap<u32, DatasetId>,
    /// Up to here everything is known: what is not among the versions was no news.
    recorded: Position,
    /// Positions that are those of versions which the stream showed, not of a message or a change.
    own_positions: HashSet<Position>,
}

impl Timeline {
    /// What was known where the stream begins.
    pub(super) fn new(known: KnownTables) -> Self {
        let mut timeline = Self {
            versions: HashMap::new(),
            relations: known.relations,
            recorded: known.recorded,
            own_positions: HashSet::new(),
        };
        for version in known.versions {
            timeline.push(Arc::new(version));
        }
        timeline
    }

    /// Adds a version that comes after all others of its dataset.
    pub(super) fn push(&mut self, version: Arc<SchemaVersion>) {
        // The first version is nothing that changed: it begins at a change's own position.
        if version.cause == Cause::Stream && version.number > 1 {
            self.own_positions.insert(version.from);
        }
        self.versions.entry(version.dataset).or_default().push(version);
    }

    /// The version that is valid at a position.
    pub(super) fn valid_at(
        &self,
        dataset: DatasetId,
        position: Position,
    ) -> Option<&Arc<SchemaVersion>> {
        let versions = self.versions.get(&dataset)?;
        let after = versions.partition_point(|version| version.from <= position);
        versions.get(after.checked_sub(1)?)
    }

    /// Whether what is found here may be news.
    pub(super) fn is_open(&self, position: Position) -> bool {
        position > self.recorded
    }

    /// The version that begins at exactly this position.
    pub(super) fn begins_at(
        &self,
        dataset: DatasetId,
        position: Position,
    ) -> Option<&Arc<SchemaVersion>> {
        self.valid_at(dataset, position).filter(|version| version.from == position)
    }

    /// The version that the stream showed at exactly this position, if it is the version's own.
    pub(super) fn shown_at(&self, position: Position) -> Option<&Arc<SchemaVersion>> {
        self.own_positions.contains(&position).then(|| {
            let mut all = self.versions.values().flatten();
            all.find(|version| version.from == position)
        })?
    }

    /// The dataset of a table.
    pub(super) fn dataset_of(&self, relid: u32) -> Option<DatasetId> {
        self.relations.get(&relid).copied()
    }

    /// From here on a table is a dataset's. Whether that is new.
    pub(super) fn relate(&mut self, relid: u32, dataset: DatasetId) -> bool {
        self.relations.insert(relid, dataset) != Some(dataset)
    }

    /// Whether a dataset had another table than this one.
    pub(super) fn has_other_table(&self, dataset: DatasetId, relid: u32) -> bool {
        self.relations.iter().any(|(known, of)| *of == dataset && *known != relid)
    }

    /// Whether a dataset's table may have this name at this position, as far as is known.
    pub(super) fn may_be_named(
        &self,
        dataset: DatasetId,
        position: Position,
        name: &TableName,
    ) -> bool {
        self.valid_at(dataset, position).is_none_or(|version| version.shape.name == *name)
    }
}

/// Whether a table of this description needs a version of its own after `before`.
pub(super) fn is_news(before: Option<&Arc<SchemaVersion>>, table: &StreamTable) -> bool {
    before.is_none_or(|version| !version.shape.fits(table))
}
