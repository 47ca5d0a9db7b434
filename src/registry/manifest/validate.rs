//! References between what is declared and what is registered.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Manifest, identity};
use crate::registry::{Mutation, Snapshot};

pub(super) fn validate(manifest: &Manifest, snapshot: &Snapshot) -> Vec<Finding> {
    let known = Known::new(manifest, snapshot);
    let mut findings = Vec::new();
    for mutation in &manifest.declared {
        let (kind, name) = identity(mutation);
        let mut unknown = |wanted: &'static str, text: &str, field: &[&str], what: String| {
            if !known.has(wanted, text) {
                let line = manifest.lines.get(kind, name, field);
                let choice = known.choice(wanted);
                findings.push(manifest.finding(
                    line,
                    format!(
                        "{what} \"{text}\" is neither declared nor registered: expected {choice}"
                    ),
                ));
            }
        };
        match mutation {
            Mutation::SourcePut { .. }
            | Mutation::OwnershipTransfer { .. }
            | Mutation::BreakGlassGrant { .. }
            | Mutation::BreakGlassRevoke { .. }
            | Mutation::ServiceRetire { .. } => {}
            Mutation::ServicePut { roles, .. } => {
                for source in roles.keys() {
                    let field = ["roles", source.as_str()];
                    unknown(
                        "source",
                        source.as_str(),
                        &field,
                        format!("roles of service \"{name}\": source"),
                    );
                }
            }
            Mutation::DatasetPut { name: dataset, owner, .. } => {
                unknown(
                    "service",
                    owner.as_str(),
                    &["owner"],
                    format!("owner of dataset \"{name}\": service"),
                );
                let source = dataset.source().as_str();
                unknown("source", source, &[], format!("dataset \"{name}\": source"));
            }
            Mutation::SubscriptionPut(subscription) => {
                let service = subscription.service.as_str();
                unknown(
                    "service",
                    service,
                    &["service"],
                    format!("subscription \"{name}\": service"),
                );
                for dataset in &subscription.datasets {
                    let field = ["datasets", dataset.as_str()];
                    unknown(
                        "dataset",
                        dataset.as_str(),
                        &field,
                        format!("subscription \"{name}\": dataset"),
                    );
                }
            }
        }
    }
    findings.extend(roles_claimed_twice(manifest, snapshot));
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// A role writes for one service: the first claim counts, be it declared or registered.
fn roles_claimed_twice(manifest: &Manifest, snapshot: &Snapshot) -> Vec<Finding> {
    let declared: BTreeSet<&str> = manifest
        .declared
        .iter()
        .map(identity)
        .filter_map(|(kind, name)| (kind == "service").then_some(name))
        .collect();
    let mut holders = BTreeMap::new();
    for ((source, role), service) in &snapshot.service_by_role {
        // What the manifest says of a service replaces what was registered of it.
        if !declared.contains(service.as_str()) {
            holders.insert((source, role), service);
        }
    }
    let mut findings = Vec::new();
    for mutation in &manifest.declared {
        let Mutation::ServicePut { name, roles, .. } = mutation else { continue };
        for (source, role) in
            roles.iter().flat_map(|(source, roles)| roles.iter().map(move |role| (source, role)))
        {
            let Some(other) = holders.insert((source, role), name) else { continue };
            let field = ["roles", source.as_str(), role.as_str()];
            findings.push(manifest.finding(
                manifest.lines.get("service", name.as_str(), &field),
                format!(
                    "role \"{role}\" of source \"{source}\" is claimed by service \"{other}\" and by \
                     service \"{name}\": expected a role to write for one service"
                ),
            ));
        }
    }
    findings
}

/// The names that may be referred to, by kind.
struct Known<'a>(BTreeSet<(&'static str, &'a str)>);

impl<'a> Known<'a> {
    fn new(manifest: &'a Manifest, snapshot: &'a Snapshot) -> Self {
        let declared = manifest.declared.iter().map(identity);
        let sources = snapshot.sources.keys().map(|name| ("source", name.as_str()));
        let services = snapshot.services.keys().map(|name| ("service", name.as_str()));
        let datasets = snapshot.datasets.keys().map(|name| ("dataset", name.as_str()));
        Self(declared.chain(sources).chain(services).chain(datasets).collect())
    }

    fn has(&self, kind: &'static str, name: &str) -> bool {
        self.0.contains(&(kind, name))
    }

    /// "one of a, b, c", cut short where it would not help any more.
    fn choice(&self, kind: &'static str) -> String {
        const SHOWN: usize = 10;
        let names: Vec<&str> =
            self.0.iter().filter(|(its, _)| *its == kind).map(|(_, name)| *name).collect();
        match names.len() {
            0 => format!("a {kind} declared under \"{kind}s\""),
            1..=SHOWN => format!("one of {}", names.join(", ")),
            more => format!("one of {} and {} more", names[..SHOWN].join(", "), more - SHOWN),
        }
    }
}
