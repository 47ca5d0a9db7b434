//! `bytea`: PostgreSQL's `hex` output to base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Parsed, Surprise};

/// Bytes encoded together; a multiple of three, so that padding comes only at the end.
const CHUNK: usize = 768;

/// A `bytea` in `hex` output, `\x` and two digits a byte.
pub(super) fn write_bytes(text: &[u8], out: &mut Vec<u8>) -> Parsed {
    let hex = text.strip_prefix(b"\\x").ok_or(Surprise)?;
    let (pairs, odd) = hex.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(Surprise);
    }
    out.reserve(hex.len());
    out.push(b'"');
    for chunk in pairs.chunks(CHUNK) {
        let mut raw = [0; CHUNK];
        for (byte, [high, low]) in raw.iter_mut().zip(chunk) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        let mut encoded = [0; CHUNK / 3 * 4];
        let raw = raw.get(..chunk.len()).unwrap_or_default();
        let length = STANDARD.encode_slice(raw, &mut encoded).map_err(|_| Surprise)?;
        out.extend_from_slice(encoded.get(..length).unwrap_or_default());
    }
    out.push(b'"');
    Ok(())
}

/// Appends `bytes` as a base64 string, as `bytea` looks.
pub(super) fn write_raw(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}

fn nibble(digit: u8) -> Parsed<u8> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(Surprise),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Option<String> {
        let mut out = Vec::new();
        write_bytes(text.as_bytes(), &mut out).ok()?;
        Some(serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn bytes_are_base64() {
        assert_eq!(json("\\x").unwrap(), "");
        assert_eq!(json("\\x00ff10").unwrap(), "AP8Q");
        assert_eq!(json("\\xdeadbeef").unwrap(), "3q2+7w==");
        for text in ["", "\\x0", "\\xzz", "abc\\000"] {
            assert_eq!(json(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let read = STANDARD.decode(json(&format!("\\x{hex}")).unwrap()).unwrap();
            prop_assert_eq!(read, bytes);
        }
    }
}
