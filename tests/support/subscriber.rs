//! A subscriber that holds every promise of the feed against it: it applies each event to a copy of
//! the tables and fails on the first that does not fit.
//!
//! - Positions strictly increase as text, also across connections: nothing comes twice.
//! - A row is inserted where there is none, updated and deleted where there is one: nothing is
//!   stale, nothing is missing.
//! - A value that a change leaves out as unchanged was seen before.
//! - A transaction's changes come together, in its order.
//!
//! After an announced gap it begins anew with a snapshot, as the gap asks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::{Server, WAIT, eventually};

/// The rows of a table by their key, as JSON text; without a key by the whole row.
pub(crate) type Rows = BTreeMap<String, Value>;

/// What to follow, and how.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Datasets with the columns that name their rows; none for a table without a key.
    pub(crate) datasets: BTreeMap<String, Vec<String>>,
    /// Where to begin: `snapshot` or `earliest`.
    pub(crate) after: &'static str,
    /// Breaks its own connections after random numbers of events, at most this many at first, and
    /// twice as many after each that made a table begin anew.
    pub(crate) cut_after_max: Option<usize>,
    /// Where that randomness begins.
    pub(crate) seed: u64,
}

/// What the subscriber has, and what it has seen on the way.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// The tables.
    pub(crate) tables: BTreeMap<String, Rows>,
    /// Datasets whose snapshot is complete.
    pub(crate) done: BTreeSet<String>,
    /// The last position.
    pub(crate) position: Option<String>,
    /// Events, by what they tell.
    pub(crate) counts: BTreeMap<String, usize>,
    /// Connections made.
    pub(crate) connections: usize,
    /// Tables that began anew in the middle of a snapshot.
    pub(crate) restarts: usize,
    /// Highest progress of a snapshot seen, in rows.
    pub(crate) reported_rows: u64,
    transaction: Option<(String, u64)>,
}

impl Copy {
    /// Events so far.
    pub(crate) fn events(&self) -> usize {
        self.counts.values().sum()
    }

    /// How many events told this.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.counts.get(what).copied().unwrap_or_default()
    }
}

/// A subscriber in the background; it ends with this.
pub(crate) struct Subscriber {
    copy: Arc<Mutex<Copy>>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Subscriber {
    /// Begins to follow.
    pub(crate) fn start(server: &Server, plan: Plan) -> Self {
        let copy = Arc::new(Mutex::new(Copy::default()));
        let names: Vec<_> = plan.datasets.keys().map(String::as_str).collect();
        let feed = server.at(&format!("/v1/feed?datasets={}", names.join(",")));
        let run = run(feed, server.client(), plan, Arc::clone(&copy));
        #[expect(clippy::disallowed_methods, reason = "aborted when the subscriber is dropped")]
        let running = tokio::spawn(run);
        Self { copy, running }
    }

    /// What it has by now.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Copy) -> T) -> T {
        look(&self.copy.lock())
    }

    /// Waits until what it has is as wanted. Fails as soon as a promise was broken.
    pub(crate) async fn until(
        &mut self,
        wait: std::time::Duration,
        what: &str,
        mut wanted: impl FnMut(&Copy) -> bool,
    ) {
        let met =
            eventually_or(wait, async || self.running.is_finished() || wanted(&self.copy.lock()));
        let met = met.await;
        if self.running.is_finished() {
            let ended = (&mut self.running).await;
            panic!("the subscriber ended: {ended:?}");
        }
        assert!(met, "{what}: not within {wait:?}; {}", self.summary());
    }

    /// Where it stands, for failures.
    pub(crate) fn summary(&self) -> String {
        let copy = self.copy.lock();
        let rows: Vec<_> = copy.tables.iter().map(|(name, rows)| (name, rows.len())).collect();
        format!(
            "counts {:?}, connections {}, done {:?}, rows {rows:?}, position {:?}",
            copy.counts, copy.connections, copy.done, copy.position
        )
    }

    /// Waits until it has these tables, and says what differs when it does not.
    pub(crate) async fn must_have(&mut self, expected: &BTreeMap<String, Rows>) {
        let met = eventually_or(WAIT, async || {
            self.running.is_finished() || same(&self.copy.lock().tables, expected)
        });
        let met = met.await;
        if self.running.is_finished() {
            let ended = (&mut self.running).await;
            panic!("the subscriber ended: {ended:?}");
        }
        if met {
            return;
        }
        let mut report = String::new();
        let copy = self.copy.lock();
        for (name, rows) in expected {
            let empty = Rows::new();
            let have = copy.tables.get(name).unwrap_or(&empty);
            let keys: BTreeSet<_> = rows.keys().chain(have.keys()).collect();
            let different: Vec<_> = keys
                .into_iter()
                .filter(|key| rows.get(*key) != have.get(*key))
                .take(5)
                .map(|key| {
                    format!("\n    {key}: has {:?}, wants {:?}", have.get(key), rows.get(key))
                })
                .collect();
            report.push_str(&format!(
                "\n  {name}: has {} rows, wants {}{}",
                have.len(),
                rows.len(),
                different.concat()
            ));
        }
        drop(copy);
        panic!("the subscriber's tables are not PostgreSQL's:{report}\n{}", self.summary());
    }
}

/// Whether both hold the same rows; a table without rows may be missing in either.
fn same(one: &BTreeMap<String, Rows>, other: &BTreeMap<String, Rows>) -> bool {
    let filled = |(_, rows): &(&String, &Rows)| !rows.is_empty();
    one.iter().filter(filled).eq(other.iter().filter(filled))
}

