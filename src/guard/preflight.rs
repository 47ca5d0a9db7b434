//! What must hold in a source before anything is changed there: every obstacle, at once, with the
//! statement that mends it.

use super::desired::Desired;
use super::locate::Located;
use super::{Refusal, privilege};
use crate::pg::{Connection, Error, quote_ident};
use crate::registry::TableName;
use crate::vocab::{DatasetName, SourceName};

/// Oldest and first unsupported `server_version_num`.
const VERSIONS: std::ops::Range<i32> = 140_000..190_000;

/// The table behind a dataset, and whether its rows can be told apart in the WAL.
const TABLE: &str = "
    SELECT c.oid, c.relkind::text, c.relpersistence::text,
      CASE c.relreplident
        WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
        WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
        ELSE c.relreplident = 'f' END AS identified,
      ARRAY(SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
      ARRAY(SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
            ORDER BY a.attnum) AS computed,
      c.relreplident = 'f' AS is_full,
      EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_key
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2";

/// Leaf partitions of a table whose rows cannot be told apart.
const PARTITIONS: &str = "
    SELECT t.relid::regclass::text
    FROM pg_partition_tree($1::oid::regclass) t JOIN pg_class c ON c.oid = t.relid
    WHERE t.isleaf AND t.level > 0 AND NOT CASE c.relreplident
      WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
      WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
      ELSE c.relreplident = 'f' END
    ORDER BY 1";

/// Datasets whose tables lie below the table of another owner's dataset.
const BELOW: &str = "
    WITH RECURSIVE wanted AS (
      SELECT w.*, c.oid, c.relispartition
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (dataset, nspname, relname, owner)
      JOIN pg_namespace n USING (nspname) JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname),
    up (dataset, oid) AS (
      SELECT w.dataset, w.oid FROM wanted w
      UNION SELECT up.dataset, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid)
    SELECT w.dataset, CASE WHEN w.relispartition THEN 'partition' ELSE 'child' END, w.owner, above.dataset, above.owner
    FROM up JOIN wanted w USING (dataset) JOIN wanted above ON above.oid = up.oid
    WHERE above.owner <> w.owner ORDER BY 1, 4";

/// A role, as far as the guard can hold it.
const ROLE: &str = "SELECT rolinherit FROM pg_roles WHERE rolname = $1";

/// What stands in the way of `desired` in the source behind `client`.
///
/// # Errors
/// When the source fails to answer.
pub(super) async fn refusals(
    client: &Connection,
    source: &SourceName,
    desired: &Desired,
) -> Result<Vec<Refusal>, Error> {
    let mut found = server(client, source).await?;
    let located = Located::load(client).await?;
    let needs = privilege::needs(client, source, desired, &located).await?;
    found.extend(privilege::missing(needs).map(|message| Refusal {
        kind: "source",
        name: source.to_string(),
        message,
    }));
    let version = version(client).await?;
    for (service, roles) in &desired.roles {
        for role in roles {
            let refuse = |message| Refusal { kind: "service", name: service.to_string(), message };
            match client.query_opt(ROLE, &[&role.as_str()]).await? {
                None => found.push(refuse(format!(
                    "role \"{role}\" does not exist in source \"{source}\"; there: CREATE ROLE {} LOGIN",
                    quote_ident(role.as_str())
                ))),
                Some(row) if version < 160_000 && !row.try_get::<_, bool>(0)? => {
                    found.push(refuse(format!(
                        "role \"{role}\" in source \"{source}\" does not inherit, so it would not count \
                         as its service before PostgreSQL 16; there: ALTER ROLE {} INHERIT",
                        quote_ident(role.as_str())
                    )));
                }
                Some(_) => {}
            }
        }
    }
    for (name, dataset) in &desired.datasets {
        let at = located.of(name);
        let messages = table(client, (name, &at), &dataset.columns, dataset.dropped).await?;
        found.extend(messages.into_iter().map(|message| Refusal {
            kind: "dataset",
            name: name.to_string(),
            message,
        }));
    }
    found.extend(below(client, desired, &located).await?);
    Ok(found)
}

/// Partitions and children of another owner than the table they belong to.
async fn below(
    client: &Connection,
    desired: &Desired,
    located: &Located,
) -> Result<Vec<Refusal>, Error> {
    let at: Vec<_> = desired.datasets.keys().map(|name| located.of(name)).collect();
    let names: Vec<&str> = desired.datasets.keys().map(DatasetName::as_str).collect();
    let schemas: Vec<&str> = at.iter().map(|at| at.schema.as_str()).collect();
    let tables: Vec<&str> = at.iter().map(|at| at.table.as_str()).collect();
    let owners: Vec<&str> = desired.datasets.values().map(|it| it.owner.as_str()).collect();
    let mut found = Vec::new();
    for row in client.query(BELOW, &[&names, &schemas, &tables, &owners]).await? {
        let (name, kind, owner): (String, &str, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (above, its_owner): (&str, &str) = (row.try_get(3)?, row.try_get(4)?);
        let message = format!(
            "it is a {kind} of \"{above}\", which service \"{its_owner}\" owns and writes through that table, so \
             that service \"{owner}\" cannot own it: declare one owner for both, or take it out of \"{above}\" first"
        );
        found.push(Refusal { kind: "dataset", name, message });
    }
    Ok(found)
}

/// `server_version_num`.
pub(super) async fn version(client: &Connection) -> Result<i32, Error> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?;
    Ok(row.try_get(0)?)
}

/// What stands in the way on the server's side.
async fn server(client: &Connection, source: &SourceName) -> Result<Vec<Refusal>, Error> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_setting('wal_level'), \
             pg_is_in_recovery()",
            &[],
        )
        .await?;
    let wal_level: &str = row.try_get(1)?;
    let mut messages = Vec::new();
    if !VERSIONS.contains(&version(client).await?) {
        messages.push(format!(
            "PostgreSQL {} is not supported: expected 14 to 18",
            row.try_get::<_, &str>(0)?
        ));
    }
    if wal_level != "logical" {
        messages.push(format!(
            "wal_level is {wal_level}; expected logical: ALTER SYSTEM SET wal_level = 'logical', then restart"
        ));
    }
    if row.try_get(2)? {
        messages.push("this server is a standby: declare its primary".to_owned());
    }
    let refuse = |message| Refusal { kind: "source", name: source.to_string(), message };
    Ok(messages.into_iter().map(refuse).collect())
}

