//! One row's key: what a change is marked with, and what a reader of one row asks for.
//!
//! Values are compared by their text: a number by its digits, a string without its quotes. A reader
//! may therefore give `7` or `"7"` for a key that events show as either.
//!
//! Whoever appends a change may mark it with the values of its key columns. Marks become a filter
//! beside the chunk (see `filter`); the row that is asked for is always recognised by the change
//! itself, so that a change without marks is only slower to find, never lost.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The columns that a dataset's changes are marked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumns {
    names: Vec<String>,
    seeds: Vec<u64>,
}

impl KeyColumns {
    /// These columns, in the order in which values are given.
    pub fn new(names: Vec<String>) -> Self {
        let seeds = names.iter().map(|name| seed(name)).collect();
        Self { names, seeds }
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The mark of a value as it stands in the event; `None` when values like it cannot be marked.
    pub fn mark(&self, index: usize, json: &[u8]) -> Option<u64> {
        let seed = *self.seeds.get(index)?;
        let text = match json {
            [b'{' | b'[', ..] => return None,
            [b'"', text @ .., b'"'] => text,
            text => text,
        };
        Some(mark(seed, text))
    }
}

/// FNV-1a of the name and a zero byte. Marks are stored: the function never changes.
fn seed(name: &str) -> u64 {
    name.bytes().chain([0]).fold(0xcbf2_9ce4_8422_2325, step)
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The mark of a text without quotes. How a string is escaped is not part of it: all that need
/// escapes have the same mark.
fn mark(seed: u64, text: &[u8]) -> u64 {
    let text = if memchr::memchr(b'\\', text).is_some() { b"\\" } else { text };
    let hash = text.iter().fold(seed, |hash, byte| step(hash, *byte));
    // FNV mixes its upper bits little.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A value that a reader asks for: the text and whether it was a number.
#[derive(Debug, Clone)]
struct Wanted {
    text: String,
    number: Option<f64>,
}

impl Wanted {
    /// Reads a JSON value that is no object or list.
    fn parse(json: &str) -> Option<Self> {
        match json.trim().as_bytes() {
            [b'{' | b'[', ..] | [] => None,
            [b'"', ..] => Some(Self { text: serde_json::from_str(json).ok()?, number: None }),
            _ => Some(Self { text: json.trim().to_owned(), number: json.trim().parse().ok() }),
        }
    }

    /// Whether a value in an event is this one.
    fn is(&self, json: &str) -> bool {
        let text = if json.starts_with('"') {
            serde_json::from_str::<Cow<'_, str>>(json).unwrap_or_default()
        } else {
            Cow::Borrowed(json)
        };
        text == self.text.as_str()
            || self.number.is_some_and(|number| json.parse::<f64>() == Ok(number))
    }

    /// Its text as an event writes it, unless one number is written in several ways.
    fn written(&self) -> Option<Vec<u8>> {
        if self.number.is_some() && self.text.contains(['.', 'e', 'E', '+']) {
            return None;
        }
        let json = serde_json::to_vec(&self.text).ok()?;
        Some(json.get(1..json.len().saturating_sub(1))?.to_vec())
    }
}

/// The row whose changes are asked for, by some of its columns.
#[derive(Debug, Clone)]
pub struct Key {
    columns: BTreeMap<String, Wanted>,
}

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl Key {
    /// Reads `{"id":7}`; or one value (`7`, `"a b"`, or text that is not JSON) for the only column
    /// in `columns`, which are those of the dataset's key as far as they are known.
    pub fn parse(text: &str, columns: Option<&[String]>) -> Result<Self, KeyError> {
        const EXPECTED: &str =
            "expected a JSON object of columns and values, such as {\"id\":7}, or one value";
        let text = text.trim();
        if text.starts_with('{') {
            let given: BTreeMap<String, &RawValue> = serde_json::from_str(text)
                .map_err(|error| KeyError(format!("key: {error}; {EXPECTED}")))?;
            if given.is_empty() {
                return Err(KeyError(format!("key: it names no column; {EXPECTED}")));
            }
            let value = |(name, value): (String, &RawValue)| {
                let wanted = Wanted::parse(value.get()).ok_or_else(|| {
                    KeyError(format!("key: \"{name}\" is no single value; {EXPECTED}"))
                })?;
                Ok((name, wanted))
            };
            let columns = given.into_iter().map(value).collect::<Result<_, _>>()?;
            return Ok(Self { columns });
        }
        let column = match columns {
            Some([column]) => column.clone(),
            Some(several) => {
                let names = several.join(", ");
                return Err(KeyError(format!(
                    "key: the key has the columns {names}; name them, such as {{\"{}\":…}}",
                    several.first().map_or("id", String::as_str)
                )));
            }
            None => {
                return Err(KeyError(format!(
                    "key: the log does not know which column is the key; {EXPECTED} with its \
                     column: {{\"id\":{text}}}"
                )));
            }
        };
        let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
        let wanted = if is_json { Wanted::parse(text) } else { None };
        let wanted = wanted.unwrap_or_else(|| Wanted { text: text.to_owned(), number: None });
        Ok(Self { columns: BTreeMap::from([(column, wanted)]) })
    }

    /// Whether a change concerns the row: an image of it has the values, or it concerns every row,
    /// or it is no change of a row at all.
    pub fn concerns(&self, line: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            event: Option<&'a RawValue>,
            op: Option<Cow<'a, str>>,
            #[serde(borrow)]
            before: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
            #[serde(borrow)]
            after: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
        }
        // What cannot be read is not left out.
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { return true };
        if line.event.is_some() || line.op.as_deref() == Some("t") {
            return true;
        }
        let matches = |image: &BTreeMap<Cow<'_, str>, &RawValue>| {
            self.columns
                .iter()
                .all(|(name, wanted)| image.get(name.as_str()).is_some_and(|v| wanted.is(v.get())))
        };
        line.before.as_ref().is_some_and(matches) || line.after.as_ref().is_some_and(matches)
    }

    /// The marks that a change of the row must have, with the column of each.
    pub(super) fn marks(&self) -> impl Iterator<Item = (&str, u64)> {
        self.columns.iter().filter_map(|(name, wanted)| {
            Some((name.as_str(), mark(seed(name), &wanted.written()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text, Some(&["id".to_owned()])).unwrap()
    }

    #[test]
    fn a_row_is_recognised_in_either_image_and_in_any_spelling() {
        let line = |before: &str, after: &str| {
            format!("{{\"op\":\"u\",\"before\":{before},\"after\":{after}}}").into_bytes()
        };
        for (asked, value) in [
            ("7", "7"),
            ("7", "\"7\""),
            ("\"7\"", "7"),
            ("{\"id\":7}", "7"),
            ("abc", "\"abc\""),
            ("\"a \\\"b\"", "\"a \\\"b\""),
            ("12.50", "\"12.50\""),
            ("7.0", "7"),
            ("2026-11-24T00:00:00Z", "\"2026-11-24T00:00:00Z\""),
        ] {
            let row = format!("{{\"note\":\"x\",\"id\":{value}}}");
            assert!(key(asked).concerns(&line("null", &row)), "{asked} {value}");
            assert!(key(asked).concerns(&line(&row, "null")), "{asked} {value}");
            assert!(!key(asked).concerns(&line("null", "{\"id\":8}")), "{asked}");
            assert!(!key(asked).concerns(&line("null", "{\"other\":7}")), "{asked}");
        }
        let pair = Key::parse("{\"a\":1,\"b\":\"x\"}", None).unwrap();
        assert!(pair.concerns(&line("null", "{\"a\":1,\"b\":\"x\",\"c\":0}")));
        assert!(!pair.concerns(&line("{\"a\":1,\"b\":\"y\"}", "{\"a\":2,\"b\":\"x\"}")));
    }

    #[test]
    fn what_concerns_every_row_concerns_this_one() {
        assert!(key("7").concerns(br#"{"op":"t","before":null,"after":null}"#));
        assert!(key("7").concerns(br#"{"event":"gap","gap":{}}"#));
        assert!(key("7").concerns(b"not json"));
    }

    #[test]
    fn marks_of_what_is_asked_are_marks_of_what_was_written() {
        let columns = KeyColumns::new(vec!["id".to_owned(), "at".to_owned()]);
        for (asked, written) in [
            ("7", &b"7"[..]),
            ("\"7\"", b"7"),
            ("7", b"\"7\""),
            ("abc", b"\"abc\""),
            ("\"a\\\"b\"", b"\"a\\\"b\""),
            ("\"\\u0008\"", b"\"\\u0008\""),
            ("true", b"true"),
        ] {
            let key = key(asked);
            let marks: Vec<_> = key.marks().collect();
            assert_eq!(marks, [("id", columns.mark(0, written).unwrap())], "{asked}");
        }
        assert_ne!(columns.mark(0, b"7"), columns.mark(1, b"7"), "the column counts");
        assert_eq!(columns.mark(0, b"{}"), None);
        assert_eq!(key("7.0").marks().count(), 0, "1.0, 1 and 1e0 are one number");
        // Marks are stored: they stay what they are.
        assert_eq!(columns.mark(0, b"7"), Some(2_011_221_306_826_918_969));
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_is() {
        let columns = ["a".to_owned(), "b".to_owned()];
        for (text, known, hint) in [
            ("7", None, "{\"id\":7}"),
            ("7", Some(&columns[..]), "columns a, b"),
            ("{\"a\":[1]}", None, "no single value"),
            ("{}", None, "names no column"),
            ("{\"a\":", None, "expected a JSON object"),
        ] {
            let error = Key::parse(text, known).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
