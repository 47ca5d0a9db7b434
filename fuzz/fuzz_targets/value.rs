//! Any text as a value of any kind: always one valid JSON value on one line, no panic.

#![no_main]

use cadastre::capture::json::{Field, Kind, write_value};
use libfuzzer_sys::fuzz_target;

/// A kind made from the first bytes, nested as they say.
fn kind(bytes: &mut &[u8], depth: u32) -> Kind {
    let [first, rest @ ..] = *bytes else { return Kind::Text };
    *bytes = rest;
    let inner = |bytes: &mut &[u8]| {
        Box::new(if depth == 0 { Kind::Text } else { kind(bytes, depth - 1) })
    };
    match first % 14 {
        0 => Kind::Bool,
        1 => Kind::Integer,
        2 => Kind::BigInteger,
        3 => Kind::Float,
        4 => Kind::Date,
        5 => Kind::Timestamp,
        6 => Kind::Bytes,
        7 => Kind::Document,
        8 => Kind::Vector,
        9 => Kind::Array { element: inner(bytes), delimiter: b',' },
        10 => Kind::Composite(
            vec![Field::new(b"a", *inner(bytes)), Field::new(b"b", Kind::Text)].into(),
        ),
        11 => Kind::Range(inner(bytes)),
        12 => Kind::Multirange(inner(bytes)),
        _ => Kind::Text,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut text = bytes;
    let kind = kind(&mut text, 3);
    let mut json = Vec::new();
    write_value(&kind, text, &mut json);
    assert!(!json.contains(&b'\n'), "one line");
    serde_json::from_slice::<serde_json::Value>(&json).expect("valid JSON");
});
