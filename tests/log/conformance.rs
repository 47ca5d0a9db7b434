//! The contract of a store, checked on every implementation. Each part has a source of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use cadastre::log::{Batch, Digest, Error, Extent, GapReason, Key, MemoryStore, Store, Totals};
use cadastre::vocab::{DatasetId, Position, SourceId};

use super::{batch, changes, position, read_all, told};
use chrono::DateTime;

/// Checks the whole contract on an empty store.
pub(super) async fn conforms(store: &dyn Store) {
    an_empty_log_is_readable(store, SourceId(1)).await;
    changes_read_back_as_appended(store, SourceId(2)).await;
    order_is_enforced_and_appends_are_atomic(store, SourceId(3)).await;
    pages_are_bounded_and_complete(store, SourceId(4)).await;
    other_datasets_are_skipped(store, SourceId(5)).await;
    trimming_moves_the_beginning_and_never_the_end(store, SourceId(6)).await;
    of_competing_appends_one_succeeds(store, SourceId(7)).await;
    large_batches_are_kept_whole(store, SourceId(8)).await;
    a_moment_is_where_the_first_later_commit_stands(store, SourceId(9)).await;
    the_changes_of_a_row_are_all_among_those_read(store, SourceId(10)).await;
    who_protects_what_is_remembered(store, SourceId(11)).await;
    the_oldest_are_found_by_their_size(store, SourceId(12)).await;
    a_proof_adds_up_what_lies_between(store, SourceId(13)).await;
    let extent = store.extent(SourceId(1)).await.unwrap();
    assert_eq!(extent.last, Position::MIN, "sources do not see each other");
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    conforms(&MemoryStore::default()).await;
}

async fn an_empty_log_is_readable(store: &dyn Store, source: SourceId) {
    let nothing = Extent { trimmed: Position::MIN, first: None, last: Position::MIN };
    assert_eq!(store.extent(source).await.unwrap(), nothing);
    store.append(source, &[]).await.unwrap();
    store.trim(source, Position::MAX).await.unwrap();
    assert_eq!(store.extent(source).await.unwrap(), nothing);
    for after in [Position::MIN, position(5)] {
        let page = store.read(source, after, None, 1000).await.unwrap();
        assert!(page.batches.is_empty());
        assert_eq!(page.examined, after);
    }
}

async fn changes_read_back_as_appended(store: &dyn Store, source: SourceId) {
    let appended = [batch(&[(2, 1), (3, 2), (4, 1)], 0), batch(&[(6, 9)], 5000)];
    store.append(source, &appended).await.unwrap();
    let third = [batch(&[(7, 1), (8, 1)], 10)];
    store.append(source, &third).await.unwrap();
    let all = changes(&[appended.as_slice(), &third].concat());
    for after in 0..9 {
        let after = position(after);
        let batches = read_all(store, source, after, None, 1 << 20).await;
        let mut found = changes(&batches);
        found.retain(|change| change.0 > after);
        let mut expected = all.clone();
        expected.retain(|change| change.0 > after);
        assert_eq!(found, expected);
        assert!(batches.first().is_none_or(|batch| batch.last() > after));
    }
    let ahead = store.read(source, position(99), None, 1000).await.unwrap();
    assert_eq!((ahead.batches.len(), ahead.examined), (0, position(99)));
    let extent = store.extent(source).await.unwrap();
    let first = Some(position(2));
    assert_eq!(extent, Extent { trimmed: Position::MIN, first, last: position(8) });
}

async fn order_is_enforced_and_appends_are_atomic(store: &dyn Store, source: SourceId) {
    store.append(source, &[batch(&[(5, 1), (6, 1)], 0)]).await.unwrap();
    for refused in [
        vec![batch(&[(6, 1)], 0)],
        vec![batch(&[(2, 1)], 0)],
        vec![batch(&[(6, 1), (7, 1)], 0)],
        vec![batch(&[(4, 1), (9, 1)], 0)],
        vec![batch(&[(7, 1)], 0), batch(&[(7, 1)], 0)],
        vec![batch(&[(7, 1)], 2 << 20), batch(&[(9, 1)], 0), batch(&[(8, 1)], 0)],
    ] {
        let error = store.append(source, &refused).await.unwrap_err();
        let Error::OutOfOrder { first, last } = error else { panic!("{error}") };
        assert!(first <= last);
    }
    let error = store.append(source, &[batch(&[(3, 1)], 0)]).await.unwrap_err();
    assert!(
        matches!(error, Error::OutOfOrder { first, last } if first == position(3) && last == position(6))
    );
    let batches = read_all(store, source, Position::MIN, None, 1 << 20).await;
    assert_eq!(changes(&batches).len(), 2, "nothing of what was refused is there");
    store.append(source, &[batch(&[(7, 1)], 0)]).await.unwrap();
}

