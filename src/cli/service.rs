//! `cadastre service`: what is done to a service as a whole.

use clap::{Args, Subcommand};

use super::client::{Client, ClientOptions};
use super::error::Error;
use crate::vocab::ServiceName;

const RETIRE: &str = "mutation Retire($input: ServiceRetireInput!) {
    serviceRetire(input: $input) { service { name } userErrors { code message field } }
}";

/// Retires services; they are registered by a manifest.
#[derive(Debug, Args)]
pub(crate) struct ServiceCommand {
    #[command(subcommand)]
    action: Action,
}

/// What to do with a service.
#[derive(Debug, Subcommand)]
enum Action {
    /// Retires a service: takes its roles and tokens away; its name and history stay. Refused, with
    /// the list, while anything would be left without a service.
    Retire(Retire),
}

/// A service to be retired.
#[derive(Debug, Args)]
struct Retire {
    /// Its name.
    name: ServiceName,
    #[command(flatten)]
    client: ClientOptions,
}

/// Runs the command.
pub(crate) async fn run(command: ServiceCommand) -> Result<(), Error> {
    let Action::Retire(retire) = command.action;
    let client = Client::new(&retire.client)?;
    let input = serde_json::json!({ "input": { "name": retire.name } });
    let _retired: serde_json::Value = client.mutation("serviceRetire", RETIRE, input).await?;
    eprintln!("cadastre: service {} is retired", retire.name);
    Ok(())
}
