//! Who may do what: the one place that decides it.
//!
//! Anyone with a token reads. A service changes what it owns. An admin changes everything; an
//! auditor nothing. What needs more than to read stands here, route by route and field by field,
//! and what stands nowhere is not answered: a new route or field without a line here is closed, and
//! fails a test.
//!
//! ```text
//!            ROUTES                         FIELDS
//! request ──► allow ──► handler ─► permit    operation ─► allow ──► resolver ─► permit
//!             by kind of caller    by owner               by kind of caller     by owner
//! ```
//!
//! Where the answer depends on whose the thing is ([`Needs::Owner`]), the table only turns away who
//! can never change anything; the handler names the service concerned to [`permit`], or its changes
//! to [`permit_mutations`].
//!
//! A refusal is logged with its reason and counted here.

use super::auth::Caller;
use super::code::Code;
use super::problem::Problem;
use crate::registry::{Mutation, Principal, Snapshot};
use crate::vocab::ServiceName;

/// What a route or a field needs of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: it tells nothing of what the registry or the log holds.
    Nothing,
    /// Any token.
    Token,
    /// An admin, or the service whose thing it is.
    Owner,
    /// An admin.
    Admin,
}

/// Every route of the server, with its methods.
pub(super) const ROUTES: &[(&str, &str, Needs)] = &[
    ("GET", "/healthz", Needs::Nothing),
    ("GET", "/readyz", Needs::Nothing),
    ("GET", "/metrics", Needs::Nothing),
    ("GET", "/v1/openapi.json", Needs::Nothing),
    ("GET", "/v1/check", Needs::Token),
    ("POST", "/v1/check", Needs::Token),
    ("GET", "/v1/feed", Needs::Token),
    // The guard says whether it is the owner.
    ("POST", "/v1/datasets/{dataset}/rows", Needs::Owner),
    ("GET", "/v1/subscriptions/{name}/changes", Needs::Owner),
    ("POST", "/v1/subscriptions/{name}/ack", Needs::Owner),
    ("POST", "/v1/subscriptions/{name}/nack", Needs::Owner),
    ("POST", "/v1/subscriptions/{name}/extend", Needs::Owner),
    ("GET", "/v1/subscriptions/{name}/secret", Needs::Owner),
    ("GET", "/v1/subscriptions/{name}/dead-letters", Needs::Token),
    ("POST", "/v1/subscriptions/{name}/dead-letters/redrive", Needs::Owner),
    ("GET", "/v1/subscriptions/{name}/dead-letters/{id}", Needs::Token),
    ("PUT", "/v1/subscriptions/{name}/dead-letters/{id}", Needs::Owner),
    ("DELETE", "/v1/subscriptions/{name}/dead-letters/{id}", Needs::Owner),
    ("GET", "/v1/snapshots", Needs::Token),
    ("GET", "/v1/manifest", Needs::Token),
    // A plan that names sources has the server connect to them: its handler asks for an admin then.
    ("POST", "/v1/manifest/plan", Needs::Token),
    ("POST", "/v1/manifest/apply", Needs::Owner),
    ("POST", "/v1/sources/{name}/adopt", Needs::Admin),
    ("GET", "/v1/sources/{name}/adoption", Needs::Token),
    ("GET", "/v1/sources/{name}/doctor", Needs::Token),
    ("GET", "/v1/sources/{name}/proof", Needs::Token),
    // What an operation needs is settled by its fields.
    ("GET", "/graphql", Needs::Token),
    ("POST", "/graphql", Needs::Token),
];

