//! Adoption: a database in use comes under observation in one step, and what is then seen proposes
//! who owns what.
//!
//! A dataset has exactly one owner, always. Where it is not known yet, that is the reserved service
//! [`UNOWNED`]: it has no roles, so that whoever writes is recorded, and nothing of it can be
//! enforced. An owner is decided at once only where the roles that may write a table belong to
//! exactly one service.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::governor::{Governor, failed};
use super::locate::Located;
use super::{Error, audit, preflight};
use crate::registry::manifest::Manifest;
use crate::registry::{Mutation, Snapshot, TableWriter, UNOWNED};
use crate::vocab::{DatasetName, Mode, RoleName, ServiceName, SourceName};

/// What a source's tables are and who writes them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    /// The tables, by name.
    pub tables: Vec<AdoptedTable>,
    /// A manifest with the proposed owners. When nothing is proposed, it changes nothing.
    pub manifest: String,
}

/// One table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdoptedTable {
    /// `SOURCE.SCHEMA.TABLE`.
    pub dataset: String,
    /// Its owner; null when it is not governed.
    pub owner: Option<ServiceName>,
    /// Its mode.
    pub mode: Option<Mode>,
    /// Why it cannot be governed, and what mends it.
    pub problem: Option<String>,
    /// The logins that PostgreSQL lets write it.
    pub may_write: Vec<String>,
    /// Rows inserted, updated and deleted since PostgreSQL's statistics were reset, by anybody.
    pub rows: [i64; 3],
    /// Who was seen writing it and is not its owner, most transactions first.
    pub writers: Vec<SeenWriter>,
    /// More than one service writes it.
    pub several_writers: bool,
    /// Who should own it, by what is known now.
    pub proposed: Option<ServiceName>,
}

/// Somebody who was seen writing a table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenWriter {
    /// The role.
    pub role: String,
    /// Its service, if it has one.
    pub service: Option<String>,
    /// In how many transactions.
    pub transactions: i64,
    /// What those began with.
    pub operations: Vec<String>,
    /// First.
    pub first_seen: DateTime<Utc>,
    /// Last.
    pub last_seen: DateTime<Utc>,
}

/// A table as the catalog shows it.
struct Table {
    name: DatasetName,
    owner_role: String,
    may_write: Vec<String>,
    rows: [i64; 3],
}

impl Governor {
    /// Puts every table of a source that is not governed and can be under observation: with the
    /// service whose roles alone may write it as its owner, else with [`UNOWNED`]. `services` are
    /// declared first, with these roles in this source added to those they have.
    ///
    /// # Errors
    /// As [`Governor::apply`]; [`Error::UnknownSource`] when it is not registered and no `url` given.
    pub async fn adopt(
        &self,
        source: &SourceName,
        url: Option<String>,
        services: BTreeMap<ServiceName, Vec<RoleName>>,
    ) -> Result<Adoption, Error> {
        let snapshot = self.registry.snapshot();
        let mut mutations = Vec::new();
        match (snapshot.sources.get(source), url) {
            (Some(known), Some(url)) if known.url != url => {
                mutations.push(Mutation::SourcePut { name: source.clone(), url });
            }
            (None, Some(url)) => mutations.push(Mutation::SourcePut { name: source.clone(), url }),
            (Some(_), _) => {}
            (None, None) => return Err(Error::UnknownSource(source.clone())),
        }
        let mut of_role: BTreeMap<String, ServiceName> = BTreeMap::new();
        for ((of, role), service) in &snapshot.service_by_role {
            if of == source {
                of_role.insert(role.to_string(), service.clone());
            }
        }
        for (name, added) in services {
            let known = snapshot.services.get(&name);
            let mut roles = known.map(|known| known.roles.clone()).unwrap_or_default();
            let here = roles.entry(source.clone()).or_default();
            for role in added {
                of_role.insert(role.to_string(), name.clone());
                if !here.contains(&role) {
                    here.push(role);
                }
            }
            mutations.push(Mutation::ServicePut {
                team: known.and_then(|known| known.team.clone()),
                contact: known.and_then(|known| known.contact.clone()),
                name,
                roles,
            });
        }
        let (desired, _) = super::desired::desired(&snapshot, &mutations);
        let wanted = desired.get(source).ok_or_else(|| Error::UnknownSource(source.clone()))?;
        let client = self.open(source, wanted).await?;
        let fail = |cause| failed(source, cause);
        let unowned: ServiceName = UNOWNED.parse().expect("a service name");
        let mut without = false;
        let located = Located::load(&client).await.map_err(fail)?;
        for table in tables(&client, source).await.map_err(fail)? {
            let at = located.of(&table.name);
            if snapshot.datasets.contains_key(&table.name)
                || !preflight::table(&client, (&table.name, &at), &[], false)
                    .await
                    .map_err(fail)?
                    .is_empty()
            {
                continue;
            }
            let owner = decided(&table, &of_role);
            without |= owner.is_none();
            mutations.push(Mutation::DatasetPut {
                name: table.name,
                owner: owner.unwrap_or_else(|| unowned.clone()),
                mode: Mode::Observe,
                description: None,
                tags: Vec::new(),
                columns: BTreeMap::new(),
                derived_from: Vec::new(),
            });
        }
        drop(client);
        if without && !snapshot.services.contains_key(&unowned) {
            mutations.push(Mutation::ServicePut {
                name: unowned,
                team: None,
                contact: None,
                roles: BTreeMap::new(),
            });
        }
        self.apply(&mutations).await?;
        self.adoption(source).await
    }

