//! The command line, run for real: arguments in, output and exit code out.

mod adopt;
mod answers;
mod break_glass;
mod demo;
mod history;
mod manifest;
mod readme;
mod schema;
mod tail;
mod token;
mod transfer;
mod up;

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{Cluster, Server, WAIT, cadastre_bin};

/// The manifest that the documentation shows.
const MANIFEST: &str = include_str!("cadastre.yaml");

/// What the tables must look like for it.
const TABLES: &str = "
    CREATE ROLE orders_app LOGIN;
    CREATE ROLE billing_app LOGIN;
    CREATE TABLE orders (id bigint PRIMARY KEY, status text, customer_email text);
    CREATE TABLE invoices (id bigint PRIMARY KEY, amount numeric);
    GRANT ALL ON orders, invoices TO orders_app, billing_app;
";

/// What a command came to.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Standard output of a command that must have exited with `code`.
    #[track_caller]
    fn exited(self, code: i32) -> Self {
        let Self { code: actual, stdout, stderr } = &self;
        assert_eq!(*actual, Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
        self
    }
}

/// Runs a command to its end.
async fn run(command: &mut Command) -> Ran {
    let output = tokio::time::timeout(WAIT, command.output()).await;
    let output = output.expect("the command ends in time").expect("run the command");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs `cadastre` against a server, with the admin token.
async fn cadastre(server: &Server, args: &[&str]) -> Ran {
    run(server.command().args(args)).await
}

/// A `cadastre` command that knows nothing but its arguments.
fn bare() -> Command {
    let mut command = Command::new(cadastre_bin());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CADASTRE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A shop whose tables are there and governed by nobody, and a server that can reach it.
async fn shop() -> (Cluster, Server) {
    let cluster = Cluster::start().await;
    cluster.create_database("cadastre").await;
    cluster.create_database("shop").await;
    cluster.connect("shop").await.batch_execute(TABLES).await.expect("make the tables");
    let shop_url = cluster.url("shop");
    let env = [("SHOP_DATABASE_URL", shop_url.as_str())];
    let server = Server::start_with_env(&cluster.url("cadastre"), &[], &env).await;
    (cluster, server)
}

/// The same with the manifest applied.
async fn governed_shop() -> (Cluster, Server) {
    let (cluster, server) = shop().await;
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("cadastre.yaml");
    std::fs::write(&file, MANIFEST).expect("write the manifest");
    let file = file.to_str().expect("a path of text");
    cadastre(&server, &["apply", "-f", file, "--yes"]).await.exited(0);
    (cluster, server)
}
