//! Writers, readers and the store between them, on a store that does as it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::batch::tests::{batch, position};
use super::live::Budget;
use super::*;
use crate::task::Tasks;
use crate::vocab::{DatasetId, Lsn, Position, Retry, SourceId};

const SHOP: SourceId = SourceId(1);
const DEADLINE: Duration = Duration::from_secs(30);
const ROOMY: Budget = Budget { tail: 1 << 20, pending: 1 << 20 };

/// What an append does instead of succeeding.
enum Fault {
    /// It fails and writes nothing.
    Reject(Retry),
    /// It writes, but the answer is lost.
    LoseAnswer,
}

/// A store that appends only when permitted, fails as scripted, and yields before every answer.
struct Scripted {
    inner: MemoryStore,
    permits: Semaphore,
    faults: Mutex<VecDeque<Fault>>,
    appends: Mutex<Vec<usize>>,
    yields: usize,
}

impl Scripted {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::default(),
            permits: Semaphore::new(permits),
            faults: Mutex::default(),
            appends: Mutex::default(),
            yields: 0,
        })
    }

    fn free() -> Arc<Self> {
        Self::new(Semaphore::MAX_PERMITS)
    }

    async fn slowly(&self) {
        for _ in 0..self.yields {
            tokio::task::yield_now().await;
        }
    }

    async fn append_scripted(&self, source: SourceId, batches: &[Arc<Batch>]) -> Result<(), Error> {
        self.permits.acquire().await.unwrap().forget();
        self.slowly().await;
        let fault = self.faults.lock().pop_front();
        let failed = |retry| Error::Database { retry, source: "no answer".into() };
        match fault {
            Some(Fault::Reject(retry)) => return Err(failed(retry)),
            Some(Fault::LoseAnswer) => {
                self.inner.append(source, batches).await?;
                return Err(failed(Retry::Later));
            }
            None => self.inner.append(source, batches).await?,
        }
        self.appends.lock().push(batches.len());
        Ok(())
    }
}

impl Store for Scripted {
    fn append<'a>(
        &'a self,
        source: SourceId,
        batches: &'a [Arc<Batch>],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.append_scripted(source, batches))
    }

    fn read<'a>(
        &'a self,
        source: SourceId,
        after: Position,
        datasets: Option<&'a [DatasetId]>,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            self.slowly().await;
            // Small pages, so that a test need not write megabytes to see several.
            self.inner.read(source, after, datasets, bytes.min(500)).await
        })
    }

    rest_by!(inner);
}

fn log_on(store: &Arc<Scripted>, tasks: &Tasks, budget: Budget) -> Log {
    let store: Arc<dyn Store> = Arc::<Scripted>::clone(store);
    Log::with_budget(store, tasks, Duration::ZERO, budget)
}

fn lsn(n: u64) -> Lsn {
    Lsn::new(n)
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("it should not take that long")
}

async fn confirmed(writer: &Writer, lsn: Lsn) {
    within(writer.durable().wait_for(|confirmed| *confirmed == lsn)).await.unwrap();
}

/// The next `count` changes as their numbers.
async fn take(reader: &mut Reader, count: usize) -> Vec<Position> {
    let mut found = Vec::new();
    while found.len() < count {
        let slice = within(reader.next()).await.unwrap();
        found.extend(slice.iter().map(|(entry, _)| entry.position));
    }
    found
}

fn positions(range: std::ops::RangeInclusive<u64>) -> Vec<Position> {
    range.map(position).collect()
}

