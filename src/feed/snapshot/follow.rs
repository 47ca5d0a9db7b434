//! What a snapshot makes of the changes that come meanwhile.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::change::{self, Change};
use super::run::{Run, Step};
use super::table::{PENDING_MAX, Place, State, Verdict};
use crate::capture::snapshot::Key;
use crate::feed::Error;
use crate::vocab::{Lsn, Op, Position};

/// How long capture's progress is not looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Keys compared in one query.
const PLACES_MAX: usize = 1_000;

impl Run {
    /// Sends changes until the log has passed `until`; then windows close.
    pub(super) async fn follow(&mut self, until: Lsn) -> Result<(), Error> {
        loop {
            if self.slice.is_some() {
                self.pass_slice().await?;
                if !self.out.is_empty() {
                    return Ok(());
                }
            }
            // Asked before the log is examined: see `Log::confirmed`.
            let passed = self.log.confirmed(self.source.id) >= until;
            self.slice = self.reader.next_present().await?;
            if self.slice.is_some() {
                continue;
            }
            self.position = self.position.max(self.reader.position());
            if passed {
                self.close_windows();
                self.step = Step::Plan;
                return Ok(());
            }
            let next = tokio::time::timeout(LOOK_AGAIN, self.reader.next()).await;
            if let Ok(slice) = next {
                self.slice = Some(slice?);
            }
        }
    }

    /// All that the chunks contain has passed.
    fn close_windows(&mut self) {
        for index in 0..self.tables.len() {
            let table = &mut self.tables[index];
            table.state.window = None;
            if table.state.is_done() && !table.closed {
                table.closed = true;
                table.must_see = HashSet::new();
                self.report(index);
            }
        }
    }

    /// Judges the changes of the slice at hand and queues those to be sent.
    async fn pass_slice(&mut self) -> Result<(), Error> {
        let Some(slice) = self.slice.clone() else { return Ok(()) };
        let changes: Vec<_> = slice.iter().collect();
        let mut places: HashMap<usize, HashMap<Key, Place>> = HashMap::new();
        for (entry, json) in &changes {
            let Some(&index) = self.index.get(&entry.dataset) else { continue };
            if let (Some(shape), Some(change)) = (&self.tables[index].shape, Change::read(json)) {
                let rows = [change.before, change.after].into_iter().flatten();
                let keys = rows.filter_map(|row| shape.key_of(row));
                places.entry(index).or_default().extend(keys.map(|key| (key, Place::default())));
            }
        }
        for (index, keys) in &mut places {
            self.compare(*index, keys).await?;
        }
        // From here on nothing waits: the slice is passed as a whole or not at all.
        self.slice = None;
        for (entry, json) in &changes {
            let Some(&index) = self.index.get(&entry.dataset) else { continue };
            let own = places.get(&index);
            self.pass(index, entry.op, entry.position, json, own);
            self.position = self.position.max(entry.position);
        }
        Ok(())
    }

    /// Finds out where keys lie in a table's order.
    async fn compare(&mut self, index: usize, keys: &mut HashMap<Key, Place>) -> Result<(), Error> {
        let table = &self.tables[index];
        let boundaries = table.state.boundaries();
        let bounds: Vec<Key> = boundaries.iter().flatten().map(|&key| key.clone()).collect();
        let Some(shape) = table.shape.clone() else { return Ok(()) };
        if !bounds.iter().all(|bound| shape.fits(bound)) {
            return Err(Error::Invalid(
                "after: the position belongs to a table with another key".to_owned(),
            ));
        }
        let has = boundaries.map(|boundary| boundary.is_some());
        if bounds.is_empty() {
            for place in keys.values_mut() {
                *place = self.tables[index].state.place([None, None]);
            }
            return Ok(());
        }
        let all: Vec<Key> = keys.keys().cloned().collect();
        for some in all.chunks(PLACES_MAX) {
            let bounds: Vec<&Key> = bounds.iter().collect();
            let compared = self.session().await?.places(&shape, some, &bounds).await;
            let compared = self.or_hang_up(compared)?;
            for (key, compared) in some.iter().zip(compared) {
                let mut compared = compared.into_iter();
                let compared = has.map(|has| if has { compared.next() } else { None });
                let place = self.tables[index].state.place(compared);
                keys.insert(key.clone(), place);
            }
        }
        Ok(())
    }

    /// Judges one event of the log and queues what is to be sent of it.
    fn pass(
        &mut self,
        index: usize,
        op: Op,
        position: Position,
        json: &Bytes,
        places: Option<&HashMap<Key, Place>>,
    ) {
        if change::is_control(op) {
            self.push(index, op, position, json);
            return;
        }
        let Some(change) = Change::read(json) else { return self.push(index, op, position, json) };
        let table = &mut self.tables[index];
        let Some(transaction) = change.transaction() else {
            return self.push(index, op, position, json);
        };
        if table.state.is_done() {
            return self.push(index, op, position, json);
        }
        table.must_see.insert(transaction);
        if op == Op::Truncate {
            let (verdict, anew) = table.state.judge_truncate(transaction);
            if anew {
                table.state = State::start();
                table.rows = 0;
            }
            if verdict == Verdict::Deliver {
                self.push(index, op, position, json);
            }
            return;
        }
        let Some(shape) = table.shape.clone() else { return };
        if !shape.has_key() {
            if table.state.judge_keyless(transaction) == Verdict::Deliver {
                self.push(index, op, position, json);
            }
            return;
        }
        let place = |key: &Key| places.and_then(|places| places.get(key)).copied();
        let read = |row: Option<&RawValue>| {
            let key = shape.key_of(row?)?;
            let place = place(&key)?;
            // A table that began anew in this slice has places of before.
            Some((key, if table.state.has_begun() { place } else { Place::default() }))
        };
        let (before, after) = (read(change.before), read(change.after));
        let state = &table.state;
        let verdict = match (&before, &after) {
            (Some((before, a)), Some((after, b))) if before != after => {
                state.judge_move((before, *a), (after, *b), transaction)
            }
            (None, Some((key, place))) | (Some((key, place)), _) => {
                state.judge((key, *place), transaction)
            }
            (None, None) => {
                // The change does not name the row by the key that the table is read by.
                let begun = table.state.has_begun();
                if begun {
                    self.restart(index, &shape);
                }
                return;
            }
        };
        match verdict {
            Verdict::Deliver => self.push(index, op, position, json),
            Verdict::Drop => {}
            Verdict::AsDelete => {
                if let Some(event) = change.as_delete(json) {
                    self.push(index, Op::Delete, position, &event);
                }
            }
            Verdict::AsCreate if change.is_whole() => {
                if let Some(event) = change.as_create(json) {
                    self.push(index, Op::Create, position, &event);
                }
            }
            Verdict::AsCreate => {
                let pending = &mut self.tables[index].state.pending;
                pending.extend(after.map(|(key, _)| key));
                if pending.len() > PENDING_MAX {
                    self.restart(index, &shape);
                }
            }
        }
    }

    /// Queues an event of the log with its position in the snapshot.
    fn push(&mut self, index: usize, op: Op, position: Position, json: &[u8]) {
        self.position = self.position.max(position);
        if self.ops.has(op) {
            let own = position.to_string();
            let dataset = self.tables[index].dataset.id;
            let event =
                self.event(op, position, dataset, |token| change::reposition(json, &own, token));
            self.out.push_back(event);
        }
    }
}
