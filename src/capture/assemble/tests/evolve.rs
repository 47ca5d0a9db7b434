//! Tables that change in the middle of a stream: versions, their positions, their events.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::capture::envelope::SCHEMA_SCHEMA;
use crate::registry::{Author, Cause, Evolution, SchemaVersion, Shape};

fn column(name: &str, type_name: &str, oid: u32, position: i16) -> Value {
    json!({"name": name, "type": type_name, "oid": oid, "typmod": -1, "notNull": position == 1,
           "position": position, "generated": null, "identity": null})
}

/// `orders` as the guard describes it, with these columns beside `id` and `status`.
fn shape(table: &str, more: &[Value]) -> Value {
    let mut columns = vec![column("id", "bigint", 20, 1), column("status", "text", 25, 2)];
    columns.extend_from_slice(more);
    json!({"schema": "public", "table": table, "columns": columns, "key": ["id"],
           "replicaIdentity": "default", "types": []})
}

fn note() -> Value {
    column("note", "text", 25, 3)
}

fn message(kind: &str, more: &Value) -> Vec<u8> {
    let mut message = json!({"v": 1, "kind": kind, "dataset": "shop.public.orders", "relid": ORDERS,
        "schema": "public", "table": "orders", "command": "ALTER TABLE", "service": "orders",
        "role": "orders_app", "login": "orders_app"});
    for (name, value) in more.as_object().unwrap() {
        message[name] = value.clone();
    }
    encode::logical(true, 1, b"cadastre.schema", message.to_string().as_bytes())
}

fn altered(shape: &Value) -> Vec<u8> {
    message("altered", &json!({"shape": shape}))
}

fn installed(shape: &Value) -> Vec<u8> {
    message("installed", &json!({"shape": shape}))
}

fn relation(columns: &[(&str, u32)]) -> Vec<u8> {
    let columns: Vec<_> = columns
        .iter()
        .map(|(name, oid)| (*name == "id", name.as_bytes().to_vec(), *oid, -1))
        .collect();
    encode::relation(ORDERS, (b"public", b"orders"), b'd', &columns)
}

fn insert(cells: usize) -> Vec<u8> {
    encode::insert(ORDERS, &vec![text("1"); cells])
}

fn at(ordinal: u32) -> Position {
    Position::new(Epoch::FIRST, Lsn::new(COMMIT), ordinal)
}

/// What a registry would give to the next connection.
fn known(news: &[NewEvolution]) -> KnownTables {
    let mut known = KnownTables::default();
    for new in news {
        known.recorded = known.recorded.max(new.position);
        match &new.what {
            Evolution::Version(version) => known.versions.push(SchemaVersion::clone(version)),
            Evolution::Relation { dataset, relid } => {
                known.relations.insert(*relid, *dataset);
            }
            _ => {}
        }
    }
    known
}

fn versions(events: &[Value]) -> Vec<(String, u64)> {
    let of = |event: &Value| {
        let word = event["op"].as_str().or_else(|| event["schema"]["kind"].as_str()).unwrap();
        let version = event.get("schema_version").unwrap_or_else(|| &event["schema"]["version"]);
        (word.to_owned(), version.as_u64().unwrap())
    };
    events.iter().map(of).collect()
}

#[test]
fn a_command_begins_a_version_at_its_place_among_the_rows() {
    let mut stream = Stream::new(Position::MIN);
    let due = column("due", "date", 1082, 4);
    stream.transaction(&[
        installed(&shape("orders", &[note()])),
        insert(3),
        altered(&shape("orders", &[note(), due.clone()])),
        relation(&[("id", 20), ("status", 25), ("note", 25), ("due", 1082)]),
        insert(4),
        altered(&shape("orders", &[note(), due])),
        insert(4),
    ]);
    let events = stream.changes.all();
    let expected = [("c", 1), ("altered", 2), ("c", 2), ("c", 2)];
    assert_eq!(versions(&events), expected.map(|(word, number)| (word.to_owned(), number)));
    // The message that changed nothing has its ordinal all the same.
    assert_eq!(stream.changes.ordinals(), [2, 3, 4, 6]);
    let event = &events[1];
    assert_eq!(event["event"], "schema");
    assert_eq!(event["position"], at(3).to_string());
    assert_eq!(
        event["source"],
        json!({"connector": "cadastre", "name": "shop", "db": "shopdb", "lsn": COMMIT,
               "ts_ms": 1_780_000_000_000_i64})
    );
    let told = &event["schema"];
    assert_eq!(told["difference"], json!({"added": ["due"]}));
    assert_eq!((&told["compatibility"], &told["reasons"]), (&json!("compatible"), &json!([])));
    assert_eq!(told["by"], json!({"service": "orders", "role": "orders_app"}));
    assert_eq!(told["command"], "ALTER TABLE");
    assert_eq!(told["columns"][3]["name"], "due");
}

