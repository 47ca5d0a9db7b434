//! Putting guards into a source: one transaction, idempotent, with what stands there left alone.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::{Desired, Guarded, Permit};
use super::locate::Located;
use super::preflight::version;
use super::{SCHEMA, fingerprint};
use crate::config::PostgresOptions;
use crate::pg::{
    Connection, Error, publication_options, quote_ident, quote_literal, server_version,
};
use crate::registry::{TableName, Tenure};
use crate::vocab::{DatasetName, Lsn, RoleName, ServiceName, SourceName};

/// One change of guards at a time in a source, whoever makes it.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('cadastre guard', 0))";

/// A table, its partitions and children that are not governed themselves, parents first, and
/// whether the guard stands on each as wanted.
///
/// `$3` is what `pg_trigger.tgargs` holds: each argument followed by a zero byte.
const TREE: &str = "
    WITH RECURSIVE tree (oid, depth) AS (
      SELECT c.oid, 0 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = $1 AND c.relname = $2
      UNION ALL
      SELECT i.inhrelid, tree.depth + 1 FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
      WHERE NOT EXISTS (SELECT FROM cadastre.dataset d WHERE d.relid = i.inhrelid)),
    guards AS (
      SELECT t.* FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
      JOIN pg_namespace g ON g.oid = p.pronamespace
      WHERE p.proname IN ('guard', 'guard_row') AND g.nspname = 'cadastre_guard' AND t.tgqual IS NULL AND t.tgattr = '')
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), tree.depth = 0,
      EXISTS (SELECT FROM guards t WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_guard'
                AND t.tgenabled = 'A' AND t.tgargs = $3
                AND t.tgtype = CASE c.relkind WHEN 'f' THEN 30 ELSE 62 END)
      AND (NOT cadastre.subscribed(c.oid) OR EXISTS (
        SELECT FROM guards t WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_apply'
          AND t.tgenabled = 'R' AND t.tgargs = $3 AND t.tgtype = 31))
    FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
    ORDER BY tree.depth, c.oid";

/// Puts the guard on one table.
const PLACE: &str = "SELECT cadastre.place($1, $2, $3, $4::text::name, $5)";

/// Makes privileges what a dataset's mode says.
const PRIVILEGES: &str =
    "SELECT cadastre.keep_privileges(relid, $2) FROM cadastre.dataset WHERE name = $1";

/// The same for every dataset in lockdown; these commands are not an attempt.
const FOLLOW: &str = "
    INSERT INTO cadastre.installing VALUES (pg_current_xact_id());
    SELECT cadastre.keep_privileges(relid, true) FROM cadastre.dataset WHERE mode = 'lockdown' ORDER BY name;
    DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id()";

/// Members of a group role, but for whoever asks: it made the role, or was made its member to install
/// guards.
const MEMBERS: &str = "
    SELECT m.rolname::text FROM pg_auth_members a
    JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
    WHERE g.rolname = $1 AND m.rolname <> current_user";

/// Who granted a membership: from 16 on it is one for each grantor, and only those who have the
/// grantor's rights can take it back.
const GRANTORS: &str = "
    SELECT pg_get_userbyid(a.grantor)::text FROM pg_auth_members a
    JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
    WHERE g.rolname = $1 AND m.rolname = $2 AND pg_has_role(a.grantor, 'USAGE')";

/// What the source notes about a dataset, if it is what is wanted.
const NOTED: &str = "
    SELECT 1 FROM cadastre.dataset
    WHERE relid = $1 AND (name, owner, owner_role::text, mode) = ($2, $3, $4, $5)";

/// How a table stands in the publication: whole, in part, or not at all.
const PUBLISHED: &str = "
    SELECT (to_jsonb(r) ->> 'prqual' IS NULL) AND (to_jsonb(r) ->> 'prattrs' IS NULL)
    FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = $1 AND r.prrelid = $2";

