//! The record of violations.

use cadastre::registry::{NewViolation, Page, Registry, Verdict, ViolationFilter};
use cadastre::vocab::{Epoch, Lsn, SourceId};
use chrono::DateTime;

use super::{migrated, open, shop};

fn attempt(source: SourceId, lsn: u64, dataset: &str, service: Option<&str>) -> NewViolation {
    NewViolation {
        source_id: source,
        epoch: Epoch::FIRST,
        lsn: Lsn::new(lsn),
        at: DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a valid time"),
        verdict: if lsn.is_multiple_of(2) { Verdict::Observed } else { Verdict::Rejected },
        operation: "INSERT".to_owned(),
        dataset: dataset.to_owned(),
        service: service.map(str::to_owned),
        role: "billing_app".to_owned(),
        login: "billing_login".to_owned(),
        application: Some("psql".to_owned()),
        client: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

async fn lsns(registry: &Registry, filter: &ViolationFilter, page: Page<i64>) -> Vec<u64> {
    let found = registry.violations(filter, page).await.expect("a page");
    found.iter().map(|violation| violation.report.lsn.get()).collect()
}

#[tokio::test]
async fn what_is_replayed_is_recorded_once() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let source = registry.snapshot().sources[&"shop".parse().unwrap()].id;
    let mut live = registry.violations_live();
    let seen = |lsn| attempt(source, lsn, "shop.public.orders", Some("billing"));
    // The highest bit of an LSN survives the signed column.
    let first = [seen(3), seen(u64::MAX - 1)];
    let recorded = registry.violations_record(&first).await.unwrap();
    assert_eq!(recorded.iter().map(|it| it.report.clone()).collect::<Vec<_>>(), first);
    let again = [seen(3), seen(4), seen(u64::MAX - 1)];
    let recorded = registry.violations_record(&again).await.unwrap();
    assert_eq!(recorded.iter().map(|it| it.report.lsn.get()).collect::<Vec<_>>(), [4]);
    let mut next_epoch = seen(3);
    next_epoch.epoch = Epoch::new(2);
    assert_eq!(registry.violations_record(&[next_epoch]).await.unwrap().len(), 1);
    assert!(registry.violations_record(&[]).await.unwrap().is_empty());
    let mut heard = vec![];
    while let Ok(violation) = live.try_recv() {
        heard.push((violation.report.epoch.get(), violation.report.lsn.get()));
    }
    assert_eq!(heard, [(1, 3), (1, u64::MAX - 1), (1, 4), (2, 3)]);
}

#[tokio::test]
async fn violations_are_listed_newest_first_by_page_and_filter() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let source = registry.snapshot().sources[&"shop".parse().unwrap()].id;
    let new: Vec<_> = (1..=2_500)
        .map(|lsn| match lsn % 4 {
            0 => attempt(source, lsn, "shop.public.invoices", None),
            _ => attempt(source, lsn, "shop.public.orders", Some("billing")),
        })
        .collect();
    assert_eq!(registry.violations_record(&new).await.unwrap().len(), 2_500);
    let all = ViolationFilter::default();
    assert_eq!(lsns(&registry, &all, Page { first: 3, after: None }).await, [2500, 2499, 2498]);
    let page = registry.violations(&all, Page { first: 3, after: None }).await.unwrap();
    let after = Some(page.last().unwrap().id);
    assert_eq!(lsns(&registry, &all, Page { first: 2, after }).await, [2497, 2496]);
    let filter = ViolationFilter {
        dataset: Some("shop.public.orders".parse().unwrap()),
        service: Some("billing".parse().unwrap()),
        verdict: Some(Verdict::Observed),
    };
    assert_eq!(lsns(&registry, &filter, Page { first: 2, after: None }).await, [2498, 2494]);
    let filter = ViolationFilter { service: Some("orders".parse().unwrap()), ..all };
    assert!(lsns(&registry, &filter, Page { first: 9, after: None }).await.is_empty());
}
