//! Messages to transactions to encoded changes with their positions and writers.
//!
//! The [`Assembler`] is a synchronous state machine: one message goes in, encoded changes go to a
//! [`Sink`], and what the service has to act on comes out as an [`Output`]. Nothing is buffered but
//! what is known of tables, types and the open transaction's writers: a transaction is given to it
//! whole and only once it has committed, without what savepoints rolled back, as protocol 1 sends
//! it. One that arrived in parts was put together by `spill` before.
//!
//! ```text
//!            Begin                    Commit
//!   outside ───────► in a transaction ──────► outside        anything else out of place: an error
//!     │ ▲ Relation, Type, Origin       │ ▲ Insert, Update, Delete, Truncate, Relation, Type,
//!     └─┘ Logical (not transactional)  └─┘ Origin, Logical
//! ```
//!
//! Invariants: the ordinal counts every row change, every truncated table and every message that is
//! an event of a transaction, governed or not, so that a change has the same position whenever it is
//! read; changes up to the position already seen are counted but not pushed.
//!
//! A change without a message of the guard was written by the dataset's owner: in enforce mode
//! nobody else could. A message names the writer of the changes of its dataset that follow in the
//! transaction, until the next one. Who the owner is, the stream itself says: from one message of
//! ownership to the next, whatever the registry says by then.

mod error;
mod evolve;
mod guard;
mod ownership;
mod told;

pub use error::AssembleError;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::attribute::{self, HeartbeatMessage, Reason, ViolationMessage, WriterMessage};
use super::catalog::Types;
use super::decode::{Message, Old, PgTime, Relation, Truncate, Tuple};
use super::envelope::{Event, Rows, TransactionParts, writer_part};
use super::mark::Marks;
use super::relation::{PreparedRelation, Table, is_verified};
use super::timeline::Timeline;
use crate::log::{BatchBuilder, KeyColumns};
use crate::registry::{
    KnownTables, NewEvolution, NewViolation, Snapshot, Standing, Switch, TableName,
};
use crate::vocab::{
    DatasetId, DatasetName, Epoch, Lsn, Op, Position, RoleName, ServiceName, SourceId, SourceName,
    Writer,
};

/// Transactions, datasets and roles remembered to report each only once; more at the same time are
/// reported again now and then, which loses nothing.
const LET_THROUGH_MAX: usize = 256;

/// Takes encoded changes, in the order of their positions.
pub trait Sink {
    /// Takes one change; `encode` appends its one JSON object without a line break.
    fn push(
        &mut self,
        position: Position,
        dataset: DatasetId,
        op: Op,
        encode: impl FnOnce(&mut Vec<u8>),
    );

    /// The changes pushed from here on were committed then, in milliseconds since 1970.
    fn committed(&mut self, _at_ms: i64) {}

    /// The change pushed last has these marks in its key columns.
    fn mark(&mut self, _dataset: DatasetId, _columns: &Arc<KeyColumns>, _marks: &[u64]) {}
}

impl Sink for BatchBuilder {
    fn push(
        &mut self,
        position: Position,
        dataset: DatasetId,
        op: Op,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let Ok(()) = Self::push(self, position, dataset, op, |out| {
            encode(out);
            Ok::<(), Infallible>(())
        });
    }

    fn committed(&mut self, at_ms: i64) {
        Self::committed(self, at_ms);
    }

    fn mark(&mut self, dataset: DatasetId, columns: &Arc<KeyColumns>, marks: &[u64]) {
        Self::mark(self, dataset, columns, marks);
    }
}

/// Where a stream comes from.
#[derive(Debug, Clone)]
pub struct StreamOrigin {
    /// The source's number in the registry.
    pub source_id: SourceId,
    /// The source's name.
    pub source: SourceName,
    /// The name of the database itself.
    pub database: String,
    /// The generation of the slot.
    pub epoch: Epoch,
}

/// What the service has to act on after a message.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Output {
    /// Nothing.
    Nothing,
    /// A table uses types that were not looked up yet. Look them up and hand them to
    /// [`Assembler::learn`] before the next message; else their values are written as text.
    TypesWanted(Vec<u32>),
    /// A dataset is named that is not known: give [`Assembler::registry_changed`] the registry's latest
    /// state, then this message again.
    RegistryWanted,
    /// Tables are others from here on: to be recorded before the changes that follow are in the log.
    Evolved(Vec<NewEvolution>),
    /// The guard reports a violation.
    Violation(Box<NewViolation>),
    /// A heartbeat of some process came through.
    Heartbeat {
        /// Where it stands in the WAL.
        lsn: Lsn,
        /// Which it is.
        id: String,
    },
    /// The guard of a dataset is off, or stands again. Record it and hand the registry's state to
    /// [`Assembler::registry_changed`] before the next message.
    Guard(GuardNotice),
    /// A dataset's owner or mode begins here, or is said again.
    Switched(Box<Switch>),
    /// A transaction has ended.
    Committed {
        /// What may be confirmed once all changes pushed so far are durable.
        end: Lsn,
        /// How many changes it pushed.
        pushed: u32,
    },
}

