//! Keeping the snapshot fresh when another instance writes.
//!
//! A dedicated connection listens; when it is lost it is made again, with growing pauses. Beside
//! it the stored revision is looked at every few seconds, so that a lost notification costs
//! seconds and never more.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

use super::{Error, Registry};

/// Where each new revision is announced. Channels belong to a database.
pub(super) const CHANNEL: &str = "cadastre_registry";

/// How often the stored revision is looked at without having been told.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How often it is written down when tokens were last seen.
const WRITE_USES_EVERY: Duration = Duration::from_secs(60);

/// Shortest and longest pause before listening again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Registry {
    /// Follows the database until `stop`. Failures are passing by nature here: they are logged and
    /// tried again.
    pub async fn run(self, stop: CancellationToken) {
        let follow = async { tokio::join!(self.listen(), self.look(), self.write_uses()) };
        Box::pin(stop.run_until_cancelled(follow)).await;
        if let Err(error) = self.token_uses_write().await {
            tracing::debug!(error = %error, "the last uses of tokens were not written down");
        }
    }

    async fn listen(&self) {
        let pauses = || {
            ExponentialBuilder::default()
                .with_min_delay(PAUSE_MIN)
                .with_max_delay(PAUSE_MAX)
                .with_jitter()
                .without_max_times()
                .build()
        };
        let mut pause = pauses();
        loop {
            match self.hear().await {
                Ok(()) => {
                    tracing::info!("lost the connection that listens for registry changes");
                    pause = pauses();
                }
                Err(error) => tracing::debug!(error = %error, "cannot listen for registry changes"),
            }
            tokio::time::sleep(pause.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// Catches up whenever something is announced, until the connection is lost.
    async fn hear(&self) -> Result<(), Error> {
        let mut listener = self.pool().listen(CHANNEL).await?;
        // What was announced before the listener stood was not heard.
        self.catch_up().await?;
        while listener.next().await.is_some() {
            self.catch_up().await?;
        }
        Ok(())
    }

    async fn look(&self) {
        let mut failing = false;
        loop {
            match self.catch_up().await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the registry's database answers again");
                }
                Ok(()) => {}
                Err(error) if failing => tracing::debug!(error = %error, "still no answer"),
                Err(error) => {
                    failing = true;
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(error = %error, cause, "the registry may be out of date");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Writes down now and then which tokens were used.
    async fn write_uses(&self) {
        loop {
            tokio::time::sleep(WRITE_USES_EVERY).await;
            if let Err(error) = self.token_uses_write().await {
                tracing::debug!(error = %error, "uses of tokens not written down yet");
            }
        }
    }

    /// Refreshes the snapshot if the database has a later revision.
    async fn catch_up(&self) -> Result<(), Error> {
        if self.revision_stored().await? > self.snapshot().revision {
            self.refresh().await?;
        }
        Ok(())
    }
}
