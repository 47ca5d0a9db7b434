//! What changed from one shape to the next, and whether those who read the feed have to care.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Column, ReplicaIdentity, Shape, TableName, TypeKind, TypeShape};

/// From what to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step<T> {
    /// Before.
    pub from: T,
    /// After.
    pub to: T,
}

impl<T: PartialEq> Step<T> {
    /// The step, if it is one.
    fn between(from: T, to: T) -> Option<Self> {
        (from != to).then_some(Self { from, to })
    }
}

/// A step of one column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnStep<T> {
    /// The column, by its name after.
    pub column: String,
    /// The step.
    #[serde(flatten)]
    pub step: Step<T>,
}

/// A type that changed while columns of it stayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeStep {
    /// The type, by its name after.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Values or attributes that came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Values or attributes that went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// Whether it changed otherwise: its name, what it is made of, its constraints.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub altered: bool,
}

/// What changed from one shape to the next. What is empty is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Difference {
    /// The table's schema or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Step<TableName>>,
    /// Columns that came.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Columns that went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// Columns of another name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub renamed: Vec<Step<String>>,
    /// Columns of another type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retyped: Vec<ColumnStep<String>>,
    /// Columns that may or may no longer be null: whether they are never null.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_null: Vec<ColumnStep<bool>>,
    /// Columns that are, or are no longer, computed or numbered by PostgreSQL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generation: Vec<String>,
    /// The columns that tell rows apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Step<Vec<String>>>,
    /// What the stream has of a row before its change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica_identity: Option<Step<ReplicaIdentity>>,
    /// Types that changed while columns of them stayed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<TypeStep>,
}

/// Whether those who read the feed can go on as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compatibility {
    /// What could be read before can be read so still.
    Compatible,
    /// Something is gone, has another name, or may hold what it could not before.
    Breaking,
}

impl Compatibility {
    /// The lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compatible => "compatible",
            Self::Breaking => "breaking",
        }
    }
}

impl Difference {
    /// What changed; columns are matched by their number, or by name where that is not known.
    pub fn between(before: &Shape, after: &Shape) -> Self {
        let mut difference = Self {
            table: Step::between(before.name.clone(), after.name.clone()),
            replica_identity: Step::between(before.replica_identity, after.replica_identity),
            types: types(before, after),
            ..Self::default()
        };
        let mut names = BTreeMap::new();
        for column in &after.columns {
            match before.columns.iter().find(|known| is_same(known, column)) {
                Some(known) => {
                    names.insert(known.name.as_str(), column.name.as_str());
                    difference.column(known, column);
                }
                None => difference.added.push(column.name.clone()),
            }
        }
        let gone = before.columns.iter().filter(|known| !names.contains_key(known.name.as_str()));
        difference.removed = gone.map(|column| column.name.clone()).collect();
        // A key whose column has another name is the same key.
        let key_then = before.key.iter().map(|name| {
            let now = names.get(name.as_str());
            now.map_or_else(|| name.clone(), |now| (*now).to_owned())
        });
        if key_then.ne(after.key.iter().cloned()) {
            difference.key = Step::between(before.key.clone(), after.key.clone());
        }
        difference
    }

    /// What changed of one column.
    fn column(&mut self, before: &Column, after: &Column) {
        let column = || after.name.clone();
        self.renamed.extend(Step::between(before.name.clone(), after.name.clone()));
        if (before.oid, before.typmod) != (after.oid, after.typmod) {
            let step = Step { from: before.type_name.clone(), to: after.type_name.clone() };
            self.retyped.push(ColumnStep { column: column(), step });
        }
        if let (Some(from), Some(to)) = (before.not_null, after.not_null)
            && let Some(step) = Step::between(from, to)
        {
            self.not_null.push(ColumnStep { column: column(), step });
        }
        if (before.generated, before.identity) != (after.generated, after.identity) {
            self.generation.push(column());
        }
    }

