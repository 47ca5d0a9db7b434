//! What a dataset's table is and was, what refers to it, and tables that nobody has registered.

use std::str::FromStr;
use std::sync::Arc;

use async_graphql::{Context, Enum, Json, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::page::{self, Page};
use super::scalar::shared;
use super::source::SourceNode;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::registry::{
    self, Column, ColumnFacts, Coupling, Dataset, Difference, SchemaVersion, Shape, Snapshot,
    UnownedTable,
};
use crate::vocab::{SourceId, SourceName};

/// Whether a dataset's table is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "DatasetState")]
pub(super) enum State {
    /// It is, as far as is known.
    Live,
    /// It was dropped. The dataset stays, with its history.
    Dropped,
}

/// Whether those who read the feed can go on as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "Compatibility", remote = "registry::Compatibility")]
enum Compatibility {
    /// What could be read before can be read so still.
    Compatible,
    /// Something is gone, has another name, or may hold what it could not before.
    Breaking,
}

/// Schema and name of a table.
#[derive(SimpleObject)]
#[graphql(name = "TableName")]
struct TableNameNode {
    /// Its schema.
    schema: String,
    /// Its name.
    table: String,
}

impl From<registry::TableName> for TableNameNode {
    fn from(name: registry::TableName) -> Self {
        Self { schema: name.schema, table: name.table }
    }
}

/// One column, and what is known of it beyond the catalog.
#[derive(SimpleObject)]
#[graphql(name = "Column")]
pub(super) struct ColumnNode {
    /// Its name.
    name: String,
    /// Its type, as SQL writes it; null when the table has no such column, or none was seen yet.
    #[graphql(name = "type")]
    type_name: Option<String>,
    /// Whether it is never null.
    not_null: Option<bool>,
    /// Whether it is one of those that tell rows apart.
    key: bool,
    /// Its number in the table, which never changes and is not used again.
    position: Option<i32>,
    /// Whether PostgreSQL computes it.
    generated: bool,
    /// Whether PostgreSQL numbers it.
    identity: bool,
    /// Sensitivity, such as `pii`.
    classification: Option<String>,
    /// What it means.
    description: Option<String>,
}

impl ColumnNode {
    /// A column of a table, with what was declared of it.
    fn new(shape: Option<&Shape>, column: Option<&Column>, name: &str, dataset: &Dataset) -> Self {
        let ColumnFacts { classification, description } =
            dataset.columns.get(name).cloned().unwrap_or_default();
        Self {
            name: name.to_owned(),
            type_name: column.map(|column| column.type_name.clone()),
            not_null: column.and_then(|column| column.not_null),
            key: shape.is_some_and(|shape| shape.key.iter().any(|key| key == name)),
            position: column.and_then(|column| column.position).map(Into::into),
            generated: column.is_some_and(|column| column.generated.is_some()),
            identity: column.is_some_and(|column| column.identity.is_some()),
            classification,
            description,
        }
    }
}

/// The columns of a shape in table order, then those that only facts were declared about.
fn columns(shape: Option<&Shape>, dataset: &Dataset) -> Vec<ColumnNode> {
    let of_table = shape.into_iter().flat_map(|shape| &shape.columns);
    let known = |name: &str| {
        shape.is_some_and(|shape| shape.columns.iter().any(|column| column.name == name))
    };
    let declared = dataset.columns.keys().filter(|name| !known(name));
    of_table
        .map(|column| ColumnNode::new(shape, Some(column), &column.name, dataset))
        .chain(declared.map(|name| ColumnNode::new(shape, None, name, dataset)))
        .collect()
}

/// The columns of a dataset's table as last seen.
pub(super) async fn columns_now(
    ctx: &Context<'_>,
    dataset: &Dataset,
) -> Result<Vec<ColumnNode>, Problem> {
    let page = registry::Page { first: 1, after: None };
    let latest = shared(ctx).context.registry.schema_history(dataset.id, page).await?;
    Ok(columns(latest.first().map(|version| &*version.shape), dataset))
}

/// What a dataset's table was from a position on.
pub(super) struct SchemaVersionNode {
    version: SchemaVersion,
    dataset: Arc<Dataset>,
}

/// What a dataset's table was from a position on, until the next version.
#[Object(name = "SchemaVersion")]
impl SchemaVersionNode {
    /// From 1, without gaps; what `schema_version` of a change refers to.
    async fn version(&self) -> u32 {
        self.version.number
    }

    /// The position in the feed from which it is valid.
    async fn from_position(&self) -> String {
        self.version.from.to_string()
    }

    /// When, by the source's clock.
    async fn at(&self) -> DateTime<Utc> {
        self.version.at
    }

    /// The table as it was called.
    async fn table(&self) -> TableNameNode {
        self.version.shape.name.clone().into()
    }

    /// Its columns, in table order.
    async fn columns(&self) -> Vec<ColumnNode> {
        let mut columns = columns(Some(&self.version.shape), &self.dataset);
        columns.retain(|column| column.type_name.is_some());
        columns
    }

    /// The columns that tell rows apart.
    async fn key(&self) -> &[String] {
        &self.version.shape.key
    }

    /// What the stream has of a row before its change: default, index, full or nothing.
    async fn replica_identity(&self) -> &str {
        self.version.shape.replica_identity.as_str()
    }

    /// The command that made it; null where the stream alone showed it.
    async fn command(&self) -> Option<&str> {
        self.version.by.as_ref().map(|by| by.command.as_str())
    }

    /// The service that made it, if the role belongs to one.
    async fn service_name(&self) -> Option<&str> {
        self.version.by.as_ref()?.service.as_deref()
    }

    /// The role that made it.
    async fn role(&self) -> Option<&str> {
        self.version.by.as_ref().map(|by| by.role.as_str())
    }

    /// What is new since the version before: added, removed, renamed, retyped, notNull, generation, key,
    /// replicaIdentity, table, types; what is empty is left out. Null for the first.
    async fn difference(&self) -> Option<Json<Difference>> {
        self.version.difference.clone().map(Json)
    }

    /// Whether those who read the feed can go on as they are. Null for the first.
    async fn compatibility(&self) -> Option<Compatibility> {
        self.version.difference.as_ref().map(|it| it.compatibility().0.into())
    }

    /// Why it is breaking, one sentence each.
    async fn reasons(&self) -> Vec<String> {
        self.version.difference.as_ref().map(|it| it.compatibility().1).unwrap_or_default()
    }
}

/// One page of a dataset's versions, newest first.
pub(super) async fn history(
    ctx: &Context<'_>,
    dataset: &Arc<Dataset>,
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Page<SchemaVersionNode>, Problem> {
    let wanted = page::wanted::<i32>(first, after)?;
    let page = registry::Page { first: wanted.first + 1, after: wanted.after };
    let versions = shared(ctx).context.registry.schema_history(dataset.id, page).await?;
    let nodes = versions.into_iter().map(|version| {
        let node = SchemaVersionNode { version, dataset: Arc::clone(dataset) };
        (node.version.number.to_string(), node)
    });
    Ok(page::page(&wanted, nodes))
}

/// A foreign key of a service's table to a dataset it does not own: it lets that service hold up
/// deletes and changes of keys.
#[derive(SimpleObject)]
#[graphql(name = "Coupling")]
pub(super) struct CouplingNode {
    /// The table that refers.
    from: TableNameNode,
    /// The constraint's name.
    constraint: String,
    /// The service that made it, if the role belongs to one.
    service_name: Option<String>,
    /// The role that made it.
    role: String,
    /// When, by the source's clock.
    at: DateTime<Utc>,
}

impl From<Coupling> for CouplingNode {
    fn from(coupling: Coupling) -> Self {
        Self {
            from: coupling.key.from.into(),
            constraint: coupling.key.constraint,
            service_name: coupling.by.service,
            role: coupling.by.role,
            at: coupling.at,
        }
    }
}

/// A table that nobody has registered, so that nobody is asked before it is changed.
pub(super) struct UnownedTableNode {
    snapshot: Arc<Snapshot>,
    table: UnownedTable,
}

/// A table made in a governed source that nobody has registered.
#[Object(name = "UnownedTable")]
impl UnownedTableNode {
    /// The source it is in.
    async fn source(&self) -> Option<SourceNode> {
        let mut sources = self.snapshot.sources.values();
        sources.find(|source| source.id == self.table.source_id).map(Arc::clone).map(SourceNode)
    }

    /// Its schema.
    async fn schema(&self) -> &str {
        &self.table.name.schema
    }

    /// Its name.
    async fn table(&self) -> &str {
        &self.table.name.table
    }

    /// The command it was seen by, such as `CREATE TABLE AS`.
    async fn command(&self) -> &str {
        &self.table.by.command
    }

    /// The service that made it, if the role belongs to one.
    async fn service_name(&self) -> Option<&str> {
        self.table.by.service.as_deref()
    }

    /// The role that made it.
    async fn role(&self) -> &str {
        &self.table.by.role
    }

    /// When, by the source's clock.
    async fn seen_at(&self) -> DateTime<Utc> {
        self.table.seen_at
    }
}

/// The key of an unowned table in a list.
#[derive(Debug, Clone, Copy)]
struct Key(SourceId, u32);

impl FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (source, relid) = text.split_once(':').ok_or(())?;
        Ok(Self(SourceId(source.parse().map_err(drop)?), relid.parse().map_err(drop)?))
    }
}

/// One page of the tables of a source, or of all, that nobody has registered.
pub(super) async fn unowned(
    ctx: &Context<'_>,
    snapshot: &Arc<Snapshot>,
    source: Option<&str>,
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Page<UnownedTableNode>, Problem> {
    let wanted = page::wanted::<Key>(first, after)?;
    let sources: Vec<SourceId> = match source {
        None => snapshot.sources.values().map(|source| source.id).collect(),
        Some(name) => {
            let name: SourceName = name.parse()?;
            let unknown =
                || Problem::new(Code::UnknownSource, format!("no source is named \"{name}\""));
            vec![snapshot.sources.get(&name).ok_or_else(unknown)?.id]
        }
    };
    let page = registry::Page {
        first: wanted.first + 1,
        after: wanted.after.map(|Key(source, relid)| (source, relid)),
    };
    let tables = shared(ctx).context.registry.unowned_tables(&sources, page).await?;
    let nodes = tables.into_iter().map(|table| {
        let key = format!("{}:{}", table.source_id.0, table.relid);
        (key, UnownedTableNode { snapshot: Arc::clone(snapshot), table })
    });
    Ok(page::page(&wanted, nodes))
}
