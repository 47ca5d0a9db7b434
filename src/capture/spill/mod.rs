//! Transactions that arrive in parts before they have committed, kept on disk until they do.
//!
//! ```text
//!   StreamStart ─► records appended to the transaction's file ─► StreamStop     in parts, interleaved
//!   StreamAbort of a savepoint ─► its file ends where the savepoint's first record began
//!   StreamAbort of the transaction ─► gone          StreamCommit ─► read back from the beginning
//! ```
//!
//! A savepoint's records are the last ones of its transaction at the moment it is rolled back: no
//! other part of the transaction can write while it is open. So dropping them is cutting the file.
//! What this cannot tell is where a logical message belongs that came just before the savepoint's
//! first row, because PostgreSQL sends it under the id of the whole transaction. Since such a
//! message may count in a position, that is not guessed: the session ends with
//! [`SpillError::Doubtful`], and the next one has PostgreSQL keep large transactions itself.
//!
//! Files are removed from their directory while they are open, so a crash leaves nothing behind;
//! what was in them comes again, because a slot is confirmed only past what has committed.
//! Memory is bounded: one buffer, and a few bytes for each savepoint, of which there may be
//! [`SPILL_SAVEPOINTS_MAX`].

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Gauge, counter, gauge};

use super::decode::part_xid;
use crate::task::Failpoint;
use crate::vocab::limits::{SPILL_BUFFER_BYTES, SPILL_SAVEPOINTS_MAX};
use crate::vocab::{Lsn, SourceName};

/// Bytes before each record: its length and its LSN.
const HEADER_BYTES: usize = 4 + 8;

/// Where the prefix of a logical message begins: after kind, transaction, flags and LSN.
const PREFIX_AT: usize = 1 + 4 + 1 + 8;

/// What messages that matter here begin with.
const OURS: &[u8] = b"cadastre.";

/// Tells the files of one process apart for the moment in which they have names.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Why a transaction could not be kept. PostgreSQL can keep it instead.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The disk does not take it.
    #[error("unfinished transactions cannot be kept in {}", dir.display())]
    Io {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is too much of it.
    #[error("unfinished transactions take more than {bytes_max} bytes")]
    Full {
        /// How much they may take.
        bytes_max: u64,
    },
    /// A savepoint was rolled back that a message may or may not belong to.
    #[error("transaction {xid} rolled back a savepoint whose beginning cannot be told")]
    Doubtful {
        /// Id of the transaction.
        xid: u32,
    },
    /// More savepoints than can be remembered.
    #[error("unfinished transactions have more than {SPILL_SAVEPOINTS_MAX} savepoints")]
    Savepoints,
    /// Parts that do not fit together.
    #[error("part of transaction {xid} is out of order: {problem}")]
    OutOfOrder {
        /// Id of the transaction.
        xid: u32,
        /// Why.
        problem: &'static str,
    },
}

/// The unfinished transactions of one session.
pub(super) struct Spill {
    dir: PathBuf,
    bytes_max: u64,
    /// Bytes on disk.
    used: u64,
    /// Savepoints remembered.
    savepoints: usize,
    transactions: HashMap<u32, Transaction>,
    /// The transaction whose part is arriving.
    open: Option<u32>,
    /// Its records that are not on disk yet.
    buffer: Vec<u8>,
    gauge: Gauge,
}

/// One unfinished transaction.
#[derive(Default)]
struct Transaction {
    /// Made when there is something to keep.
    file: Option<Arc<File>>,
    /// Bytes that count; the file may be longer after a savepoint was rolled back.
    len: u64,
    /// The longest the file has been.
    peak: u64,
    /// Subtransactions in the order of their first records.
    subs: Vec<Sub>,
    /// Where in `subs` each one is.
    index: HashMap<u32, usize>,
    /// A message of ours came, and no row since.
    marked: bool,
}

/// A subtransaction.
struct Sub {
    xid: u32,
    /// Where its first record begins.
    start: u64,
    /// A message came just before, which may belong to it.
    doubtful: bool,
}

