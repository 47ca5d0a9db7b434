//! What the guard says of tables, and what the stream itself shows of them: versions and events.
//!
//! A message has an ordinal of its own, and the version it brings begins there. A version that only
//! the stream shows takes the ordinal before the first change that shows it. The first version of a
//! dataset is no event, since nothing changed with it.

use std::sync::Arc;

use serde::Serialize;

use super::{AssembleError, Assembler, Output, Received, Resolution, Sink, ignore};
use crate::capture::attribute::{self, SchemaKind, SchemaMessage};
use crate::capture::catalog::{Types, builtin_name};
use crate::capture::relation::{Database, PreparedRelation, Table};
use crate::capture::timeline::is_news;
use crate::registry::{
    Author, Cause, Column, Compatibility, CouplingKey, Dataset, Difference, Evolution,
    NewEvolution, ReplicaIdentity, SchemaVersion, Shape, TableName, TypeShape,
};
use crate::vocab::{DatasetName, Op, Position};

/// The details of a `schema` event; `schema/events/schema.json` describes them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    kind: &'static str,
    table: &'a TableName,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<By<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'a TableName>,
    #[serde(flatten)]
    version: Option<New<'a>>,
}

#[derive(Debug, Serialize)]
struct By<'a> {
    service: Option<&'a str>,
    role: &'a str,
}

/// A version that begins, and how it differs from the one before.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct New<'a> {
    version: u32,
    columns: &'a [Column],
    key: &'a [String],
    replica_identity: ReplicaIdentity,
    types: &'a [TypeShape],
    difference: &'a Difference,
    compatibility: Compatibility,
    reasons: Vec<String>,
}

impl<'a> Details<'a> {
    fn new(kind: &'static str, table: &'a TableName, by: Option<&'a Author>) -> Self {
        Self {
            kind,
            table,
            command: by.map(|by| by.command.as_str()),
            by: by.map(|by| By { service: by.service.as_deref(), role: &by.role }),
            part: None,
            version: None,
        }
    }
}

