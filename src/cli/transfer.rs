//! `cadastre transfer`: a dataset passes from its owner to another service.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::{DatasetName, ServiceName};

/// What is asked of a transfer.
const FIELDS: &str = "id dataset { name } from { name } to { name } state reason proposedBy
    proposedAt expiresAt decidedBy decidedAt";

/// Hands a dataset over: the owner proposes, the receiver accepts or declines, and from one commit to
/// the next it is theirs.
#[derive(Debug, Args)]
pub(crate) struct TransferCommand {
    #[command(subcommand)]
    action: Action,
}

/// What to do with transfers.
#[derive(Debug, Subcommand)]
enum Action {
    /// Proposes that a dataset pass to another service; prints the transfer's id.
    Propose(Propose),
    /// Accepts a proposal, with a token of the receiver.
    Accept(Decide),
    /// Declines a proposal, with a token of the receiver.
    Decline(Decide),
    /// Takes a proposal back, with a token of the owner.
    Cancel(Decide),
    /// Lists transfers, newest first.
    List(List),
}

/// A transfer to be proposed.
#[derive(Debug, Args)]
struct Propose {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// The service that shall own it.
    #[arg(long, value_name = "SERVICE")]
    to: ServiceName,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How long it may be accepted.
    #[arg(long, value_name = "DURATION", default_value = "7d",
          value_parser = humantime::parse_duration)]
    expires: Duration,
    #[command(flatten)]
    client: ClientOptions,
}

/// A transfer to be decided.
#[derive(Debug, Args)]
struct Decide {
    /// Its id.
    id: String,
    #[command(flatten)]
    client: ClientOptions,
}

/// Which transfers to list.
#[derive(Debug, Args)]
struct List {
    /// Of this dataset.
    #[arg(long, value_name = "DATASET")]
    dataset: Option<DatasetName>,
    /// From or to this service.
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// Only those that wait to be accepted.
    #[arg(long)]
    open: bool,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// A transfer as the server shows it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Transfer {
    id: String,
    dataset: Option<Named>,
    from: Option<Named>,
    to: Option<Named>,
    state: String,
    reason: String,
    proposed_by: String,
    proposed_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    decided_by: Option<String>,
    decided_at: Option<DateTime<Utc>>,
}

/// An object of which only the name is asked for.
#[derive(Debug, Deserialize, Serialize)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Payload {
    transfer: Transfer,
}

#[derive(Debug, Deserialize)]
struct Listed {
    transfers: Page,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    nodes: Vec<Transfer>,
    page_info: PageInfo,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(command: TransferCommand) -> Result<(), Error> {
    match command.action {
        Action::Propose(propose) => run_propose(propose).await,
        Action::Accept(decide) => run_decide(decide, "Accept").await,
        Action::Decline(decide) => run_decide(decide, "Decline").await,
        Action::Cancel(decide) => run_decide(decide, "Cancel").await,
        Action::List(list) => run_list(list).await,
    }
}

/// Sends a mutation of transfers.
async fn mutate(
    client: &Client,
    action: &str,
    input: serde_json::Value,
) -> Result<Transfer, Error> {
    let field = format!("ownershipTransfer{action}");
    let kind = if action == "Propose" { "TransferProposeInput" } else { "TransferInput" };
    let query = format!(
        "mutation {action}($input: {kind}!) {{ {field}(input: $input) {{
            transfer {{ {FIELDS} }} userErrors {{ code message field }} }} }}"
    );
    let payload: Payload =
        client.mutation(&field, &query, serde_json::json!({ "input": input })).await?;
    Ok(payload.transfer)
}

async fn run_propose(command: Propose) -> Result<(), Error> {
    let delta = chrono::TimeDelta::from_std(command.expires).ok();
    let expires_at = delta.and_then(|delta| Utc::now().checked_add_signed(delta));
    let Some(expires_at) = expires_at else {
        return Err(Error::Usage("--expires: expected a duration such as 7d".to_owned()));
    };
    let input = serde_json::json!({
        "dataset": command.dataset, "to": command.to, "reason": command.reason,
        "expiresAt": expires_at,
    });
    let transfer = mutate(&Client::new(&command.client)?, "Propose", input).await?;
    eprintln!("cadastre: proposed until {}: {}", time(transfer.expires_at), sentence(&transfer));
    output::line(&transfer.id)
}

async fn run_decide(command: Decide, action: &str) -> Result<(), Error> {
    let input = serde_json::json!({ "id": command.id });
    let transfer = mutate(&Client::new(&command.client)?, action, input).await?;
    let state = transfer.state.to_ascii_lowercase();
    eprintln!("cadastre: {state}: {}", sentence(&transfer));
    Ok(())
}

fn sentence(transfer: &Transfer) -> String {
    let name = |named: &Option<Named>| named.as_ref().map_or("?", |it| &it.name).to_owned();
    let Transfer { dataset, from, to, .. } = transfer;
    format!("{} from {} to {}", name(dataset), name(from), name(to))
}

async fn run_list(command: List) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let query = format!(
        "query List($dataset: String, $service: String, $state: TransferState, $after: String) {{
            transfers(dataset: $dataset, service: $service, state: $state, first: 100, after: $after) {{
                nodes {{ {FIELDS} }} pageInfo {{ hasNextPage endCursor }} }} }}"
    );
    let mut transfers = Vec::new();
    let mut after = None;
    loop {
        let variables = serde_json::json!({
            "dataset": command.dataset, "service": command.service,
            "state": command.open.then_some("PROPOSED"), "after": after,
        });
        let Listed { transfers: page } = client.graphql(&query, variables).await?;
        transfers.extend(page.nodes);
        after = page.page_info.end_cursor.filter(|_| page.page_info.has_next_page);
        if after.is_none() {
            break;
        }
    }
    match command.format {
        Format::Json => output::json(&transfers),
        Format::Table => output::text(&to_table(&transfers)),
    }
}

fn to_table(transfers: &[Transfer]) -> String {
    let head = ["ID", "STATE", "DATASET", "FROM", "TO", "EXPIRES", "REASON"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let name = |named: &Option<Named>| named.as_ref().map_or("?", |it| &it.name).to_owned();
    for transfer in transfers {
        rows.push(vec![
            transfer.id.clone(),
            transfer.state.to_ascii_lowercase(),
            name(&transfer.dataset),
            name(&transfer.from),
            name(&transfer.to),
            time(transfer.expires_at),
            transfer.reason.clone(),
        ]);
    }
    output::table(&rows)
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_what_passes_from_whom_to_whom() {
        let named = |name: &str| Some(Named { name: name.to_owned() });
        let transfer = Transfer {
            id: "7".to_owned(),
            dataset: named("shop.public.orders"),
            from: named("orders"),
            to: named("billing"),
            state: "PROPOSED".to_owned(),
            reason: "teams merge".to_owned(),
            proposed_by: "admin".to_owned(),
            proposed_at: DateTime::UNIX_EPOCH,
            expires_at: DateTime::UNIX_EPOCH,
            decided_by: None,
            decided_at: None,
        };
        assert_eq!(
            to_table(&[transfer]),
            "ID  STATE     DATASET             FROM    TO       EXPIRES               REASON\n\
             7   proposed  shop.public.orders  orders  billing  1970-01-01T00:00:00Z  teams merge\n"
        );
    }
}
