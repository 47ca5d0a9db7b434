//! `cadastre token`: API tokens for services, auditors and admins.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::registry::TokenId;
use crate::vocab::ServiceName;

const CREATE: &str = "mutation Create($input: TokenCreateInput!) {
    tokenCreate(input: $input) {
        token { id role service { name } expiresAt } secret userErrors { code message field }
    }
}";

const LIST: &str = "query List($service: String, $after: String) {
    tokens(service: $service, first: 100, after: $after) {
        nodes { id role service { name } description state createdAt createdBy expiresAt lastUsedAt }
        pageInfo { hasNextPage endCursor }
    }
}";

const REVOKE: &str = "mutation Revoke($input: TokenRevokeInput!) {
    tokenRevoke(input: $input) { token { id } userErrors { code message field } }
}";

/// Makes, lists and revokes API tokens.
#[derive(Debug, Args)]
pub(crate) struct TokenCommand {
    #[command(subcommand)]
    action: Action,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a token and prints it: it is shown this once. A service may have several, so that a
    /// new one can be rolled out before the old one is revoked.
    Create(Create),
    /// Lists tokens, newest first, without their secrets.
    List(List),
    /// Revokes a token, at once and for good.
    Revoke(Revoke),
}

/// A token to be made.
#[derive(Debug, Args)]
struct Create {
    /// The service it shall stand for: it reads everything and changes what the service owns.
    #[arg(long, value_name = "NAME", required_unless_present = "role", conflicts_with = "role")]
    service: Option<ServiceName>,
    /// An admin reads and changes everything, an auditor reads everything.
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// How long it shall be valid, such as 90d or 12h; for ever if not given.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How to print it: as the token alone, or with what belongs to it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// Whom a token stands for when not for a service.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Role {
    /// Reads and changes everything.
    Admin,
    /// Reads everything, changes nothing.
    Auditor,
}

/// Which tokens to list.
#[derive(Debug, Args)]
struct List {
    /// Those of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// A token to be revoked.
#[derive(Debug, Args)]
struct Revoke {
    /// Its id, as `cadastre token list` shows it.
    id: TokenId,
    #[command(flatten)]
    client: ClientOptions,
}

/// What a new token is answered with.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    secret: String,
    token: NewToken,
}

/// A new token without its secret.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct NewToken {
    id: String,
    role: String,
    service: Option<Named>,
    expires_at: Option<DateTime<Utc>>,
}

/// An object of which only the name is asked for.
#[derive(Debug, Deserialize, Serialize)]
struct Named {
    name: String,
}

/// A token in a list.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    id: String,
    role: String,
    service: Option<Named>,
    description: Option<String>,
    state: String,
    created_at: DateTime<Utc>,
    created_by: String,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
}

/// A page of the list.
#[derive(Debug, Deserialize)]
struct Listed {
    tokens: Page,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    nodes: Vec<Token>,
    page_info: PageInfo,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(command: TokenCommand) -> Result<(), Error> {
    match command.action {
        Action::Create(create) => run_create(create).await,
        Action::List(list) => run_list(list).await,
        Action::Revoke(revoke) => run_revoke(revoke).await,
    }
}

async fn run_create(command: Create) -> Result<(), Error> {
    let expires_at = match command.expires {
        None => None,
        Some(duration) => Some(after(duration)?),
    };
    let input = serde_json::json!({
        "service": command.service, "role": command.role, "description": command.description,
        "expiresAt": expires_at,
    });
    let client = Client::new(&command.client)?;
    let created: Created =
        client.mutation("tokenCreate", CREATE, serde_json::json!({ "input": input })).await?;
    match command.format {
        Format::Json => output::json(&created),
        Format::Table => {
            let NewToken { id, role, service, expires_at } = &created.token;
            let whom = whom(role, service.as_ref());
            let until = expires_at.map_or_else(|| "revoked".to_owned(), time);
            eprintln!("cadastre: token {id} of {whom}, valid until {until}; it is not shown again");
            output::line(&created.secret)
        }
    }
}

/// The time that lies so far ahead.
fn after(duration: Duration) -> Result<DateTime<Utc>, Error> {
    let delta = chrono::TimeDelta::from_std(duration).ok();
    delta
        .and_then(|delta| Utc::now().checked_add_signed(delta))
        .ok_or_else(|| Error::Usage("--expires: expected a duration such as 90d".to_owned()))
}

async fn run_list(command: List) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let mut tokens = Vec::new();
    let mut after = None;
    loop {
        let variables = serde_json::json!({ "service": command.service, "after": after });
        let Listed { tokens: page } = client.graphql(LIST, variables).await?;
        tokens.extend(page.nodes);
        after = page.page_info.end_cursor.filter(|_| page.page_info.has_next_page);
        if after.is_none() {
            break;
        }
    }
    match command.format {
        Format::Json => output::json(&tokens),
        Format::Table => output::text(&to_table(&tokens)),
    }
}

fn to_table(tokens: &[Token]) -> String {
    let head = ["ID", "OF", "STATE", "CREATED", "EXPIRES", "LAST USED", "DESCRIPTION"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_never = |at: Option<DateTime<Utc>>| at.map_or_else(|| "never".to_owned(), time);
    for token in tokens {
        rows.push(vec![
            token.id.clone(),
            whom(&token.role, token.service.as_ref()),
            token.state.to_ascii_lowercase(),
            time(token.created_at),
            or_never(token.expires_at),
            or_never(token.last_used_at),
            token.description.clone().unwrap_or_default(),
        ]);
    }
    output::table(&rows)
}

fn whom(role: &str, service: Option<&Named>) -> String {
    let role = role.to_ascii_lowercase();
    match service {
        Some(service) => format!("{role} {}", service.name),
        None => role,
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

async fn run_revoke(command: Revoke) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let input = serde_json::json!({ "input": { "id": command.id.as_str() } });
    let _revoked: serde_json::Value = client.mutation("tokenRevoke", REVOKE, input).await?;
    eprintln!("cadastre: token {} is revoked", command.id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_whose_each_token_is_and_how_it_stands() {
        let token = Token {
            id: "4f9a01c2d3e4b5f6".to_owned(),
            role: "SERVICE".to_owned(),
            service: Some(Named { name: "orders".to_owned() }),
            description: None,
            state: "ACTIVE".to_owned(),
            created_at: DateTime::UNIX_EPOCH,
            created_by: "admin".to_owned(),
            expires_at: None,
            last_used_at: None,
        };
        assert_eq!(
            to_table(&[token]),
            "ID                OF              STATE   CREATED               EXPIRES  LAST USED  DESCRIPTION\n\
             4f9a01c2d3e4b5f6  service orders  active  1970-01-01T00:00:00Z  never    never\n"
        );
    }
}