/// What a transaction says of the guard of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardNotice {
    /// The dataset.
    pub dataset: DatasetId,
    /// The generation of the slot.
    pub epoch: Epoch,
    /// The transaction's commit.
    pub commit: Lsn,
    /// Whether it stands from here on.
    pub stands: bool,
    /// When it is off: where it was last seen to stand, where that is known.
    pub since: Option<Lsn>,
}

/// What was found out about a described table.
#[derive(Debug)]
enum Resolution {
    /// Nothing yet; the next change will ask.
    Pending,
    /// It is no dataset.
    Ungoverned,
    /// It is one.
    Governed(PreparedRelation),
}

#[derive(Debug)]
struct Described {
    table: Table,
    resolution: Resolution,
}

/// The transaction being read. Its buffers are kept from one to the next.
#[derive(Debug, Default)]
struct Transaction {
    is_open: bool,
    commit: Lsn,
    committed: PgTime,
    ordinal: u32,
    pushed: u32,
    parts: TransactionParts,
    /// The writers that messages named: what follows the position in an event.
    marked: HashMap<DatasetId, Vec<u8>>,
}

impl Transaction {
    fn next_ordinal(&mut self) -> Result<u32, AssembleError> {
        let next = self.ordinal.checked_add(1);
        self.ordinal = next.ok_or(AssembleError::TooManyChanges { commit: self.commit })?;
        Ok(self.ordinal)
    }

    /// When it committed; the beginning of 1970 where the clock said nothing sensible.
    fn committed_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.committed.unix_ms()).unwrap_or_default()
    }
}

/// When and where a message was received.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Its place in the WAL, for errors.
    pub wal: Lsn,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
}

/// Turns the messages of one connection into changes; make a new one for each connection.
#[derive(Debug)]
pub struct Assembler {
    origin: StreamOrigin,
    registry: Arc<Snapshot>,
    /// Changes up to here are already in the log.
    seen: Position,
    types: Types,
    /// Names of types that are not built in.
    type_names: HashMap<u32, String>,
    tables: HashMap<u32, Described>,
    /// What tables were when.
    timeline: Timeline,
    /// To be recorded, since the last message.
    news: Vec<NewEvolution>,
    /// Whose each dataset is at this place of the stream, where that is known.
    standings: HashMap<DatasetId, Standing>,
    /// Where the registry's latest state was asked for.
    asked_at: Option<Lsn>,
    transaction: Transaction,
    /// The latest writes that were let through: transaction, dataset, role.
    let_through: VecDeque<[String; 3]>,
    /// The marks of the last change.
    marks: Marks,
}

impl Assembler {
    /// Ready for the first message of a connection. Changes up to `seen` are not pushed again;
    /// `known` is what was known of the tables where the stream begins.
    pub fn new(
        origin: StreamOrigin,
        registry: Arc<Snapshot>,
        seen: Position,
        known: KnownTables,
    ) -> Self {
        Self {
            origin,
            registry,
            seen,
            types: Types::new(),
            type_names: HashMap::new(),
            tables: HashMap::new(),
            timeline: Timeline::new(known),
            news: Vec::new(),
            standings: HashMap::new(),
            asked_at: None,
            transaction: Transaction::default(),
            let_through: VecDeque::new(),
            marks: Marks::default(),
        }
    }

    /// The same, knowing whose each dataset is after what was seen. For others the registry is asked.
    pub fn with_standings(mut self, standings: HashMap<DatasetId, Standing>) -> Self {
        self.standings = standings;
        self
    }

