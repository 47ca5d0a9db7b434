//! Whole streams through the assembler: positions, writers, rows, and what may not happen.

mod evolve;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::*;
use crate::capture::decode::encode::{self, Cell, text};
use crate::capture::decode::{Dialect, decode};
use crate::capture::envelope::CHANGE_SCHEMA;
use crate::registry::{Dataset, GuardGap, GuardState, Verdict};
use crate::vocab::{Mode, Retry};

const ORDERS: u32 = 100;
const OTHER: u32 = 101;
const COMMIT: u64 = 0x16C_A548;
/// 2026-05-28T20:26:40Z in PostgreSQL's time.
const COMMITTED: i64 = (1_780_000_000_000 - 946_684_800_000) * 1_000;
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(Default)]
struct Changes(Vec<(Position, DatasetId, Op, String)>);

impl Sink for Changes {
    fn push(
        &mut self,
        position: Position,
        dataset: DatasetId,
        op: Op,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut out = Vec::new();
        encode(&mut out);
        self.0.push((position, dataset, op, String::from_utf8(out).unwrap()));
    }
}

impl Changes {
    fn all(&self) -> Vec<Value> {
        self.0.iter().map(|change| serde_json::from_str(&change.3).unwrap()).collect()
    }

    /// What happened to rows.
    fn events(&self) -> Vec<Value> {
        self.all().into_iter().filter(|event| event.get("op").is_some()).collect()
    }

    fn ordinals(&self) -> Vec<u32> {
        self.0.iter().map(|change| change.0.ordinal()).collect()
    }
}

fn registry(guard: GuardState) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    let name: DatasetName = "shop.public.orders".parse().unwrap();
    let dataset = Dataset {
        id: DatasetId(5),
        name: name.clone(),
        source_id: SourceId(1),
        owner: "orders".parse().unwrap(),
        mode: Mode::Enforce,
        description: None,
        tags: vec![],
        columns: [].into(),
        derived_from: vec![],
        guard,
        gaps: vec![],
        created_at: DateTime::<Utc>::UNIX_EPOCH,
    };
    let dataset = Arc::new(dataset);
    snapshot.datasets_by_id.insert(dataset.id, Arc::clone(&dataset));
    snapshot.datasets.insert(name, dataset);
    for (role, service) in [("orders_app", "orders"), ("billing_app", "billing")] {
        let role = ("shop".parse().unwrap(), role.parse().unwrap());
        snapshot.service_by_role.insert(role, service.parse().unwrap());
    }
    Arc::new(snapshot)
}

struct Stream {
    assembler: Assembler,
    changes: Changes,
    news: Vec<NewEvolution>,
}

impl Stream {
    /// After the definitions of both tables: `orders (id int8 key, status text, note text)`.
    fn new(seen: Position) -> Self {
        Self::knowing(seen, KnownTables::default())
    }

    /// The same with what is known of the tables.
    fn knowing(seen: Position, known: KnownTables) -> Self {
        let origin = StreamOrigin {
            source_id: SourceId(1),
            source: "shop".parse().unwrap(),
            database: "shopdb".to_owned(),
            epoch: Epoch::FIRST,
        };
        let assembler = Assembler::new(origin, registry(GuardState::Installed), seen, known);
        let mut stream = Self { assembler, changes: Changes::default(), news: vec![] };
        for (oid, name) in [(ORDERS, &b"orders"[..]), (OTHER, b"other")] {
            stream.describe(oid, name, b'd');
        }
        stream
    }

    fn describe(&mut self, oid: u32, name: &[u8], identity: u8) {
        let all = identity == b'f';
        let columns = [
            (true, b"id".to_vec(), 20, -1),
            (all, b"status".to_vec(), 25, -1),
            (all, b"note".to_vec(), 25, -1),
        ];
        let relation = encode::relation(oid, (b"public", name), identity, &columns);
        assert_eq!(self.feed(&relation), Output::Nothing);
    }

