//! One connection to one source: read, assemble, append, confirm.
//!
//! ```text
//!            Stream ──► Intake ──► BatchBuilder ──► log::Writer ──► durable LSN
//!              ▲                    (one per gulp)                    │
//!   PostgreSQL │                                                      ▼
//!              └─────────────── Feedback (its own task) ◄─────────────┘
//! ```
//!
//! A gulp of the socket that ends a transaction becomes one batch: under load batches are large, at
//! rest a commit travels alone and at once.

use std::sync::Arc;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Error;
use super::assemble::{Assembler, Received, StreamOrigin};
use super::confirm::{Confirm, Heartbeats};
use super::decode::Dialect;
use super::heartbeat::Pulse;
use super::intake::Intake;
use super::service::{Shared, State};
use super::setup::{Setup, Start};
use super::spill::Spill;
use super::stream::{self, Event, Stream};
use crate::log::{BatchBuilder, Writer};
use crate::pg::{self, Target, server_version};
use crate::registry::Source;
use crate::task::Tasks;
use crate::vocab::{Lsn, Position};

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
    pub(super) shared: &'a Arc<Shared>,
    /// The source.
    pub(super) source: &'a Arc<Source>,
    /// Owns the feedback task.
    pub(super) tasks: &'a Tasks,
    /// Whether heartbeats come back.
    pub(super) pulse: &'a Pulse,
    /// Whether large transactions are to arrive before they have committed.
    pub(super) in_parts: bool,
}

/// A session that streams.
struct Streaming<'a> {
    stream: Stream,
    intake: Intake<'a>,
    /// Nothing can be confirmed any more.
    unconfirmed: CancellationToken,
    /// Stops writing down what is to be confirmed.
    _confirm: DropGuard,
}

impl Session<'_> {
    /// Connects and streams until something breaks; it never ends well by itself. Cancel-safe: what
    /// was not appended is not confirmed and comes again.
    pub(super) async fn run(self, writer: &mut Writer) -> Result<(), Ended> {
        let mut streaming = self.begin(writer).await.map_err(Ended::early)?;
        self.shared.set_state(&self.source.name, State::Streaming);
        let unconfirmed = streaming.unconfirmed.clone();
        loop {
            let gulped = tokio::select! {
                biased;
                () = unconfirmed.cancelled() => Err(Error::Unconfirmed),
                gulped = streaming.gulp(writer) => gulped,
            };
            if let Err(error) = gulped {
                let error = match error {
                    Error::Diverged { .. } => streaming.intake.diverged(writer, &error).await,
                    error if error.is_undecodable(&self.source.name.publication()) => {
                        streaming.intake.undecodable(error).await
                    }
                    error => error,
                };
                return Err(Ended { error, streamed: true });
            }
        }
    }

    /// Makes sure of publication and slot, and starts the stream.
    async fn begin(&self, writer: &mut Writer) -> Result<Streaming<'_>, Error> {
        let Self { shared, source, tasks, pulse, in_parts } = self;
        let changes = shared.registry.changes();
        let target = Target::resolve(&source.url)?;
        let catalog = target.connect("cadastre catalog", &shared.postgres).await?;
        let mut wire = stream::connect(&target, shared.postgres.connect_timeout).await?;
        let setup = Setup {
            catalog: &catalog,
            source,
            database: target.database(),
            registry: &shared.registry,
            postgres: &shared.postgres,
        };
        let Start { epoch, seen, retrace } = setup.start(&mut wire, writer).await?;
        let options = &shared.options;
        let dialect = Dialect::newest(server_version(&catalog).await?, *in_parts);
        let dir = options.spill_dir.clone().unwrap_or_else(std::env::temp_dir);
        let spill = Spill::open(dir, options.spill_max, &source.name).await?;
        let names = (source.name.slot(), source.name.publication());
        let (stream, feedback) =
            wire.stream((&names.0, &names.1), dialect, options.silence).await?;
        // From here on nobody else moves the slot.
        let slot = pg::slot_state(&catalog, &names.0).await?;
        let begins = slot.map_or(Lsn::ZERO, |slot| slot.confirmed);
        let retrace = retrace.filter(|heartbeat| heartbeat.is_from(begins));
        let goes_on = Position::new(epoch, begins, 0);
        let known = shared.registry.known_tables(source.id, goes_on).await?;
        let (confirmed, allowed) = watch::channel(Lsn::ZERO);
        let (heartbeats, stop) = (Heartbeats::default(), tasks.stopping().child_token());
        let unconfirmed = CancellationToken::new();
        let confirm = Confirm {
            shared: Arc::clone(shared),
            source: Arc::clone(source),
            durable: writer.durable(),
            confirmed,
            heartbeats: heartbeats.clone(),
            failed: unconfirmed.clone(),
        };
        tasks.spawn("capture feedback", feedback.run(allowed, options.feedback));
        tasks.spawn("capture confirmation", confirm.run(stop.clone()));
        pulse.expect(writer.durable(), Instant::now());
        let origin = StreamOrigin {
            source_id: source.id,
            source: source.name.clone(),
            database: target.database().to_owned(),
            epoch,
        };
        let intake = Intake {
            shared,
            source,
            catalog,
            database: target.database().to_owned(),
            dialect,
            assembler: Assembler::new(origin, shared.registry.snapshot(), seen, known)
                .with_standings(shared.registry.standings(source.id, seen).await?),
            spill,
            changes,
            batch: BatchBuilder::new(),
            violations: Vec::new(),
            evolutions: Vec::new(),
            switches: Vec::new(),
            confirm: None,
            handed: Lsn::ZERO,
            pulse,
            heard: Vec::new(),
            heartbeats,
            retrace,
        };
        Ok(Streaming { stream, intake, unconfirmed, _confirm: stop.drop_guard() })
    }
}

impl Streaming<'_> {
    /// Waits for bytes and takes everything they complete.
    async fn gulp(&mut self, writer: &mut Writer) -> Result<(), Error> {
        let Self { stream, intake, .. } = self;
        stream.fill().await?;
        intake.refresh();
        let now_ms = Utc::now().timestamp_millis();
        let mut idle_end = None;
        while let Some(event) = stream.next()? {
            match event {
                Event::Keepalive { wal_end } => idle_end = Some(wal_end),
                Event::Data { wal, payload } => {
                    idle_end = None;
                    intake.data(Received { wal, now_ms }, payload, writer).await?;
                }
            }
        }
        intake.settle(idle_end, writer).await
    }
}
