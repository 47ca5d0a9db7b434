//! Drift: what stands in a source and should not, or should and does not.
//!
//! A look is one read-only pass over the catalog. Each [`Drift`] says what was found and what is
//! expected, whether somebody else's write could have passed meanwhile ([`Reach`]), and what mends
//! it ([`Repair`]):
//!
//! | what | severity | repaired |
//! |---|---|---|
//! | guard missing, off or altered on a table; functions, tables, event triggers and roles of the guard; what the source notes about a dataset | error | always |
//! | privileges to write that others have in lockdown | warning | always |
//! | members of a service's role, options and tables of the publication | error, warning | always: they are Cadastre's own |
//! | somebody else may emit logical messages | error | where a dataset of the source is enforced, else reported |
//! | something foreign in the guard's schema, a login that can act for two services, a table that is gone | warning, error | only reported |

use super::desired::Desired;
pub(super) use super::finding_kind as kind;
use super::locate::Located;
use super::look::{Drift, Look, Reach, Repair};
use super::privilege::Role;
use super::{fingerprint, install, privilege, roles};
use crate::pg::{Connection, Error, quote_ident};
use crate::registry::{Baseline, NewFinding, Question, Severity};
use crate::vocab::{DatasetName, SourceName};

/// The guard on each table below the wanted ones, where it is not as wanted.
///
/// `tgtype`: row (1), before (2), insert (4), delete (8), update (16), truncate (32).
const GUARDS: &str = "
    WITH RECURSIVE wanted AS (
      SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
        AS w (dataset, nspname, relname, args)),
    tree (dataset, args, oid) AS (
      SELECT w.dataset, w.args, c.oid FROM wanted w JOIN pg_namespace n USING (nspname)
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname AND c.relkind IN ('r', 'p')
      UNION SELECT tree.dataset, tree.args, i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
      WHERE NOT EXISTS (
        SELECT FROM wanted w JOIN pg_namespace n USING (nspname)
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname WHERE c.oid = i.inhrelid))
    SELECT tree.dataset, format('%I.%I', n.nspname, c.relname),
      CASE WHEN t.oid IS NULL THEN 'missing' WHEN t.tgenabled <> e.enabled THEN 'disabled' ELSE 'altered' END,
      CASE WHEN t.oid IS NULL THEN concat('no trigger ', e.name)
           WHEN t.tgenabled <> e.enabled THEN format('trigger %s is %s', e.name, CASE t.tgenabled
             WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'enabled for replicas only'
             WHEN 'A' THEN 'enabled always' ELSE 'not enabled for replicas' END)
           ELSE pg_get_triggerdef(t.oid) END,
      format('ENABLE %s TRIGGER %s', CASE e.enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END, e.name)
    FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN (VALUES ('_cadastre_guard'::name, 'A'::\"char\"), ('_cadastre_apply', 'R')) AS e (name, enabled)
    LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = e.name
    LEFT JOIN pg_proc p ON p.oid = t.tgfoid LEFT JOIN pg_namespace g ON g.oid = p.pronamespace
    WHERE (e.enabled = 'A' OR c.relkind <> 'p' AND EXISTS (
        SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid
          OR s.srrelid IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) a))) AND (
      t.oid IS NULL OR t.tgenabled <> e.enabled
      OR p.proname <> CASE e.enabled WHEN 'A' THEN 'guard' ELSE 'guard_row' END OR g.nspname <> 'cadastre_guard'
      OR t.tgargs <> tree.args OR t.tgqual IS NOT NULL OR t.tgattr <> ''
      OR t.tgtype <> CASE WHEN e.enabled = 'R' THEN 31 WHEN c.relkind = 'f' THEN 30 ELSE 62 END)
    ORDER BY 1, 2, 5";

/// Whom lockdown should have left without the privilege to write.
const PRIVILEGES: &str = "
    SELECT d.name, string_agg(DISTINCT
      CASE w.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(w.grantee)::text END, ', ')
    FROM cadastre.dataset d CROSS JOIN cadastre.writers(d.relid) w
    WHERE d.mode = 'lockdown' AND NOT cadastre.may_write(d, w.grantee)
    GROUP BY 1 ORDER BY 1";

/// Wanted datasets without a table.
const GONE: &str = "
    SELECT w.dataset FROM unnest($1::text[], $2::text[], $3::text[]) AS w (dataset, nspname, relname)
    WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = w.nspname AND c.relname = w.relname AND c.relkind IN ('r', 'p'))
    ORDER BY 1";

