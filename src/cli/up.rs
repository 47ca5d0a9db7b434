//! `cadastre up`: the server.

use clap::Args;

use super::error::Error;
use super::output;
use super::signal::Signals;
use crate::app::{App, Options};
use crate::telemetry::{self, TelemetryOptions};

/// Runs the server.
///
/// Its base URL is the one line on standard output, printed when it is ready to serve. SIGTERM or
/// SIGINT ends it gracefully, a second one at once. `CADASTRE_ADMIN_TOKEN` sets the admin token;
/// without it one is made and kept in the data directory. `CADASTRE_LOG` says what is logged.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    options: Options,
}

/// Runs the command.
pub(crate) async fn run(command: Up) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    telemetry::init(&TelemetryOptions::default())?;
    let app = tokio::select! {
        biased;
        () = signals.next() => return Ok(()),
        app = App::start(command.options) => app?,
    };
    output::line(&format!("http://{}", app.addr()))?;
    let failed = tokio::select! {
        () = signals.next() => false,
        () = app.failed() => true,
    };
    tracing::info!("stopping");
    tokio::select! {
        () = signals.next() => tracing::warn!("stopping at once"),
        () = app.stop() => tracing::info!("stopped"),
    }
    if failed { Err(Error::Panicked) } else { Ok(()) }
}
