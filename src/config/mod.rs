//! Settings: one struct per room that has any, each a group of command-line flags with an
//! environment variable and a default, so that `cadastre up --help` documents all of them.
//!
//! Every wait in the product has its deadline here. A deadline too small turns a slow moment into
//! a failure; one too large lets a dead dependency hold a connection, a slot or a caller hostage.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::vocab::{Network, SourceName};

/// Parses `300ms`, `5s`, `2m`.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// Parses `4096`, `64MiB`, `2GiB`.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];
    let unit = UNITS.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected a number of bytes such as 4096, 64MiB or 2GiB".to_owned())
}

/// Waits on PostgreSQL: the registry's pool and every connection to a source.
#[derive(Debug, Clone, Args)]
pub struct PostgresOptions {
    /// Connections in the registry's pool. Too few: requests queue; too many: PostgreSQL's
    /// `max_connections` runs out.
    #[arg(long, env = "CADASTRE_POOL_SIZE", default_value_t = 8)]
    pub pool_size: usize,
    /// Longest wait for a pooled connection before the request fails with 503.
    #[arg(long, env = "CADASTRE_POOL_WAIT", default_value = "3s", value_parser = duration)]
    pub pool_wait: Duration,
    /// Longest wait for a connection to be made.
    #[arg(long, env = "CADASTRE_CONNECT_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// `statement_timeout` of every connection.
    #[arg(long, env = "CADASTRE_STATEMENT_TIMEOUT", default_value = "15s", value_parser = duration)]
    pub statement_timeout: Duration,
    /// `lock_timeout` of registry connections. Guard changes use a shorter one and retry.
    #[arg(long, env = "CADASTRE_LOCK_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub lock_timeout: Duration,
    /// `lock_timeout` of a change of guard: longest that owners' writes may queue behind it.
    #[arg(long, env = "CADASTRE_GUARD_LOCK_TIMEOUT", default_value = "300ms", value_parser = duration)]
    pub guard_lock_timeout: Duration,
    /// How often what stands in each source is compared with the registry. Longer: a guard that
    /// somebody switched off without a trace stays off for longer; shorter: more catalog queries.
    #[arg(long, env = "CADASTRE_GUARD_INTERVAL", default_value = "30s", value_parser = duration)]
    pub guard_interval: Duration,
    /// Longest that a change of guard keeps retrying for its lock.
    #[arg(long, env = "CADASTRE_GUARD_PATIENCE", default_value = "60s", value_parser = duration)]
    pub guard_patience: Duration,
}

/// What becomes of a slot whose WAL budget is nearly used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WalPolicy {
    /// It is kept.
    Keep,
    /// It is dropped, and made anew.
    DropSlot,
}

/// Capture: reading a source's slot and making its changes durable.
#[derive(Debug, Clone, Args)]
pub struct CaptureOptions {
    /// Longest silence from the walsender before the connection counts as dead. PostgreSQL sends
    /// a keepalive at half of its `wal_sender_timeout` (60s by default): stay above that.
    #[arg(long, env = "CADASTRE_CAPTURE_SILENCE", default_value = "60s", value_parser = duration)]
    pub silence: Duration,
    /// How often progress is reported to PostgreSQL; must stay well below `wal_sender_timeout`.
    #[arg(long, env = "CADASTRE_CAPTURE_FEEDBACK", default_value = "1s", value_parser = duration)]
    pub feedback: Duration,
    /// Longest pause between attempts to reconnect.
    #[arg(long, env = "CADASTRE_CAPTURE_BACKOFF", default_value = "5s", value_parser = duration)]
    pub backoff: Duration,
    /// How often a heartbeat is sent through each source, to come back through its slot. It also
    /// lets the slot of an idle source move on. More often costs a few bytes of WAL each time.
    #[arg(long, env = "CADASTRE_HEARTBEAT", default_value = "5s", value_parser = duration)]
    pub heartbeat: Duration,
    /// Longest that no heartbeat may come back before the source counts as standing still and
    /// `/readyz` says so. Must be several times `--heartbeat`; a large transaction that takes longer
    /// to read counts as standing still too.
    #[arg(long, env = "CADASTRE_HEARTBEAT_DEADLINE", default_value = "30s", value_parser = duration)]
    pub heartbeat_deadline: Duration,
    /// Whether large transactions are received while they run and kept on disk here until they
    /// commit. Otherwise PostgreSQL keeps them, and sends them only then.
    #[arg(long = "capture-streaming", env = "CADASTRE_CAPTURE_STREAMING", default_value_t = true,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub streaming: bool,
    /// Where unfinished transactions are kept; `spill` in the data directory if not given.
    #[arg(long, env = "CADASTRE_SPILL_DIR", value_name = "DIR")]
    pub spill_dir: Option<PathBuf>,
    /// Most that the unfinished transactions of one source may take on disk; beyond it PostgreSQL
    /// keeps them.
    #[arg(long, env = "CADASTRE_SPILL_MAX", default_value = "64GiB", value_parser = bytes,
          value_name = "BYTES")]
    pub spill_max: u64,
    /// Most WAL that a source may keep for its slot. Without it only PostgreSQL's own
    /// `max_slot_wal_keep_size` limits it, at which PostgreSQL gives the slot up.
    #[arg(long, env = "CADASTRE_WAL_BUDGET", value_parser = bytes, value_name = "BYTES")]
    pub wal_budget: Option<u64>,
    /// What to do when nearly all of the WAL budget is used: keep the slot and say so, or protect
    /// the source by dropping it, which leaves a gap in the feed.
    #[arg(long, env = "CADASTRE_WAL_POLICY", value_enum, default_value_t = WalPolicy::Keep,
          value_name = "POLICY")]
    pub wal_policy: WalPolicy,
    /// How long a small chunk waits for company before it is written to the log. Subscribers do
    /// not wait for it; only the confirmation of the slot does.
    #[arg(long, env = "CADASTRE_LOG_LINGER", default_value = "20ms", value_parser = duration)]
    pub log_linger: Duration,
}

