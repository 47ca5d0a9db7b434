//! A subscriber to one dataset, as any program could write it.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::client::Client;
use super::super::error::Error;
use super::super::lines::Lines;

/// Reads the feed of one dataset.
pub(super) struct Subscriber {
    dataset: &'static str,
    lines: Lines,
    received: VecDeque<Value>,
    position: Option<String>,
}

impl Subscriber {
    /// Opens the feed: what is committed from now on will arrive.
    pub(super) async fn open(client: &Client, dataset: &'static str) -> Result<Self, Error> {
        let lines = Lines::of(client.feed(dataset, "now").await?);
        Ok(Self { dataset, lines, received: VecDeque::new(), position: None })
    }

    /// Opens it again behind the last change that was received.
    pub(super) async fn resume(&mut self, client: &Client) -> Result<(), Error> {
        let after = self.position.as_deref().unwrap_or("earliest");
        self.lines = Lines::of(client.feed(self.dataset, after).await?);
        self.received.clear();
        Ok(())
    }

    /// The next change, if there is one in time.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Option<Value>, Error> {
        let deadline = Instant::now() + within;
        while self.received.is_empty() {
            let Ok(Some(block)) = tokio::time::timeout_at(deadline, self.lines.next()).await else {
                return Ok(None);
            };
            for line in block.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let change = serde_json::from_slice(line)
                    .map_err(|source| Error::Answer { url: "the feed".to_owned(), source })?;
                self.received.push_back(change);
            }
        }
        let change = self.received.pop_front();
        let position = change.as_ref().and_then(|change| change.get("position")?.as_str());
        self.position = position.map(str::to_owned).or_else(|| self.position.take());
        Ok(change)
    }
}
