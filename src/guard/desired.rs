//! What a source should hold once mutations are applied: pure, from the registry's snapshot.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::registry::{GuardState, Mutation, Snapshot, Tenure};
use crate::vocab::{DatasetName, Mode, RoleName, ServiceName, SourceName};

/// A dataset as it should be guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guarded {
    /// The one service that may write it.
    pub(super) owner: ServiceName,
    /// What happens to others' writes.
    pub(super) mode: Mode,
    /// Columns that facts were declared about.
    pub(super) columns: Vec<String>,
    /// Its table was dropped, and is guarded again once it is there again.
    pub(super) dropped: bool,
    /// Why the owner is the owner.
    pub(super) tenure: Tenure,
}

/// A source as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Desired {
    /// Its connection string, unresolved.
    pub(super) url: String,
    /// The roles of each service; a service that owns something here has an entry even without any.
    pub(super) roles: BTreeMap<ServiceName, BTreeSet<RoleName>>,
    /// What is guarded.
    pub(super) datasets: BTreeMap<DatasetName, Guarded>,
    /// Who may write what for a time, by id.
    pub(super) permits: BTreeMap<String, Permit>,
    /// Services whose group must have no members.
    pub(super) retired: BTreeSet<ServiceName>,
}

/// Leave for one service to write one dataset of another until a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permit {
    /// What may be written.
    pub(super) dataset: DatasetName,
    /// By whom.
    pub(super) service: ServiceName,
    /// Why.
    pub(super) reason: String,
    /// From when on it is over.
    pub(super) expires_at: DateTime<Utc>,
}

/// What each source should be once `mutations` are applied, and which of them are touched.
pub(super) fn desired(
    snapshot: &Snapshot,
    mutations: &[Mutation],
) -> (BTreeMap<SourceName, Desired>, BTreeSet<SourceName>) {
    let mut sources = present(snapshot);
    let mut touched = BTreeSet::new();
    for mutation in mutations {
        if let Mutation::SourcePut { name, url } = mutation {
            let source = sources.entry(name.clone()).or_default();
            if source.url != *url {
                source.url.clone_from(url);
                touched.insert(name.clone());
            }
        }
    }
    for mutation in mutations {
        match mutation {
            Mutation::ServicePut { name, roles, .. } => {
                for (source_name, source) in &mut sources {
                    // Whoever declares a service that was retired takes it up again.
                    source.retired.remove(name);
                    let wanted: BTreeSet<RoleName> =
                        roles.get(source_name).into_iter().flatten().cloned().collect();
                    let had = source.roles.get(name).cloned().unwrap_or_default();
                    if wanted != had {
                        touched.insert(source_name.clone());
                        source.roles.insert(name.clone(), wanted);
                    }
                }
            }
            Mutation::DatasetPut { name, owner, mode, columns, .. } => {
                let known = snapshot.dataset(name);
                // Under whichever name it is declared: a renamed table is still the same dataset.
                let name = known.map_or(name, |known| &known.name);
                let dropped = known.is_some_and(|known| known.guard == GuardState::Dropped);
                let Some(source) = sources.get_mut(name.source()) else { continue };
                let columns = columns.keys().cloned().collect();
                let present = source.datasets.get(name).filter(|present| present.owner == *owner);
                let tenure = present.map(|present| present.tenure.clone()).unwrap_or_default();
                let wanted =
                    Guarded { owner: owner.clone(), mode: *mode, columns, dropped, tenure };
                source.roles.entry(owner.clone()).or_default();
                let pending = snapshot
                    .datasets
                    .get(name)
                    .is_none_or(|dataset| dataset.guard == GuardState::Pending);
                if source.datasets.insert(name.clone(), wanted.clone()) != Some(wanted) || pending {
                    touched.insert(name.source().clone());
                }
            }
            Mutation::OwnershipTransfer { transfer, by } => {
                let Some(transfer) = snapshot.transfers.get(transfer) else { continue };
                let Some(source) = sources.get_mut(transfer.dataset.source()) else { continue };
                let Some(guarded) = source.datasets.get_mut(&transfer.dataset) else { continue };
                guarded.owner = transfer.to.clone();
                guarded.tenure = Tenure {
                    reason: Some(transfer.reason.clone()),
                    actor: Some(by.clone()),
                    transfer: Some(transfer.id),
                };
                source.roles.entry(transfer.to.clone()).or_default();
                touched.insert(transfer.dataset.source().clone());
            }
            Mutation::BreakGlassGrant { id, dataset, service, reason, expires_at, .. } => {
                let Some(source) = sources.get_mut(dataset.source()) else { continue };
                source.roles.entry(service.clone()).or_default();
                let permit = Permit {
                    dataset: dataset.clone(),
                    service: service.clone(),
                    reason: reason.clone(),
                    expires_at: *expires_at,
                };
                source.permits.insert(id.to_string(), permit);
                touched.insert(dataset.source().clone());
            }
            Mutation::BreakGlassRevoke { id, .. } => {
                for (name, source) in &mut sources {
                    if source.permits.remove(&id.to_string()).is_some() {
                        touched.insert(name.clone());
                    }
                }
            }
            Mutation::ServiceRetire { name, .. } => {
                for (source_name, source) in &mut sources {
                    if source.roles.remove(name).is_some() {
                        source.retired.insert(name.clone());
                        touched.insert(source_name.clone());
                    }
                }
            }
            Mutation::SourcePut { .. } | Mutation::SubscriptionPut(_) => {}
        }
    }
    (sources, touched)
}

/// What each source should be now.
fn present(snapshot: &Snapshot) -> BTreeMap<SourceName, Desired> {
    let mut sources: BTreeMap<SourceName, Desired> = snapshot
        .sources
        .values()
        .map(|source| {
            let desired = Desired { url: source.url.clone(), ..Desired::default() };
            (source.name.clone(), desired)
        })
        .collect();
    for service in snapshot.services.values() {
        for (source, roles) in &service.roles {
            if let Some(source) = sources.get_mut(source) {
                source.roles.insert(service.name.clone(), roles.iter().cloned().collect());
            }
        }
    }
    for source in sources.values_mut() {
        source.retired.extend(snapshot.retired.keys().cloned());
    }
    for (id, held) in &snapshot.break_glass {
        if let Some(source) = sources.get_mut(held.dataset.source()) {
            source.roles.entry(held.service.clone()).or_default();
            let permit = Permit {
                dataset: held.dataset.clone(),
                service: held.service.clone(),
                reason: held.reason.clone(),
                expires_at: held.expires_at,
            };
            source.permits.insert(id.to_string(), permit);
        }
    }
    for dataset in snapshot.datasets.values() {
        if let Some(source) = sources.get_mut(dataset.name.source()) {
            source.roles.entry(dataset.owner.clone()).or_default();
            source.datasets.insert(
                dataset.name.clone(),
                Guarded {
                    owner: dataset.owner.clone(),
                    mode: dataset.mode,
                    columns: dataset.columns.keys().cloned().collect(),
                    dropped: dataset.guard == GuardState::Dropped,
                    tenure: snapshot.tenures.get(&dataset.id).cloned().unwrap_or_default(),
                },
            );
        }
    }
    sources
}
