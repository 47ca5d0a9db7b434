//! Text as a JSON string.

/// How many bytes are looked at together: a width the compiler turns into vector instructions.
const STRIDE: usize = 32;

/// Whether JSON asks for an escape of this byte inside a string.
const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Where the first quote, backslash or control character stands.
pub(super) fn first_special(bytes: &[u8]) -> Option<usize> {
    let clean = |stride: &&[u8; STRIDE]| {
        !stride.iter().fold(false, |found, byte| found | is_special(*byte))
    };
    let (strides, _tail) = bytes.as_chunks::<STRIDE>();
    let skip = strides.iter().take_while(clean).count() * STRIDE;
    let rest = bytes.get(skip..)?;
    rest.iter().position(|byte| is_special(*byte)).map(|at| skip + at)
}

/// Appends `text` as a JSON string. What is not UTF-8 becomes U+FFFD.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(text) {
        Ok(text) => write_str(text, out),
        Err(_) => write_str(&String::from_utf8_lossy(text), out),
    }
}

/// Appends `text` as a JSON string.
pub fn write_str(text: &str, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    out.push(b'"');
    while let Some(at) = first_special(rest) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((special, after)) = tail.split_first() else { break };
        match *special {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                let hex = |nibble: u8| HEX[usize::from(nibble & 0xf)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[hex(control >> 4), hex(control)]);
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &[u8]) -> String {
        let mut out = Vec::new();
        write_string(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn quotes_backslashes_and_control_characters_are_escaped() {
        assert_eq!(
            json(b"a\"b\\c\nd\te\rf\0g\x1fh\x7f"),
            r#""a\"b\\c\nd\te\rf\u0000g\u001fh"#.to_owned() + "\x7f\""
        );
        assert_eq!(json("žluťoučký \u{1f40e}".as_bytes()), "\"žluťoučký \u{1f40e}\"");
        assert_eq!(json(b""), "\"\"");
    }

    #[test]
    fn what_is_not_utf8_is_replaced() {
        assert_eq!(json(b"a\xffb"), "\"a\u{fffd}b\"");
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in "(?s).{0,200}") {
            let read: String = serde_json::from_str(&json(text.as_bytes())).unwrap();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn the_first_special_byte_is_found(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(first_special(&bytes), bytes.iter().position(|b| is_special(*b)));
        }
    }
}