/// The log: how long changes are kept.
#[derive(Debug, Clone, Args)]
pub struct LogOptions {
    /// How long a day of changes is kept after it has ended. Readers that come back later have to
    /// begin anew; more takes more room.
    #[arg(long, env = "CADASTRE_LOG_KEEP", default_value = "7d", value_parser = duration)]
    pub log_keep: Duration,
    /// Stored size of a source's changes above which the oldest are dropped before their time,
    /// unless a subscription still needs them: `512MiB`, `50GiB`.
    #[arg(long, env = "CADASTRE_LOG_BYTES", default_value = "50GiB", value_parser = bytes)]
    pub log_bytes: u64,
    /// Stored size of a source's changes above which the oldest are dropped although a subscription
    /// still needs them; its readers are told by a `gap` event. A full disk would be worse.
    #[arg(long, env = "CADASTRE_LOG_BYTES_MAX", default_value = "100GiB", value_parser = bytes)]
    pub log_bytes_max: u64,
    /// Other limits for one source: `SOURCE:keep=30d,bytes=10GiB,bytes-max=20GiB`, of which any may be
    /// left out. May be given several times; in the variable they are separated by semicolons.
    #[arg(long, env = "CADASTRE_LOG_SOURCE", value_delimiter = ';', value_name = "LIMITS")]
    pub log_source: Vec<SourceLimits>,
    /// How often it is looked for what can be dropped, and the days to come are made.
    #[arg(long, env = "CADASTRE_LOG_SWEEP", default_value = "1m", value_parser = duration)]
    pub log_sweep: Duration,
}

/// Limits of one source's log that differ from the general ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLimits {
    /// The source.
    pub source: SourceName,
    /// As [`LogOptions::log_keep`].
    pub keep: Option<Duration>,
    /// As [`LogOptions::log_bytes`].
    pub bytes: Option<u64>,
    /// As [`LogOptions::log_bytes_max`].
    pub bytes_max: Option<u64>,
}

impl FromStr for SourceLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected SOURCE:keep=30d,bytes=10GiB,bytes-max=20GiB";
        let (source, limits) = text.trim().split_once(':').ok_or(EXPECTED)?;
        let source = source.parse().map_err(|error| format!("{error}; {EXPECTED}"))?;
        let mut found = Self { source, keep: None, bytes: None, bytes_max: None };
        for limit in limits.split(',') {
            let (name, value) = limit.split_once('=').ok_or(EXPECTED)?;
            match name.trim() {
                "keep" => {
                    found.keep = Some(duration(value).map_err(|error| format!("keep: {error}"))?);
                }
                "bytes" => found.bytes = Some(bytes(value)?),
                "bytes-max" => found.bytes_max = Some(bytes(value)?),
                other => return Err(format!("unknown limit \"{other}\": {EXPECTED}")),
            }
        }
        Ok(found)
    }
}

