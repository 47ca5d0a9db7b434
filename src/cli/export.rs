//! `cadastre export`: the registry as a manifest.

use clap::Args;

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output;

/// Writes the registry as a manifest that `cadastre apply` takes, to standard output.
#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    client: ClientOptions,
}

/// Runs the command.
pub(crate) async fn run(command: Export) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    output::text(&client.get_text(&["v1", "manifest"]).await?)
}