/// Takes back what the scripts leave as they find it: privileges on what is there already, and
/// event triggers. What they make themselves comes back when they run.
const RESET: &str = "
    DO $reset$
    DECLARE x record;
    BEGIN
      FOR x IN
        SELECT format('EVENT TRIGGER %I', e.evtname) AS object
        FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
        WHERE (p.pronamespace = to_regnamespace('cadastre')
          OR e.evtname IN ('cadastre_ddl', 'cadastre_drop', 'cadastre_parts'))
          AND pg_has_role(e.evtowner, 'USAGE')
      LOOP
        EXECUTE 'DROP ' || x.object;
      END LOOP;
      FOR x IN
        SELECT format('FUNCTION %s', p.oid::regprocedure) AS object, a.grantee
        FROM pg_proc p, aclexplode(p.proacl) a
        WHERE p.pronamespace IN (to_regnamespace('cadastre'), to_regnamespace('cadastre_guard'))
          AND a.grantee <> p.proowner
        UNION ALL
        SELECT format('TABLE %s', c.oid::regclass), a.grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = to_regnamespace('cadastre') AND c.relkind = 'r' AND a.grantee <> c.relowner
        UNION ALL
        SELECT 'SCHEMA cadastre_guard', a.grantee FROM pg_namespace n, aclexplode(n.nspacl) a
        WHERE n.nspname = 'cadastre_guard' AND a.grantee <> n.nspowner
        UNION ALL
        SELECT format('FUNCTION pg_catalog.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), a.grantee
        FROM pg_proc p, aclexplode(p.proacl) a
        WHERE p.proname = 'pg_logical_emit_message' AND a.grantee NOT IN (0, p.proowner)
          AND pg_has_role(p.proowner, 'USAGE')
      LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', x.object,
          CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END);
      END LOOP;
      FOR x IN
        SELECT p.oid::regprocedure AS object FROM pg_proc p
        WHERE p.pronamespace IN (to_regnamespace('cadastre'), to_regnamespace('cadastre_guard'))
          AND p.proacl IS NOT NULL
      LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', x.object);
      END LOOP;
      FOR x IN
        SELECT r.rolname AS object FROM pg_roles r WHERE r.rolname IN ('cadastre', 'cadastre_nobody')
          AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolcanlogin OR r.rolreplication OR r.rolbypassrls)
          -- Some of these are a superuser's to take.
          AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
      LOOP
        EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS', x.object);
      END LOOP;
    END $reset$";

/// Whether the scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scripts {
    /// When another version, or none, stands in the source.
    IfOutdated,
    /// In any case, and what they would not touch is taken back first.
    Always,
}

/// What an installation did.
#[derive(Debug, Default)]
pub(super) struct Installed {
    /// The datasets whose guard had to be changed.
    pub(super) changed: Vec<DatasetName>,
    /// What the guard's own objects look like now, when the scripts ran, and where the WAL ended.
    pub(super) objects: Option<(BTreeMap<String, String>, Lsn)>,
}

/// Notes which group role stands for a service; nothing is written when that is known.
const SERVICE: &str = "
    INSERT INTO cadastre.service AS known (group_role, name)
    SELECT oid, $2 FROM pg_roles WHERE rolname = $1
    ON CONFLICT (group_role) DO UPDATE SET name = excluded.name WHERE known.name <> excluded.name";

/// Makes the roles that all sources of a cluster share, and commits: sources that are installed at the
/// same time would else wait for each other.
pub(super) async fn shared_roles(client: &Connection) -> Result<(), Error> {
    Ok(client.batch_execute(SCHEMA[0].1).await?)
}

/// Begins the transaction and takes the lock on changes of guards.
pub(super) async fn begin(client: &Connection, options: &PostgresOptions) -> Result<(), Error> {
    let timeout = options.guard_lock_timeout.as_millis();
    // Compiling queries of the catalogs would take longer than running them, by far.
    let settings = format!("SET LOCAL lock_timeout = {timeout}; SET LOCAL jit = off");
    client.batch_execute(&format!("BEGIN; {settings}")).await?;
    client.batch_execute(LOCK).await?;
    Ok(())
}

/// Brings the source to what is desired, inside the transaction that [`begin`] opened.
pub(super) async fn install(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
    run: Scripts,
) -> Result<Installed, Error> {
    let objects = scripts(client, run).await?;
    client.batch_execute("INSERT INTO cadastre.installing VALUES (pg_current_xact_id())").await?;
    let mut writers_changed = false;
    for (service, wanted) in &desired.roles {
        writers_changed |= roles(client, source, service, wanted).await?;
    }
    writers_changed |= exceptions(client, source, desired).await?;
    publication(client, source).await?;
    let located = Located::load(client).await?;
    let mut changed = Vec::new();
    for (name, dataset) in &desired.datasets {
        let placed = guard(client, source, name, &located.of(name), dataset).await?;
        if privileges(client, name, writers_changed).await? || placed {
            changed.push(name.clone());
        }
    }
    client
        .batch_execute("DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id()")
        .await?;
    Ok(Installed { changed, objects })
}

