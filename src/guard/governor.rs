//! The one way to change what the registry declares.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, timeout};

use super::desired::{Desired, desired};
use super::install::{self, Scripts};
use super::turns::{Turn, Turns};
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
    pub(super) turns: Turns,
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
        Self { registry, options, turns: Turns::default() }
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
        let (_turn, sources, touched) = self.turn(mutations).await?;
        let connected = self.connect(&sources, &touched).await?;
        let refusals = self.preflight(&sources, &connected).await?;
        Failpoint::GuardApply.hit();
        if !refusals.is_empty() {
            return Err(Error::Refused(refusals));
        }
        let mut prepared = Vec::new();
        // All slots first: making one waits for every transaction that writes in its cluster, and
        // several sources may share one.
        for (name, client) in connected {
            let publishing = self.publish(&name, client);
            match self.within(&name, self.deadline(), publishing).await {
                Ok(source) => prepared.push(source),
                Err(error) => {
                    self.abandon(prepared).await;
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.prepare(&mut prepared, &sources).await {
            self.abandon(prepared).await;
            return Err(error);
        }
        Failpoint::GuardApply.hit();
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
        for source in &prepared {
            if let (Some((objects, at)), Some(registered)) =
                (&source.objects, self.registry.snapshot().sources.get(&source.name))
            {
                let version = fingerprint::version();
                self.registry.baseline_put(registered.id, &version, objects, *at).await?;
            }
            Failpoint::GuardApply.hit();
            let committing = async {
                let committed = source.client.batch_execute("COMMIT").await;
                committed.map_err(|error| failed(&source.name, error.into()))
            };
            self.within(&source.name, self.options.statement_timeout * 2, committing).await?;
            Failpoint::GuardApply.hit();
        }
        self.installed(&touched).await
    }

    /// The turn in all sources that these mutations touch, and what is wanted there.
    async fn turn(
        &self,
        mutations: &[Mutation],
    ) -> Result<(Turn, BTreeMap<SourceName, Desired>, BTreeSet<SourceName>), Error> {
        let (_, mut wanted) = desired(&self.registry.snapshot(), mutations);
        loop {
            let turn = self.turns.take(&wanted, self.options.guard_patience).await;
            let turn = turn.map_err(|source_name| Error::Occupied { source_name })?;
            self.registry.refresh().await?;
            let (sources, touched) = desired(&self.registry.snapshot(), mutations);
            if touched.is_subset(&wanted) {
                return Ok((turn, sources, touched));
            }
            // What changed meanwhile touches more: all at once, or none.
            wanted.extend(touched);
        }
    }

    /// The turn in one source.
    pub(super) async fn turn_of(&self, name: &SourceName) -> Result<Turn, Error> {
        let source = BTreeSet::from([name.clone()]);
        let turn = self.turns.take(&source, self.options.guard_patience);
        turn.await.map_err(|source_name| Error::Occupied { source_name })
    }

    /// Longest that all work in one source may take: PostgreSQL ends its statements by itself, but
    /// not when it answers no more.
    pub(super) fn deadline(&self) -> Duration {
        self.options.guard_patience + self.options.statement_timeout * 4
    }

    /// What `work` in a source gives, if the source does not fall silent.
    pub(super) async fn within<T>(
        &self,
        name: &SourceName,
        after: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let silent = |_| Err(failed(name, pg::Error::Silent { after }));
        timeout(after, work).await.unwrap_or_else(silent)
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
                let examining = async {
                    let found = preflight::refusals(client, name, wanted).await;
                    found.map_err(|cause| failed(name, cause))
                };
                let after = self.options.statement_timeout * 2;
                refusals.extend(self.within(name, after, examining).await?);
            }
        }
        Ok(refusals)
    }

    /// What is committed before the guards: roles of the cluster, publication and slot.
    async fn publish(&self, name: &SourceName, client: Connection) -> Result<Prepared, Error> {
        let fail = |cause| failed(name, cause);
        install::shared_roles(&client).await.map_err(fail)?;
        ensure_publication(&client, name).await.map_err(fail)?;
        let deadline = Instant::now() + self.options.guard_patience;
        let slot_created = loop {
            match ensure_slot(&client, &name.slot()).await {
                // A new slot waits for the transactions that are open; nobody waits for it.
                Err(pg::Error::SlotBlocked { .. }) if Instant::now() < deadline => {}
                found => break found.map_err(fail)? == SlotFound::Created,
            }
        };
        Failpoint::GuardApply.hit();
        Ok(Prepared { name: name.clone(), client, slot_created, objects: None })
    }

    /// In each source an open transaction with the guards in it.
    ///
    /// Locks are waited for in short turns, so that writers never queue for longer than one of them.
    /// Where one is not to be had in its turn, all sources let go of theirs before the next.
    async fn prepare(
        &self,
        prepared: &mut [Prepared],
        sources: &BTreeMap<SourceName, Desired>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.guard_patience;
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let mut locked = None;
            for source in prepared.iter_mut() {
                let name = source.name.clone();
                let Some(wanted) = sources.get(&name) else { continue };
                let preparing = self.prepare_one(source, wanted);
                if !self.within(&name, self.deadline(), preparing).await? {
                    locked = Some(name);
                    break;
                }
            }
            let Some(source_name) = locked else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(Error::Busy { source_name });
            }
            for Prepared { name, client, .. } in prepared.iter() {
                let undone = client.batch_execute("ROLLBACK").await;
                undone.map_err(|error| failed(name, error.into()))?;
            }
            tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    /// One turn in one source. Returns false when it did not get a lock.
    async fn prepare_one(&self, source: &mut Prepared, wanted: &Desired) -> Result<bool, Error> {
        let Prepared { name, client, objects, .. } = source;
        let attempt = async {
            install::begin(client, &self.options).await?;
            install::install(client, name, wanted, Scripts::IfOutdated).await
        };
        match attempt.await {
            Ok(installed) => {
                *objects = installed.objects;
                Ok(true)
            }
            Err(error) if error.is_lock_timeout() => Ok(false),
            Err(error) => Err(failed(name, error)),
        }
    }

    /// Takes back what was prepared: transactions, and slots that nothing would ever read.
    async fn abandon(&self, prepared: Vec<Prepared>) {
        for source in prepared {
            let undo = async {
                let undone = source.client.batch_execute("ROLLBACK").await;
                undone.map_err(|error| failed(&source.name, error.into()))?;
                if source.slot_created {
                    let dropped = pg::drop_slot(&source.client, &source.name.slot()).await;
                    dropped.map_err(|error| failed(&source.name, error))?;
                }
                Ok(())
            };
            let after = self.options.statement_timeout * 2;
            if let Err(error) = self.within(&source.name, after, undo).await {
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