#[tokio::test]
async fn changes_are_seen_before_they_are_durable_and_confirmed_after() {
    let (store, tasks) = (Scripted::new(0), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    let mut reader = log.reader(SHOP, Start::Now, None);
    writer.append(batch(&[(1, 1)], 0), None).await.unwrap();
    writer.append(batch(&[(2, 1)], 0), Some(lsn(20))).await.unwrap();
    assert_eq!(take(&mut reader, 2).await, positions(1..=2));
    writer.advance(lsn(25));
    assert_eq!(*writer.durable().borrow(), Lsn::ZERO);
    assert_eq!(store.inner.extent(SHOP).await.unwrap().first, None);
    let bounds = log.bounds(SHOP).await.unwrap();
    assert_eq!(bounds, Some(Bounds { first: position(1), last: position(2) }));
    store.permits.add_permits(2);
    confirmed(&writer, lsn(25)).await;
    assert_eq!(store.inner.extent(SHOP).await.unwrap().last, position(2));
    writer.advance(lsn(30));
    assert_eq!(*writer.durable().borrow(), lsn(30), "with nothing pending it is due at once");
    writer.advance(lsn(10));
    assert_eq!(*writer.durable().borrow(), lsn(30), "it never goes back");
    assert!(tasks.stop(DEADLINE).await);
}

#[tokio::test]
async fn what_piles_up_behind_a_slow_append_is_appended_at_once() {
    let (store, tasks) = (Scripted::new(0), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    for n in 1..=20 {
        writer.append(batch(&[(n, 1)], 0), Some(lsn(n))).await.unwrap();
        tokio::task::yield_now().await;
    }
    store.permits.add_permits(2);
    confirmed(&writer, lsn(20)).await;
    let appends = store.appends.lock().clone();
    assert_eq!(appends.iter().sum::<usize>(), 20);
    assert!(appends.len() <= 2, "{appends:?}");
}

#[tokio::test]
async fn a_writer_waits_for_room_and_a_cancelled_wait_appends_nothing() {
    let (store, tasks) = (Scripted::new(0), Tasks::new());
    let log = log_on(&store, &tasks, Budget { tail: 1 << 20, pending: 600 });
    let mut writer = log.writer(SHOP).await.unwrap();
    writer.append(batch(&[(1, 1)], 2000), None).await.expect("one always goes in");
    assert!(writer.append(batch(&[(2, 1)], 0), None).now_or_never().is_none());
    assert_eq!(writer.last(), position(1));
    store.permits.add_permits(100);
    within(writer.append(batch(&[(2, 1)], 0), Some(lsn(2)))).await.unwrap();
    confirmed(&writer, lsn(2)).await;
    assert_eq!(take(&mut log.reader(SHOP, Start::Earliest, None), 2).await, positions(1..=2));
}

#[tokio::test]
async fn a_failing_store_is_tried_again_until_it_works() {
    let (store, tasks) = (Scripted::new(0), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    store.faults.lock().extend([
        Fault::Reject(Retry::Now),
        Fault::Reject(Retry::Later),
        Fault::LoseAnswer,
    ]);
    let mut writer = log.writer(SHOP).await.unwrap();
    writer.append(batch(&[(1, 1)], 0), Some(lsn(1))).await.unwrap();
    store.permits.add_permits(3);
    let told = async {
        while log.trouble(SHOP).is_none() {
            tokio::task::yield_now().await;
        }
    };
    within(told).await;
    assert_eq!(log.trouble(SHOP).unwrap(), "the log's database failed: no answer");
    store.permits.add_permits(100);
    confirmed(&writer, lsn(1)).await;
    assert_eq!(log.trouble(SHOP), None);
    writer.append(batch(&[(2, 1)], 0), Some(lsn(2))).await.unwrap();
    confirmed(&writer, lsn(2)).await;
    let page = store.inner.read(SHOP, Position::MIN, None, 1 << 20).await.unwrap();
    assert_eq!(page.batches.len(), 2, "the batch whose answer was lost is there once");
}

#[tokio::test]
async fn another_writer_elsewhere_ends_this_one_and_the_next_goes_on_where_it_stopped() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    let mut reader = log.reader(SHOP, Start::Now, None);
    store.inner.append(SHOP, &[Arc::new(batch(&[(1, 1), (2, 1), (3, 1)], 0))]).await.unwrap();
    writer.append(batch(&[(1, 1), (2, 1)], 0), Some(lsn(2))).await.unwrap();
    assert_eq!(take(&mut reader, 2).await, positions(1..=2));
    // It is told when it next appends after the store has refused.
    let mut n = 3;
    let failure = loop {
        n += 1;
        if let Err(error) = within(writer.append(batch(&[(n, 1)], 0), None)).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(failure, Error::OutOfOrder { last, .. } if last == position(3)), "{failure}");
    assert!(matches!(writer.append(batch(&[(n + 1, 1)], 0), None).await, Err(Error::Stopped)));
    assert_eq!(*writer.durable().borrow(), Lsn::ZERO);
    drop(writer);
    let mut writer = within(log.writer(SHOP)).await.unwrap();
    assert_eq!((writer.last(), log.trouble(SHOP)), (position(3), None));
    writer.append(batch(&[(4, 1), (5, 1)], 0), Some(lsn(5))).await.unwrap();
    confirmed(&writer, lsn(5)).await;
}

#[tokio::test]
async fn a_source_has_one_writer_and_what_the_last_one_appended_comes_first() {
    let (store, tasks) = (Scripted::new(0), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    assert!(matches!(log.writer(SHOP).await, Err(Error::Busy { source_id: SHOP })));
    drop(log.writer(SourceId(2)).await.expect("sources do not share a writer"));
    writer.append(batch(&[(1, 1)], 0), None).await.unwrap();
    drop(writer);
    let mut next = Box::pin(log.writer(SHOP));
    assert!((&mut next).now_or_never().is_none());
    store.permits.add_permits(1);
    assert_eq!(within(next).await.unwrap().last(), position(1));
}

#[tokio::test]
async fn stopping_makes_durable_what_was_appended() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let store_handle: Arc<dyn Store> = Arc::<Scripted>::clone(&store);
    let log = Log::with_budget(store_handle, &tasks, Duration::from_secs(3600), ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    writer.append(batch(&[(1, 1)], 0), None).await.unwrap();
    assert!(tasks.stop(DEADLINE).await, "the task ends although it lingers and a writer lives");
    assert_eq!(store.inner.extent(SHOP).await.unwrap().last, position(1));
    let refused = writer.append(batch(&[(2, 1)], 0), None).await;
    assert!(matches!(refused, Err(Error::Stopped)));
}

#[tokio::test]
async fn a_writer_refuses_what_does_not_follow() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    writer.append(batch(&[(3, 1)], 0), None).await.unwrap();
    let refused = writer.append(batch(&[(3, 1), (4, 1)], 0), None).await;
    assert!(matches!(refused, Err(Error::OutOfOrder { first, last }) if first == last));
    writer.append(batch(&[(4, 1)], 0), None).await.expect("that was not the end of it");
}

#[tokio::test]
async fn without_a_writer_history_is_served_and_the_next_writer_waited_for() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let history: Vec<_> = (1..=30).map(|n| Arc::new(batch(&[(n, 1)], 50))).collect();
    store.inner.append(SHOP, &history).await.unwrap();
    let log = log_on(&store, &tasks, ROOMY);
    let mut earliest = log.reader(SHOP, Start::Earliest, None);
    let mut ahead = log.reader(SHOP, Start::After(position(32)), None);
    let mut now = log.reader(SHOP, Start::Now, None);
    let mut quiet = log.reader(SHOP, Start::Earliest, Some(vec![DatasetId(9)]));
    assert!(quiet.next().now_or_never().is_none());
    assert_eq!(quiet.position(), position(30), "it has looked, in one go");
    assert_eq!(within(now.locate()).await.unwrap(), position(30));
    assert_eq!(take(&mut earliest, 30).await, positions(1..=30));
    assert!(earliest.next().now_or_never().is_none());
    assert!(ahead.next().now_or_never().is_none());
    let mut writer = log.writer(SHOP).await.unwrap();
    assert_eq!(writer.last(), position(30));
    writer.append(batch(&[(31, 1), (32, 1), (33, 1)], 0), None).await.unwrap();
    assert_eq!(take(&mut now, 3).await, positions(31..=33));
    assert_eq!(take(&mut earliest, 3).await, positions(31..=33));
    assert_eq!(take(&mut ahead, 1).await, positions(33..=33));
    assert_eq!(ahead.position(), position(33));
}

#[tokio::test]
async fn a_position_older_than_the_log_is_refused_and_the_earliest_named() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let history: Vec<_> = (2..=9).map(|n| Arc::new(batch(&[(n, 1)], 0))).collect();
    store.inner.append(SHOP, &history).await.unwrap();
    let log = log_on(&store, &tasks, ROOMY);
    let mut untrimmed = log.reader(SHOP, Start::After(position(1)), None);
    assert_eq!(take(&mut untrimmed, 8).await, positions(2..=9));
    store.inner.trim(SHOP, position(4)).await.unwrap();
    for refused in [
        log.reader(SHOP, Start::After(position(3)), None).locate().await.unwrap_err(),
        log.reader(SHOP, Start::After(position(3)), None).next().await.unwrap_err(),
    ] {
        assert!(matches!(refused, Error::Trimmed { earliest } if earliest == position(4)));
    }
    let mut earliest = log.reader(SHOP, Start::Earliest, None);
    assert_eq!(take(&mut earliest, 5).await, positions(5..=9));
    let mut oldest = log.reader(SHOP, Start::After(position(4)), None);
    assert_eq!(take(&mut oldest, 5).await, positions(5..=9));
}