/// What stands in the way of governing one table, which is `at` a place by now. That one which was `dropped` is not there is no
/// obstacle: its dataset stays, and waits for it.
pub(super) async fn table(
    client: &Connection,
    (name, at): (&DatasetName, &TableName),
    columns: &[String],
    dropped: bool,
) -> Result<Vec<String>, Error> {
    let quoted = format!("{}.{}", quote_ident(&at.schema), quote_ident(&at.table));
    let Some(row) = client.query_opt(TABLE, &[&at.schema, &at.table]).await? else {
        if dropped {
            return Ok(Vec::new());
        }
        return Ok(vec![format!(
            "table {quoted} does not exist in source \"{}\"; create it first, or correct the name \
             (upper and lower case count)",
            name.source()
        )]);
    };
    let (oid, kind, persistence): (u32, &str, &str) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !matches!(kind, "r" | "p") {
        return Ok(vec![format!(
            "{quoted} is not a table; only ordinary and partitioned tables can be governed"
        )]);
    }
    let mut messages = Vec::new();
    if persistence != "p" {
        messages.push(format!(
            "{quoted} is not written to the WAL, so its changes cannot be captured: ALTER TABLE {quoted} SET LOGGED"
        ));
    }
    // ON CONFLICT DO UPDATE fails from 15.15, 16.11, 17.7 and 18.0 on.
    let unidentified = "has no replica identity, so once published its owner's UPDATE and DELETE would fail, \
        and on new versions INSERT ON CONFLICT DO UPDATE: add a primary key, or";
    let (computed, is_full): (Vec<String>, bool) = (row.try_get(5)?, row.try_get(6)?);
    let has_key: bool = row.try_get(7)?;
    if !row.try_get::<_, bool>(3)? {
        messages.push(if has_key {
            format!(
                "{quoted} has a primary key and does not use it as its replica identity, so once published \
                 its owner's UPDATE and DELETE would fail: ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT"
            )
        } else {
            format!("{quoted} {unidentified} ALTER TABLE {quoted} REPLICA IDENTITY FULL")
        });
    }
    // Virtual columns cannot be published, and FULL means every column.
    if is_full && !computed.is_empty() {
        let mend = if has_key {
            "DEFAULT"
        } else {
            "USING INDEX, of a unique index on columns that are NOT NULL"
        };
        messages.push(format!(
            "{quoted} has REPLICA IDENTITY FULL and virtual columns ({}), so once published its owner's \
             UPDATE and DELETE would fail: ALTER TABLE {quoted} REPLICA IDENTITY {mend}",
            computed.join(", ")
        ));
    }
    if kind == "p" {
        for row in client.query(PARTITIONS, &[&oid]).await? {
            let partition: &str = row.try_get(0)?;
            messages.push(format!(
                "its partition {partition} {unidentified} ALTER TABLE {partition} REPLICA IDENTITY FULL"
            ));
        }
    }
    let present: Vec<String> = row.try_get(4)?;
    for column in columns.iter().filter(|column| !present.contains(column)) {
        messages
            .push(format!("{quoted} has no column \"{column}\"; it has {}", present.join(", ")));
    }
    Ok(messages)
}