/// Functions, tables and event triggers. Returns what they look like when they were made anew, of
/// everything that was not there before as somebody else's.
async fn scripts(
    client: &Connection,
    run: Scripts,
) -> Result<Option<(BTreeMap<String, String>, Lsn)>, Error> {
    let version = fingerprint::version();
    if run == Scripts::IfOutdated
        && fingerprint::version_found(client).await?.as_ref() == Some(&version)
    {
        return Ok(None);
    }
    if run == Scripts::Always {
        client.batch_execute(RESET).await?;
        for own in ["cadastre", "cadastre_nobody"] {
            for row in client.query(MEMBERS, &[&own]).await? {
                let member: String = row.try_get(0)?;
                revoke(client, own, &member).await?;
            }
        }
    }
    for (_, text) in SCHEMA {
        client.batch_execute(text).await?;
    }
    let note = format!("COMMENT ON SCHEMA cadastre IS {}", quote_literal(&version));
    client.batch_execute(&note).await?;
    let objects = fingerprint::objects(client).await?;
    Ok(Some((objects, fingerprint::wal_end(client).await?)))
}

/// The group role of a service, with exactly these members. Returns whether they were others.
async fn roles(
    client: &Connection,
    source: &SourceName,
    service: &ServiceName,
    wanted: &BTreeSet<RoleName>,
) -> Result<bool, Error> {
    let group = source.owner_role(service);
    let quoted = quote_ident(&group);
    let known = client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&group]).await?;
    if known.is_none() {
        client.batch_execute(&format!("CREATE ROLE {quoted} NOLOGIN")).await?;
    }
    client.execute(SERVICE, &[&group, &service.as_str()]).await?;
    let mut members = BTreeSet::new();
    for row in client.query(MEMBERS, &[&group]).await? {
        members.insert(row.try_get::<_, String>(0)?);
    }
    // From 16 on, inheritance is of the membership: make it certain whatever the role's default.
    let inherit =
        if version(client).await? >= 160_000 { " WITH INHERIT TRUE, SET FALSE" } else { "" };
    let mut changed = false;
    for role in wanted.iter().filter(|role| !members.contains(role.as_str())) {
        changed = true;
        let member = quote_ident(role.as_str());
        client.batch_execute(&format!("GRANT {quoted} TO {member}{inherit}")).await?;
    }
    let gone = members.iter().filter(|member| !wanted.iter().any(|role| role.as_str() == *member));
    for member in gone {
        changed = true;
        revoke(client, &group, member).await?;
    }
    Ok(changed)
}

/// Ends a membership, whoever granted it.
async fn revoke(client: &Connection, group: &str, member: &str) -> Result<(), Error> {
    let mut revoke = format!("REVOKE {} FROM {}", quote_ident(group), quote_ident(member));
    if version(client).await? < 160_000 {
        return Ok(client.batch_execute(&revoke).await?);
    }
    revoke.push_str(" GRANTED BY ");
    for row in client.query(GRANTORS, &[&group, &member]).await? {
        let grantor: String = row.try_get(0)?;
        client.batch_execute(&format!("{revoke}{} CASCADE", quote_ident(&grantor))).await?;
    }
    Ok(())
}

/// The publication with the options it is made with.
async fn publication(client: &Connection, source: &SourceName) -> Result<(), Error> {
    let name = source.publication();
    // Generated columns can be published from PostgreSQL 18 on.
    let right = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot \
                   AND coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's' \
                 FROM pg_publication p WHERE pubname = $1";
    if let Some(row) = client.query_opt(right, &[&name]).await?
        && !row.try_get::<_, bool>(0)?
    {
        let options = publication_options(server_version(client).await?);
        let set = format!("ALTER PUBLICATION {} SET ({options})", quote_ident(&name));
        client.batch_execute(&set).await?;
    }
    Ok(())
}