async fn pages_are_bounded_and_complete(store: &dyn Store, source: SourceId) {
    let appended: Vec<_> = (0..20).map(|n| batch(&[(n, 1)], 1000)).collect();
    for batch in &appended {
        store.append(source, std::slice::from_ref(batch)).await.unwrap();
    }
    let page = store.read(source, Position::MIN, None, 3000).await.unwrap();
    assert!((2..=4).contains(&page.batches.len()), "{}", page.batches.len());
    for bytes in [0, 1, 3000, usize::MAX] {
        let batches = read_all(store, source, Position::MIN, None, bytes).await;
        assert_eq!(changes(&batches), changes(&appended));
    }
}

async fn other_datasets_are_skipped(store: &dyn Store, source: SourceId) {
    let rare = [batch(&[(3, 7), (4, 1)], 0), batch(&[(11, 1), (12, 7)], 0)];
    for n in 0..15 {
        let common = batch(&[(n, 1)], 0);
        let chunk = rare.iter().find(|batch| batch.first() == position(n));
        if n != 4 && n != 12 {
            store.append(source, &[Arc::clone(chunk.unwrap_or(&common))]).await.unwrap();
        }
    }
    let wanted = [DatasetId(7), DatasetId(8)];
    let batches = read_all(store, source, Position::MIN, Some(&wanted), 1).await;
    assert_eq!(changes(&batches), changes(&rare));
    let page = store.read(source, position(12), Some(&wanted), 1000).await.unwrap();
    assert_eq!((page.batches.len(), page.examined), (0, position(14)));
    let page = store.read(source, Position::MIN, Some(&[]), 1000).await.unwrap();
    assert_eq!((page.batches.len(), page.examined), (0, position(14)));
}

async fn trimming_moves_the_beginning_and_never_the_end(store: &dyn Store, source: SourceId) {
    let trimmed_at = async |after: Position| match store.read(source, after, None, 1000).await {
        Err(Error::Trimmed { earliest }) => Some(earliest),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    let appended: Vec<Arc<Batch>> =
        (1..=4).map(|n| batch(&[(n * 10, 1), (n * 10 + 5, 1)], 0)).collect();
    for batch in &appended {
        store.append(source, std::slice::from_ref(batch)).await.unwrap();
    }
    store.trim(source, position(12)).await.unwrap();
    assert_eq!(trimmed_at(Position::MIN).await, None, "a batch that goes on is kept");
    store.trim(source, position(27)).await.unwrap();
    assert_eq!(trimmed_at(position(24)).await, Some(position(25)));
    assert_eq!(trimmed_at(position(25)).await, None);
    let extent = store.extent(source).await.unwrap();
    let first = Some(position(30));
    assert_eq!(extent, Extent { trimmed: position(25), first, last: position(45) });
    let held = read_all(store, source, position(25), None, 1 << 20).await;
    assert_eq!(changes(&held), changes(&appended[2..]));
    store.trim(source, position(26)).await.unwrap();
    assert_eq!(store.extent(source).await.unwrap(), extent, "it never goes back");
    store.trim(source, Position::MAX).await.unwrap();
    let last = position(45);
    assert_eq!(store.extent(source).await.unwrap(), Extent { trimmed: last, first: None, last });
    assert_eq!(trimmed_at(position(44)).await, Some(last));
    let page = store.read(source, last, None, 1000).await.unwrap();
    assert_eq!((page.batches.len(), page.examined), (0, last));
    let old = store.append(source, &[batch(&[(45, 1)], 0)]).await;
    assert!(matches!(old, Err(Error::OutOfOrder { .. })), "what was trimmed still counts");
    store.append(source, &[batch(&[(46, 1)], 0)]).await.unwrap();
    assert_eq!(read_all(store, source, last, None, 1000).await.len(), 1);
}

async fn of_competing_appends_one_succeeds(store: &dyn Store, source: SourceId) {
    for round in 0..5 {
        let rivals: Vec<_> = (0..4)
            .map(|rival| [batch(&[(round * 10 + 1, rival), (round * 10 + 2, rival)], 0)])
            .collect();
        let appends = rivals.iter().map(|rival| store.append(source, rival));
        let results = futures::future::join_all(appends).await;
        let won: Vec<_> =
            results.iter().zip(&rivals).filter(|(result, _)| result.is_ok()).collect();
        assert_eq!(won.len(), 1, "{results:?}");
        for refused in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(refused, Error::OutOfOrder { .. }), "{refused}");
        }
        let after = position(round * 10);
        assert_eq!(changes(&read_all(store, source, after, None, 1000).await), changes(won[0].1));
    }
}

