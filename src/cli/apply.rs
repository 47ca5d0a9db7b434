//! `cadastre apply`: make the registry and the guards what a manifest says.

use std::io::{IsTerminal, Write};

use clap::Args;

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use super::plan::{Answer, ManifestFile};

/// Makes the registry and the guards in every source what a manifest says: all of it or nothing.
///
/// Shows the plan and asks first, unless --yes is given. Exits 1 when the manifest cannot be
/// applied, or the answer was no.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    manifest: ManifestFile,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// How to print what was changed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// Runs the command.
pub(crate) async fn run(command: Apply) -> Result<(), Error> {
    if !command.yes && (command.manifest.is_stdin() || !std::io::stdin().is_terminal()) {
        return Err(Error::Usage(
            "there is nobody to ask, as standard input is no terminal: pass --yes to apply \
             without asking, or run `cadastre plan` to see what would change"
                .to_owned(),
        ));
    }
    let client = Client::new(&command.client)?;
    let (file, yaml) = (command.manifest.name(), command.manifest.read()?);
    if !command.yes {
        let plan: Answer = client.manifest("plan", &file, yaml.clone()).await?;
        if plan.steps.is_empty() || !plan.findings.is_empty() {
            return plan.print(command.format);
        }
        eprint!("{}", plan.to_text());
        if !confirmed("apply?")? {
            eprintln!("nothing was changed");
            return Err(Error::No);
        }
    }
    let done: Answer = client.manifest("apply", &file, yaml).await?;
    if command.yes || command.format == Format::Json {
        return done.print(command.format);
    }
    // The steps were shown before the question.
    output::line("applied")
}

/// Asks on the terminal; only a clear yes is one.
pub(super) fn confirmed(question: &str) -> Result<bool, Error> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
