//! Values of every kind against the JSON that subscribers are promised.

use proptest::prelude::*;

use super::*;

fn json(kind: &Kind, text: &str) -> String {
    let mut out = Vec::new();
    write_value(kind, text.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

fn array(element: Kind) -> Kind {
    Kind::Array { element: Box::new(element), delimiter: b',' }
}

fn composite(fields: &[(&str, Kind)]) -> Kind {
    Kind::Composite(fields.iter().map(|(n, k)| Field::new(n.as_bytes(), k.clone())).collect())
}

/// One line per value: type, text, JSON.
fn table(rows: &[(&str, Kind, &[&str])]) -> String {
    let mut table = String::new();
    for (name, kind, texts) in rows {
        for text in *texts {
            let shown = text.replace('\n', "⏎");
            table += &format!("{name:14} {shown:60} {}\n", json(kind, text));
        }
    }
    table
}

#[test]
fn scalars_look_as_promised() {
    let of = |oid| builtin(oid).unwrap();
    let table = table(&[
        ("bool", of(16), &["t", "f"]),
        ("int2", of(21), &["-32768", "32767"]),
        ("int4", of(23), &["-2147483648", "0"]),
        ("oid", of(26), &["4294967295"]),
        ("xid", of(28), &["741"]),
        ("cid", of(29), &["0"]),
        ("int8", of(20), &["9007199254740992", "9007199254740993", "-9223372036854775808"]),
        ("xid8", of(5069), &["741", "18446744073709551615"]),
        ("float4", of(700), &["1.5", "-0", "1e+20", "NaN"]),
        ("float8", of(701), &["1e-300", "Infinity", "-Infinity", "0.1"]),
        (
            "numeric",
            of(1700),
            &["1.10", "-0.000001", "NaN", "Infinity", "123456789012345678901234567890"],
        ),
        ("money", of(790), &["$1,000.00"]),
        (
            "text",
            of(25),
            &[
                "",
                "plain",
                "a \"quoted\" \\ one",
                "two\nlines\tand a tab",
                "žluťoučký kůň 🐎",
                "NULL",
            ],
        ),
        ("varchar", of(1043), &["x"]),
        ("bpchar", of(1042), &["x   "]),
        ("name", of(19), &["orders"]),
        ("char", of(18), &["c", ""]),
        ("bytea", of(17), &["\\x", "\\x00ff10", "escape\\000"]),
        (
            "date",
            of(1082),
            &[
                "2026-11-24",
                "0044-03-15 BC",
                "0001-01-01 BC",
                "10000-01-01",
                "infinity",
                "-infinity",
            ],
        ),
        ("timestamp", of(1114), &["2026-11-24 04:55:47.123", "0044-03-15 12:00:00 BC", "infinity"]),
        (
            "timestamptz",
            of(1184),
            &["2026-11-24 04:55:47+00", "10000-01-01 00:00:00.000001+00", "2026-11-24 04:55:47+02"],
        ),
        ("time", of(1083), &["23:59:59.999999", "24:00:00"]),
        ("timetz", of(1266), &["04:05:06+02"]),
        ("interval", of(1186), &["P1Y2M3DT4H5M6.7S", "PT0S", "P-1DT2H"]),
        ("uuid", of(2950), &["7f3c1d9e-8f0a-4d0e-9d5a-0f1e2d3c4b5a"]),
        (
            "json",
            of(114),
            &[
                "{ \"a\" : [1, 2.50, null],\n \"b\":\"x y\" }",
                "  \"s\"",
                "[1",
                "{\"a\":\"\\ud800\"}",
            ],
        ),
        ("jsonb", of(3802), &["{\"a\": {\"b\": []}}", "null", "1e400"]),
        ("jsonpath", of(4072), &["$.\"a\"[*]"]),
        ("xml", of(142), &["<a b=\"c\">d</a>"]),
        ("inet", of(869), &["10.0.0.1/24", "::1"]),
        ("cidr", of(650), &["10.0.0.0/8"]),
        ("macaddr", of(829), &["08:00:2b:01:02:03"]),
        ("macaddr8", of(774), &["08:00:2b:ff:fe:01:02:03"]),
        ("bit", of(1560), &["101"]),
        ("varbit", of(1562), &[""]),
        ("point", of(600), &["(1,2.5)"]),
        ("box", of(603), &["(1,1),(0,0)"]),
        ("circle", of(718), &["<(0,0),1>"]),
        ("tsvector", of(3614), &["'fat':2 'rat':3"]),
        ("tsquery", of(3615), &["'fat' & 'rat'"]),
        ("pg_lsn", of(3220), &["0/16CA548"]),
        ("regclass", of(2205), &["public.orders"]),
        ("pg_snapshot", of(5038), &["10:20:10,14"]),
        ("tid", of(27), &["(0,1)"]),
        ("int2vector", of(22), &["1 2 -3", ""]),
        ("oidvector", of(30), &["26 27"]),
    ]);
    insta::assert_snapshot!(table);
}

#[test]
fn nested_values_keep_their_structure() {
    let item = composite(&[("name", Kind::Text), ("price", Kind::Text), ("n", Kind::Integer)]);
    let order = composite(&[
        ("id", Kind::BigInteger),
        ("items", array(item.clone())),
        ("note", Kind::Text),
    ]);
    let of = |oid| builtin(oid).unwrap();
    let table = table(&[
        (
            "int4[]",
            of(1007),
            &["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:1]={5,6}", "[1:1][-2:-1]={{7,8}}", "{1,x}"],
        ),
        (
            "text[]",
            of(1009),
            &[
                "{a,\"\",NULL,\"NULL\",\"null\"}",
                r#"{"a,b","c\"d","e\\f","{}"," g ",žluť}"#,
                "{a",
                "{a,}",
                "a",
            ],
        ),
        ("bool[]", of(1000), &["{t,f,NULL}"]),
        ("float8[]", of(1022), &["{1e+20,NaN,-Infinity}"]),
        ("bytea[]", of(1001), &["{\"\\\\x00ff\",NULL}"]),
        ("jsonb[]", of(3807), &["{\"{\\\"a\\\": [1, 2]}\",\"null\",NULL}"]),
        ("timestamptz[]", of(1185), &["{\"2026-11-24 04:55:47+00\",infinity}"]),
        ("box[]", of(1020), &["{(1,1),(0,0);(3,3),(2,2)}"]),
        ("int2vector[]", of(1006), &["{\"1 2\",3}"]),
        (
            "composite",
            item.clone(),
            &[
                "(cup,4.50,2)",
                "(,,)",
                "(\"\",,0)",
                r#"("a ""b"", c\\d",1,2)"#,
                "(a,b)",
                "(a,b,3,4)",
            ],
        ),
        ("composite[]", array(item), &[r#"{"(cup,4.50,2)","(\"a, b\",,)",NULL}"#]),
        ("nested", order, &[r#"(7,"{""(cup,4.50,2)"",""(\\""a, b\\"",,)""}","x, ""y""")"#]),
        ("int4range", of(3904), &["[1,10)", "empty", "(,5)", "[1,)", "(,)"]),
        ("int8range", of(3926), &["[1,9223372036854775807)"]),
        ("numrange", of(3906), &["[1.5,2.50]"]),
        (
            "tsrange",
            of(3908),
            &[
                "[\"2026-11-24 00:00:00\",\"2026-11-25 00:00:00\")",
                "[\"2026-11-24 00:00:00\",infinity]",
            ],
        ),
        ("tstzrange", of(3910), &["[\"2026-11-24 00:00:00+00\",)"]),
        ("daterange", of(3912), &["[2026-11-24,2026-11-25)", "[\"0044-03-15 BC\",)"]),
        ("textrange", Kind::Range(Box::new(Kind::Text)), &[r#"["",a]"#, r#"("a ""b"", [c)",)"#]),
        ("int4multirange", of(4451), &["{}", "{[1,3),[5,8)}", "{(,)}", "{[1,3)"]),
        ("tsmultirange", of(4533), &["{[\"2026-11-24 00:00:00\",\"2026-11-25 00:00:00\")}"]),
        ("int4range[]", of(3905), &["{\"[1,2)\",empty,NULL}"]),
    ]);
    insta::assert_snapshot!(table);
}

#[test]
fn a_binary_column_is_base64_and_null_is_null() {
    let mut out = Vec::new();
    write_column(&Kind::Integer, Column::Binary(&[0, 0, 0, 7]), &mut out);
    write_column(&Kind::Text, Column::Null, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "\"AAAABw==\"null");
}

/// As `array_out` quotes an element.
fn array_element(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// As `record_out` and `range_out` quote a field or bound.
fn record_field(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let leaf = prop_oneof![
        Just(Kind::Bool),
        Just(Kind::Integer),
        Just(Kind::BigInteger),
        Just(Kind::Float),
        Just(Kind::Text),
        Just(Kind::Date),
        Just(Kind::Timestamp),
        Just(Kind::Bytes),
        Just(Kind::Document),
        Just(Kind::Vector),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(array),
            inner.clone().prop_map(|bound| Kind::Range(Box::new(bound))),
            inner.clone().prop_map(|bound| Kind::Multirange(Box::new(bound))),
            proptest::collection::vec(("[a-z\"\n]{0,5}", inner), 0..3).prop_map(|fields| {
                let fields = fields.into_iter();
                Kind::Composite(fields.map(|(n, k)| Field::new(n.as_bytes(), k)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_comes_back_through_arrays_and_composites(
        texts in proptest::collection::vec("(?s)[a-z,\"\\\\{}() ]{0,10}|(?s).{0,30}", 1..4),
    ) {
        let elements: Vec<String> = texts.iter().map(|text| array_element(text)).collect();
        let literal = format!("{{{}}}", elements.join(","));
        let read: Vec<String> = serde_json::from_str(&json(&array(Kind::Text), &literal)).unwrap();
        prop_assert_eq!(&read, &texts);

        let item = composite(&[("a", Kind::Text), ("b", Kind::Text)]);
        let rows: Vec<String> = texts
            .iter()
            .map(|text| array_element(&format!("({},{})", record_field(text), record_field("x"))))
            .collect();
        let literal = format!("{{{}}}", rows.join(","));
        let read: Vec<serde_json::Value> =
            serde_json::from_str(&json(&array(item), &literal)).unwrap();
        for (row, text) in read.iter().zip(&texts) {
            prop_assert_eq!(&row["a"], text);
            prop_assert_eq!(&row["b"], "x");
        }

        let bound = Kind::Range(Box::new(Kind::Text));
        let literal = format!("[{},)", record_field(&texts[0]));
        let read: serde_json::Value = serde_json::from_str(&json(&bound, &literal)).unwrap();
        prop_assert_eq!(&read["lower"], &texts[0]);
        prop_assert_eq!(&read["upper"], &serde_json::Value::Null);
    }

    #[test]
    fn whatever_the_text_one_line_of_valid_json_is_written(
        kind in any_kind(),
        text in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            r#"[\[\](){},;"\\0-9NULa-e.:+ \n-]{0,60}"#.prop_map(String::into_bytes),
        ],
    ) {
        let mut out = Vec::new();
        write_value(&kind, &text, &mut out);
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{:?}", String::from_utf8_lossy(&out));
        prop_assert!(!out.contains(&b'\n'));
    }
}
