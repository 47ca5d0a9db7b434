//! What of a change a subscriber wants, and in which form: a condition on its rows, some of its
//! columns, an envelope.
//!
//! Compiled once per reader. Without one the bytes of capture pass untouched; with one each change
//! is read, judged and written anew for this reader, at its own cost. What concerns the dataset
//! itself (a gap, a new owner, a new schema) always passes.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use chrono::DateTime;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::vocab::{Column, Found, Op, Position, Predicate, Side};

/// What of a change is wanted, and in which form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shape {
    /// Only changes of which this holds.
    pub predicate: Option<Predicate>,
    /// Only these columns of the rows; `None` is all.
    pub columns: Option<BTreeSet<String>>,
    /// In the envelope of CloudEvents 1.0, in its JSON format.
    pub cloud_event: bool,
}

impl Shape {
    /// Whether every change passes as it is.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The change as it is wanted; `None` when it is not.
    pub fn apply(&self, position: Position, op: Op, json: &Bytes) -> Option<Bytes> {
        let of_row = Op::CHANGES.contains(&op);
        if of_row && self.predicate.as_ref().is_some_and(|predicate| !holds(predicate, json)) {
            return None;
        }
        let mut json = json.clone();
        if of_row
            && let Some(columns) = &self.columns
            && let Some(projected) = project(&json, columns)
        {
            json = projected.into();
        }
        if self.cloud_event {
            json = cloud_event(position, op, &json).into();
        }
        Some(json)
    }
}

/// The members of an object, in order, their values unread.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A member's name, borrowed unless it is escaped.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The rows of a change.
#[derive(Deserialize)]
struct Rows<'a> {
    #[serde(borrow)]
    before: Option<Members<'a>>,
    #[serde(borrow)]
    after: Option<Members<'a>>,
}

fn holds(predicate: &Predicate, json: &[u8]) -> bool {
    let Ok(rows) = serde_json::from_slice::<Rows<'_>>(json) else { return false };
    predicate.holds(&mut |column| {
        let row = match column.side {
            Side::Before => rows.before.as_ref(),
            Side::After => rows.after.as_ref(),
            Side::Row => rows.after.as_ref().or(rows.before.as_ref()),
        };
        row.map_or(Found::Nothing, |row| look_up(row, column))
    })
}

fn look_up(row: &Members<'_>, column: &Column) -> Found {
    let found = row.0.iter().find(|(name, _)| *name == column.name);
    let Some((_, value)) = found else { return Found::Nothing };
    match value.get().as_bytes() {
        b"null" => Found::Null,
        b"true" => Found::Bool(true),
        b"false" => Found::Bool(false),
        [b'"', ..] => serde_json::from_str(value.get()).map_or(Found::Nothing, Found::Text),
        [b'{' | b'[', ..] => Found::Nothing,
        _ => Found::Number(value.get().to_owned()),
    }
}

/// The event with only these columns in its rows.
fn project(json: &[u8], columns: &BTreeSet<String>) -> Option<Vec<u8>> {
    let event: Members<'_> = serde_json::from_slice(json).ok()?;
    let mut out = Vec::with_capacity(json.len());
    let mut separator = b'{';
    for (name, value) in &event.0 {
        let value = match name.as_ref() {
            "before" | "after" => Cow::Owned(row(value.get(), columns)?),
            "unchanged" => {
                let names: Vec<String> = serde_json::from_str(value.get()).ok()?;
                let kept: Vec<_> = names.iter().filter(|name| columns.contains(*name)).collect();
                if kept.is_empty() {
                    continue;
                }
                Cow::Owned(serde_json::to_vec(&kept).ok()?)
            }
            _ => Cow::Borrowed(value.get().as_bytes()),
        };
        member(&mut out, separator, name, &value)?;
        separator = b',';
    }
    out.push(b'}');
    Some(out)
}

/// A row with only these columns.
fn row(json: &str, columns: &BTreeSet<String>) -> Option<Vec<u8>> {
    if json == "null" {
        return Some(b"null".to_vec());
    }
    let row: Members<'_> = serde_json::from_str(json).ok()?;
    let mut out = vec![b'{'];
    let kept = row.0.iter().filter(|(name, _)| columns.contains(name.as_ref()));
    for (index, (name, value)) in kept.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, name).ok()?;
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Some(out)
}

fn member(out: &mut Vec<u8>, separator: u8, name: &str, value: &[u8]) -> Option<()> {
    out.push(separator);
    serde_json::to_writer(&mut *out, name).ok()?;
    out.push(b':');
    out.extend_from_slice(value);
    Some(())
}

