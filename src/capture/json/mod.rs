//! Column values to JSON: from PostgreSQL's text format straight into the bytes of an event.
//!
//! What a value looks like is decided once per column, as a [`Kind`], when its table is described;
//! then each value is one match and a copy with the needed checks. No intermediate value is built.
//!
//! ```text
//! numbers           number; numeric, and int8 past 2^53: string; NaN, ±Infinity: string
//! date, timestamps  ISO 8601 / RFC 3339 in UTC, years astronomical, "infinity" as it is
//! bytea             base64
//! json, jsonb       embedded, on one line
//! arrays            nested arrays        composites   objects
//! ranges            {"lower","upper","bounds"} or {"empty":true}        multiranges   arrays of them
//! everything else   the text, as a string
//! ```
//!
//! The formats are those of a session with `DateStyle = ISO`, `TimeZone = UTC`,
//! `IntervalStyle = iso_8601`, `bytea_output = hex` and `client_encoding = UTF8`.
//!
//! Invariants: what is written is always one valid JSON value without a line break, whatever the
//! text; a text that is not in its kind's format becomes a string of itself and is counted, so no
//! value ever stops the stream.

mod builtin;
mod bytes;
mod document;
mod nested;
mod number;
mod string;
mod time;
mod token;

pub use builtin::builtin;
pub use string::{write_str, write_string};

use super::decode::Column;

/// How values of a type are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A number that every reader holds exactly.
    Integer,
    /// A number up to 2^53 either way, a string beyond.
    BigInteger,
    /// A number, or a string for what is not finite.
    Float,
    /// A string of the text.
    Text,
    /// A string, ISO 8601.
    Date,
    /// A string, RFC 3339.
    Timestamp,
    /// A string, base64.
    Bytes,
    /// JSON as it is.
    Document,
    /// Numbers with spaces between: an array.
    Vector,
    /// An array.
    Array {
        /// Kind of its elements.
        element: Box<Kind>,
        /// What stands between elements: a comma for all built-in types but `box`.
        delimiter: u8,
    },
    /// An object with these members.
    Composite(Box<[Field]>),
    /// A range with such bounds.
    Range(Box<Kind>),
    /// Ranges with such bounds.
    Multirange(Box<Kind>),
}

/// A member of a composite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// `"name":`, escaped.
    label: Box<[u8]>,
    kind: Kind,
}

impl Field {
    /// A member with this name and kind.
    pub fn new(name: &[u8], kind: Kind) -> Self {
        Self { label: label(name), kind }
    }
}

/// `"name":`, escaped: what stands before a member's value.
pub(super) fn label(name: &[u8]) -> Box<[u8]> {
    let mut label = Vec::with_capacity(name.len() + 3);
    write_string(name, &mut label);
    label.push(b':');
    label.into()
}

/// The text is not in the format of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Surprise;

type Parsed<T = ()> = Result<T, Surprise>;

/// Appends the value of a column; `Unchanged` has none and is written as `null`.
pub fn write_column(kind: &Kind, column: Column<'_>, out: &mut Vec<u8>) {
    match column {
        Column::Text(text) => write_value(kind, text, out),
        Column::Null | Column::Unchanged => out.extend_from_slice(b"null"),
        // Never asked for: whatever it is, its bytes are kept.
        Column::Binary(value) => {
            count_surprise();
            bytes::write_raw(value, out);
        }
    }
}

/// Appends a value in text format as one JSON value.
pub fn write_value(kind: &Kind, text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    if write(kind, text, out).is_err() {
        count_surprise();
        out.truncate(start);
        write_string(text, out);
    }
}

#[cold]
fn count_surprise() {
    metrics::counter!("cadastre_capture_values_as_text_total").increment(1);
}

fn write(kind: &Kind, text: &[u8], out: &mut Vec<u8>) -> Parsed {
    match kind {
        Kind::Text => write_string(text, out),
        Kind::Integer => number::write_integer(text, out)?,
        Kind::BigInteger => number::write_big_integer(text, out)?,
        Kind::Float => number::write_float(text, out)?,
        Kind::Bool => match text {
            b"t" => out.extend_from_slice(b"true"),
            b"f" => out.extend_from_slice(b"false"),
            _ => return Err(Surprise),
        },
        Kind::Date => time::write_date(text, out)?,
        Kind::Timestamp => time::write_timestamp(text, out)?,
        Kind::Bytes => bytes::write_bytes(text, out)?,
        Kind::Document => document::write_document(text, out)?,
        Kind::Vector => nested::write_vector(text, out)?,
        Kind::Array { element, delimiter } => nested::write_array(element, *delimiter, text, out)?,
        Kind::Composite(fields) => nested::write_composite(fields, text, out)?,
        Kind::Range(bound) => nested::write_range(bound, text, out)?,
        Kind::Multirange(bound) => nested::write_multirange(bound, text, out)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests;