impl Spill {
    /// Nothing kept yet. `dir` is made if it is missing, and what a crash left there is removed.
    pub(super) async fn open(
        dir: PathBuf,
        bytes_max: u64,
        source: &SourceName,
    ) -> Result<Self, SpillError> {
        let prefix = format!("{source}.");
        let prepared = blocking({
            let dir = dir.clone();
            move || {
                DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
                remove_left_behind(&dir, &prefix)
            }
        });
        prepared.await.map_err(|source| SpillError::Io { dir: dir.clone(), source })?;
        let gauge = gauge!("cadastre_capture_spilled_bytes", "source" => source.to_string());
        gauge.set(0.0);
        Ok(Self {
            dir: dir.join(source.as_str()),
            bytes_max,
            used: 0,
            savepoints: 0,
            transactions: HashMap::new(),
            open: None,
            buffer: Vec::new(),
            gauge,
        })
    }

    /// Whether part of a transaction is arriving.
    pub(super) fn in_part(&self) -> bool {
        self.open.is_some()
    }

    /// Part of a transaction begins.
    pub(super) fn start(&mut self, xid: u32, first: bool) -> Result<(), SpillError> {
        let problem = match (self.open, self.transactions.contains_key(&xid)) {
            (Some(_), _) => "it begins inside another part",
            (None, true) if first => "it says it is the first and is not",
            (None, false) if !first => "the first part is missing",
            (None, _) => {
                self.transactions.entry(xid).or_default();
                self.open = Some(xid);
                return Ok(());
            }
        };
        Err(SpillError::OutOfOrder { xid, problem })
    }

