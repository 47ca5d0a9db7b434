//! The one way to change what the registry declares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::desired::{Desired, desired};
use super::install::{self, Scripts};
use super::{Error, Need, Refusal, doctor, fingerprint, preflight};
use crate::config::PostgresOptions;
use crate::pg::{self, Connection, SlotFound, Target, ensure_publication, ensure_slot};
use crate::registry::{Decided, GuardState, Mutation, Registry, Revision, Snapshot};
use crate::task::Failpoint;
use crate::vocab::{DatasetId, DatasetName, Lsn, Mode, SourceName};

/// Puts ownership into sources. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Governor {
    pub(super) registry: Registry,
    pub(super) options: PostgresOptions,
    /// One change at a time in this process; the lock in each source covers the others.
    pub(super) applying: Arc<Mutex<()>>,
}

/// A source with an open transaction that holds the new guards.
struct Prepared {
    name: SourceName,
    client: Connection,
    /// The slot was made for this change.
    slot_created: bool,
    /// What the guard's own objects look like, if they were made for this change.
    objects: Option<(BTreeMap<String, String>, Lsn)>,
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
        let decided = Decided::on(&self.registry.snapshot(), mutations, "cadastre");
        self.apply_decided(mutations, &decided).await
    }

    /// The same, on behalf of somebody who has seen who owns what: a dataset that has passed to
    /// another owner since is not taken back.
    ///
    /// # Errors
    /// As [`Governor::apply`].
    pub async fn apply_decided(
        &self,
        mutations: &[Mutation],
        decided: &Decided,
    ) -> Result<Revision, Error> {
        let _applying = self.applying.lock().await;
        self.registry.refresh().await?;
        let (sources, touched) = desired(&self.registry.snapshot(), mutations);
        let connected = self.connect(&sources, &touched).await?;
        let refusals = self.preflight(&sources, &connected).await?;
        Failpoint::GuardApply.hit();
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
        Failpoint::GuardApply.hit();
        Failpoint::GuardBeforeRegistry.hit();
        let revision = match self.registry.apply_decided(mutations, decided).await {
            Ok(revision) => revision,
            Err(error) => {
                self.abandon(prepared).await;
                return Err(error.into());
            }
        };
        Failpoint::GuardApply.hit();
        if prepared.is_empty() {
            return Ok(revision);
        }
        Failpoint::GuardBeforeSource.hit();
        for source in &prepared {
            if let (Some((objects, at)), Some(registered)) =
                (&source.objects, self.registry.snapshot().sources.get(&source.name))
            {
                let version = fingerprint::version();
                self.registry.baseline_put(registered.id, &version, objects, *at).await?;
            }
            Failpoint::GuardApply.hit();
            let committed = source.client.batch_execute("COMMIT").await;
            committed.map_err(|error| failed(&source.name, error.into()))?;
            Failpoint::GuardApply.hit();
        }
        Failpoint::GuardBeforeInstalled.hit();
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

    /// Changes the mode of one dataset, on behalf of somebody who has seen `snapshot`.
    ///
    /// # Errors
    /// As [`Governor::apply`], and [`Error::UnknownDataset`].
    pub async fn set_mode(
        &self,
        dataset: &DatasetName,
        mode: Mode,
        snapshot: &Snapshot,
        by: &str,
    ) -> Result<Revision, Error> {
        let found =
            snapshot.dataset(dataset).ok_or_else(|| Error::UnknownDataset(dataset.clone()))?;
        let mutation = Mutation::DatasetPut {
            name: found.name.clone(),
            owner: found.owner.clone(),
            mode,
            description: found.description.clone(),
            tags: found.tags.clone(),
            columns: found.columns.clone(),
            derived_from: found.derived_from.clone(),
        };
        let mutations = [mutation];
        self.apply_decided(&mutations, &Decided::on(snapshot, &mutations, by)).await
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
    pub(super) async fn open(
        &self,
        name: &SourceName,
        wanted: &Desired,
    ) -> Result<Connection, Error> {
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
        let deadline = Instant::now() + self.options.guard_patience;
        let slot_created = loop {
            match ensure_slot(&client, &name.slot()).await {
                // A new slot waits for the transactions that are open; nobody waits for it.
                Err(pg::Error::SlotBlocked { .. }) if Instant::now() < deadline => {}
                found => break found.map_err(fail)? == SlotFound::Created,
            }
        };
        Failpoint::GuardApply.hit();
        let mut prepared = Prepared { name: name.clone(), client, slot_created, objects: None };
        let Some(wanted) = sources.get(name) else { return Ok(prepared) };
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let attempt = async {
                install::begin(&prepared.client, &self.options).await?;
                install::install(&prepared.client, name, wanted, Scripts::IfOutdated).await
            };
            let error = match attempt.await {
                Ok(installed) => {
                    prepared.objects = installed.objects;
                    return Ok(prepared);
                }
                Err(error) => error,
            };
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
    pub(super) async fn installed(
        &self,
        sources: &BTreeSet<SourceName>,
    ) -> Result<Revision, Error> {
        let snapshot = self.registry.snapshot();
        let datasets: Vec<DatasetId> = snapshot
            .datasets
            .values()
            .filter(|dataset| sources.contains(dataset.name.source()))
            // Capture says when a dropped table is there again.
            .filter(|dataset| dataset.guard != GuardState::Dropped)
            .map(|dataset| dataset.id)
            .collect();
        Ok(self.registry.guard_state(&datasets, GuardState::Installed).await?)
    }
}

/// A failure of one source.
pub(super) fn failed(name: &SourceName, cause: pg::Error) -> Error {
    Error::Source { source_name: name.clone(), cause }
}
