//! `cadastre tail`: the changes of a dataset as they are committed, one JSON object a line.
//!
//! A broken connection is made again from the last position printed, so that the output has no gap
//! and no double; a snapshot goes on where it was. Before the first change there is no position: a reader that began with `now`
//! begins with `now` again, and misses what was committed while it was away.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use clap::Args;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::client::{Client, ClientOptions, Problem};
use super::error::Error;
use super::lines::{self, Lines};
use super::signal::Signals;
use crate::feed::After;
use crate::vocab::DatasetName;

/// Longest pause between attempts to connect again.
const PAUSE: Duration = Duration::from_secs(5);

/// Prints the changes of a dataset as NDJSON until interrupted, and takes up a broken connection
/// where it was.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// The dataset, `SOURCE.SCHEMA.TABLE`.
    dataset: DatasetName,
    /// Where to begin: `now`, `earliest`, after a position, with the first change committed at or
    /// after a time (2026-11-26T10:00:00Z), or with a `snapshot`: the present rows, then the changes.
    /// How far it is goes to standard error.
    #[arg(long, default_value = "now")]
    after: String,
    /// End after this many changes.
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    client: ClientOptions,
}

/// The part of an event that is needed to go on after it.
#[derive(Deserialize)]
struct Line {
    position: String,
    snapshot: Option<Progress>,
}

/// How far a snapshot is.
#[derive(Deserialize)]
struct Progress {
    state: String,
    rows: u64,
    rows_estimated: Option<u64>,
    percent: Option<f64>,
    eta_ms: Option<u64>,
}

impl Progress {
    /// For whoever waits for it.
    fn say(&self) {
        match (self.state.as_str(), self.rows_estimated, self.percent) {
            ("done", ..) => {
                eprintln!("cadastre: snapshot complete, {} rows; now the changes", self.rows);
            }
            (_, Some(estimated), Some(percent)) => {
                let left = self.eta_ms.map(|ms| Duration::from_secs(ms.div_ceil(1000)));
                let left = left.map_or_else(String::new, |left| {
                    format!(", about {} left", humantime::format_duration(left))
                });
                eprintln!(
                    "cadastre: snapshot at {} of about {estimated} rows ({percent:.1} %){left}",
                    self.rows
                );
            }
            _ => eprintln!("cadastre: snapshot at {} rows", self.rows),
        }
    }
}

/// Where the reader stands.
struct Cursor {
    after: String,
    left: Option<u64>,
}

/// Runs the command.
pub(crate) async fn run(command: Tail) -> Result<(), Error> {
    command.after.parse::<After>().map_err(Error::After)?;
    let client = Client::new(&command.client)?;
    let mut cursor = Cursor { after: command.after, left: command.count };
    let mut signals = Signals::new()?;
    tokio::select! {
        biased;
        () = signals.next() => Ok(()),
        ended = follow(&client, &command.dataset, &mut cursor) => ended,
    }
}

/// Reads connection after connection. Only the first must succeed: whoever starts this wants to
/// know that there is no server, whoever has left it running wants it to wait for one.
async fn follow(client: &Client, dataset: &DatasetName, cursor: &mut Cursor) -> Result<(), Error> {
    let dataset = dataset.to_string();
    let mut response = client.feed(&dataset, &cursor.after).await?;
    loop {
        copy(Lines::of(response), cursor).await?;
        if cursor.left == Some(0) {
            return Ok(());
        }
        eprintln!("cadastre: the feed broke off; connecting again");
        response = reconnect(client, &dataset, cursor).await?;
    }
}

/// Tries until there is a server again; an answer that will not change with time is final.
async fn reconnect(
    client: &Client,
    dataset: &str,
    cursor: &Cursor,
) -> Result<reqwest::Response, Error> {
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(PAUSE)
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        match client.feed(dataset, &cursor.after).await {
            Err(error) if error.is_transient() => {}
            settled => return settled,
        }
        tokio::time::sleep(pauses.next().unwrap_or(PAUSE)).await;
    }
}