    /// Keeps a message of the part that is arriving.
    pub(super) async fn keep(&mut self, wal: Lsn, message: &[u8]) -> Result<(), SpillError> {
        let Some((xid, transaction)) = open_transaction(self.open, &mut self.transactions) else {
            return Err(SpillError::OutOfOrder { xid: 0, problem: "it did not begin" });
        };
        if message.first() == Some(&b'M') {
            let ours = message.get(PREFIX_AT..).is_some_and(|prefix| prefix.starts_with(OURS));
            transaction.marked |= ours;
        } else if let Some(sub) = part_xid(message) {
            if sub != xid && !transaction.index.contains_key(&sub) {
                if self.savepoints == SPILL_SAVEPOINTS_MAX {
                    return Err(SpillError::Savepoints);
                }
                self.savepoints += 1;
                let start = transaction.len + self.buffer.len() as u64;
                transaction.index.insert(sub, transaction.subs.len());
                let doubtful = transaction.marked;
                transaction.subs.push(Sub { xid: sub, start, doubtful });
            }
            transaction.marked = false;
        }
        let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
        self.buffer.extend_from_slice(&len.to_be_bytes());
        self.buffer.extend_from_slice(&wal.get().to_be_bytes());
        self.buffer.extend_from_slice(message);
        if self.buffer.len() >= SPILL_BUFFER_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// The part that is arriving ends.
    pub(super) async fn stop(&mut self) -> Result<(), SpillError> {
        self.flush().await?;
        self.open = None;
        Ok(())
    }

    /// A savepoint was rolled back, or all of the transaction when `sub` is its own id.
    pub(super) fn abort(&mut self, xid: u32, sub: u32) -> Result<(), SpillError> {
        if self.open.is_some() {
            return Err(SpillError::OutOfOrder { xid, problem: "it aborts inside a part" });
        }
        if xid == sub {
            drop(self.take(xid));
            return Ok(());
        }
        let Some(transaction) = self.transactions.get_mut(&xid) else { return Ok(()) };
        match transaction.index.get(&sub) {
            Some(at) if transaction.subs.get(*at).is_some_and(|sub| sub.doubtful) => {
                Err(SpillError::Doubtful { xid })
            }
            Some(at) => {
                // Those that began later lay inside it.
                for inner in transaction.subs.drain(*at..).rev() {
                    transaction.index.remove(&inner.xid);
                    transaction.len = inner.start;
                    self.savepoints -= 1;
                }
                transaction.marked = false;
                Ok(())
            }
            // It wrote no row, but a message may have been its own.
            None if transaction.marked => Err(SpillError::Doubtful { xid }),
            None => Ok(()),
        }
    }

    /// A transaction has committed: what was kept of it, which is forgotten here.
    pub(super) fn commit(&mut self, xid: u32, source: &SourceName) -> Result<Kept, SpillError> {
        let problem = if self.open.is_some() {
            "it commits inside a part"
        } else if let Some(kept) = self.take(xid) {
            let label = source.to_string();
            counter!("cadastre_capture_spilled_transactions_total", "source" => label).increment(1);
            return Ok(kept);
        } else {
            "it commits and did not begin"
        };
        Err(SpillError::OutOfOrder { xid, problem })
    }

    fn take(&mut self, xid: u32) -> Option<Kept> {
        let transaction = self.transactions.remove(&xid)?;
        self.savepoints -= transaction.subs.len();
        self.used -= transaction.peak;
        self.gauge.set(self.used as f64);
        let Transaction { file, len, .. } = transaction;
        let dir = self.dir.clone();
        Some(Kept { file, dir, offset: 0, end: len, buffer: Vec::new(), read: 0 })
    }

    /// Writes the buffer to the file of the open transaction.
    async fn flush(&mut self) -> Result<(), SpillError> {
        let Some((_, transaction)) = open_transaction(self.open, &mut self.transactions) else {
            return Ok(());
        };
        if self.buffer.is_empty() {
            return Ok(());
        }
        let offset = transaction.len;
        let end = offset + self.buffer.len() as u64;
        self.used += end.saturating_sub(transaction.peak);
        transaction.peak = transaction.peak.max(end);
        if self.used > self.bytes_max {
            return Err(SpillError::Full { bytes_max: self.bytes_max });
        }
        self.gauge.set(self.used as f64);
        let (path, file) = (self.dir.clone(), transaction.file.take());
        let buffer = std::mem::take(&mut self.buffer);
        Failpoint::CaptureSpill.hit();
        let written = blocking(move || {
            let file = file.map_or_else(|| create(&path).map(Arc::new), Ok)?;
            file.write_all_at(&buffer, offset)?;
            Ok((file, buffer))
        });
        let written = written.await;
        let (file, buffer) =
            written.map_err(|source| SpillError::Io { dir: self.dir.clone(), source })?;
        transaction.file = Some(file);
        transaction.len = end;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }
}

fn open_transaction(
    open: Option<u32>,
    transactions: &mut HashMap<u32, Transaction>,
) -> Option<(u32, &mut Transaction)> {
    let xid = open?;
    Some((xid, transactions.get_mut(&xid)?))
}

/// A committed transaction, to be read from its beginning. Its file goes when this is dropped.
pub(super) struct Kept {
    file: Option<Arc<File>>,
    dir: PathBuf,
    /// Where the next bytes are read.
    offset: u64,
    /// Where they end.
    end: u64,
    buffer: Vec<u8>,
    /// How much of the buffer was handed out.
    read: usize,
}

impl Kept {
    /// Reads on, until at least one record is at hand; false at the end.
    pub(super) async fn fill(&mut self) -> Result<bool, SpillError> {
        self.buffer.drain(..std::mem::take(&mut self.read));
        let Some(file) = &self.file else { return Ok(false) };
        loop {
            let missing = match record_len(&self.buffer) {
                Some(len) if self.buffer.len() >= len => return Ok(true),
                Some(len) => len - self.buffer.len(),
                None => HEADER_BYTES,
            };
            let left = self.end - self.offset;
            if left == 0 {
                return Ok(false);
            }
            let want =
                missing.max(SPILL_BUFFER_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX));
            let (file, offset) = (Arc::clone(file), self.offset);
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = blocking(move || {
                let start = buffer.len();
                buffer.resize(start + want, 0);
                file.read_exact_at(buffer.get_mut(start..).unwrap_or_default(), offset)?;
                Ok(buffer)
            });
            let read = read.await;
            self.buffer =
                read.map_err(|source| SpillError::Io { dir: self.dir.clone(), source })?;
            self.offset += want as u64;
        }
    }

    /// The next record that is at hand.
    pub(super) fn next(&mut self) -> Option<(Lsn, &[u8])> {
        let rest = self.buffer.get(self.read..)?;
        let len = record_len(rest)?;
        let record = rest.get(..len)?;
        self.read += len;
        let (header, message) = record.split_at_checked(HEADER_BYTES)?;
        let (_, wal) = header.split_last_chunk::<8>()?;
        Some((Lsn::new(u64::from_be_bytes(*wal)), message))
    }
}

/// Length of the record at the front, its header included.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let (len, _) = bytes.split_first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*len)).ok()?.checked_add(HEADER_BYTES)
}

/// A file without a name: it lasts as long as it is open.
fn create(path: &Path) -> io::Result<File> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = path.with_added_extension(format!("{}-{number}.part", std::process::id()));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Removes files of this source whose process died between making and unnaming them.
fn remove_left_behind(dir: &Path, prefix: &str) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(".part") {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Runs what may wait for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
