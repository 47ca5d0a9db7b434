//! A run of encoded changes that travels as one: built once, shared by every reader, stored once.
//!
//! The bytes of a batch are its changes as newline-delimited JSON, back to back in one `Bytes`; a
//! table beside them says where each change ends, and what a reader needs to choose without
//! looking into the JSON:
//!
//! ```text
//! data     {"op":"c",…}\n{"op":"u",…}\n{"op":"d",…}\n
//! entries  p1 ds4 c   end ┘ p2 ds9 u end ┘ p3 ds4 d end ┘
//! ```
//!
//! Invariants: at least one change; positions strictly increase; each change is one line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;

use super::key::KeyColumns;
use super::{Digest, Error, chunk};
use crate::vocab::{DatasetId, Op, Position};

/// What a reader chooses a change by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where the change stands in its source's order.
    pub position: Position,
    /// The dataset it belongs to.
    pub dataset: DatasetId,
    /// What happened to the row.
    pub op: Op,
    /// Where its line ends in the batch's data, exclusive, the newline included.
    pub(super) end: usize,
}

/// A run of encoded changes. Never empty.
#[derive(Debug, Clone)]
pub struct Batch {
    entries: Vec<Entry>,
    datasets: Vec<DatasetId>,
    data: Bytes,
    hints: Hints,
    form: Form,
}

/// Some of a batch in a form other than lines, shared by all who read it so at a time, and kept no
/// longer than any of them needs it.
#[derive(Debug, Default)]
struct Form(Mutex<Option<Written>>);

/// What was written last.
#[derive(Debug)]
struct Written {
    range: Range<usize>,
    text: Weak<Vec<u8>>,
}

