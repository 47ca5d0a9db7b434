//! A subscriber that applies the feed to a copy of the tables, as a cache or a read model would.

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;

use super::workload;
use crate::support::{Server, WAIT, eventually};

/// Rows by dataset and key.
pub(super) type Rows = HashMap<(String, i64), Value>;

/// The copy and what was seen on the way.
#[derive(Default)]
pub(super) struct Follower {
    /// The copy.
    pub(super) rows: Rows,
    /// The last position seen.
    pub(super) position: Option<String>,
    /// Changes seen, by operation.
    pub(super) counts: BTreeMap<char, i64>,
    /// Connections made.
    pub(super) connections: usize,
    ended: bool,
}

impl Follower {
    /// Follows the feed from its earliest change, reconnecting with the last position seen, until
    /// the workload's last change. `seen` counts along. Panics after [`WAIT`] without progress.
    pub(super) async fn run(
        mut self,
        feed: String,
        client: reqwest::Client,
        seen: watch::Sender<usize>,
    ) -> Self {
        while !self.ended {
            self.connection(&feed, &client, &seen).await;
        }
        self
    }

    /// One connection: from the last position until it breaks or the workload ends.
    async fn connection(
        &mut self,
        feed: &str,
        client: &reqwest::Client,
        seen: &watch::Sender<usize>,
    ) {
        let after = self.position.as_deref().unwrap_or("earliest");
        // Refused while the server is down.
        let response = eventually(WAIT, async || {
            let request = client.get(format!("{feed}&after={after}"));
            let response = request.header("accept", "application/x-ndjson").send().await.ok()?;
            (response.status() != 503).then_some(response)
        })
        .await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        self.connections += 1;
        let mut body = response.bytes_stream();
        let mut buffer = Vec::new();
        loop {
            // The feed says something, if only that it lives, well within this time.
            let next = tokio::time::timeout(WAIT, body.next()).await;
            let Some(Ok(bytes)) = next.expect("the feed must not fall silent") else { return };
            buffer.extend_from_slice(&bytes);
            // A line cut off by a broken connection is never applied: it comes again.
            let Some(end) = buffer.iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = buffer.split_off(end + 1);
            for line in buffer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                self.apply(&serde_json::from_slice(line).unwrap());
            }
            buffer = rest;
            seen.send_replace(self.counts.values().sum::<i64>().try_into().unwrap());
            if self.ended {
                return;
            }
        }
    }

    /// Applies one event, exactly once and in order.
    fn apply(&mut self, event: &Value) {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        let position = text("/position").expect("every event has a position").to_owned();
        if let Some(last) = &self.position {
            assert!(position > *last, "{position} came after {last}");
        }
        self.position = Some(position);
        assert_eq!(text("/writer/service"), Some("orders"), "{event}");
        assert_eq!(event.pointer("/writer/verified"), Some(&Value::Bool(true)), "{event}");
        let dataset = text("/dataset").unwrap().to_owned();
        let op = text("/op").and_then(|op| op.chars().next()).unwrap();
        *self.counts.entry(op).or_default() += 1;
        let key = |row: &Value| row.get("id").and_then(Value::as_i64);
        let before = event.get("before").and_then(key);
        let after = event.get("after").and_then(key);
        match op {
            't' => self.rows.retain(|(name, _), _| *name != dataset),
            'd' => {
                let gone = self.rows.remove(&(dataset, before.expect("a delete names its key")));
                assert!(gone.is_some(), "deleted a row that was never there: {event}");
            }
            _ => {
                let key = after.expect("an insert or update has a row");
                let old = self.rows.remove(&(dataset.clone(), before.unwrap_or(key)));
                assert_eq!(old.is_some(), op == 'u', "{event}");
                let mut row = event.get("after").cloned().unwrap();
                for column in event.get("unchanged").and_then(Value::as_array).into_iter().flatten()
                {
                    let column = column.as_str().unwrap();
                    let value = old.as_ref().and_then(|old| old.get(column)).cloned();
                    row[column] = value.expect("an unchanged value was seen before");
                }
                self.ended |= key == workload::END;
                self.rows.insert((dataset, key), row);
            }
        }
    }

    /// Asserts that the copy is the table and that every committed change came exactly once.
    pub(super) fn assert_equals(&self, contents: &Rows, committed: &[(char, i64)]) {
        let counts: Vec<_> = self.counts.iter().map(|(op, n)| (*op, *n)).collect();
        assert_eq!(counts, committed, "changes seen and changes committed");
        assert_eq!(self.rows.len(), contents.len(), "number of rows");
        for (key, row) in contents {
            assert_eq!(self.rows.get(key), Some(row), "{key:?}");
        }
    }
}

/// Starts following in the background.
#[expect(clippy::disallowed_methods, reason = "the test awaits the task itself")]
pub(super) fn follow(
    server: &Server,
) -> (tokio::task::JoinHandle<Follower>, watch::Receiver<usize>) {
    let (seen, progress) = watch::channel(0);
    let feed = server.at(&workload::feed_path());
    let run = Follower::default().run(feed, server.client(), seen);
    (tokio::spawn(run), progress)
}
