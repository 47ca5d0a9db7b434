//! What a table's rows look like, and values in the form PostgreSQL reads them.
//!
//! Events write some values in a form of their own (`bytea` as base64, ranges as objects); here
//! they are read in that same form, so that what a feed gave can be written back.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::Error;
use super::request::Row;

/// How a column's values are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As `jsonb_populate_record` reads them.
    Plain,
    /// `bytea`: base64.
    Bytes,
    /// A range: `{"lower","upper","bounds"}` or `{"empty":true}`.
    Range,
    /// An array of ranges.
    Multirange,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// How its values are written.
    pub(super) form: Form,
    /// Whether it is part of the key.
    pub(super) is_key: bool,
    /// Whether PostgreSQL alone gives it values.
    pub(super) is_generated: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// `"schema"."table"`.
    pub(super) table: String,
    /// In the table's order.
    pub(super) columns: Vec<Column>,
}

impl Shape {
    /// The key columns, in the table's order.
    pub(super) fn key(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.is_key)
    }

    /// Values for some columns, in the form PostgreSQL reads.
    pub(super) fn values(&self, row: &Row, place: &str) -> Result<Row, Error> {
        let mut values = Row::new();
        for (name, value) in row {
            let column = self.column(name, place)?;
            let place = format!("{place}.{name}");
            if column.is_generated {
                let message =
                    "PostgreSQL alone gives this column its values: leave it out".to_owned();
                return Err(Error::Invalid { place, message });
            }
            values.insert(name.clone(), convert(column.form, value, &place)?);
        }
        Ok(values)
    }

    /// The values of all key columns and no other.
    pub(super) fn key_values(&self, key: &Row, place: &str) -> Result<Row, Error> {
        let invalid = |message: String| Error::Invalid { place: place.to_owned(), message };
        let names = || {
            let names: Vec<String> =
                self.key().map(|column| format!("\"{}\"", column.name)).collect();
            names.join(", ")
        };
        if self.key().next().is_none() {
            return Err(invalid(
                "the table has no primary key or replica identity index, so no row can be named"
                    .to_owned(),
            ));
        }
        if let Some((name, _)) = key.iter().find(|(name, _)| !self.key().any(|k| k.name == **name))
        {
            return Err(invalid(format!("\"{name}\" is no key column; expected {}", names())));
        }
        let mut values = Row::new();
        for column in self.key() {
            let value =
                key.get(&column.name).filter(|value| value.get() != "null").ok_or_else(|| {
                    invalid(format!("expected a value of each key column: {}", names()))
                })?;
            let place = format!("{place}.{}", column.name);
            values.insert(column.name.clone(), convert(column.form, value, &place)?);
        }
        Ok(values)
    }

    fn column(&self, name: &str, place: &str) -> Result<&Column, Error> {
        self.columns.iter().find(|column| column.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            Error::Invalid {
                place: place.to_owned(),
                message: format!("no column \"{name}\"; there are {}", names.join(", ")),
            }
        })
    }
}

/// A value as PostgreSQL reads it.
fn convert(form: Form, value: &RawValue, place: &str) -> Result<Box<RawValue>, Error> {
    let invalid =
        |message: &str| Error::Invalid { place: place.to_owned(), message: message.to_owned() };
    let text = match form {
        _ if value.get() == "null" => return Ok(value.to_owned()),
        Form::Plain => return Ok(value.to_owned()),
        Form::Bytes => {
            let text: String = serde_json::from_str(value.get())
                .map_err(|_| invalid("expected base64 in a string"))?;
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| invalid("expected base64"))?;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{hex}")
        }
        Form::Range => range(value.get()).ok_or_else(|| invalid(RANGE))?,
        Form::Multirange => multirange(value.get()).ok_or_else(|| invalid(MULTIRANGE))?,
    };
    to_raw_value(&text).map_err(|error| invalid(&error.to_string()))
}

const RANGE: &str = "expected a range: {\"lower\": …, \"upper\": …, \"bounds\": \"[)\"}, \
    {\"empty\": true}, or PostgreSQL's own text";
const MULTIRANGE: &str = "expected an array of ranges, or PostgreSQL's own text";

