//! From the messages of one connection to batches in the log: assembles what arrives whole, keeps
//! what arrives in parts until it commits, and appends.
//!
//! Violations, what became of tables and where owners begin are recorded before the batch that
//! follows them is appended, so that the slot is never confirmed past one that was not.

use chrono::Utc;
use metrics::{counter, gauge};
use tokio::sync::watch;

use super::assemble::{AssembleError, Assembler, GuardNotice, Output, Received};
use super::confirm::Heartbeats;
use super::decode::{DecodeError, Dialect, Message, PgTime, decode, decode_part};
use super::heartbeat::Pulse;
use super::service::Shared;
use super::setup::{Retrace, Setup};
use super::spill::Spill;
use super::{Error, catalog};
use crate::log::{BatchBuilder, Writer};
use crate::pg::{self, Connection};
use crate::registry::{NewEvolution, NewViolation, Revision, Source, Switch};
use crate::task::Failpoint;
use crate::vocab::{Lsn, limits};

/// A batch is appended at this size even in the middle of a gulp or a transaction.
const BATCH_BYTES: usize = limits::BATCH_BYTES_MAX / 2;

/// What messages become, and what is needed for it.
pub(super) struct Intake<'a> {
    /// What it reports to.
    pub(super) shared: &'a Shared,
    /// The source.
    pub(super) source: &'a Source,
    /// For what the stream does not carry: types.
    pub(super) catalog: Connection,
    /// The name of the source's database.
    pub(super) database: String,
    /// How messages are to be read.
    pub(super) dialect: Dialect,
    /// Makes changes of whole transactions.
    pub(super) assembler: Assembler,
    /// Keeps transactions that have not committed.
    pub(super) spill: Spill,
    /// The registry's changes, which datasets and owners follow.
    pub(super) changes: watch::Receiver<Revision>,
    /// Changes not appended yet.
    pub(super) batch: BatchBuilder,
    /// Reported since the last append.
    pub(super) violations: Vec<NewViolation>,
    /// What became of tables since the last append.
    pub(super) evolutions: Vec<NewEvolution>,
    /// Where owners begin, read since the last append.
    pub(super) switches: Vec<Switch>,
    /// End of the last transaction that is wholly in `batch` or before it.
    pub(super) confirm: Option<Lsn>,
    /// Everything up to here is confirmed once it is durable.
    pub(super) handed: Lsn,
    /// Whether heartbeats come back.
    pub(super) pulse: &'a Pulse,
    /// Heartbeats read since the last gulp.
    pub(super) heard: Vec<String>,
    /// Heartbeats read, to be written down.
    pub(super) heartbeats: Heartbeats,
    /// What the stream has to repeat and has not yet.
    pub(super) retrace: Option<Retrace>,
}

/// How a transaction that arrived in parts has ended.
struct Committed {
    xid: u32,
    lsn: Lsn,
    end: Lsn,
    at: PgTime,
}