async fn a_moment_is_where_the_first_later_commit_stands(store: &dyn Store, source: SourceId) {
    let at = async |ms: i64| {
        store.position_at(source, DateTime::from_timestamp_millis(ms).unwrap()).await
    };
    assert_eq!(at(0).await.unwrap(), None, "there is nothing yet");
    store.append(source, &[told(&[(1, 1, 1, 1000), (2, 1, 2, 3000)])]).await.unwrap();
    // Commits are not in the order of their clocks.
    store.append(source, &[told(&[(3, 2, 3, 2000)])]).await.unwrap();
    store.append(source, &[told(&[(4, 1, 4, 5000)])]).await.unwrap();
    for (ms, first) in [(0, 1), (1000, 1), (1001, 2), (2000, 2), (3000, 2), (3001, 4), (5000, 4)] {
        let after = at(ms).await.unwrap().unwrap();
        let read = changes(&read_all(store, source, after, None, 1 << 20).await);
        let first_read = read.iter().find(|change| change.0 > after).unwrap().0;
        assert_eq!(first_read, position(first), "{ms}");
    }
    assert_eq!(at(5001).await.unwrap(), None);
    store.trim(source, position(2)).await.unwrap();
    let error = at(3000).await.unwrap_err();
    assert!(matches!(error, Error::Trimmed { earliest } if earliest == position(2)), "{error}");
    assert!(at(3001).await.unwrap().is_some());
}

async fn the_changes_of_a_row_are_all_among_those_read(store: &dyn Store, source: SourceId) {
    for n in 0..30 {
        store.append(source, &[told(&[(n, 1, n % 10, 0)])]).await.unwrap();
    }
    // What is not marked, or concerns every row, is never skipped.
    store.append(source, &[batch(&[(30, 1)], 0)]).await.unwrap();
    store.append(source, &[told(&[(31, 2, 7, 0)])]).await.unwrap();
    let columns = store.key_columns(source, DatasetId(1)).await.unwrap();
    assert_eq!(columns, Some(vec!["id".to_owned()]));
    assert_eq!(store.key_columns(source, DatasetId(9)).await.unwrap(), None);
    for text in ["7", "\"7\"", "{\"id\":7}", "{\"id\":7.0}", "{\"id\":7,\"unmarked\":1}"] {
        let key = Key::parse(text, columns.as_deref()).unwrap();
        let (mut found, mut after) = (Vec::new(), Position::MIN);
        loop {
            let page = store.read_row(source, after, DatasetId(1), &key, 200).await.unwrap();
            found.extend(changes(&page.batches).into_iter().map(|change| change.0));
            if page.batches.is_empty() {
                assert_eq!(page.examined, position(31));
                break;
            }
            after = page.examined;
        }
        for n in [7, 17, 27, 30] {
            assert!(found.contains(&position(n)), "{text}: {n} is missing");
        }
        assert!(!found.contains(&position(31)), "of another dataset");
    }
}

async fn who_protects_what_is_remembered(store: &dyn Store, source: SourceId) {
    store.protect(source, "slow", position(5)).await.unwrap();
    store.protect(source, "fast", position(8)).await.unwrap();
    let holders = async || {
        let found = store.protections(source).await.unwrap();
        found.into_iter().map(|it| (it.holder, it.position)).collect::<Vec<_>>()
    };
    let of = |holder: &str, n| (holder.to_owned(), position(n));
    assert_eq!(holders().await, [of("slow", 5), of("fast", 8)]);
    store.protect(source, "slow", position(9)).await.unwrap();
    assert_eq!(holders().await, [of("fast", 8), of("slow", 9)]);
    store.unprotect(source, "fast").await.unwrap();
    store.unprotect(source, "nobody").await.unwrap();
    assert_eq!(holders().await, [of("slow", 9)]);
}

