//! What is checked of a mutation before any database sees it.

use super::{Error, Mutation};
use crate::pg::Target;

/// Refuses what cannot be stored: texts with NUL, and connection strings that hold a password.
pub(super) fn check(mutations: &[Mutation]) -> Result<(), Error> {
    for mutation in mutations {
        match mutation {
            Mutation::SourcePut { url, .. } => {
                text("url", url)?;
                Target::check_template(url)
                    .map_err(|error| Error::Invalid { field: "url", message: error.to_string() })?;
            }
            Mutation::ServicePut { team, contact, .. } => {
                text("team", team.as_deref().unwrap_or_default())?;
                text("contact", contact.as_deref().unwrap_or_default())?;
            }
            Mutation::DatasetPut { description, tags, columns, derived_from, .. } => {
                text("description", description.as_deref().unwrap_or_default())?;
                tags.iter().try_for_each(|tag| text("tags", tag))?;
                derived_from.iter().try_for_each(|name| text("derivedFrom", name))?;
                for (column, facts) in columns {
                    text("columns", column)?;
                    text("columns", facts.classification.as_deref().unwrap_or_default())?;
                    text("columns", facts.description.as_deref().unwrap_or_default())?;
                }
            }
            Mutation::SubscriptionPut(subscription) => {
                text("name", &subscription.name)?;
                // In JSON a NUL is written \u0000.
                if subscription.spec.to_string().contains("\\u0000") {
                    return Err(nul("deliver"));
                }
            }
        }
    }
    Ok(())
}

/// PostgreSQL's `text` holds any character but NUL.
pub(super) fn text(field: &'static str, value: &str) -> Result<(), Error> {
    if value.contains('\0') { Err(nul(field)) } else { Ok(()) }
}

fn nul(field: &'static str) -> Error {
    Error::Invalid { field, message: "expected text without a NUL character".to_owned() }
}