#[tokio::test]
async fn a_slice_has_only_what_was_asked_for_and_shares_the_bytes_if_it_can() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    let datasets = |ids: &[i32]| Some(ids.iter().map(|id| DatasetId(*id)).collect());
    let mut all = log.reader(SHOP, Start::Now, None);
    let mut inner = log.reader(SHOP, Start::Now, datasets(&[3, 2, 3]));
    let mut outer = log.reader(SHOP, Start::Now, datasets(&[1, 4]));
    let mut none = log.reader(SHOP, Start::Now, datasets(&[9]));
    let whole = batch(&[(1, 1), (2, 2), (3, 3), (4, 4)], 0);
    writer.append(whole.clone(), None).await.unwrap();
    assert_eq!(within(all.next()).await.unwrap().lines(), Some(whole.lines(0..4)));
    assert_eq!(within(inner.next()).await.unwrap().lines(), Some(whole.lines(1..3)));
    let slice = within(outer.next()).await.unwrap();
    assert_eq!((slice.lines(), slice.last()), (None, position(4)));
    let found: Vec<_> = slice.iter().collect();
    assert_eq!(found, [whole.entry(0).unwrap(), whole.entry(3).unwrap()]);
    assert_eq!(slice.entries().count(), 2);
    assert!(none.next().now_or_never().is_none());
    assert_eq!(none.position(), position(4), "it has looked");
}

