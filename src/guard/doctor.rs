//! What a source has and what it needs, each with the statement that mends it.

use serde::Serialize;

use super::desired::{Desired, Guarded};
use super::locate::Located;
use super::{preflight, privilege};
use crate::pg::{Connection, Error, quote_ident, quote_literal};
use crate::vocab::{DatasetName, Mode, SourceName};

/// One thing examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// What was looked at.
    pub check: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// The statement that mends it, where there is one.
    pub mend: Option<String>,
}

/// The settings and the room that capture and guard need.
const SERVER: &str = "
    SELECT current_setting('wal_level'),
      current_setting('max_replication_slots')::int
        - (SELECT count(*)::int FROM pg_replication_slots),
      current_setting('max_wal_senders')::int
        - (SELECT count(*)::int FROM pg_stat_replication),
      NOT EXISTS (
        SELECT FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.proname = 'pg_logical_emit_message' AND a.grantee = 0),
      (SELECT string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid) FROM pg_proc p
        WHERE p.proname = 'pg_logical_emit_message')";

/// The slot, if there is one.
const SLOT: &str = "
    SELECT active, coalesce(wal_status, 'unknown'),
      pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)),
      pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn))
    FROM pg_replication_slots WHERE slot_name = $1";

/// Logins that belong to more than one service.
const SHARED: &str = "
    SELECT m.rolname::text, string_agg(g.rolname::text, ', ' ORDER BY g.rolname)
    FROM pg_roles m JOIN pg_roles g ON g.rolname = ANY ($1) AND pg_has_role(m.oid, g.oid, 'USAGE')
    WHERE m.rolcanlogin AND NOT m.rolsuper AND m.rolname <> current_user GROUP BY m.rolname HAVING count(*) > 1 ORDER BY 1";

/// Whether the guard stands on a table and everything below, and the table is published.
const GUARDED: &str = "
    WITH RECURSIVE tree (oid) AS (
      SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = $1 AND c.relname = $2
      UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
    SELECT
      coalesce((SELECT string_agg(tree.oid::regclass::text, ', ') FROM tree
        WHERE NOT EXISTS (SELECT FROM pg_trigger t
          WHERE t.tgrelid = tree.oid AND t.tgname = '_cadastre_guard' AND t.tgenabled = 'A')), ''),
      EXISTS (SELECT FROM pg_publication_tables
        WHERE pubname = $3 AND schemaname = $1 AND tablename = $2)";

/// Foreign keys that write a dataset's table as a role that is not its owner's.
const CASCADES: &str = "
    SELECT k.conname::text, c.oid::regclass::text, pg_get_userbyid(c.relowner)::text
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND k.contype = 'f'
      AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
      AND ((SELECT rolsuper FROM pg_roles WHERE oid = c.relowner) OR NOT coalesce(
        pg_has_role(c.relowner, (SELECT oid FROM pg_roles WHERE rolname = $3), 'USAGE'), false))
    ORDER BY 1";

/// Roles that have a privilege to write a table although they are not the owner's.
const WRITERS: &str = "
    SELECT string_agg(r.rolname::text, ', ' ORDER BY r.rolname)
    FROM pg_roles r, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND NOT r.rolsuper AND r.rolname !~ '^pg_'
      AND NOT coalesce(
        pg_has_role(r.oid, (SELECT oid FROM pg_roles WHERE rolname = $3), 'USAGE'), false)
      AND has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')";

/// Whether our slot goes over to a standby (from PostgreSQL 17 on), which standbys' slots logical
/// decoding waits for, and which standbys' slots there are.
const STANDBYS: &str = "
    SELECT coalesce((to_jsonb(s) ->> 'failover')::bool, false),
      coalesce(current_setting('synchronized_standby_slots', true), ''),
      ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'physical' ORDER BY 1)
    FROM pg_replication_slots s WHERE slot_name = $1";

