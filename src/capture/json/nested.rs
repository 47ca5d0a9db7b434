//! Values made of values: arrays, composites, ranges and multiranges.
//!
//! Their text formats: <https://www.postgresql.org/docs/18/arrays.html#ARRAYS-IO>,
//! <https://www.postgresql.org/docs/18/rowtypes.html#ROWTYPES-IO-SYNTAX> and
//! <https://www.postgresql.org/docs/18/rangetypes.html#RANGETYPES-IO>.

use super::{Field, Kind, Parsed, Surprise, token, write_value};

/// PostgreSQL's own limit of dimensions (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;

/// An array: nested JSON arrays, NULL as `null`. Explicit lower bounds are dropped.
pub(super) fn write_array(element: &Kind, delimiter: u8, text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let mut rest = match text.strip_prefix(b"[") {
        Some(bounds) => {
            let end = memchr::memchr(b'=', bounds).ok_or(Surprise)?;
            bounds.get(end + 1..).unwrap_or_default()
        }
        None => text,
    };
    let mut depth = 0;
    loop {
        // Here stands an element or a deeper dimension.
        if let Some(inner) = rest.strip_prefix(b"{") {
            depth += 1;
            if depth > DIMENSIONS_MAX {
                return Err(Surprise);
            }
            out.push(b'[');
            rest = inner;
            if rest.first() != Some(&b'}') {
                continue;
            }
        } else if depth > 0 {
            let (token, after) = token::read(rest, |byte| byte == delimiter || byte == b'}')?;
            match (token.text.as_ref(), token.quoted) {
                (b"NULL", false) => out.extend_from_slice(b"null"),
                (b"", false) => return Err(Surprise),
                (text, _) => write_value(element, text, out),
            }
            rest = after;
        } else {
            return Err(Surprise);
        }
        // It has ended; so may have dimensions around it.
        loop {
            match rest.split_first() {
                Some((b'}', after)) => {
                    out.push(b']');
                    depth -= 1;
                    rest = after;
                    if depth == 0 {
                        return if rest.is_empty() { Ok(()) } else { Err(Surprise) };
                    }
                }
                Some((byte, after)) if *byte == delimiter => {
                    out.push(b',');
                    rest = after;
                    break;
                }
                _ => return Err(Surprise),
            }
        }
    }
}

/// An `int2vector` or `oidvector`: numbers with spaces between.
pub(super) fn write_vector(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    out.push(b'[');
    if !text.is_empty() {
        for (index, number) in text.split(|byte| *byte == b' ').enumerate() {
            if index > 0 {
                out.push(b',');
            }
            super::number::write_integer(number, out)?;
        }
    }
    out.push(b']');
    Ok(())
}

/// A composite: an object with a member per attribute.
pub(super) fn write_composite(fields: &[Field], text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let mut rest = text.strip_prefix(b"(").ok_or(Surprise)?;
    out.push(b'{');
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(b",").ok_or(Surprise)?;
            out.push(b',');
        }
        out.extend_from_slice(&field.label);
        rest = write_part(&field.kind, rest, |byte| matches!(byte, b',' | b')'), out)?;
    }
    out.push(b'}');
    if rest == b")" { Ok(()) } else { Err(Surprise) }
}

/// A range: `{"lower":…,"upper":…,"bounds":"[)"}` with `null` for no bound, or `{"empty":true}`.
pub(super) fn write_range(bound: &Kind, text: &[u8], out: &mut Vec<u8>) -> Parsed {
    if write_one_range(bound, text, out)?.is_empty() { Ok(()) } else { Err(Surprise) }
}

/// A multirange: an array of ranges.
pub(super) fn write_multirange(bound: &Kind, text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let mut rest = text.strip_prefix(b"{").ok_or(Surprise)?;
    out.push(b'[');
    if rest != b"}" {
        loop {
            rest = write_one_range(bound, rest, out)?;
            let Some(next) = rest.strip_prefix(b",") else { break };
            out.push(b',');
            rest = next;
        }
    }
    out.push(b']');
    if rest == b"}" { Ok(()) } else { Err(Surprise) }
}

fn write_one_range<'a>(bound: &Kind, text: &'a [u8], out: &mut Vec<u8>) -> Parsed<&'a [u8]> {
    if let Some(rest) = text.strip_prefix(b"empty") {
        out.extend_from_slice(b"{\"empty\":true}");
        return Ok(rest);
    }
    let (opening, rest) = match text.split_first() {
        Some((opening @ (b'[' | b'('), rest)) => (*opening, rest),
        _ => return Err(Surprise),
    };
    out.extend_from_slice(b"{\"lower\":");
    let rest = write_part(bound, rest, |byte| byte == b',', out)?;
    let rest = rest.strip_prefix(b",").ok_or(Surprise)?;
    out.extend_from_slice(b",\"upper\":");
    let rest = write_part(bound, rest, |byte| matches!(byte, b']' | b')'), out)?;
    let (closing, rest) = match rest.split_first() {
        Some((closing @ (b']' | b')'), rest)) => (*closing, rest),
        _ => return Err(Surprise),
    };
    out.extend_from_slice(b",\"bounds\":\"");
    out.extend_from_slice(&[opening, closing]);
    out.extend_from_slice(b"\"}");
    Ok(rest)
}

/// A field or bound: `null` when nothing stands there, not even quotes. Returns what follows it.
fn write_part<'a>(
    kind: &Kind,
    text: &'a [u8],
    ends: impl Fn(u8) -> bool,
    out: &mut Vec<u8>,
) -> Parsed<&'a [u8]> {
    let (token, rest) = token::read(text, ends)?;
    if token.text.is_empty() && !token.quoted {
        out.extend_from_slice(b"null");
    } else {
        write_value(kind, &token.text, out);
    }
    Ok(rest)
}
