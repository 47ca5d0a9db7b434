//! The names of log fields: one fact, one name. Write them as they stand here, for example
//! `tracing::info!(dataset = %name, position = %at, "…")`.

/// A dataset's name, such as `shop.public.orders`.
pub const DATASET: &str = "dataset";
/// A source's name.
pub const SOURCE: &str = "source";
/// A service's name.
pub const SERVICE: &str = "service";
/// A replication slot's name.
pub const SLOT_NAME: &str = "slot.name";
/// A place in PostgreSQL's WAL, in its own notation.
pub const PG_LSN: &str = "pg.lsn";
/// A change's place in its source's order.
pub const POSITION: &str = "position";
/// The id that joins a request's log lines with its response.
pub const REQUEST_ID: &str = "request_id";
/// How long something took, in whole milliseconds.
pub const DURATION_MS: &str = "duration_ms";
/// How large something is, in bytes.
pub const SIZE_BYTES: &str = "size_bytes";
/// An error with all its sources: an [`ErrorChain`](super::ErrorChain).
pub const ERROR: &str = "error";
