//! The README does what it says: each of its commands, in order, on a fresh machine's state.

use std::path::Path;

use super::{Command, cadastre_bin, run};
use crate::support::{ADMIN_TOKEN, Cluster, Server};

/// The README.
const README: &str = include_str!("../../README.md");

/// The text of each fenced block with this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let parts = README.split(opening.as_str()).skip(1);
    parts.map(|part| part.split("\n```").next().unwrap_or_default()).collect()
}

/// The commands shown at a prompt.
fn commands() -> Vec<&'static str> {
    let lines = blocks("console").into_iter().flat_map(str::lines);
    lines.filter_map(|line| line.strip_prefix("$ ")).collect()
}

#[tokio::test]
async fn every_command_of_the_readme_succeeds() {
    let cluster = Cluster::start().await;
    cluster.create_database("cadastre").await;
    cluster.create_database("shop").await;
    let shop_url = cluster.url("shop");
    let env = [("SHOP_DATABASE_URL", shop_url.as_str())];
    let server = Server::start_with_env(&cluster.url("cadastre"), &[], &env).await;
    let directory = tempfile::tempdir().unwrap();
    let manifest = blocks("yaml").into_iter().next().expect("the README shows a manifest");
    std::fs::write(directory.path().join("cadastre.yaml"), manifest).unwrap();
    let programs = Path::new(cadastre_bin()).parent().expect("the binary lies in a directory");
    let path = format!(
        "{}:{}:{}",
        programs.display(),
        cluster.bin_dir().display(),
        std::env::var("PATH").unwrap()
    );

    let mut ran = 0;
    for command in commands() {
        // The two commands of the first page need the project, not a server. This test is itself
        // part of what the second of them runs.
        if command.starts_with("make ") {
            continue;
        }
        let mut shell = Command::new("bash");
        shell
            .args(["-o", "pipefail", "-c", command])
            .current_dir(directory.path())
            .env("PATH", &path)
            .env("CADASTRE_URL", server.url())
            .env("CADASTRE_TOKEN", ADMIN_TOKEN)
            .env("SHOP_DATABASE_URL", &shop_url)
            .kill_on_drop(true);
        let outcome = run(&mut shell).await;
        assert_eq!(
            outcome.code,
            Some(0),
            "{command}\n{}{}\n{}",
            outcome.stdout,
            outcome.stderr,
            server.log()
        );
        ran += 1;
    }
    assert!(ran > 15, "the README's commands must be found: {ran}");
}

#[tokio::test]
async fn the_first_command_of_the_readme_tells_the_whole_story() {
    let command = commands().into_iter().next().expect("the README begins with a command");
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    // What cargo tells a test of its package would make build scripts run again: a newcomer's shell
    // has none of it.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            shell.env_remove(name);
        }
    }
    let outcome = run(&mut shell).await.exited(0);
    assert!(outcome.stdout.contains("Every step did what it says."), "{}", outcome.stdout);
}