    fn try_feed(&mut self, bytes: &[u8]) -> Result<Output, AssembleError> {
        let received = Received { wal: Lsn::new(77), now_ms: 1_780_000_000_004 };
        let message = decode(bytes, Dialect::newest(180_000, true));
        let message =
            message.map_err(|cause| AssembleError::Decode { wal: received.wal, cause })?;
        self.assembler.take(received, message, &mut self.changes)
    }

    fn feed(&mut self, bytes: &[u8]) -> Output {
        self.try_feed(bytes).unwrap()
    }

    /// One transaction; the number of changes it pushed.
    fn transaction(&mut self, messages: &[Vec<u8>]) -> u32 {
        assert_eq!(self.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
        for message in messages {
            match self.feed(message) {
                Output::Nothing => {}
                Output::Evolved(news) => self.news.extend(news),
                other => panic!("{other:?}"),
            }
        }
        let output = self.feed(&encode::commit(COMMIT, COMMIT + 8, COMMITTED));
        let Output::Committed { end, pushed } = output else { panic!("{output:?}") };
        assert_eq!(end, Lsn::new(COMMIT + 8));
        pushed
    }
}

fn row(id: &str, status: &str) -> [Cell; 3] {
    [text(id), text(status), Cell::Null]
}

fn writer_message(message: &Value) -> Vec<u8> {
    encode::logical(true, 1, b"cadastre.writer", message.to_string().as_bytes())
}

#[test]
fn the_documented_event_is_what_a_subscriber_gets() {
    let mut stream = Stream::new(Position::MIN);
    stream.describe(ORDERS, b"orders", b'f');
    let mark = json!({"v": 1, "dataset": "shop.public.orders", "role": "orders_app",
        "login": "orders_app", "traceparent": TRACE, "reason": "trace"});
    let old = [text("7"), text("open"), Cell::Unchanged];
    let new = [text("7"), text("paid"), Cell::Unchanged];
    let pushed = stream.transaction(&[
        encode::insert(OTHER, &row("1", "x")),
        encode::insert(OTHER, &row("2", "x")),
        writer_message(&mark),
        encode::update(ORDERS, Some((b'O', &old)), &new),
    ]);
    assert_eq!(pushed, 1);
    let expected = concat!(
        r#"{"op":"u","before":{"id":7,"status":"open"},"after":{"id":7,"status":"paid"},"#,
        r#""source":{"connector":"cadastre","name":"shop","db":"shopdb","schema":"public","#,
        r#""table":"orders","lsn":23897416,"txId":741,"ts_ms":1780000000000,"snapshot":"false"},"#,
        r#""transaction":{"id":"741:23897416","total_order":3},"ts_ms":1780000000004,"#,
        r#""dataset":"shop.public.orders","schema_version":1,"position":"01-00000000016CA548-00000003","#,
        r#""writer":{"service":"orders","role":"orders_app","verified":true},"#,
        r#""traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","#,
        r#""unchanged":["note"]}"#,
    );
    let (position, dataset, op, event) = &stream.changes.0[0];
    assert_eq!(event, expected);
    assert_eq!((*dataset, *op), (DatasetId(5), Op::Update));
    assert_eq!(position.to_string(), "01-00000000016CA548-00000003");
}

#[test]
fn events_of_every_kind_look_as_promised() {
    let mut stream = Stream::new(Position::MIN);
    stream.transaction(&[
        encode::insert(ORDERS, &row("1", "open")),
        encode::update(ORDERS, None, &row("1", "paid")),
        encode::update(ORDERS, Some((b'K', &[text("1"), Cell::Null, Cell::Null])), &row("2", "")),
        encode::delete(ORDERS, (b'K', &[text("2"), Cell::Null, Cell::Null])),
        encode::truncate(&[OTHER, ORDERS], 1),
    ]);
    let events: Vec<&str> = stream.changes.0.iter().map(|change| change.3.as_str()).collect();
    let events = events.join("\n");
    insta::assert_snapshot!(events);
    assert_eq!(stream.changes.ordinals(), [1, 2, 3, 4, 6]);
}

#[test]
fn a_value_the_new_row_lacks_is_taken_from_the_old_row() {
    let mut stream = Stream::new(Position::MIN);
    stream.describe(ORDERS, b"orders", b'f');
    let old = [text("1"), text("open"), text("long")];
    let new = [text("1"), text("paid"), Cell::Unchanged];
    let key = [text("9"), Cell::Null, Cell::Null];
    stream.transaction(&[
        encode::update(ORDERS, Some((b'O', &old)), &new),
        encode::update(ORDERS, None, &new),
        // A key that is itself stored out of line; what the key tuple says of `note` is no value.
        encode::update(ORDERS, Some((b'K', &key)), &[Cell::Unchanged, text("x"), Cell::Unchanged]),
    ]);
    let events = stream.changes.events();
    assert_eq!(events[0]["after"], json!({"id": 1, "status": "paid", "note": "long"}));
    assert_eq!(events[0].get("unchanged"), None);
    assert_eq!(events[1]["after"], json!({"id": 1, "status": "paid"}));
    assert_eq!(events[1]["unchanged"], json!(["note"]));
    // Described with FULL, so all columns are key columns: the key tuple gives `note` as NULL.
    assert_eq!(events[2]["after"], json!({"id": 9, "status": "x", "note": null}));

    stream.describe(ORDERS, b"orders", b'd');
    stream.transaction(&[encode::update(
        ORDERS,
        Some((b'K', &key)),
        &[Cell::Unchanged, text("x"), Cell::Unchanged],
    )]);
    let events = stream.changes.events();
    assert_eq!(events[3]["after"], json!({"id": 9, "status": "x"}));
    assert_eq!(events[3]["unchanged"], json!(["note"]));
}

#[test]
fn an_unmarked_change_was_written_by_the_owner() {
    let mut stream = Stream::new(Position::MIN);
    stream.transaction(&[encode::insert(ORDERS, &row("1", "open"))]);
    stream.assembler.registry_changed(registry(GuardState::Pending));
    stream.transaction(&[encode::insert(ORDERS, &row("1", "open"))]);
    let events = stream.changes.events();
    assert_eq!(events[0]["writer"], json!({"service": "orders", "verified": true}));
    assert_eq!(events[0].get("traceparent"), None);
    assert_eq!(events[1]["writer"], json!({"service": "orders", "verified": false}));
}

#[test]
fn a_message_names_the_writer_until_the_next_one_or_the_end() {
    let mark = |role: &str, reason: &str, service: Option<&str>, trace: Option<&str>| {
        writer_message(&json!({"v": 1, "dataset": "shop.public.orders", "role": role,
            "login": role, "traceparent": trace, "reason": reason, "service": service}))
    };
    let insert = || encode::insert(ORDERS, &row("1", "open"));
    let mut stream = Stream::new(Position::MIN);
    stream.transaction(&[
        insert(),
        mark("billing_app", "observed", None, None),
        insert(),
        insert(),
        mark("postgres", "privileged", None, Some("not a trace")),
        insert(),
        mark("batch_login", "observed", Some("warehouse"), Some(TRACE)),
        insert(),
        mark("new_login", "trace", None, Some(TRACE)),
        insert(),
    ]);
    stream.transaction(&[insert()]);
    let writers: Vec<Value> = stream
        .changes
        .events()
        .into_iter()
        .map(|event| json!([event["writer"], event["traceparent"]]))
        .collect();
    let writer = |service: Option<&str>, role: &str| json!({"service": service, "role": role, "verified": true});
    let owner = json!({"service": "orders", "verified": true});
    let none = Value::Null;
    assert_eq!(
        writers,
        [
            json!([owner, none]),
            json!([writer(Some("billing"), "billing_app"), none]),
            json!([writer(Some("billing"), "billing_app"), none]),
            json!([writer(None, "postgres"), none]),
            json!([writer(Some("warehouse"), "batch_login"), TRACE]),
            json!([writer(Some("orders"), "new_login"), TRACE]),
            json!([owner, none]),
        ]
    );
}

#[test]
fn messages_that_say_nothing_to_us_are_passed_over() {
    let mut stream = Stream::new(Position::MIN);
    let other = json!({"v": 1, "dataset": "shop.public.other", "role": "r", "login": "r",
        "traceparent": null, "reason": "observed"});
    stream.transaction(&[
        encode::logical(true, 1, b"cadastre.writer", b"{"),
        encode::logical(true, 1, b"cadastre.ownership", b"{}"),
        encode::logical(true, 1, b"somebody.else", b"\xff"),
        encode::logical(true, 1, b"cadastre.violation", b"{}"),
        writer_message(&other),
        encode::origin(1, b"elsewhere"),
        encode::type_name(9, b"public", b"mood"),
        encode::insert(ORDERS, &row("1", "open")),
    ]);
    assert_eq!(
        stream.changes.events()[0]["writer"],
        json!({"service": "orders", "verified": true})
    );
    for prefix in [&b"cadastre.violation"[..], b"cadastre.writer", b"heartbeat"] {
        assert_eq!(stream.feed(&encode::logical(false, 1, prefix, b"{}")), Output::Nothing);
    }
}

#[test]
fn nobody_vouches_for_changes_while_a_guard_is_off() {
    let mut stream = Stream::new(Position::MIN);
    let message = |state: &str| {
        let message =
            json!({"v": 1, "dataset": "shop.public.orders", "state": state, "since": "0/2A"});
        encode::logical(true, 1, b"cadastre.guard", message.to_string().as_bytes())
    };
    let _ = stream.feed(&encode::begin(COMMIT, COMMITTED, 741));
    let notice = |stands, since| {
        let commit = Lsn::new(COMMIT);
        let (dataset, epoch) = (DatasetId(5), Epoch::FIRST);
        Output::Guard(GuardNotice { dataset, epoch, commit, stands, since })
    };
    assert_eq!(stream.feed(&message("off")), notice(false, Some(Lsn::new(42))));
    let described: Value = serde_json::from_str(crate::capture::GUARD_SCHEMA).unwrap();
    let told = &stream.changes.all()[0];
    covers(&described, told);
    covers(&described["properties"]["guard"], &told["guard"]);
    assert_eq!(told["guard"], json!({"state": "off", "since": "01-000000000000002A-00000000"}));
    let mut snapshot = Snapshot::default();
    let known = registry(GuardState::Installed);
    for (name, dataset) in &known.datasets {
        let gap = GuardGap { epoch: Epoch::FIRST, from: Lsn::new(42), to: None };
        let dataset = Dataset { gaps: vec![gap], ..Dataset::clone(dataset) };
        snapshot.datasets.insert(name.clone(), Arc::new(dataset));
    }
    stream.assembler.registry_changed(Arc::new(snapshot));
    let _ = stream.feed(&encode::insert(ORDERS, &row("1", "open")));
    let _ = stream.feed(&encode::commit(COMMIT, COMMIT + 8, COMMITTED));
    let writer = |stream: &Stream| stream.changes.events().last().unwrap()["writer"].clone();
    assert_eq!(writer(&stream), json!({"service": "orders", "verified": false}));
    let _ = stream.feed(&encode::begin(COMMIT, COMMITTED, 742));
    assert_eq!(stream.feed(&message("on")), notice(true, Some(Lsn::new(42))));
    assert_eq!(stream.feed(&message("whim")), Output::Nothing);
}

#[test]
fn a_violation_is_reported_with_its_place_and_service() {
    let mut stream = Stream::new(Position::MIN);
    let message = json!({"v": 1, "verdict": "rejected", "dataset": "shop.public.orders",
        "op": "INSERT", "owner": "orders", "role": "billing_app", "login": "billing_app",
        "app": "psql", "client": null, "traceparent": TRACE, "xid": "741", "pid": 1,
        "at": "2026-11-24T04:55:47.123+00:00"});
    let bytes = encode::logical(false, 4711, b"cadastre.violation", message.to_string().as_bytes());
    let Output::Violation(report) = stream.feed(&bytes) else { panic!("no violation") };
    assert_eq!(
        *report,
        NewViolation {
            source_id: SourceId(1),
            epoch: Epoch::FIRST,
            lsn: Lsn::new(4711),
            at: "2026-11-24T04:55:47.123Z".parse().unwrap(),
            verdict: Verdict::Rejected,
            operation: "INSERT".to_owned(),
            dataset: "shop.public.orders".to_owned(),
            service: Some("billing".to_owned()),
            role: "billing_app".to_owned(),
            login: "billing_app".to_owned(),
            application: Some("psql".to_owned()),
            client: None,
            traceparent: Some(TRACE.to_owned()),
        }
    );
}

#[test]
fn changes_already_seen_are_counted_but_not_pushed_again() {
    let inserts = vec![encode::insert(ORDERS, &row("1", "open")); 4];
    let mut first = Stream::new(Position::MIN);
    first.transaction(&inserts);
    let seen = Position::new(Epoch::FIRST, Lsn::new(COMMIT), 2);
    let mut again = Stream::new(seen);
    assert_eq!(again.transaction(&inserts), 2);
    assert_eq!(again.changes.0, first.changes.0[2..]);
    let mut after = Stream::new(Position::new(Epoch::FIRST, Lsn::new(COMMIT), 4));
    assert_eq!(after.transaction(&inserts), 0);
}

#[test]
fn unknown_types_are_asked_for_once_and_text_until_then() {
    let mut stream = Stream::new(Position::MIN);
    let columns = [
        (true, b"id".to_vec(), 90_001, -1),
        (false, b"status".to_vec(), 90_000, -1),
        (false, b"note".to_vec(), 90_001, -1),
    ];
    let relation = encode::relation(ORDERS, (b"public", b"orders"), b'd', &columns);
    assert_eq!(stream.feed(&relation), Output::TypesWanted(vec![90_000, 90_001]));
    stream.transaction(&[encode::insert(ORDERS, &row("1", "(a,b)"))]);
    assert_eq!(stream.changes.events()[0]["after"]["status"], "(a,b)");
    stream.assembler.learn(Types::new());
    assert_eq!(stream.feed(&relation), Output::TypesWanted(vec![90_000, 90_001]));
}

#[test]
fn what_may_not_stand_in_a_stream_is_an_error() {
    let begin = encode::begin(COMMIT, COMMITTED, 741);
    let insert = encode::insert(ORDERS, &row("1", "open"));
    for (messages, says) in [
        (vec![insert], "out of order: a change outside a transaction"),
        (vec![encode::truncate(&[ORDERS], 0)], "out of order: a change outside a transaction"),
        (vec![begin.clone(), begin.clone()], "out of order: a transaction begins inside another"),
        (vec![encode::commit(COMMIT, COMMIT, 0)], "a commit of a transaction that did not begin"),
        (
            vec![begin.clone(), encode::commit(COMMIT + 1, COMMIT, 0)],
            "a commit of a transaction that did not begin",
        ),
        (
            vec![encode::logical(true, 1, b"cadastre.writer", b"{}")],
            "a transactional message outside a transaction",
        ),
        (
            vec![begin.clone(), encode::insert(999, &row("1", "open"))],
            "change at 0/4D is of relation 999, which was not described",
        ),
        (
            vec![begin, encode::insert(ORDERS, &[text("1")])],
            "change at 0/4D does not have the columns of table \"public.orders\"",
        ),
        (vec![b"?".to_vec()], "message at 0/4D cannot be decoded"),
    ] {
        let mut stream = Stream::new(Position::MIN);
        let (last, before) = messages.split_last().unwrap();
        for message in before {
            assert_eq!(stream.feed(message), Output::Nothing);
        }
        let error = stream.try_feed(last).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.retry(), Retry::Later);
        assert!(stream.changes.0.is_empty());
    }
}