/// A copy of a batch has its own readers.
impl Clone for Form {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What a reader holds of a form.
struct Held(Arc<Vec<u8>>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Batches are equal that have the same changes; what was noted beside them is not kept for ever.
impl PartialEq for Batch {
    fn eq(&self, other: &Self) -> bool {
        (&self.entries, &self.data) == (&other.entries, &other.data)
    }
}

impl Eq for Batch {}

/// What whoever encoded the changes knew beside them, for the store to find them by.
#[derive(Debug, Clone, Default)]
pub(super) struct Hints {
    /// Earliest and latest commit of a change, in milliseconds since 1970, where it was told.
    pub(super) committed: Option<(i64, i64)>,
    /// The marks of changes.
    pub(super) marked: Vec<Marked>,
}

/// Changes of one dataset that were marked with their keys.
#[derive(Debug, Clone)]
pub(super) struct Marked {
    pub(super) dataset: DatasetId,
    pub(super) columns: Arc<KeyColumns>,
    /// How many changes.
    pub(super) changes: usize,
    pub(super) marks: Vec<u64>,
}

impl Batch {
    /// The batch with these parts, if they keep its invariants; else which one they break.
    pub(super) fn from_parts(entries: Vec<Entry>, data: Bytes) -> Result<Self, &'static str> {
        if entries.is_empty() {
            return Err("it has no change");
        }
        if !entries.is_sorted_by(|a, b| a.position < b.position) {
            return Err("its positions do not increase");
        }
        let mut start = 0;
        for entry in &entries {
            let line = data.get(start..entry.end).ok_or("a line ends outside its data")?;
            if line.last() != Some(&b'\n') {
                return Err("a line has no end");
            }
            start = entry.end;
        }
        if start != data.len() {
            return Err("its data outlasts its changes");
        }
        let mut datasets: Vec<_> = entries.iter().map(|entry| entry.dataset).collect();
        datasets.sort_unstable();
        datasets.dedup();
        let (hints, form) = (Hints::default(), Form::default());
        Ok(Self { entries, datasets, data, hints, form })
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Always false: a batch has at least one change.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Encoded size of all changes in bytes, newlines included.
    pub fn bytes_len(&self) -> usize {
        self.data.len()
    }

    /// What the batch costs in memory, in bytes: many small ones cost more than their data.
    pub(super) fn memory_bytes(&self) -> usize {
        /// Allocator and reference-count overhead of the three allocations, about.
        const OVERHEAD: usize = 128;
        size_of::<Self>()
            + self.entries.len() * size_of::<Entry>()
            + self.datasets.len() * size_of::<DatasetId>()
            + self.data.len()
            + self
                .hints
                .marked
                .iter()
                .map(|it| 64 + it.marks.len() * size_of::<u64>())
                .sum::<usize>()
            + OVERHEAD
    }

    /// Position of the first change.
    pub fn first(&self) -> Position {
        self.entries.first().map_or(Position::MIN, |entry| entry.position)
    }

    /// Position of the last change.
    pub fn last(&self) -> Position {
        self.entries.last().map_or(Position::MIN, |entry| entry.position)
    }

    /// The columns that its changes of this dataset are marked with, if any are.
    pub(super) fn key_columns(&self, dataset: DatasetId) -> Option<&KeyColumns> {
        let marked = self.hints.marked.iter().rev().find(|it| it.dataset == dataset);
        marked.map(|it| it.columns.as_ref())
    }

    /// What was noted beside the changes.
    pub(super) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The datasets it has changes of, sorted, each once.
    pub fn datasets(&self) -> &[DatasetId] {
        &self.datasets
    }

    /// The change at `index`: its entry and its JSON object without the newline, not copied.
    pub fn entry(&self, index: usize) -> Option<(Entry, Bytes)> {
        let entry = self.entries.get(index)?;
        Some((*entry, self.data.slice(self.start(index)..entry.end - 1)))
    }

    /// The changes in `range` as `write` writes them, which has to give every reader the same: who
    /// asks while another reader still has them gets the same memory.
    pub(super) fn in_form(&self, range: Range<usize>, write: impl FnOnce() -> Vec<u8>) -> Bytes {
        let mut form = self.form.0.lock();
        let shared = form.as_ref().filter(|written| written.range == range);
        let text = shared.and_then(|written| written.text.upgrade()).unwrap_or_else(|| {
            let text = Arc::new(write());
            *form = Some(Written { range, text: Arc::downgrade(&text) });
            text
        });
        Bytes::from_owner(Held(text))
    }

    /// The batch as one chunk: compressed, checksummed.
    pub fn compress(&self) -> Vec<u8> {
        chunk::encode(&[self])
    }

    /// The batch a chunk holds, or [`Error::Corrupt`]. Never panics, whatever the bytes are.
    pub fn decompress(bytes: &[u8]) -> Result<Self, Error> {
        chunk::decode(bytes).map_err(|reason| Error::Corrupt { reason })
    }

    /// Every change in order, as [`Batch::entry`] gives it.
    pub fn iter(&self) -> impl Iterator<Item = (Entry, Bytes)> {
        (0..self.len()).filter_map(|index| self.entry(index))
    }

    /// The changes in `range`, borrowed: what delivery copies from without touching a reference
    /// count. The range is cut to what there is.
    pub fn entries(&self, range: Range<usize>) -> impl Iterator<Item = (&Entry, &[u8])> + Clone {
        let range = self.clamp(range);
        let mut start = self.start(range.start);
        self.entries[range].iter().map(move |entry| {
            let json = &self.data[start..entry.end - 1];
            start = entry.end;
            (entry, json)
        })
    }

    /// Index of the first change with a position greater than this; [`Batch::len`] if none has.
    pub fn index_after(&self, position: Position) -> usize {
        self.entries.partition_point(|entry| entry.position <= position)
    }

    /// Index of the first change committed at or after this time, in milliseconds since 1970;
    /// `None` when no line tells of one.
    pub(super) fn index_committed_at(&self, at_ms: i64) -> Option<usize> {
        #[derive(Deserialize)]
        struct Line {
            source: Origin,
        }
        #[derive(Deserialize)]
        struct Origin {
            ts_ms: i64,
        }
        self.entries(0..self.len()).position(|(_, json)| {
            serde_json::from_slice::<Line>(json).is_ok_and(|line| line.source.ts_ms >= at_ms)
        })
    }

    /// How many changes each dataset has, and their digest. Sorted.
    pub(super) fn sums(&self) -> BTreeMap<DatasetId, (u64, Digest)> {
        self.sums_between(Position::MIN, Position::MAX)
    }

    /// The same of the changes from `from`, exclusive, to `to`, inclusive.
    pub(super) fn sums_between(
        &self,
        from: Position,
        to: Position,
    ) -> BTreeMap<DatasetId, (u64, Digest)> {
        let mut sums = BTreeMap::<DatasetId, (u64, Digest)>::new();
        for (entry, json) in self.entries(self.index_after(from)..self.index_after(to)) {
            let (changes, digest) = sums.entry(entry.dataset).or_default();
            *changes += 1;
            *digest += Digest::of_line(json);
        }
        sums
    }

    /// The changes in `range` as newline-delimited JSON, not copied. The range is cut to what
    /// there is.
    pub fn lines(&self, range: Range<usize>) -> Bytes {
        let range = self.clamp(range);
        self.data.slice(self.start(range.start)..self.start(range.end))
    }

    /// Where the line of change `index` starts in the data.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(0, |e| e.end)
    }

    fn clamp(&self, range: Range<usize>) -> Range<usize> {
        let end = range.end.min(self.len());
        range.start.min(end)..end
    }
}

/// Collects changes into a batch. Reusable: its buffers stay for the next batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    entries: Vec<Entry>,
    datasets: Vec<DatasetId>,
    data: Vec<u8>,
    /// The commit of the changes pushed next.
    commit_ms: Option<i64>,
    hints: Hints,
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing has been pushed since the last [`BatchBuilder::finish`].
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many changes it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Encoded size of the changes it holds, in bytes.
    pub fn bytes_len(&self) -> usize {
        self.data.len()
    }

