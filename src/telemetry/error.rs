//! What can go wrong while telemetry is set up.

use crate::vocab::Retry;

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error(
        "CADASTRE_LOG is `{filter}`: expected a level (error, warn, info, debug, trace) or a list \
         such as `info,cadastre::capture=debug`"
    )]
    Filter {
        /// The text given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another logger was installed before.
    #[error("logging is set up already")]
    Logs(#[source] tracing_subscriber::util::TryInitError),
    /// Another recorder was installed before.
    #[error("metrics are set up already")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
}

impl Error {
    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Filter { .. } | Self::Logs(_) | Self::Metrics(_) => Retry::Never,
        }
    }
}
