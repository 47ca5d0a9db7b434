//! `cadastre verify`: is a source's log whole?

use std::collections::BTreeMap;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::feed::{After, Until};
use crate::log::Digest;
use crate::vocab::SourceName;

/// Has a source's log read again and computed anew; exits 1 when something is not as it was stored.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The source.
    source: SourceName,
    /// From here on: `earliest`, a position, or a time in RFC 3339 such as 2026-11-26T10:00:00Z.
    #[arg(long, default_value = "earliest")]
    from: String,
    /// Up to here: `now`, a position, or a time.
    #[arg(long, default_value = "now")]
    to: String,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// What one look found.
#[derive(Debug, Deserialize)]
struct Look {
    from: String,
    upto: String,
    complete: bool,
    chunks: u64,
    datasets: Vec<OfDataset>,
    broken: Option<Broken>,
}

/// What a dataset has in the range.
#[derive(Debug, Deserialize, Serialize)]
struct OfDataset {
    dataset: String,
    changes: u64,
    digest: String,
}

/// Where the log is not what it was.
#[derive(Debug, Deserialize, Serialize)]
struct Broken {
    after: String,
    chunk: Option<String>,
    reason: String,
}

/// What all looks together found.
#[derive(Debug, Serialize)]
struct Found {
    ok: bool,
    from: String,
    upto: String,
    chunks: u64,
    datasets: Vec<OfDataset>,
    broken: Option<Broken>,
}

/// Runs the command.
pub(crate) async fn run(command: Verify) -> Result<(), Error> {
    command.from.parse::<After>().map_err(Error::After)?;
    command.to.parse::<Until>().map_err(Error::After)?;
    let client = Client::new(&command.client)?;
    let path = ["v1", "sources", command.source.as_str(), "proof"];
    let look = async |from: &str| -> Result<Look, Error> {
        client.get_with(&path, &[("from", from), ("to", &command.to)]).await
    };
    let mut found = look(&command.from).await?;
    let (from, mut chunks) = (found.from.clone(), found.chunks);
    let mut sums = BTreeMap::<String, (u64, Digest)>::new();
    add(&mut sums, &found)?;
    while !found.complete && found.broken.is_none() {
        let upto = found.upto.clone();
        found = look(&upto).await?;
        chunks += found.chunks;
        add(&mut sums, &found)?;
        if found.upto == upto {
            break;
        }
    }
    let datasets = sums.into_iter().map(|(dataset, (changes, digest))| OfDataset {
        dataset,
        changes,
        digest: digest.to_string(),
    });
    let (ok, upto, broken) = (found.broken.is_none(), found.upto, found.broken);
    let found = Found { ok, from, upto, chunks, datasets: datasets.collect(), broken };
    match command.format {
        Format::Json => output::json(&found)?,
        Format::Table => output::text(&report(&found))?,
    }
    if found.ok { Ok(()) } else { Err(Error::No) }
}

/// Adds what a look found to the sums.
fn add(sums: &mut BTreeMap<String, (u64, Digest)>, look: &Look) -> Result<(), Error> {
    for of_dataset in &look.datasets {
        let digest: Digest = of_dataset.digest.parse().map_err(Error::Usage)?;
        let sum = sums.entry(of_dataset.dataset.clone()).or_default();
        sum.0 += of_dataset.changes;
        sum.1 += digest;
    }
    Ok(())
}

fn report(found: &Found) -> String {
    let row = |it: &OfDataset| vec![it.dataset.clone(), it.changes.to_string(), it.digest.clone()];
    let mut text = output::table(&found.datasets.iter().map(row).collect::<Vec<_>>());
    match &found.broken {
        None => text.push_str(&format!(
            "whole: {} chunks from {} to {}\n",
            found.chunks, found.from, found.upto
        )),
        Some(Broken { after, chunk, reason }) => {
            let place = chunk.as_ref().map_or_else(
                || format!("after {after}"),
                |chunk| format!("the chunk that ends at {chunk}"),
            );
            text.push_str(&format!("BROKEN: {place}: {reason}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_said_with_its_place() {
        let datasets = vec![OfDataset {
            dataset: "shop.public.orders".to_owned(),
            changes: 12,
            digest: Digest::default().to_string(),
        }];
        let (from, upto) = ("A".to_owned(), "C".to_owned());
        let mut found = Found { ok: true, from, upto, chunks: 3, datasets, broken: None };
        insta::assert_snapshot!(report(&found), @r"
        shop.public.orders  12  00000000000000000000000000000000
        whole: 3 chunks from A to C
        ");
        let reason = "its bytes do not have its checksum".to_owned();
        found.broken = Some(Broken { after: "B".to_owned(), chunk: Some("C".to_owned()), reason });
        assert!(
            report(&found).ends_with(
                "BROKEN: the chunk that ends at C: its bytes do not have its checksum\n"
            )
        );
    }
}
