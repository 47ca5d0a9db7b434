//! Facts about a source that are no drift: nothing was changed behind anybody's back, and yet a
//! promise is weaker than it looks. They are found in the same look and recorded as findings.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::Desired;
use super::locate::Located;
use super::{preflight, privilege};
use crate::pg::{Connection, Error, quote_ident};
use crate::registry::{NewFinding, Question, Severity, TableWriter, UNOWNED};
use crate::vocab::{DatasetName, Mode, SourceName, limits};

/// A promise that does not hold for want of event triggers.
const CAPABILITY_LOST: &str = "capability_lost";
/// A table that nobody has registered.
const TABLE_UNOWNED: &str = "table_unowned";
/// A dataset whose owner is not decided.
const OWNER_UNDECIDED: &str = "owner_undecided";
/// A foreign key between tables of two owners.
const COUPLING: &str = "coupling";
/// A table that cannot be published.
const UNPUBLISHABLE: &str = "unpublishable";
/// A dataset that more than one service writes.
const SEVERAL_WRITERS: &str = "several_writers";

/// Tables of people, not of PostgreSQL, of an extension or of Cadastre; partitions and children
/// belong to their root.
pub(super) const TABLES: &str = "
    SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text,
      ARRAY(SELECT r.rolname::text FROM pg_roles r WHERE r.rolcanlogin AND NOT r.rolsuper
            AND has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') ORDER BY 1),
      (WITH RECURSIVE tree (oid) AS (
         SELECT c.oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
       SELECT ARRAY[coalesce(sum(s.n_tup_ins), 0), coalesce(sum(s.n_tup_upd), 0), coalesce(sum(s.n_tup_del), 0)]::bigint[]
       FROM tree JOIN pg_stat_user_tables s ON s.relid = tree.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('information_schema', 'cadastre', 'cadastre_registry') AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

/// The same, by name only: asked at every look, where the privileges of every role would be too much.
const NAMES: &str = "
    SELECT n.nspname::text, c.relname::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('information_schema', 'cadastre', 'cadastre_registry') AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

/// Foreign keys from one table to another.
const KEYS: &str = "
    SELECT k.conname::text, n.nspname::text, c.relname::text, fn.nspname::text, fc.relname::text,
      k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class fc ON fc.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = fc.relnamespace
    WHERE k.contype = 'f' AND k.conrelid <> k.confrelid AND k.conparentid = 0
    ORDER BY 1, 2, 3";

/// Looks for such facts.
pub(super) async fn look(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    writers: &[TableWriter],
) -> Result<Vec<NewFinding>, Error> {
    let mut found = Vec::new();
    if wanted.datasets.is_empty() {
        return Ok(found);
    }
    if let (_, Some(mend)) = privilege::commands(client).await? {
        found.extend(privilege::LOST.iter().map(|(capability, without)| NewFinding {
            mend: Some(mend.clone()),
            ..fact(CAPABILITY_LOST, Severity::Warning, capability, *without, "event triggers")
        }));
    }
    unowned(client, source, wanted, &mut found).await?;
    coupling(client, source, wanted, &mut found).await?;
    let located = Located::load(client).await?;
    for (name, dataset) in &wanted.datasets {
        let at = located.of(name);
        for message in preflight::table(client, (name, &at), &[], dataset.dropped).await? {
            // Missing tables are drift.
            if let Some((what, mend)) = message.split_once(": ") {
                found.push(NewFinding {
                    question: Question::DataFlow,
                    dataset: Some(name.clone()),
                    mend: Some(mend.to_owned()),
                    ..fact(UNPUBLISHABLE, Severity::Error, name.as_str(), what, "published whole")
                });
            }
        }
        if dataset.owner.as_str() == UNOWNED {
            let found_text = "put under observation; its owner is not decided";
            let mend = format!("cadastre adopt {source} shows who writes it and proposes an owner");
            found.push(NewFinding {
                dataset: Some(name.clone()),
                mend: Some(mend),
                ..fact(OWNER_UNDECIDED, Severity::Warning, name.as_str(), found_text, "one owner")
            });
        }
        found.extend(several(name, dataset.owner.as_str(), dataset.mode, writers));
    }
    Ok(found)
}

fn fact(
    kind: &'static str,
    severity: Severity,
    object: &str,
    found: impl Into<String>,
    expected: &str,
) -> NewFinding {
    NewFinding {
        question: Question::Ownership,
        kind,
        severity,
        dataset: None,
        object: object.to_owned(),
        found: found.into(),
        expected: expected.to_owned(),
        mend: None,
    }
}

async fn unowned(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    found: &mut Vec<NewFinding>,
) -> Result<(), Error> {
    for row in client.query(NAMES, &[]).await? {
        let (schema, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let name = DatasetName::new(source, &schema, &table);
        if name.as_ref().is_ok_and(|name| wanted.datasets.contains_key(name)) {
            continue;
        }
        if found.len() == limits::UNOWNED_FINDINGS_MAX {
            break;
        }
        let object = format!("{}.{}", quote_ident(&schema), quote_ident(&table));
        found.push(NewFinding {
            mend: Some(format!("declare its owner, or cadastre adopt {source}")),
            ..fact(TABLE_UNOWNED, Severity::Info, &object, "nobody has registered it", "an owner")
        });
    }
    Ok(())
}

async fn coupling(
    client: &Connection,
    source: &SourceName,
    wanted: &Desired,
    found: &mut Vec<NewFinding>,
) -> Result<(), Error> {
    for row in client.query(KEYS, &[]).await? {
        let key: String = row.try_get(0)?;
        let (schema, table): (String, String) = (row.try_get(1)?, row.try_get(2)?);
        let (to_schema, to_table): (String, String) = (row.try_get(3)?, row.try_get(4)?);
        let name = DatasetName::new(source, &schema, &table).ok();
        let Ok(to) = DatasetName::new(source, &to_schema, &to_table) else { continue };
        let Some(owner) = wanted.datasets.get(&to).map(|it| it.owner.as_str()) else { continue };
        let from = name.and_then(|name| wanted.datasets.get(&name));
        let from_owner = from.map_or("nobody", |dataset| dataset.owner.as_str());
        if from_owner == owner {
            continue;
        }
        let cascades = row.try_get(5)?;
        let severity = if cascades { Severity::Warning } else { Severity::Info };
        let does = if cascades { "changes with it" } else { "can hold up its deletes" };
        let object = format!("{}.{} {key}", quote_ident(&schema), quote_ident(&table));
        found.push(NewFinding {
            dataset: Some(to),
            ..fact(
                COUPLING,
                severity,
                &object,
                format!("a table of {from_owner} refers to one of {owner}, and {does}"),
                "services meet by APIs and feeds, not by foreign keys",
            )
        });
    }
    Ok(())
}

/// Whether more than one service was let through.
fn several(
    name: &DatasetName,
    owner: &str,
    mode: Mode,
    writers: &[TableWriter],
) -> Option<NewFinding> {
    let mut by: BTreeMap<&str, i64> = BTreeMap::new();
    for writer in writers.iter().filter(|it| it.dataset == name.as_str() && !it.privileged) {
        let who = writer.service.as_deref().unwrap_or(&writer.role);
        *by.entry(who).or_default() += writer.transactions;
    }
    let mut all: BTreeSet<&str> = by.keys().copied().collect();
    if owner != UNOWNED {
        all.insert(owner);
    }
    if all.len() < 2 || mode != Mode::Observe {
        return None;
    }
    let listed: Vec<String> = by.iter().map(|(who, n)| format!("{who} ({n})")).collect();
    Some(NewFinding {
        dataset: Some(name.clone()),
        ..fact(
            SEVERAL_WRITERS,
            Severity::Warning,
            name.as_str(),
            format!("transactions let through: {}", listed.join(", ")),
            "one service writes it",
        )
    })
}