/// A range as an event writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    #[serde(default)]
    lower: Option<Box<RawValue>>,
    #[serde(default)]
    upper: Option<Box<RawValue>>,
    #[serde(default)]
    bounds: Option<String>,
    #[serde(default)]
    empty: bool,
}

/// A range in PostgreSQL's text form:
/// <https://www.postgresql.org/docs/18/rangetypes.html#RANGETYPES-IO>.
fn range(json: &str) -> Option<String> {
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return Some(text);
    }
    let Range { lower, upper, bounds, empty } = serde_json::from_str(json).ok()?;
    if empty {
        let alone = lower.is_none() && upper.is_none() && bounds.is_none();
        return alone.then(|| "empty".to_owned());
    }
    let bounds = bounds.as_deref().unwrap_or("[)");
    if !["[)", "[]", "(]", "()"].contains(&bounds) {
        return None;
    }
    let (open, close) = bounds.split_at(1);
    Some(format!("{open}{},{}{close}", bound(lower)?, bound(upper)?))
}

/// One end of a range: a string is quoted, a number stands as it is.
fn bound(value: Option<Box<RawValue>>) -> Option<String> {
    let Some(value) = value else { return Some(String::new()) };
    match serde_json::from_str::<serde_json::Value>(value.get()).ok()? {
        serde_json::Value::Null => Some(String::new()),
        serde_json::Value::String(text) => {
            Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
        }
        serde_json::Value::Number(_) => Some(value.get().to_owned()),
        _ => None,
    }
}

fn multirange(json: &str) -> Option<String> {
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return Some(text);
    }
    let parts: Vec<Box<RawValue>> = serde_json::from_str(json).ok()?;
    let parts: Vec<String> = parts.iter().map(|part| range(part.get())).collect::<Option<_>>()?;
    Some(format!("{{{}}}", parts.join(",")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shape() -> Shape {
        let column = |name: &str, form, is_key, is_generated| Column {
            name: name.to_owned(),
            form,
            is_key,
            is_generated,
        };
        Shape {
            table: "\"public\".\"t\"".to_owned(),
            columns: vec![
                column("id", Form::Plain, true, false),
                column("photo", Form::Bytes, false, false),
                column("span", Form::Range, false, false),
                column("total", Form::Plain, false, true),
            ],
        }
    }

    fn row(value: Value) -> Row {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn values_are_read_as_events_write_them() {
        let given = json!({"id": 1, "photo": "AP8=", "span": {"lower": "a\"", "upper": null}});
        let read = shape().values(&row(given), "insert[0]").unwrap();
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            json!({"id": 1, "photo": "\\x00ff", "span": "[\"a\\\"\",)"})
        );
        assert_eq!(range(r#"{"empty": true}"#).unwrap(), "empty");
        assert_eq!(range(r#"{"lower": 1.50, "upper": 2, "bounds": "[]"}"#).unwrap(), "[1.50,2]");
        assert_eq!(range(r#""[1,2)""#).unwrap(), "[1,2)");
        assert_eq!(multirange(r#"[{"lower": 1}, {"upper": 0}]"#).unwrap(), "{[1,),[,0)}");
        assert_eq!(range(r#"{"empty": true, "lower": 1}"#), None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place_and_what_can() {
        for (given, expected) in [
            (json!({"nope": 1}), "insert[0]: no column \"nope\"; there are id, photo, span, total"),
            (json!({"photo": "%"}), "insert[0].photo: expected base64"),
            (json!({"photo": 7}), "insert[0].photo: expected base64 in a string"),
            (json!({"span": {"from": 1}}), "insert[0].span: expected a range"),
            (json!({"total": 1}), "insert[0].total: PostgreSQL alone"),
        ] {
            let error = shape().values(&row(given), "insert[0]").unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        for (given, expected) in [
            (json!({}), "delete[0].key: expected a value of each key column: \"id\""),
            (json!({"id": null}), "delete[0].key: expected a value"),
            (
                json!({"id": 1, "span": 1}),
                "delete[0].key: \"span\" is no key column; expected \"id\"",
            ),
        ] {
            let error = shape().key_values(&row(given), "delete[0].key").unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
