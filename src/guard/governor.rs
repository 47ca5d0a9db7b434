//! The one way to change what the registry declares, and the loop that makes sources agree with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use metrics::counter;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::desired::{Desired, desired};
use super::{Error, Need, Refusal, doctor, install, preflight};
use crate::config::PostgresOptions;
use crate::pg::{self, Connection, SlotFound, Target, ensure_publication, ensure_slot};
use crate::registry::{GuardState, Mutation, Registry, Revision};
use crate::vocab::{DatasetId, DatasetName, Mode, SourceName};

/// How often sources are compared with the registry.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// Puts ownership into sources. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Governor {
    registry: Registry,
    options: PostgresOptions,
    /// One change at a time in this process; the lock in each source covers the others.
    applying: Arc<Mutex<()>>,
}

/// A source with an open transaction that holds the new guards.
struct Prepared {
    name: SourceName,
    client: Connection,
    /// The slot was made for this change.
    slot_created: bool,
}

impl Governor {
    /// A governor of everything that `registry` declares.
    pub fn new(registry: Registry, options: PostgresOptions) -> Self {
        Self { registry, options, applying: Arc::default() }
    }

    /// Applies mutations, in the registry and in the sources, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Refused`] with everything that stands in the way; [`Error::Busy`] when a table
    /// stayed locked for `guard_patience`.
    pub async fn apply(&self, mutations: &[Mutation]) -> Result<Revision, Error> {
        let _applying = self.applying.lock().await;
        self.registry.refresh().await?;
        let (sources, touched) = desired(&self.registry.snapshot(), mutations);
        let connected = self.connect(&sources, &touched).await?;
        let refusals = self.preflight(&sources, &connected).await?;
        if !refusals.is_empty() {
            return Err(Error::Refused(refusals));
        }
        let mut prepared = Vec::new();
        for (name, client) in connected {
            match self.prepare(&name, client, &sources).await {
                Ok(source) => prepared.push(source),
                Err(error) => {
                    self.abandon(prepared).await;
                    return Err(error);
                }
            }
        }
        let revision = match self.registry.apply(mutations).await {
            Ok(revision) => revision,
            Err(error) => {
                self.abandon(prepared).await;
                return Err(error.into());
            }
        };
        if prepared.is_empty() {
            return Ok(revision);
        }
        for source in &prepared {
            let committed = source.client.batch_execute("COMMIT").await;
            committed.map_err(|error| failed(&source.name, error.into()))?;
        }
        self.installed(&touched).await
    }

    /// What would stand in the way of these mutations, without changing anything.
    ///
    /// # Errors
    /// When a source cannot be reached.
    pub async fn check(&self, mutations: &[Mutation]) -> Result<Vec<Refusal>, Error> {
        let (sources, touched) = desired(&self.registry.snapshot(), mutations);
        let connected = self.connect(&sources, &touched).await?;
        self.preflight(&sources, &connected).await
    }

    /// Changes the mode of one dataset.
    ///
    /// # Errors
    /// As [`Governor::apply`], and [`Error::UnknownDataset`].
    pub async fn set_mode(&self, dataset: &DatasetName, mode: Mode) -> Result<Revision, Error> {
        let snapshot = self.registry.snapshot();
        let found =
            snapshot.datasets.get(dataset).ok_or_else(|| Error::UnknownDataset(dataset.clone()))?;
        let mutation = Mutation::DatasetPut {
            name: found.name.clone(),
            owner: found.owner.clone(),
            mode,
            description: found.description.clone(),
            tags: found.tags.clone(),
            columns: found.columns.clone(),
            derived_from: found.derived_from.clone(),
        };
        self.apply(&[mutation]).await
    }

    /// What a source has and what it still needs, each with the statement that mends it.
    ///
    /// # Errors
    /// [`Error::UnknownSource`], or when it cannot be reached.
    pub async fn doctor(&self, source: &SourceName) -> Result<Vec<Need>, Error> {
        let (mut sources, _) = desired(&self.registry.snapshot(), &[]);
        let wanted = sources.remove(source).ok_or_else(|| Error::UnknownSource(source.clone()))?;
        let client = self.open(source, &wanted).await?;
        doctor::examine(&client, source, &wanted).await.map_err(|cause| failed(source, cause))
    }