    /// What the tables of a source are, who was seen writing them, and who should own them.
    ///
    /// # Errors
    /// [`Error::UnknownSource`], or when the source or the registry cannot be asked.
    pub async fn adoption(&self, source: &SourceName) -> Result<Adoption, Error> {
        let snapshot = self.registry.snapshot();
        let (desired, _) = super::desired::desired(&snapshot, &[]);
        let (Some(wanted), Some(registered)) = (desired.get(source), snapshot.sources.get(source))
        else {
            return Err(Error::UnknownSource(source.clone()));
        };
        let seen = self.registry.writers(registered.id).await?;
        let client = self.open(source, wanted).await?;
        let fail = |cause| failed(source, cause);
        let mut adopted = Vec::new();
        let mut owners = BTreeMap::new();
        let mut new_services: BTreeMap<ServiceName, BTreeSet<RoleName>> = BTreeMap::new();
        let located = Located::load(&client).await.map_err(fail)?;
        for table in tables(&client, source).await.map_err(fail)? {
            let dataset = snapshot.datasets.get(&table.name);
            let at = located.of(&table.name);
            let problem = preflight::table(&client, (&table.name, &at), &[], false).await;
            let problem = problem.map_err(fail)?;
            let writers: Vec<&TableWriter> =
                seen.iter().filter(|it| it.dataset == table.name.as_str()).collect();
            let proposal = proposed(&snapshot, source, dataset.map(|it| &it.owner), &writers);
            if let (Some(dataset), Some((service, role))) = (dataset, &proposal)
                && dataset.owner != *service
            {
                owners.insert(table.name.clone(), service.clone());
                if let Some(role) = role {
                    new_services.entry(service.clone()).or_default().insert(role.clone());
                }
            }
            let others: BTreeSet<&str> = writers
                .iter()
                .filter(|it| !it.privileged)
                .map(|it| it.service.as_deref().unwrap_or(&it.role))
                .chain(dataset.map(|it| it.owner.as_str()).filter(|owner| *owner != UNOWNED))
                .collect();
            adopted.push(AdoptedTable {
                dataset: table.name.to_string(),
                owner: dataset.map(|it| it.owner.clone()),
                mode: dataset.map(|it| it.mode),
                problem: (!problem.is_empty()).then(|| problem.join("; ")),
                may_write: table.may_write,
                rows: table.rows,
                several_writers: others.len() > 1,
                proposed: proposal.map(|(service, _)| service),
                writers: writers.into_iter().map(SeenWriter::from).collect(),
            });
        }
        let manifest = Manifest::export(&snapshot.proposing(source, &owners, &new_services));
        Ok(Adoption { tables: adopted, manifest })
    }
}

impl From<&TableWriter> for SeenWriter {
    fn from(writer: &TableWriter) -> Self {
        Self {
            role: writer.role.clone(),
            service: writer.service.clone(),
            transactions: writer.transactions,
            operations: writer.operations.clone(),
            first_seen: writer.first_seen,
            last_seen: writer.last_seen,
        }
    }
}