/// Prints the changes of one connection as they come, until it breaks or none are left to print.
async fn copy(mut lines: Lines, cursor: &mut Cursor) -> Result<(), Error> {
    let mut stdout = tokio::io::stdout();
    while cursor.left != Some(0) {
        let Some(block) = lines.next().await else { return Ok(()) };
        let (changes, failure) = take(&block, cursor)?;
        stdout.write_all(&changes).await?;
        stdout.flush().await?;
        match failure {
            Some(problem) if !problem.is_transient() => return Err(Error::Problem(problem)),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Ok(())
}

/// The changes among `lines`, as many as are wanted, without the blank lines that only show that
/// the feed is alive; and why the feed ends, if it does. Moves the cursor behind the last change.
fn take(lines: &[u8], cursor: &mut Cursor) -> Result<(Vec<u8>, Option<Problem>), Error> {
    let mut changes = Vec::with_capacity(lines.len());
    let mut last = None;
    let mut ends = None;
    for line in lines.split_inclusive(|byte| *byte == b'\n').filter(|line| *line != b"\n") {
        ends = lines::failure(line);
        if ends.is_some() || cursor.left == Some(0) {
            break;
        }
        if line.starts_with(b"{\"event\":\"snapshot\"") {
            let line = parse(line)?;
            cursor.after = line.position;
            last = None;
            line.snapshot.iter().for_each(Progress::say);
            continue;
        }
        cursor.left = cursor.left.map(|left| left - 1);
        changes.extend_from_slice(line);
        last = Some(line);
    }
    if let Some(line) = last {
        cursor.after = parse(line)?.position;
    }
    Ok((changes, ends))
}

fn parse(line: &[u8]) -> Result<Line, Error> {
    serde_json::from_slice(line)
        .map_err(|source| Error::Answer { url: "the feed".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(ordinal: u32) -> String {
        format!("{{\"op\":\"c\",\"position\":\"01-00000000016CA548-{ordinal:08X}\"}}\n")
    }

    #[test]
    fn blank_lines_are_dropped_and_the_position_is_kept() {
        let mut cursor = Cursor { after: "now".to_owned(), left: None };
        let lines = format!("\n{}\n\n{}", change(1), change(2));
        let (taken, _) = take(lines.as_bytes(), &mut cursor).unwrap();
        assert_eq!(String::from_utf8(taken).unwrap(), format!("{}{}", change(1), change(2)));
        assert_eq!(cursor.after, "01-00000000016CA548-00000002");
        assert!(take(b"\n", &mut cursor).unwrap().0.is_empty());
        assert_eq!(cursor.after, "01-00000000016CA548-00000002");
    }

    #[test]
    fn no_more_is_taken_than_asked_for() {
        let mut cursor = Cursor { after: "now".to_owned(), left: Some(1) };
        let lines = format!("{}{}", change(1), change(2));
        assert_eq!(take(lines.as_bytes(), &mut cursor).unwrap().0, change(1).as_bytes());
        assert_eq!(cursor.left, Some(0));
        assert_eq!(cursor.after, "01-00000000016CA548-00000001");
    }

    #[test]
    fn how_far_a_snapshot_is_is_no_change_but_a_place_to_go_on() {
        let mut cursor = Cursor { after: "snapshot".to_owned(), left: Some(2) };
        let report = |position: &str| {
            format!(
                "{{\"event\":\"snapshot\",\"position\":\"{position}\",\"snapshot\":{{\"state\":\
                 \"running\",\"rows\":1,\"rows_estimated\":5,\"percent\":20.0,\"eta_ms\":9}}}}\n"
            )
        };
        let lines = format!("{}{}{}", report("a~1~x"), change(1), report("b~2~y"));
        let (taken, _) = take(lines.as_bytes(), &mut cursor).unwrap();
        assert_eq!((taken, cursor.left), (change(1).into_bytes(), Some(1)));
        assert_eq!(cursor.after, "b~2~y");
    }

    #[test]
    fn the_reason_of_an_ending_is_no_change() {
        let mut cursor = Cursor { after: "now".to_owned(), left: None };
        let lines = format!(
            "{}{{\"error\":{{\"status\":410,\"code\":\"position_trimmed\"}}}}\n",
            change(1)
        );
        let (taken, ends) = take(lines.as_bytes(), &mut cursor).unwrap();
        assert_eq!(taken, change(1).as_bytes());
        assert_eq!(ends.unwrap().status, 410);
    }
}