    /// Adds one change. `encode` appends exactly one JSON object without a raw newline; when it
    /// fails, the change was never there. Positions must strictly increase.
    pub fn push<E>(
        &mut self,
        position: Position,
        dataset: DatasetId,
        op: Op,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(self.entries.last().is_none_or(|last| last.position < position));
        let start = self.data.len();
        if let Err(error) = encode(&mut self.data) {
            self.data.truncate(start);
            return Err(error);
        }
        debug_assert!(memchr::memchr(b'\n', &self.data[start..]).is_none());
        self.data.push(b'\n');
        self.entries.push(Entry { position, dataset, op, end: self.data.len() });
        if self.datasets.last() != Some(&dataset) {
            self.datasets.push(dataset);
        }
        if let Some(at) = self.commit_ms {
            let (from, upto) = self.hints.committed.unwrap_or((at, at));
            self.hints.committed = Some((from.min(at), upto.max(at)));
        }
        Ok(())
    }

    /// Says when the changes pushed from here on were committed, in milliseconds since 1970.
    pub fn committed(&mut self, at_ms: i64) {
        self.commit_ms = Some(at_ms);
    }

    /// Marks the change pushed last with its key: the marks of all values that its images have in
    /// these columns ([`KeyColumns::mark`]). Only a dataset whose changes are all marked can have
    /// chunks skipped by readers of one row.
    pub fn mark(&mut self, dataset: DatasetId, columns: &Arc<KeyColumns>, marks: &[u64]) {
        let same = |it: &&mut Marked| it.dataset == dataset && Arc::ptr_eq(&it.columns, columns);
        match self.hints.marked.iter_mut().rev().find(same) {
            Some(marked) => {
                marked.changes += 1;
                marked.marks.extend_from_slice(marks);
            }
            None => self.hints.marked.push(Marked {
                dataset,
                columns: Arc::clone(columns),
                changes: 1,
                marks: marks.to_vec(),
            }),
        }
    }

