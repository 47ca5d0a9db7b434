//! The newest batches of a source, in memory: what readers at the tail read.
//!
//! ```text
//!            floor ▼                 durable ▼                     last ▼
//!  (only in store) │ batch │ batch │ batch   │ batch │ batch │ batch    │
//!                  └─ may be dropped ────────┴─ pending: may not ───────┘
//! ```
//!
//! Every change after the floor is here. A reader whose position is at or after it reads here, an
//! older one reads the store. Readers of the same datasets share an [`Interest`], which is woken
//! only by batches that have changes of them, and has a floor of its own: dropping a batch moves
//! only the floors of those it had changes for. A reader of a quiet dataset may therefore sleep
//! through any amount of traffic and still need neither a wake-up nor the store.
//!
//! Plain data without locks, time or tasks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::Batch;
use crate::vocab::{DatasetId, Position};

/// The datasets a reader asked for; `None` is all of them. Sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted(Option<Arc<[DatasetId]>>);

impl Wanted {
    pub(super) fn new(datasets: Option<Vec<DatasetId>>) -> Self {
        Self(datasets.map(|mut ids| {
            ids.sort_unstable();
            ids.dedup();
            ids.into()
        }))
    }

    pub(super) fn datasets(&self) -> Option<&[DatasetId]> {
        self.0.as_deref()
    }

    pub(super) fn has(&self, dataset: DatasetId) -> bool {
        self.0.as_ref().is_none_or(|ids| ids.binary_search(&dataset).is_ok())
    }

    fn has_any(&self, datasets: &[DatasetId]) -> bool {
        self.0.as_ref().is_none_or(|ids| {
            let (few, many) = if ids.len() < datasets.len() {
                (ids.as_ref(), datasets)
            } else {
                (datasets, ids.as_ref())
            };
            few.iter().any(|id| many.binary_search(id).is_ok())
        })
    }
}

/// What readers of the same datasets share.
#[derive(Debug)]
pub(super) struct Interest {
    wanted: Wanted,
    /// All wanted changes after this are in the ring; `None` while the source has had no writer
    /// and everything is in the store. Sending it wakes the readers.
    floor: watch::Sender<Option<Position>>,
}

impl Interest {
    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// See the field.
    pub(super) fn floor(&self) -> Option<Position> {
        *self.floor.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Position>> {
        self.floor.subscribe()
    }

    /// Wakes the readers that wait; they look for themselves what there is.
    pub(super) fn wake(&self) {
        self.floor.send_modify(|_| ());
    }
}

/// What a reader at a position finds in the ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The oldest batch that has wanted datasets and ends after the position.
    Batch(Arc<Batch>),
    /// Nothing, and everything up to here was examined.
    Nothing(Position),
    /// Wanted changes after the position may have left the ring: look into the store.
    Behind,
}

/// The newest batches of a source.
#[derive(Debug)]
pub(super) struct Ring {
    /// Every change after this is in `batches`; `None` until a writer has opened.
    floor: Option<Position>,
    /// Newest position appended or durable; meaningless while `floor` is `None`.
    last: Position,
    batches: VecDeque<Arc<Batch>>,
    /// How many batches, from the front, are durable.
    durable: usize,
    bytes: usize,
    pending_bytes: usize,
    /// Memory above which durable batches are dropped.
    bytes_max: usize,
    interests: HashMap<Wanted, Joined>,
}