/// Every field of GraphQL's roots.
pub(super) const FIELDS: &[(&str, &str, Needs)] = &[
    ("Query", "node", Needs::Token),
    ("Query", "service", Needs::Token),
    ("Query", "services", Needs::Token),
    ("Query", "dataset", Needs::Token),
    ("Query", "datasets", Needs::Token),
    ("Query", "owner", Needs::Token),
    ("Query", "canWrite", Needs::Token),
    ("Query", "violations", Needs::Token),
    ("Query", "history", Needs::Token),
    ("Query", "driftFindings", Needs::Token),
    ("Query", "unownedTables", Needs::Token),
    ("Query", "subscription", Needs::Token),
    ("Query", "subscriptions", Needs::Token),
    ("Query", "deadLetters", Needs::Token),
    ("Query", "findings", Needs::Token),
    ("Query", "sources", Needs::Token),
    ("Query", "source", Needs::Token),
    ("Query", "snapshots", Needs::Token),
    // A service sees its own.
    ("Query", "tokens", Needs::Token),
    ("Query", "transfers", Needs::Token),
    ("Mutation", "serviceRegister", Needs::Admin),
    ("Mutation", "serviceRetire", Needs::Admin),
    ("Mutation", "sourceRegister", Needs::Admin),
    ("Mutation", "datasetRegister", Needs::Owner),
    ("Mutation", "datasetSetMode", Needs::Owner),
    ("Mutation", "sourceUninstall", Needs::Admin),
    ("Mutation", "datasetRelease", Needs::Admin),
    ("Mutation", "subscriptionCreate", Needs::Owner),
    ("Mutation", "subscriptionPause", Needs::Owner),
    ("Mutation", "subscriptionResume", Needs::Owner),
    ("Mutation", "subscriptionSeek", Needs::Owner),
    ("Mutation", "subscriptionDelete", Needs::Owner),
    ("Mutation", "subscriptionSecretRotate", Needs::Owner),
    ("Mutation", "deadLettersRedrive", Needs::Owner),
    ("Mutation", "deadLettersDrop", Needs::Owner),
    ("Mutation", "deadLetterEdit", Needs::Owner),
    // Proposed and taken back by the owner, accepted or declined by the receiver.
    ("Mutation", "ownershipTransferPropose", Needs::Owner),
    ("Mutation", "ownershipTransferAccept", Needs::Owner),
    ("Mutation", "ownershipTransferDecline", Needs::Owner),
    ("Mutation", "ownershipTransferCancel", Needs::Owner),
    ("Mutation", "breakGlassGrant", Needs::Admin),
    ("Mutation", "breakGlassRevoke", Needs::Admin),
    ("Mutation", "tokenCreate", Needs::Admin),
    ("Mutation", "tokenRevoke", Needs::Owner),
    ("Subscription", "changes", Needs::Token),
    ("Subscription", "violations", Needs::Token),
    ("Subscription", "ownershipChanges", Needs::Token),
];

/// What a route needs. A method that the route does not answer needs a token to be told so, and so
/// does a path that leads nowhere.
pub(super) fn of_route(method: &str, pattern: Option<&str>) -> Needs {
    let Some(pattern) = pattern else { return Needs::Token };
    let known = ROUTES.iter().filter(|(_, path, _)| *path == pattern);
    let mut known = known.peekable();
    if known.peek().is_none() {
        return Needs::Admin;
    }
    known.find(|(name, ..)| *name == method).map_or(Needs::Token, |(.., needs)| *needs)
}

/// What a field of a root needs. Those that begin with two underscores tell of the schema itself.
pub(super) fn of_field(root: &str, field: &str) -> Needs {
    if field.starts_with("__") {
        return Needs::Token;
    }
    let known = FIELDS.iter().find(|(of, name, _)| *of == root && *name == field);
    match (known, root) {
        (Some((.., needs)), _) => *needs,
        // Not in the schema, which the answer will say.
        (None, "Query") => Needs::Token,
        (None, _) => Needs::Admin,
    }
}

/// Whether somebody of this kind may ask for that at all.
pub(super) fn allow(caller: &Caller, needs: Needs, what: &str) -> Result<(), Problem> {
    match (needs, &caller.principal) {
        (_, Principal::Admin)
        | (Needs::Nothing | Needs::Token, _)
        | (Needs::Owner, Principal::Service(_)) => Ok(()),
        (Needs::Owner, Principal::Auditor) => Err(refuse(
            caller,
            what,
            "an admin's token, or one of the service that owns it; an auditor changes nothing",
        )),
        (Needs::Admin, _) => Err(refuse(caller, what, "an admin's token")),
    }
}