/// As [`eventually`], but only says whether.
async fn eventually_or(
    wait: std::time::Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> bool {
    let deadline = tokio::time::Instant::now() + wait;
    while !condition().await {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    true
}

async fn run(feed: String, client: reqwest::Client, plan: Plan, copy: Arc<Mutex<Copy>>) {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut most = plan.cut_after_max;
    loop {
        let cut = most.map(|most| random.random_range(1..=most));
        let restarts = copy.lock().restarts;
        connection(&feed, &client, &plan, &copy, cut.unwrap_or(usize::MAX)).await;
        if copy.lock().restarts > restarts {
            most = most.map(|most| most.saturating_mul(2));
        }
    }
}

/// One connection, from where the last one stopped until it breaks or was wanted to.
async fn connection(
    feed: &str,
    client: &reqwest::Client,
    plan: &Plan,
    copy: &Mutex<Copy>,
    mut left: usize,
) {
    let after = copy.lock().position.clone();
    let after = after.unwrap_or_else(|| plan.after.to_owned());
    // Refused while the server or the source is down.
    let response = eventually(WAIT * 2, async || {
        let request = client.get(format!("{feed}&after={after}"));
        let response = request.header("accept", "application/x-ndjson").send().await.ok()?;
        (response.status() != 503).then_some(response)
    })
    .await;
    if response.status() == 410 {
        refused(copy);
        return;
    }
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap_or_default());
    copy.lock().connections += 1;
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
            let event: Value = serde_json::from_slice(line).expect("a line is a JSON object");
            if let Some(error) = event.get("error") {
                let status = error["status"].as_u64().unwrap_or_default();
                assert!(status == 503 || status == 410, "{error}");
                if status == 410 {
                    refused(copy);
                }
                return;
            }
            if !apply(&mut copy.lock(), plan, &event) {
                begin_anew(copy);
                return;
            }
            left -= 1;
            if left == 0 {
                return;
            }
        }
        buffer = rest;
    }
}

/// The log no longer has what follows.
fn refused(copy: &Mutex<Copy>) {
    *copy.lock().counts.entry("410".to_owned()).or_default() += 1;
    begin_anew(copy);
}

/// Forgets everything, as a gap asks; the next connection begins with a snapshot.
fn begin_anew(copy: &Mutex<Copy>) {
    let mut copy = copy.lock();
    let (counts, connections) = (std::mem::take(&mut copy.counts), copy.connections);
    let (restarts, position) = (copy.restarts, Some("snapshot".to_owned()));
    *copy = Copy { counts, connections, restarts, position, ..Copy::default() };
}

/// Applies one event. False when it is a gap.
fn apply(copy: &mut Copy, plan: &Plan, event: &Value) -> bool {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let position = text("/position").expect("every event has a position").to_owned();
    let last = copy.position.replace(position.clone());
    if let Some(last) = last.filter(|last| last != "snapshot") {
        assert!(position > last, "{position} came after {last}");
    }
    let dataset = text("/dataset").expect("every event has a dataset").to_owned();
    let key = plan.datasets.get(&dataset).unwrap_or_else(|| panic!("not asked for: {event}"));
    if let Some(control) = text("/event") {
        *copy.counts.entry(control.to_owned()).or_default() += 1;
        if control == "snapshot" {
            let rows = event["snapshot"]["rows"].as_u64().expect("a report counts rows");
            copy.reported_rows = copy.reported_rows.max(rows);
            if text("/snapshot/state") == Some("done") {
                copy.done.insert(dataset);
            }
        }
        return control != "gap";
    }
    let op = text("/op").expect("a change says what happened").to_owned();
    *copy.counts.entry(op.clone()).or_default() += 1;
    in_order(copy, event);
    let rows = copy.tables.entry(dataset).or_default();
    let name = |row: &Value| -> String {
        if key.is_empty() {
            return row.to_string();
        }
        let part = |column: &String| {
            row.get(column).unwrap_or_else(|| panic!("no {column}: {event}")).to_string()
        };
        key.iter().map(part).collect::<Vec<_>>().join(" ")
    };
    let (before, after) = (&event["before"], &event["after"]);
    match op.as_str() {
        "t" => {
            rows.clear();
            copy.restarts += usize::from(event["source"]["snapshot"] == "true");
        }
        "r" | "c" => {
            let old = rows.insert(name(after), after.clone());
            assert_eq!(old, None, "it is there already: {event}");
        }
        "d" => {
            let gone = rows.remove(&name(before));
            assert!(gone.is_some(), "it was never there: {event}");
        }
        "u" => {
            let old = rows.remove(&name(if before.is_null() { after } else { before }));
            let old = old.unwrap_or_else(|| panic!("it was never there: {event}"));
            let mut row = after.clone();
            for column in event.get("unchanged").and_then(Value::as_array).into_iter().flatten() {
                let column = column.as_str().expect("unchanged names columns");
                row[column] = old.get(column).cloned().expect("an unchanged value was seen before");
            }
            let old = rows.insert(name(&row), row);
            assert_eq!(old, None, "its new key is there already: {event}");
        }
        other => panic!("unknown operation {other}"),
    }
    true
}

/// The changes of a transaction come in its order.
fn in_order(copy: &mut Copy, event: &Value) {
    let id = event.pointer("/transaction/id").and_then(Value::as_str);
    let order = event.pointer("/transaction/total_order").and_then(Value::as_u64);
    let (Some(id), Some(order)) = (id, order) else {
        copy.transaction = None;
        return;
    };
    if let Some((last, before)) = &copy.transaction
        && last == id
    {
        assert!(order > *before, "{order} came after {before}: {event}");
    }
    copy.transaction = Some((id.to_owned(), order));
}