/// The event as the data of an event of CloudEvents 1.0, in its JSON format:
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.
/// `id` is the position, and `sequence` as well: it sorts as the changes do.
pub(super) fn cloud_event(position: impl std::fmt::Display, op: Op, json: &[u8]) -> Vec<u8> {
    #[derive(Deserialize, Default)]
    struct About<'a> {
        #[serde(borrow)]
        dataset: Option<Cow<'a, str>>,
        source: Option<Committed>,
        #[serde(borrow)]
        traceparent: Option<Cow<'a, str>>,
    }
    #[derive(Deserialize)]
    struct Committed {
        ts_ms: Option<i64>,
    }
    let about: About<'_> = serde_json::from_slice(json).unwrap_or_default();
    let time = about.source.and_then(|source| DateTime::from_timestamp_millis(source.ts_ms?));
    let dataset = about.dataset.unwrap_or_default();
    let mut out = format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{position}\",\"type\":\"io.cadastre.{}\",\"source\":",
        op.event()
    )
    .into_bytes();
    let text = |out: &mut Vec<u8>, text: &str| {
        serde_json::to_writer(out, text).expect("a text can be written to memory");
    };
    text(&mut out, &format!("/datasets/{}", escaped(&dataset)));
    out.extend_from_slice(format!(",\"sequence\":\"{position}\"").as_bytes());
    if let Some(time) = time {
        out.extend_from_slice(b",\"time\":");
        text(&mut out, &time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true));
    }
    if let Some(trace) = about.traceparent {
        out.extend_from_slice(b",\"traceparent\":");
        text(&mut out, &trace);
    }
    out.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
    out.extend_from_slice(json);
    out.push(b'}');
    out
}

/// As a part of a URI's path.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Epoch, Lsn};

    const EVENT: &str = "{\"op\":\"u\",\"before\":{\"id\":7,\"status\":\"open\"},\
        \"after\":{\"id\":7,\"status\":\"paid\",\"na\\\"me\":\"é\",\"amount\":\"12.50\"},\
        \"source\":{\"name\":\"shop\",\"ts_ms\":1780000000000},\"ts_ms\":1780000000004,\
        \"dataset\":\"shop.public.order lines\",\"position\":\"01-0000000000000001-00000001\",\
        \"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\",\
        \"unchanged\":[\"note\",\"blob\"]}";

    fn position() -> Position {
        Position::new(Epoch::FIRST, Lsn::new(1), 1)
    }

    fn shaped(shape: &Shape) -> Option<serde_json::Value> {
        let event = Bytes::from_static(EVENT.as_bytes());
        let shaped = shape.apply(position(), Op::Update, &event)?;
        Some(serde_json::from_slice(&shaped).expect("JSON"))
    }

    #[test]
    fn a_condition_looks_into_both_rows() {
        for (predicate, wanted) in [
            ("before.status = 'open' and status = 'paid'", true),
            ("amount > 12", true),
            ("\"na\"\"me\" = 'é'", true),
            ("id in (1, 2)", false),
            ("note is null", false),
        ] {
            let predicate = Some(predicate.parse().unwrap());
            assert_eq!(shaped(&Shape { predicate, ..Shape::default() }).is_some(), wanted);
        }
    }

    #[test]
    fn only_the_columns_asked_for_are_left() {
        let columns = Some(["id", "na\"me", "note"].map(str::to_owned).into());
        let event = shaped(&Shape { columns, ..Shape::default() }).unwrap();
        assert_eq!(event["before"], serde_json::json!({ "id": 7 }));
        assert_eq!(event["after"], serde_json::json!({ "id": 7, "na\"me": "é" }));
        assert_eq!(event["unchanged"], serde_json::json!(["note"]));
        assert_eq!(event["position"], "01-0000000000000001-00000001");
    }

    #[test]
    fn a_cloud_event_carries_the_change_as_its_data() {
        let event = shaped(&Shape { cloud_event: true, ..Shape::default() }).unwrap();
        let data: serde_json::Value = serde_json::from_str(EVENT).unwrap();
        assert_eq!(event["data"], data);
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "01-0000000000000001-00000001");
        assert_eq!(event["type"], "io.cadastre.change");
        assert_eq!(event["source"], "/datasets/shop.public.order%20lines");
        assert_eq!(event["time"], "2026-05-28T20:26:40.000Z");
        assert_eq!(event["traceparent"], data["traceparent"]);
    }

    #[test]
    fn what_concerns_the_dataset_itself_always_passes() {
        let predicate = Some("id = 1".parse().unwrap());
        let columns = Some(BTreeSet::new());
        let shape = Shape { predicate, columns, cloud_event: false };
        let gap = Bytes::from_static(b"{\"event\":\"gap\"}");
        assert_eq!(shape.apply(position(), Op::Gap, &gap), Some(gap.clone()));
    }
}
