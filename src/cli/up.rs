//! `cadastre up`: the server.

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::error::Error;
use super::output;
use super::signal::Signals;
use crate::app::{App, Options};
use crate::telemetry::{self, TelemetryOptions};

/// Runs the server.
///
/// Its base URL is the one line on standard output, printed when it is ready to serve. SIGTERM or
/// SIGINT ends it gracefully, a second one at once. `CADASTRE_ADMIN_TOKEN` sets the admin token;
/// without it one is made and kept in the data directory. So is the key that seals the secrets of
/// webhooks, unless `CADASTRE_SECRETS_KEY` sets it: every replica needs the same. `CADASTRE_LOG` says
/// what is logged.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    options: Options,
}

/// Lets itself open as many files as the system allows it: each subscriber takes one, and by default
/// a shell allows a thousand.
fn open_files() {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    let raised = limit.and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

/// Runs the command.
pub(crate) async fn run(command: Up) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    telemetry::init(&TelemetryOptions::default())?;
    open_files();
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