#[tokio::test]
async fn a_large_batch_comes_in_slices() {
    let (store, tasks) = (Scripted::free(), Tasks::new());
    let log = log_on(&store, &tasks, ROOMY);
    let mut writer = log.writer(SHOP).await.unwrap();
    let mut reader = log.reader(SHOP, Start::Now, None);
    let changes: Vec<_> = (1..=10).map(|n| (n, 1)).collect();
    let whole = batch(&changes, 20_000);
    writer.append(whole.clone(), None).await.unwrap();
    let mut lines = Vec::new();
    for _ in 0..4 {
        let slice = within(reader.next()).await.unwrap().lines().unwrap();
        assert!(slice.len() <= 64 * 1024 + 100, "{}", slice.len());
        lines.extend_from_slice(&slice);
    }
    assert_eq!(lines, whole.lines(0..10));
}

#[tokio::test]
async fn a_reader_bears_a_store_that_fails_for_a_while() {
    /// Fails this many reads, then does as the store inside.
    struct Flaky(MemoryStore, Mutex<usize>);
    impl Store for Flaky {
        fn append<'a>(
            &'a self,
            source: SourceId,
            batches: &'a [Arc<Batch>],
        ) -> BoxFuture<'a, Result<(), Error>> {
            self.0.append(source, batches)
        }
        fn read<'a>(
            &'a self,
            source: SourceId,
            after: Position,
            datasets: Option<&'a [DatasetId]>,
            bytes: usize,
        ) -> BoxFuture<'a, Result<Page, Error>> {
            let mut failures = self.1.lock();
            if *failures == 0 {
                return self.0.read(source, after, datasets, bytes);
            }
            *failures -= 1;
            let error = Error::Database { retry: Retry::Later, source: "restarting".into() };
            Box::pin(std::future::ready(Err(error)))
        }
        rest_by!(0);
    }
    let store = Flaky(MemoryStore::default(), Mutex::new(2));
    store.append(SHOP, &[Arc::new(batch(&[(1, 1)], 0))]).await.unwrap();
    let log = Log::new(Arc::new(store), &Tasks::new(), Duration::ZERO);
    let mut reader = log.reader(SHOP, Start::Earliest, None);
    assert_eq!(take(&mut reader, 1).await, positions(1..=1));
}