#[test]
fn a_column_dropped_and_made_again_is_another_column() {
    let mut stream = Stream::new(Position::MIN);
    let two = [("id", 20), ("status", 25)];
    stream.transaction(&[
        installed(&shape("orders", &[note()])),
        insert(3),
        altered(&shape("orders", &[])),
        relation(&two),
        insert(2),
        altered(&shape("orders", &[column("note", "text", 25, 4)])),
        relation(&[two[0], two[1], ("note", 25)]),
        insert(3),
        altered(&shape("orders", &[column("remark", "text", 25, 4)])),
        relation(&[two[0], two[1], ("remark", 25)]),
        insert(3),
    ]);
    let events = stream.changes.all();
    let differences: Vec<&Value> =
        events.iter().filter_map(|event| event.get("schema")).map(|it| &it["difference"]).collect();
    assert_eq!(
        differences,
        [
            &json!({"removed": ["note"]}),
            &json!({"added": ["note"]}),
            &json!({"renamed": [{"from": "note", "to": "remark"}]}),
        ]
    );
    let rows = stream.changes.events();
    let seen: Vec<_> = rows.iter().map(|row| (&row["schema_version"], &row["after"])).collect();
    assert_eq!(seen[1], (&json!(2), &json!({"id": 1, "status": "1"})));
    assert_eq!(seen[3], (&json!(4), &json!({"id": 1, "status": "1", "remark": "1"})));
}

#[test]
fn without_a_message_the_stream_itself_shows_a_version() {
    let mut stream = Stream::new(Position::MIN);
    stream.transaction(&[
        insert(3),
        relation(&[("id", 20), ("status", 25), ("note", 25), ("due", 1082)]),
        insert(4),
        insert(4),
    ]);
    let expected = [("c", 1), ("altered", 2), ("c", 2), ("c", 2)];
    let events = stream.changes.all();
    assert_eq!(versions(&events), expected.map(|(word, number)| (word.to_owned(), number)));
    assert_eq!(stream.changes.ordinals(), [1, 2, 3, 4]);
    assert_eq!(events[1]["schema"]["difference"], json!({"added": ["due"]}));
    assert_eq!(events[1]["schema"].get("by"), None);
    assert_eq!(events[1]["schema"]["columns"][0]["type"], "bigint");
}

#[test]
fn a_renamed_table_keeps_its_dataset() {
    let mut stream = Stream::new(Position::MIN);
    let renamed = json!({"table": "purchases", "shape": shape("purchases", &[note()]),
        "was": {"schema": "public", "table": "orders"}});
    let columns = [("id", 20), ("status", 25), ("note", 25)]
        .map(|(name, oid)| (name == "id", name.as_bytes().to_vec(), oid, -1));
    stream.transaction(&[
        installed(&shape("orders", &[note()])),
        message("renamed", &renamed),
        encode::relation(ORDERS, (b"public", b"purchases"), b'd', &columns),
        insert(3),
        // Another table under the old name is another table.
        encode::relation(999, (b"public", b"orders"), b'd', &columns),
        encode::insert(999, &row("1", "x")),
    ]);
    let events = stream.changes.all();
    assert_eq!(versions(&events), [("renamed".to_owned(), 2), ("c".to_owned(), 2)]);
    assert_eq!(events[1]["dataset"], "shop.public.orders");
    assert_eq!(events[1]["source"]["table"], "purchases");
    assert_eq!(events[0]["schema"]["compatibility"], "compatible");
}

#[test]
fn types_are_what_they_were_at_each_place() {
    let mut stream = Stream::new(Position::MIN);
    let pair = |attributes: &[&str]| {
        let attributes: Vec<Value> =
            attributes.iter().map(|name| json!({"name": name, "oid": 23})).collect();
        let mut shape = shape("orders", &[column("pair", "pair", 90_000, 3)]);
        shape["types"] = json!([{"oid": 90_000, "schema": "public", "name": "pair",
            "kind": "composite", "attributes": attributes}]);
        shape
    };
    let columns = [("id", 20), ("status", 25), ("pair", 90_000)];
    let cells = |value: &str| encode::insert(ORDERS, &[text("1"), text("x"), text(value)]);
    // No look-up is asked for: the message says what the type is made of.
    stream.transaction(&[
        installed(&pair(&["a", "b"])),
        relation(&columns),
        cells("(1,2)"),
        altered(&pair(&["a", "b", "c"])),
        relation(&columns),
        cells("(1,2,3)"),
    ]);
    let rows = stream.changes.events();
    assert_eq!(rows[0]["after"]["pair"], json!({"a": 1, "b": 2}));
    assert_eq!(rows[1]["after"]["pair"], json!({"a": 1, "b": 2, "c": 3}));
    let told = &stream.changes.all()[1]["schema"]["difference"];
    assert_eq!(told, &json!({"types": [{"type": "public.pair", "added": ["c"]}]}));
}

