//! What the role that Cadastre connects as may do in a source: what it must be granted, how it is
//! granted, and what is lost where PostgreSQL allows something to superusers only.
//!
//! A superuser may do everything. Any other role needs what [`needs`] lists; [`bootstrap`] writes the
//! script that gives it all of that, and makes what only a superuser can: event triggers, and taking
//! `pg_logical_emit_message` from everybody. Without those the guard of rows stands all the same.

use super::SCHEMA;
use super::desired::Desired;
use super::doctor::Need;
use super::locate::Located;
use crate::pg::{Connection, Error, quote_ident, quote_literal};
use crate::vocab::{RoleName, SourceName};

/// The event triggers of the guard.
pub(super) const EVENT_TRIGGERS: [&str; 3] = ["cadastre_ddl", "cadastre_drop", "cadastre_parts"];

/// What is promised only where the event triggers stand, and what is so without them.
pub(super) const LOST: [(&str, &str); 6] = [
    (
        "commands on governed tables by others are rejected",
        "they are neither rejected nor recorded, where PostgreSQL's own privileges allow them",
    ),
    (
        "a table's PostgreSQL owner cannot switch its guard off",
        "it can; the next comparison finds and mends it, and changes since the one before are not verified",
    ),
    (
        "a new partition is guarded from its first row on",
        "it is guarded at the next comparison; writes to it by its own name before that are let through",
    ),
    (
        "a new table that nobody has registered is found at once",
        "it is found at the next comparison",
    ),
    (
        "a change of a table's definition is told in order with its rows",
        "it is not told: no schema event is made, and a foreign key between owners is found at the next comparison",
    ),
    (
        "a dropped table is told in the feed",
        "it is not: the next comparison finds the table missing",
    ),
];

/// A role, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Role {
    /// Its name.
    pub(super) name: String,
    /// PostgreSQL asks it for no privilege.
    pub(super) superuser: bool,
}

/// The role that a connection acts as.
pub(super) async fn role(client: &Connection) -> Result<Role, Error> {
    let query = "SELECT rolname::text, rolsuper FROM pg_roles WHERE rolname = current_user";
    let row = client.query_one(query, &[]).await?;
    Ok(Role { name: row.try_get(0)?, superuser: row.try_get(1)? })
}

/// Whether an object, named by kind and name, is one of them.
pub(super) fn is_event_trigger(object: &str) -> bool {
    object.strip_prefix("event trigger ").is_some_and(|name| EVENT_TRIGGERS.contains(&name))
}

/// How many of the event triggers stand, and whether the guard does at all.
async fn event_triggers(client: &Connection) -> Result<(usize, bool), Error> {
    let query = "
        SELECT (SELECT count(*) FROM pg_event_trigger WHERE evtname = ANY ($1::text[]) AND evtenabled = 'A'),
          to_regclass('cadastre.dataset') IS NOT NULL";
    let row = client.query_one(query, &[&EVENT_TRIGGERS.as_slice()]).await?;
    Ok((usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0), row.try_get(1)?))
}

/// What the statement is for that makes good what only a superuser can.
pub(super) fn bootstrap_hint(role: &str) -> String {
    format!(
        "run the output of cadastre schema bootstrap --role {role} as a superuser, where there is one"
    )
}

/// What any role needs. Managed services give `REPLICATION` through a role of their own.
const ATTRIBUTES: &str = "
    SELECT r.rolreplication OR EXISTS (
        SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(g.oid, 'USAGE')),
      r.rolcreaterole, has_database_privilege(current_database(), 'CREATE'), current_database()::text,
      coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = 'cadastre'), false),
      EXISTS (SELECT FROM pg_roles WHERE rolname = 'cadastre') AND EXISTS (
        SELECT FROM pg_roles WHERE rolname = 'cadastre_nobody'),
      EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_read_all_stats' AND pg_has_role(oid, 'USAGE'))
    FROM pg_roles r WHERE r.rolname = current_user";

/// Tables of a dataset, with its partitions and children, whose owner's rights it does not have.
const OWNERS: &str = "
    WITH RECURSIVE tree (oid) AS (
      SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = $1 AND c.relname = $2
      UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
    SELECT r.rolname::text, r.rolsuper, string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid)
    FROM tree JOIN pg_class c USING (oid) JOIN pg_roles r ON r.oid = c.relowner
    WHERE NOT pg_has_role(r.oid, 'USAGE') GROUP BY 1, 2 ORDER BY 1";

