//! `cadastre doctor`: what a source still needs.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::SourceName;

/// Says what a source still needs, each with the statement that mends it; exits 1 when something
/// is missing.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The source.
    source: SourceName,
    /// How to print the findings.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// One thing that was looked at.
#[derive(Debug, Deserialize, Serialize)]
struct Need {
    check: String,
    ok: bool,
    found: String,
    #[serde(default)]
    mend: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(command: Doctor) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let path = ["v1", "sources", command.source.as_str(), "doctor"];
    let needs: Vec<Need> = client.get(&path).await?;
    match command.format {
        Format::Json => output::json(&needs)?,
        Format::Table => output::text(&report(&needs))?,
    }
    if needs.iter().all(|need| need.ok) { Ok(()) } else { Err(Error::No) }
}

/// The table, with what mends a line below it.
fn report(needs: &[Need]) -> String {
    let sign = |need: &Need| if need.ok { "ok" } else { "MISSING" }.to_owned();
    let row = |need: &Need| vec![sign(need), need.check.clone(), need.found.clone()];
    let table = output::table(&needs.iter().map(row).collect::<Vec<_>>());
    let mut text = String::new();
    for (line, need) in table.lines().zip(needs) {
        text.push_str(&format!("{line}\n"));
        for mend in need.mend.iter().flat_map(|mend| mend.lines()) {
            text.push_str(&format!("         {mend}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_remedy() {
        let need = |check: &str, ok, found: &str, mend: Option<&str>| Need {
            check: check.to_owned(),
            ok,
            found: found.to_owned(),
            mend: mend.map(str::to_owned),
        };
        let needs = [
            need("wal_level", false, "replica", Some("ALTER SYSTEM SET wal_level = logical")),
            need("slot", true, "active", None),
        ];
        insta::assert_snapshot!(report(&needs), @r"
        MISSING  wal_level  replica
                 ALTER SYSTEM SET wal_level = logical
        ok       slot       active
        ");
    }
}
