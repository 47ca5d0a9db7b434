//! What a request says: rows to insert, to update and to delete.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::Error;
use crate::vocab::limits;

/// A row or a part of one: columns to values, as events write them. Values stay as they were written:
/// a number read and written again could be another.
pub(super) type Row = BTreeMap<String, Box<RawValue>>;

/// Rows to write, in one transaction: first the inserts, then the updates, then the deletes, each in
/// the order given.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Rows to insert; a column that is not named gets its default.
    #[serde(default)]
    pub(super) insert: Vec<Row>,
    /// Rows to change.
    #[serde(default)]
    pub(super) update: Vec<Update>,
    /// Rows to delete.
    #[serde(default)]
    pub(super) delete: Vec<Delete>,
    /// Of the body's bytes.
    #[serde(skip)]
    pub(super) digest: [u8; 32],
}

/// A row to change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Update {
    /// The value of each key column.
    pub(super) key: Row,
    /// The columns to set.
    pub(super) set: Row,
}

/// A row to delete.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    /// The value of each key column.
    pub(super) key: Row,
}

impl Request {
    /// Reads a body.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not one, names no row, or names more than
    /// [`limits::GATEWAY_ROWS_MAX`].
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let invalid = |message: String| Error::Invalid { place: "the body".to_owned(), message };
        let mut request: Self = serde_json::from_slice(body).map_err(|error| {
            invalid(format!(
                "{error}; expected {{\"insert\": [{{…}}], \"update\": [{{\"key\": {{…}}, \"set\": {{…}}}}], \
                 \"delete\": [{{\"key\": {{…}}}}]}}"
            ))
        })?;
        let most = limits::GATEWAY_ROWS_MAX;
        let count = request.insert.len() + request.update.len() + request.delete.len();
        if count == 0 || count > most {
            return Err(invalid(format!("expected 1 to {most} rows, got {count}")));
        }
        request.digest = Sha256::digest(body).into();
        Ok(request)
    }
}

/// A name that the client gives a request, so that repeating it does nothing twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key's text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fits = (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len());
        if fits && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Ok(Self(text.to_owned()));
        }
        let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
        let message = format!("expected 1 to {most} printable ASCII characters, such as a UUID");
        Err(Error::Invalid { place: "Idempotency-Key".to_owned(), message })
    }
}

/// What a request has written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// The transaction, as `source.txId` of its changes shows it.
    pub tx_id: u32,
    /// The keys of the inserted rows, in the order they were given.
    pub inserted: Vec<Box<RawValue>>,
    /// How many rows were updated.
    pub updated: usize,
    /// How many rows were deleted.
    pub deleted: usize,
    /// Whether this is the answer to an earlier request with the same idempotency key.
    #[serde(default)]
    pub replayed: bool,
}

/// Where a row stands in a body.
pub(super) fn place(list: &str, index: usize, member: &str) -> String {
    let mut place = format!("{list}[{index}]");
    if !member.is_empty() {
        write!(place, ".{member}").expect("a String takes everything");
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_rows_and_nothing_else() {
        let request = Request::parse(
            br#"{"insert":[{"id":1}],"update":[{"key":{"id":1},"set":{"a":2}}],"delete":[{"key":{"id":1}}]}"#,
        )
        .unwrap();
        assert_eq!((request.insert.len(), request.update.len(), request.delete.len()), (1, 1, 1));
        for (body, hint) in [
            (&br#"{}"#[..], "expected 1 to 1000 rows, got 0"),
            (br#"{"insert":[]}"#, "got 0"),
            (br#"{"upsert":[{"id":1}]}"#, "unknown field `upsert`"),
            (br#"{"insert":[[1]]}"#, "expected {\"insert\""),
            (br#"{"update":[{"set":{"a":1}}]}"#, "missing field `key`"),
            (b"not json", "line 1 column"),
        ] {
            let error = Request::parse(body).unwrap_err().to_string();
            assert!(error.starts_with("the body: ") && error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_key_is_short_and_printable() {
        assert!("0190-a b".parse::<IdempotencyKey>().is_ok());
        for text in ["", "tab\t", "ü", &"x".repeat(256)] {
            let error = text.parse::<IdempotencyKey>().unwrap_err().to_string();
            assert!(error.starts_with("Idempotency-Key: expected 1 to 255"), "{error}");
        }
    }
}
