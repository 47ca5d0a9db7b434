//! What can be known of a table's events before its first row: everything but the values.
//!
//! A Relation message describes a table once; the [`Table`] keeps it. When the first change comes,
//! table, dataset and types together become a [`PreparedRelation`]: names escaped, kinds
//! resolved, and the parts of the event that are the same for all its changes written out.

use std::sync::Arc;

use super::catalog::Types;
use super::decode::{self, Relation, Tuple};
use super::envelope;
use super::json::{Kind, label};
use super::mark::TableKey;
use crate::registry::{
    Dataset, GuardState, ReplicaIdentity, Standing, StreamColumn, StreamTable, TableName,
};
use crate::vocab::{DatasetId, Epoch, Lsn, SourceName, Writer};

/// A table as a Relation message described it.
#[derive(Debug)]
pub(super) struct Table {
    /// Its schema and name.
    pub(super) name: TableName,
    identity: ReplicaIdentity,
    columns: Vec<TableColumn>,
    /// Which columns its changes are found by.
    key: TableKey,
}

#[derive(Debug)]
struct TableColumn {
    key: bool,
    name: Box<[u8]>,
    type_oid: u32,
    type_modifier: i32,
}

impl Table {
    /// Keeps what the message says.
    pub(super) fn new(relation: &Relation<'_>) -> Self {
        // The message leaves out the one schema that is always searched.
        let schema = if relation.schema.is_empty() { b"pg_catalog" } else { relation.schema };
        let columns = relation.columns().map(|column| TableColumn {
            key: column.key,
            name: column.name.into(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
        });
        Self {
            name: TableName {
                schema: String::from_utf8_lossy(schema).into_owned(),
                table: String::from_utf8_lossy(relation.name).into_owned(),
            },
            identity: match relation.identity {
                decode::ReplicaIdentity::Default => ReplicaIdentity::Default,
                decode::ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
                decode::ReplicaIdentity::Full => ReplicaIdentity::Full,
                decode::ReplicaIdentity::Index => ReplicaIdentity::Index,
            },
            columns: columns.collect(),
            key: TableKey::of(relation),
        }
    }

    /// The same as shapes are compared with it.
    pub(super) fn described(&self) -> StreamTable {
        let columns = self.columns.iter().map(|column| StreamColumn {
            name: String::from_utf8_lossy(&column.name).into_owned(),
            oid: column.type_oid,
            typmod: column.type_modifier,
            key: column.key,
        });
        StreamTable {
            name: self.name.clone(),
            replica_identity: self.identity,
            columns: columns.collect(),
        }
    }

    /// A table as the catalog describes it: its published columns and their types, in table order.
    pub(super) fn of_columns(
        name: TableName,
        columns: Vec<(String, u32)>,
        is_key: impl Fn(&str) -> bool,
    ) -> Self {
        let columns = columns.into_iter().map(|(name, type_oid)| TableColumn {
            key: is_key(&name),
            name: name.into_bytes().into(),
            type_oid,
            type_modifier: -1,
        });
        let (identity, key) = (ReplicaIdentity::Default, TableKey::none());
        Self { name, identity, columns: columns.collect(), key }
    }

    /// The types of its columns.
    pub(super) fn types(&self) -> impl Iterator<Item = u32> {
        self.columns.iter().map(|column| column.type_oid)
    }
}

/// The database that a stream comes from, as events name it.
#[derive(Debug, Clone)]
pub(super) struct Database<'a> {
    /// The source's name.
    pub(super) source: &'a SourceName,
    /// The name of the database itself.
    pub(super) database: &'a str,
}

/// One column, ready to be written.
#[derive(Debug)]
pub(super) struct PreparedColumn {
    /// `"name":`, escaped.
    pub(super) label: Box<[u8]>,
    /// How its values are written.
    pub(super) kind: Kind,
    /// Part of the replica identity.
    pub(super) key: bool,
}

/// Whether the guard vouches for the writers of a dataset in a transaction that committed here. That
/// it was installed the stream has told or the registry knows; the registry may also be ahead, with
/// another owner or mode to come.
pub(super) fn is_verified(dataset: &Dataset, told: bool, epoch: Epoch, commit: Lsn) -> bool {
    (told || dataset.guard != GuardState::Pending)
        && !dataset.gaps.iter().any(|gap| gap.contains(epoch, commit))
}

/// The events of one dataset, ready but for the values.
#[derive(Debug)]
pub(super) struct PreparedRelation {
    /// Its number.
    pub(super) dataset: DatasetId,
    /// In table order.
    pub(super) columns: Box<[PreparedColumn]>,
    /// The columns its changes are found by.
    pub(super) key: TableKey,
    /// From after the rows to before the commit's LSN.
    pub(super) source_part: Vec<u8>,
    /// From after the time to before the position.
    pub(super) dataset_part: Vec<u8>,
    /// The dataset itself, for whether its guard stood.
    governed: Arc<Dataset>,
    /// Whether the stream has told of its guard.
    told: bool,
    /// The writer of a change that no message marks: the owner, if the guard stood.
    verified_part: Vec<u8>,
    /// The same where it may not have.
    unverified_part: Vec<u8>,
}

impl PreparedRelation {
    /// Brings together what is known of the table, its dataset and its types.
    pub(super) fn new(
        table: &Table,
        database: &Database<'_>,
        (dataset, standing): (&Arc<Dataset>, Option<&Standing>),
        types: &Types,
        version: Option<u32>,
    ) -> Self {
        let columns = table.columns.iter().map(|column| PreparedColumn {
            label: label(&column.name),
            kind: types.kind(column.type_oid),
            key: column.key,
        });
        let owner = |verified| {
            let service = Some(standing.map_or(&dataset.owner, |it| &it.owner).clone());
            envelope::writer_part(&Writer { service, role: None, verified }, None)
        };
        Self {
            dataset: dataset.id,
            columns: columns.collect(),
            key: table.key.clone(),
            source_part: envelope::source_part(database, table),
            dataset_part: envelope::dataset_part(&dataset.name, version),
            governed: Arc::clone(dataset),
            told: standing.is_some(),
            verified_part: owner(true),
            unverified_part: owner(false),
        }
    }

    /// The writer of a change that no message marks, in a transaction that committed here.
    pub(super) fn owner_part(&self, epoch: Epoch, commit: Lsn) -> &[u8] {
        if is_verified(&self.governed, self.told, epoch, commit) {
            &self.verified_part
        } else {
            &self.unverified_part
        }
    }

    /// Whether the row has as many columns as the table.
    pub(super) fn fits(&self, tuple: Tuple<'_>) -> bool {
        tuple.len() == self.columns.len()
    }
}