/// What another role made here before, and still owns: with the statement that gives it over.
const OTHERS: &str = "
    SELECT format('publication %I', p.pubname),
      format('ALTER PUBLICATION %I OWNER TO %I', p.pubname, current_user)
    FROM pg_publication p WHERE p.pubname = $1 AND NOT pg_has_role(p.pubowner, 'USAGE')
    UNION ALL
    SELECT format('function %s', p.oid::regprocedure),
      format('ALTER FUNCTION %s OWNER TO %I', p.oid::regprocedure, current_user)
    FROM pg_proc p WHERE p.pronamespace IN (to_regnamespace('cadastre'), to_regnamespace('cadastre_guard'))
      AND NOT pg_has_role(p.proowner, 'USAGE')
    UNION ALL
    SELECT format('role %I', g.rolname),
      format('GRANT %I TO %I WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', g.rolname, current_user)
    FROM pg_roles g WHERE g.rolname = ANY ($2) AND current_setting('server_version_num')::int >= 160000
      AND NOT pg_has_role(g.oid, 'MEMBER WITH ADMIN OPTION')
    ORDER BY 1";

/// What the role behind `client` needs for `desired`, and whether it has it.
pub(super) async fn needs(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
    located: &Located,
) -> Result<Vec<Need>, Error> {
    let Role { name, superuser } = role(client).await?;
    if superuser {
        return Ok(vec![Need {
            check: "the declared role may install guards".to_owned(),
            ok: true,
            found: format!("{name} is a superuser; it need not be: see cadastre schema bootstrap"),
            mend: None,
        }]);
    }
    let quoted = quote_ident(&name);
    let mut needs = Vec::new();
    let mut need = |check: String, ok: bool, mend: String| {
        let found = if ok { "yes" } else { "no" }.to_owned();
        needs.push(Need { check, ok, found, mend: (!ok).then_some(mend) });
    };
    let row = client.query_one(ATTRIBUTES, &[]).await?;
    need(
        format!("role {name} may stream the WAL"),
        row.try_get(0)?,
        format!("ALTER ROLE {quoted} REPLICATION"),
    );
    need(
        format!("role {name} may make the services' group roles"),
        row.try_get(1)?,
        format!("ALTER ROLE {quoted} CREATEROLE"),
    );
    let database = quote_ident(row.try_get(3)?);
    need(
        format!("role {name} may make schema and publication"),
        row.try_get(2)?,
        format!("GRANT CREATE ON DATABASE {database} TO {quoted}"),
    );
    let (member, made): (bool, bool) = (row.try_get(4)?, row.try_get(5)?);
    let make = if made { "" } else { "CREATE ROLE cadastre; CREATE ROLE cadastre_nobody; " };
    need(
        format!("role {name} acts for cadastre, which owns the guard"),
        member && made,
        format!("{make}GRANT cadastre TO {quoted}"),
    );
    need(
        format!("role {name} sees which transactions hold it up"),
        row.try_get(6)?,
        format!("GRANT pg_read_all_stats TO {quoted}"),
    );
    for (dataset, guarded) in &desired.datasets {
        let at = located.of(dataset);
        for row in client.query(OWNERS, &[&at.schema, &at.table]).await? {
            let (owner, owner_super, tables): (String, bool, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let mend = if owner_super {
                format!("ALTER TABLE {tables} OWNER TO a role of service {}", guarded.owner)
            } else {
                format!("GRANT {} TO {quoted}", quote_ident(&owner))
            };
            need(
                format!("role {name} has the rights of {owner}, which owns {tables}"),
                false,
                mend,
            );
        }
    }
    let groups: Vec<String> = desired.roles.keys().map(|name| source.owner_role(name)).collect();
    for row in client.query(OTHERS, &[&source.publication(), &groups]).await? {
        let (what, mend): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        need(format!("{what}, which another role made, is {name}'s to change"), false, mend);
    }
    Ok(needs)
}

/// What is missing, as the preflight says it.
pub(super) fn missing(needs: Vec<Need>) -> impl Iterator<Item = String> {
    needs.into_iter().filter_map(|Need { check, mend, .. }| {
        Some(format!("needed: {check}; there, as a superuser: {}", mend?))
    })
}

/// The SQL that a superuser, or whoever administers a managed service, runs once in a database, so
/// that `role` can govern it without being a superuser. `owners` own the tables there.
pub fn bootstrap(role: &RoleName, owners: &[RoleName]) -> String {
    let (login, literal) = (quote_ident(role.as_str()), quote_literal(role.as_str()));
    let roles = SCHEMA[0].1;
    let guard: String = SCHEMA[1..].iter().map(|(_, text)| *text).collect();
    let owners: String = owners
        .iter()
        .map(|owner| format!("GRANT {} TO {login};\n", quote_ident(owner.as_str())))
        .collect();
    format!(
        "-- Makes a role that Cadastre can connect as without being a superuser. Run it in each database
-- that is to be a source, as a superuser, or as the role that administers a managed service: what
-- such a role may not do is left out, and docs/privileges.md says what that costs. It may be run
-- again, and has to be when tables of other owners are to be governed.

{roles}
DO $$
BEGIN
  -- How it proves who it is, is yours to say: ALTER ROLE … PASSWORD …, or pg_hba.conf.
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
    CREATE ROLE {login} LOGIN;
  END IF;
  EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), {literal});
END $$;
DO $$
BEGIN
  -- It makes a group role for each service.
  IF NOT (SELECT rolcreaterole FROM pg_roles WHERE rolname = {literal}) THEN
    ALTER ROLE {login} CREATEROLE;
  END IF;
  -- It streams the WAL.
  IF NOT (SELECT rolreplication FROM pg_roles WHERE rolname = {literal}) THEN
    ALTER ROLE {login} REPLICATION;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  -- Of these two, what is left is said by cadastre doctor.
  RAISE NOTICE 'cadastre: % (a managed service has its own way, such as GRANT rds_replication)', SQLERRM;
END $$;
-- It acts for the owner of the guard, and sees which transactions hold it up.
GRANT cadastre, pg_read_all_stats TO {login};
-- Triggers are put on tables, and tables are published, by those who own them.
{owners}
-- The guard, with what only a superuser can: its event triggers, and that nobody else can emit
-- logical messages. What stands already, of another role's making, is given over.
DO $bootstrap$
DECLARE own text;
BEGIN
  EXECUTE $guard$
{guard}$guard$;
  FOR own IN
    SELECT format('ALTER FUNCTION %s OWNER TO %I', f, {literal})
    FROM unnest(ARRAY['cadastre.guard_part(oid, oid)', 'cadastre.publish_anew(oid)']) AS f
    UNION ALL
    SELECT format('ALTER PUBLICATION %I OWNER TO %I', p.pubname, {literal}) FROM pg_publication p
    WHERE starts_with(p.pubname, 'cadastre_')
    UNION ALL
    SELECT format('GRANT %I TO %I WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', g.rolname, {literal})
    FROM cadastre.service s JOIN pg_roles g ON g.oid = s.group_role
    WHERE current_setting('server_version_num')::int >= 160000
  LOOP
    EXECUTE own;
  END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE NOTICE 'cadastre: its role installs the guard itself, without event triggers: %', SQLERRM;
END $bootstrap$;
"
    )
}

/// How many event triggers stand, and the mend where [`LOST`] is lost for want of them.
pub(super) async fn commands(client: &Connection) -> Result<(usize, Option<String>), Error> {
    let role = role(client).await?;
    let (standing, installed) = event_triggers(client).await?;
    // A superuser makes them when it next looks.
    let lost = !role.superuser && installed && standing < EVENT_TRIGGERS.len();
    Ok((standing, lost.then(|| bootstrap_hint(&role.name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_quotes_names_and_ends_its_quotations_where_it_means_to() {
        let role: RoleName = "Cadastre login".parse().unwrap();
        let owner: RoleName = "orders_app".parse().unwrap();
        let sql = bootstrap(&role, &[owner]);
        assert!(sql.contains("ALTER ROLE \"Cadastre login\" REPLICATION;"));
        assert!(sql.contains("WHERE rolname = 'Cadastre login'"));
        assert!(sql.contains("GRANT \"orders_app\" TO \"Cadastre login\";"));
        assert_eq!(sql.matches("$guard$").count(), 2);
        assert_eq!(sql.matches("$bootstrap$").count(), 2);
    }
}
