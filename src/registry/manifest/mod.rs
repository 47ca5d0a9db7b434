//! The declared state as a file: `cadastre.yaml`.
//!
//! ```text
//!   text ─ parse ─► Manifest ─ validate ─► diff against a Snapshot ─► Plan { steps, mutations }
//!    ▲                                                │
//!    └──────────────────── export ────────────────────┘
//! ```
//!
//! A manifest is a list of [`Mutation`]s that remembers on which line each part was declared.
//! Whatever the registry has and the manifest does not name is left alone and reported as unmanaged:
//! a file that covers one team's datasets does not endanger another's.
//!
//! Invariants
//! - Every mistake in a file is reported in one go, each with its line and what would be right.
//! - `parse(export(snapshot)).diff(snapshot)` has no steps.
//! - What this room does *not* check: whether tables and roles exist in a source. The guard does,
//!   and finds the line with [`Manifest::line_of`].

mod diff;
mod export;
mod parse;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::{Dataset, Mutation, Service, Snapshot, Source};

/// What a file declares.
#[derive(Debug, Clone)]
pub struct Manifest {
    file: String,
    /// In the order in which they are shown: sources, services, datasets, subscriptions, each by
    /// name.
    declared: Vec<Mutation>,
    lines: Lines,
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, as its reader calls it.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// One object that a manifest would create or change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `source`, `service`, `dataset` or `subscription`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// `create` or `update`.
    pub action: &'static str,
    /// One line a field, such as `mode: observe → enforce`.
    pub changes: Vec<String>,
}

/// What a manifest would change.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What a person reads; empty when there is nothing to change.
    pub steps: Vec<Step>,
    /// The same for the registry.
    pub mutations: Vec<Mutation>,
    /// What the registry has and the manifest does not name.
    pub unmanaged: Vec<String>,
    /// What is accepted but does not do all it says yet.
    pub notes: Vec<String>,
}

impl Manifest {
    /// Reads a manifest; `file` is only used in findings.
    ///
    /// # Errors
    /// Everything that is wrong with it, by line.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Finding>> {
        parse::parse(text, file)
    }

    /// References that nothing in the manifest or the registry answers, and roles claimed twice.
    pub fn validate(&self, snapshot: &Snapshot) -> Vec<Finding> {
        validate::validate(self, snapshot)
    }

    /// What would change.
    pub fn diff(&self, snapshot: &Snapshot) -> Plan {
        diff::diff(self, snapshot)
    }

    /// The registry's state as a manifest: sorted, the same text for the same state.
    pub fn export(snapshot: &Snapshot) -> String {
        export::export(snapshot)
    }

    /// The line that declares this object (kind: source, service, dataset or subscription), for
    /// messages about it.
    pub fn line_of(&self, kind: &str, name: &str) -> Option<u64> {
        self.lines.get(kind, name, &[])
    }

    fn finding(&self, line: Option<u64>, message: String) -> Finding {
        Finding { file: self.file.clone(), line: line.unwrap_or(1), message }
    }
}

/// Where each declared thing and each of its parts stands, by path.
#[derive(Debug, Clone, Default)]
struct Lines(HashMap<String, u64>);

impl Lines {
    fn path(kind: &str, name: &str, field: &[&str]) -> String {
        // No part holds a NUL, so paths cannot be confused.
        let mut path = format!("{kind}\0{name}");
        for part in field {
            path.push('\0');
            path.push_str(part);
        }
        path
    }

    fn set(&mut self, kind: &str, name: &str, field: &[&str], line: u64) {
        self.0.insert(Self::path(kind, name, field), line);
    }

    /// The line of a field, or of what contains it.
    fn get(&self, kind: &str, name: &str, field: &[&str]) -> Option<u64> {
        let mut containing = (0..=field.len()).rev().filter_map(|len| field.get(..len));
        containing.find_map(|field| self.0.get(&Self::path(kind, name, field)).copied())
    }
}

/// The kind and name of what a mutation declares.
fn identity(mutation: &Mutation) -> (&'static str, &str) {
    match mutation {
        // No manifest says this.
        Mutation::OwnershipTransfer { .. } => ("transfer", ""),
        Mutation::BreakGlassGrant { .. } | Mutation::BreakGlassRevoke { .. } => ("permission", ""),
        Mutation::ServiceRetire { name, .. } => ("service", name.as_str()),
        Mutation::SourcePut { name, .. } => ("source", name.as_str()),
        Mutation::ServicePut { name, .. } => ("service", name.as_str()),
        Mutation::DatasetPut { name, .. } => ("dataset", name.as_str()),
        Mutation::SubscriptionPut(subscription) => ("subscription", &subscription.name),
    }
}

/// The mutations that would make the registry what it is, in the order of a manifest.
fn registered(snapshot: &Snapshot) -> impl Iterator<Item = Mutation> {
    let sources = snapshot.sources.values().map(|source| source_put(source));
    let services = snapshot.services.values();
    let services = services.filter(|service| !snapshot.retired.contains_key(&service.name));
    let services = services.map(|service| service_put(service));
    let datasets = snapshot.datasets.values().map(|dataset| dataset_put(dataset));
    let subscriptions = snapshot.subscriptions.values();
    let subscriptions = subscriptions.map(|it| Mutation::SubscriptionPut(it.as_ref().clone()));
    sources.chain(services).chain(datasets).chain(subscriptions)
}

fn source_put(source: &Source) -> Mutation {
    Mutation::SourcePut { name: source.name.clone(), url: source.url.clone() }
}

fn service_put(service: &Service) -> Mutation {
    Mutation::ServicePut {
        name: service.name.clone(),
        team: service.team.clone(),
        contact: service.contact.clone(),
        roles: service.roles.clone(),
    }
}

fn dataset_put(dataset: &Dataset) -> Mutation {
    Mutation::DatasetPut {
        name: dataset.name.clone(),
        owner: dataset.owner.clone(),
        mode: dataset.mode,
        description: dataset.description.clone(),
        tags: dataset.tags.clone(),
        columns: dataset.columns.clone(),
        derived_from: dataset.derived_from.clone(),
    }
}
