//! Taking the guard out of a source again: of one dataset, or until nothing is left.
//!
//! ```text
//! datasets, one transaction each ─► schema, event triggers, EXECUTE given back ─► publication
//!   ─► slot ─► services' roles ─► the two roles, when no other source of the cluster needs them
//! ```
//!
//! Each step looks at what is there and takes that away, so that the whole can be begun again after
//! it died anywhere. Locks are asked for as long as `guard_lock_timeout`; a step that does not get
//! one leaves everything as it was.

use super::install::begin;
use super::privilege;
use crate::config::PostgresOptions;
use crate::pg::{Connection, Error, quote_ident};
use crate::task::Failpoint;
use crate::vocab::{DatasetName, SourceName};

/// Tables that carry a trigger of the guard for a dataset: `$1` is the dataset's name, which is the
/// first argument of each. Triggers that PostgreSQL made for partitions go with their parent's.
const TRIGGERS: &str = "
    SELECT format('%I.%I', n.nspname, c.relname), t.tgname::text
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE p.pronamespace IN (to_regnamespace('cadastre'), to_regnamespace('cadastre_guard'))
      AND NOT t.tgisinternal AND t.tgparentid = 0
      AND starts_with(encode(t.tgargs, 'hex'), encode(convert_to($1, getdatabaseencoding()), 'hex') || '00')
    ORDER BY c.oid, t.tgname";

/// Tables that the source notes for a dataset and that are published.
const PUBLISHED: &str = "
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $2
    JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $3 AND c.relname = $4
       OR r.prrelid IN (SELECT relid FROM cadastre.dataset WHERE name = $1)";

/// Datasets that are noted, or whose triggers stand.
const NOTED: &str = "
    SELECT name FROM cadastre.dataset
    UNION
    SELECT convert_from(decode(split_part(encode(t.tgargs, 'escape'), '\\000', 1), 'escape'), getdatabaseencoding())
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.pronamespace IN (to_regnamespace('cadastre'), to_regnamespace('cadastre_guard'))
      AND NOT t.tgisinternal AND t.tgnargs > 0
    ORDER BY 1";

/// Event triggers that call into the guard. A superuser's go with the functions they call.
const EVENT_TRIGGERS: &str = "
    SELECT e.evtname::text FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
    WHERE p.pronamespace = to_regnamespace('cadastre') AND pg_has_role(e.evtowner, 'USAGE')";

/// Gives back what the installation took, and takes back what it gave.
const GIVE_BACK: &str = "
    DO $give_back$
    DECLARE f record;
    BEGIN
      FOR f IN
        SELECT p.oid::regprocedure AS name, p.oid FROM pg_proc p
        WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace
          AND pg_has_role(p.proowner, 'USAGE')
      LOOP
        IF EXISTS (SELECT FROM cadastre.taken WHERE function = f.name::text) THEN
          EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', f.name);
        END IF;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'cadastre') THEN
          EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM cadastre', f.name);
        END IF;
      END LOOP;
    END $give_back$";

/// The roles of a source's services.
const GROUPS: &str = "
    SELECT rolname::text FROM pg_roles
    WHERE starts_with(rolname, $1) AND strpos(substr(rolname, length($1) + 1), '_') = 0
      AND NOT rolcanlogin
    ORDER BY 1";

/// What is left where Cadastre's role is no superuser.
const SUPERUSERS: &str = "what a superuser set up for role {role} is left; there, as a superuser: \
    GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea) TO PUBLIC, and of each other function \
    of that name; DROP OWNED BY cadastre in each database; DROP ROLE cadastre, cadastre_nobody; \
    and what role {role} was granted";

/// How far it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is left, but for these: what, and why it could not be taken away.
    Done(Vec<String>),
    /// Something that it needs is locked or in use: try again later.
    Waiting,
}

/// Takes the guard of one dataset away, in the transaction that is open.
pub(super) async fn release(
    client: &Connection,
    source: &SourceName,
    dataset: &DatasetName,
) -> Result<(), Error> {
    if !stands(client).await? {
        return Ok(());
    }
    client
        .batch_execute(
            "INSERT INTO cadastre.installing VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING",
        )
        .await?;
    // What lockdown took from others is theirs again.
    let took = "SELECT to_regprocedure('cadastre.give_back(text)') IS NOT NULL";
    if client.query_one(took, &[]).await?.try_get(0)? {
        client.execute("SELECT cadastre.give_back($1)", &[&dataset.as_str()]).await?;
    }
    for row in client.query(TRIGGERS, &[&dataset.as_str()]).await? {
        let (table, trigger): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let drop = format!("DROP TRIGGER IF EXISTS {} ON {table}", quote_ident(&trigger));
        client.batch_execute(&drop).await?;
    }
    let publication = source.publication();
    let name = dataset.as_str();
    let (schema, table) = (dataset.schema(), dataset.table());
    for row in client.query(PUBLISHED, &[&name, &publication, &schema, &table]).await? {
        let table: String = row.try_get(0)?;
        let publication = quote_ident(&publication);
        client
            .batch_execute(&format!("ALTER PUBLICATION {publication} DROP TABLE {table}"))
            .await?;
    }
    client.execute("DELETE FROM cadastre.dataset WHERE name = $1", &[&name]).await?;
    client
        .batch_execute("DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id()")
        .await?;
    Ok(())
}

