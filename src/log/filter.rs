//! A Bloom filter over the marks of a chunk's changes: whether a row may have one in it.
//!
//! It says "no" only when no change was marked so. PostgreSQL asks it too, to skip chunks without
//! reading them, so that its form is simple: bit `(low + i × high) mod bits` for each of
//! [`PROBES`], where `low` and `high` are the halves of the mark and `high` is made odd.

/// Bits looked at for each mark.
pub(super) const PROBES: i64 = 7;

/// Bits for each different mark: with seven probes one in a hundred is in it by chance.
const BITS_PER_MARK: usize = 10;

/// Smallest filter, in bytes.
const BYTES_MIN: usize = 8;

/// The filter of these marks.
pub(super) fn build(mut marks: Vec<u64>) -> Vec<u8> {
    marks.sort_unstable();
    marks.dedup();
    let bytes = (marks.len() * BITS_PER_MARK).div_ceil(8).max(BYTES_MIN);
    let mut filter = vec![0u8; bytes];
    for mark in marks {
        for bit in bits(mark, bytes) {
            filter[bit / 8] |= 1 << (bit % 8);
        }
    }
    filter
}

/// The halves of a mark by which bits are found: the low one, and the high one made odd.
pub(super) fn halves(mark: u64) -> (i64, i64) {
    ((mark & 0xffff_ffff) as i64, ((mark >> 32) | 1) as i64)
}

/// The bits of a mark in a filter of so many bytes, numbered as PostgreSQL's `get_bit` does: from
/// the least significant bit of the first byte.
fn bits(mark: u64, bytes: usize) -> impl Iterator<Item = usize> {
    let (low, high) = halves(mark);
    let modulus = (8 * bytes) as i64;
    (0..PROBES).map(move |probe| ((low + probe * high) % modulus) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_hold(filter: &[u8], mark: u64) -> bool {
        bits(mark, filter.len()).all(|bit| filter[bit / 8] & (1 << (bit % 8)) != 0)
    }

    fn mark(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        let filter = build((0..2000).map(mark).collect());
        assert_eq!(filter.len(), 2500);
        assert!((0..2000).all(|n| may_hold(&filter, mark(n))));
        let strangers = (2000..22_000).filter(|n| may_hold(&filter, mark(*n))).count();
        assert!(strangers < 400, "{strangers} of 20000");
        assert_eq!(build(vec![1, 1, 1]), build(vec![1]), "doubles take no room");
        assert_eq!(build(Vec::new()), [0; BYTES_MIN]);
    }
}