/// Others' privileges on a dataset, as its mode wants them: `anew` when roles have come to a service
/// or left it, or others may break glass. Returns whether that took a change.
async fn privileges(client: &Connection, name: &DatasetName, anew: bool) -> Result<bool, Error> {
    let row = client.query_opt(PRIVILEGES, &[&name.as_str(), &anew]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
}

/// Who may write another's dataset for a time, and whose group has no members any more: exactly as
/// desired, in the transaction that is open. Returns whether it was not so.
pub(super) async fn exceptions(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
) -> Result<bool, Error> {
    let mut changed = false;
    for service in &desired.retired {
        changed |= no_members(client, source, service).await?;
    }
    Ok(permits(client, &desired.permits).await? || changed)
}

/// Makes privileges follow exceptions that have changed, in the transaction that is open.
pub(super) async fn exceptions_followed(client: &Connection) -> Result<(), Error> {
    client.batch_execute(FOLLOW).await?;
    Ok(())
}

/// Whether that is so already.
pub(super) async fn exceptions_stand(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
) -> Result<bool, Error> {
    let known = "SELECT to_regclass('cadastre.break_glass') IS NOT NULL";
    if !client.query_one(known, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(desired.permits.is_empty());
    }
    let groups: Vec<String> = desired.retired.iter().map(|it| source.owner_role(it)).collect();
    let row = client
        .query_one(
            "SELECT ARRAY(SELECT id FROM cadastre.break_glass), EXISTS (
               SELECT FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid
               WHERE g.rolname = ANY ($1))",
            &[&groups],
        )
        .await?;
    let (held, members): (Vec<String>, bool) = (row.try_get(0)?, row.try_get(1)?);
    let held: BTreeSet<String> = held.into_iter().collect();
    Ok(!members && held.iter().eq(desired.permits.keys()))
}

/// Takes the members from the group role of a service that was retired, if it ever had one here.
/// Returns whether there were any.
async fn no_members(
    client: &Connection,
    source: &SourceName,
    service: &ServiceName,
) -> Result<bool, Error> {
    let group = source.owner_role(service);
    let members = client.query(MEMBERS, &[&group]).await?;
    for row in &members {
        let member: String = row.try_get(0)?;
        revoke(client, &group, &member).await?;
    }
    Ok(!members.is_empty())
}

/// Exactly these permissions to break glass. The guard itself ends them on time; here those that are
/// over are only removed. Returns whether it was not so.
async fn permits(client: &Connection, wanted: &BTreeMap<String, Permit>) -> Result<bool, Error> {
    let ids: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let remove = "DELETE FROM cadastre.break_glass WHERE id <> ALL ($1)";
    let mut changed = client.execute(remove, &[&ids]).await?;
    for (id, permit) in wanted {
        let Permit { dataset, service, reason, expires_at } = permit;
        changed += client
            .execute(
                "INSERT INTO cadastre.break_glass (id, dataset, service, reason, expires_at) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE SET \
                 dataset = excluded.dataset, service = excluded.service, \
                 reason = excluded.reason, expires_at = excluded.expires_at \
                 WHERE break_glass.* IS DISTINCT FROM excluded.*",
                &[id, &dataset.as_str(), &service.as_str(), reason, expires_at],
            )
            .await?;
    }
    Ok(changed > 0)
}

/// The guard of one dataset, on its table and everything below. Returns whether it was changed.
async fn guard(
    client: &Connection,
    source: &SourceName,
    name: &DatasetName,
    at: &TableName,
    dataset: &Guarded,
) -> Result<bool, Error> {
    let arguments = arguments(source, name, dataset);
    let stored = stored(&arguments);
    let (mut changed, mut parts_changed) = (false, false);
    let mut root = None;
    for row in client.query(TREE, &[&at.schema, &at.table, &stored]).await? {
        let (oid, table): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            root = Some((oid, table));
        }
        if row.try_get(3)? {
            continue;
        }
        changed = true;
        parts_changed |= !row.try_get::<_, bool>(2)?;
        client
            .execute(PLACE, &[&oid, &arguments[0], &arguments[1], &arguments[2], &arguments[3]])
            .await?;
    }
    let Some((oid, table)) = root else { return Ok(false) };
    let owner_role = source.owner_role(&dataset.owner);
    let (owner, mode) = (dataset.owner.as_str(), dataset.mode.as_str());
    let noted =
        client.query_opt(NOTED, &[&oid, &name.as_str(), &owner, &owner_role, &mode]).await?;
    if changed || noted.is_none() {
        record(client, source, name, dataset, oid).await?;
        changed = true;
    }
    changed |= publish(client, source, oid, &table).await?;
    // A part that no event trigger told of: see publish_anew in schema/guard/07_parts.sql.
    if parts_changed && version(client).await? < 150_000 {
        let name = quote_ident(&source.publication());
        let anew = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
        client.batch_execute(&anew).await?;
    }
    Ok(changed)
}

