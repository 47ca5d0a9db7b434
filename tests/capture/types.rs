//! A value of every type as PostgreSQL itself writes it, against the JSON that subscribers get.

use std::collections::BTreeSet;

use cadastre::capture::catalog::{self, Types};
use cadastre::capture::json::{builtin, write_value};
use cadastre::pg::quote_literal;
use serde_json::{Value, json};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::support::Cluster;

/// A database with the settings of the replication session.
async fn session(cluster: &Cluster) -> Client {
    cluster.create_database("shop").await;
    let client = cluster.connect("shop").await;
    let settings = "set datestyle = 'ISO'; set intervalstyle = 'iso_8601'; set timezone = 'UTC';
                    set bytea_output = 'hex'; set extra_float_digits = 1";
    client.batch_execute(settings).await.unwrap();
    client
}

/// The rows of a query, each value as its type's output function writes it.
async fn rows(client: &Client, query: &str) -> Vec<SimpleQueryRow> {
    let messages = client.simple_query(query).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.collect()
}

/// The one value that an expression gives: its type's OID and its text.
async fn value(client: &Client, expression: &str) -> (u32, String) {
    let row =
        &rows(client, &format!("select pg_typeof(v)::oid, v from (select {expression}) t (v)"))
            .await[0];
    (row.get(0).unwrap().parse().unwrap(), row.get(1).unwrap().to_owned())
}

