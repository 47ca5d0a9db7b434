//! What has to be known of a table to read it in chunks and to write its rows as events.

use super::key::{self, Bound, Key};
use crate::capture::envelope;
use crate::capture::relation::PreparedRelation;
use crate::pg::{quote_ident, quote_literal};

/// A number for a list of texts (FNV-1a): to tell lists apart, not to keep secrets.
pub fn digest<'a>(texts: impl Iterator<Item = &'a str>) -> u32 {
    let bytes = texts.flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A column of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// Its name.
    pub(super) name: String,
    /// Which of the columns that are read it is.
    pub(super) index: usize,
    /// Its type, qualified and without length: what its text is cast to.
    pub(super) type_name: String,
    /// Its collation, quoted; empty when the type has none.
    pub(super) collation: String,
}

/// A table at one moment.
#[derive(Debug)]
pub struct Shape {
    /// The table, quoted, with `ONLY` where rows of children are not its own.
    pub(super) from: String,
    /// The published columns, quoted, in table order.
    pub(super) columns: Vec<String>,
    /// The key that the table is read by: what its changes name rows by. Empty when there is none.
    pub(super) key: Vec<KeyColumn>,
    /// Which rows are published, when not all are.
    pub(super) filter: Option<String>,
    /// Rows, as PostgreSQL estimates.
    pub(super) rows_estimated: u64,
    /// How its rows are written.
    pub(super) relation: PreparedRelation,
}

impl Shape {
    /// Whether the table can be read in more than one piece.
    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The columns of the key, in its order.
    pub fn key_columns(&self) -> Vec<String> {
        self.key.iter().map(|column| column.name.clone()).collect()
    }

    /// How many rows PostgreSQL believes it has.
    pub fn rows_estimated(&self) -> u64 {
        self.rows_estimated
    }

    /// Whether places in the order of one are places in the order of the other.
    pub fn has_same_key(&self, other: &Self) -> bool {
        let same = |a: &KeyColumn, b: &KeyColumn| {
            (&a.name, &a.type_name, &a.collation) == (&b.name, &b.type_name, &b.collation)
        };
        self.key.len() == other.key.len()
            && self.key.iter().zip(&other.key).all(|(a, b)| same(a, b))
    }

    /// A number that tells the key from others, as [`Shape::has_same_key`] does.
    pub fn key_digest(&self) -> u32 {
        let parts = |column: &'_ KeyColumn| {
            [column.name.clone(), column.type_name.clone(), column.collation.clone()]
        };
        let parts: Vec<String> = self.key.iter().flat_map(parts).collect();
        digest(parts.iter().map(String::as_str))
    }

    /// The key of a row as an event carries it; `None` when it is not all there.
    pub fn key_of(&self, row: &serde_json::value::RawValue) -> Option<Key> {
        let kind = |column: &KeyColumn| self.relation.columns.get(column.index);
        if self.key.is_empty() {
            return None;
        }
        let columns = self.key.iter().filter_map(|column| {
            kind(column).map(|prepared| (column.name.as_str(), &prepared.kind))
        });
        key::read(columns, row)
    }

    /// An event that voids all rows of the dataset read so far, because they are read anew: up to
    /// its position, and from after it.
    pub fn restart(&self, now_ms: i64) -> (Vec<u8>, &'static [u8]) {
        let mut head = Vec::new();
        envelope::write_restart(&self.relation, now_ms, &mut head);
        (head, envelope::READ_TAIL)
    }

    /// Rows after a place, in order.
    pub(super) fn range(&self, after: &Bound, rows_max: usize) -> String {
        let mut conditions: Vec<String> = self.filter.iter().cloned().collect();
        if let Bound::At(key) = after {
            conditions.push(format!("({}) > ({})", self.key_names(), self.literals(key)));
        }
        let mut query = self.select(&conditions);
        if self.has_key() {
            query.push_str(&format!(" ORDER BY {} LIMIT {rows_max}", self.key_names()));
        }
        query
    }

    /// The rows with these keys.
    pub(super) fn points(&self, keys: &[Key]) -> String {
        let rows: Vec<_> = keys.iter().map(|key| format!("({})", self.literals(key))).collect();
        let mut conditions: Vec<String> = self.filter.iter().cloned().collect();
        conditions.push(format!("({}) IN ({})", self.key_names(), rows.join(", ")));
        self.select(&conditions)
    }

    /// For each of these keys whether it is at or before each of the bounds, as a query of as many
    /// boolean columns. `None` when no comparison is needed to know.
    pub(super) fn places(&self, keys: &[Key], bounds: &[&Key]) -> String {
        let names: Vec<_> = (0..self.key.len()).map(|index| format!("k{index}")).collect();
        let typed = self.key.iter().zip(&names).map(|(column, name)| {
            let collate = match column.collation.as_str() {
                "" => String::new(),
                collation => format!(" COLLATE {collation}"),
            };
            format!("{name}::{}{collate}", column.type_name)
        });
        let typed = typed.collect::<Vec<_>>().join(", ");
        let tests: Vec<_> = bounds
            .iter()
            .map(|bound| format!("ROW({typed}) <= ROW({})", self.literals(bound)))
            .collect();
        let rows: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(ordinal, key)| {
                let texts: Vec<_> =
                    key.0.iter().map(|text| format!("{}::text", quote_literal(text))).collect();
                format!("({ordinal}, {})", texts.join(", "))
            })
            .collect();
        format!(
            "SELECT {} FROM (VALUES {}) AS keys (ordinal, {}) ORDER BY ordinal",
            tests.join(", "),
            rows.join(", "),
            names.join(", ")
        )
    }

    fn select(&self, conditions: &[String]) -> String {
        let columns = self.columns.join(", ");
        let mut query = format!("SELECT {columns} FROM {}", self.from);
        if !conditions.is_empty() {
            query.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
        }
        query
    }

    fn key_names(&self) -> String {
        self.key.iter().map(|column| quote_ident(&column.name)).collect::<Vec<_>>().join(", ")
    }

    /// A key as typed literals. Texts are quoted: whatever a position says, it is a value.
    fn literals(&self, key: &Key) -> String {
        let literal = |(column, text): (&KeyColumn, &String)| {
            format!("{}::{}", quote_literal(text), column.type_name)
        };
        self.key.iter().zip(&key.0).map(literal).collect::<Vec<_>>().join(", ")
    }

    /// Whether the key has as many values as the table's.
    pub fn fits(&self, key: &Key) -> bool {
        key.0.len() == self.key.len()
    }
}
