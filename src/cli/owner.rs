//! `cadastre owner`: who owns this dataset, now or at a time?

use chrono::{DateTime, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::DatasetName;

const QUERY: &str = "query Owner($dataset: String!, $asOf: DateTime) {
    owner(dataset: $dataset, asOf: $asOf) { name team contact }
}";

/// Says which service owns a dataset; exits 1 when nobody did at that time, or there is no such
/// dataset.
#[derive(Debug, Args)]
pub(crate) struct Owner {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// At this time instead of now, in RFC 3339: 2026-03-01T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    as_of: Option<DateTime<Utc>>,
    /// How to print the answer.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// The server's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    owner: Option<Service>,
}

/// The owner.
#[derive(Debug, Deserialize, Serialize)]
struct Service {
    name: String,
    team: Option<String>,
    contact: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(command: Owner) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let variables = serde_json::json!({ "dataset": command.dataset, "asOf": command.as_of });
    let answer: Answer = client.graphql(QUERY, variables).await?;
    let Some(owner) = answer.owner else {
        eprintln!("cadastre: nobody owned {} then", command.dataset);
        return Err(Error::No);
    };
    match command.format {
        Format::Json => output::json(&owner),
        Format::Table => output::text(&to_text(&owner)),
    }
}

fn to_text(owner: &Service) -> String {
    let facts = [
        ("owner", Some(&owner.name)),
        ("team", owner.team.as_ref()),
        ("contact", owner.contact.as_ref()),
    ];
    let row = |(name, value): (&str, Option<&String>)| Some(vec![name.to_owned(), value?.clone()]);
    output::table(&facts.into_iter().filter_map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let owner = Service {
            name: "orders".to_owned(),
            team: None,
            contact: Some("#checkout".to_owned()),
        };
        assert_eq!(to_text(&owner), "owner    orders\ncontact  #checkout\n");
    }
}