/// What the source notes about datasets, where it is not as wanted. `$4` owners, `$5` their roles,
/// `$6` modes.
const NOTED: &str = "
    WITH wanted AS (
      SELECT w.*, c.oid AS relid
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        AS w (dataset, nspname, relname, owner, owner_role, mode)
      JOIN pg_namespace n USING (nspname)
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname AND c.relkind IN ('r', 'p'))
    SELECT coalesce(w.dataset, d.name), w.dataset IS NULL,
      CASE WHEN d.name IS NULL THEN 'no row' ELSE format('owner %s (role %s), mode %s, table %s',
        d.owner, d.owner_role, d.mode, d.relid::regclass) END,
      CASE WHEN w.dataset IS NULL THEN 'no row' ELSE format('owner %s (role %s), mode %s, table %s',
        w.owner, w.owner_role, w.mode, w.relid::regclass) END
    FROM wanted w FULL JOIN cadastre.dataset d ON d.relid = w.relid
    WHERE (d.name, d.owner, d.owner_role::text, d.mode)
      IS DISTINCT FROM (w.dataset, w.owner, w.owner_role, w.mode)
    ORDER BY 1";

/// The publication's options, as far as they differ from what it is made with.
const PUBLICATION: &str = "
    SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
      coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's'
    FROM pg_publication p WHERE p.pubname = $1";

/// Wanted tables that are not in the publication whole: row filters and column lists came with 15.
const UNPUBLISHED: &str = "
    SELECT w.dataset, r.oid IS NULL, format('%I.%I', w.nspname, w.relname)
    FROM unnest($1::text[], $2::text[], $3::text[]) AS w (dataset, nspname, relname)
    JOIN pg_namespace n USING (nspname)
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname AND c.relkind IN ('r', 'p')
    LEFT JOIN (pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $4)
      ON r.prrelid = c.oid
    WHERE r.oid IS NULL OR to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL
    ORDER BY 1";

/// The arrays that the queries are asked with.
struct Asked {
    names: Vec<String>,
    schemas: Vec<String>,
    tables: Vec<String>,
    arguments: Vec<Vec<u8>>,
    owners: Vec<String>,
    roles: Vec<String>,
    modes: Vec<String>,
}

impl Asked {
    fn new(source: &SourceName, wanted: &Desired, located: &Located) -> Self {
        let datasets = || wanted.datasets.iter();
        let tables = || wanted.datasets.keys().map(|name| located.of(name));
        Self {
            names: datasets().map(|(name, _)| name.to_string()).collect(),
            schemas: tables().map(|name| name.schema).collect(),
            tables: tables().map(|name| name.table).collect(),
            arguments: datasets()
                .map(|(name, it)| install::stored(&install::arguments(source, name, it)))
                .collect(),
            owners: datasets().map(|(_, it)| it.owner.to_string()).collect(),
            roles: datasets().map(|(_, it)| source.owner_role(&it.owner)).collect(),
            modes: datasets().map(|(_, it)| it.mode.to_string()).collect(),
        }
    }
}

/// Compares the source behind `client` with what is wanted. `baseline` is what the guard looked like
/// when it was installed; without it, it has to be installed anew.
///
/// # Errors
/// When the source fails to answer.
pub(super) async fn look(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    baseline: Option<&Baseline>,
) -> Result<Look, Error> {
    let at = fingerprint::wal_end(client).await?;
    let user = privilege::role(client).await?;
    let mut drifts = Vec::new();
    if !wanted.datasets.is_empty() || baseline.is_some() {
        let asked = Asked::new(source, wanted, &Located::load(client).await?);
        let whole = objects(client, baseline, &user, &mut drifts).await?;
        guards(client, &asked, &mut drifts).await?;
        if whole {
            noted(client, source, &asked, &mut drifts).await?;
            privileges(client, &mut drifts).await?;
        }
        roles::emitters(client, wanted, &user, &mut drifts).await?;
        roles::members(client, source, wanted, &user, &mut drifts).await?;
        roles::shared(client, source, wanted, &user, &mut drifts).await?;
        published(client, source, &asked, &mut drifts).await?;
    }
    Ok(Look::new(at, drifts))
}