    /// Compares sources with the registry, at start, every 30 s and when the registry changes, and
    /// installs what is missing, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut timer = tokio::time::interval(RECONCILE_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.registry.changes();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = timer.tick() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            for name in self.registry.snapshot().sources.keys() {
                let reconciled = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    reconciled = self.reconcile(name) => reconciled,
                };
                if let Err(error) = reconciled {
                    // Capture says loudly that a source is down; here it only means later.
                    tracing::debug!(source = %name, error = %error, "guards not compared");
                }
            }
        }
    }

    /// Brings one source to what the registry says now.
    async fn reconcile(&self, name: &SourceName) -> Result<(), Error> {
        let _applying = self.applying.lock().await;
        let (sources, _) = desired(&self.registry.snapshot(), &[]);
        let Some(wanted) = sources.get(name) else { return Ok(()) };
        let client = self.open(name, wanted).await?;
        let fail = |cause| failed(name, cause);
        ensure_publication(&client, &name.publication()).await.map_err(fail)?;
        let attempt = async {
            install::begin(&client, &self.options).await?;
            // Another instance may have changed both sides while this one waited for the lock.
            let refreshed = self.registry.refresh().await;
            let (mut sources, _) = desired(&self.registry.snapshot(), &[]);
            let changed = match (refreshed, sources.remove(name)) {
                (Ok(_), Some(mut wanted)) => {
                    self.leave_out_refused(&client, &mut wanted).await?;
                    install::install(&client, name, &wanted).await?
                }
                _ => Vec::new(),
            };
            client.batch_execute("COMMIT").await?;
            Ok::<_, pg::Error>(changed)
        };
        let changed = attempt.await.map_err(fail)?;
        for dataset in &changed {
            counter!("cadastre_guard_repairs_total", "source" => name.to_string()).increment(1);
            tracing::warn!(source = %name, %dataset, "guard was missing or altered; installed again");
        }
        let snapshot = self.registry.snapshot();
        let pending = snapshot
            .datasets
            .values()
            .any(|dataset| dataset.name.source() == name && dataset.guard == GuardState::Pending);
        if pending {
            self.installed(&BTreeSet::from([name.clone()])).await?;
        }
        Ok(())
    }

    /// Tables that are gone or cannot be governed now are the doctor's to report; they must not
    /// keep the others from being guarded.
    async fn leave_out_refused(
        &self,
        client: &Connection,
        wanted: &mut Desired,
    ) -> Result<(), pg::Error> {
        for name in wanted.datasets.keys().cloned().collect::<Vec<_>>() {
            if !preflight::table(client, &name, &[]).await?.is_empty() {
                wanted.datasets.remove(&name);
            }
        }
        Ok(())
    }

    /// Connections to the touched sources.
    async fn connect(
        &self,
        sources: &BTreeMap<SourceName, Desired>,
        touched: &BTreeSet<SourceName>,
    ) -> Result<Vec<(SourceName, Connection)>, Error> {
        let mut connected = Vec::new();
        for name in touched {
            if let Some(wanted) = sources.get(name) {
                connected.push((name.clone(), self.open(name, wanted).await?));
            }
        }
        Ok(connected)
    }

    /// A connection to one source; a connection string that can never work is a refusal.
    async fn open(&self, name: &SourceName, wanted: &Desired) -> Result<Connection, Error> {
        let target = Target::resolve(&wanted.url).map_err(|error| {
            let message = error.to_string();
            Error::Refused(vec![Refusal { kind: "source", name: name.to_string(), message }])
        })?;
        let connected = target.connect("cadastre guard", &self.options).await;
        connected.map_err(|cause| failed(name, cause))
    }

    /// Everything that stands in the way, in all sources.
    async fn preflight(
        &self,
        sources: &BTreeMap<SourceName, Desired>,
        connected: &[(SourceName, Connection)],
    ) -> Result<Vec<Refusal>, Error> {
        let mut refusals = Vec::new();
        for (name, client) in connected {
            if let Some(wanted) = sources.get(name) {
                let found = preflight::refusals(client, name, wanted).await;
                refusals.extend(found.map_err(|cause| failed(name, cause))?);
            }
        }
        Ok(refusals)
    }

    /// Publication, slot and an open transaction with the guards in it. Locks are waited for in
    /// short turns, so that writers never queue for longer than one of them.
    async fn prepare(
        &self,
        name: &SourceName,
        client: Connection,
        sources: &BTreeMap<SourceName, Desired>,
    ) -> Result<Prepared, Error> {
        let fail = |cause| failed(name, cause);
        ensure_publication(&client, &name.publication()).await.map_err(fail)?;
        let slot_created =
            ensure_slot(&client, &name.slot()).await.map_err(fail)? == SlotFound::Created;
        let prepared = Prepared { name: name.clone(), client, slot_created };
        let Some(wanted) = sources.get(name) else { return Ok(prepared) };
        let deadline = Instant::now() + self.options.guard_patience;
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let attempt = async {
                install::begin(&prepared.client, &self.options).await?;
                install::install(&prepared.client, name, wanted).await
            };
            let Err(error) = attempt.await else { return Ok(prepared) };
            let locked = error.is_lock_timeout();
            if locked && Instant::now() < deadline {
                prepared.client.batch_execute("ROLLBACK").await.map_err(|e| fail(e.into()))?;
                tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(1))).await;
                continue;
            }
            self.abandon(vec![prepared]).await;
            return Err(if locked {
                Error::Busy { source_name: name.clone() }
            } else {
                failed(name, error)
            });
        }
    }

    /// Takes back what was prepared: transactions, and slots that nothing would ever read.
    async fn abandon(&self, prepared: Vec<Prepared>) {
        for source in prepared {
            let mut undo = source.client.batch_execute("ROLLBACK").await;
            if undo.is_ok() && source.slot_created {
                let drop_slot = "SELECT pg_drop_replication_slot($1)";
                undo = source.client.execute(drop_slot, &[&source.name.slot()]).await.map(drop);
            }
            if let Err(error) = undo {
                tracing::warn!(source = %source.name, error = %error, "could not take back a prepared change");
            }
        }
    }

    /// Marks the guards of these sources as standing.
    async fn installed(&self, sources: &BTreeSet<SourceName>) -> Result<Revision, Error> {
        let snapshot = self.registry.snapshot();
        let datasets: Vec<DatasetId> = snapshot
            .datasets
            .values()
            .filter(|dataset| sources.contains(dataset.name.source()))
            .map(|dataset| dataset.id)
            .collect();
        Ok(self.registry.guard_state(&datasets, GuardState::Installed).await?)
    }
}

/// A failure of one source.
fn failed(name: &SourceName, cause: pg::Error) -> Error {
    Error::Source { source_name: name.clone(), cause }
}
