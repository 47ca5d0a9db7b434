//! One connection to one source: read, assemble, append, confirm.
//!
//! ```text
//!            Stream ──► Assembler ──► BatchBuilder ──► log::Writer ──► durable LSN
//!              ▲                          (one per gulp)                    │
//!   PostgreSQL │                                                            ▼
//!              └──────────────────── Feedback (its own task) ◄──────────────┘
//! ```
//!
//! A gulp of the socket that ends a transaction becomes one batch: under load batches are large, at
//! rest a commit travels alone and at once. Violations are recorded before the batch that follows them is appended, so
//! that the slot is never confirmed past one that was not.

use chrono::Utc;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::Instant;

use super::assemble::{Assembler, Output, Received, StreamOrigin};
use super::heartbeat::Pulse;
use super::service::{Shared, State};
use super::stream::{self, Event, Stream};
use super::{Error, catalog, setup};
use crate::log::{BatchBuilder, Writer};
use crate::pg::{self, Connection, Target};
use crate::registry::{NewViolation, Revision, Source};
use crate::task::{Failpoint, Tasks};
use crate::vocab::{Lsn, limits};

/// A batch is appended at this size even in the middle of a gulp or a transaction.
const BATCH_BYTES: usize = limits::BATCH_BYTES_MAX / 2;

/// Why a session ended.
pub(super) struct Ended {
    /// The reason.
    pub(super) error: Error,
    /// Whether it had been streaming.
    pub(super) streamed: bool,
}

impl Ended {
    /// It ended before it streamed.
    pub(super) fn early(error: Error) -> Self {
        Self { error, streamed: false }
    }
}

/// A session about to begin.
pub(super) struct Session<'a> {
    /// What it needs and reports to.
    pub(super) shared: &'a Shared,
    /// The source.
    pub(super) source: &'a Source,
    /// Owns the feedback task.
    pub(super) tasks: &'a Tasks,
    /// Whether heartbeats come back.
    pub(super) pulse: &'a Pulse,
}

/// A session that streams.
struct Streaming<'a> {
    shared: &'a Shared,
    source: &'a Source,
    stream: Stream,
    /// For what the stream does not carry: types.
    catalog: Connection,
    assembler: Assembler,
    /// The registry's changes, which datasets and owners follow.
    changes: watch::Receiver<Revision>,
    batch: BatchBuilder,
    /// Reported since the last append.
    violations: Vec<NewViolation>,
    /// End of the last transaction that is wholly in `batch` or before it.
    confirm: Option<Lsn>,
    /// Everything up to here is confirmed once it is durable.
    handed: Lsn,
    /// Whether heartbeats come back.
    pulse: &'a Pulse,
    /// Heartbeats read since the last gulp.
    heard: Vec<String>,
}

impl Session<'_> {
    /// Connects and streams until something breaks; it never ends well by itself. Cancel-safe: what
    /// was not appended is not confirmed and comes again.
    pub(super) async fn run(self, writer: &mut Writer) -> Result<(), Ended> {
        let mut streaming = self.begin(writer).await.map_err(Ended::early)?;
        self.shared.set_state(&self.source.name, State::Streaming);
        loop {
            if let Err(error) = streaming.gulp(writer).await {
                return Err(Ended { error, streamed: true });
            }
        }
    }

    /// Makes sure of publication and slot, and starts the stream.
    async fn begin(&self, writer: &Writer) -> Result<Streaming<'_>, Error> {
        let Self { shared, source, tasks, pulse } = self;
        let changes = shared.registry.changes();
        let target = Target::resolve(&source.url)?;
        let catalog = target.connect("cadastre catalog", &shared.postgres).await?;
        let epoch = setup::epoch(&catalog, source, writer, &shared.registry).await?;
        let (stream, feedback) = stream::start(
            &target,
            &source.name.slot(),
            &source.name.publication(),
            shared.postgres.connect_timeout,
            shared.options.silence,
        )
        .await?;
        let feedback = feedback.run(writer.durable(), shared.options.feedback);
        tasks.spawn("capture feedback", feedback);
        pulse.expect(writer.durable(), Instant::now());
        Ok(Streaming {
            shared,
            source,
            stream,
            assembler: Assembler::new(
                StreamOrigin {
                    source_id: source.id,
                    source: source.name.clone(),
                    database: target.database().to_owned(),
                    epoch,
                },
                shared.registry.snapshot(),
                writer.last(),
            ),
            changes,
            catalog,
            batch: BatchBuilder::new(),
            violations: Vec::new(),
            confirm: None,
            handed: Lsn::ZERO,
            pulse,
            heard: Vec::new(),
        })
    }
}

impl Streaming<'_> {
    /// Waits for bytes and takes everything they complete.
    async fn gulp(&mut self, writer: &mut Writer) -> Result<(), Error> {
        self.stream.fill().await?;
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.assembler.registry_changed(self.shared.registry.snapshot());
        }
        let now_ms = Utc::now().timestamp_millis();
        let mut idle_end = None;
        while let Some(event) = self.stream.next()? {
            match event {
                Event::Keepalive { wal_end } => idle_end = Some(wal_end),
                Event::Data { wal, payload } => {
                    idle_end = None;
                    let received = Received { wal, now_ms };
                    match self.assembler.feed(received, payload, &mut self.batch)? {
                        Output::Nothing => {}
                        Output::TypesWanted(oids) => {
                            let types = catalog::load(&self.catalog, &oids).await;
                            self.assembler.learn(types.map_err(pg::Error::from)?);
                        }
                        Output::Violation(violation) => self.violations.push(*violation),
                        Output::Heartbeat { lsn, id } => {
                            // All before it has been read; in a transaction its end has not.
                            if !self.assembler.in_transaction() {
                                self.confirm = self.confirm.max(Some(lsn));
                            }
                            self.heard.push(id);
                        }
                        Output::Committed { end, .. } => self.confirm = Some(end),
                    }
                    if self.batch.bytes_len() >= BATCH_BYTES {
                        self.append(writer).await?;
                    }
                }
            }
        }
        // Half a transaction waits for its end, or for a full batch.
        if self.confirm.is_some() || !self.assembler.in_transaction() || !self.violations.is_empty()
        {
            self.append(writer).await?;
        }
        // Everything before a keepalive's end of WAL has been sent. With no transaction open,
        // nothing of it is outstanding, so it may be confirmed once all before it is durable.
        if let Some(end) = idle_end
            && !self.assembler.in_transaction()
        {
            writer.advance(end);
        }
        for id in self.heard.drain(..) {
            self.pulse.read(&id, self.handed);
        }
        Ok(())
    }

    /// Records violations, then appends what was gathered.
    async fn append(&mut self, writer: &mut Writer) -> Result<(), Error> {
        if !self.violations.is_empty() {
            self.shared.registry.violations_record(&self.violations).await?;
            let count = u64::try_from(self.violations.len()).unwrap_or(u64::MAX);
            counter!("cadastre_violations_total", "source" => self.source.name.to_string())
                .increment(count);
            self.violations.clear();
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