/// An interest and how many readers share it.
#[derive(Debug)]
struct Joined {
    interest: Arc<Interest>,
    readers: usize,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            floor: None,
            last: Position::MIN,
            batches: VecDeque::new(),
            durable: 0,
            bytes: 0,
            pending_bytes: 0,
            bytes_max,
            interests: HashMap::new(),
        }
    }

    /// Starts over at the end of what is durable. What was pending is gone: its writer is, and the
    /// next one appends it again.
    pub(super) fn open(&mut self, durable: Position) {
        self.floor = Some(durable);
        self.last = durable;
        self.batches.clear();
        (self.durable, self.bytes, self.pending_bytes) = (0, 0, 0);
        for joined in self.interests.values() {
            joined.interest.floor.send_replace(self.floor);
        }
    }

    /// Newest position readers can see here; `None` until a writer has opened.
    pub(super) fn newest(&self) -> Option<Position> {
        self.floor.map(|_| self.last)
    }

    /// Everything held, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Batch>> {
        self.batches.iter().cloned().collect()
    }

    /// Oldest change held.
    pub(super) fn first(&self) -> Option<Position> {
        self.batches.front().map(|batch| batch.first())
    }

    /// Memory of what is not durable yet, in bytes.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Adds a batch that follows [`Ring::newest`]; gives whom to wake.
    pub(super) fn append(&mut self, batch: &Arc<Batch>) -> Vec<Arc<Interest>> {
        debug_assert!(self.floor.is_some() && batch.first() > self.last);
        let bytes = batch.memory_bytes();
        self.last = batch.last();
        self.bytes += bytes;
        self.pending_bytes += bytes;
        self.batches.push_back(Arc::clone(batch));
        self.drop_oldest();
        self.interested(batch).cloned().collect()
    }

    /// The oldest batches that are not durable, up to about `bytes` of memory.
    pub(super) fn pending(&self, bytes: usize) -> Vec<Arc<Batch>> {
        let mut taken = 0;
        let fits = |batch: &&Arc<Batch>| {
            let fits = taken == 0 || taken + batch.memory_bytes() <= bytes;
            taken += batch.memory_bytes();
            fits
        };
        self.batches.range(self.durable..).take_while(fits).cloned().collect()
    }

    /// The oldest `count` pending batches have become durable.
    pub(super) fn made_durable(&mut self, count: usize) {
        let until = (self.durable + count).min(self.batches.len());
        let bytes: usize =
            self.batches.range(self.durable..until).map(|batch| batch.memory_bytes()).sum();
        self.pending_bytes -= bytes;
        self.durable = until;
        self.drop_oldest();
    }

    /// What a reader with this interest finds after `position`.
    pub(super) fn find(&self, interest: &Interest, position: Position) -> Found {
        if interest.floor().is_none_or(|floor| position < floor) {
            return Found::Behind;
        }
        let from = self.batches.partition_point(|batch| batch.last() <= position);
        self.batches
            .range(from..)
            .find(|batch| interest.wanted.has_any(batch.datasets()))
            .map_or_else(
                || Found::Nothing(position.max(self.last)),
                |b| Found::Batch(Arc::clone(b)),
            )
    }

    /// The interest in these datasets, made on first use. Pair with [`Ring::leave`].
    pub(super) fn join(&mut self, wanted: Wanted) -> Arc<Interest> {
        let joined = self.interests.entry(wanted).or_insert_with_key(|wanted| {
            let floor = watch::Sender::new(self.floor);
            Joined { interest: Arc::new(Interest { wanted: wanted.clone(), floor }), readers: 0 }
        });
        joined.readers += 1;
        Arc::clone(&joined.interest)
    }

    /// What all readers are interested in.
    pub(super) fn interests(&self) -> Vec<Arc<Interest>> {
        self.interests.values().map(|joined| Arc::clone(&joined.interest)).collect()
    }

    /// A reader gives its interest up; with the last one it leaves the ring.
    pub(super) fn leave(&mut self, interest: &Interest) {
        if let Some(joined) = self.interests.get_mut(&interest.wanted) {
            joined.readers -= 1;
            if joined.readers == 0 {
                self.interests.remove(&interest.wanted);
            }
        }
    }

    fn drop_oldest(&mut self) {
        while self.bytes > self.bytes_max && self.durable > 0 {
            let Some(batch) = self.batches.pop_front() else { break };
            self.durable -= 1;
            self.bytes -= batch.memory_bytes();
            self.floor = Some(batch.last());
            for interest in self.interested(&batch) {
                interest.floor.send_if_modified(|floor| {
                    *floor = Some(batch.last());
                    false
                });
            }
        }
    }

    fn interested(&self, batch: &Batch) -> impl Iterator<Item = &Arc<Interest>> {
        self.interests
            .values()
            .map(|joined| &joined.interest)
            .filter(|interest| interest.wanted.has_any(batch.datasets()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::batch::tests::{batch, position};

    fn ring_at(durable: u64, bytes_max: usize) -> Ring {
        let mut ring = Ring::new(bytes_max);
        ring.open(position(durable));
        ring
    }

    fn append(ring: &mut Ring, changes: &[(u64, i32)]) -> (Arc<Batch>, Vec<Arc<Interest>>) {
        let batch = Arc::new(batch(changes, 0));
        let woken = ring.append(&batch);
        (batch, woken)
    }

    fn only(dataset: i32) -> Wanted {
        Wanted::new(Some(vec![DatasetId(dataset)]))
    }

    #[test]
    fn without_a_writer_all_is_in_the_store() {
        let mut ring = Ring::new(1 << 20);
        let interest = ring.join(only(1));
        assert_eq!(ring.find(&interest, position(9)), Found::Behind);
        let mut woken = interest.subscribe();
        ring.open(position(4));
        assert!(woken.has_changed().unwrap(), "a writer that opens wakes those who wait");
        assert_eq!(*woken.borrow_and_update(), Some(position(4)));
        assert_eq!(ring.find(&interest, position(3)), Found::Behind);
        assert_eq!(ring.find(&interest, position(4)), Found::Nothing(position(4)));
        assert_eq!(ring.find(&interest, position(7)), Found::Nothing(position(7)));
    }

    #[test]
    fn only_those_who_asked_are_woken_and_given_a_batch() {
        let mut ring = ring_at(0, 1 << 20);
        let (one, two, all) =
            (ring.join(only(1)), ring.join(only(2)), ring.join(Wanted::new(None)));
        let (batch, woken) = append(&mut ring, &[(1, 1), (2, 3)]);
        assert_eq!(woken.len(), 2);
        assert!(woken.iter().all(|interest| !Arc::ptr_eq(interest, &two)));
        assert_eq!(ring.find(&one, position(0)), Found::Batch(Arc::clone(&batch)));
        assert_eq!(ring.find(&one, position(1)), Found::Batch(Arc::clone(&batch)));
        assert_eq!(ring.find(&one, position(2)), Found::Nothing(position(2)));
        assert_eq!(ring.find(&two, position(0)), Found::Nothing(position(2)));
        assert_eq!(ring.find(&all, position(0)), Found::Batch(batch));
    }

    #[test]
    fn what_is_not_durable_stays_whatever_the_budget() {
        let mut ring = ring_at(0, 0);
        let all = ring.join(Wanted::new(None));
        for n in 1..=3 {
            append(&mut ring, &[(n, 1)]);
        }
        assert_eq!(ring.pending(usize::MAX).len(), 3);
        assert_eq!(ring.pending(1).len(), 1, "one is taken however large it is");
        assert!(matches!(ring.find(&all, position(0)), Found::Batch(_)));
        ring.made_durable(2);
        assert_eq!(ring.pending(usize::MAX).len(), 1);
        assert_eq!(ring.find(&all, position(1)), Found::Behind);
        assert!(matches!(ring.find(&all, position(2)), Found::Batch(_)));
        ring.made_durable(1);
        assert_eq!((ring.bytes, ring.pending_bytes(), ring.first()), (0, 0, None));
        assert_eq!(ring.find(&all, position(3)), Found::Nothing(position(3)));
    }

    #[test]
    fn dropping_a_batch_moves_only_the_floors_of_those_who_wanted_it() {
        let mut ring = ring_at(0, 0);
        let (busy, quiet) = (ring.join(only(1)), ring.join(only(2)));
        append(&mut ring, &[(1, 1)]);
        ring.made_durable(1);
        assert_eq!(ring.find(&busy, position(0)), Found::Behind);
        assert_eq!(ring.find(&quiet, position(0)), Found::Nothing(position(1)));
        let late = ring.join(only(3));
        assert_eq!(ring.find(&late, position(0)), Found::Behind, "nobody kept its floor");
        let (batch, _) = append(&mut ring, &[(2, 2)]);
        assert_eq!(ring.find(&quiet, position(0)), Found::Batch(batch));
    }

    #[test]
    fn interests_live_as_long_as_their_readers() {
        let mut ring = ring_at(0, 0);
        let (first, second) = (ring.join(only(1)), ring.join(only(1)));
        assert!(Arc::ptr_eq(&first, &second));
        ring.leave(&first);
        assert_eq!(ring.interests.len(), 1);
        ring.leave(&second);
        assert!(ring.interests.is_empty());
    }

    #[test]
    fn a_new_writer_starts_over_at_what_is_durable() {
        let mut ring = ring_at(0, 1 << 20);
        let all = ring.join(Wanted::new(None));
        append(&mut ring, &[(1, 1)]);
        ring.made_durable(1);
        append(&mut ring, &[(2, 1)]);
        ring.open(position(1));
        assert_eq!((ring.newest(), ring.pending_bytes()), (Some(position(1)), 0));
        assert_eq!(ring.find(&all, position(0)), Found::Behind);
        assert_eq!(
            ring.find(&all, position(2)),
            Found::Nothing(position(2)),
            "it saw the lost one"
        );
        let (again, _) = append(&mut ring, &[(2, 1), (3, 1)]);
        assert_eq!(ring.find(&all, position(2)), Found::Batch(again));
    }
}
