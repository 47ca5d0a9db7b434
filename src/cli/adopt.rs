//! `cadastre adopt`: a database in use, put under observation.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::{RoleName, ServiceName, SourceName};

/// Puts every table of a source under observation, in one step, and says who writes what.
///
/// Nothing is rejected: in mode `observe` each write by somebody who is not the owner is recorded.
/// A table gets its owner at once where only the roles of one service may write it; else it belongs
/// to the reserved service `unowned` until somebody decides. Run it again after a while: it shows
/// who was seen writing each table, marks those with several writers, and proposes owners.
#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The source.
    source: SourceName,
    /// Its connection string, when it is not registered yet; `${VARIABLE}` is resolved where the
    /// server runs.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// A service and its roles in the source; may be given several times.
    #[arg(long = "service", value_name = "NAME=ROLE[,ROLE]", value_parser = service)]
    services: Vec<(ServiceName, Vec<RoleName>)>,
    /// Only report: put nothing under observation.
    #[arg(long)]
    report: bool,
    /// Write the manifest, with the proposed owners, to this file; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to print the tables.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// `NAME=ROLE[,ROLE]`.
fn service(text: &str) -> Result<(ServiceName, Vec<RoleName>), String> {
    let (name, roles) =
        text.split_once('=').ok_or("expected NAME=ROLE[,ROLE], such as orders=orders_app")?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    let roles: Result<Vec<RoleName>, _> = roles.split(',').map(str::parse).collect();
    Ok((name, roles.map_err(|error| format!("{error}"))?))
}

/// The server's answer.
#[derive(Debug, Deserialize)]
struct Adoption {
    tables: Vec<Table>,
    manifest: String,
}

/// One table.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    dataset: String,
    owner: Option<String>,
    mode: Option<String>,
    problem: Option<String>,
    may_write: Vec<String>,
    rows: [i64; 3],
    writers: Vec<Writer>,
    several_writers: bool,
    proposed: Option<String>,
}

/// Who was seen writing it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Writer {
    role: String,
    service: Option<String>,
    transactions: i64,
    operations: Vec<String>,
    first_seen: String,
    last_seen: String,
}

/// Runs the command.
pub(crate) async fn run(command: Adopt) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let source = command.source.as_str();
    let adoption: Adoption = if command.report {
        client.get(&["v1", "sources", source, "adoption"]).await?
    } else {
        let services: BTreeMap<_, _> = command.services.into_iter().collect();
        let body = serde_json::json!({ "url": command.database, "services": services });
        client.post_patiently(&["v1", "sources", source, "adopt"], &body).await?
    };
    if let Some(path) = &command.output {
        if path.as_os_str() == "-" {
            return output::text(&adoption.manifest);
        }
        std::fs::write(path, &adoption.manifest).map_err(|source| Error::File {
            action: "write",
            path: path.display().to_string(),
            source,
        })?;
    }
    match command.format {
        Format::Json => output::json(&adoption.tables),
        Format::Table => output::text(&report(&adoption.tables)),
    }
}

/// The tables, and below each who was seen writing it.
fn report(tables: &[Table]) -> String {
    let row = |table: &Table| {
        let owner = table.owner.as_deref().unwrap_or("not governed");
        let mode = table.mode.as_deref().unwrap_or("-");
        let note = match (&table.problem, &table.proposed) {
            (Some(problem), _) => problem.clone(),
            (None, _) if table.several_writers => "SEVERAL WRITERS".to_owned(),
            (None, Some(proposed)) if Some(proposed) != table.owner.as_ref() => {
                format!("proposed: {proposed}")
            }
            (None, _) => String::new(),
        };
        let [inserted, updated, deleted] = table.rows;
        let rows = format!("+{inserted} ~{updated} -{deleted}");
        vec![table.dataset.clone(), owner.to_owned(), mode.to_owned(), rows, note]
    };
    let lines = output::table(&tables.iter().map(row).collect::<Vec<_>>());
    let mut text = String::new();
    for (line, table) in lines.lines().zip(tables) {
        text.push_str(&format!("{line}\n"));
        for writer in &table.writers {
            let service = writer.service.as_deref().unwrap_or("no service");
            text.push_str(&format!(
                "    {} ({service}): {} transactions, {}, {} to {}\n",
                writer.role,
                writer.transactions,
                writer.operations.join(" "),
                writer.first_seen,
                writer.last_seen
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_given_with_its_roles() {
        let (name, roles) = service("orders=orders_app,orders job").unwrap();
        assert_eq!((name.as_str(), roles.len()), ("orders", 2));
        for wrong in ["orders", "Orders=x", "orders=", "=x"] {
            assert!(service(wrong).is_err(), "{wrong}");
        }
    }
}