/// A finding about ownership.
pub(super) fn finding(
    kind: &'static str,
    severity: Severity,
    object: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> NewFinding {
    NewFinding {
        question: Question::Ownership,
        kind,
        severity,
        dataset: None,
        object: object.into(),
        found: found.into(),
        expected: expected.into(),
        mend: None,
    }
}

/// The guard's own objects against the baseline. Returns whether what the other questions read is
/// there.
async fn objects(
    client: &Connection,
    baseline: Option<&Baseline>,
    user: &Role,
    drifts: &mut Vec<Drift>,
) -> Result<bool, Error> {
    let found = fingerprint::objects(client).await?;
    let version = fingerprint::version();
    let current = fingerprint::version_found(client).await?.as_ref() == Some(&version);
    let known = baseline.filter(|it| current && it.version == version);
    let there = found.contains_key("table cadastre.dataset");
    let Some(known) = known else {
        // Another version, or one that nobody kept a note of: nothing to compare with, so that it is
        // installed anew.
        let found = match (there, current) {
            (false, _) => "not installed",
            (true, false) => "installed by another version",
            (true, true) => "installed, but it is not known how it looked then",
        };
        let finding =
            finding(kind::OBJECT_MISSING, Severity::Warning, "schema cadastre", found, "installed");
        let reach = if there { Reach::Nothing } else { Reach::Source };
        drifts.push(Drift { finding, reach, repair: Repair::Scripts });
        return Ok(there);
    };
    for (object, digest) in &known.objects {
        let event = object.starts_with("event trigger ");
        let (kind, says) = match found.get(object) {
            Some(other) if other == digest => continue,
            Some(_) if event => (kind::EVENT_TRIGGER, "disabled or altered"),
            None if event => (kind::EVENT_TRIGGER, "gone"),
            Some(_) => (kind::OBJECT_ALTERED, "definition, owner or privileges differ"),
            None => (kind::OBJECT_MISSING, "gone"),
        };
        let mut finding = finding(kind, Severity::Error, object, says, "as it was installed");
        let mut repair = Repair::Scripts;
        if !user.superuser && (event || object.starts_with("role ")) {
            finding.mend = Some(privilege::bootstrap_hint(&user.name));
            repair = Repair::Nobody;
        }
        // Event triggers guard definitions, not rows; but what they would have told of was not told.
        drifts.push(Drift { finding, reach: Reach::Source, repair });
    }
    let mut unknown: Vec<&String> =
        found.keys().filter(|object| !known.objects.contains_key(*object)).collect();
    // A superuser has made them since: from here on they are part of what stands. And what Cadastre
    // could not make before, it makes once it is a superuser.
    let made = unknown.extract_if(.., |object| privilege::is_event_trigger(object)).count();
    let makes =
        user.superuser && !known.objects.keys().any(|object| privilege::is_event_trigger(object));
    if made > 0 || makes {
        let found = if made > 0 { "made since" } else { "not there" };
        let finding =
            finding(kind::EVENT_TRIGGER, Severity::Warning, "event triggers", found, "installed");
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Scripts });
    }
    for object in unknown {
        let mut finding = finding(
            kind::OBJECT_FOREIGN,
            Severity::Warning,
            object,
            "it is there",
            "nothing but the guard's own objects",
        );
        finding.mend = Some(drop_statement(object));
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Nobody });
    }
    Ok(there
        && found.contains_key("function cadastre.writers(root oid)")
        && found.contains_key("function cadastre.may_write(d cadastre.dataset, role oid)"))
}

/// The statement that drops an object that is named by kind and name.
fn drop_statement(object: &str) -> String {
    let (kind, name) = match object.strip_prefix("event trigger ") {
        Some(name) => ("event trigger", name),
        None => object.split_once(' ').unwrap_or((object, "")),
    };
    format!("DROP {} {name}", kind.to_uppercase())
}

async fn guards(client: &Connection, asked: &Asked, drifts: &mut Vec<Drift>) -> Result<(), Error> {
    let Asked { names, schemas, tables, arguments, .. } = asked;
    for row in client.query(GUARDS, &[names, schemas, tables, arguments]).await? {
        let (dataset, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (what, found): (String, String) = (row.try_get(2)?, row.try_get(3)?);
        let Ok(dataset) = dataset.parse::<DatasetName>() else { continue };
        let (kind, mend) = match what.as_str() {
            "missing" => (kind::GUARD_MISSING, None),
            "disabled" => (
                kind::GUARD_DISABLED,
                Some(format!("ALTER TABLE {table} {}", row.try_get::<_, &str>(4)?)),
            ),
            _ => (kind::GUARD_ALTERED, None),
        };
        let expected = "triggers _cadastre_guard, enabled always, and where a subscription writes \
             _cadastre_apply, enabled for replicas, of the registered owner and mode";
        let finding = NewFinding {
            dataset: Some(dataset.clone()),
            mend,
            ..finding(kind, Severity::Error, table, found, expected)
        };
        drifts.push(Drift { finding, reach: Reach::Dataset(dataset), repair: Repair::Install });
    }
    for row in client.query(GONE, &[names, schemas, tables]).await? {
        let Ok(dataset) = row.try_get::<_, String>(0)?.parse::<DatasetName>() else { continue };
        let table = format!("{}.{}", quote_ident(dataset.schema()), quote_ident(dataset.table()));
        let finding = NewFinding {
            dataset: Some(dataset),
            mend: Some("create the table again, or release the dataset".to_owned()),
            ..finding(kind::TABLE_MISSING, Severity::Error, table, "no such table", "a table")
        };
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Nobody });
    }
    Ok(())
}

