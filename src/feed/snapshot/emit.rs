//! What a snapshot sends: rows and reports, each with its position.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use metrics::counter;
use serde::Serialize;
use tokio::time::Instant;

use super::run::{Emission, Run, Table};
use super::table::State;
use super::token::{Progressed, Token};
use crate::capture::snapshot::{Bound, Key, Row};
use crate::feed::delivery::{Delivery, Event};
use crate::vocab::{DatasetId, DatasetName, Op, Position};

/// Events of one delivery, in bytes, about.
const DELIVERY_BYTES_MAX: usize = 64 * 1024;

/// How often a table in progress is reported to its reader.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How far a table is: `schema/events/snapshot.json`.
#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    source: ReportSource<'a>,
    ts_ms: i64,
    dataset: &'a DatasetName,
    position: &'a str,
    snapshot: ReportProgress,
}

#[derive(Serialize)]
struct ReportSource<'a> {
    connector: &'static str,
    name: &'a str,
    db: &'a str,
    lsn: u64,
    ts_ms: i64,
}

#[derive(Serialize)]
struct ReportProgress {
    state: &'static str,
    rows: u64,
    rows_estimated: Option<u64>,
    percent: Option<f64>,
    eta_ms: Option<u64>,
}

impl Run {
    /// Rows are to be sent; what has none is read at once.
    pub(super) fn queue(
        &mut self,
        index: usize,
        rows: Vec<Row>,
        points: usize,
        wanted: Vec<Key>,
        upto: Bound,
    ) {
        let emission = Emission { table: index, rows: rows.into(), points, wanted, upto };
        if emission.rows.is_empty() {
            self.complete(&emission);
        } else {
            self.emissions.push_back(emission);
        }
    }

    /// All rows of a chunk have been sent.
    fn complete(&mut self, emission: &Emission) {
        let table = &mut self.tables[emission.table];
        table.state.read = emission.upto.clone();
        table.state.pending.retain(|key| !emission.wanted.contains(key));
        if table.state.read == Bound::End {
            table.state.partial = false;
        }
        if let Some(window) = &mut table.state.window {
            let missing = emission.wanted.iter().filter(|key| !window.points.contains(key));
            let missing: Vec<_> = missing.cloned().collect();
            window.points.extend(missing);
        }
        self.report(emission.table);
    }

    /// A delivery of what is ready to be sent; `None` when nothing is.
    pub(super) fn deliver(&mut self) -> Option<Delivery> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < DELIVERY_BYTES_MAX {
            let Some(event) = self.out.pop_front().or_else(|| self.next_row()) else { break };
            bytes += event.json.len();
            events.push(event);
        }
        Delivery::of_snapshot(events)
    }

    /// The next row of the chunks, with the state moved behind it.
    fn next_row(&mut self) -> Option<Event> {
        let emission = self.emissions.front_mut()?;
        let row = emission.rows.pop_front()?;
        let table = &mut self.tables[emission.table];
        let dataset = table.dataset.id;
        table.rows += 1;
        counter!("cadastre_feed_snapshot_rows_total").increment(1);
        if emission.points > 0 {
            emission.points -= 1;
            if let (Some(key), Some(window)) = (&row.key, &mut table.state.window) {
                table.state.pending.retain(|pending| pending != key);
                window.points.push(key.clone());
            }
        } else if let Some(key) = &row.key {
            table.state.read = Bound::At(key.clone());
        } else {
            table.state.partial = true;
        }
        let last = emission.rows.is_empty().then(|| self.emissions.pop_front()).flatten();
        if let Some(emission) = &last {
            // The last row's position says all that is known by then.
            let state = &mut self.tables[emission.table].state;
            state.read = emission.upto.clone();
            state.partial &= state.read != Bound::End;
        }
        let position = self.position;
        let event =
            self.event(Op::Read, position, dataset, |token| join(&row.head, token, row.tail));
        if let Some(emission) = &last {
            self.complete(emission);
        }
        Some(event)
    }

    /// An event with its position in the snapshot.
    pub(super) fn event(
        &mut self,
        op: Op,
        position: Position,
        dataset: DatasetId,
        json: impl FnOnce(&str) -> Vec<u8>,
    ) -> Event {
        let id = self.token(position);
        let json = Bytes::from(json(&id));
        Event { dataset, position, id, name: op.event(), op: Some(op), json }
    }

    /// The position of the next event, whose place in the log is this.
    fn token(&mut self, position: Position) -> String {
        self.count += 1;
        let tables = &self.tables;
        let is_untouched = |table: &Table| table.state == State::start();
        let begun =
            tables.iter().rposition(|table| !is_untouched(table)).map_or(0, |last| last + 1);
        let open = tables.iter().enumerate().take(begun);
        let open = open.filter(|(_, table)| !table.state.is_done());
        let state = Progressed {
            datasets: self.digest,
            begun,
            tables: open.map(|(index, table)| (index, table.state.clone())).collect(),
        };
        Token { position, count: self.count, state }.to_string()
    }

    /// Says how far a table is: always in the list, now and then to the reader.
    pub(super) fn report(&mut self, index: usize) {
        let table = &mut self.tables[index];
        let took = table.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let estimated = table.shape.as_ref().map_or(0, |shape| shape.rows_estimated());
        table.progress.update(table.rows, estimated, took, table.closed);
        self.entry.set(index, &table.progress);
        if !table.closed && table.reported.is_some_and(|at| at.elapsed() < REPORT_EVERY) {
            return;
        }
        table.reported = Some(Instant::now());
        let progress = table.progress.clone();
        let position = self.position;
        let id = self.token(position);
        let now_ms = Utc::now().timestamp_millis();
        let report = Report {
            event: "snapshot",
            source: ReportSource {
                connector: "cadastre",
                name: self.source.name.as_str(),
                db: self.target.database(),
                lsn: position.lsn().get(),
                ts_ms: now_ms,
            },
            ts_ms: now_ms,
            dataset: &progress.dataset,
            position: &id,
            snapshot: ReportProgress {
                state: progress.state,
                rows: progress.rows,
                rows_estimated: progress.rows_estimated,
                percent: progress.percent,
                eta_ms: progress.eta_ms,
            },
        };
        let json = serde_json::to_vec(&report).expect("names and numbers can be written to memory");
        let json = Bytes::from(json);
        let dataset = self.tables[index].dataset.id;
        self.out.push_back(Event { dataset, position, id, name: "snapshot", op: None, json });
    }
}

/// The event around its position.
pub(super) fn join(head: &[u8], token: &str, tail: &[u8]) -> Vec<u8> {
    [head, token.as_bytes(), tail].concat()
}
