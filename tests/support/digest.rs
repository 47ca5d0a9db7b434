//! The digest of what a feed delivered, computed by the documented recipe and nothing of ours.

use sha2::{Digest, Sha256};

/// The sum, modulo 2^128, of the first 16 bytes of the SHA-256 of each line without its last
/// `,"ts_ms":` and the digits after it, in hexadecimal.
pub(crate) fn digest<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let mut sum = 0_u128;
    for line in lines {
        let (before, after) = line.rsplit_once(",\"ts_ms\":").expect("every event tells when");
        let rest = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let hash = Sha256::digest(format!("{before}{rest}"));
        let first = hash[..16].try_into().expect("sixteen bytes");
        sum = sum.wrapping_add(u128::from_be_bytes(first));
    }
    format!("{sum:032x}")
}
