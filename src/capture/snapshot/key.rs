//! Where a row stands in the order that its table is read in.
//!
//! PostgreSQL alone knows its orders (collations, enums, types of extensions), so a key is kept as
//! the text that PostgreSQL writes and reads for the key's columns, and compared over there. The
//! keys of changes are in the JSON of their events; here they are brought back to that text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::capture::json::Kind;

/// The values of a row's key columns, in the key's order, each as PostgreSQL writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub Vec<String>);

/// How far a table has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Nothing of it.
    #[serde(rename = "s")]
    Start,
    /// All rows up to this key, inclusive.
    #[serde(rename = "k")]
    At(Key),
    /// Everything.
    #[serde(rename = "e")]
    End,
}

/// Whether a key with values of this kind can be brought back to text.
pub(super) fn is_readable(kind: &Kind) -> bool {
    match kind {
        Kind::Bool
        | Kind::Integer
        | Kind::BigInteger
        | Kind::Float
        | Kind::Text
        | Kind::Date
        | Kind::Timestamp
        | Kind::Bytes => true,
        Kind::Document
        | Kind::Vector
        | Kind::Array { .. }
        | Kind::Composite(_)
        | Kind::Range(_)
        | Kind::Multirange(_) => false,
    }
}

/// The key of a row as an event carries it; `None` when a column of the key is not there.
pub(super) fn read<'a>(
    columns: impl Iterator<Item = (&'a str, &'a Kind)>,
    row: &RawValue,
) -> Option<Key> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(row.get()).ok()?;
    let value = |(name, kind): (&str, &Kind)| text(kind, members.get(name)?.get());
    columns.map(value).collect::<Option<Vec<_>>>().map(Key)
}

/// The text PostgreSQL reads for what the encoder made of it.
fn text(kind: &Kind, json: &str) -> Option<String> {
    if !json.starts_with('"') {
        return match json {
            "null" => None,
            number_or_bool => Some(number_or_bool.to_owned()),
        };
    }
    let said: String = serde_json::from_str(json).ok()?;
    match kind {
        Kind::Bytes => {
            let bytes = BASE64_STANDARD.decode(&said).ok()?;
            let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
            Some(format!("\\x{}", hex.collect::<String>()))
        }
        Kind::Date | Kind::Timestamp => Some(moment(said)),
        _ => Some(said),
    }
}

/// A date or a timestamp: astronomical years with a sign become years with an era.
fn moment(said: String) -> String {
    if said.ends_with("infinity") {
        return said;
    }
    let (before_era, rest) = match said.split_at_checked(1) {
        Some(("-", rest)) => (true, rest),
        Some(("+", rest)) => (false, rest),
        _ => match said.strip_prefix("0000-") {
            Some(rest) => return format!("0001-{rest} BC"),
            None => return said,
        },
    };
    let Some((year, rest)) = rest.split_once('-') else { return said };
    match year.parse::<u32>() {
        Ok(year) if before_era => format!("{:04}-{rest} BC", year + 1),
        Ok(year) => format!("{year:04}-{rest}"),
        Err(_) => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(columns: &[(&str, Kind)], row: &str) -> Option<Vec<String>> {
        let row: Box<RawValue> = serde_json::from_str(row).unwrap();
        read(columns.iter().map(|(name, kind)| (*name, kind)), &row).map(|key| key.0)
    }

    #[test]
    fn the_text_of_a_key_comes_back_from_its_json() {
        let columns = [
            ("t", Kind::Text),
            ("n", Kind::BigInteger),
            ("b", Kind::Bytes),
            ("f", Kind::Float),
            ("x", Kind::Bool),
        ];
        let row = r#"{"b":"3q2+7w==","n":"9223372036854775807","t":"a\"\u00fc","x":true,"f":1.5,"rest":{}}"#;
        let expected = ["a\"ü", "9223372036854775807", "\\xdeadbeef", "1.5", "true"];
        assert_eq!(key(&columns, row).unwrap(), expected);
        assert_eq!(key(&columns, "{\"t\":\"a\"}"), None);
        assert_eq!(key(&columns[..1], "{\"t\":null}"), None);
        assert_eq!(key(&columns, "null"), None);
    }

    #[test]
    fn years_outside_the_usual_get_their_era_back() {
        for (json, text) in [
            ("2026-11-24T04:55:47.5Z", "2026-11-24T04:55:47.5Z"),
            ("-0043-03-15", "0044-03-15 BC"),
            ("0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z BC"),
            ("+12345-06-07", "12345-06-07"),
            ("-infinity", "-infinity"),
            ("infinity", "infinity"),
        ] {
            assert_eq!(moment(json.to_owned()), text);
        }
    }
}