    /// Whether a transaction is open: then nothing beyond what was confirmed may be.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_open
    }

    /// From here on datasets, owners and roles are those of this snapshot.
    pub fn registry_changed(&mut self, registry: Arc<Snapshot>) {
        self.registry = registry;
        self.forget_resolutions();
    }

    /// Takes over the types an [`Output::TypesWanted`] asked for.
    pub fn learn(&mut self, types: Types) {
        self.types.merge(types);
        self.forget_resolutions();
    }

    /// The next position of the open transaction.
    fn next_position(&mut self) -> Result<Position, AssembleError> {
        let ordinal = self.transaction.next_ordinal()?;
        Ok(Position::new(self.origin.epoch, self.transaction.commit, ordinal))
    }

    fn forget_resolutions(&mut self) {
        for described in self.tables.values_mut() {
            described.resolution = Resolution::Pending;
        }
    }

    /// Takes one message of pgoutput.
    ///
    /// # Errors
    /// When the message is not one that may stand here. The assembler is of no more use then; what
    /// was pushed before remains valid.
    pub fn take(
        &mut self,
        received: Received,
        message: Message<'_>,
        sink: &mut impl Sink,
    ) -> Result<Output, AssembleError> {
        let wal = received.wal;
        match message {
            Message::Begin { final_lsn, committed, xid } => {
                if self.transaction.is_open {
                    return out_of_order(wal, "a transaction begins inside another");
                }
                self.transaction.parts.begin(self.origin.epoch, final_lsn, xid, committed);
                sink.committed(committed.unix_ms());
                self.transaction.is_open = true;
                self.transaction.commit = final_lsn;
                self.transaction.committed = committed;
                self.transaction.ordinal = 0;
                self.transaction.pushed = 0;
                self.transaction.marked.clear();
            }
            Message::Commit { lsn, end, .. } => {
                if !self.transaction.is_open || lsn != self.transaction.commit {
                    return out_of_order(wal, "a commit of a transaction that did not begin");
                }
                self.transaction.is_open = false;
                return Ok(Output::Committed { end, pushed: self.transaction.pushed });
            }
            Message::Insert { relation, new } => {
                let rows = Rows { old: None, new: Some(new) };
                self.change(received, relation, Op::Create, rows, sink)?;
            }
            Message::Update { relation, old, new } => {
                let rows = Rows { old, new: Some(new) };
                self.change(received, relation, Op::Update, rows, sink)?;
            }
            Message::Delete { relation, old } => {
                let rows = Rows { old: Some(old), new: None };
                self.change(received, relation, Op::Delete, rows, sink)?;
            }
            Message::Truncate(truncate) => self.truncate(received, truncate, sink)?,
            Message::Relation(relation) => return Ok(self.describe(&relation)),
            Message::Logical { transactional: true, prefix, content, .. } => {
                if !self.transaction.is_open {
                    return out_of_order(wal, "a transactional message outside a transaction");
                }
                match prefix {
                    attribute::WRITER => self.mark_writer(content),
                    attribute::SCHEMA => return self.evolve(received, content, sink),
                    attribute::OWNERSHIP => return self.switch(received, content, sink),
                    attribute::GUARD => return self.vouch(received, content, sink),
                    _ => ignore("unknown"),
                }
            }
            Message::Logical { transactional: false, lsn, prefix, content } => match prefix {
                attribute::VIOLATION => return Ok(self.violation(lsn, content)),
                attribute::HEARTBEAT => return Ok(heartbeat(lsn, content)),
                _ => ignore("unknown"),
            },
            Message::Type { oid, schema, name } => {
                let [schema, name] = [schema, name].map(String::from_utf8_lossy);
                self.type_names.insert(oid, format!("{schema}.{name}"));
            }
            Message::Origin { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return out_of_order(wal, "a transaction in parts, not put together before");
            }
            Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::StreamPrepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared { .. } => {
                return out_of_order(wal, "a prepared transaction, which was not asked for");
            }
        }
        Ok(self.output())
    }

    fn describe(&mut self, relation: &Relation<'_>) -> Output {
        let table = Table::new(relation);
        let here =
            Position::new(self.origin.epoch, self.transaction.commit, self.transaction.ordinal);
        // Where the guard said what types are made of, the catalog is not asked what they are now.
        let said = self
            .dataset_of(relation.oid, &table, here)
            .and_then(|dataset| Some(Types::of(&self.timeline.valid_at(dataset.id, here)?.shape)));
        let said = said.unwrap_or_default();
        let known = |oid: u32| self.types.knows(oid) || said.knows(oid);
        let mut wanted: Vec<u32> = table.types().filter(|oid| !known(*oid)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let resolution = Resolution::Pending;
        self.tables.insert(relation.oid, Described { table, resolution });
        if wanted.is_empty() { Output::Nothing } else { Output::TypesWanted(wanted) }
    }

    fn truncate(
        &mut self,
        received: Received,
        truncate: Truncate<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), AssembleError> {
        for relation in truncate.relations() {
            let rows = Rows { old: None, new: None };
            self.change(received, relation, Op::Truncate, rows, sink)?;
        }
        Ok(())
    }

    fn change(
        &mut self,
        received: Received,
        oid: u32,
        op: Op,
        rows: Rows<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), AssembleError> {
        let Received { wal, now_ms } = received;
        if !self.transaction.is_open {
            return out_of_order(wal, "a change outside a transaction");
        }
        let mut position = self.change_position(received, sink)?;
        let unknown = || AssembleError::UnknownRelation { wal, oid };
        let described = self.tables.get(&oid).ok_or_else(unknown)?;
        if position <= self.seen {
            return Ok(());
        }
        if matches!(described.resolution, Resolution::Pending) {
            position = self.resolve(received, oid, position, sink)?;
        }
        let described = self.tables.get(&oid).ok_or_else(unknown)?;
        let Resolution::Governed(relation) = &described.resolution else { return Ok(()) };
        if !tuples(rows).all(|tuple| relation.fits(tuple)) {
            let TableName { schema, table } = described.table.name.clone();
            return Err(AssembleError::Columns { wal, schema, table });
        }
        let (transaction, ordinal) = (&self.transaction, position.ordinal());
        let marked = transaction.marked.get(&relation.dataset);
        let owner = || relation.owner_part(self.origin.epoch, transaction.commit);
        let writer = marked.map_or_else(owner, Vec::as_slice);
        let event =
            Event { relation, transaction: &transaction.parts, ordinal, op, rows, now_ms, writer };
        sink.push(position, relation.dataset, op, |out| event.write(out));
        if let Some((columns, marks)) = self.marks.of(relation, rows) {
            sink.mark(relation.dataset, columns, marks);
        }
        self.transaction.pushed += 1;
        Ok(())
    }

    /// Notes who writes a dataset from here on.
    fn mark_writer(&mut self, content: &[u8]) {
        let Some(message) = attribute::parse::<WriterMessage>(content) else {
            return ignore("malformed");
        };
        let dataset = message.dataset.parse::<DatasetName>();
        let Some(dataset) = dataset.ok().and_then(|name| self.registry.datasets.get(&name)) else {
            return ignore("unknown dataset");
        };
        let service = self.service(&message.role, message.service.as_deref());
        let standing = self.standings.get(&dataset.id);
        let owner = || standing.map_or(&dataset.owner, |standing| &standing.owner).clone();
        let (told, commit) = (standing.is_some(), self.transaction.commit);
        let writer = Writer {
            // Whoever is let through as the owner is the owner, registered or not.
            service: service.or_else(|| (message.reason == Reason::Trace).then(owner)),
            role: Some(message.role),
            verified: is_verified(dataset, told, self.origin.epoch, commit),
        };
        let trace = attribute::trace(message.traceparent.as_deref());
        self.transaction.marked.insert(dataset.id, writer_part(&writer, trace.as_ref()));
    }

    /// Every rejected attempt is a violation; what was let through is one once for each
    /// transaction, dataset and role, however many statements it took.
    fn violation(&mut self, lsn: Lsn, content: &[u8]) -> Output {
        let Some(message) = attribute::parse::<ViolationMessage>(content) else {
            ignore("malformed");
            return Output::Nothing;
        };
        if let Some(passed) = message.let_through() {
            if self.let_through.contains(&passed) {
                return Output::Nothing;
            }
            if self.let_through.len() == LET_THROUGH_MAX {
                self.let_through.pop_front();
            }
            self.let_through.push_back(passed);
        }
        let service = self.service(&message.role, message.service.as_deref());
        let service = service.map(|service| service.as_str().to_owned());
        let at = (self.origin.source_id, self.origin.epoch, lsn);
        Output::Violation(Box::new(message.into_report(at, service)))
    }

    /// The service of a role: as registered, else as the source knows it.
    fn service(&self, role: &str, said: Option<&str>) -> Option<ServiceName> {
        let registered = role.parse::<RoleName>().ok().and_then(|role| {
            self.registry.service_by_role.get(&(self.origin.source.clone(), role)).cloned()
        });
        registered.or_else(|| said?.parse().ok())
    }
}

fn heartbeat(lsn: Lsn, content: &[u8]) -> Output {
    match attribute::parse::<HeartbeatMessage>(content) {
        Some(message) => Output::Heartbeat { lsn, id: message.id },
        None => {
            ignore("malformed");
            Output::Nothing
        }
    }
}

fn tuples(rows: Rows<'_>) -> impl Iterator<Item = Tuple<'_>> {
    let old = rows.old.map(|old| match old {
        Old::Key(tuple) | Old::Row(tuple) => tuple,
    });
    old.into_iter().chain(rows.new)
}

fn out_of_order<T>(wal: Lsn, problem: &'static str) -> Result<T, AssembleError> {
    Err(AssembleError::OutOfOrder { wal, problem })
}

/// Counts a logical message that says nothing to us.
fn ignore(reason: &'static str) {
    metrics::counter!("cadastre_capture_messages_ignored_total", "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests;
