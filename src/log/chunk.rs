//! How a run of batches is stored: one compressed, checksummed chunk.
//!
//! ```text
//! "CDC" version              4 bytes, so that a later form can be told from this one
//! one zstd frame, with the checksum zstd gives, of
//!     count                  u32
//!     count × entry          epoch u8, LSN u64, ordinal u32, dataset i32, op u8, line length u32
//!     data                   the lines, back to back
//! ```
//!
//! Numbers are little-endian. Decoding trusts nothing: bytes that are not what encoding makes give
//! the reason, and no more memory is taken than they decompress to, with a cap on that.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};

use super::batch::{Batch, Entry};
use crate::vocab::{DatasetId, Epoch, Lsn, Op, Position};

/// Largest batch a chunk can hold, in encoded bytes: PostgreSQL's largest value is 1 GiB, and a
/// chunk of text that does not compress must still fit.
pub(super) const CHUNK_BYTES_MAX: usize = 768 * 1024 * 1024;

const HEADER: &[u8] = b"CDC\x01";
const ENTRY_BYTES: usize = 22;
/// Changes repeat their keys and compress well at any level; the lowest is the fastest.
const LEVEL: i32 = 1;

/// One chunk of these batches in order. Each must follow the one before.
pub(super) fn encode(batches: &[&Batch]) -> Vec<u8> {
    write(batches).expect("writing to memory does not fail")
}

fn write(batches: &[&Batch]) -> io::Result<Vec<u8>> {
    let changes: usize = batches.iter().map(|batch| batch.len()).sum();
    let bytes: usize = batches.iter().map(|batch| batch.bytes_len()).sum();
    let mut table = Vec::with_capacity(4 + changes * ENTRY_BYTES);
    table.extend_from_slice(&(changes as u32).to_le_bytes());
    for batch in batches {
        for (entry, json) in batch.entries(0..batch.len()) {
            table.push(entry.position.epoch().get());
            table.extend_from_slice(&entry.position.lsn().get().to_le_bytes());
            table.extend_from_slice(&entry.position.ordinal().to_le_bytes());
            table.extend_from_slice(&entry.dataset.0.to_le_bytes());
            table.push(entry.op.code());
            table.extend_from_slice(&(json.len() as u32 + 1).to_le_bytes());
        }
    }
    let mut out = Vec::with_capacity(HEADER.len() + (table.len() + bytes) / 4);
    out.extend_from_slice(HEADER);
    let mut frame = zstd::Encoder::new(out, LEVEL)?;
    frame.include_checksum(true)?;
    frame.set_pledged_src_size(Some((table.len() + bytes) as u64))?;
    frame.write_all(&table)?;
    for batch in batches {
        frame.write_all(&batch.lines(0..batch.len()))?;
    }
    frame.finish()
}

/// The batch of all changes in a chunk, or why it is not one.
pub(super) fn decode(chunk: &[u8]) -> Result<Batch, String> {
    let frame = chunk.strip_prefix(HEADER).ok_or_else(|| "it has an unknown header".to_owned())?;
    let mut body = decompress(frame)?;
    let truncated = || "its table is cut short".to_owned();
    let count = body.try_get_u32_le().map_err(|_| truncated())? as usize;
    let table_bytes = count.checked_mul(ENTRY_BYTES).ok_or_else(truncated)?;
    if body.len() < table_bytes {
        return Err(truncated());
    }
    let mut table = body.split_to(table_bytes);
    let mut entries = Vec::with_capacity(count);
    let mut end = 0usize;
    for _ in 0..count {
        let epoch = Epoch::new(table.get_u8());
        let lsn = Lsn::new(table.get_u64_le());
        let position = Position::new(epoch, lsn, table.get_u32_le());
        let dataset = DatasetId(table.get_i32_le());
        let op =
            Op::from_code(table.get_u8()).ok_or_else(|| "an operation is unknown".to_owned())?;
        end = end.saturating_add(table.get_u32_le() as usize);
        entries.push(Entry { position, dataset, op, end });
    }
    Batch::from_parts(entries, body).map_err(str::to_owned)
}

