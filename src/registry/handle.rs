//! The handle that other rooms hold.

use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use tokio::sync::{broadcast, watch};

use super::{
    Error, GuardState, Mutation, NewViolation, OwnershipPeriod, Revision, Snapshot, Verdict,
    Violation, mutation, store,
};
use crate::pg::{self, Pool, PooledConnection};
use crate::vocab::{DatasetId, DatasetName, Epoch, ServiceName, SourceId};

/// Violations that may wait for a live reader; a slower one is told how many it missed.
const VIOLATIONS_LIVE_MAX: usize = 1_024;

/// Which violations to list; everything that is `None` matches.
#[derive(Debug, Clone, Default)]
pub struct ViolationFilter {
    /// Attempts on this dataset.
    pub dataset: Option<DatasetName>,
    /// Attempts by this service.
    pub service: Option<ServiceName>,
    /// Attempts that ended so.
    pub verdict: Option<Verdict>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page<K> {
    /// How many items at most.
    pub first: usize,
    /// The key of the last item of the page before.
    pub after: Option<K>,
}

/// The registry. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    snapshot: ArcSwap<Snapshot>,
    changes: watch::Sender<Revision>,
    violations: broadcast::Sender<Arc<Violation>>,
}

impl Registry {
    /// Loads the first snapshot.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn open(pool: Pool) -> Result<Self, Error> {
        let shared = Shared {
            pool,
            snapshot: ArcSwap::default(),
            changes: watch::Sender::new(Revision::default()),
            violations: broadcast::Sender::new(VIOLATIONS_LIVE_MAX),
        };
        let registry = Self { shared: Arc::new(shared) };
        registry.refresh().await?;
        Ok(registry)
    }

    /// The present state, from memory. Never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Ticks after each new snapshot, with its revision.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.shared.changes.subscribe()
    }

    /// Loads the present state and returns the revision of the snapshot that readers now see.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn refresh(&self) -> Result<Revision, Error> {
        let loaded = self
            .within(async |connection| {
                let mut one_state = connection.build_transaction().repeatable_read().read_only();
                Ok(one_state.run(async |connection| store::snapshot(connection).await).await?)
            })
            .await?;
        self.publish(loaded);
        Ok(self.snapshot().revision)
    }

    /// The last revision in the database; at least that of the snapshot.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn revision_stored(&self) -> Result<Revision, Error> {
        self.within(async |connection| Ok(store::revision(connection).await?)).await
    }

    /// Applies all of `mutations` or none, in any order that is consistent. The snapshot contains
    /// them before this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a service, source or dataset that is referred to and neither
    /// registered nor in the list; [`Error::Conflict`] for a role claimed by two services;
    /// [`Error::Invalid`]; [`Error::Unavailable`].
    pub async fn apply(&self, mutations: &[Mutation]) -> Result<Revision, Error> {
        if mutations.is_empty() {
            return Ok(self.snapshot().revision);
        }
        mutation::check(mutations)?;
        let after =
            self.within(async |connection| store::apply(connection, mutations).await).await?;
        Ok(self.publish(after))
    }

    /// Records whether the guards of these datasets stand.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn guard_state(
        &self,
        datasets: &[DatasetId],
        state: GuardState,
    ) -> Result<Revision, Error> {
        let change = async |connection: &mut PooledConnection| {
            store::guard_state(connection, datasets, state).await
        };
        Ok(self.publish(self.within(change).await?))
    }

    /// Records the generation of a source's slot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn epoch_set(&self, source: SourceId, epoch: Epoch) -> Result<(), Error> {
        let change = async |connection: &mut PooledConnection| {
            store::epoch_set(connection, source, epoch).await
        };
        self.publish(self.within(change).await?);
        Ok(())
    }

    /// Stores violations that are not stored yet, tells live readers of these, and returns them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn violations_record(&self, new: &[NewViolation]) -> Result<Vec<Violation>, Error> {
        let recorded = self
            .within(async |connection| Ok(store::violations_record(connection, new).await?))
            .await?;
        for violation in &recorded {
            // An error only says that nobody is listening.
            let _ = self.shared.violations.send(Arc::new(violation.clone()));
        }
        Ok(recorded)
    }

    /// One page of recorded violations, newest first; `after` is the id the last page ended with.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn violations(
        &self,
        filter: &ViolationFilter,
        page: Page<i64>,
    ) -> Result<Vec<Violation>, Error> {
        self.within(async |connection| Ok(store::violations(connection, filter, page).await?)).await
    }

    /// Violations as this instance records them.
    pub fn violations_live(&self) -> broadcast::Receiver<Arc<Violation>> {
        self.shared.violations.subscribe()
    }

    /// Every owner a dataset has had, oldest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn ownership_history(
        &self,
        dataset: DatasetId,
    ) -> Result<Vec<OwnershipPeriod>, Error> {
        self.within(async |connection| Ok(store::ownership_history(connection, dataset).await?))
            .await
    }

    /// The owner at a moment; none before the dataset was registered.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn owner_at(
        &self,
        dataset: DatasetId,
        at: DateTime<Utc>,
    ) -> Result<Option<ServiceName>, Error> {
        self.within(async |connection| Ok(store::owner_at(connection, dataset, at).await?)).await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn ping(&self) -> Result<(), Error> {
        self.revision_stored().await.map(drop)
    }

    /// The pool of the registry's database, for the follower.
    pub(super) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Makes `snapshot` the one that readers see, unless they see a later one already. Returns its
    /// revision.
    fn publish(&self, snapshot: Snapshot) -> Revision {
        let revision = snapshot.revision;
        // The closure runs under the channel's lock, so two publishers cannot overtake each other.
        self.shared.changes.send_if_modified(|seen| {
            let first = self.shared.snapshot.load().revision == Revision::default();
            let newer = revision > *seen || first;
            if newer {
                *seen = revision;
                self.shared.snapshot.store(Arc::new(snapshot));
            }
            newer
        });
        revision
    }

    /// Runs `work` on a connection. PostgreSQL's own timeouts end a slow statement; this ends the
    /// wait for a server that does not answer at all.
    async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut PooledConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut connection = self.shared.pool.get().await?;
        let after = self.shared.pool.options().statement_timeout * 2;
        tokio::time::timeout(after, work(&mut connection))
            .await
            .unwrap_or_else(|_| Err(pg::Error::Silent { after }.into()))
    }
}