/// What the guard's trigger is told, in order.
pub(super) fn arguments(source: &SourceName, name: &DatasetName, dataset: &Guarded) -> [String; 4] {
    [
        name.to_string(),
        dataset.owner.to_string(),
        source.owner_role(&dataset.owner),
        dataset.mode.to_string(),
    ]
}

/// Arguments as `pg_trigger.tgargs` holds them: each followed by a zero byte.
pub(super) fn stored(arguments: &[String]) -> Vec<u8> {
    let mut stored = Vec::new();
    for argument in arguments {
        stored.extend_from_slice(argument.as_bytes());
        stored.push(0);
    }
    stored
}

/// Notes in the source and in the stream what is guarded from here on.
async fn record(
    client: &Connection,
    source: &SourceName,
    name: &DatasetName,
    dataset: &Guarded,
    oid: u32,
) -> Result<(), Error> {
    let owner_role = source.owner_role(&dataset.owner);
    let (owner, mode) = (dataset.owner.as_str(), dataset.mode.as_str());
    let before = client
        .query_opt(
            "DELETE FROM cadastre.dataset WHERE name = $1 RETURNING owner, mode",
            &[&name.as_str()],
        )
        .await?;
    let (owner_before, mode_before): (Option<String>, Option<String>) = match before {
        Some(row) => (row.try_get(0)?, row.try_get(1)?),
        None => (None, None),
    };
    client
        .execute(
            "INSERT INTO cadastre.dataset (relid, name, owner, owner_role, mode) \
             VALUES ($1, $2, $3, $4::text::name, $5) ON CONFLICT (relid) DO UPDATE SET \
             name = excluded.name, owner = excluded.owner, owner_role = excluded.owner_role, \
             mode = excluded.mode",
            &[&oid, &name.as_str(), &owner, &owner_role, &mode],
        )
        .await?;
    let Tenure { reason, actor, transfer } = &dataset.tenure;
    let message = serde_json::json!({
        "v": 1, "dataset": name, "owner": owner, "mode": mode, "ownerBefore": owner_before,
        "modeBefore": mode_before, "transfer": transfer, "reason": reason, "actor": actor,
    });
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

/// Publishes a table, whole. Returns whether it was not.
async fn publish(
    client: &Connection,
    source: &SourceName,
    oid: u32,
    table: &str,
) -> Result<bool, Error> {
    let publication = source.publication();
    let published = client.query_opt(PUBLISHED, &[&publication, &oid]).await?;
    let whole = published.map(|row| row.try_get::<_, bool>(0)).transpose()?;
    if whole == Some(true) {
        return Ok(false);
    }
    let publication = quote_ident(&publication);
    if whole.is_some() {
        client
            .batch_execute(&format!("ALTER PUBLICATION {publication} DROP TABLE {table}"))
            .await?;
    }
    client.batch_execute(&format!("ALTER PUBLICATION {publication} ADD TABLE {table}")).await?;
    Ok(true)
}

/// Says in the stream, in the transaction that is open, that the guards of these datasets do not
/// stand, or stand again. `since` is where they were last seen to stand.
pub(super) async fn tell(
    client: &Connection,
    datasets: impl IntoIterator<Item = &DatasetName>,
    stands: bool,
    since: Option<Lsn>,
) -> Result<(), Error> {
    let state = if stands { "on" } else { "off" };
    for dataset in datasets {
        let since = since.map(|lsn| lsn.to_string());
        let message =
            serde_json::json!({"v": 1, "dataset": dataset, "state": state, "since": since});
        client
            .execute(
                "SELECT pg_logical_emit_message(true, 'cadastre.guard', $1)",
                &[&message.to_string()],
            )
            .await?;
    }
    Ok(())
}