    /// The batch of all that was pushed, or `None`; the builder is empty afterwards.
    ///
    /// What it holds is copied into exactly sized memory: a batch lives in the tail for long, where
    /// the slack of a growing buffer would count many times.
    pub fn finish(&mut self) -> Option<Batch> {
        if self.entries.is_empty() {
            return None;
        }
        self.datasets.sort_unstable();
        self.datasets.dedup();
        let batch = Batch {
            entries: self.entries.as_slice().into(),
            datasets: self.datasets.as_slice().into(),
            data: Bytes::copy_from_slice(&self.data),
            hints: std::mem::take(&mut self.hints),
            form: Form::default(),
        };
        self.entries.clear();
        self.datasets.clear();
        self.data.clear();
        Some(batch)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::vocab::{Epoch, Lsn};

    /// The n-th position of a test, three changes to a transaction.
    pub(in crate::log) fn position(n: u64) -> Position {
        Position::new(Epoch::FIRST, Lsn::new(100 + n / 3 * 8), u32::try_from(n % 3 + 1).unwrap())
    }

    /// A batch of `(n, dataset)`; the JSON tells both, padded to about `pad` bytes.
    pub(in crate::log) fn batch(changes: &[(u64, i32)], pad: usize) -> Batch {
        let mut builder = BatchBuilder::new();
        for (n, dataset) in changes {
            let op = Op::CHANGES[usize::try_from(n % 5).unwrap()];
            let json = format!("{{\"n\":{n},\"d\":{dataset},\"pad\":\"{}\"}}", "x".repeat(pad));
            builder
                .push(position(*n), DatasetId(*dataset), op, |out| {
                    out.extend_from_slice(json.as_bytes());
                    Ok::<_, Infallible>(())
                })
                .unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn a_batch_gives_back_what_was_pushed() {
        let batch = batch(&[(1, 7), (2, 3), (5, 7)], 0);
        assert_eq!((batch.len(), batch.is_empty()), (3, false));
        assert_eq!((batch.first(), batch.last()), (position(1), position(5)));
        assert_eq!(batch.datasets(), [DatasetId(3), DatasetId(7)]);
        let (entry, json) = batch.entry(1).unwrap();
        assert_eq!(
            (entry.position, entry.dataset, entry.op),
            (position(2), DatasetId(3), Op::Delete)
        );
        assert_eq!(json, r#"{"n":2,"d":3,"pad":""}"#);
        assert!(batch.entry(3).is_none());
        let borrowed: Vec<_> = batch.entries(1..9).map(|(e, json)| (e.position, json)).collect();
        assert_eq!(
            borrowed,
            [(position(2), json.as_ref()), (position(5), batch.entry(2).unwrap().1.as_ref())]
        );
    }

    #[test]
    fn lines_are_cut_at_changes() {
        let batch = batch(&[(1, 1), (2, 1), (3, 1)], 0);
        assert_eq!(batch.lines(0..3).len(), batch.bytes_len());
        assert_eq!(batch.lines(1..2), "{\"n\":2,\"d\":1,\"pad\":\"\"}\n");
        assert_eq!(batch.lines(2..9), batch.lines(2..3));
        assert!(batch.lines(3..3).is_empty());
        assert!(batch.lines(7..9).is_empty());
    }

    #[test]
    fn index_after_is_exclusive() {
        let batch = batch(&[(3, 1), (4, 1), (6, 1)], 0);
        let found: Vec<_> = (2..8).map(|n| batch.index_after(position(n))).collect();
        assert_eq!(found, [0, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_change_that_fails_to_encode_leaves_no_trace() {
        let mut builder = BatchBuilder::new();
        let failed = builder.push(position(1), DatasetId(1), Op::Create, |out| {
            out.extend_from_slice(b"{\"half\":");
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        assert!(builder.is_empty() && builder.bytes_len() == 0 && builder.finish().is_none());
        builder
            .push(position(1), DatasetId(1), Op::Create, |out| {
                out.extend_from_slice(b"{}");
                Ok::<_, Infallible>(())
            })
            .unwrap();
        assert_eq!((builder.len(), builder.bytes_len()), (1, 3));
        assert_eq!(builder.finish().unwrap().lines(0..1), "{}\n");
        assert!(builder.finish().is_none(), "finishing empties the builder");
    }
}