#[test]
fn what_becomes_of_a_table_is_told_and_recorded() {
    let mut stream = Stream::new(Position::MIN);
    let nobody = json!({"dataset": null, "relid": 7, "table": "heap", "command": "CREATE TABLE"});
    let part = json!({"part": {"relid": 8, "schema": "public", "table": "orders_1"}});
    let key = json!({"constraint": "fk", "from": {"schema": "public", "table": "invoices"},
        "service": "billing", "role": "billing_app"});
    stream.transaction(&[
        installed(&shape("orders", &[note()])),
        message("created", &nobody),
        message("gone", &nobody),
        message("attached", &part),
        message("detached", &part),
        message("coupled", &key),
        message("uncoupled", &key),
        message("dropped", &json!({})),
        message("altered", &json!({})),
        message("unheard of", &json!({})),
        insert(3),
    ]);
    let words: Vec<String> = stream
        .changes
        .all()
        .iter()
        .map(|event| event["schema"]["kind"].as_str().unwrap_or("change").to_owned())
        .collect();
    assert_eq!(words, ["attached", "detached", "dropped", "change"]);
    assert_eq!(stream.changes.ordinals(), [4, 5, 8, 11]);
    let kinds: Vec<(u32, &str)> = stream
        .news
        .iter()
        .map(|new| {
            let word = match &new.what {
                Evolution::Version(_) => "version",
                Evolution::Relation { .. } => "relation",
                Evolution::Dropped(_) => "dropped",
                Evolution::Unowned { relid: 7, .. } => "unowned",
                Evolution::Gone { relid: 7 | 8 } => "gone",
                Evolution::Coupled { coupling, .. } if coupling.constraint == "fk" => "coupled",
                Evolution::Uncoupled { .. } => "uncoupled",
                other => panic!("{other:?}"),
            };
            (new.position.ordinal(), word)
        })
        .collect();
    assert_eq!(
        kinds,
        [
            (1, "relation"),
            (1, "version"),
            (2, "unowned"),
            (3, "gone"),
            (4, "gone"),
            (6, "coupled"),
            (7, "uncoupled"),
            (8, "dropped"),
        ]
    );
    assert_eq!(
        stream.news[5].by,
        Some(Author {
            command: "ALTER TABLE".to_owned(),
            service: Some("billing".to_owned()),
            role: "billing_app".to_owned()
        })
    );
}

#[test]
fn a_table_made_again_is_told_even_if_it_looks_the_same() {
    let mut stream = Stream::new(Position::MIN);
    let shape = shape("orders", &[note()]);
    stream.transaction(&[
        installed(&shape),
        message("dropped", &json!({})),
        message("installed", &json!({"relid": 555, "shape": shape})),
    ]);
    let events = stream.changes.all();
    assert_eq!(events[1]["schema"]["kind"], "recreated");
    assert_eq!(events[1]["schema"]["version"], 2);
}

#[test]
fn a_dataset_registered_a_moment_ago_is_asked_for_once() {
    let mut stream = Stream::new(Position::MIN);
    let other =
        json!({"dataset": "shop.public.other", "relid": OTHER, "shape": shape("other", &[])});
    let message = message("installed", &other);
    assert_eq!(stream.feed(&encode::begin(COMMIT, COMMITTED, 741)), Output::Nothing);
    assert_eq!(stream.feed(&message), Output::RegistryWanted);
    assert_eq!(stream.feed(&message), Output::Nothing, "and is passed over if nobody knows it");
    let change = stream.feed(&insert(3));
    assert!(matches!(change, Output::Evolved(_)), "{change:?}");
    assert_eq!(stream.changes.ordinals(), [2], "its ordinal counts once");
}

#[test]
fn schema_events_have_the_members_their_schema_names() {
    let schema: Value = serde_json::from_str(SCHEMA_SCHEMA).unwrap();
    let mut stream = Stream::new(Position::MIN);
    let part = json!({"part": {"relid": 8, "schema": "public", "table": "orders_1"}});
    stream.transaction(&[
        installed(&shape("orders", &[note()])),
        altered(&shape("orders", &[])),
        message("attached", &part),
    ]);
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let events = stream.changes.all();
    assert_eq!(names(&events[0]), names(&schema["properties"]));
    assert_eq!(names(&events[0]["source"]), names(&schema["properties"]["source"]["properties"]));
    let mut members = names(&events[0]["schema"]);
    members.extend(names(&events[1]["schema"]));
    members.sort();
    members.dedup();
    let details = &schema["properties"]["schema"];
    assert_eq!(members, names(&details["properties"]));
    for required in details["required"].as_array().unwrap() {
        assert!(events[1]["schema"].get(required.as_str().unwrap()).is_some(), "{required}");
    }
    let kinds = details["properties"]["kind"]["enum"].as_array().unwrap();
    assert!(kinds.contains(&events[0]["schema"]["kind"]));
    let column = &details["properties"]["columns"]["items"];
    assert_eq!(names(&events[0]["schema"]["columns"][0]), names(&column["properties"]));
}