    /// Whether readers can go on as they are, and if not, why: one sentence each.
    pub fn compatibility(&self) -> (Compatibility, Vec<String>) {
        let mut reasons = Vec::new();
        let named = |names: &[String], what: &str, reasons: &mut Vec<String>| {
            reasons.extend(names.iter().map(|name| format!("column \"{name}\" {what}")));
        };
        named(&self.removed, "was removed", &mut reasons);
        for Step { from, to } in &self.renamed {
            reasons.push(format!("column \"{from}\" is now \"{to}\""));
        }
        for ColumnStep { column, step } in &self.retyped {
            if !widens(&step.from, &step.to) {
                let Step { from, to } = step;
                reasons.push(format!("column \"{column}\" was {from} and is {to}"));
            }
        }
        for ColumnStep { column, step } in &self.not_null {
            if !step.to {
                reasons.push(format!("column \"{column}\" may be null now"));
            }
        }
        named(&self.generation, "is computed in another way", &mut reasons);
        if let Some(Step { from, to }) = &self.key {
            let list = |names: &[String]| {
                if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
            };
            reasons.push(format!("rows were told apart by {} and are by {}", list(from), list(to)));
        }
        if let Some(Step { from, to }) = &self.replica_identity
            && (*from == ReplicaIdentity::Full || *to == ReplicaIdentity::Nothing)
        {
            let (from, to) = (from.as_str(), to.as_str());
            reasons.push(format!("less is known of a row before its change: {from}, now {to}"));
        }
        for step in &self.types {
            let name = &step.type_name;
            if !step.removed.is_empty() {
                reasons.push(format!("type {name} no longer has {}", step.removed.join(", ")));
            }
            if step.altered {
                reasons.push(format!("type {name} is made in another way"));
            }
        }
        let compatible = reasons.is_empty();
        let word = if compatible { Compatibility::Compatible } else { Compatibility::Breaking };
        (word, reasons)
    }
}

/// Whether two columns are one: by number where both have one.
fn is_same(before: &Column, after: &Column) -> bool {
    match (before.position, after.position) {
        (Some(before), Some(after)) => before == after,
        _ => before.name == after.name,
    }
}

/// Whether every value of one type is, written as JSON, also one of the other.
fn widens(from: &str, to: &str) -> bool {
    let text = |name: &str| matches!(name, "text" | "character varying");
    let varying = |name: &str| {
        let length = name.strip_prefix("character varying(")?.strip_suffix(')')?;
        length.parse::<u32>().ok()
    };
    match (from, to) {
        ("smallint", "integer") => true,
        (_, to) if text(to) => text(from) || varying(from).is_some(),
        _ => matches!((varying(from), varying(to)), (Some(from), Some(to)) if from <= to),
    }
}

/// Types that changed while they were in use before and after.
fn types(before: &Shape, after: &Shape) -> Vec<TypeStep> {
    let pairs = after.types.iter().filter_map(|after| {
        let before = before.types.iter().find(|before| before.oid == after.oid)?;
        (before != after).then_some((before, after))
    });
    pairs.filter_map(|(before, after)| type_step(before, after)).collect()
}

fn type_step(before: &TypeShape, after: &TypeShape) -> Option<TypeStep> {
    let parts = |shape: &TypeShape| -> Vec<String> {
        let attributes = shape.attributes.iter().map(|attribute| attribute.name.clone());
        attributes.chain(shape.values.iter().cloned()).collect()
    };
    let (had, has) = (parts(before), parts(after));
    let retyped = after.attributes.iter().any(|attribute| {
        let known = before.attributes.iter().find(|known| known.name == attribute.name);
        known.is_some_and(|known| known.oid != attribute.oid)
    });
    let made = |shape: &TypeShape| (shape.kind, shape.of, shape.delimiter);
    let step = TypeStep {
        type_name: format!("{}.{}", after.schema, after.name),
        added: has.iter().filter(|part| !had.contains(part)).cloned().collect(),
        removed: had.iter().filter(|part| !has.contains(part)).cloned().collect(),
        // What a domain refuses says nothing to who reads values that it took.
        altered: retyped || made(before) != made(after) || before.kind == TypeKind::Base,
    };
    let same = step.added.is_empty() && step.removed.is_empty() && !step.altered;
    (!same).then_some(step)
}
