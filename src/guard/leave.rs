//! Datasets and sources that leave: told to the registry first, then cleared in the source.

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Duration, Instant};

use super::desired::desired;
use super::governor::{Governor, failed};
use super::uninstall::{self, Progress};
use super::{Error, install};
use crate::registry::{Revision, Source};
use crate::task::Failpoint;
use crate::vocab::{DatasetName, SourceName};

impl Governor {
    /// Takes one dataset out of governance: its guard in the source and its owner in the registry
    /// end together.
    ///
    /// # Errors
    /// [`Error::UnknownDataset`]; [`Error::Busy`] when its table stayed locked for `guard_patience`;
    /// when the registry refuses or the source fails.
    pub async fn release(&self, dataset: &DatasetName) -> Result<Revision, Error> {
        let _turn = self.turn_of(dataset.source()).await?;
        self.registry.refresh().await?;
        let snapshot = self.registry.snapshot();
        if !snapshot.datasets.contains_key(dataset) {
            return Err(Error::UnknownDataset(dataset.clone()));
        }
        let name = dataset.source();
        let (sources, _) = desired(&snapshot, &[]);
        let wanted = sources.get(name).ok_or_else(|| Error::UnknownSource(name.clone()))?;
        let client = self.open(name, wanted).await?;
        let fail = |cause| failed(name, cause);
        let deadline = Instant::now() + self.options.guard_patience;
        let mut pauses = pauses();
        loop {
            let attempt = async {
                install::begin(&client, &self.options).await?;
                uninstall::release(&client, name, dataset).await
            };
            let Err(error) = attempt.await else { break };
            client.batch_execute("ROLLBACK").await.map_err(|error| fail(error.into()))?;
            if !error.is_lock_timeout() {
                return Err(fail(error));
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { source_name: name.clone() });
            }
            tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
        Failpoint::GuardApply.hit();
        let revision = match self.registry.dataset_release(dataset).await {
            Ok(revision) => revision,
            Err(error) => {
                client.batch_execute("ROLLBACK").await.map_err(|error| fail(error.into()))?;
                return Err(error.into());
            }
        };
        Failpoint::GuardApply.hit();
        client.batch_execute("COMMIT").await.map_err(|error| fail(error.into()))?;
        Ok(revision)
    }

    /// Takes everything of Cadastre out of a source and the source out of the registry. Returns what
    /// had to be left, a sentence each.
    ///
    /// Once the registry knows, it goes on by itself, also after a crash: [`Governor::run`] does what
    /// is left to do.
    ///
    /// # Errors
    /// [`Error::UnknownSource`]; when the registry refuses; [`Error::Busy`] when it was not done
    /// within `guard_patience`.
    pub async fn uninstall(&self, name: &SourceName) -> Result<Vec<String>, Error> {
        self.registry.refresh().await?;
        let Some(source) = self.registry.snapshot().sources.get(name).cloned() else {
            return Err(Error::UnknownSource(name.clone()));
        };
        {
            let _turn = self.turn_of(name).await?;
            self.registry.source_leave(name).await?;
        }
        Failpoint::GuardUninstall.hit();
        let deadline = Instant::now() + self.options.guard_patience;
        let mut pauses = pauses();
        loop {
            if let Progress::Done(left) = self.leave(&source).await? {
                return Ok(left);
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { source_name: name.clone() });
            }
            tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// One attempt to clear a source that is leaving.
    pub(super) async fn leave(&self, source: &Source) -> Result<Progress, Error> {
        let _turn = self.turn_of(&source.name).await?;
        let (sources, _) = desired(&self.registry.snapshot(), &[]);
        // Somebody else has cleared it meanwhile.
        let Some(wanted) = sources.get(&source.name) else { return Ok(Progress::Done(Vec::new())) };
        let client = self.open(&source.name, wanted).await?;
        let progress = uninstall::uninstall(&client, &self.options, &source.name)
            .await
            .map_err(|cause| failed(&source.name, cause))?;
        if let Progress::Done(left) = &progress {
            Failpoint::GuardUninstall.hit();
            self.registry.source_left(source.id).await?;
            for left in left {
                tracing::warn!(source = %source.name, left, "left behind in the source");
            }
            tracing::info!(source = %source.name, "nothing of Cadastre is in the source any more");
        }
        Ok(progress)
    }
}

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}
