//! Feeds over a hand-made registry and a log in memory.

use std::convert::Infallible;
use std::time::Duration;

use chrono::Utc;
use futures::FutureExt;
use tokio::time::timeout;

use super::*;
use crate::log::{Batch, BatchBuilder, MemoryStore, Store, Writer};
use crate::registry::Snapshot;
use crate::registry::{Dataset, GuardState};
use crate::task::Tasks;
use crate::vocab::{DatasetId, DatasetName, Epoch, Lsn, Mode, Op, Position, SourceId};

const SHOP: SourceId = SourceId(1);
const ORDERS: DatasetId = DatasetId(10);
const INVOICES: DatasetId = DatasetId(11);

struct Fixture {
    desk: Desk,
    snapshot: Snapshot,
    store: Arc<MemoryStore>,
    tasks: Tasks,
}

impl Fixture {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        for (name, id, source_id) in [
            ("shop.public.orders", ORDERS, SHOP),
            ("shop.public.invoices", INVOICES, SHOP),
            ("crm.public.people", DatasetId(20), SourceId(2)),
        ] {
            let dataset = Dataset {
                id,
                name: self::name(name),
                source_id,
                owner: "orders".parse().unwrap(),
                mode: Mode::Enforce,
                description: None,
                tags: Vec::new(),
                columns: Default::default(),
                derived_from: Vec::new(),
                guard: GuardState::Installed,
                gaps: Vec::new(),
                created_at: Utc::now(),
            };
            snapshot.datasets.insert(dataset.name.clone(), Arc::new(dataset));
        }
        let (store, tasks) = (Arc::new(MemoryStore::default()), Tasks::new());
        let log = Log::new(Arc::<MemoryStore>::clone(&store), &tasks, Duration::ZERO);
        Self { desk: Desk::new(log, 3), snapshot, store, tasks }
    }

    async fn open(&self, datasets: &[&str], after: After) -> Result<Cursor, Error> {
        self.open_for(datasets, after, None).await
    }

    async fn open_for(
        &self,
        datasets: &[&str],
        after: After,
        ops: Option<Vec<Op>>,
    ) -> Result<Cursor, Error> {
        let datasets = datasets.iter().map(|text| name(text)).collect();
        let request = Request { datasets, after, ops, shape: Shape::default() };
        self.desk.open(&self.snapshot, &request, &Part::default()).await
    }

    async fn writer(&self) -> Writer {
        self.desk.log.writer(SHOP).await.unwrap()
    }
}

fn name(text: &str) -> DatasetName {
    text.parse().unwrap()
}

fn position(n: u32) -> Position {
    Position::new(Epoch::FIRST, Lsn::new(1000), n)
}

fn batch(changes: &[(u32, DatasetId, Op)]) -> Batch {
    let mut builder = BatchBuilder::new();
    for (n, dataset, op) in changes {
        let encode = |out: &mut Vec<u8>| {
            out.extend_from_slice(format!("{{\"n\":{n}}}").as_bytes());
            Ok::<_, Infallible>(())
        };
        builder.push(position(*n), *dataset, *op, encode).unwrap();
    }
    builder.finish().unwrap()
}

async fn next(cursor: &mut Cursor) -> Delivery {
    timeout(Duration::from_secs(30), cursor.next()).await.expect("in time").unwrap()
}