async fn noted(
    client: &Connection,
    source: &SourceName,
    asked: &Asked,
    drifts: &mut Vec<Drift>,
) -> Result<(), Error> {
    let Asked { names, schemas, tables, owners, roles, modes, .. } = asked;
    for row in client.query(NOTED, &[names, schemas, tables, owners, roles, modes]).await? {
        let (dataset, foreign): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        let (found, expected): (String, String) = (row.try_get(2)?, row.try_get(3)?);
        let known = if foreign { None } else { dataset.parse().ok() };
        // What is left of a dataset that was released, when it died before it was done. One that is
        // governed is not: its table may just have got another name.
        let left = |it: &DatasetName| it.source() == source && !names.contains(&dataset);
        let released = dataset.parse().ok().filter(left);
        let repair = match (foreign, released) {
            (false, _) => Repair::Install,
            (true, Some(released)) => Repair::Release(released),
            (true, None) => Repair::Nobody,
        };
        let object = format!("cadastre.dataset: {dataset}");
        let finding = NewFinding {
            dataset: known,
            ..finding(kind::REGISTRATION, Severity::Error, object, found, expected)
        };
        // Rows are judged by the trigger's own arguments; this row is for commands on the table.
        drifts.push(Drift { finding, reach: Reach::Nothing, repair });
    }
    Ok(())
}

async fn privileges(client: &Connection, drifts: &mut Vec<Drift>) -> Result<(), Error> {
    for row in client.query(PRIVILEGES, &[]).await? {
        let (dataset, who): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let finding = NewFinding {
            dataset: dataset.parse().ok(),
            ..finding(
                kind::PRIVILEGE_OPEN,
                Severity::Warning,
                dataset,
                format!("in lockdown, but {who} may write it as far as privileges go"),
                "nobody else has a privilege to write it",
            )
        };
        // The guard still answers.
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Install });
    }
    Ok(())
}

async fn published(
    client: &Connection,
    source: &SourceName,
    asked: &Asked,
    drifts: &mut Vec<Drift>,
) -> Result<(), Error> {
    let publication = source.publication();
    let options = client.query_opt(PUBLICATION, &[&publication]).await?;
    let found = match options {
        None => Some("there is none"),
        Some(row) if !row.try_get::<_, bool>(0)? => Some("not every operation is published"),
        Some(row) if !row.try_get::<_, bool>(1)? => Some("partitions are published by themselves"),
        Some(row) if !row.try_get::<_, bool>(2)? => Some("generated columns are not published"),
        Some(_) => None,
    };
    if let Some(found) = found {
        let finding = NewFinding {
            question: Question::DataFlow,
            ..finding(
                kind::PUBLICATION,
                Severity::Error,
                format!("publication {publication}"),
                found,
                "insert, update, delete and truncate, by way of the partition root",
            )
        };
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Install });
    }
    let Asked { names, schemas, tables, .. } = asked;
    for row in client.query(UNPUBLISHED, &[names, schemas, tables, &publication]).await? {
        let Ok(dataset) = row.try_get::<_, String>(0)?.parse::<DatasetName>() else { continue };
        let (absent, table): (bool, String) = (row.try_get(1)?, row.try_get(2)?);
        let found = if absent {
            "not in the publication"
        } else {
            "published with a filter or only some columns"
        };
        let finding = NewFinding {
            question: Question::DataFlow,
            dataset: Some(dataset),
            mend: absent.then(|| {
                format!("ALTER PUBLICATION {} ADD TABLE {table}", quote_ident(&publication))
            }),
            ..finding(kind::UNPUBLISHED, Severity::Error, table, found, "published whole")
        };
        drifts.push(Drift { finding, reach: Reach::Nothing, repair: Repair::Install });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_object_is_dropped_by_its_kind() {
        for (object, statement) in [
            ("function cadastre.f(a integer)", "DROP FUNCTION cadastre.f(a integer)"),
            ("event trigger x", "DROP EVENT TRIGGER x"),
        ] {
            assert_eq!(drop_statement(object), statement);
        }
    }
}
