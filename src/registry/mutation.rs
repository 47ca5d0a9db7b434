//! What is checked of a mutation before any database sees it.

use std::collections::HashMap;

use super::{Error, Mutation, Snapshot, SubscriptionSpec, UNOWNED};
use crate::pg::Target;
use crate::vocab::{DatasetName, Mode, ServiceName, limits};

/// By whom a list of mutations was decided, and on what.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Who is written down as having done it.
    pub by: String,
    /// Who owned what when it was decided: a dataset that has passed to somebody else since is not
    /// changed, so that nobody takes it back without knowing. `None` asks nothing.
    pub(super) owners: Option<HashMap<DatasetName, ServiceName>>,
}

impl Decided {
    /// Decided by somebody who saw this.
    pub fn on(snapshot: &Snapshot, mutations: &[Mutation], by: impl Into<String>) -> Self {
        let changed = mutations.iter().filter_map(|mutation| match mutation {
            // Under whichever of its names it is declared.
            Mutation::DatasetPut { name, .. } => {
                snapshot.dataset(name).map(|dataset| (name.clone(), dataset.owner.clone()))
            }
            _ => None,
        });
        Self { by: by.into(), owners: Some(changed.collect()) }
    }

    /// Decided by this program, whatever there is.
    pub(super) fn regardless() -> Self {
        Self { by: "cadastre".to_owned(), owners: None }
    }
}

/// Refuses what cannot be stored: texts with NUL, and connection strings that hold a password.
pub(super) fn check(mutations: &[Mutation]) -> Result<(), Error> {
    for mutation in mutations {
        match mutation {
            Mutation::SourcePut { url, .. } => {
                text("url", url)?;
                Target::check_template(url)
                    .map_err(|error| Error::Invalid { field: "url", message: error.to_string() })?;
            }
            Mutation::ServicePut { name, team, contact, roles } => {
                if name.as_str() == UNOWNED && roles.values().any(|roles| !roles.is_empty()) {
                    let message =
                        format!("service \"{UNOWNED}\" stands for nobody: give it no roles");
                    return Err(Error::Invalid { field: "roles", message });
                }
                text("team", team.as_deref().unwrap_or_default())?;
                text("contact", contact.as_deref().unwrap_or_default())?;
            }
            Mutation::DatasetPut {
                owner, mode, description, tags, columns, derived_from, ..
            } => {
                if owner.as_str() == UNOWNED && *mode != Mode::Observe {
                    let message = format!(
                        "service \"{UNOWNED}\" stands for nobody, so that nobody could write: \
                         expected mode observe, or another owner"
                    );
                    return Err(Error::Invalid { field: "mode", message });
                }
                text("description", description.as_deref().unwrap_or_default())?;
                tags.iter().try_for_each(|tag| text("tags", tag))?;
                derived_from.iter().try_for_each(|name| text("derivedFrom", name))?;
                for (column, facts) in columns {
                    text("columns", column)?;
                    text("columns", facts.classification.as_deref().unwrap_or_default())?;
                    text("columns", facts.description.as_deref().unwrap_or_default())?;
                }
            }
            Mutation::OwnershipTransfer { .. }
            | Mutation::BreakGlassRevoke { .. }
            | Mutation::ServiceRetire { .. } => {}
            Mutation::BreakGlassGrant { reason, .. } => text("reason", reason)?,
            Mutation::SubscriptionPut(subscription) => {
                text("name", &subscription.name)?;
                one_source(&subscription.datasets)?;
                // In JSON a NUL is written \u0000.
                if subscription.spec.to_string().contains("\\u0000") {
                    return Err(nul("deliver"));
                }
                if let Err(errors) = SubscriptionSpec::parse(&subscription.spec) {
                    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                    return Err(Error::Invalid { field: "spec", message: errors.join("; ") });
                }
            }
        }
    }
    Ok(())
}

/// A subscription has one cursor, and only within a source do changes have an order.
fn one_source(datasets: &[DatasetName]) -> Result<(), Error> {
    let invalid = |message| Err(Error::Invalid { field: "datasets", message });
    let most = limits::FEED_DATASETS_MAX;
    let [first, rest @ ..] = datasets else {
        return invalid(format!("expected 1 to {most}, got none"));
    };
    if datasets.len() > most {
        return invalid(format!("expected 1 to {most}, got {}", datasets.len()));
    }
    match rest.iter().find(|other| other.source() != first.source()) {
        None => Ok(()),
        Some(other) => invalid(format!(
            "{first} and {other} are in different sources, which have no common order: expected a \
             subscription for each"
        )),
    }
}

/// PostgreSQL's `text` holds any character but NUL.
pub(super) fn text(field: &'static str, value: &str) -> Result<(), Error> {
    if value.contains('\0') { Err(nul(field)) } else { Ok(()) }
}

fn nul(field: &'static str) -> Error {
    Error::Invalid { field, message: "expected text without a NUL character".to_owned() }
}
