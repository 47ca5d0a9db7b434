//! Answers from memory. Everything here is pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::break_glass::BreakGlass;
use super::token::{self, Grant, TokenId};
use super::transfer::{Tenure, Transfer, TransferState};
use super::{Dataset, Error, Revision, Service, Snapshot, Source, Subscription};
use crate::vocab::{DatasetId, DatasetName, Mode, RoleName, ServiceName, SourceName};

/// Whether a service may write a dataset, and by whose leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the service is the owner.
    pub allowed: bool,
    /// The owner.
    pub owner: ServiceName,
    /// What the guard does with anyone else's write.
    pub mode: Mode,
    /// The revision this answer is taken from.
    pub revision: Revision,
}

/// Something that has no service when its service is retired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// `dataset`, `subscription`, `transfer` or `permission`.
    pub kind: &'static str,
    /// Its name or number.
    pub name: String,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl Snapshot {
    /// A snapshot of these objects, with its indexes.
    pub fn new(
        revision: Revision,
        services: Vec<Service>,
        sources: Vec<Source>,
        datasets: Vec<Dataset>,
        subscriptions: Vec<Subscription>,
    ) -> Self {
        let mut service_by_role = HashMap::new();
        for service in &services {
            for (source, roles) in &service.roles {
                let claims = roles.iter().map(|role| (source.clone(), role.clone()));
                service_by_role.extend(claims.map(|claim| (claim, service.name.clone())));
            }
        }
        let datasets: BTreeMap<DatasetName, Arc<Dataset>> =
            datasets.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect();
        Self {
            revision,
            services: services.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect(),
            sources: sources.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect(),
            datasets_by_id: datasets.values().map(|it| (it.id, Arc::clone(it))).collect(),
            datasets,
            subscriptions: subscriptions
                .into_iter()
                .map(|it| (it.name.clone(), Arc::new(it)))
                .collect(),
            service_by_role,
            aliases: HashMap::new(),
            break_glass: BTreeMap::new(),
            retired: BTreeMap::new(),
            tenures: HashMap::new(),
            transfers: BTreeMap::new(),
            grants: HashMap::new(),
        }
    }

    /// The same with what tokens are good for.
    pub(super) fn with_grants(self, grants: HashMap<TokenId, Grant>) -> Self {
        Self { grants, ..self }
    }

    /// The same with other names of datasets.
    pub(super) fn with_aliases(self, aliases: HashMap<DatasetName, DatasetId>) -> Self {
        Self { aliases, ..self }
    }

    /// The dataset that is registered under this name, or whose table has or had it.
    pub fn dataset(&self, name: &DatasetName) -> Option<&Arc<Dataset>> {
        let by_alias = || self.datasets_by_id.get(self.aliases.get(name)?);
        self.datasets.get(name).or_else(by_alias)
    }

    /// Other names of a dataset, in order.
    pub fn aliases_of(&self, dataset: DatasetId) -> Vec<&DatasetName> {
        let of = self.aliases.iter().filter(|(_, id)| **id == dataset);
        let mut names: Vec<&DatasetName> = of.map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// The same with permissions to break glass and services that were retired.
    pub(super) fn with_exceptions(
        self,
        break_glass: BTreeMap<Uuid, BreakGlass>,
        retired: BTreeMap<ServiceName, DateTime<Utc>>,
    ) -> Self {
        Self { break_glass, retired, ..self }
    }

    /// What would be left without its service if `service` were retired at `now`.
    pub fn orphans_of(&self, service: &ServiceName, now: DateTime<Utc>) -> Vec<Orphan> {
        let datasets = self.owned_by(service);
        let datasets = datasets.map(|dataset| ("dataset", dataset.name.to_string()));
        let subscriptions = self.subscriptions.values().filter(|it| it.service == *service);
        let subscriptions = subscriptions.map(|it| ("subscription", it.name.clone()));
        let transfers = self.transfers.values().filter(|transfer| {
            (transfer.from == *service || transfer.to == *service)
                && transfer.state(now) == TransferState::Proposed
        });
        let transfers = transfers.map(|transfer| ("transfer", transfer.id.to_string()));
        let permissions = self.break_glass.values();
        let permissions = permissions.filter(|it| it.service == *service && it.is_active(now));
        let permissions = permissions.map(|it| ("permission", it.id.to_string()));
        let all = datasets.chain(subscriptions).chain(transfers).chain(permissions);
        all.map(|(kind, name)| Orphan { kind, name }).collect()
    }

    /// The same with why the owners are owners, and who may be the next.
    pub(super) fn with_tenures(
        self,
        tenures: HashMap<DatasetId, Tenure>,
        transfers: BTreeMap<i64, Transfer>,
    ) -> Self {
        Self { tenures, transfers, ..self }
    }

    /// What this token is good for at `now`, if anything.
    pub fn grant_of(&self, token: &str, now: DateTime<Utc>) -> Option<&Grant> {
        token::prove(&self.grants, token, now)
    }

    /// Whether `service` may write `dataset`.
    ///
    /// # Errors
    /// [`Error::NotFound`] names the one that is not registered.
    pub fn can_write(
        &self,
        service: &ServiceName,
        dataset: &DatasetName,
    ) -> Result<Decision, Error> {
        if !self.services.contains_key(service) {
            return Err(Error::NotFound { kind: "service", name: service.to_string() });
        }
        let dataset = self
            .dataset(dataset)
            .ok_or_else(|| Error::NotFound { kind: "dataset", name: dataset.to_string() })?;
        Ok(Decision {
            allowed: dataset.owner == *service,
            owner: dataset.owner.clone(),
            mode: dataset.mode,
            revision: self.revision,
        })
    }

    /// The same with these owners, and with these roles in `source` for services that may be new.
    pub fn proposing(
        &self,
        source: &SourceName,
        owners: &BTreeMap<DatasetName, ServiceName>,
        roles: &BTreeMap<ServiceName, BTreeSet<RoleName>>,
    ) -> Self {
        let mut services: BTreeMap<ServiceName, Service> =
            self.services.values().map(|it| (it.name.clone(), Service::clone(it))).collect();
        for (name, roles) in roles {
            let service = services.entry(name.clone()).or_insert_with(|| Service {
                id: 0,
                name: name.clone(),
                team: None,
                contact: None,
                roles: BTreeMap::new(),
                created_at: DateTime::UNIX_EPOCH,
            });
            service.roles.entry(source.clone()).or_default().extend(roles.iter().cloned());
        }
        let with_owner = |dataset: &Arc<Dataset>| {
            let owner = owners.get(&dataset.name).unwrap_or(&dataset.owner).clone();
            Dataset { owner, ..Dataset::clone(dataset) }
        };
        Self::new(
            self.revision,
            services.into_values().collect(),
            self.sources.values().map(|it| Source::clone(it)).collect(),
            self.datasets.values().map(with_owner).collect(),
            self.subscriptions.values().map(|it| Subscription::clone(it)).collect(),
        )
    }

    /// What `service` owns, by name.
    pub fn owned_by(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets.values().filter(move |dataset| dataset.owner == *service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::GuardState;
    use crate::vocab::{Epoch, SourceId};

    fn snapshot() -> Snapshot {
        let service = |id: i32, name: &str, role: &str| Service {
            id,
            name: name.parse().unwrap(),
            team: None,
            contact: None,
            roles: BTreeMap::from([("shop".parse().unwrap(), vec![role.parse().unwrap()])]),
            created_at: DateTime::UNIX_EPOCH,
        };
        let source = Source {
            id: SourceId(1),
            name: "shop".parse().unwrap(),
            url: "${SHOP}".to_owned(),
            epoch: Epoch::FIRST,
            leaving: false,
            created_at: DateTime::UNIX_EPOCH,
        };
        let dataset = |id: i32, table: &str, owner: &str| Dataset {
            id: DatasetId(id),
            name: format!("shop.public.{table}").parse().unwrap(),
            source_id: SourceId(1),
            owner: owner.parse().unwrap(),
            mode: Mode::Enforce,
            description: None,
            tags: vec![],
            columns: BTreeMap::new(),
            derived_from: vec![],
            guard: GuardState::Pending,
            gaps: Vec::new(),
            created_at: DateTime::UNIX_EPOCH,
        };
        Snapshot::new(
            Revision(7),
            vec![service(1, "orders", "orders_app"), service(2, "billing", "billing_app")],
            vec![source],
            vec![dataset(1, "orders", "orders"), dataset(2, "invoices", "billing")],
            vec![],
        )
    }

    #[test]
    fn only_the_owner_may_write() {
        let snapshot = snapshot();
        let dataset = "shop.public.orders".parse().unwrap();
        let decision = |service: &str| snapshot.can_write(&service.parse().unwrap(), &dataset);
        assert!(decision("orders").unwrap().allowed);
        let refused = decision("billing").unwrap();
        assert_eq!((refused.allowed, refused.owner.as_str()), (false, "orders"));
        assert_eq!(refused.revision, Revision(7));
        assert_eq!(
            decision("shipping").unwrap_err().to_string(),
            "no service is named \"shipping\""
        );
        let unknown = "shop.public.nothing".parse().unwrap();
        let error = snapshot.can_write(&"orders".parse().unwrap(), &unknown).unwrap_err();
        assert_eq!(error.to_string(), "no dataset is named \"shop.public.nothing\"");
    }

    #[test]
    fn indexes_agree_with_what_they_index() {
        let snapshot = snapshot();
        let role = ("shop".parse().unwrap(), "billing_app".parse().unwrap());
        assert_eq!(snapshot.service_by_role[&role].as_str(), "billing");
        assert_eq!(snapshot.datasets_by_id[&DatasetId(2)].name.table(), "invoices");
        let owned = snapshot.owned_by(&"orders".parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(owned.len(), 1);
    }
}