/// One reader of the property test below.
#[derive(Debug, Clone)]
struct Plan {
    /// Opens when the writer has appended this many batches.
    opens: usize,
    /// `None` starts at the earliest, else after this change.
    after: Option<u64>,
    datasets: Option<Vec<i32>>,
    /// Yields between two slices.
    pace: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    let datasets = prop::option::of(prop::collection::vec(0..6i32, 1..4));
    (0..40usize, prop::option::of(0..150u64), datasets, 0..30usize)
        .prop_map(|(opens, after, datasets, pace)| Plan { opens, after, datasets, pace })
}

/// Batches as `(n, dataset)`, each change one number on from the last.
fn batches() -> impl Strategy<Value = Vec<Vec<(u64, i32)>>> {
    prop::collection::vec(prop::collection::vec(0..6i32, 1..8), 1..40).prop_map(|runs| {
        let mut n = 0;
        let mut number = |dataset| {
            n += 1;
            (n, dataset)
        };
        runs.into_iter().map(|run| run.into_iter().map(&mut number).collect()).collect()
    })
}

async fn every_reader_sees_its_changes(
    runs: Vec<Vec<(u64, i32)>>,
    plans: Vec<Plan>,
    store: Scripted,
    budget: Budget,
    rewrite_every: usize,
) {
    let (store, tasks) = (Arc::new(store), Tasks::new());
    let log = log_on(&store, &tasks, budget);
    let appended = tokio::sync::watch::Sender::new(0);
    let write = async {
        let mut writer = log.writer(SHOP).await.unwrap();
        for (index, run) in runs.iter().enumerate() {
            if index % rewrite_every == rewrite_every - 1 {
                drop(writer);
                writer = log.writer(SHOP).await.unwrap();
            }
            writer.append(batch(run, 20), Some(lsn(index as u64 + 1))).await.unwrap();
            appended.send_replace(index + 1);
        }
        confirmed(&writer, lsn(runs.len() as u64)).await;
        writer
    };
    let read = plans.iter().map(|plan| {
        let (log, runs, mut appended) = (log.clone(), &runs, appended.subscribe());
        async move {
            appended.wait_for(|count| *count >= plan.opens.min(runs.len())).await.unwrap();
            let wanted =
                |dataset: i32| plan.datasets.as_ref().is_none_or(|ids| ids.contains(&dataset));
            let expected: Vec<_> = runs
                .iter()
                .flatten()
                .filter(|(n, dataset)| {
                    plan.after.is_none_or(|after| *n > after) && wanted(*dataset)
                })
                .map(|(n, dataset)| (position(*n), DatasetId(*dataset)))
                .collect();
            let start = plan.after.map_or(Start::Earliest, |n| Start::After(position(n)));
            let ids = plan.datasets.clone().map(|ids| ids.into_iter().map(DatasetId).collect());
            let mut reader = log.reader(SHOP, start, ids);
            let mut found = Vec::new();
            while found.len() < expected.len() {
                let slice = reader.next().await.unwrap();
                for (entry, json) in slice.iter() {
                    assert!(json.starts_with(b"{\"n\":") && json.ends_with(b"}"));
                    found.push((entry.position, entry.dataset));
                }
                for _ in 0..plan.pace {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(found, expected);
            reader
        }
    });
    let (writer, readers) = futures::join!(write, futures::future::join_all(read));
    for mut reader in readers {
        assert!(reader.next().now_or_never().is_none_or(|slice| slice.is_err()), "nothing is left");
    }
    drop(writer);
    assert!(tasks.stop(DEADLINE).await);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_exactly_its_changes_in_order(
        runs in batches(),
        plans in prop::collection::vec(plan(), 1..8),
        yields in 0..8usize,
        tail in 0..4000usize,
        pending in 0..3000usize,
        rewrite_every in 2..30usize,
        threads: bool,
    ) {
        let mut store = Arc::into_inner(Scripted::free()).unwrap();
        store.yields = yields;
        let runtime = if threads {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
        } else {
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        };
        let budget = Budget { tail, pending };
        let work = every_reader_sees_its_changes(runs, plans, store, budget, rewrite_every);
        runtime.unwrap().block_on(within(work));
    }
}