#[test]
fn a_transaction_is_open_from_its_begin_to_its_commit() {
    let mut stream = Stream::new(Position::MIN);
    assert!(!stream.assembler.in_transaction());
    assert_eq!(stream.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
    assert!(stream.assembler.in_transaction());
    let _committed = stream.feed(&encode::commit(COMMIT, COMMIT + 8, COMMITTED));
    assert!(!stream.assembler.in_transaction());
}

#[test]
fn events_have_the_members_their_schema_names() {
    let schema: Value = serde_json::from_str(CHANGE_SCHEMA).unwrap();
    let mut stream = Stream::new(Position::MIN);
    let mark = json!({"v": 1, "dataset": "shop.public.orders", "role": "orders_app",
        "login": "orders_app", "traceparent": TRACE, "reason": "trace"});
    stream.transaction(&[
        encode::insert(ORDERS, &row("1", "open")),
        writer_message(&mark),
        encode::update(ORDERS, None, &[text("1"), text("paid"), Cell::Unchanged]),
    ]);
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = match value {
            Value::Object(members) => members.keys().cloned().collect(),
            other => {
                other.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
            }
        };
        names.sort();
        names
    };
    let events = stream.changes.events();
    let [least, most] = events.as_slice() else { panic!("{events:?}") };
    // Changes that were captured before versions were kept have none.
    let mut required = names(&schema["required"]);
    required.push("schema_version".to_owned());
    required.sort();
    assert_eq!(names(least), required);
    assert_eq!(names(most), names(&schema["properties"]));
    for part in ["source", "transaction", "writer"] {
        assert_eq!(names(&least[part]), names(&schema["properties"][part]["required"]), "{part}");
        assert_eq!(names(&most[part]), names(&schema["properties"][part]["properties"]), "{part}");
    }
}