#[test]
fn places_to_start_are_parsed_or_explained() {
    assert_eq!("now".parse::<After>().unwrap(), After::Now);
    assert_eq!("earliest".parse::<After>().unwrap(), After::Earliest);
    assert_eq!("snapshot".parse::<After>().unwrap(), After::Snapshot);
    assert_eq!(position(3).to_string().parse::<After>().unwrap(), After::Position(position(3)));
    for (text, said) in [
        ("01-0~2~x", "malformed position in a snapshot"),
        ("yesterday", "\"yesterday\" is not a place to start; expected \"now\""),
        ("01-0-1", "\"01-0-1\" is not a place to start"),
    ] {
        let error = text.parse::<After>().unwrap_err();
        assert!(matches!(error, Error::Invalid(_)));
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_with_what_can() {
    let fixture = Fixture::new();
    let many: Vec<_> = vec!["shop.public.orders"; limits::FEED_DATASETS_MAX + 1];
    for (datasets, said) in [
        (&[][..], "expected 1 to 1000, got 0"),
        (&many, "expected 1 to 1000, got 1001"),
        (&["shop.public.gone"], "no dataset is named \"shop.public.gone\""),
        (&["shop.public.orders", "crm.public.people"], "open one feed per source"),
    ] {
        let error = fixture.open(datasets, After::Now).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let error =
        fixture.open_for(&["shop.public.orders"], After::Now, Some(vec![])).await.unwrap_err();
    assert!(error.to_string().contains("at least one of c, u, d, t, r"), "{error}");
}

#[tokio::test]
async fn as_many_feeds_as_allowed_are_open_and_a_refused_one_takes_no_place() {
    let fixture = Fixture::new();
    let orders = ["shop.public.orders"];
    let mut open = Vec::new();
    for _ in 0..3 {
        fixture.open(&["shop.public.gone"], After::Now).await.unwrap_err();
        open.push(fixture.open(&orders, After::Now).await.unwrap());
    }
    let full = fixture.open(&orders, After::Now).await.unwrap_err();
    assert!(matches!(full, Error::Full { limit: 3 }));
    open.pop();
    fixture.open(&orders, After::Now).await.expect("one has left");
}

#[tokio::test]
async fn a_position_the_log_has_lost_is_refused_with_the_earliest() {
    let fixture = Fixture::new();
    for n in 1..=3 {
        fixture.store.append(SHOP, &[Arc::new(batch(&[(n, ORDERS, Op::Create)]))]).await.unwrap();
    }
    fixture.store.trim(SHOP, position(2)).await.unwrap();
    let orders = ["shop.public.orders"];
    let gone = fixture.open(&orders, After::Position(position(1))).await.unwrap_err();
    assert!(matches!(gone, Error::Trimmed { earliest } if earliest == position(2)));
    for after in [After::Earliest, After::Position(position(2))] {
        let mut cursor = fixture.open(&orders, after).await.unwrap();
        assert_eq!(next(&mut cursor).await.last(), position(3));
    }
}

#[tokio::test]
async fn a_subscriber_gets_what_it_asked_for_and_nothing_else() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer().await;
    let mut orders = fixture.open(&["shop.public.orders"], After::Now).await.unwrap();
    let deletes = Some(vec![Op::Delete]);
    let both = ["shop.public.orders", "shop.public.invoices"];
    let mut deletes = fixture.open_for(&both, After::Now, deletes).await.unwrap();
    let first =
        batch(&[(1, ORDERS, Op::Create), (2, INVOICES, Op::Create), (3, ORDERS, Op::Update)]);
    writer.append(first, None).await.unwrap();
    let delivery = next(&mut orders).await;
    let found: Vec<_> = delivery.iter().collect();
    let expected = [
        (position(1), Op::Create, "{\"n\":1}".into()),
        (position(3), Op::Update, "{\"n\":3}".into()),
    ];
    assert_eq!(found, expected);
    assert_eq!(delivery.ndjson(), "{\"n\":1}\n{\"n\":3}\n");
    assert!(deletes.next().now_or_never().is_none(), "nothing of it is a delete");
    let second = batch(&[(4, INVOICES, Op::Delete), (5, ORDERS, Op::Create)]);
    writer.append(second, None).await.unwrap();
    let delivery = next(&mut deletes).await;
    assert_eq!((delivery.last(), delivery.iter().count()), (position(4), 1));
    assert_eq!(delivery.ndjson(), "{\"n\":4}\n");
    assert!(fixture.tasks.stop(Duration::from_secs(30)).await);
}

#[tokio::test]
async fn a_subscriber_gets_the_rows_and_columns_it_asked_for_and_others_get_all() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer().await;
    let shape = Shape {
        predicate: Some("n >= 2".parse().unwrap()),
        columns: Some(["n".to_owned()].into()),
        cloud_event: false,
    };
    let request =
        Request { datasets: vec![name("shop.public.orders")], after: After::Now, ops: None, shape };
    let mut some = fixture.desk.open(&fixture.snapshot, &request, &Part::default()).await.unwrap();
    let mut builder = BatchBuilder::new();
    for n in 1..=3 {
        let encode = |out: &mut Vec<u8>| {
            let event = format!("{{\"op\":\"c\",\"before\":null,\"after\":{{\"n\":{n},\"m\":0}}}}");
            out.extend_from_slice(event.as_bytes());
            Ok::<_, Infallible>(())
        };
        builder.push(position(n), ORDERS, Op::Create, encode).unwrap();
    }
    writer.append(builder.finish().unwrap(), None).await.unwrap();
    let delivery = next(&mut some).await;
    assert_eq!((delivery.last(), delivery.iter().count()), (position(3), 2));
    assert_eq!(
        delivery.ndjson(),
        "{\"op\":\"c\",\"before\":null,\"after\":{\"n\":2}}\n\
         {\"op\":\"c\",\"before\":null,\"after\":{\"n\":3}}\n"
    );
    assert!(
        delivery.sse().starts_with(b"id: 01-00000000000003E8-00000002\nevent: change\ndata: {")
    );
}

#[tokio::test]
async fn events_carry_their_position_and_lines_are_not_copied() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer().await;
    let mut cursor = fixture.open(&["shop.public.orders"], After::Now).await.unwrap();
    let batch = batch(&[(1, ORDERS, Op::Create), (2, ORDERS, Op::Delete)]);
    let lines = batch.lines(0..2);
    writer.append(batch, None).await.unwrap();
    let delivery = next(&mut cursor).await;
    assert_eq!(delivery.ndjson().as_ptr(), lines.as_ptr(), "the same memory");
    assert_eq!(
        delivery.sse(),
        "id: 01-00000000000003E8-00000001\nevent: change\ndata: {\"n\":1}\n\n\
         id: 01-00000000000003E8-00000002\nevent: change\ndata: {\"n\":2}\n\n"
    );
    let first = delivery.sse();
    let mut beside =
        fixture.open(&["shop.public.orders"], After::Position(position(0))).await.unwrap();
    let second = next(&mut beside).await.sse();
    assert_eq!(second.as_ptr(), first.as_ptr(), "written once for all subscribers");
    let mut resumed =
        fixture.open(&["shop.public.orders"], After::Position(position(1))).await.unwrap();
    let delivery = next(&mut resumed).await;
    assert_eq!(delivery.ndjson(), "{\"n\":2}\n");
    assert_eq!(
        delivery.sse(),
        "id: 01-00000000000003E8-00000002\nevent: change\ndata: {\"n\":2}\n\n"
    );
    assert!(second.ends_with(&delivery.sse()), "what another wants less of stays as it is");
}

