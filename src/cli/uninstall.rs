//! `cadastre uninstall`: take a dataset, or a whole source, out of governance.

use std::io::IsTerminal;

use clap::Args;
use serde::Deserialize;

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output;
use crate::vocab::{DatasetName, SourceName};

const SOURCE: &str = "mutation Uninstall($name: String!) {
    sourceUninstall(input: { source: $name }) { left userErrors { code message } }
}";

const DATASET: &str = "mutation Release($name: String!) {
    datasetRelease(input: { dataset: $name }) { userErrors { code message } }
}";

/// Takes everything of Cadastre out of a source (SOURCE), or the guard off one table
/// (SOURCE.SCHEMA.TABLE): triggers, functions, roles, publication and slot; history stays.
///
/// Begun once, it goes on by itself until it is done. Exits 1 when something had to be left, which
/// it names.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// The source or dataset.
    #[arg(value_name = "SOURCE|DATASET")]
    target: Target,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    client: ClientOptions,
}

/// What is to leave.
#[derive(Debug, Clone)]
enum Target {
    Source(SourceName),
    Dataset(DatasetName),
}

impl std::str::FromStr for Target {
    type Err = crate::vocab::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('.') {
            text.parse().map(Self::Dataset)
        } else {
            text.parse().map(Self::Source)
        }
    }
}

#[derive(Debug, Deserialize)]
struct Payload {
    #[serde(default)]
    left: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(command: Uninstall) -> Result<(), Error> {
    let (field, query, name, what) = match &command.target {
        Target::Source(name) => ("sourceUninstall", SOURCE, name.to_string(), "source"),
        Target::Dataset(name) => ("datasetRelease", DATASET, name.to_string(), "dataset"),
    };
    if !command.yes {
        if !std::io::stdin().is_terminal() {
            return Err(Error::Usage(
                "there is nobody to ask, as standard input is no terminal: pass --yes".to_owned(),
            ));
        }
        if !super::apply::confirmed(&format!("take {what} {name} out of governance?"))? {
            eprintln!("nothing was changed");
            return Err(Error::No);
        }
    }
    let client = Client::new(&command.client)?;
    let payload: Payload =
        client.mutation(field, query, serde_json::json!({ "name": name })).await?;
    for left in &payload.left {
        eprintln!("cadastre: {left}");
    }
    output::line(&format!("{what} {name} is no longer governed"))?;
    if payload.left.is_empty() { Ok(()) } else { Err(Error::No) }
}
