//! Drift of roles: who may act for the guard or for a service and should not, or the reverse.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::Desired;
use super::drift::{finding, kind};
use super::look::{Drift, Reach, Repair};
use super::privilege::Role;
use crate::pg::{Connection, Error, quote_ident};
use crate::registry::{NewFinding, Severity};
use crate::vocab::{Mode, SourceName};

/// Members of the services' roles and of the guard's own. From 16 on whoever makes a role is its
/// member, without any right that it has.
const MEMBERS: &str = "
    SELECT g.rolname::text, m.rolname::text FROM pg_auth_members a
    JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
    WHERE g.rolname = ANY ($1::text[]) AND m.rolname <> $2
      AND (coalesce((to_jsonb(a) ->> 'inherit_option')::bool, true) OR coalesce((to_jsonb(a) ->> 'set_option')::bool, true))
    ORDER BY 1, 2";

/// Logins that can act for more than one service.
const SHARED: &str = "
    SELECT m.rolname::text, array_agg(g.rolname::text ORDER BY g.rolname)
    FROM pg_roles m JOIN pg_roles g ON g.rolname = ANY ($1::text[]) AND pg_has_role(m.oid, g.oid, 'MEMBER')
    WHERE m.rolcanlogin AND NOT m.rolsuper AND m.rolname <> $2 GROUP BY m.rolname HAVING count(*) > 1 ORDER BY 1";

/// Who else may emit logical messages.
const EMITTERS: &str = "
    SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END,
      string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid)
    FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace
      AND a.grantee <> p.proowner AND a.grantee <> coalesce(to_regrole('cadastre')::oid, 0)
      AND a.privilege_type = 'EXECUTE'
    GROUP BY 1 ORDER BY 1";

/// Who may emit logical messages beside the guard.
pub(super) async fn emitters(
    client: &Connection,
    wanted: &Desired,
    user: &Role,
    drifts: &mut Vec<Drift>,
) -> Result<(), Error> {
    let enforced = wanted.datasets.values().any(|dataset| dataset.mode != Mode::Observe);
    for row in client.query(EMITTERS, &[]).await? {
        let (grantee, functions): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let quoted = if grantee == "PUBLIC" { grantee.clone() } else { quote_ident(&grantee) };
        let finding = NewFinding {
            mend: Some(format!("REVOKE EXECUTE ON FUNCTION {functions} FROM {quoted}")),
            ..finding(
                kind::EMIT_OPEN,
                Severity::Error,
                format!("pg_logical_emit_message for {grantee}"),
                format!("{grantee} may execute it, and so name any writer"),
                "only cadastre may",
            )
        };
        let repair = if enforced && user.superuser { Repair::Scripts } else { Repair::Nobody };
        drifts.push(Drift { finding, reach: Reach::Source, repair });
    }
    Ok(())
}

/// Who is a member of the roles of the guard and of services, and should not be, or the reverse.
pub(super) async fn members(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    user: &Role,
    drifts: &mut Vec<Drift>,
) -> Result<(), Error> {
    let mut expected: BTreeMap<String, (Option<&str>, BTreeSet<&str>)> = BTreeMap::new();
    for (service, roles) in &wanted.roles {
        let roles = roles.iter().map(crate::vocab::RoleName::as_str).collect();
        expected.insert(source.owner_role(service), (Some(service.as_str()), roles));
    }
    for own in ["cadastre", "cadastre_nobody"] {
        expected.insert(own.to_owned(), (None, BTreeSet::new()));
    }
    let groups: Vec<String> = expected.keys().cloned().collect();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in client.query(MEMBERS, &[&groups, &user.name]).await? {
        found.entry(row.try_get(0)?).or_default().insert(row.try_get(1)?);
    }
    let membership =
        |severity, found: &str, expected: &str, (member, group): (&str, &str), mend| {
            let object = format!("role {member} in {group}");
            let finding = finding(kind::MEMBERSHIP, severity, object, found, expected);
            NewFinding { mend: Some(mend), ..finding }
        };
    for (group, (service, expected)) in &expected {
        let found = found.remove(group).unwrap_or_default();
        for member in found.iter().filter(|member| !expected.contains(member.as_str())) {
            let (role, quoted) = (quote_ident(group), quote_ident(member));
            let finding = membership(
                Severity::Error,
                "it is a member",
                "no such member is declared",
                (member, group),
                format!("REVOKE {role} FROM {quoted}"),
            );
            let (reach, repair) = match service {
                Some(service) => (Reach::Owner((*service).to_owned()), Repair::Install),
                None => (Reach::Source, Repair::Scripts),
            };
            drifts.push(Drift { finding, reach, repair });
        }
        for member in expected.iter().filter(|member| !found.contains(**member)) {
            let (role, quoted) = (quote_ident(group), quote_ident(member));
            let finding = membership(
                Severity::Warning,
                "it is no member, so its writes do not count as its service's",
                "a member, as declared",
                (member, group),
                format!("GRANT {role} TO {quoted}"),
            );
            drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Install });
        }
    }
    Ok(())
}

/// Logins that can act for two services.
pub(super) async fn shared(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    user: &Role,
    drifts: &mut Vec<Drift>,
) -> Result<(), Error> {
    let groups: Vec<String> = wanted.roles.keys().map(|name| source.owner_role(name)).collect();
    for row in client.query(SHARED, &[&groups, &user.name]).await? {
        let (login, groups): (String, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
        let prefix = format!("cadastre_{source}_");
        let services: Vec<&str> =
            groups.iter().map(|group| group.strip_prefix(&prefix).unwrap_or(group)).collect();
        let finding = NewFinding {
            mend: Some(format!(
                "give each service a login of its own, and take the roles of all but one from {}",
                quote_ident(&login)
            )),
            ..finding(
                kind::ROLE_SHARED,
                Severity::Warning,
                format!("role {login}"),
                format!("it can act for the services {}", services.join(", ")),
                "a login serves one service",
            )
        };
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Nobody });
    }
    Ok(())
}
