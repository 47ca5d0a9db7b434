//! The registry's state as a manifest.

use std::collections::BTreeMap;

use serde::Serialize;

use super::parse::API_VERSION;
use crate::registry::{ColumnFacts, Snapshot};
use crate::vocab::{DatasetName, Mode, RoleName, ServiceName, SourceName};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sources: BTreeMap<&'a SourceName, Source<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<&'a ServiceName, Service<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    datasets: BTreeMap<&'a DatasetName, Dataset<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subscriptions: BTreeMap<&'a str, Subscription<'a>>,
}

#[derive(Serialize)]
struct Source<'a> {
    url: &'a str,
}

#[derive(Serialize)]
struct Service<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    roles: &'a BTreeMap<SourceName, Vec<RoleName>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dataset<'a> {
    owner: &'a ServiceName,
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    columns: &'a BTreeMap<String, ColumnFacts>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    derived_from: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Subscription<'a> {
    service: &'a ServiceName,
    datasets: &'a [DatasetName],
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters: Option<&'a serde_json::Value>,
}

pub(super) fn export(snapshot: &Snapshot) -> String {
    let document = Document {
        api_version: API_VERSION,
        sources: snapshot
            .sources
            .iter()
            .map(|(name, it)| (name, Source { url: &it.url }))
            .collect(),
        services: snapshot
            .services
            .iter()
            .filter(|(name, _)| !snapshot.retired.contains_key(*name))
            .map(|(name, service)| {
                let (team, contact) = (service.team.as_deref(), service.contact.as_deref());
                (name, Service { team, contact, roles: &service.roles })
            })
            .collect(),
        datasets: snapshot
            .datasets
            .iter()
            .map(|(name, dataset)| {
                let exported = Dataset {
                    owner: &dataset.owner,
                    mode: dataset.mode,
                    description: dataset.description.as_deref(),
                    tags: &dataset.tags,
                    columns: &dataset.columns,
                    derived_from: &dataset.derived_from,
                };
                (name, exported)
            })
            .collect(),
        subscriptions: snapshot
            .subscriptions
            .iter()
            .map(|(name, subscription)| {
                let exported = Subscription {
                    service: &subscription.service,
                    datasets: &subscription.datasets,
                    deliver: subscription.spec.get("deliver"),
                    filter: subscription.spec.get("filter"),
                    retry: subscription.spec.get("retry"),
                    start: subscription.spec.get("start"),
                    budget: subscription.spec.get("budget"),
                    dead_letters: subscription.spec.get("deadLetters"),
                };
                (name.as_str(), exported)
            })
            .collect(),
    };
    serde_saphyr::to_string(&document).expect("maps with text keys are always YAML")
}
