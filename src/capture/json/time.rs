//! Dates and timestamps: PostgreSQL's `ISO` date style to ISO 8601 and RFC 3339.
//!
//! The replication session runs with `TimeZone = UTC`, so a `timestamptz` always ends in `+00`. Years
//! are astronomical: 44 BC is -0043. Years past 9999 carry a sign, as ISO 8601 asks. `infinity` and
//! `-infinity` stay words.

use super::{Parsed, Surprise};

/// A `date`.
pub(super) fn write_date(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    out.push(b'"');
    if is_infinite(text) {
        out.extend_from_slice(text);
    } else {
        let (text, before_christ) = era(text);
        let rest = date(text, before_christ, out)?;
        if !rest.is_empty() {
            return Err(Surprise);
        }
    }
    out.push(b'"');
    Ok(())
}

/// A `timestamp` or `timestamptz`.
pub(super) fn write_timestamp(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    out.push(b'"');
    if is_infinite(text) {
        out.extend_from_slice(text);
    } else {
        let (text, before_christ) = era(text);
        let rest = date(text, before_christ, out)?;
        let time = rest.strip_prefix(b" ").ok_or(Surprise)?;
        let time = time.strip_suffix(b"+00").unwrap_or(time);
        if !is_time(time) {
            return Err(Surprise);
        }
        out.push(b'T');
        out.extend_from_slice(time);
        out.push(b'Z');
    }
    out.push(b'"');
    Ok(())
}

fn is_infinite(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

/// The text without its era, and whether that was BC.
fn era(text: &[u8]) -> (&[u8], bool) {
    text.strip_suffix(b" BC").map_or((text, false), |text| (text, true))
}

/// Writes the date `text` begins with and returns what follows it.
fn date<'a>(text: &'a [u8], before_christ: bool, out: &mut Vec<u8>) -> Parsed<&'a [u8]> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (year, rest) = text.split_at(length);
    let (month_day, rest) = rest.split_at_checked(6).ok_or(Surprise)?;
    let [b'-', month @ .., b'-', d1, d2] = month_day else { return Err(Surprise) };
    if !(4..=9).contains(&length) || ![d1, d2].into_iter().chain(month).all(u8::is_ascii_digit) {
        return Err(Surprise);
    }
    if before_christ {
        let year = std::str::from_utf8(year).ok().and_then(|year| year.parse::<u32>().ok());
        let year = year.and_then(|year| year.checked_sub(1)).ok_or(Surprise)?;
        if year > 0 {
            out.push(b'-');
        }
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(year).as_bytes();
        out.extend(std::iter::repeat_n(b'0', 4usize.saturating_sub(digits.len())));
        out.extend_from_slice(digits);
    } else {
        if length > 4 {
            out.push(b'+');
        }
        out.extend_from_slice(year);
    }
    out.extend_from_slice(month_day);
    Ok(rest)
}

/// `HH:MM:SS`, with a fraction or without.
fn is_time(text: &[u8]) -> bool {
    let [h1, h2, b':', m1, m2, b':', s1, s2, fraction @ ..] = text else { return false };
    let fraction_fits = match fraction {
        [] => true,
        [b'.', digits @ ..] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    fraction_fits && [h1, h2, m1, m2, s1, s2].into_iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(write: fn(&[u8], &mut Vec<u8>) -> Parsed, text: &str) -> Option<String> {
        let mut out = Vec::new();
        write(text.as_bytes(), &mut out).ok()?;
        Some(serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn dates_are_iso_8601_with_astronomical_years() {
        for (text, expected) in [
            ("2026-11-24", "2026-11-24"),
            ("0001-01-01", "0001-01-01"),
            ("0001-12-31 BC", "0000-12-31"),
            ("0044-03-15 BC", "-0043-03-15"),
            ("4713-01-01 BC", "-4712-01-01"),
            ("12345-06-07", "+12345-06-07"),
            ("5874897-12-31", "+5874897-12-31"),
            ("infinity", "infinity"),
            ("-infinity", "-infinity"),
        ] {
            assert_eq!(json(write_date, text).as_deref(), Some(expected));
        }
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc() {
        for (text, expected) in [
            ("2026-11-24 04:55:47.123+00", "2026-11-24T04:55:47.123Z"),
            ("2026-11-24 04:55:47", "2026-11-24T04:55:47Z"),
            ("0044-03-15 12:00:00+00 BC", "-0043-03-15T12:00:00Z"),
            ("294276-12-31 23:59:59.999999+00", "+294276-12-31T23:59:59.999999Z"),
            ("-infinity", "-infinity"),
        ] {
            assert_eq!(json(write_timestamp, text).as_deref(), Some(expected));
        }
    }

    #[test]
    fn other_forms_are_a_surprise() {
        for text in ["", "24/11/2026", "2026-11-24x", "2026-1-24", "0000-01-01 BC", "226-01-01"] {
            assert_eq!(json(write_date, text), None, "{text}");
        }
        for text in [
            "2026-11-24",
            "2026-11-24T04:55:47",
            "2026-11-24 04:55:47+02",
            "2026-11-24 04:55:47.",
            "2026-11-24 04:55",
        ] {
            assert_eq!(json(write_timestamp, text), None, "{text}");
        }
    }
}