/// Every table that could be governed by its kind.
async fn tables(
    client: &crate::pg::Connection,
    source: &SourceName,
) -> Result<Vec<Table>, crate::pg::Error> {
    let mut tables = Vec::new();
    for row in client.query(audit::TABLES, &[]).await? {
        let (schema, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        // A schema with a dot in its name cannot be part of a dataset's.
        let Ok(name) = DatasetName::new(source, &schema, &table) else { continue };
        let rows: Vec<i64> = row.try_get::<_, Option<Vec<i64>>>(4)?.unwrap_or_default();
        tables.push(Table {
            name,
            owner_role: row.try_get(2)?,
            may_write: row.try_get(3)?,
            rows: rows.try_into().unwrap_or_default(),
        });
    }
    Ok(tables)
}

/// The one service whose roles may write a table; where several may, the one PostgreSQL calls its
/// owner.
fn decided(table: &Table, of_role: &BTreeMap<String, ServiceName>) -> Option<ServiceName> {
    let services: BTreeSet<&ServiceName> =
        table.may_write.iter().filter_map(|role| of_role.get(role)).collect();
    let strangers = table.may_write.iter().any(|role| !of_role.contains_key(role));
    match services.first() {
        Some(service) if services.len() == 1 && !strangers => Some((*service).clone()),
        _ => of_role.get(&table.owner_role).cloned(),
    }
}

/// Who should own a dataset: its owner, unless that is nobody; else who was seen writing it most. A
/// role that no service has gives its name to one, and comes with it.
fn proposed(
    snapshot: &Snapshot,
    source: &SourceName,
    owner: Option<&ServiceName>,
    writers: &[&TableWriter],
) -> Option<(ServiceName, Option<RoleName>)> {
    if let Some(owner) = owner.filter(|owner| owner.as_str() != UNOWNED) {
        return Some((owner.clone(), None));
    }
    let most = writers.iter().filter(|it| !it.privileged).max_by_key(|it| it.transactions)?;
    let role: RoleName = most.role.parse().ok()?;
    if let Some(service) = snapshot.service_by_role.get(&(source.clone(), role.clone())) {
        return Some((service.clone(), None));
    }
    service_of(&most.role).map(|service| (service, Some(role)))
}

/// A name for the service of a role: `orders_app` writes for `orders`.
fn service_of(role: &str) -> Option<ServiceName> {
    let name = role.to_ascii_lowercase().replace('_', "-");
    let endings = ["-app", "-user", "-service", "-svc", "-rw", "-writer", "-owner"];
    let short = endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    let service: ServiceName = short.parse().ok()?;
    (service.as_str() != UNOWNED).then_some(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(owner: &str, may_write: &[&str]) -> Table {
        Table {
            name: "shop.public.orders".parse().unwrap(),
            owner_role: owner.to_owned(),
            may_write: may_write.iter().map(|role| (*role).to_owned()).collect(),
            rows: [0; 3],
        }
    }

    #[test]
    fn an_owner_is_decided_only_where_there_is_no_doubt() {
        let of_role: BTreeMap<String, ServiceName> =
            [("orders_app", "orders"), ("orders_job", "orders"), ("billing_app", "billing")]
                .into_iter()
                .map(|(role, service)| (role.to_owned(), service.parse().unwrap()))
                .collect();
        let decide = |owner: &str, may_write: &[&str]| {
            decided(&table(owner, may_write), &of_role).map(|service| service.to_string())
        };
        assert_eq!(decide("dba", &["orders_app", "orders_job"]).as_deref(), Some("orders"));
        assert_eq!(decide("dba", &["orders_app", "billing_app"]), None);
        assert_eq!(decide("dba", &["orders_app", "stranger"]), None);
        assert_eq!(
            decide("billing_app", &["orders_app", "billing_app"]).as_deref(),
            Some("billing")
        );
        assert_eq!(decide("dba", &[]), None);
    }

    #[test]
    fn a_role_gives_its_name_to_a_service() {
        for (role, service) in [
            ("orders_app", Some("orders")),
            ("Billing-Service", Some("billing")),
            ("warehouse", Some("warehouse")),
            ("unowned_app", None),
            ("7up", None),
            ("größe", None),
        ] {
            assert_eq!(service_of(role).as_ref().map(ServiceName::as_str), service, "{role}");
        }
    }
}
