//! `cadastre check`: may this service write that dataset?

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::{DatasetName, Mode, ServiceName};

/// Says whether a service may write a dataset; exits 1 when it may not.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The service.
    service: ServiceName,
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// How to print the answer.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// The server's answer.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    allowed: bool,
    owner: ServiceName,
    mode: Mode,
    revision: i64,
}

/// Runs the command.
pub(crate) async fn run(command: Check) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let Check { service, dataset, .. } = command;
    let body = serde_json::json!({ "service": service, "dataset": dataset, "action": "write" });
    let answer: Answer = client.post(&["v1", "check"], &body).await?;
    match command.format {
        Format::Json => output::json(&answer)?,
        Format::Table => output::line(&sentence(&service, &dataset, &answer))?,
    }
    if answer.allowed { Ok(()) } else { Err(Error::No) }
}

fn sentence(service: &ServiceName, dataset: &DatasetName, answer: &Answer) -> String {
    let Answer { owner, mode, .. } = answer;
    if answer.allowed {
        return format!("yes: {service} owns {dataset} ({mode})");
    }
    let consequence = match mode {
        Mode::Observe => "a write is let through and recorded",
        Mode::Enforce => "a write is rejected and recorded",
        Mode::Lockdown => "others have not even the privilege to write it",
    };
    format!("no: {dataset} is owned by {owner}; {consequence} ({mode})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_says_who_may_and_what_would_happen() {
        let answer = Answer {
            allowed: false,
            owner: "orders".parse().unwrap(),
            mode: Mode::Enforce,
            revision: 1,
        };
        let text =
            sentence(&"billing".parse().unwrap(), &"shop.public.orders".parse().unwrap(), &answer);
        assert_eq!(
            text,
            "no: shop.public.orders is owned by orders; a write is rejected and recorded (enforce)"
        );
    }
}
