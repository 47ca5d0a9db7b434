//! Putting guards into a source: one transaction, idempotent, with what stands there left alone.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::SCHEMA;
use super::desired::{Desired, Guarded};
use super::preflight::version;
use crate::config::PostgresOptions;
use crate::pg::{Connection, Error, quote_ident, quote_literal};
use crate::vocab::{DatasetName, RoleName, ServiceName, SourceName};

/// One change of guards at a time in a source, whoever makes it.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('cadastre guard', 0))";

/// A table, its partitions and children, and whether the guard stands on each as wanted.
///
/// `$3` is what `pg_trigger.tgargs` holds: each argument followed by a zero byte.
const TREE: &str = "
    WITH RECURSIVE tree (oid) AS (
      SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = $1 AND c.relname = $2
      UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind = 'f',
      n.nspname = $1 AND c.relname = $2,
      EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
              JOIN pg_namespace g ON g.oid = p.pronamespace
              WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_guard' AND t.tgenabled = 'A'
                AND p.proname = 'guard' AND g.nspname = 'cadastre' AND t.tgargs = $3
                AND t.tgqual IS NULL)
    FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
    ORDER BY c.oid";

/// Members of a group role.
const MEMBERS: &str = "
    SELECT m.rolname::text FROM pg_auth_members a
    JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
    WHERE g.rolname = $1";

/// Begins the transaction and takes the lock on changes of guards.
pub(super) async fn begin(client: &Connection, options: &PostgresOptions) -> Result<(), Error> {
    let timeout = options.guard_lock_timeout.as_millis();
    client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = {timeout}")).await?;
    client.batch_execute(LOCK).await?;
    Ok(())
}

/// Brings the source to what is desired, inside the transaction that [`begin`] opened. Returns the
/// names of the datasets whose guard had to be changed.
pub(super) async fn install(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
) -> Result<Vec<DatasetName>, Error> {
    scripts(client).await?;
    client.batch_execute("INSERT INTO cadastre.installing VALUES (pg_current_xact_id())").await?;
    for (service, wanted) in &desired.roles {
        roles(client, source, service, wanted).await?;
    }
    let mut changed = Vec::new();
    for (name, dataset) in &desired.datasets {
        if guard(client, source, name, dataset).await? {
            changed.push(name.clone());
        }
    }
    client
        .batch_execute("DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id()")
        .await?;
    Ok(changed)
}

/// Functions, tables and event triggers; only when their text changed, as noted on the schema.
async fn scripts(client: &Connection) -> Result<(), Error> {
    let mut hash = Sha256::new();
    for (_, text) in SCHEMA {
        hash.update(text);
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let version = format!("guard {digest}");
    let found = client
        .query_opt(
            "SELECT 1 FROM pg_namespace WHERE nspname = 'cadastre' \
             AND obj_description(oid, 'pg_namespace') = $1",
            &[&version],
        )
        .await?;
    if found.is_some() {
        return Ok(());
    }
    for (_, text) in SCHEMA {
        client.batch_execute(text).await?;
    }
    let note = format!("COMMENT ON SCHEMA cadastre IS {}", quote_literal(&version));
    client.batch_execute(&note).await?;
    Ok(())
}

/// The group role of a service, with exactly these members.
async fn roles(
    client: &Connection,
    source: &SourceName,
    service: &ServiceName,
    wanted: &BTreeSet<RoleName>,
) -> Result<(), Error> {
    let group = source.owner_role(service);
    let quoted = quote_ident(&group);
    let known = client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&group]).await?;
    if known.is_none() {
        client.batch_execute(&format!("CREATE ROLE {quoted} NOLOGIN")).await?;
    }
    let mut members = BTreeSet::new();
    for row in client.query(MEMBERS, &[&group]).await? {
        members.insert(row.try_get::<_, String>(0)?);
    }
    // From 16 on, inheritance is of the membership: make it certain whatever the role's default.
    let inherit =
        if version(client).await? >= 160_000 { " WITH INHERIT TRUE, SET FALSE" } else { "" };
    for role in wanted.iter().filter(|role| !members.contains(role.as_str())) {
        let member = quote_ident(role.as_str());
        client.batch_execute(&format!("GRANT {quoted} TO {member}{inherit}")).await?;
    }
    let gone = members.iter().filter(|member| !wanted.iter().any(|role| role.as_str() == *member));
    for member in gone {
        client.batch_execute(&format!("REVOKE {quoted} FROM {}", quote_ident(member))).await?;
    }
    Ok(())
}