impl Assembler {
    /// Takes what the guard says of a table.
    pub(super) fn evolve(
        &mut self,
        received: Received,
        content: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Output, AssembleError> {
        let message = attribute::parse::<SchemaMessage>(content);
        let name = message.as_ref().and_then(|message| message.dataset.as_deref());
        let dataset = match name.map(|name| self.named(received, name)).transpose() {
            Ok(dataset) => dataset.flatten(),
            Err(wanted) => return Ok(wanted),
        };
        let position = self.next_position()?;
        match (message, dataset) {
            (Some(message), Some(dataset)) => {
                self.evolve_dataset(received, position, &dataset, message, sink);
            }
            (Some(message), None) if message.dataset.is_none() => {
                let SchemaMessage { kind, relid, name, command, service, role, .. } = message;
                let by = Author { command, service, role };
                match kind {
                    SchemaKind::Created => {
                        self.evolved(position, Some(by), Evolution::Unowned { relid, name });
                    }
                    SchemaKind::Gone => {
                        self.evolved(position, Some(by), Evolution::Gone { relid });
                    }
                    _ => ignore("malformed"),
                }
            }
            (Some(_), None) => ignore("unknown dataset"),
            (None, _) => ignore("malformed"),
        }
        Ok(self.output())
    }

    fn evolve_dataset(
        &mut self,
        received: Received,
        position: Position,
        dataset: &Arc<Dataset>,
        message: SchemaMessage,
        sink: &mut impl Sink,
    ) {
        let SchemaMessage { kind, relid, name, command, service, role, .. } = message;
        let by = Author { command, service, role };
        let coupling = || {
            let (constraint, from) = message.constraint.zip(message.from)?;
            Some(CouplingKey { from, constraint })
        };
        match kind {
            SchemaKind::Installed
            | SchemaKind::Altered
            | SchemaKind::Renamed
            | SchemaKind::Moved => {
                let Some(shape) = message.shape else { return ignore("malformed") };
                let installed = kind == SchemaKind::Installed;
                let recreated = installed && self.timeline.has_other_table(dataset.id, relid);
                if self.timeline.relate(relid, dataset.id) {
                    let relation = Evolution::Relation { dataset: dataset.id, relid };
                    self.evolved(position, Some(by.clone()), relation);
                }
                let cause = if installed { Cause::Installed } else { Cause::Command };
                self.begin_version(dataset, position, cause, Some(by), shape, recreated);
                self.forget_resolutions();
                let begun = self.timeline.begins_at(dataset.id, position).cloned();
                if let Some(version) = begun {
                    let kind = if recreated { Some("recreated") } else { None };
                    self.tell_version(received, dataset, kind, &version, sink);
                }
            }
            SchemaKind::Dropped => {
                let details = Details::new(kind.as_str(), &name, Some(&by));
                self.tell(received, dataset, position, &details, sink);
                self.evolved(position, Some(by), Evolution::Dropped(dataset.id));
            }
            SchemaKind::Attached | SchemaKind::Detached => {
                let Some(part) = message.part else { return ignore("malformed") };
                let details = Details::new(kind.as_str(), &name, Some(&by));
                let details = Details { part: Some(&part.name), ..details };
                self.tell(received, dataset, position, &details, sink);
                if kind == SchemaKind::Attached {
                    self.evolved(position, Some(by), Evolution::Gone { relid: part.relid });
                }
            }
            SchemaKind::Coupled | SchemaKind::Uncoupled => {
                let Some(coupling) = coupling() else { return ignore("malformed") };
                let dataset = dataset.id;
                let what = if kind == SchemaKind::Coupled {
                    Evolution::Coupled { dataset, coupling }
                } else {
                    Evolution::Uncoupled { dataset, coupling }
                };
                self.evolved(position, Some(by), what);
            }
            SchemaKind::Created | SchemaKind::Gone => ignore("malformed"),
        }
    }

    /// Notes something to be recorded before what follows is in the log.
    fn evolved(&mut self, position: Position, by: Option<Author>, what: Evolution) {
        let source_id = self.origin.source_id;
        let at = self.transaction.committed_at();
        self.news.push(NewEvolution { source_id, position, at, by, what });
    }

    /// What was noted since the last message.
    pub(super) fn output(&mut self) -> Output {
        if self.news.is_empty() {
            Output::Nothing
        } else {
            Output::Evolved(std::mem::take(&mut self.news))
        }
    }

    /// Begins a version here if the table is another than before, or `anew`; never where everything
    /// is recorded already.
    fn begin_version(
        &mut self,
        dataset: &Dataset,
        position: Position,
        cause: Cause,
        by: Option<Author>,
        shape: Shape,
        anew: bool,
    ) {
        let before = self.timeline.valid_at(dataset.id, position);
        let difference = before.map(|before| Difference::between(&before.shape, &shape));
        let same = difference.as_ref().is_some_and(|it| *it == Difference::default());
        if (same && !anew) || (before.is_some() && !self.timeline.is_open(position)) {
            return;
        }
        let version = Arc::new(SchemaVersion {
            dataset: dataset.id,
            number: before.map_or(1, |before| before.number.saturating_add(1)),
            from: position,
            at: self.transaction.committed_at(),
            cause,
            by: by.clone(),
            shape: Arc::new(shape),
            difference,
        });
        self.timeline.push(Arc::clone(&version));
        self.evolved(position, by, Evolution::Version(version));
    }

    /// Tells subscribers of a version, unless it is the first or they were told.
    pub(super) fn tell_version(
        &mut self,
        received: Received,
        dataset: &Dataset,
        kind: Option<&'static str>,
        version: &SchemaVersion,
        sink: &mut impl Sink,
    ) {
        let Some(difference) = &version.difference else { return };
        let kind = kind.unwrap_or(match &difference.table {
            Some(step) if step.from.schema != step.to.schema => "moved",
            Some(_) => "renamed",
            None => "altered",
        });
        let (compatibility, reasons) = difference.compatibility();
        let shape = &version.shape;
        let details = Details {
            version: Some(New {
                version: version.number,
                columns: &shape.columns,
                key: &shape.key,
                replica_identity: shape.replica_identity,
                types: &shape.types,
                difference,
                compatibility,
                reasons,
            }),
            ..Details::new(kind, &shape.name, version.by.as_ref())
        };
        self.tell(received, dataset, version.from, &details, sink);
    }

    fn tell(
        &mut self,
        received: Received,
        dataset: &Dataset,
        position: Position,
        details: &Details<'_>,
        sink: &mut impl Sink,
    ) {
        if position > self.seen {
            self.tell_of_dataset(received, Op::Schema, (position, dataset), details, sink);
        }
    }

    /// The position of a change, after that of a version which the stream showed here when it was
    /// read before.
    pub(super) fn change_position(
        &mut self,
        received: Received,
        sink: &mut impl Sink,
    ) -> Result<Position, AssembleError> {
        let position = self.next_position()?;
        let Some(version) = self.timeline.shown_at(position).cloned() else { return Ok(position) };
        if let Some(dataset) = self.registry.datasets_by_id.get(&version.dataset).cloned() {
            self.tell_version(received, &dataset, None, &version, sink);
        }
        self.next_position()
    }

    /// Finds out what a described table is, where its first change stands; the position of the
    /// change comes after that of a version which it shows.
    pub(super) fn resolve(
        &mut self,
        received: Received,
        oid: u32,
        mut position: Position,
        sink: &mut impl Sink,
    ) -> Result<Position, AssembleError> {
        let Some(described) = self.tables.get(&oid) else { return Ok(position) };
        let Some(dataset) = self.dataset_of(oid, &described.table, position) else {
            self.set_resolution(oid, Resolution::Ungoverned);
            return Ok(position);
        };
        let table = described.table.described();
        let before = self.timeline.valid_at(dataset.id, position);
        if is_news(before, &table) {
            let before = before.map(|version| &*version.shape);
            let named = |oid: u32| {
                let known = self.type_names.get(&oid).cloned();
                known.or_else(|| builtin_name(oid)).unwrap_or_else(|| format!("type {oid}"))
            };
            let shape = Shape::described_as(before, &table, named);
            self.begin_version(&dataset, position, Cause::Stream, None, shape, false);
            if let Some(version) = self.timeline.shown_at(position).cloned() {
                self.tell_version(received, &dataset, None, &version, sink);
                position = self.next_position()?;
            }
        }
        let version = self.timeline.valid_at(dataset.id, position);
        let mut types = self.types.clone();
        if let Some(version) = version {
            types.merge(Types::of(&version.shape));
        }
        let database = Database { source: &self.origin.source, database: &self.origin.database };
        let number = version.map(|version| version.number);
        let standing = self.standings.get(&dataset.id);
        if let Some(described) = self.tables.get(&oid) {
            let table = &described.table;
            let prepared =
                PreparedRelation::new(table, &database, (&dataset, standing), &types, number);
            self.set_resolution(oid, Resolution::Governed(prepared));
        }
        Ok(position)
    }

    fn set_resolution(&mut self, oid: u32, resolution: Resolution) {
        if let Some(described) = self.tables.get_mut(&oid) {
            described.resolution = resolution;
        }
    }

    /// The dataset of a table: by its OID, which keeps its meaning whatever the table is called; by
    /// name only where no OID is known yet.
    pub(super) fn dataset_of(
        &self,
        oid: u32,
        table: &Table,
        position: Position,
    ) -> Option<Arc<Dataset>> {
        if let Some(dataset) = self.timeline.dataset_of(oid) {
            return self.registry.datasets_by_id.get(&dataset).cloned();
        }
        let TableName { schema, table: name } = &table.name;
        let named = DatasetName::new(&self.origin.source, schema, name).ok()?;
        let dataset = self.registry.dataset(&named)?;
        let may_be = self.timeline.may_be_named(dataset.id, position, &table.name);
        may_be.then(|| Arc::clone(dataset))
    }
}