/// Whether the guard's schema is there.
async fn stands(client: &Connection) -> Result<bool, Error> {
    let row = client.query_one("SELECT to_regclass('cadastre.dataset') IS NOT NULL", &[]).await?;
    Ok(row.try_get(0)?)
}

/// Takes everything away that can be now.
///
/// # Errors
/// When the source fails.
pub(super) async fn uninstall(
    client: &Connection,
    options: &PostgresOptions,
    source: &SourceName,
) -> Result<Progress, Error> {
    let Some(others) = datasets(client, options, source).await? else {
        return Ok(Progress::Waiting);
    };
    Failpoint::GuardUninstall.hit();
    if !others {
        match schema(client, options).await {
            Ok(()) => {}
            Err(error) if error.is_lock_timeout() => {
                client.batch_execute("ROLLBACK").await?;
                return Ok(Progress::Waiting);
            }
            Err(error) => return Err(error),
        }
    }
    Failpoint::GuardUninstall.hit();
    let publication = quote_ident(&source.publication());
    client.batch_execute(&format!("DROP PUBLICATION IF EXISTS {publication}")).await?;
    Failpoint::GuardUninstall.hit();
    if !slot(client, source).await? {
        return Ok(Progress::Waiting);
    }
    Failpoint::GuardUninstall.hit();
    roles(client, source, others).await.map(Progress::Done)
}

/// The guards of all datasets of the source. `None` when one stayed locked; else whether the
/// database has datasets of another source.
async fn datasets(
    client: &Connection,
    options: &PostgresOptions,
    source: &SourceName,
) -> Result<Option<bool>, Error> {
    if !stands(client).await? {
        return Ok(Some(false));
    }
    let (mut others, mut locked) = (false, false);
    for row in client.query(NOTED, &[]).await? {
        let Ok(name) = row.try_get::<_, String>(0)?.parse::<DatasetName>() else { continue };
        if name.source() != source {
            others = true;
            continue;
        }
        Failpoint::GuardUninstall.hit();
        let released = async {
            begin(client, options).await?;
            release(client, source, &name).await?;
            client.batch_execute("COMMIT").await?;
            Ok::<(), Error>(())
        };
        match released.await {
            Ok(()) => {}
            Err(error) => {
                client.batch_execute("ROLLBACK").await?;
                if !error.is_lock_timeout() {
                    return Err(error);
                }
                locked = true;
            }
        }
    }
    Ok((!locked).then_some(others))
}

/// The event triggers, what the installation took, and the schema with all in it.
async fn schema(client: &Connection, options: &PostgresOptions) -> Result<(), Error> {
    begin(client, options).await?;
    for row in client.query(EVENT_TRIGGERS, &[]).await? {
        let name: String = row.try_get(0)?;
        client.batch_execute(&format!("DROP EVENT TRIGGER {}", quote_ident(&name))).await?;
    }
    let taken = client.query_one("SELECT to_regclass('cadastre.taken') IS NOT NULL", &[]).await?;
    if taken.try_get(0)? {
        client.batch_execute(GIVE_BACK).await?;
    }
    client.batch_execute("DROP SCHEMA IF EXISTS cadastre, cadastre_guard CASCADE; COMMIT").await?;
    Ok(())
}

/// The slot. Returns false while somebody reads it: capture is told to stop by the registry.
async fn slot(client: &Connection, source: &SourceName) -> Result<bool, Error> {
    let name = source.slot();
    let found = client
        .query_opt("SELECT active FROM pg_replication_slots WHERE slot_name = $1", &[&name])
        .await?;
    match found.map(|row| row.try_get::<_, bool>(0)).transpose()? {
        None => Ok(true),
        Some(true) => Ok(false),
        Some(false) => {
            client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
            Ok(true)
        }
    }
}

/// The roles. What has grants or objects of its own is left, and said.
async fn roles(
    client: &Connection,
    source: &SourceName,
    others: bool,
) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    let prefix = format!("cadastre_{source}_");
    for row in client.query(GROUPS, &[&prefix]).await? {
        let role: String = row.try_get(0)?;
        Failpoint::GuardUninstall.hit();
        if let Err(why) = drop_role(client, &role).await? {
            left.push(why);
        }
    }
    // What a superuser set up for another role is a superuser's to take down.
    let role = privilege::role(client).await?;
    if !others && !role.superuser {
        left.push(SUPERUSERS.replace("{role}", &quote_ident(&role.name)));
        // Another database of the cluster that still needs them has objects of the first.
    } else if !others && drop_role(client, "cadastre").await?.is_ok() {
        Failpoint::GuardUninstall.hit();
        if let Err(why) = drop_role(client, "cadastre_nobody").await? {
            left.push(why);
        }
    }
    Ok(left)
}

/// Drops a role; else why not.
async fn drop_role(client: &Connection, role: &str) -> Result<Result<(), String>, Error> {
    let dropped = client.batch_execute(&format!("DROP ROLE IF EXISTS {}", quote_ident(role))).await;
    let Err(error) = dropped else { return Ok(Ok(())) };
    let error = Error::from(error);
    if error.is_denied() {
        let why = format!("role {role} is another role's to drop: DROP ROLE {}", quote_ident(role));
        return Ok(Err(why));
    }
    if error.is_dependent() {
        return Ok(Err(format!(
            "role {role} still has privileges or objects that somebody gave it: see \
             DROP OWNED BY {} in each database, then DROP ROLE {}",
            quote_ident(role),
            quote_ident(role)
        )));
    }
    Err(error)
}
