//! `up`: the server's beginning and end.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

use super::{Ran, bare, run};
use crate::support::{Cluster, Server, WAIT, cadastre_bin, data_dir};

/// A server with a private PostgreSQL, its base URL, and the rest of its output.
async fn private(dir: &Path) -> (Child, String, BufReader<ChildStdout>) {
    let mut command = bare();
    command.args(["up", "--listen", "127.0.0.1:0"]).current_dir(dir);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start the server");
    let mut stdout = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut url = String::new();
    let read = tokio::time::timeout(WAIT, stdout.read_line(&mut url)).await;
    read.expect("the server starts in time").expect("read its URL");
    (child, url.trim_end().to_owned(), stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_needs_neither_database_nor_token() {
    let dir = data_dir();
    let (mut child, url, mut stdout) = private(dir.path()).await;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");

    let mut export = bare();
    export.args(["export", "--url", &url]).current_dir(dir.path());
    let exported = run(&mut export).await.exited(0).stdout;
    assert!(exported.contains("cadastre/v1"), "{exported}");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut export = bare();
    export.args(["export", "--url", &url]).current_dir(elsewhere.path());
    run(&mut export).await.exited(2);

    let pid = Pid::from_raw(child.id().expect("it runs").cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(WAIT, child.wait()).await.expect("it ends in time").unwrap();
    assert_eq!(status.code(), Some(0));
    let mut more = String::new();
    stdout.read_to_string(&mut more).await.unwrap();
    assert_eq!(more, "", "the URL is all it prints");
    let pid_file = dir.path().join(".cadastre/postgres/postmaster.pid");
    assert!(!pid_file.exists(), "the private PostgreSQL has ended, too");
}

#[tokio::test]
async fn it_opens_as_many_files_as_the_system_allows_whatever_the_shell_does() {
    let cluster = Cluster::start().await;
    cluster.create_database("registry").await;
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("bash");
    shell
        .args(["-c", "ulimit -Sn 256 && exec \"$0\" up --listen 127.0.0.1:0"])
        .arg(cadastre_bin())
        .env("CADASTRE_DATABASE_URL", cluster.url("registry"))
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = shell.spawn().expect("start the server");
    let mut stdout = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut url = String::new();
    let read = tokio::time::timeout(WAIT, stdout.read_line(&mut url)).await;
    read.expect("the server starts in time").expect("read its URL");
    let limits = format!("/proc/{}/limits", child.id().expect("it runs"));
    let limits = std::fs::read_to_string(limits).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = [0, 1].map(|nth| files.split_whitespace().nth(nth).unwrap());
    assert_eq!(soft, hard, "{files}");
    assert_ne!(soft, "256", "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_feed_does_not_hold_up_the_end() {
    let (cluster, mut server) = super::governed_shop().await;
    let feed = server.at("/v1/feed?datasets=shop.public.orders");
    let mut feed = server.client().get(feed).send().await.unwrap();
    assert_eq!(feed.status(), 200);
    let status = server.terminate().await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    while let Ok(Some(_)) = feed.chunk().await {}
    drop(cluster);
}

#[tokio::test]
async fn a_database_out_of_reach_is_said_without_its_password() {
    let url = "postgresql://cadastre:hunter2@127.0.0.1:1/cadastre";
    let args = ["up", "--database-url", url, "--database-wait", "1s"];
    let dir = tempfile::tempdir().unwrap();
    let Ran { stderr, .. } = run(bare().args(args).current_dir(dir.path())).await.exited(3);
    assert!(stderr.contains("127.0.0.1:1"), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
    let args = ["up", "--database-url", "mysql://cadastre:hunter2@127.0.0.1/cadastre"];
    let Ran { stderr, .. } = run(bare().args(args).current_dir(dir.path())).await.exited(2);
    assert!(stderr.contains("postgresql://") && !stderr.contains("hunter2"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_said() {
    let cluster = Cluster::start().await;
    cluster.create_database("cadastre").await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut command = bare();
    command.args(["up", "--listen", &address, "--database-url", &cluster.url("cadastre")]);
    let Ran { stderr, stdout, .. } = run(command.current_dir(dir.path())).await.exited(3);
    assert!(stderr.contains(&address), "{stderr}");
    assert_eq!(stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_start_together_on_one_database() {
    let cluster = Cluster::start().await;
    cluster.create_database("cadastre").await;
    let url = cluster.url("cadastre");
    let (one, two) = tokio::join!(Server::start(&url), Server::start(&url));
    assert_ne!(one.url(), two.url());
}