/// The JSON of a value; it must be one line of valid JSON.
fn json(types: &Types, (oid, text): (u32, String)) -> Value {
    let mut out = Vec::new();
    write_value(&types.kind(oid), text.as_bytes(), &mut out);
    assert!(!out.contains(&b'\n'), "{text}");
    serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The JSON of an expression's value, its types looked up as capture does.
async fn look_up(client: &Client, expression: &str) -> Value {
    let (oid, text) = value(client, expression).await;
    json(&catalog::load(client, &[oid]).await.unwrap(), (oid, text))
}

/// Type, literal, and what subscribers get.
fn samples() -> Vec<(&'static str, &'static str, Value)> {
    let text = |kind, literal| (kind, literal, json!(literal));
    let range =
        |lower: Value, upper: Value| json!({"lower": lower, "upper": upper, "bounds": "[)"});
    let (from, to) = ("2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z");
    vec![
        ("bool", "true", json!(true)),
        ("bool", "false", json!(false)),
        ("int2", "-32768", json!(-32768)),
        ("int4", "2147483647", json!(2_147_483_647)),
        ("int8", "9007199254740992", json!(9_007_199_254_740_992_i64)),
        ("int8", "-9223372036854775808", json!("-9223372036854775808")),
        ("oid", "4294967295", json!(4_294_967_295_u32)),
        ("xid", "741", json!(741)),
        ("cid", "3", json!(3)),
        ("xid8", "741", json!(741)),
        ("xid8", "18446744073709551615", json!("18446744073709551615")),
        ("float4", "1.5", json!(1.5)),
        ("float4", "3.4028235e38", json!(3.402_823_5e38)),
        ("float4", "NaN", json!("NaN")),
        ("float8", "-0.1", json!(-0.1)),
        ("float8", "5e-324", json!(5e-324)),
        ("float8", "1.7976931348623157e308", json!(f64::MAX)),
        ("float8", "Infinity", json!("Infinity")),
        ("float8", "-Infinity", json!("-Infinity")),
        text("numeric", "1.10"),
        text("numeric", "NaN"),
        text("numeric", "-Infinity"),
        text("numeric", "123456789012345678901234567890.123"),
        text("money", "$1,000.50"),
        text("text", ""),
        text("text", "a \"quoted\" \\ one,\n\tžluťoučký kůň 🐎 \u{1}\u{7f}"),
        text("varchar", "it's {not} (an) [array]"),
        ("bpchar(4)", "ab", json!("ab  ")),
        text("name", "orders"),
        text("\"char\"", "x"),
        ("bytea", "\\x", json!("")),
        ("bytea", "\\xdeadbeef", json!("3q2+7w==")),
        text("date", "2026-11-24"),
        ("date", "0044-03-15 BC", json!("-0043-03-15")),
        ("date", "12345-06-07", json!("+12345-06-07")),
        ("date", "5874897-12-31", json!("+5874897-12-31")),
        ("date", "4714-11-24 BC", json!("-4713-11-24")),
        text("date", "-infinity"),
        text("date", "infinity"),
        ("timestamp", "2026-11-24 04:55:47.123", json!("2026-11-24T04:55:47.123Z")),
        ("timestamp", "0001-01-01 00:00:00 BC", json!("0000-01-01T00:00:00Z")),
        text("timestamp", "infinity"),
        ("timestamptz", "2026-11-24 06:55:47+02", json!("2026-11-24T04:55:47Z")),
        ("timestamptz", "0044-03-15 12:00:00+00 BC", json!("-0043-03-15T12:00:00Z")),
        ("timestamptz", "294276-12-31 23:59:59.999999+00", json!("+294276-12-31T23:59:59.999999Z")),
        text("timestamptz", "-infinity"),
        text("time", "24:00:00"),
        text("timetz", "04:05:06.789+02"),
        ("interval", "1 year 2 mons 3 days 04:05:06.7", json!("P1Y2M3DT4H5M6.7S")),
        ("interval", "0", json!("PT0S")),
        text("uuid", "7f3c1d9e-8f0a-4d0e-9d5a-0f1e2d3c4b5a"),
        (
            "json",
            " {\"b\" : [1, 2.50,\n null], \"a\": \"x  y\"} ",
            json!({"b": [1, 2.50, null], "a": "x  y"}),
        ),
        ("json", "\"\\ud800\"", json!("\"\\ud800\"")),
        ("jsonb", "{\"b\": {\"c\": []}, \"a\": \"\\n\"}", json!({"a": "\n", "b": {"c": []}})),
        ("jsonb", "null", json!(null)),
        text("jsonpath", "$.\"a\"[*]"),
        text("xml", "<a b=\"c\">d</a>"),
        text("inet", "10.0.0.1/24"),
        text("inet", "::1"),
        text("cidr", "10.0.0.0/8"),
        text("macaddr", "08:00:2b:01:02:03"),
        text("macaddr8", "08:00:2b:ff:fe:01:02:03"),
        text("bit(3)", "101"),
        text("varbit", "10"),
        text("point", "(1,2.5)"),
        text("line", "{1,-1,0}"),
        text("lseg", "[(0,0),(1,1)]"),
        text("box", "(1,1),(0,0)"),
        text("path", "((0,0),(1,1))"),
        text("polygon", "((0,0),(1,1),(1,0))"),
        text("circle", "<(0,0),1>"),
        text("tsvector", "'fat':2 'rat':3"),
        text("tsquery", "'fat' & 'rat'"),
        text("pg_lsn", "0/16CA548"),
        text("pg_snapshot", "10:20:10,14"),
        text("txid_snapshot", "10:20:10,14"),
        text("tid", "(0,1)"),
        text("refcursor", "cursor one"),
        text("aclitem", "postgres=arwd/postgres"),
        text("regproc", "now"),
        text("regprocedure", "now()"),
        text("regoper", "|/"),
        text("regoperator", "+(integer,integer)"),
        text("regclass", "pg_type"),
        text("regtype", "integer"),
        text("regrole", "postgres"),
        text("regnamespace", "pg_catalog"),
        text("regcollation", "\"C\""),
        text("regconfig", "simple"),
        text("regdictionary", "simple"),
        ("int2vector", "1 -2 3", json!([1, -2, 3])),
        ("oidvector", "26 27", json!([26, 27])),
        ("int4range", "[1,10)", range(json!(1), json!(10))),
        ("int4range", "empty", json!({"empty": true})),
        ("int8range", "[1,)", range(json!(1), json!(null))),
        ("numrange", "[1.5,2.50)", range(json!("1.5"), json!("2.50"))),
        ("daterange", "[2026-11-24,infinity)", range(json!("2026-11-24"), json!("infinity"))),
        ("tsrange", "[2026-11-24,2026-11-25)", range(json!(from), json!(to))),
        ("tstzrange", "[2026-11-24,2026-11-25)", range(json!(from), json!(to))),
        (
            "int4multirange",
            "{[1,3),[5,8)}",
            json!([range(json!(1), json!(3)), range(json!(5), json!(8))]),
        ),
        ("int4multirange", "{}", json!([])),
        ("int8multirange", "{[1,3)}", json!([range(json!(1), json!(3))])),
        ("nummultirange", "{[1.5,3)}", json!([range(json!("1.5"), json!("3"))])),
        (
            "datemultirange",
            "{[2026-11-24,2026-11-25)}",
            json!([range(json!("2026-11-24"), json!("2026-11-25"))]),
        ),
        ("tsmultirange", "{[2026-11-24,2026-11-25)}", json!([range(json!(from), json!(to))])),
        ("tstzmultirange", "{[2026-11-24,2026-11-25)}", json!([range(json!(from), json!(to))])),
    ]
}

#[tokio::test]
async fn a_value_of_every_built_in_type_is_written_as_promised() {
    let cluster = Cluster::start().await;
    let client = session(&cluster).await;
    let types = Types::new();
    let mut sampled = BTreeSet::new();
    for (kind, literal, expected) in samples() {
        let literal = format!("{}::{kind}", quote_literal(literal));
        let scalar = value(&client, &literal).await;
        sampled.insert(scalar.0);
        assert_eq!(json(&types, scalar), expected, "{literal}");
        let array = value(&client, &format!("array[{literal}, null, {literal}]")).await;
        assert!(types.knows(array.0), "{literal}");
        assert_eq!(json(&types, array), json!([expected, null, expected]), "array of {literal}");
    }

    // No type was forgotten: all are known, and those that can be entered have a sample. The types
    // of the catalogs' own rows aside, whose arrays no table has. Category Z is for what has no
    // input; before PostgreSQL 15 they were filed under strings.
    let all = "select t.oid, t.typname, t.typcategory in ('A', 'Z') or t.typname = 'gtsvector'
                      or t.typname in ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies',
                        'pg_mcv_list', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary')
                 from pg_type t left join pg_type e on e.oid = t.typelem
                where t.typtype in ('b', 'r', 'm') and t.typisdefined and t.oid < 10000
                  and (e.typtype is null or e.typtype not in ('c', 'p'))";
    for row in rows(&client, all).await {
        let (oid, name) = (row.get(0).unwrap().parse().unwrap(), row.get(1).unwrap());
        let no_sample_needed = row.get(2) == Some("t");
        assert!(builtin(oid).is_some(), "{name} is not known");
        assert!(no_sample_needed || sampled.contains(&oid), "{name} has no sample");
    }
}

#[tokio::test]
async fn types_of_a_database_are_followed_to_what_they_are_made_of() {
    let cluster = Cluster::start().await;
    let client = session(&cluster).await;
    let make = "create type mood as enum ('so so', 'great, really');
                create domain positive as int check (value > 0);
                create domain tags as text[];
                create domain corner as box;
                create type item as (name text, price numeric, amount positive, gone int);
                alter type item drop attribute gone;
                create type \"Big \"\"order\" as (id int8, items item[], mood mood, at timestamptz);
                create type moods as range (subtype = mood);
                create type span as range (subtype = text, multirange_type_name = spans);
                create table shelf (item item, tags tags);
                create schema aside;
                create type aside.mood as (mood mood)";
    client.batch_execute(make).await.unwrap();
    for (expression, expected) in [
        ("'so so'::mood", json!("so so")),
        ("array['so so', null, 'great, really']::mood[]", json!(["so so", null, "great, really"])),
        ("row('so so')::aside.mood", json!({"mood": "so so"})),
        ("'[-1:0]={7,8}'::positive[]", json!([7, 8])),
        ("'{a,\"b c\"}'::tags", json!(["a", "b c"])),
        ("array['{a}', '{}', '{NULL}']::tags[]", json!([["a"], [], [null]])),
        ("array['(1,1),(0,0)', '(2,2),(0,0)']::corner[]", json!(["(1,1),(0,0)", "(2,2),(0,0)"])),
        ("'(cup,4.50,2)'::item", json!({"name": "cup", "price": "4.50", "amount": 2})),
        (
            "row(9007199254740993, array[row('a \"b\", (c)\\', 1.0, 3), row('', null, null), null]::item[],
                 'great, really', '2026-11-24 04:55:47+00')::\"Big \"\"order\"",
            json!({
                "id": "9007199254740993",
                "items": [
                    {"name": "a \"b\", (c)\\", "price": "1.0", "amount": 3},
                    {"name": "", "price": null, "amount": null},
                    null,
                ],
                "mood": "great, really",
                "at": "2026-11-24T04:55:47Z",
            }),
        ),
        (
            "row(row('cup', 1, 1), '{x}')::shelf",
            json!({"item": {"name": "cup", "price": "1", "amount": 1}, "tags": ["x"]}),
        ),
        (
            "moods('so so', 'great, really', '[]')",
            json!({"lower": "so so", "upper": "great, really", "bounds": "[]"}),
        ),
        (
            "array[span('', 'a \"b\", [c)', '()')]",
            json!([{"lower": "", "upper": "a \"b\", [c)", "bounds": "()"}]),
        ),
        (
            "spans(span('a', 'b'), span('c', null))",
            json!([
                {"lower": "a", "upper": "b", "bounds": "[)"},
                {"lower": "c", "upper": null, "bounds": "[)"},
            ]),
        ),
        ("1::information_schema.cardinal_number", json!(1)),
    ] {
        assert_eq!(look_up(&client, expression).await, expected, "{expression}");
    }
    let gone = catalog::load(&client, &[4_000_000_000]).await.unwrap();
    assert!(gone.knows(4_000_000_000), "what the catalog lacks is not asked for again");
}

#[tokio::test]
async fn any_string_survives_postgresqls_own_quoting() {
    let cluster = Cluster::start().await;
    let client = session(&cluster).await;
    client.batch_execute("create type pair as (a text, b text[])").await.unwrap();
    let mut strings: Vec<String> =
        ["", " ", "NULL", "null", "{", "}", "()", "a\\", "\\\"", "žluť 🐎"]
            .map(str::to_owned)
            .into();
    // Every ASCII character alone, twice, and between others.
    for character in (1..=127u8).map(char::from) {
        strings.extend([character.to_string(), format!("{character}{character}")]);
        strings.push(format!("a{character},\"{character}\\{character}b"));
    }
    let literals: Vec<String> = strings.iter().map(|text| quote_literal(text)).collect();
    let list = literals.join(",");
    assert_eq!(look_up(&client, &format!("array[{list}]")).await, json!(strings));
    let pairs: Vec<String> =
        literals.iter().map(|text| format!("row({text}, array[{text}])::pair")).collect();
    let expected: Vec<Value> = strings.iter().map(|text| json!({"a": text, "b": [text]})).collect();
    assert_eq!(look_up(&client, &format!("array[{}]", pairs.join(","))).await, json!(expected));
}