#[tokio::test]
async fn a_reader_that_is_cut_is_told_of_the_gap_and_goes_on() {
    let mut fixture = Fixture::new();
    let source = crate::registry::Source {
        id: SHOP,
        name: "shop".parse().unwrap(),
        url: "postgresql://app@localhost/shopdb".to_owned(),
        epoch: Epoch::FIRST,
        leaving: false,
        created_at: Utc::now(),
    };
    fixture.snapshot.sources.insert(source.name.clone(), Arc::new(source));
    for n in 1..=6 {
        let change = Arc::new(batch(&[(n, ORDERS, Op::Create)]));
        fixture.store.append(SHOP, &[change]).await.unwrap();
    }
    let both = ["shop.public.orders", "shop.public.invoices"];
    let only_deletes = Some(vec![Op::Delete]);
    let mut cursor = fixture.open(&both, After::Earliest).await.unwrap();
    let mut deletes = fixture.open_for(&both, After::Earliest, only_deletes).await.unwrap();
    fixture.store.cut(SHOP, position(4), log::GapReason::Size).await.unwrap();

    let told = next(&mut cursor).await;
    let events: Vec<_> = told.iter().collect();
    let [(at, op, json)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((*at, *op), (position(4), Op::Gap));
    assert!(told.sse().starts_with(format!("id: {}\nevent: gap\n", position(4)).as_bytes()));
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["source"]["db"], "shopdb");
    assert_eq!(
        json["gap"],
        serde_json::json!({
            "reason": "size",
            "from": Position::MIN.to_string(),
            "to": position(4).to_string(),
            "datasets": ["shop.public.invoices", "shop.public.orders"],
        })
    );
    let after: Vec<_> = next(&mut cursor).await.iter().map(|change| change.0).collect();
    assert_eq!(after, [position(5)]);
    // Nobody may miss it by choosing among changes.
    assert_eq!(next(&mut deletes).await.iter().next().unwrap().1, Op::Gap);
    let gone = fixture.open(&both, After::Position(position(1))).await.unwrap_err();
    assert!(matches!(gone, Error::Trimmed { earliest } if earliest == position(4)));
}

#[tokio::test]
async fn a_part_ends_where_it_should() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer().await;
    for n in 1..=3 {
        writer.append(batch(&[(n, ORDERS, Op::Create)]), None).await.unwrap();
    }
    let open = async |until| {
        let datasets = vec![name("shop.public.orders")];
        let shape = Shape::default();
        let request = Request { datasets, after: After::Earliest, ops: None, shape };
        let part = Part { until: Some(until), key: None };
        fixture.desk.open(&fixture.snapshot, &request, &part).await.unwrap()
    };
    let read = async |cursor: &mut Cursor| {
        let mut found = Vec::new();
        while let Some(delivery) =
            timeout(Duration::from_secs(30), cursor.try_next()).await.expect("in time").unwrap()
        {
            found.extend(delivery.iter().map(|change| change.0));
        }
        found
    };
    let mut until_now = open(Until::Now).await;
    let mut until_two = open(Until::Position(position(2))).await;
    let mut until_five = open(Until::Position(position(5))).await;
    writer.append(batch(&[(4, ORDERS, Op::Create)]), None).await.unwrap();
    assert_eq!(read(&mut until_now).await, [1, 2, 3].map(position));
    assert_eq!(read(&mut until_two).await, [1, 2].map(position));
    drop((until_now, until_two));
    // An end that is still to come is waited for, also when it is another dataset's.
    let (all, appended) = tokio::join!(read(&mut until_five), async {
        writer.append(batch(&[(5, INVOICES, Op::Create)]), None).await
    });
    appended.unwrap();
    assert_eq!(all, [1, 2, 3, 4].map(position));
    let mut nothing = open(Until::Position(Position::MIN)).await;
    assert!(read(&mut nothing).await.is_empty());
}