/// Delivery: sending changes to those who subscribed.
#[derive(Debug, Clone, Args)]
pub struct DeliveryOptions {
    /// Networks that webhooks may be sent to although they are not public, such as 10.0.0.0/8, separated by
    /// commas. Without any, what only this server can reach stays closed to whoever may subscribe.
    #[arg(long, env = "CADASTRE_WEBHOOK_ALLOW", value_name = "NETWORKS", value_delimiter = ',')]
    pub webhook_allow: Vec<Network>,
    /// How long after a server died, beyond the longest wait for its receiver, another takes up what it was sending.
    /// Too short, and a slow registry database makes replicas take subscriptions from each other.
    #[arg(long, env = "CADASTRE_DELIVERY_HOLD", default_value = "5s", value_parser = duration)]
    pub delivery_hold: Duration,
}

/// Snapshots: reading the present rows of a source for readers that begin with them.
#[derive(Debug, Clone, Args)]
pub struct SnapshotOptions {
    /// Snapshots under way at the same time; the next reader gets 503 and comes back later.
    #[arg(long, env = "CADASTRE_SNAPSHOTS", default_value_t = 4)]
    pub snapshots: usize,
    /// Chunks read at the same time, of all snapshots, and tables that one snapshot reads in
    /// parallel: each takes a connection to the source.
    #[arg(long, env = "CADASTRE_SNAPSHOT_CHUNKS", default_value_t = 2)]
    pub snapshot_chunks: usize,
    /// Most rows of a chunk. Large ones read faster; each is one transaction in the source, and waits
    /// in memory for its reader.
    #[arg(long, env = "CADASTRE_SNAPSHOT_CHUNK_ROWS", default_value_t = 10_000)]
    pub snapshot_chunk_rows: usize,
    /// Rows read per second by all snapshots together; 0 is as fast as it goes.
    #[arg(long, env = "CADASTRE_SNAPSHOT_ROWS_PER_SECOND", default_value_t = 0)]
    pub snapshot_rows_per_second: u32,
    /// Longest that a snapshot waits for transactions to end that were writing its tables when it
    /// began. Too small: it fails beside long ones; too large: its reader waits without a row.
    #[arg(long, env = "CADASTRE_SNAPSHOT_SETTLE", default_value = "60s", value_parser = duration)]
    pub snapshot_settle: Duration,
}

/// The HTTP server.
#[derive(Debug, Clone, Args)]
pub struct HttpOptions {
    /// Address to listen on; port 0 picks a free one and prints it.
    #[arg(long, env = "CADASTRE_LISTEN", default_value = "127.0.0.1:7400")]
    pub listen: String,
    /// Longest wait for a client to send its request head.
    #[arg(long, env = "CADASTRE_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub request_timeout: Duration,
    /// How long open requests may finish after SIGTERM before they are cut.
    #[arg(long, env = "CADASTRE_GRACE", default_value = "5s", value_parser = duration)]
    pub grace: Duration,
}

/// Declares `Default` as what the command line gives when nothing is said.
macro_rules! default_from_flags {
    ($($options:ty),*) => {$(
        impl Default for $options {
            fn default() -> Self {
                #[derive(clap::Parser)]
                struct Flags {
                    #[command(flatten)]
                    options: $options,
                }
                <Flags as clap::Parser>::parse_from(["cadastre"]).options
            }
        }
    )*};
}
default_from_flags!(
    PostgresOptions,
    CaptureOptions,
    LogOptions,
    DeliveryOptions,
    SnapshotOptions,
    HttpOptions
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        for (text, value) in
            [("0", 0), ("4096", 4096), ("7 B", 7), ("3KiB", 3072), ("2GiB", 2 << 30)]
        {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1GB", "99999999TiB"] {
            assert!(bytes(text).unwrap_err().contains("64MiB"), "{text}");
        }
    }

    #[test]
    fn a_source_may_have_its_own_limits() {
        let limits: SourceLimits = "shop:keep=30d,bytes=10GiB".parse().unwrap();
        assert_eq!(limits.source.as_str(), "shop");
        assert_eq!(limits.keep, Some(Duration::from_secs(30 * 24 * 60 * 60)));
        assert_eq!((limits.bytes, limits.bytes_max), (Some(10 << 30), None));
        for text in ["shop", "shop:", "shop:age=1d", "shop:keep=1", "Shop!:keep=1d"] {
            assert!(text.parse::<SourceLimits>().is_err(), "{text}");
        }
    }
}
