//! What a manifest would change, in words and as mutations.

use std::collections::BTreeMap;

use super::{Manifest, Plan, Step, identity, registered};
use crate::registry::{ColumnFacts, Mutation, SPEC_FIELDS, Snapshot};

pub(super) fn diff(manifest: &Manifest, snapshot: &Snapshot) -> Plan {
    let registered: Vec<Mutation> = registered(snapshot).collect();
    let mut present: BTreeMap<_, _> = registered.iter().map(|it| (identity(it), it)).collect();
    let mut plan = Plan { steps: vec![], mutations: vec![], unmanaged: vec![], notes: vec![] };
    for declared in &manifest.declared {
        let (kind, name) = identity(declared);
        let before = present.remove(&(kind, name));
        let changes = changes(before, declared);
        if before.is_some() && changes.is_empty() {
            continue;
        }
        let action = if before.is_some() { "update" } else { "create" };
        plan.notes.extend(note(declared));
        plan.steps.push(Step { kind, name: name.to_owned(), action, changes });
        plan.mutations.push(declared.clone());
    }
    plan.unmanaged = registered
        .iter()
        .map(identity)
        .filter(|identity| present.contains_key(identity))
        .map(|(kind, name)| format!("{kind} \"{name}\""))
        .collect();
    plan
}

/// One line for each field that differs.
fn changes(before: Option<&Mutation>, after: &Mutation) -> Vec<String> {
    let after = fields(after);
    let Some(before) = before.map(fields) else {
        return after.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    };
    let mut gone: BTreeMap<String, String> = before.into_iter().collect();
    let mut changes = Vec::new();
    for (name, value) in after {
        let before = gone.remove(&name);
        if before.as_ref() != Some(&value) {
            changes.push(format!("{name}: {} → {value}", before.as_deref().unwrap_or("none")));
        }
    }
    changes.extend(gone.into_iter().map(|(name, value)| format!("{name}: {value} → none")));
    changes
}

/// Every field that says something, as it is shown, the weightiest first. Two objects are equal exactly when these are.
fn fields(mutation: &Mutation) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut field = |name: &str, value: Option<String>| {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    };
    match mutation {
        // No manifest says this.
        Mutation::OwnershipTransfer { .. }
        | Mutation::BreakGlassGrant { .. }
        | Mutation::BreakGlassRevoke { .. }
        | Mutation::ServiceRetire { .. } => {}
        Mutation::SourcePut { url, .. } => field("url", Some(url.clone())),
        Mutation::ServicePut { team, contact, roles, .. } => {
            field("team", quoted(team.as_deref()));
            field("contact", quoted(contact.as_deref()));
            for (source, roles) in roles {
                field(&format!("roles in {source}"), listed(roles));
            }
        }
        Mutation::DatasetPut { owner, mode, description, tags, columns, derived_from, .. } => {
            field("owner", Some(owner.to_string()));
            field("mode", Some(mode.to_string()));
            field("description", quoted(description.as_deref()));
            field("tags", listed(tags));
            field("derivedFrom", listed(derived_from));
            for (column, facts) in columns {
                field(&format!("column {column:?}"), Some(described(facts)));
            }
        }
        Mutation::SubscriptionPut(subscription) => {
            field("service", Some(subscription.service.to_string()));
            field("datasets", listed(&subscription.datasets));
            for part in SPEC_FIELDS {
                field(part, subscription.spec.get(part).map(ToString::to_string));
            }
        }
    }
    fields
}

fn quoted(text: Option<&str>) -> Option<String> {
    text.map(|text| format!("{text:?}"))
}

fn described(facts: &ColumnFacts) -> String {
    let classification = quoted(facts.classification.as_deref());
    let description = quoted(facts.description.as_deref());
    let facts = [
        classification.map(|text| format!("classification {text}")),
        description.map(|text| format!("description {text}")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    if facts.is_empty() { "listed".to_owned() } else { facts.join(", ") }
}

/// `[a, b]`, each item quoted when it holds what would blur the list.
fn listed(items: &[impl ToString]) -> Option<String> {
    let shown = |item: &dyn ToString| {
        let item = item.to_string();
        let plain = |c: char| c.is_alphanumeric() || "_-.:/".contains(c);
        if item.chars().all(plain) && !item.is_empty() { item } else { format!("{item:?}") }
    };
    if items.is_empty() {
        return None;
    }
    let items: Vec<String> = items.iter().map(|item| shown(item)).collect();
    Some(format!("[{}]", items.join(", ")))
}

/// A subscription that is kept but not delivered to.
fn note(declared: &Mutation) -> Option<String> {
    let Mutation::SubscriptionPut(subscription) = declared else { return None };
    let way = subscription.spec.get("deliver")?.as_object()?.keys().next()?;
    let how = match way.as_str() {
        "kafka" => "deliver to Kafka",
        _ => return None,
    };
    let name = &subscription.name;
    Some(format!("subscription \"{name}\" is recorded; this server does not {how} yet"))
}