/// All of one zstd frame and nothing after it.
fn decompress(frame: &[u8]) -> Result<Bytes, String> {
    /// The table of a chunk takes less than its lines, so this allows for both.
    const BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;
    let failed = |error: io::Error| error.to_string();
    let mut decoder = zstd::Decoder::with_buffer(frame).map_err(failed)?.single_frame();
    let mut body = Vec::with_capacity(frame.len().saturating_mul(8).min(1 << 21));
    decoder.by_ref().take(BYTES_MAX as u64 + 1).read_to_end(&mut body).map_err(failed)?;
    if body.len() > BYTES_MAX {
        return Err("it decompresses to more than a chunk may hold".to_owned());
    }
    if !decoder.finish().is_empty() {
        return Err("bytes follow its end".to_owned());
    }
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::batch::tests::{batch, position};

    fn frame_of(body: &[u8]) -> Vec<u8> {
        let mut chunk = HEADER.to_vec();
        chunk.extend(zstd::encode_all(body, LEVEL).unwrap());
        chunk
    }

    fn changes() -> impl Strategy<Value = Vec<(u64, i32)>> {
        prop::collection::btree_map(0..500u64, any::<i32>(), 1..40)
            .prop_map(|changes| changes.into_iter().collect())
    }

    #[test]
    fn a_run_of_batches_becomes_one() {
        let (a, b) = (batch(&[(1, 1), (2, 2)], 10), batch(&[(7, 1)], 0));
        let merged = decode(&encode(&[&a, &b])).unwrap();
        let expected: Vec<_> = a.iter().chain(b.iter()).collect();
        let found: Vec<_> = merged.iter().collect();
        assert_eq!(found.len(), 3);
        for ((found, found_json), (expected, expected_json)) in found.iter().zip(&expected) {
            assert_eq!(found.position, expected.position);
            assert_eq!(found_json, expected_json);
        }
        assert_eq!(merged.datasets(), [DatasetId(1), DatasetId(2)]);
    }

    #[test]
    fn damage_is_reported_whatever_it_is() {
        let whole = batch(&[(1, 1), (2, 2)], 10).compress();
        let entry = |n: u64, op: u8, len: u32| {
            let position = position(n);
            let mut bytes = vec![position.epoch().get()];
            bytes.extend(position.lsn().get().to_le_bytes());
            bytes.extend(position.ordinal().to_le_bytes());
            bytes.extend(1i32.to_le_bytes());
            bytes.push(op);
            bytes.extend(len.to_le_bytes());
            bytes
        };
        let count = |n: u32| n.to_le_bytes().to_vec();
        for (damaged, reason) in [
            (b"CDC\x02".to_vec(), "unknown header"),
            (whole[..whole.len() - 1].to_vec(), "incomplete frame"),
            ([whole.as_slice(), b"x"].concat(), "bytes follow"),
            (frame_of(b"\x01"), "cut short"),
            (frame_of(&count(u32::MAX)), "cut short"),
            (frame_of(&count(0)), "no change"),
            (frame_of(&[count(1), entry(1, b'?', 3), b"{}\n".to_vec()].concat()), "operation"),
            (frame_of(&[count(1), entry(1, b'c', 3), b"{} ".to_vec()].concat()), "no end"),
            (frame_of(&[count(1), entry(1, b'c', 0), Vec::new()].concat()), "no end"),
            (frame_of(&[count(1), entry(1, b'c', 9), b"{}\n".to_vec()].concat()), "outside"),
            (frame_of(&[count(1), entry(1, b'c', 3), b"{}\n\n".to_vec()].concat()), "outlasts"),
            (
                frame_of(
                    &[count(2), entry(2, b'c', 3), entry(2, b'c', 3), b"{}\n{}\n".to_vec()]
                        .concat(),
                ),
                "do not increase",
            ),
        ] {
            let error = decode(&damaged).unwrap_err();
            assert!(error.contains(reason), "{error} does not say {reason}");
        }
    }

    proptest! {
        #[test]
        fn chunks_read_back_as_written(changes in changes(), pad in 0..200usize) {
            let batch = batch(&changes, pad);
            prop_assert_eq!(Batch::decompress(&batch.compress()).unwrap(), batch);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, framed: bool) {
            let chunk = if framed { frame_of(&bytes) } else { [HEADER, &bytes].concat() };
            drop(decode(&chunk));
        }

        #[test]
        fn a_flipped_bit_never_goes_unseen(changes in changes(), at: prop::sample::Index, bit in 0..8u8) {
            let batch = batch(&changes, 5);
            let mut chunk = batch.compress();
            let at = at.index(chunk.len());
            chunk[at] ^= 1 << bit;
            // A few bits of a frame mean nothing to zstd; then the content is the same.
            if let Ok(read) = decode(&chunk) {
                prop_assert_eq!(read, batch);
            }
        }
    }
}
