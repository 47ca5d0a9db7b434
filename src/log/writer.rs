//! Appending to a source's log, and the task that makes what was appended durable.
//!
//! The task takes all that is pending, hands it to the store as one append and takes again: under
//! load appends grow by themselves, and only when little is pending does it linger for company. A
//! failing store is tried again for ever; meanwhile readers go on reading, confirmations stand
//! still, and at [`PENDING_BYTES_MAX`](crate::vocab::limits::PENDING_BYTES_MAX) the writer waits.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::chunk::CHUNK_BYTES_MAX;
use super::error::chain;
use super::live::Live;
use super::{Batch, Error, Store};
use crate::task::Failpoint;
use crate::vocab::limits::BATCH_BYTES_MAX;
use crate::vocab::{Lsn, Position, Retry};

/// Most that one append hands to the store, in bytes: enough to fill its round trips, little
/// enough that the writer gets room again in steps.
const APPEND_BYTES_MAX: usize = 4 * BATCH_BYTES_MAX;

/// The one writer of a source in this process. Dropping it makes room for the next; what it has
/// appended still becomes durable.
#[derive(Debug)]
pub struct Writer {
    place: Place,
    last: Position,
    confirmed: watch::Receiver<Lsn>,
    stop: CancellationToken,
    /// Tells the task that nothing more comes.
    _gone: DropGuard,
}

/// The writer's place at a source, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    live: Arc<Live>,
}

impl Place {
    pub(super) fn claim(live: Arc<Live>) -> Result<Self, Error> {
        if live.claim() { Ok(Self { live }) } else { Err(Error::Busy { source_id: live.source }) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.release();
    }
}

impl Writer {
    /// A writer that goes on after `durable`, the end of what the store has.
    pub(super) fn open(
        place: Place,
        durable: Position,
        gone: DropGuard,
        stop: CancellationToken,
    ) -> Self {
        let confirmed = place.live.open(durable);
        Self { place, last: durable, confirmed, stop, _gone: gone }
    }

    /// The newest position appended or durable; [`Position::MIN`] when the log is empty.
    pub fn last(&self) -> Position {
        self.last
    }

    /// Makes a batch visible to readers at once and durable soon. Waits while too much is pending.
    /// Once this batch and all before are durable, `confirm` may be confirmed to the source; it is
    /// `None` in the middle of a transaction.
    ///
    /// Cancel-safe: dropped while it waits, it has appended nothing. An error is final for this
    /// writer, except [`Error::OutOfOrder`] and [`Error::TooLarge`] given before the batch is taken.
    pub async fn append(&mut self, batch: Batch, confirm: Option<Lsn>) -> Result<(), Error> {
        let (first, last, bytes) = (batch.first(), batch.last(), batch.bytes_len());
        if first <= self.last {
            return Err(Error::OutOfOrder { first, last: self.last });
        }
        if bytes > CHUNK_BYTES_MAX {
            return Err(Error::TooLarge { bytes, bytes_max: CHUNK_BYTES_MAX });
        }
        let batch = Arc::new(batch);
        let live = &self.place.live;
        while !live.try_append(&batch, confirm)? {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Stopped),
                () = live.room.notified() => {}
            }
        }
        self.last = last;
        Ok(())
    }

    /// Appends nothing; once all appended so far is durable, `confirm` may be confirmed.
    pub fn advance(&mut self, confirm: Lsn) {
        self.place.live.confirm(confirm);
    }

    /// The highest LSN that may be confirmed to the source; [`Lsn::ZERO`] until there is one.
    pub fn durable(&self) -> watch::Receiver<Lsn> {
        self.confirmed.clone()
    }
}

/// Makes durable what a writer appends, until the writer is gone and nothing is pending.
pub(super) struct Flush {
    pub(super) live: Arc<Live>,
    pub(super) store: Arc<dyn Store>,
    pub(super) linger: Duration,
    pub(super) stop: CancellationToken,
    /// The writer is gone.
    pub(super) gone: CancellationToken,
    /// Keeps the next writer from opening before this one's batches are where they go.
    pub(super) seat: OwnedMutexGuard<()>,
}

impl Flush {
    pub(super) async fn run(self) {
        while self.wait().await {
            let batches = self.live.pending(APPEND_BYTES_MAX);
            Failpoint::LogBeforeDurable.hit();
            match self.persist(&batches).await {
                Ok(()) => {
                    Failpoint::LogAfterDurable.hit();
                    self.live.made_durable(&batches);
                }
                Err(error) => {
                    if !matches!(error, Error::Stopped) {
                        tracing::error!(
                            source.id = self.live.source.0,
                            error = chain(&error),
                            "the log cannot be appended to"
                        );
                    }
                    self.live.fail(error);
                    break;
                }
            }
        }
        drop(self.seat);
    }

    /// Waits for something pending, and a little for company. False when there is and will be none.
    async fn wait(&self) -> bool {
        while self.live.pending_bytes() == 0 {
            if self.gone.is_cancelled() {
                return false;
            }
            tokio::select! {
                biased;
                () = self.live.work.notified() => {}
                () = self.gone.cancelled() => {}
                () = self.stop.cancelled() => {
                    self.live.fail(Error::Stopped);
                    return false;
                }
            }
        }
        let lingered = tokio::time::sleep(self.linger);
        tokio::pin!(lingered);
        while self.live.pending_bytes() < BATCH_BYTES_MAX {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = self.gone.cancelled() => break,
                () = &mut lingered => break,
                () = self.live.work.notified() => {}
            }
        }
        true
    }

    /// Appends until it succeeds, can never succeed, or the process stops.
    async fn persist(&self, batches: &[Arc<Batch>]) -> Result<(), Error> {
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .build();
        let mut result = self.timed(batches).await;
        while let Err(error) = result {
            let pause = match error.retry() {
                Retry::Never => return Err(error),
                Retry::Now => Duration::ZERO,
                Retry::Later => pauses.next().unwrap_or_default(),
            };
            let trouble = chain(&error);
            if self.live.set_trouble(trouble.clone()) {
                tracing::warn!(
                    source.id = self.live.source.0,
                    error = trouble,
                    "the log cannot be appended to; trying again"
                );
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
            result = self.again(batches).await;
        }
        if self.live.trouble().is_some() {
            tracing::info!(source.id = self.live.source.0, "the log can be appended to again");
        }
        Ok(())
    }

    /// Another attempt. The one before may have succeeded although its answer was lost; then the
    /// log ends where these batches end, and the same position is the same change.
    async fn again(&self, batches: &[Arc<Batch>]) -> Result<(), Error> {
        match self.timed(batches).await {
            Err(Error::OutOfOrder { last, .. })
                if batches.last().is_some_and(|batch| batch.last() == last) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    async fn timed(&self, batches: &[Arc<Batch>]) -> Result<(), Error> {
        let started = Instant::now();
        let result = self.store.append(self.live.source, batches).await;
        match &result {
            Ok(()) => self.live.meters.append_seconds.record(started.elapsed().as_secs_f64()),
            Err(_) => self.live.meters.append_errors.increment(1),
        }
        result
    }
}
