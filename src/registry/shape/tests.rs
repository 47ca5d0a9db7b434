//! Shapes compared with what a stream says of them, and with one another.

use proptest::prelude::*;

use super::*;

fn column(position: i16, name: &str, type_name: &str, oid: u32) -> Column {
    Column {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        oid,
        typmod: -1,
        not_null: Some(position == 1),
        position: Some(position),
        generated: None,
        identity: None,
    }
}

fn name() -> TableName {
    TableName { schema: "public".to_owned(), table: "orders".to_owned() }
}

fn orders() -> Shape {
    let mood = TypeShape {
        oid: 90_000,
        schema: "public".to_owned(),
        name: "mood".to_owned(),
        kind: TypeKind::Enum,
        of: None,
        delimiter: None,
        not_null: None,
        constraints: vec![],
        values: vec!["calm".to_owned(), "wild".to_owned()],
        attributes: vec![],
    };
    Shape {
        name: name(),
        columns: vec![
            column(1, "id", "integer", 23),
            column(2, "status", "text", 25),
            column(3, "mood", "mood", 90_000),
        ],
        key: vec!["id".to_owned()],
        replica_identity: ReplicaIdentity::Default,
        types: vec![mood],
    }
}

/// What a stream says of a table, without its generated columns.
fn described(shape: &Shape) -> StreamTable {
    let published = shape.columns.iter().filter(|column| column.generated.is_none());
    let key = |column: &Column| match shape.replica_identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Nothing => false,
        ReplicaIdentity::Default | ReplicaIdentity::Index => shape.key.contains(&column.name),
    };
    StreamTable {
        name: shape.name.clone(),
        replica_identity: shape.replica_identity,
        columns: published
            .map(|column| StreamColumn {
                name: column.name.clone(),
                oid: column.oid,
                typmod: column.typmod,
                key: key(column),
            })
            .collect(),
    }
}

fn between(change: impl FnOnce(&mut Shape)) -> Difference {
    let mut after = orders();
    change(&mut after);
    Difference::between(&orders(), &after)
}

#[test]
fn a_difference_says_what_changed_and_whether_it_breaks() {
    type Change = fn(&mut Shape);
    let cases: [(Change, serde_json::Value, &[&str]); 13] = [
        (|_| {}, serde_json::json!({}), &[]),
        (
            |shape| shape.columns.push(column(4, "note", "text", 25)),
            serde_json::json!({"added": ["note"]}),
            &[],
        ),
        (
            |shape| drop(shape.columns.remove(1)),
            serde_json::json!({"removed": ["status"]}),
            &["column \"status\" was removed"],
        ),
        (
            |shape| shape.columns[1].name = "state".to_owned(),
            serde_json::json!({"renamed": [{"from": "status", "to": "state"}]}),
            &["column \"status\" is now \"state\""],
        ),
        // A key whose column has another name is the same key.
        (
            |shape| {
                shape.columns[0].name = "number".to_owned();
                shape.key = vec!["number".to_owned()];
            },
            serde_json::json!({"renamed": [{"from": "id", "to": "number"}]}),
            &["column \"id\" is now \"number\""],
        ),
        // Dropped and made again in one command: another column under the same name.
        (
            |shape| shape.columns[1] = column(4, "status", "text", 25),
            serde_json::json!({"added": ["status"], "removed": ["status"]}),
            &["column \"status\" was removed"],
        ),
        (
            |shape| shape.columns[0] = column(1, "id", "bigint", 20),
            serde_json::json!({"retyped": [{"column": "id", "from": "integer", "to": "bigint"}]}),
            &["column \"id\" was integer and is bigint"],
        ),
        (
            |shape| shape.columns[0].not_null = Some(false),
            serde_json::json!({"notNull": [{"column": "id", "from": true, "to": false}]}),
            &["column \"id\" may be null now"],
        ),
        (
            |shape| shape.columns[1].not_null = Some(true),
            serde_json::json!({"notNull": [{"column": "status", "from": false, "to": true}]}),
            &[],
        ),
        (
            |shape| shape.key = vec![],
            serde_json::json!({"key": {"from": ["id"], "to": []}}),
            &["rows were told apart by id and are by nothing"],
        ),
        (
            |shape| shape.name.table = "purchases".to_owned(),
            serde_json::json!({"table": {"from": {"schema": "public", "table": "orders"},
                                         "to": {"schema": "public", "table": "purchases"}}}),
            &[],
        ),
        (
            |shape| shape.types[0].values.push("grim".to_owned()),
            serde_json::json!({"types": [{"type": "public.mood", "added": ["grim"]}]}),
            &[],
        ),
        (
            |shape| shape.types[0].values[1] = "mild".to_owned(),
            serde_json::json!({"types": [{"type": "public.mood", "added": ["mild"], "removed": ["wild"]}]}),
            &["type public.mood no longer has wild"],
        ),
    ];
    for (change, expected, why) in cases {
        let difference = between(change);
        assert_eq!(serde_json::to_value(&difference).unwrap(), expected);
        let (word, reasons) = difference.compatibility();
        assert_eq!(reasons, why);
        assert_eq!(word == Compatibility::Compatible, why.is_empty());
        let stored = serde_json::from_value::<Difference>(expected).unwrap();
        assert_eq!(stored, difference, "what is stored reads back");
    }
}