/// Columns of a table that the publication leaves out.
const LEFT_OUT: &str = "
    SELECT string_agg(a.attname::text, ', ' ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND NOT a.attisdropped
      AND (a.attgenerated = 'v'
           OR a.attgenerated = 's' AND current_setting('server_version_num')::int < 180000)
    HAVING count(*) > 0";

/// Examines the source behind `client`.
///
/// # Errors
/// When it fails to answer.
pub(super) async fn examine(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
) -> Result<Vec<Need>, Error> {
    let located = Located::load(client).await?;
    let mut needs = server(client).await?;
    needs.extend(privilege::needs(client, source, desired, &located).await?);
    needs.extend(commands(client).await?);
    needs.push(slot(client, source).await?);
    needs.extend(standbys(client, source).await?);
    for refusal in preflight::refusals(client, source, desired).await? {
        // What the server lacks is listed above, with what it has.
        if refusal.kind != "source" {
            let Some((found, mend)) = refusal.message.split_once(": ") else { continue };
            let check = format!("{} {}", refusal.kind, refusal.name);
            needs.push(Need {
                check,
                ok: false,
                found: found.to_owned(),
                mend: Some(mend.to_owned()),
            });
        }
    }
    let groups: Vec<String> = desired.roles.keys().map(|name| source.owner_role(name)).collect();
    for row in client.query(SHARED, &[&groups]).await? {
        let (login, groups): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        needs.push(Need {
            check: format!("role {login} serves one service"),
            ok: false,
            found: format!("it can write as {groups}"),
            mend: Some(format!(
                "give each service a login of its own, and REVOKE one of {groups} FROM {}",
                quote_ident(&login)
            )),
        });
    }
    for (name, dataset) in &desired.datasets {
        let publication = source.publication();
        let at = located.of(name);
        let row = client.query_one(GUARDED, &[&at.schema, &at.table, &publication]).await?;
        let (bare, published): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        needs.push(Need {
            check: format!("dataset {name} is guarded"),
            ok: bare.is_empty(),
            found: if bare.is_empty() { "yes".to_owned() } else { format!("no guard on {bare}") },
            mend: (!bare.is_empty())
                .then(|| "installed again within 30 s while the server runs".to_owned()),
        });
        if let Some(row) = client.query_opt(LEFT_OUT, &[&at.schema, &at.table]).await? {
            needs.push(Need {
                check: format!("dataset {name} is in its feed with every column"),
                ok: true,
                found: format!("all but generated columns: {}", row.try_get::<_, &str>(0)?),
                mend: None,
            });
        }
        let table = format!("{}.{}", quote_ident(&at.schema), quote_ident(&at.table));
        needs.push(Need {
            check: format!("dataset {name} is published"),
            ok: published,
            found: if published { "yes" } else { "no" }.to_owned(),
            mend: (!published).then(|| {
                format!(
                    "ALTER PUBLICATION {} ADD TABLE {table}",
                    quote_ident(&source.publication())
                )
            }),
        });
        needs.extend(privileges(client, name, dataset, &source.owner_role(&dataset.owner)).await?);
    }
    Ok(needs)
}

/// Writes of a dataset's table that PostgreSQL makes or allows under a role that is not the owner's.
async fn privileges(
    client: &Connection,
    name: &DatasetName,
    dataset: &Guarded,
    group: &str,
) -> Result<Vec<Need>, Error> {
    let mut needs = Vec::new();
    for row in client.query(CASCADES, &[&name.schema(), &name.table(), &group]).await? {
        let (key, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let role: String = row.try_get(2)?;
        needs.push(Need {
            check: format!("foreign key {key} writes {name} as its owner"),
            ok: false,
            found: format!("it writes as role {role}, which owns the table"),
            mend: Some(format!("ALTER TABLE {table} OWNER TO a role of service {}", dataset.owner)),
        });
    }
    if dataset.mode == Mode::Lockdown {
        let row = client.query_one(WRITERS, &[&name.schema(), &name.table(), &group]).await?;
        let left: Option<String> = row.try_get(0)?;
        needs.push(Need {
            check: format!("only its owner may write {name}"),
            ok: left.is_none(),
            found: left.as_ref().map_or_else(|| "yes".to_owned(), |left| format!("also {left}, as far as privileges go")),
            mend: left.is_some().then(|| {
                format!(
                    "let a role of service {} own the table, and take pg_write_all_data from others",
                    dataset.owner
                )
            }),
        });
    }
    Ok(needs)
}

/// Settings, privileges and room.
async fn server(client: &Connection) -> Result<Vec<Need>, Error> {
    let version = preflight::version(client).await?;
    let row = client.query_one(SERVER, &[]).await?;
    let wal_level: String = row.try_get(0)?;
    let (slots, senders): (i32, i32) = (row.try_get(1)?, row.try_get(2)?);
    let (emit_closed, emitters): (bool, String) = (row.try_get(3)?, row.try_get(4)?);
    let need = |check: &str, ok: bool, found: String, mend: &str| Need {
        check: check.to_owned(),
        ok,
        found,
        mend: (!ok).then(|| mend.to_owned()),
    };
    Ok(vec![
        need(
            "PostgreSQL 14 to 18",
            (140_000..190_000).contains(&version),
            (version / 10_000).to_string(),
            "upgrade PostgreSQL",
        ),
        need(
            "wal_level is logical",
            wal_level == "logical",
            wal_level,
            "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL",
        ),
        need(
            "a replication slot is free or ours",
            slots > 0,
            format!("{slots} free"),
            "ALTER SYSTEM SET max_replication_slots = 20, then restart PostgreSQL",
        ),
        need(
            "a walsender is free or ours",
            senders > 0,
            format!("{senders} free"),
            "ALTER SYSTEM SET max_wal_senders = 20, then restart PostgreSQL",
        ),
        need(
            "only the guard can emit logical messages",
            emit_closed,
            if emit_closed { "yes" } else { "anyone can" }.to_owned(),
            &format!("as a superuser: REVOKE EXECUTE ON FUNCTION {emitters} FROM PUBLIC"),
        ),
    ])
}

/// Whether what was captured is on every standby before: one that is promoted without it has lost
/// changes that subscribers have, and its slot does not go on. None without standbys.
async fn standbys(client: &Connection, source: &SourceName) -> Result<Option<Need>, Error> {
    let Some(row) = client.query_opt(STANDBYS, &[&source.slot()]).await? else { return Ok(None) };
    let (failover, waited): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
    let standbys: Vec<String> = row.try_get(2)?;
    if !failover || standbys.is_empty() {
        return Ok(None);
    }
    let waited: Vec<&str> = waited.split(',').map(str::trim).collect();
    let missing: Vec<&str> =
        standbys.iter().map(String::as_str).filter(|slot| !waited.contains(slot)).collect();
    Ok(Some(Need {
        check: "changes are on every standby before they are captured".to_owned(),
        ok: missing.is_empty(),
        found: if missing.is_empty() {
            "yes".to_owned()
        } else {
            format!("synchronized_standby_slots does not name {}", missing.join(", "))
        },
        mend: (!missing.is_empty()).then(|| {
            format!(
                "ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf()",
                quote_literal(&standbys.join(", "))
            )
        }),
    }))
}

/// Whether commands on governed tables are guarded; if they cannot be, what is lost, each by itself.
async fn commands(client: &Connection) -> Result<Vec<Need>, Error> {
    let (standing, mend) = privilege::commands(client).await?;
    let ok = standing == privilege::EVENT_TRIGGERS.len();
    let lost = if mend.is_some() { privilege::LOST.as_slice() } else { &[] };
    let mend = mend.unwrap_or_else(|| {
        "installed with the first dataset, or within 30 s while the server runs".to_owned()
    });
    let mut needs = vec![Need {
        check: "commands on governed tables are guarded".to_owned(),
        ok,
        found: format!("{standing} of {} event triggers stand", privilege::EVENT_TRIGGERS.len()),
        mend: (!ok).then_some(mend),
    }];
    needs.extend(lost.iter().map(|(check, found)| Need {
        check: (*check).to_owned(),
        ok: false,
        found: (*found).to_owned(),
        mend: None,
    }));
    Ok(needs)
}

/// The slot and what it holds back.
async fn slot(client: &Connection, source: &SourceName) -> Result<Need, Error> {
    let name = source.slot();
    let check = format!("slot {name} streams");
    let Some(row) = client.query_opt(SLOT, &[&name]).await? else {
        let mend = Some("made when the server captures the source: is it running?".to_owned());
        return Ok(Need { check, ok: false, found: "there is none".to_owned(), mend });
    };
    let (active, status): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
    let (retained, behind): (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
    let state = if active { "active" } else { "not active" };
    let ok = active && status != "lost";
    Ok(Need {
        check,
        ok,
        found: format!(
            "{state}, WAL {status}, {} retained, {} not confirmed",
            retained.as_deref().unwrap_or("nothing"),
            behind.as_deref().unwrap_or("nothing")
        ),
        mend: (!ok).then(|| "see /readyz for what keeps it from streaming".to_owned()),
    })
}
