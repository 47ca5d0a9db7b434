//! `cadastre history`: what happened to a dataset, or to one row of it.

use clap::Args;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::lines;
use crate::feed::{After, Until};
use crate::vocab::DatasetName;

/// Prints the changes of a dataset between two moments as NDJSON, and ends.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// Only of the row with this key: `7`, or `{"id":7}` as JSON.
    #[arg(long)]
    key: Option<String>,
    /// From here on: `earliest`, a position, or a time in RFC 3339 such as 2026-11-26T10:00:00Z.
    #[arg(long, default_value = "earliest")]
    from: String,
    /// Up to here: `now`, a position, or a time, which is not included.
    #[arg(long, default_value = "now")]
    to: String,
    #[command(flatten)]
    client: ClientOptions,
}

/// Runs the command.
pub(crate) async fn run(command: History) -> Result<(), Error> {
    command.from.parse::<After>().map_err(Error::After)?;
    command.to.parse::<Until>().map_err(Error::After)?;
    let client = Client::new(&command.client)?;
    let mut parameters = vec![("after", command.from.as_str()), ("until", command.to.as_str())];
    if let Some(key) = &command.key {
        parameters.push(("key", key));
    }
    let response = client.feed_part(&command.dataset.to_string(), &parameters).await?;
    let mut body = response.bytes_stream();
    let mut stdout = tokio::io::stdout();
    let mut pending = Vec::new();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| client.unreachable(error))?;
        pending.extend_from_slice(&bytes);
        let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else { continue };
        let rest = pending.split_off(end + 1);
        for line in pending.split_inclusive(|byte| *byte == b'\n').filter(|line| *line != b"\n") {
            if let Some(problem) = lines::failure(line) {
                stdout.flush().await?;
                return Err(Error::Problem(problem));
            }
            stdout.write_all(line).await?;
        }
        pending = rest;
    }
    Ok(stdout.flush().await?)
}