fn ownership_message(message: &Value) -> Vec<u8> {
    encode::logical(true, 1, b"cadastre.ownership", message.to_string().as_bytes())
}

/// An event has exactly the members that its schema requires.
#[track_caller]
fn covers(schema: &Value, event: &Value) {
    let required = schema["required"].as_array().unwrap();
    let keys: Vec<_> = event.as_object().unwrap().keys().map(|key| json!(key)).collect();
    assert_eq!(required.len(), keys.len(), "{event}");
    assert!(keys.iter().all(|key| required.contains(key)), "{event}");
}

/// The message of a hand-over of `orders`.
fn handed_over(before: Option<&str>, owner: &str) -> Vec<u8> {
    ownership_message(&json!({"v": 1, "dataset": "shop.public.orders", "owner": owner,
        "mode": "enforce", "ownerBefore": before, "modeBefore": before.map(|_| "enforce"),
        "transfer": 12, "reason": "teams merge", "actor": "admin"}))
}

fn writers(stream: &Stream) -> Vec<Value> {
    let events = stream.changes.all();
    events.into_iter().map(|event| event["writer"]["service"].clone()).collect()
}

#[test]
fn a_change_is_the_owners_of_its_place_in_the_stream() {
    let insert = || encode::insert(ORDERS, &row("1", "open"));
    let mut stream = Stream::new(Position::MIN);
    // The registry knows the new owner before the stream comes to the hand-over.
    let standing = Standing { owner: "billing".parse().unwrap(), mode: Mode::Enforce };
    stream.assembler = stream.assembler.with_standings([(DatasetId(5), standing)].into());
    assert_eq!(stream.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
    assert!(matches!(stream.feed(&insert()), Output::Evolved(_)), "its first version");
    let Output::Switched(switch) = stream.feed(&handed_over(Some("billing"), "orders")) else {
        panic!("a switch");
    };
    assert_eq!(switch.position.to_string(), "01-00000000016CA548-00000002");
    assert_eq!((switch.after.owner.as_str(), switch.transfer), ("orders", Some(12)));
    assert_eq!(stream.feed(&insert()), Output::Nothing);
    assert_eq!(writers(&stream), [json!("billing"), Value::Null, json!("orders")]);
    assert_eq!(stream.changes.ordinals(), [1, 2, 3]);
    let events = stream.changes.all();
    assert!(events.iter().all(|event| event["writer"]["verified"] != json!(false)), "{events:?}");
    let described: Value = serde_json::from_str(crate::capture::OWNERSHIP_SCHEMA).unwrap();
    covers(&described, &events[1]);
    covers(&described["properties"]["source"], &events[1]["source"]);
    covers(&described["properties"]["ownership"], &events[1]["ownership"]);
    assert_eq!(
        events[1],
        json!({"event": "ownership",
            "source": {"connector": "cadastre", "name": "shop", "db": "shopdb", "lsn": COMMIT,
                "ts_ms": 1_780_000_000_000_i64},
            "ts_ms": 1_780_000_000_004_i64, "dataset": "shop.public.orders",
            "position": "01-00000000016CA548-00000002",
            "ownership": {"from": "billing", "to": "orders", "modeBefore": "enforce",
                "mode": "enforce", "transfer": "12", "reason": "teams merge", "actor": "admin"}})
    );
}

#[test]
fn a_guard_that_is_mended_or_new_is_noted_and_not_told() {
    let mut stream = Stream::new(Position::MIN);
    for before in [None, Some("orders")] {
        assert_eq!(stream.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
        let Output::Switched(switch) = stream.feed(&handed_over(before, "orders")) else {
            panic!("a switch");
        };
        assert_eq!(switch.before.is_some(), before.is_some());
        let committed = stream.feed(&encode::commit(COMMIT, COMMIT + 8, COMMITTED));
        assert_eq!(committed, Output::Committed { end: Lsn::new(COMMIT + 8), pushed: 0 });
    }
    assert!(stream.changes.0.is_empty());
}

#[test]
fn a_hand_over_that_was_seen_before_changes_nothing_when_it_comes_again() {
    let seen = Position::new(Epoch::FIRST, Lsn::new(COMMIT), 2);
    let standing = Standing { owner: "billing".parse().unwrap(), mode: Mode::Enforce };
    let mut stream = Stream::new(seen);
    stream.assembler = stream.assembler.with_standings([(DatasetId(5), standing)].into());
    let pushed = stream.transaction(&[
        encode::insert(ORDERS, &row("1", "open")),
        handed_over(Some("billing"), "orders"),
        encode::insert(ORDERS, &row("2", "open")),
    ]);
    assert_eq!((pushed, writers(&stream)), (1, vec![json!("billing")]));
}

#[test]
fn a_guard_that_the_stream_has_told_of_stands_until_the_stream_says_otherwise() {
    let insert = || encode::insert(ORDERS, &row("1", "open"));
    let mut stream = Stream::new(Position::MIN);
    stream.assembler.registry_changed(registry(GuardState::Pending));
    stream.transaction(&[insert()]);
    assert_eq!(stream.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
    assert!(matches!(stream.feed(&handed_over(Some("x"), "orders")), Output::Switched(_)));
    let committed = stream.feed(&encode::commit(COMMIT, COMMIT + 8, COMMITTED));
    assert!(matches!(committed, Output::Committed { .. }));
    stream.transaction(&[insert()]);
    let verified: Vec<_> =
        stream.changes.all().iter().map(|event| event["writer"]["verified"].clone()).collect();
    assert_eq!(verified, [json!(false), Value::Null, json!(true)]);
}