/// One step of a stream: a row, a command that the guard reports, or a change that only the stream
/// shows.
#[derive(Debug, Clone)]
enum Step {
    Row,
    Command(Vec<u8>),
    Silently(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let columns = || prop::collection::vec(0..3u8, 0..3);
    let step = prop_oneof![
        3 => Just(Step::Row),
        1 => columns().prop_map(Step::Command),
        1 => columns().prop_map(Step::Silently),
    ];
    prop::collection::vec(step, 1..12)
}

/// The messages of the steps. Columns are named by letters, each with a number of its own.
fn messages(steps: &[Step]) -> Vec<Vec<u8>> {
    let described = |letters: &[u8]| {
        let mut letters = letters.to_vec();
        letters.sort_unstable();
        letters.dedup();
        letters
    };
    let columns = |letters: &[u8]| -> Vec<(String, u32)> {
        let more = letters.iter().map(|letter| (format!("c{letter}"), 25));
        [("id".to_owned(), 20), ("status".to_owned(), 25)].into_iter().chain(more).collect()
    };
    let relation = |letters: &[u8]| {
        let columns = columns(letters);
        let columns: Vec<(&str, u32)> =
            columns.iter().map(|(name, oid)| (name.as_str(), *oid)).collect();
        relation(&columns)
    };
    let mut now = vec![];
    let mut messages = vec![relation(&now)];
    for step in steps {
        match step {
            Step::Row => messages.push(insert(2 + now.len())),
            Step::Command(letters) => {
                now = described(letters);
                let more: Vec<Value> = now
                    .iter()
                    .map(|letter| column(&format!("c{letter}"), "text", 25, 3 + i16::from(*letter)))
                    .collect();
                messages.push(altered(&shape("orders", &more)));
                messages.push(relation(&now));
            }
            Step::Silently(letters) => {
                now = described(letters);
                messages.push(relation(&now));
            }
        }
    }
    messages
}

proptest! {
    /// Whatever was recorded and logged when the stream broke off, and wherever it did, reading it
    /// again gives the same events at the same positions.
    #[test]
    fn a_stream_read_again_finds_the_same_versions(
        steps in steps(), recorded in 0..30u32, logged in 0..30u32,
    ) {
        let messages = messages(&steps);
        let mut first = Stream::new(Position::MIN);
        first.transaction(&messages);

        // What is in the log was recorded before.
        let recorded = recorded.max(logged);
        let kept: Vec<NewEvolution> = first
            .news
            .iter()
            .filter(|new| new.position <= at(recorded))
            .cloned()
            .collect();
        let mut again = Stream::knowing(at(logged), known(&kept));
        again.transaction(&messages);
        let rest: Vec<_> =
            first.changes.0.iter().filter(|change| change.0 > at(logged)).cloned().collect();
        prop_assert_eq!(&again.changes.0, &rest);
        let rest: Vec<&NewEvolution> =
            first.news.iter().filter(|new| new.position > at(recorded)).collect();
        prop_assert_eq!(again.news.iter().collect::<Vec<_>>(), rest);
    }

    /// Every row names the version whose event came last, and has its columns.
    #[test]
    fn a_row_is_of_the_version_told_last(steps in steps()) {
        let mut stream = Stream::new(Position::MIN);
        stream.transaction(&messages(&steps));
        let mut shapes: HashMap<u64, Shape> = HashMap::new();
        for new in &stream.news {
            if let Evolution::Version(version) = &new.what {
                prop_assert!(version.cause == Cause::Command || version.cause == Cause::Stream);
                shapes.insert(version.number.into(), Shape::clone(&version.shape));
            }
        }
        let mut last = None;
        let mut positions: Vec<Position> = vec![];
        for (change, event) in stream.changes.0.iter().zip(stream.changes.all()) {
            positions.push(change.0);
            if let Some(told) = event.get("schema") {
                last = told["version"].as_u64();
                continue;
            }
            let number = event["schema_version"].as_u64().unwrap();
            prop_assert_eq!(last.unwrap_or(number), number);
            let names: Vec<&String> = event["after"].as_object().unwrap().keys().collect();
            let mut columns: Vec<&String> =
                shapes[&number].columns.iter().map(|column| &column.name).collect();
            columns.sort();
            prop_assert_eq!(names, columns);
        }
        prop_assert!(positions.is_sorted_by(|a, b| a < b), "{:?}", positions);
    }
}
