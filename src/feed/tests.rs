//! Feeds over a hand-made registry and a log in memory.

use std::convert::Infallible;
use std::time::Duration;

use chrono::Utc;
use futures::FutureExt;
use tokio::time::timeout;

use super::*;
use crate::log::{Batch, BatchBuilder, MemoryStore, Store, Writer};
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
        self.desk
            .open(&self.snapshot, &Request { datasets, after, ops, shape: Shape::default() })
            .await
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
    assert_eq!(position(3).to_string().parse::<After>().unwrap(), After::Position(position(3)));
    for (text, said) in [
        ("snapshot", "does not offer snapshots; expected \"now\", \"earliest\" or a position"),
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
    let mut some = fixture.desk.open(&fixture.snapshot, &request).await.unwrap();
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
    let mut resumed =
        fixture.open(&["shop.public.orders"], After::Position(position(1))).await.unwrap();
    assert_eq!(next(&mut resumed).await.ndjson(), "{\"n\":2}\n");
}