/// The guard of one dataset, on its table and everything below. Returns whether it was changed.
async fn guard(
    client: &Connection,
    source: &SourceName,
    name: &DatasetName,
    dataset: &Guarded,
) -> Result<bool, Error> {
    let owner_role = source.owner_role(&dataset.owner);
    let arguments = [name.as_str(), dataset.owner.as_str(), &owner_role, dataset.mode.as_str()];
    let mut stored = Vec::new();
    for argument in arguments {
        stored.extend_from_slice(argument.as_bytes());
        stored.push(0);
    }
    let mut changed = false;
    let mut root = None;
    for row in client.query(TREE, &[&name.schema(), &name.table(), &stored]).await? {
        let (oid, table): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(3)? {
            root = Some((oid, table.clone()));
        }
        if row.try_get(4)? {
            continue;
        }
        changed = true;
        let events = if row.try_get(2)? {
            "INSERT OR UPDATE OR DELETE"
        } else {
            "INSERT OR UPDATE OR DELETE OR TRUNCATE"
        };
        client.batch_execute(&trigger(&table, events, &arguments)).await?;
    }
    let Some((oid, table)) = root else { return Ok(false) };
    if !changed {
        return Ok(false);
    }
    record(client, source, name, dataset, oid, &table).await?;
    Ok(true)
}

/// The statements that make the guard stand on one table.
fn trigger(table: &str, events: &str, arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|text| quote_literal(text)).collect();
    format!(
        "CREATE OR REPLACE TRIGGER _cadastre_guard BEFORE {events} ON {table} \
         FOR EACH STATEMENT EXECUTE FUNCTION cadastre.guard({}); \
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER _cadastre_guard",
        arguments.join(", ")
    )
}

/// Notes in the source and in the stream what is guarded from here on, and publishes the table.
async fn record(
    client: &Connection,
    source: &SourceName,
    name: &DatasetName,
    dataset: &Guarded,
    oid: u32,
    table: &str,
) -> Result<(), Error> {
    let owner_role = source.owner_role(&dataset.owner);
    let (owner, mode) = (dataset.owner.as_str(), dataset.mode.as_str());
    client.execute("DELETE FROM cadastre.dataset WHERE name = $1", &[&name.as_str()]).await?;
    client
        .execute(
            "INSERT INTO cadastre.dataset (relid, name, owner, owner_role, mode) \
             VALUES ($1, $2, $3, $4::text::name, $5) ON CONFLICT (relid) DO UPDATE SET \
             name = excluded.name, owner = excluded.owner, owner_role = excluded.owner_role, \
             mode = excluded.mode",
            &[&oid, &name.as_str(), &owner, &owner_role, &mode],
        )
        .await?;
    let publication = source.publication();
    let published = client
        .query_opt(
            "SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
             WHERE p.pubname = $1 AND r.prrelid = $2",
            &[&publication, &oid],
        )
        .await?;
    if published.is_none() {
        let add = format!("ALTER PUBLICATION {} ADD TABLE {table}", quote_ident(&publication));
        client.batch_execute(&add).await?;
    }
    let message = serde_json::json!({"v": 1, "dataset": name, "owner": owner, "mode": mode});
    client
        .execute(
            "SELECT pg_logical_emit_message(true, 'cadastre.ownership', $1)",
            &[&message.to_string()],
        )
        .await?;
    // What the rows that follow look like, for who reads the stream: see schema/guard/04_ddl.sql.
    client
        .execute(
            "SELECT cadastre.tell_schema('installed', $1, $2, shape, 'INSTALL', NULL, current_user, \
             jsonb_build_object('shape', shape)) FROM cadastre.shape($2) AS shape",
            &[&name.as_str(), &oid],
        )
        .await?;
    Ok(())
}