impl Intake<'_> {
    /// Follows the registry.
    pub(super) fn refresh(&mut self) {
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.assembler.registry_changed(self.shared.registry.snapshot());
        }
    }

    /// The stream is not the one that was read before: the next session begins anew.
    pub(super) async fn diverged(&self, writer: &Writer, error: &Error) -> Error {
        let Self { shared, source, catalog, database, .. } = self;
        tracing::error!(source = %source.name, error = %error, "the stream has diverged");
        let (registry, postgres) = (&shared.registry, &shared.postgres);
        Setup { catalog, source, database, registry, postgres }.diverged(writer).await
    }

    /// The slot cannot go on: it is dropped, so that the next session begins anew.
    pub(super) async fn undecodable(&self, error: Error) -> Error {
        tracing::error!(source = %self.source.name, error = %error, "the slot cannot be decoded");
        match pg::take_slot_away(&self.catalog, &self.source.name.slot()).await {
            Ok(()) => error,
            Err(refused) => refused.into(),
        }
    }

    /// Takes one message as it was received.
    pub(super) async fn data(
        &mut self,
        received: Received,
        payload: &[u8],
        writer: &mut Writer,
    ) -> Result<(), Error> {
        let wal = received.wal;
        if self.spill.in_part() {
            if payload.first() == Some(&b'E') {
                decode(payload, self.dialect).map_err(|cause| malformed(wal, cause))?;
                return Ok(self.spill.stop().await?);
            }
            return Ok(self.spill.keep(wal, payload).await?);
        }
        match decode(payload, self.dialect).map_err(|cause| malformed(wal, cause))? {
            Message::StreamStart { xid, first } if !self.assembler.in_transaction() => {
                Ok(self.spill.start(xid, first)?)
            }
            Message::StreamAbort { xid, subxid, .. } => Ok(self.spill.abort(xid, subxid)?),
            Message::StreamCommit { xid, lsn, end, committed } => {
                self.reached(lsn)?;
                let committed = Committed { xid, lsn, end, at: committed };
                self.replay(received, committed, writer).await
            }
            message => {
                if let Message::Begin { final_lsn, .. } = message {
                    self.reached(final_lsn)?;
                }
                self.take(received, message, writer).await
            }
        }
    }

    /// The stream has come as far as this.
    fn reached(&self, lsn: Lsn) -> Result<(), Error> {
        self.retrace.as_ref().map_or(Ok(()), |retrace| retrace.reached(lsn))
    }

    /// Takes one message of a transaction that arrives whole.
    async fn take(
        &mut self,
        received: Received,
        message: Message<'_>,
        writer: &mut Writer,
    ) -> Result<(), Error> {
        let mut output = self.assembler.take(received, message, &mut self.batch)?;
        if output == Output::RegistryWanted {
            self.shared.registry.refresh().await?;
            self.assembler.registry_changed(self.shared.registry.snapshot());
            output = self.assembler.take(received, message, &mut self.batch)?;
        }
        match output {
            Output::Nothing | Output::RegistryWanted => {}
            Output::Evolved(news) => self.evolutions.extend(news),
            Output::TypesWanted(oids) => {
                let types = catalog::load(&self.catalog, &oids).await;
                self.assembler.learn(types.map_err(pg::Error::from)?);
            }
            Output::Guard(notice) => self.guard(notice).await?,
            Output::Violation(violation) => self.violations.push(*violation),
            Output::Switched(switch) => self.switches.push(*switch),
            Output::Heartbeat { lsn, id } => {
                // All before it has been read; in a transaction its end has not.
                if !self.assembler.in_transaction() {
                    self.confirm = self.confirm.max(Some(lsn));
                }
                if let Some(retrace) = &self.retrace
                    && retrace.heartbeat(lsn, &id)?
                {
                    self.retrace = None;
                }
                self.heartbeats.push(lsn, &id);
                self.heard.push(id);
            }
            Output::Committed { end, .. } => self.confirm = Some(end),
        }
        if self.batch.bytes_len() >= BATCH_BYTES {
            self.append(writer).await?;
        }
        Ok(())
    }

    /// Takes a transaction that arrived in parts, now that it has committed: the same messages as
    /// if it had arrived whole, so that the same changes get the same positions.
    async fn replay(
        &mut self,
        received: Received,
        committed: Committed,
        writer: &mut Writer,
    ) -> Result<(), Error> {
        let Committed { xid, lsn, end, at } = committed;
        let mut kept = self.spill.commit(xid, &self.source.name)?;
        let begin = Message::Begin { final_lsn: lsn, committed: at, xid };
        self.take(received, begin, writer).await?;
        while kept.fill().await? {
            let now_ms = Utc::now().timestamp_millis();
            while let Some((wal, message)) = kept.next() {
                let message = decode_part(message).map_err(|cause| malformed(wal, cause))?;
                self.take(Received { wal, now_ms }, message, writer).await?;
            }
        }
        self.take(received, Message::Commit { lsn, end, committed: at }, writer).await
    }

    /// What was received for now has been taken: appends it, unless it is half a transaction, which
    /// waits for its end or for a full batch.
    pub(super) async fn settle(
        &mut self,
        idle_end: Option<Lsn>,
        writer: &mut Writer,
    ) -> Result<(), Error> {
        let open = self.assembler.in_transaction();
        if self.confirm.is_some() || !open || !self.violations.is_empty() {
            self.append(writer).await?;
        }
        // Everything before a keepalive's end of WAL has been sent. With no transaction open,
        // nothing of it is outstanding, so it may be confirmed once all before it is durable.
        // Transactions kept on disk commit later than that, and come again whole.
        if let Some(end) = idle_end
            && !open
            && !self.spill.in_part()
        {
            self.reached(end)?;
            writer.advance(end);
        }
        for id in self.heard.drain(..) {
            self.pulse.read(&id, self.handed);
        }
        Ok(())
    }

    /// Records where a guard is not known to stand, before any change that this is true of goes out.
    async fn guard(&mut self, notice: GuardNotice) -> Result<(), Error> {
        let GuardNotice { dataset, epoch, commit, stands, since } = notice;
        let registry = &self.shared.registry;
        if stands {
            registry.gap_close(dataset, epoch, commit).await?;
        } else {
            registry.gap_open(dataset, epoch, commit, since).await?;
        }
        self.assembler.registry_changed(registry.snapshot());
        Ok(())
    }

    /// Records violations, what became of tables and where owners begin, then appends what was
    /// gathered.
    async fn append(&mut self, writer: &mut Writer) -> Result<(), Error> {
        if !self.evolutions.is_empty() {
            self.shared.registry.evolutions_record(self.source.id, &self.evolutions).await?;
            self.evolutions.clear();
        }
        if !self.violations.is_empty() {
            self.shared.registry.violations_record(&self.violations).await?;
            let count = u64::try_from(self.violations.len()).unwrap_or(u64::MAX);
            counter!("cadastre_violations_total", "source" => self.source.name.to_string())
                .increment(count);
            self.violations.clear();
        }
        if !self.switches.is_empty() {
            self.shared.registry.switches_record(&self.switches).await?;
            self.switches.clear();
        }
        let confirm = self.confirm.take();
        if let Some(batch) = self.batch.finish() {
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            counter!("cadastre_capture_changes_total", "source" => self.source.name.to_string())
                .increment(count);
            Failpoint::CaptureBeforeAppend.hit();
            writer.append(batch, confirm).await?;
        } else if let Some(end) = confirm {
            writer.advance(end);
        }
        if let Some(end) = confirm {
            self.handed = end;
            let behind = end.get().saturating_sub(writer.durable().borrow().get());
            gauge!("cadastre_capture_unconfirmed_bytes", "source" => self.source.name.to_string())
                .set(behind as f64);
        }
        Ok(())
    }
}

fn malformed(wal: Lsn, cause: DecodeError) -> AssembleError {
    AssembleError::Decode { wal, cause }
}
