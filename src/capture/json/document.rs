//! `json` and `jsonb`: embedded as they are, on one line.
//!
//! The text is copied while it is checked: an event must stay readable whatever a row holds. So
//! what PostgreSQL accepts and common readers refuse is a surprise here, and becomes a string: a
//! lone surrogate escape, a number beyond a double, nesting deeper than [`DEPTH_MAX`].

use super::number::json_number;
use super::string::first_special;
use super::{Parsed, Surprise};

/// Deepest nesting embedded. Readers commonly stop at 128, and the event around the value takes
/// some of that.
const DEPTH_MAX: u32 = 100;

/// Appends a JSON text without the white space between its tokens.
pub(super) fn write_document(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    std::str::from_utf8(text).map_err(|_| Surprise)?;
    let mut copy = Copy { rest: text, out };
    let mut open = Open::default();
    loop {
        match copy.peek() {
            Some(opening @ (b'{' | b'[')) => {
                let is_object = opening == b'{';
                copy.take(1);
                open.push(is_object)?;
                if copy.peek() != Some(if is_object { b'}' } else { b']' }) {
                    if is_object {
                        copy.key()?;
                    }
                    continue;
                }
            }
            _ => copy.scalar()?,
        }
        // A value has ended, or an empty object or array is about to.
        loop {
            match (copy.peek(), open.innermost_is_object()) {
                (None, None) => return Ok(()),
                (Some(b','), Some(in_object)) => {
                    copy.take(1);
                    if in_object {
                        copy.key()?;
                    }
                    break;
                }
                (Some(b'}'), Some(true)) | (Some(b']'), Some(false)) => {
                    copy.take(1);
                    open.pop();
                }
                _ => return Err(Surprise),
            }
        }
    }
}

/// The objects and arrays that are open, innermost in the lowest bit.
#[derive(Default)]
struct Open {
    depth: u32,
    is_object: u128,
}

impl Open {
    fn push(&mut self, is_object: bool) -> Parsed {
        if self.depth == DEPTH_MAX {
            return Err(Surprise);
        }
        self.depth += 1;
        self.is_object = self.is_object << 1 | u128::from(is_object);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.is_object >>= 1;
    }

    fn innermost_is_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.is_object & 1 == 1)
    }
}

/// Copies token by token.
struct Copy<'a> {
    rest: &'a [u8],
    out: &'a mut Vec<u8>,
}

impl Copy<'_> {
    /// The first byte of the next token, past white space.
    fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    fn take(&mut self, length: usize) {
        let (token, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, &[]));
        self.out.extend_from_slice(token);
        self.rest = rest;
    }

    fn key(&mut self) -> Parsed {
        self.peek();
        self.take(string(self.rest)?);
        if self.peek() != Some(b':') {
            return Err(Surprise);
        }
        self.take(1);
        Ok(())
    }

    fn scalar(&mut self) -> Parsed {
        let length = match self.rest {
            [b'"', ..] => string(self.rest)?,
            [b't', b'r', b'u', b'e', ..] | [b'n', b'u', b'l', b'l', ..] => 4,
            [b'f', b'a', b'l', b's', b'e', ..] => 5,
            _ => json_number(self.rest)?,
        };
        self.take(length);
        Ok(())
    }
}

/// The length of the string that `text` begins with, quotes included.
fn string(text: &[u8]) -> Parsed<usize> {
    let mut rest = text.strip_prefix(b"\"").ok_or(Surprise)?;
    loop {
        let at = first_special(rest).ok_or(Surprise)?;
        rest = match rest.get(at..) {
            Some([b'"', after @ ..]) => return Ok(text.len() - after.len()),
            Some([b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after @ ..]) => {
                after
            }
            Some([b'\\', b'u', after @ ..]) => match hex4(after)? {
                (0xD800..=0xDBFF, after) => low_surrogate(after)?,
                (0xDC00..=0xDFFF, _) => return Err(Surprise),
                (_, after) => after,
            },
            _ => return Err(Surprise),
        };
    }
}

fn low_surrogate(text: &[u8]) -> Parsed<&[u8]> {
    match hex4(text.strip_prefix(b"\\u").ok_or(Surprise)?)? {
        (0xDC00..=0xDFFF, after) => Ok(after),
        _ => Err(Surprise),
    }
}

fn hex4(text: &[u8]) -> Parsed<(u32, &[u8])> {
    let (digits, after) = text.split_first_chunk::<4>().ok_or(Surprise)?;
    let mut unit = 0;
    for digit in digits {
        unit = unit << 4 | char::from(*digit).to_digit(16).ok_or(Surprise)?;
    }
    Ok((unit, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Option<String> {
        let mut out = Vec::new();
        write_document(text.as_bytes(), &mut out).ok()?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn white_space_between_tokens_goes_and_within_strings_stays() {
        let text =
            " { \"a b\" : [ 1 , 2.50 , -0e+1 ] ,\n\t\"c\":\r{}, \"d\" : [ ] , \"e\": \"\\n x\" } ";
        assert_eq!(json(text).unwrap(), r#"{"a b":[1,2.50,-0e+1],"c":{},"d":[],"e":"\n x"}"#);
        assert_eq!(json(" null\n").unwrap(), "null");
        assert_eq!(json(r#""\ud83d\udc0e \u0000""#).unwrap(), r#""\ud83d\udc0e \u0000""#);
    }

    #[test]
    fn what_readers_would_refuse_is_not_embedded() {
        for text in [
            "",
            "{",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{\"a\":1]",
            "[1}",
            "1 2",
            "tru",
            "\"a",
            "\"\\x\"",
            "\"\n\"",
            "\"\\ud83d\"",
            "\"\\udc0e\"",
            "\"\\ud83d\\u0041\"",
            "1e999",
            "01",
            "]",
        ] {
            assert_eq!(json(text), None, "{text}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(json(&nested(100)).is_some());
        assert!(json(&nested(101)).is_none());
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(|number| serde_json::json!(number)),
            "(?s).{0,20}".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                proptest::collection::btree_map("(?s).{0,8}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_keeps_its_meaning_on_one_line(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(json(&pretty).unwrap(), serde_json::to_string(&value).unwrap());
        }

        #[test]
        fn what_is_embedded_reads_back(text in r#"[\[\]{}:,"\\ud80truefalsnl \n0-9eE+.]{0,40}"#) {
            if let Some(json) = json(&text) {
                let value: serde_json::Value = serde_json::from_str(&json).unwrap();
                prop_assert_eq!(value, serde_json::from_str::<serde_json::Value>(&text).unwrap());
            }
        }
    }
}
