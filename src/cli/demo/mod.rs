//! `cadastre demo`: the whole story on a private PostgreSQL, told while it happens.
//!
//! Nothing is simulated. The manifest, the feed and the violations go through the HTTP interface,
//! as users' programs would; the services write with plain SQL, each under its own role.

mod narrator;
mod stage;
mod story;
mod subscriber;

use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::output;
use super::signal::Signals;
use crate::telemetry::{self, TelemetryOptions};
use narrator::Narrator;
use stage::Stage;

/// Tells the whole story on a private PostgreSQL: two services, a table with an owner, an
/// intruder who is rejected, a subscriber who sees the owner's change with its writer.
///
/// Then everything keeps running until Ctrl-C, to be tried out. Needs the PostgreSQL server
/// programs on this machine, and nothing else.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// End after the story; exits 0 only if every step did what it says.
    #[arg(long)]
    once: bool,
    /// Keep the data in this directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Directory of the PostgreSQL server programs; found by itself if not given.
    #[arg(long, env = "CADASTRE_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
}

/// Runs the command. It exits 1 when a step did not do what it says, or was not reached.
pub(crate) async fn run(command: Demo) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // The story is told on standard output; the log is for when something goes wrong.
    let filter = std::env::var("CADASTRE_LOG").unwrap_or_else(|_| "error".to_owned());
    telemetry::init(&TelemetryOptions { filter, ..TelemetryOptions::default() })?;
    let mut narrator = Narrator::default();
    narrator.opening()?;
    let mut stage = tokio::select! {
        biased;
        () = signals.next() => return Err(Error::No),
        stage = Stage::build(command.data_dir, &command.listen, command.postgres_bin) => stage?,
    };
    let told = tokio::select! {
        biased;
        () = signals.next() => Err(Error::No),
        told = story::tell(&mut stage, &mut narrator) => told,
    };
    let told = told.and_then(|()| narrator.verdict());
    if told.is_ok() && !command.once {
        output::text(&stage.invitation())?;
        signals.next().await;
    }
    stage.clear().await;
    told
}