#[test]
fn a_type_that_takes_more_breaks_nobody() {
    for (from, to, fits) in [
        ("smallint", "integer", true),
        ("integer", "bigint", false),
        ("character varying(10)", "character varying(20)", true),
        ("character varying(20)", "character varying(10)", false),
        ("character varying(10)", "text", true),
        ("text", "character varying", true),
        ("text", "character varying(10)", false),
        ("integer", "text", false),
    ] {
        let difference = between(|shape| {
            shape.columns[1] = column(2, "status", to, 1);
        });
        let mut before = orders();
        before.columns[1].type_name = from.to_owned();
        let mut after = before.clone();
        after.columns[1] = column(2, "status", to, 1);
        let (word, _) = Difference::between(&before, &after).compatibility();
        assert_eq!(word == Compatibility::Compatible, fits, "{from} to {to}: {difference:?}");
    }
}

#[test]
fn what_the_stream_leaves_out_is_kept() {
    let mut before = orders();
    before.columns[1].generated = Some(Generated::Stored);
    before.replica_identity = ReplicaIdentity::Full;
    let mut table = described(&before);
    assert!(before.fits(&table));
    table.columns.push(StreamColumn { name: "note".into(), oid: 25, typmod: -1, key: true });
    assert!(!before.fits(&table));
    let after = Shape::described_as(Some(&before), &table, |oid| format!("type {oid}"));
    assert!(after.fits(&table));
    assert_eq!((&after.key, &after.types), (&before.key, &before.types));
    let difference = Difference::between(&before, &after);
    assert_eq!(difference, Difference { added: vec!["note".into()], ..Difference::default() });
    assert_eq!(after.columns[2].type_name, "type 25");
}

#[test]
fn the_guards_description_reads_and_writes_back() {
    let said = serde_json::json!({
        "schema": "public", "table": "orders", "key": ["id"], "replicaIdentity": "default",
        "columns": [{"name": "id", "type": "numeric(10,2)", "oid": 1700, "typmod": 655_366,
                     "notNull": true, "position": 1, "generated": null, "identity": "always"}],
        "types": [{"oid": 90_000, "schema": "public", "name": "hstore", "kind": "base"}],
    });
    let shape: Shape = serde_json::from_value(said.clone()).unwrap();
    assert_eq!(shape.columns[0].identity, Some(Identity::Always));
    assert_eq!(serde_json::to_value(&shape).unwrap(), said);
}

/// Columns with few names and types, so that the same ones meet.
fn any_shape() -> impl Strategy<Value = Shape> {
    let one = (0..5u8, prop_oneof![Just(23), Just(25), Just(90_000)], 0..4u8);
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Index),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Nothing),
    ];
    (prop::collection::vec(one, 0..6), 0..3usize, identity).prop_map(|(drawn, keys, identity)| {
        let mut shape = orders();
        shape.columns.clear();
        for (number, (label, oid, kind)) in (1..).zip(drawn) {
            let label = format!("c{label}");
            if shape.columns.iter().all(|column| column.name != label) {
                let mut new = column(number, &label, &format!("type {oid}"), oid);
                new.generated = (kind == 0).then_some(Generated::Stored);
                shape.columns.push(new);
            }
        }
        let plain = shape.columns.iter().filter(|column| column.generated.is_none());
        shape.key = plain.take(keys).map(|column| column.name.clone()).collect();
        shape.replica_identity = identity;
        shape
    })
}

proptest! {
    #[test]
    fn a_shape_fits_its_own_description_and_no_other(before in any_shape(), after in any_shape()) {
        let table = described(&after);
        prop_assert!(after.fits(&table));
        let next = Shape::described_as(Some(&before), &table, |oid| format!("type {oid}"));
        prop_assert!(next.fits(&table), "what was taken from the stream fits it");
        // Described once more, nothing is new.
        prop_assert_eq!(&Shape::described_as(Some(&next), &table, |_| String::new()), &next);
        if before.fits(&table) {
            let difference = Difference::between(&before, &next);
            prop_assert_eq!(difference, Difference::default());
        }
    }

    #[test]
    fn a_difference_accounts_for_every_column(before in any_shape(), after in any_shape()) {
        let difference = Difference::between(&before, &after);
        prop_assert_eq!(
            before.columns.len() + difference.added.len(),
            after.columns.len() + difference.removed.len()
        );
        prop_assert_eq!(Difference::between(&before, &before), Difference::default());
    }
}
