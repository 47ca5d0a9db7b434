//! The handle that other rooms hold.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use tokio::sync::{broadcast, watch};

use super::{
    BreakGlass, Decided, Ending, Error, Grant, GuardState, Mutation, NewToken, NewTransfer,
    NewViolation, OwnershipPeriod, Revision, Snapshot, Standing, Switch, Token, TokenId, Transfer,
    TransferFilter, Verdict, Violation, mutation, store, token, transfer,
};
use crate::pg::{self, Pool, PooledConnection};
use crate::vocab::{DatasetId, DatasetName, Position, ServiceName, SourceId};

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
    uses: token::Uses,
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
            uses: token::Uses::default(),
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
        self.apply_decided(mutations, &Decided::regardless()).await
    }

    /// The same, on behalf of somebody who has seen who owns what.
    ///
    /// # Errors
    /// As [`Registry::apply`]; [`Error::Conflict`] also for a dataset that has passed to another
    /// owner since, and for a transfer that is not open any more.
    pub async fn apply_decided(
        &self,
        mutations: &[Mutation],
        decided: &Decided,
    ) -> Result<Revision, Error> {
        if mutations.is_empty() {
            return Ok(self.snapshot().revision);
        }
        mutation::check(mutations)?;
        let apply = async |connection: &mut PooledConnection| {
            store::apply(connection, mutations, decided).await
        };
        let after = self.within(apply).await?;
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

    /// Forgets a subscription and all that hangs on it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn subscription_delete(&self, name: &str) -> Result<Revision, Error> {
        let change = async |connection: &mut PooledConnection| {
            store::subscription_delete(connection, name).await
        };
        Ok(self.publish(self.within(change).await?))
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

    /// Whom this token stands for now, if anyone; answered from memory, and noted as its use.
    pub fn authenticate(&self, token: &str) -> Option<Grant> {
        let now = Utc::now();
        let grant = self.snapshot().grant_of(token, now)?.clone();
        self.shared.uses.note(&grant.id, now);
        Some(grant)
    }

    /// Proposes that a dataset pass to another owner.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the dataset or the receiver; [`Error::Conflict`] when a transfer of it
    /// is open or its owner is another by now; [`Error::Invalid`]; [`Error::Unavailable`].
    pub async fn transfer_propose(&self, new: NewTransfer) -> Result<(Transfer, Revision), Error> {
        mutation::text("reason", &new.reason)?;
        let propose = async |connection: &mut PooledConnection| {
            store::transfer_propose(connection, &new).await
        };
        let (transfer, after) = self.within(propose).await?;
        Ok((transfer, self.publish(after)))
    }

    /// Ends a proposal without the dataset passing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is not open any more;
    /// [`Error::Unavailable`].
    pub async fn transfer_end(
        &self,
        id: i64,
        ending: Ending,
        by: &str,
    ) -> Result<(Transfer, Revision), Error> {
        let end = async |connection: &mut PooledConnection| {
            store::transfer_end(connection, id, ending, by).await
        };
        let (transfer, after) = self.within(end).await?;
        Ok((transfer, self.publish(after)))
    }

    /// The transfer with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn transfer(&self, id: i64) -> Result<Transfer, Error> {
        self.within(async |connection| store::transfer(connection, id).await).await
    }

    /// One page of transfers, newest first; `after` is the number the last page ended with.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn transfers(
        &self,
        filter: &TransferFilter,
        page: Page<i64>,
    ) -> Result<Vec<Transfer>, Error> {
        self.within(async |connection| Ok(store::transfers(connection, filter, page).await?)).await
    }

    /// The latest permissions to break a dataset's glass, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn break_glass_of(
        &self,
        dataset: DatasetId,
        first: usize,
    ) -> Result<Vec<BreakGlass>, Error> {
        self.within(async |connection| Ok(store::break_glass_of(connection, dataset, first).await?))
            .await
    }

    /// Stores where in the stream owners and modes begin; what is stored already is passed over.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn switches_record(&self, new: &[Switch]) -> Result<(), Error> {
        self.within(async |connection| Ok(store::switches_record(connection, new).await?)).await
    }

    /// Who owns each of a source's datasets, and how that is held, for who goes on reading its
    /// stream after `seen`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn standings(
        &self,
        source: SourceId,
        seen: Position,
    ) -> Result<HashMap<DatasetId, Standing>, Error> {
        let all =
            self.within(async |connection| Ok(store::switches(connection, source).await?)).await?;
        let of_each = all.chunk_by(|a, b| a.dataset == b.dataset).filter_map(|switches| {
            let standing = transfer::standing_after(switches, seen)?;
            Some((switches.first()?.dataset, standing))
        });
        Ok(of_each.collect())
    }

    /// Makes a token. The secret is returned here and can be had nowhere else.
    ///
    /// # Errors
    /// [`Error::NotFound`] for its service; [`Error::Invalid`] for an expiry in the past or a text
    /// that cannot be stored; [`Error::Conflict`] when there are too many; [`Error::Unavailable`].
    pub async fn token_create(
        &self,
        new: NewToken,
    ) -> Result<(Token, SecretString, Revision), Error> {
        if let Some(description) = &new.description {
            mutation::text("description", description)?;
        }
        if new.expires_at.is_some_and(|end| end <= Utc::now()) {
            let message = "expected a time to come".to_owned();
            return Err(Error::Invalid { field: "expiresAt", message });
        }
        let (id, secret) = token::generate();
        let digest = token::digest(&secret);
        let create = async |connection: &mut PooledConnection| {
            store::token_create(connection, &new, &id, &digest).await
        };
        let (token, after) = self.within(create).await?;
        Ok((token, secret, self.publish(after)))
    }

    /// Revokes a token, for every instance, for good.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn token_revoke(&self, id: &TokenId) -> Result<(Token, Revision), Error> {
        let revoke =
            async |connection: &mut PooledConnection| store::token_revoke(connection, id).await;
        let (token, after) = self.within(revoke).await?;
        let revision = self.publish(after);
        Ok((self.with_last_use(token), revision))
    }

    /// The token with this id, revoked or not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn token(&self, id: &TokenId) -> Result<Token, Error> {
        let token = self.within(async |connection| store::token(connection, id).await).await?;
        Ok(self.with_last_use(token))
    }

    /// One page of tokens, newest first, of one service or of everyone; `after` is the number the
    /// last page ended with.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn tokens(
        &self,
        service: Option<&ServiceName>,
        page: Page<i64>,
    ) -> Result<Vec<Token>, Error> {
        let list = async |connection: &mut PooledConnection| {
            Ok(store::tokens(connection, service, page).await?)
        };
        let tokens = self.within(list).await?;
        Ok(tokens.into_iter().map(|token| self.with_last_use(token)).collect())
    }

    fn with_last_use(&self, token: Token) -> Token {
        let last_used_at = self.shared.uses.last(&token.id).max(token.last_used_at);
        Token { last_used_at, ..token }
    }

    /// Writes down when tokens were last seen.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; what was not written is kept for the next time.
    pub(super) async fn token_uses_write(&self) -> Result<(), Error> {
        let uses = self.shared.uses.take();
        if uses.is_empty() {
            return Ok(());
        }
        let write = async |connection: &mut PooledConnection| {
            Ok(store::token_uses(connection, &uses).await?)
        };
        let written = self.within(write).await;
        if written.is_err() {
            self.shared.uses.give_back(uses);
        }
        written
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
    pub(super) fn publish(&self, snapshot: Snapshot) -> Revision {
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
    pub(super) async fn within<T>(
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
