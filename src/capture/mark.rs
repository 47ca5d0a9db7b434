//! What a change can be found by in the log: the values of its key columns, as marks.
//!
//! With most replica identities the WAL says which columns are the key. With `FULL`, and without any,
//! it does not: the first few columns stand in, where keys nearly always are. A wrong guess costs a
//! reader of one row time, never a change: the log knows which columns are marked.

use std::sync::Arc;

use super::decode::{Column, Old, Relation, ReplicaIdentity, Tuple};
use super::envelope::Rows;
use super::json::write_column;
use super::relation::PreparedRelation;
use crate::log::KeyColumns;

/// Most columns of a key that are marked; more make no row easier to find.
const COLUMNS_MAX: usize = 8;

/// How many columns stand in for a key that is not known.
const STAND_INS: usize = 4;

/// The columns that a table's changes are found by.
#[derive(Debug, Clone)]
pub(super) struct TableKey {
    columns: Arc<KeyColumns>,
    /// Where they stand in the table, ascending.
    indexes: Box<[usize]>,
}

impl TableKey {
    /// The key of a table as a Relation message describes it.
    pub(super) fn of(relation: &Relation<'_>) -> Self {
        let is_known = relation.identity != ReplicaIdentity::Full
            && relation.columns().any(|column| column.key);
        let most = if is_known { COLUMNS_MAX } else { STAND_INS };
        let columns = relation.columns().enumerate();
        let (indexes, names): (Vec<_>, Vec<_>) = columns
            .filter(|(_, column)| column.key || !is_known)
            .take(most)
            .map(|(index, column)| (index, String::from_utf8_lossy(column.name).into_owned()))
            .unzip();
        Self { columns: Arc::new(KeyColumns::new(names)), indexes: indexes.into() }
    }

    /// No columns: of a table whose events do not go to the log.
    pub(super) fn none() -> Self {
        Self { columns: Arc::new(KeyColumns::new(Vec::new())), indexes: Box::default() }
    }
}

/// Makes marks; its buffers are kept from one change to the next.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: Vec<u64>,
    json: Vec<u8>,
}

impl Marks {
    /// The marks of a change and the columns they are of; `None` when not all of its images can be
    /// marked, as of a truncate, which has none.
    pub(super) fn of<'a>(
        &'a mut self,
        relation: &'a PreparedRelation,
        rows: Rows<'_>,
    ) -> Option<(&'a Arc<KeyColumns>, &'a [u64])> {
        self.marks.clear();
        let old = rows.old.map(|old| match old {
            Old::Key(tuple) | Old::Row(tuple) => tuple,
        });
        for image in old.into_iter().chain(rows.new) {
            self.image(relation, image)?;
        }
        (!self.marks.is_empty()).then_some((&relation.key.columns, &self.marks))
    }

    /// Adds the marks of one image.
    fn image(&mut self, relation: &PreparedRelation, image: Tuple<'_>) -> Option<()> {
        let key = &relation.key;
        let mut wanted = key.indexes.iter().enumerate().peekable();
        for (at, (column, value)) in relation.columns.iter().zip(image.columns()).enumerate() {
            let Some((place, _)) = wanted.next_if(|(_, index)| **index == at) else {
                if wanted.peek().is_none() {
                    break;
                }
                continue;
            };
            if value == Column::Unchanged {
                return None;
            }
            self.json.clear();
            write_column(&column.kind, value, &mut self.json);
            self.marks.push(key.columns.mark(place, &self.json)?);
        }
        Some(())
    }
}