async fn the_oldest_are_found_by_their_size(store: &dyn Store, source: SourceId) {
    assert_eq!(store.freeing(source, 1).await.unwrap(), None);
    assert_eq!(store.totals(source).await.unwrap(), Totals::default());
    for n in 1..=4 {
        store.append(source, &[batch(&[(n, 1), (n + 10, 1)][..1], 3000)]).await.unwrap();
    }
    let totals = store.totals(source).await.unwrap();
    assert_eq!((totals.changes, totals.held), (4, 4));
    let each = totals.bytes / 4;
    assert!((1000..4000).contains(&each), "{each}");
    assert_eq!(store.freeing(source, 1).await.unwrap(), Some(position(1)));
    assert_eq!(store.freeing(source, each + each / 2).await.unwrap(), Some(position(2)));
    assert_eq!(store.freeing(source, 100 * each).await.unwrap(), None);
    let days = store.days().await.unwrap();
    let ours: Vec<_> = days.iter().filter(|day| day.source == source).collect();
    assert_eq!(ours.iter().map(|day| day.changes).sum::<u64>(), 4);
    assert_eq!(ours.last().unwrap().last, position(4));
    assert_eq!(store.cut_reason(source).await.unwrap(), GapReason::Retention);
    store.cut(source, position(2), GapReason::Size).await.unwrap();
    assert_eq!(store.cut_reason(source).await.unwrap(), GapReason::Size);
    store.sweep().await.unwrap();
    let totals = store.totals(source).await.unwrap();
    assert_eq!((totals.changes, totals.held), (4, 2), "what was held once still counts");
    assert_eq!(store.freeing(source, 1).await.unwrap(), Some(position(3)));
    store.prepare().await.unwrap();
}

async fn a_proof_adds_up_what_lies_between(store: &dyn Store, source: SourceId) {
    let appended = [
        told(&[(1, 1, 1, 0), (2, 2, 1, 0), (3, 1, 2, 0)]),
        told(&[(5, 1, 3, 0)]),
        told(&[(6, 2, 4, 0), (7, 2, 5, 0)]),
    ];
    for batch in &appended {
        store.append(source, std::slice::from_ref(batch)).await.unwrap();
    }
    let prove = async |from, to| store.prove(source, from, to, 1 << 20).await.unwrap();
    for (from, to) in [(0, 9), (1, 6), (2, 2), (3, 5), (4, 4), (7, 9)] {
        let mut expected = BTreeMap::<DatasetId, (u64, Digest)>::new();
        for (at, dataset, _, line) in changes(&appended) {
            if position(from) < at && at <= position(to) {
                let sum = expected.entry(dataset).or_default();
                sum.0 += 1;
                sum.1 += Digest::of_line(&line);
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|(id, (n, sum))| (id, n, sum)).collect();
        let proof = prove(position(from), position(to)).await;
        assert_eq!(proof.datasets, expected, "{from} to {to}");
        assert_eq!((proof.complete, proof.broken), (true, None), "{from} to {to}");
    }
    let all = prove(Position::MIN, Position::MAX).await;
    assert_eq!((all.upto, all.chunks, all.complete), (position(7), 3, true));
    store.trim(source, position(3)).await.unwrap();
    let error = store.prove(source, position(1), Position::MAX, 1 << 20).await.unwrap_err();
    assert!(matches!(error, Error::Trimmed { earliest } if earliest == position(3)));
    assert_eq!(prove(position(3), Position::MAX).await.chunks, 2);
}

async fn large_batches_are_kept_whole(store: &dyn Store, source: SourceId) {
    let appended = [
        batch(&[(1, 1)], 3 << 20),
        batch(&[(2, 1)], 100),
        batch(&[(3, 1), (4, 2)], 600_000),
        batch(&[(6, 1)], 100),
    ];
    store.append(source, &appended).await.unwrap();
    let batches = read_all(store, source, Position::MIN, None, 1 << 20).await;
    assert!(changes(&batches) == changes(&appended), "large changes differ");
}
