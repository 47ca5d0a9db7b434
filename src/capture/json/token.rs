//! The tokens that arrays, composites and ranges are written with.

use std::borrow::Cow;

use super::{Parsed, Surprise};

/// One element, field or bound, without its quotes and escapes.
pub(super) struct Token<'a> {
    /// The text; borrowed unless something in it was escaped.
    pub(super) text: Cow<'a, [u8]>,
    /// Whether it stood in quotes: what tells an empty string from nothing, and the text `NULL` from
    /// NULL.
    pub(super) quoted: bool,
}

/// Reads a token up to a delimiter that ends one not in quotes, and returns what follows it,
/// the delimiter first.
///
/// Within quotes a backslash escapes the next byte (`array_out`), and a doubled quote stands for
/// one (`record_out`, `range_out`).
pub(super) fn read(text: &[u8], ends: impl Fn(u8) -> bool) -> Parsed<(Token<'_>, &[u8])> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        return read_quoted(quoted);
    }
    let end = text.iter().position(|byte| ends(*byte)).ok_or(Surprise)?;
    let (text, rest) = text.split_at(end);
    Ok((Token { text: Cow::Borrowed(text), quoted: false }, rest))
}

fn read_quoted(mut rest: &[u8]) -> Parsed<(Token<'_>, &[u8])> {
    let mut text = Cow::Borrowed(&[][..]);
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest).ok_or(Surprise)?;
        let (plain, special) = rest.split_at(at);
        append(&mut text, plain);
        rest = match special {
            [b'\\', escaped, after @ ..] => {
                append(&mut text, std::slice::from_ref(escaped));
                after
            }
            [b'"', b'"', after @ ..] => {
                append(&mut text, b"\"");
                after
            }
            [b'"', after @ ..] => return Ok((Token { text, quoted: true }, after)),
            _ => return Err(Surprise),
        };
    }
}

fn append<'a>(text: &mut Cow<'a, [u8]>, part: &'a [u8]) {
    if text.is_empty() {
        *text = Cow::Borrowed(part);
    } else if !part.is_empty() {
        text.to_mut().extend_from_slice(part);
    }
}
