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

use chrono::Utc;
use tokio::time::Instant;

use super::assemble::{Assembler, Received, StreamOrigin};
use super::decode::Dialect;
use super::heartbeat::Pulse;
use super::intake::Intake;
use super::service::{Shared, State};
use super::spill::Spill;
use super::stream::{self, Event, Stream};
use super::{Error, setup};
use crate::log::{BatchBuilder, Writer};
use crate::pg::{Target, server_version};
use crate::registry::Source;
use crate::task::Tasks;
use crate::vocab::Lsn;

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
    /// Whether large transactions are to arrive before they have committed.
    pub(super) in_parts: bool,
}

/// A session that streams.
struct Streaming<'a> {
    stream: Stream,
    intake: Intake<'a>,
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
        let Self { shared, source, tasks, pulse, in_parts } = self;
        let changes = shared.registry.changes();
        let target = Target::resolve(&source.url)?;
        let catalog = target.connect("cadastre catalog", &shared.postgres).await?;
        let epoch = setup::epoch(&catalog, source, writer, &shared.registry).await?;
        let options = &shared.options;
        let dialect = Dialect::newest(server_version(&catalog).await?, *in_parts);
        let dir = options.spill_dir.clone().unwrap_or_else(std::env::temp_dir);
        let spill = Spill::open(dir, options.spill_max, &source.name).await?;
        let (stream, feedback) = stream::start(
            &target,
            (&source.name.slot(), &source.name.publication()),
            dialect,
            shared.postgres.connect_timeout,
            options.silence,
        )
        .await?;
        let feedback = feedback.run(writer.durable(), options.feedback);
        tasks.spawn("capture feedback", feedback);
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
            dialect,
            assembler: Assembler::new(origin, shared.registry.snapshot(), writer.last()),
            spill,
            changes,
            batch: BatchBuilder::new(),
            violations: Vec::new(),
            confirm: None,
            handed: Lsn::ZERO,
            pulse,
            heard: Vec::new(),
        };
        Ok(Streaming { stream, intake })
    }
}

impl Streaming<'_> {
    /// Waits for bytes and takes everything they complete.
    async fn gulp(&mut self, writer: &mut Writer) -> Result<(), Error> {
        let Self { stream, intake } = self;
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
