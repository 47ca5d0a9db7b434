//! The command line: one file for each command, and what they share.
//!
//! stdout is data, stderr is talk. Exit codes: 0 done, 1 the answer is "no" or there are findings,
//! 2 wrong usage, 3 something needed is out of reach. The commands that talk to a server know only
//! its HTTP interface; `up` and `demo` put a server together through [`crate::app`].

#![expect(clippy::print_stderr, reason = "talking to people on stderr is this room's work")]

mod client;
mod error;
mod lines;
mod output;
mod signal;

mod adopt;
mod apply;
mod audit;
mod break_glass;
mod check;
mod demo;
mod doctor;
mod export;
mod history;
mod owner;
mod plan;
mod schema;
mod service;
mod subscription;
mod tail;
mod token;
mod transfer;
mod uninstall;
mod up;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::ErrorChain;
use error::Error;

/// Ownership of data, enforced inside PostgreSQL, and a feed of every change with its writer.
#[derive(Debug, Parser)]
#[command(name = "cadastre", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Demo(demo::Demo),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Export(export::Export),
    Tail(tail::Tail),
    History(history::History),
    Verify(verify::Verify),
    Owner(owner::Owner),
    Check(check::Check),
    Doctor(doctor::Doctor),
    Adopt(adopt::Adopt),
    Audit(audit::Audit),
    Uninstall(uninstall::Uninstall),
    Service(service::ServiceCommand),
    Token(token::TokenCommand),
    Subscription(subscription::Subscription),
    Transfer(transfer::TransferCommand),
    BreakGlass(break_glass::BreakGlass),
    Schema(schema::Schema),
}

/// The program: parses its arguments, runs the command, says why it failed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version count as errors here; nothing is left to say if printing fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_silent() {
                eprintln!("cadastre: {}", ErrorChain(&error));
            }
            error.exit_code()
        }
    }
}

/// Runs a command on a runtime of its own.
fn execute(command: Command) -> Result<(), Error> {
    // Fails only if a provider is there already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "an event loop", source })?;
    let done = runtime.block_on(async {
        match command {
            Command::Up(command) => Box::pin(up::run(*command)).await,
            Command::Demo(command) => Box::pin(demo::run(command)).await,
            Command::Plan(command) => plan::run(command).await,
            Command::Apply(command) => apply::run(command).await,
            Command::Export(command) => export::run(command).await,
            Command::Tail(command) => tail::run(command).await,
            Command::History(command) => history::run(command).await,
            Command::Verify(command) => verify::run(command).await,
            Command::Owner(command) => owner::run(command).await,
            Command::Check(command) => check::run(command).await,
            Command::Doctor(command) => doctor::run(command).await,
            Command::Adopt(command) => adopt::run(command).await,
            Command::Audit(command) => audit::run(command).await,
            Command::Uninstall(command) => uninstall::run(command).await,
            Command::Service(command) => service::run(command).await,
            Command::Token(command) => token::run(command).await,
            Command::Subscription(command) => subscription::run(command).await,
            Command::Transfer(command) => transfer::run(command).await,
            Command::BreakGlass(command) => break_glass::run(command).await,
            Command::Schema(command) => schema::run(&command),
        }
    });
    // A thread blocked on standard input or output must not keep the process.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
