//! What stands of the guard in a source's catalog, object by object, as digests.
//!
//! The scripts cannot say how the catalog will show what they make: that depends on the server. So
//! what stands right after they ran is kept in the registry, where nobody who may change the source
//! can reach it, and every later look is compared with that.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::SCHEMA;
use crate::pg::{Connection, Error};
use crate::vocab::Lsn;

/// Every object of the guard's schemas, the event triggers that call into it, and the two roles:
/// kind and name, then a digest of definition, owner and privileges.
const OBJECTS: &str = "
    WITH s AS (SELECT oid, nspname FROM pg_namespace WHERE nspname IN ('cadastre', 'cadastre_guard')), objects AS (
      SELECT format('schema %I', n.nspname) AS object,
        concat_ws('|', pg_get_userbyid(n.nspowner), (SELECT string_agg(x::text, ' ' ORDER BY x::text)
          FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x)) AS looks
      FROM pg_namespace n JOIN s USING (oid)
      UNION ALL
      SELECT format('function %I.%I(%s)', s.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
        concat_ws('|', CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) END,
          pg_get_userbyid(p.proowner), (SELECT string_agg(x::text, ' ' ORDER BY x::text)
           FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x))
      FROM pg_proc p JOIN s ON s.oid = p.pronamespace
      UNION ALL
      SELECT format('%s %I.%I', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index'
          WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' ELSE 'relation' END, s.nspname, c.relname),
        concat_ws('|', pg_get_userbyid(c.relowner), c.relrowsecurity,
          (SELECT string_agg(x::text, ' ' ORDER BY x::text) FROM aclexplode(coalesce(c.relacl,
             acldefault(CAST(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS \"char\"), c.relowner))) x),
          (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
             a.attnotnull, a.attacl, pg_get_expr(d.adbin, d.adrelid)), ',' ORDER BY a.attnum)
           FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
          (SELECT string_agg(pg_get_constraintdef(k.oid), ',' ORDER BY k.conname)
           FROM pg_constraint k WHERE k.conrelid = c.oid),
          (SELECT string_agg(concat(pg_get_triggerdef(t.oid), ' ', t.tgenabled), ',' ORDER BY t.tgname)
           FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
          (SELECT string_agg(pg_get_ruledef(r.oid), ',' ORDER BY r.rulename)
           FROM pg_rewrite r WHERE r.ev_class = c.oid))
      FROM pg_class c JOIN s ON s.oid = c.relnamespace WHERE c.relkind <> 'c'
      UNION ALL
      SELECT format('event trigger %I', e.evtname),
        concat_ws('|', e.evtevent, e.evtenabled, e.evttags, e.evtfoid::regproc, pg_get_userbyid(e.evtowner))
      FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid JOIN s ON s.oid = p.pronamespace
      UNION ALL
      SELECT format('role %I', r.rolname),
        concat_ws('|', r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls)
      FROM pg_roles r WHERE r.rolname IN ('cadastre', 'cadastre_nobody'))
    SELECT object, encode(sha256(convert_to(looks, 'UTF8')), 'hex') FROM objects";

/// The version of the scripts, as they note it on the schema.
pub(super) fn version() -> String {
    let mut hash = Sha256::new();
    for (_, text) in SCHEMA {
        hash.update(text);
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("guard {digest}")
}

/// The version of the scripts that last ran in a source; `None` before the first.
pub(super) async fn version_found(client: &Connection) -> Result<Option<String>, Error> {
    let found = client
        .query_opt(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace \
             WHERE nspname = 'cadastre'",
            &[],
        )
        .await?;
    Ok(found.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// Where the WAL ends now: everything that commits from here on has a later commit record.
pub(super) async fn wal_end(client: &Connection) -> Result<Lsn, Error> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    Ok(row.try_get::<_, &str>(0)?.parse().unwrap_or(Lsn::ZERO))
}

/// What stands now.
pub(super) async fn objects(client: &Connection) -> Result<BTreeMap<String, String>, Error> {
    let mut objects = BTreeMap::new();
    for row in client.query(OBJECTS, &[]).await? {
        objects.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(objects)
}
