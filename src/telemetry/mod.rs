//! Telemetry: what the program says about itself, as logs on stderr and as metrics.
//!
//! Logs are [bunyan](https://github.com/trentm/node-bunyan) records, one JSON object per line, or
//! text for people when stderr is a terminal. Metrics are kept in memory and rendered for
//! Prometheus on request.
//!
//! Invariants:
//!
//! - A log line never holds a row's values, a token, a password or a request body. Libraries print
//!   statements and headers at `debug`, so what they say below `info` is dropped whatever the
//!   filter asks for.
//! - stdout belongs to data: nothing here writes to it.
//! - A fact has one field name everywhere: the ones in [`fields`].
//!
//! Errors are logged where they are handled, once, with their whole [`ErrorChain`] in one field.
//! This room decides neither what is worth logging nor what is measured; the rooms do.

mod chain;
mod error;
pub mod fields;
mod logs;
mod metrics;

pub use chain::ErrorChain;
pub use error::Error;
pub use logs::{TelemetryOptions, init};
pub use metrics::{Metrics, metrics};
