//! `cadastre plan`: what applying a manifest would change.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions, Finding};
use super::error::Error;
use super::output::{self, Format};

/// Shows what `cadastre apply` would change, and changes nothing.
///
/// Exits 1 when the manifest cannot be applied; every reason is printed with file and line.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    manifest: ManifestFile,
    /// How to print the plan.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// The manifest to read.
#[derive(Debug, Args)]
pub(crate) struct ManifestFile {
    /// The manifest; `-` reads it from standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

impl ManifestFile {
    /// The name to use in messages.
    pub(crate) fn name(&self) -> String {
        if self.is_stdin() { "stdin".to_owned() } else { self.file.display().to_string() }
    }

    /// Whether it is read from standard input.
    pub(crate) fn is_stdin(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    /// The text.
    pub(crate) fn read(&self) -> Result<String, Error> {
        let read = if self.is_stdin() {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(&self.file)
        };
        read.map_err(|source| Error::File { action: "read", path: self.name(), source })
    }
}

/// The server's answer to a manifest.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    /// What changes, in order.
    pub(crate) steps: Vec<Step>,
    /// What is registered, not in the manifest, and left alone.
    #[serde(default)]
    pub(crate) unmanaged: Vec<String>,
    /// What is worth knowing.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    /// Why it cannot be applied as things stand.
    #[serde(default)]
    pub(crate) findings: Vec<Finding>,
    /// After applying: the registry's revision with all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<i64>,
}

/// One change.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Step {
    kind: String,
    name: String,
    action: String,
    #[serde(default)]
    changes: Vec<String>,
}

impl Answer {
    /// The answer for people to read.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for Step { kind, name, action, changes } in &self.steps {
            let sign = if action == "create" { '+' } else { '~' };
            text.push_str(&format!("{sign} {action} {kind} {name}\n"));
            for change in changes {
                text.push_str(&format!("    {change}\n"));
            }
        }
        if self.steps.is_empty() {
            text.push_str("nothing to change\n");
        }
        for name in &self.unmanaged {
            text.push_str(&format!("  not in the manifest, left alone: {name}\n"));
        }
        for note in &self.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
        text
    }

    /// The answer as asked for; what stands in the way goes to standard error.
    pub(crate) fn print(&self, format: Format) -> Result<(), Error> {
        match format {
            Format::Table => output::text(&self.to_text())?,
            Format::Json => output::json(self)?,
        }
        for finding in &self.findings {
            eprintln!("{finding}");
        }
        if self.findings.is_empty() { Ok(()) } else { Err(Error::No) }
    }
}

/// Runs the command.
pub(crate) async fn run(command: Plan) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let yaml = command.manifest.read()?;
    let answer: Answer = client.manifest("plan", &command.manifest.name(), yaml).await?;
    answer.print(command.format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_like_a_difference() {
        let answer: Answer = serde_json::from_value(serde_json::json!({
            "steps": [
                {"kind": "service", "name": "orders", "action": "create", "changes": []},
                {"kind": "dataset", "name": "shop.public.orders", "action": "update",
                 "changes": ["mode: observe → enforce"]},
            ],
            "unmanaged": ["service legacy"],
        }))
        .unwrap();
        insta::assert_snapshot!(answer.to_text(), @r"
        + create service orders
        ~ update dataset shop.public.orders
            mode: observe → enforce
          not in the manifest, left alone: service legacy
        ");
    }
}
