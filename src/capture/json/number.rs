//! Numbers: as JSON numbers where every reader gets the same value back, else as strings.

use super::{Parsed, Surprise};

/// The largest integer up to which a double holds every integer.
const EXACT_MAX: u64 = 1 << 53;

/// Numbers shorter than this without an exponent fit a double.
const FINITE_DIGITS: usize = 300;

/// An integer that a double holds: `int4`, `oid` and the like.
pub(super) fn write_integer(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [b'0'] | [b'1'..=b'9', ..] if digits.iter().all(u8::is_ascii_digit) => {
            out.extend_from_slice(text);
            Ok(())
        }
        _ => Err(Surprise),
    }
}

/// An integer that a double may not hold: a number up to 2^53 either way, a string beyond.
pub(super) fn write_big_integer(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    // 2^53 has 16 digits.
    let exact = digits.len() < 16
        || std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse::<u64>().ok())
            .is_some_and(|magnitude| magnitude <= EXACT_MAX);
    if exact {
        return write_integer(text, out);
    }
    out.push(b'"');
    write_integer(text, out)?;
    out.push(b'"');
    Ok(())
}

/// A `float4` or `float8`: a number, or the string `NaN`, `Infinity` or `-Infinity`.
pub(super) fn write_float(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    match text {
        b"NaN" | b"Infinity" | b"-Infinity" => {
            out.push(b'"');
            out.extend_from_slice(text);
            out.push(b'"');
        }
        _ if json_number(text)? == text.len() => out.extend_from_slice(text),
        _ => return Err(Surprise),
    }
    Ok(())
}

/// The length of the JSON number that `text` begins with. One beyond the range of a double is
/// none: most readers refuse it, and with it the whole event.
pub(super) fn json_number(text: &[u8]) -> Parsed<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let at = |index: usize| text.get(index).copied();

    let first = usize::from(at(0) == Some(b'-'));
    let mut end = match at(first) {
        Some(b'0') => first + 1,
        _ => first + some(digits(first))?,
    };
    if at(end) == Some(b'.') {
        end += 1 + some(digits(end + 1))?;
    }
    let has_exponent = matches!(at(end), Some(b'e' | b'E'));
    if has_exponent {
        let signed = matches!(at(end + 1), Some(b'+' | b'-'));
        let exponent = end + 1 + usize::from(signed);
        end = exponent + some(digits(exponent))?;
    }
    if (has_exponent || end > FINITE_DIGITS) && !is_finite(text.get(..end).unwrap_or_default()) {
        return Err(Surprise);
    }
    Ok(end)
}

fn some(count: usize) -> Parsed<usize> {
    if count == 0 { Err(Surprise) } else { Ok(count) }
}

fn is_finite(number: &[u8]) -> bool {
    let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    number.is_some_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(write: fn(&[u8], &mut Vec<u8>) -> Parsed, text: &str) -> Option<String> {
        let mut out = Vec::new();
        write(text.as_bytes(), &mut out).ok()?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn integers_beyond_what_a_double_holds_are_strings() {
        for (text, expected) in [
            ("0", "0"),
            ("-42", "-42"),
            ("9007199254740991", "9007199254740991"),
            ("9007199254740992", "9007199254740992"),
            ("-9007199254740992", "-9007199254740992"),
            ("9007199254740993", "\"9007199254740993\""),
            ("-9223372036854775808", "\"-9223372036854775808\""),
            ("18446744073709551615", "\"18446744073709551615\""),
        ] {
            assert_eq!(json(write_big_integer, text).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_no_number_is_a_surprise() {
        for text in ["", "-", "007", "+1", "1x", "0x1", " 1", "12345678901234567890x"] {
            assert_eq!(json(write_integer, text), None, "{text}");
            assert_eq!(json(write_big_integer, text), None, "{text}");
        }
        for text in ["", "-", ".5", "1.", "1e", "1e+", "01", "1e400", "nan", "1 "] {
            assert_eq!(json(write_float, text), None, "{text}");
        }
    }

    #[test]
    fn floats_are_numbers_and_what_is_not_finite_a_string() {
        for text in ["0", "-0", "1.5", "1e+20", "1e-05", "1.7976931348623157e+308"] {
            assert_eq!(json(write_float, text).as_deref(), Some(text));
        }
        assert_eq!(json(write_float, "-Infinity").unwrap(), "\"-Infinity\"");
        assert_eq!(json(write_float, "NaN").unwrap(), "\"NaN\"");
    }

    proptest! {
        #[test]
        fn every_integer_reads_back(value: i64) {
            let json = json(write_big_integer, &value.to_string()).unwrap();
            prop_assert_eq!(json.trim_matches('"').parse::<i64>().unwrap(), value);
        }

        #[test]
        fn what_passes_as_a_number_is_one_for_a_json_reader(text in "-?[0-9]{0,4}[.]?[0-9]{0,3}([eE][+-]?[0-9]{0,3})?") {
            let whole = json_number(text.as_bytes()).ok() == Some(text.len());
            prop_assert_eq!(whole, serde_json::from_str::<f64>(&text).is_ok(), "{}", text);
        }
    }
}
