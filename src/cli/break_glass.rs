//! `cadastre break-glass`: for a time, one service may write a dataset of another.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::{DatasetName, ServiceName};

/// Lets a service write a dataset of another for a time, with a reason, on record; it ends by itself.
#[derive(Debug, Args)]
pub(crate) struct BreakGlass {
    #[command(subcommand)]
    action: Action,
}

/// What to do with permissions.
#[derive(Debug, Subcommand)]
enum Action {
    /// Grants a permission; prints its id.
    Grant(Grant),
    /// Lists the permissions of a dataset, newest first.
    List(List),
    /// Takes a permission back before its end.
    Revoke(Revoke),
}

/// A permission to be granted.
#[derive(Debug, Args)]
struct Grant {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// The service that may write it.
    #[arg(long, value_name = "NAME")]
    service: ServiceName,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How long it lasts: at most a day.
    #[arg(long, value_name = "DURATION", default_value = "1h",
          value_parser = humantime::parse_duration)]
    expires: Duration,
    #[command(flatten)]
    client: ClientOptions,
}

/// Whose permissions to list.
#[derive(Debug, Args)]
struct List {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// Only those that hold now.
    #[arg(long)]
    active: bool,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// A permission to be taken back.
#[derive(Debug, Args)]
struct Revoke {
    /// Its id.
    id: String,
    #[command(flatten)]
    client: ClientOptions,
}

/// A permission as the server shows it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Permission {
    id: String,
    service: Option<Named>,
    reason: String,
    active: bool,
    granted_by: String,
    granted_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    revoked_at: Option<DateTime<Utc>>,
    revoked_by: Option<String>,
}

/// An object of which only the name is asked for.
#[derive(Debug, Deserialize, Serialize)]
struct Named {
    name: String,
}

/// What a mutation says.
#[derive(Debug, Deserialize)]
struct Payload {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Asked {
    dataset: Option<Permissions>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permissions {
    break_glass: Vec<Permission>,
}

/// Runs the command.
pub(crate) async fn run(command: BreakGlass) -> Result<(), Error> {
    match command.action {
        Action::Grant(grant) => run_grant(grant).await,
        Action::List(list) => run_list(list).await,
        Action::Revoke(revoke) => run_revoke(revoke).await,
    }
}

/// Sends a mutation of permissions.
async fn mutate(client: &Client, action: &str, input: serde_json::Value) -> Result<Payload, Error> {
    let field = format!("breakGlass{action}");
    let query = format!(
        "mutation {action}($input: BreakGlass{action}Input!) {{ {field}(input: $input) {{
            id userErrors {{ code message field }} }} }}"
    );
    client.mutation(&field, &query, serde_json::json!({ "input": input })).await
}

async fn run_grant(command: Grant) -> Result<(), Error> {
    let delta = chrono::TimeDelta::from_std(command.expires).ok();
    let expires_at = delta.and_then(|delta| Utc::now().checked_add_signed(delta));
    let Some(expires_at) = expires_at else {
        return Err(Error::Usage("--expires: expected a duration such as 1h".to_owned()));
    };
    let Grant { dataset, service, reason, .. } = command;
    let input = serde_json::json!({
        "dataset": dataset, "service": service, "reason": reason, "expiresAt": expires_at,
    });
    let granted = mutate(&Client::new(&command.client)?, "Grant", input).await?;
    eprintln!("cadastre: {service} may write {dataset} until {}", time(expires_at));
    output::line(&granted.id)
}

async fn run_revoke(command: Revoke) -> Result<(), Error> {
    let input = serde_json::json!({ "id": command.id });
    mutate(&Client::new(&command.client)?, "Revoke", input).await?;
    eprintln!("cadastre: taken back");
    Ok(())
}

async fn run_list(command: List) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let query = "query List($dataset: String!) { dataset(name: $dataset) { breakGlass {
        id service { name } reason active grantedBy grantedAt expiresAt revokedAt revokedBy } } }";
    let variables = serde_json::json!({ "dataset": command.dataset });
    let Asked { dataset } = client.graphql(query, variables).await?;
    let Some(mut found) = dataset.map(|dataset| dataset.break_glass) else {
        let what = format!("no dataset is named \"{}\"", command.dataset);
        return Err(Error::Usage(what));
    };
    found.retain(|permission| permission.active || !command.active);
    match command.format {
        Format::Json => output::json(&found),
        Format::Table => output::text(&to_table(&found)),
    }
}

fn to_table(permissions: &[Permission]) -> String {
    let head = ["ID", "STATE", "SERVICE", "GRANTED BY", "EXPIRES", "REASON"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for permission in permissions {
        let state = match (permission.active, &permission.revoked_at) {
            (true, _) => "active",
            (false, Some(_)) => "revoked",
            (false, None) => "over",
        };
        rows.push(vec![
            permission.id.clone(),
            state.to_owned(),
            permission.service.as_ref().map_or("?", |it| &it.name).to_owned(),
            permission.granted_by.clone(),
            time(permission.expires_at),
            permission.reason.clone(),
        ]);
    }
    output::table(&rows)
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
