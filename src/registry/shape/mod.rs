//! What a table is: its columns, its key, and the types its rows are made of. Pure.
//!
//! The guard describes a table in these terms at the moment it changes (`schema/guard/04_ddl.sql`), so
//! a shape belongs to a place in the stream and is never read from a catalog that has moved on. Where
//! no description came, the stream's own definition of the table is compared with the last shape
//! known ([`Shape::described_as`]), which tells less: a renamed column looks like one that went and
//! one that came.

mod difference;

use serde::{Deserialize, Serialize};

pub use difference::{Compatibility, Difference};

/// Schema and name of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
}

/// A table at one place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Where it is.
    #[serde(flatten)]
    pub name: TableName,
    /// In table order.
    pub columns: Vec<Column>,
    /// The columns that tell rows apart: the primary key, or the index that is the replica identity.
    #[serde(default)]
    pub key: Vec<String>,
    /// What the stream has of a row before its change.
    #[serde(default)]
    pub replica_identity: ReplicaIdentity,
    /// Types that are not built in, followed to what they are made of.
    #[serde(default)]
    pub types: Vec<TypeShape>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as SQL writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The OID of its type.
    pub oid: u32,
    /// What the type was given: a length, a precision; -1 for nothing.
    #[serde(default = "no_typmod")]
    pub typmod: i32,
    /// Whether it is never null; unknown where only the stream described the table.
    #[serde(default)]
    pub not_null: Option<bool>,
    /// Its number in the table, which never changes and is not used again.
    #[serde(default)]
    pub position: Option<i16>,
    /// How PostgreSQL computes it, if it does.
    #[serde(default)]
    pub generated: Option<Generated>,
    /// How PostgreSQL numbers it, if it does.
    #[serde(default)]
    pub identity: Option<Identity>,
}

const fn no_typmod() -> i32 {
    -1
}

/// What PostgreSQL computes a column for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generated {
    /// It is stored with the row.
    Stored,
    /// It is computed when read, and in no stream.
    Virtual,
}

/// An identity column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// Always numbered.
    Always,
    /// Numbered when nothing is given.
    Default,
}

/// `REPLICA IDENTITY`: what the stream has of a row before its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaIdentity {
    /// The primary key.
    #[default]
    Default,
    /// The columns of one unique index.
    Index,
    /// The whole row.
    Full,
    /// Nothing.
    Nothing,
}

impl ReplicaIdentity {
    /// The lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Index => "index",
            Self::Full => "full",
            Self::Nothing => "nothing",
        }
    }
}

/// A type that is not built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeShape {
    /// Its OID.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What kind of type it is.
    pub kind: TypeKind,
    /// The type it is made of: a domain's base, an array's element, a range's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u32>,
    /// What stands between an array's elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// Whether a domain is never null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_null: Option<bool>,
    /// Names of a domain's constraints, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// An enum's values, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// A composite's attributes, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// What kind of type it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TypeKind {
    /// Another type with constraints.
    Domain,
    /// A list of another type.
    Array,
    /// A row of other types.
    Composite,
    /// From one value of another type to a second.
    Range,
    /// Several ranges.
    Multirange,
    /// One of some words.
    Enum,
    /// A type of an extension: known only as text.
    #[serde(other)]
    Base,
}

/// One attribute of a composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub oid: u32,
}

/// A table as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTable {
    /// Where it is.
    pub name: TableName,
    /// What the stream has of a row before its change.
    pub replica_identity: ReplicaIdentity,
    /// The columns that are published, in table order.
    pub columns: Vec<StreamColumn>,
}

/// A column as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamColumn {
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub oid: u32,
    /// What the type was given.
    pub typmod: i32,
    /// Whether it is marked as part of the replica identity.
    pub key: bool,
}

impl ReplicaIdentity {
    /// Whether the columns that the stream marks are those that tell rows apart.
    fn marks_key(self) -> bool {
        match self {
            Self::Default | Self::Index => true,
            Self::Full | Self::Nothing => false,
        }
    }
}

impl Shape {
    /// Whether this is what the stream describes. Columns that are generated may be left out there.
    pub fn fits(&self, table: &StreamTable) -> bool {
        let marked = |column: &StreamColumn| {
            !self.replica_identity.marks_key() || self.key.contains(&column.name) == column.key
        };
        let columns = table.columns.iter();
        self.replica_identity == table.replica_identity
            && self.has_rows_of(
                &table.name,
                columns.map(|column| (column.name.as_str(), column.oid, column.typmod)),
            )
            && table.columns.iter().all(marked)
    }

    /// Whether rows of a table of this name, with these columns (name, type, what the type was
    /// given), are rows of this shape. Columns that are generated may be left out there.
    pub fn has_rows_of<'a>(
        &self,
        name: &TableName,
        columns: impl Iterator<Item = (&'a str, u32, i32)>,
    ) -> bool {
        let mut known = self.columns.iter();
        let mut same = |(name, oid, typmod)| {
            known
                .by_ref()
                .find(|known| known.name == name || known.generated.is_none())
                .is_some_and(|known| (&*known.name, known.oid, known.typmod) == (name, oid, typmod))
        };
        let mut columns = columns;
        self.name == *name
            && columns.all(&mut same)
            && known.all(|left_out| left_out.generated.is_some())
    }

    /// The table as the stream describes it, with what `before` knew of columns that are the same.
    /// `type_name` names types.
    pub fn described_as(
        before: Option<&Self>,
        table: &StreamTable,
        type_name: impl Fn(u32) -> String,
    ) -> Self {
        let known = |column: &StreamColumn| {
            before?.columns.iter().find(|known| {
                known.name == column.name
                    && known.oid == column.oid
                    && known.typmod == column.typmod
            })
        };
        let described = table.columns.iter().map(|column| {
            known(column).cloned().unwrap_or_else(|| Column {
                name: column.name.clone(),
                type_name: type_name(column.oid),
                oid: column.oid,
                typmod: column.typmod,
                not_null: None,
                position: None,
                generated: None,
                identity: None,
            })
        });
        // The stream does not say that a generated column is gone.
        let left_out = before.into_iter().flat_map(|before| &before.columns).filter(|column| {
            column.generated.is_some() && !table.columns.iter().any(|new| new.name == column.name)
        });
        let columns: Vec<Column> = described.chain(left_out.cloned()).collect();
        let known_key = || before.into_iter().flat_map(|before| &before.key);
        let key = if table.replica_identity.marks_key() {
            let marked = table.columns.iter().filter(|column| column.key);
            let mut key: Vec<String> = marked.map(|column| column.name.clone()).collect();
            // In the order known before, which the stream does not tell.
            key.sort_by_key(|name| known_key().position(|known| known == name));
            key
        } else {
            let still = |name: &&String| columns.iter().any(|column| column.name == **name);
            known_key().filter(still).cloned().collect()
        };
        let used = |shape: &TypeShape| columns.iter().any(|column| column.oid == shape.oid);
        let types = before.map(|before| &before.types).filter(|types| types.iter().any(used));
        Self {
            name: table.name.clone(),
            types: types.cloned().unwrap_or_default(),
            replica_identity: table.replica_identity,
            columns,
            key,
        }
    }
}

#[cfg(test)]
mod tests;
