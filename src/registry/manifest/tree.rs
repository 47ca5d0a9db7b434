//! YAML as a tree in which every value knows its line.
//!
//! Reading into this tree first, and only then into what a manifest means, is what lets one run
//! report every mistake instead of the first.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

/// A value and the line it begins on, from 1.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

/// What YAML can say. A map keeps duplicate keys, so that they can be reported.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its line.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) line: u64,
    pub(super) text: String,
}

/// The tree of a single YAML document, or where and why it is not one.
pub(super) fn read(text: &str) -> Result<Node, (u64, String)> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        with_snippet: false,
    };
    let root: Spanned<Value> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            (line, why(&error.to_string()))
        })?;
    Ok(Node::from(root))
}

/// The parser's message without the place, which is told beside it, and without its own API.
fn why(message: &str) -> String {
    if message.starts_with("multiple YAML documents") {
        return "expected a single YAML document".to_owned();
    }
    let without_place = message.split(" at line ").next();
    format!("expected YAML: {}", without_place.unwrap_or(message))
}

impl Value {
    /// What this is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("expected a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Spanned<Value>>()? {
            let key = Key { line: key.referenced.line(), text: key.value };
            map.push((key, value.into()));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_and_key_knows_its_line() {
        let root = read("a: 1\nb:\n  c: [x, ~]\na: {d: yes}\n").unwrap();
        let Value::Map(entries) = root.value else { panic!() };
        let lines = entries.iter().map(|(key, node)| (key.text.as_str(), key.line, node.line));
        assert_eq!(lines.collect::<Vec<_>>(), [("a", 1, 1), ("b", 2, 3), ("a", 4, 4)]);
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        for (text, line, message) in [
            ("a: 1\nb: [", 2, "unclosed bracket"),
            ("a: 'x\n", 1, "unclosed quote"),
            ("a: 1\n---\nb: 2\n", 3, "expected a single YAML document"),
            ("a: *nowhere", 1, "alias"),
        ] {
            let (at, why) = read(text).unwrap_err();
            assert!(at == line && why.contains(message), "{text:?}: {at}: {why}");
            assert!(!why.contains(" at line "), "{why}");
        }
    }

    #[test]
    fn hostile_documents_end_in_an_error() {
        let deep = "[".repeat(100_000);
        assert!(read(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(&deep).is_err());
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
        }
        assert!(read(&bomb).is_err());
    }
}