/// Whether they may act for `service`.
pub(super) fn permit(caller: &Caller, service: &ServiceName, what: &str) -> Result<(), Problem> {
    if caller.principal == Principal::Admin || caller.principal.service() == Some(service) {
        return Ok(());
    }
    let needed = format!("an admin's token, or one of service \"{service}\"");
    Err(refuse(caller, what, &needed))
}

/// Whether they are an admin.
pub(super) fn permit_admin(caller: &Caller, what: &str) -> Result<(), Problem> {
    allow(caller, Needs::Admin, what)
}

/// The service they are; nobody else has rows.
pub(super) fn service<'a>(caller: &'a Caller, what: &str) -> Result<&'a ServiceName, Problem> {
    caller.principal.service().ok_or_else(|| refuse(caller, what, "a token of a service"))
}

/// Whether they may change the registry so. A service may change what is declared of a dataset it
/// owns, and of its own subscriptions.
pub(super) fn permit_mutations(
    caller: &Caller,
    snapshot: &Snapshot,
    mutations: &[Mutation],
) -> Result<(), Problem> {
    for mutation in mutations {
        match mutation {
            Mutation::SourcePut { name, .. } => {
                permit_admin(caller, &format!("registering source \"{name}\""))?;
            }
            Mutation::ServicePut { name, .. } => {
                permit_admin(caller, &format!("registering service \"{name}\""))?;
            }
            Mutation::DatasetPut { name, owner, .. } => {
                let what = format!("changing dataset \"{name}\"");
                match snapshot.dataset(name) {
                    // Whoever governs a table decides who else may write it.
                    None => {
                        permit_admin(caller, &format!("governing the new dataset \"{name}\""))?;
                    }
                    Some(present) if present.owner == *owner => permit(caller, owner, &what)?,
                    Some(_) => permit_admin(caller, &format!("moving dataset \"{name}\""))?,
                }
            }
            Mutation::BreakGlassGrant { dataset, .. } => {
                permit_admin(caller, &format!("breaking the glass of \"{dataset}\""))?;
            }
            Mutation::BreakGlassRevoke { id, .. } => {
                permit_admin(caller, &format!("taking back permission {id}"))?;
            }
            Mutation::ServiceRetire { name, .. } => {
                permit_admin(caller, &format!("retiring service \"{name}\""))?;
            }
            Mutation::OwnershipTransfer { transfer, .. } => {
                let what = format!("accepting transfer {transfer}");
                match snapshot.transfers.get(transfer) {
                    Some(transfer) => permit(caller, &transfer.to, &what)?,
                    None => permit_admin(caller, &what)?,
                }
            }
            Mutation::SubscriptionPut(subscription) => {
                let what = format!("changing subscription \"{}\"", subscription.name);
                permit(caller, &subscription.service, &what)?;
                if let Some(present) = snapshot.subscriptions.get(&subscription.name) {
                    permit(caller, &present.service, &what)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether they may act for the service of this subscription. One that does not exist is told later.
pub(super) fn permit_subscription(
    caller: &Caller,
    snapshot: &Snapshot,
    name: &str,
) -> Result<(), Problem> {
    match snapshot.subscriptions.get(name) {
        Some(found) => permit(caller, &found.service, &format!("using subscription \"{name}\"")),
        None => Ok(()),
    }
}

/// The refusal, logged and counted.
fn refuse(caller: &Caller, what: &str, needed: &str) -> Problem {
    tracing::warn!(
        principal = %caller.principal,
        token = caller.token.as_ref().map(tracing::field::display),
        what,
        needed,
        "forbidden"
    );
    let role = caller.principal.role();
    metrics::counter!("cadastre_api_forbidden_total", "role" => role).increment(1);
    let detail = format!("{what} needs {needed}; this token is of {}", caller.principal);
    Problem::new(Code::Forbidden, detail).with("needed", needed.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::graphql_sdl;

    fn caller(principal: Principal) -> Caller {
        Caller { principal, token: None }
    }

    fn service(name: &str) -> Caller {
        caller(Principal::Service(name.parse().unwrap()))
    }

    /// The routes that the server registers, read from its source.
    fn routes() -> BTreeSet<(String, String)> {
        let source = include_str!("server.rs");
        let calls = source.split(".service(resource(").skip(1);
        let mut found = BTreeSet::new();
        for call in calls {
            let mut literals = call.split('"').skip(1).step_by(2);
            let (path, methods) = (literals.next().unwrap(), literals.next().unwrap());
            for method in methods.split(", ") {
                found.insert((method.to_owned(), path.to_owned()));
            }
        }
        found
    }

    /// The fields of the roots, read from the schema's text.
    fn fields() -> BTreeSet<(String, String)> {
        let sdl = graphql_sdl();
        let mut found = BTreeSet::new();
        for root in ["Query", "Mutation", "Subscription"] {
            let body = sdl.split(&format!("\ntype {root} {{\n")).nth(1).unwrap();
            let body = body.split("\n}").next().unwrap();
            let mut described = false;
            for line in body.lines() {
                // Fields are indented by one tab; a description of many lines stands between marks.
                let Some(line) = line.strip_prefix('\t') else { continue };
                described ^= line == "\"\"\"";
                if described {
                    continue;
                }
                let end = line.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
                if end > 0 {
                    found.insert((root.to_owned(), line[..end].to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_stands_in_the_table_once() {
        let stated: Vec<_> = ROUTES
            .iter()
            .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        let unique: BTreeSet<_> = stated.iter().cloned().collect();
        assert_eq!(stated.len(), unique.len());
        assert_eq!(unique, routes(), "left: the table, right: the server");
    }

    #[test]
    fn every_field_of_the_roots_stands_in_the_table_once() {
        let stated: Vec<_> = FIELDS
            .iter()
            .map(|(root, field, _)| ((*root).to_owned(), (*field).to_owned()))
            .collect();
        let unique: BTreeSet<_> = stated.iter().cloned().collect();
        assert_eq!(stated.len(), unique.len());
        assert_eq!(unique, fields(), "left: the table, right: the schema");
    }

    #[test]
    fn what_is_not_in_the_table_is_closed() {
        assert_eq!(of_route("GET", Some("/v1/new")), Needs::Admin);
        assert_eq!(of_route("GET", None), Needs::Token);
        assert_eq!(of_route("DELETE", Some("/healthz")), Needs::Token);
        assert_eq!(of_field("Mutation", "newThing"), Needs::Admin);
        assert_eq!(of_field("Query", "__schema"), Needs::Token);
    }

    #[test]
    fn each_kind_of_caller_may_ask_for_its_share() {
        let callers = [service("orders"), caller(Principal::Auditor), caller(Principal::Admin)];
        let allowed = |needs| callers.clone().map(|caller| allow(&caller, needs, "it").is_ok());
        assert_eq!(allowed(Needs::Nothing), [true, true, true]);
        assert_eq!(allowed(Needs::Token), [true, true, true]);
        assert_eq!(allowed(Needs::Owner), [true, false, true]);
        assert_eq!(allowed(Needs::Admin), [false, false, true]);
        let own = callers.map(|caller| permit(&caller, &"orders".parse().unwrap(), "it").is_ok());
        assert_eq!(own, [true, false, true]);
        assert!(permit(&service("billing"), &"orders".parse().unwrap(), "it").is_err());
    }

    #[test]
    fn a_refusal_says_what_would_be_needed() {
        let problem = permit(&service("billing"), &"orders".parse().unwrap(), "it").unwrap_err();
        assert_eq!(problem.code(), Code::Forbidden);
        assert_eq!(
            problem.detail(),
            "it needs an admin's token, or one of service \"orders\"; \
             this token is of service billing"
        );
    }
}
