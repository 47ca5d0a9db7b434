//! `cadastre up` as a child process, the way it runs in the field: it can be killed.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cadastre::task::Failpoint;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{WAIT, cadastre_bin};

/// The admin token of every server under test.
pub(crate) const ADMIN_TOKEN: &str = "cad_for_the_tests_only";
/// Longest that a request of [`Server::client`] waits for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// A running `cadastre up`. Killed on drop; its log is printed when the test fails.
pub(crate) struct Server {
    child: Child,
    url: String,
    database_url: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    dir: TempDir,
}

impl Server {
    /// Starts a server on a free port with its registry in `database_url`, ready to serve.
    pub(crate) async fn start(database_url: &str) -> Self {
        Self::start_with(database_url, &[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(database_url: &str, args: &[&str]) -> Self {
        Self::start_with_env(database_url, args, &[]).await
    }

    /// The same with environment variables, which a manifest may refer to.
    pub(crate) async fn start_with_env(
        database_url: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let log = dir.path().join("log");
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env: Vec<_> = env.iter().map(own).collect();
        let (child, url) = spawn(database_url, "127.0.0.1:0", &args, &env, &log, dir.path()).await;
        Self { child, url, database_url: database_url.to_owned(), args, env, log, dir }
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Address of `path`, which begins with a slash.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// An HTTP client that carries the admin token.
    pub(crate) fn client(&self) -> reqwest::Client {
        let mut headers = HeaderMap::new();
        let bearer = HeaderValue::try_from(format!("Bearer {ADMIN_TOKEN}")).expect("a token");
        headers.insert(AUTHORIZATION, bearer);
        client_with(headers)
    }

    /// An HTTP client without a token.
    pub(crate) fn anonymous(&self) -> reqwest::Client {
        client_with(HeaderMap::new())
    }

    /// A `cadastre` command that talks to this server with the admin token.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(cadastre_bin());
        command
            .env("CADASTRE_URL", &self.url)
            .env("CADASTRE_TOKEN", ADMIN_TOKEN)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the server runs")
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("read the log")
    }

    /// Ends it without warning, as `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("kill the server");
    }

    /// Has it stand still until the guard is dropped.
    pub(crate) fn pause(&self) -> Paused {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, Signal::SIGSTOP).expect("pause the server");
        Paused(pid)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = self.child.id().expect("the server runs");
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("signal the server");
        let ended = tokio::time::timeout(WAIT, self.child.wait()).await;
        ended.expect("the server ends in time after SIGTERM").expect("wait for the server")
    }

    /// Starts it again to die the `count`-th time it comes to `point`, and waits until it has. It
    /// must be idle or ended before, and whatever it captures has to make it pass that often.
    pub(crate) async fn restart_to_die_at(&mut self, point: Failpoint, count: u32) {
        let listen = self.url.trim_start_matches("http://").to_owned();
        let mut env = self.env.clone();
        env.push(("CADASTRE_FAILPOINTS".to_owned(), format!("{}={count}", point.name())));
        let (args, dir) = (&self.args, self.dir.path());
        let mut command = command(&self.database_url, &listen, args, &env, &self.log, dir);
        self.child = command.spawn().expect("start the server");
        let ended = tokio::time::timeout(WAIT, self.child.wait()).await;
        let status = ended
            .unwrap_or_else(|_| panic!("the server did not come to {} in time", point.name()))
            .expect("wait for the server");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "died at {}", point.name());
    }

    /// Starts it again, ready to serve and to die the `count`-th time it comes to `point`.
    pub(crate) async fn restart_armed(&mut self, point: Failpoint, count: u32) {
        let armed = ("CADASTRE_FAILPOINTS".to_owned(), format!("{}={count}", point.name()));
        self.env.push(armed);
        self.restart().await;
        self.env.pop();
    }

    /// Waits until it has died at a failpoint.
    pub(crate) async fn died(&mut self) {
        let ended = tokio::time::timeout(WAIT, self.child.wait()).await;
        let status = ended.expect("the server dies in time").expect("wait for the server");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "died at the failpoint");
    }

    /// Starts it again, on the same port, after it has ended.
    pub(crate) async fn restart(&mut self) {
        let listen = self.url.trim_start_matches("http://").to_owned();
        let (child, url) =
            spawn(&self.database_url, &listen, &self.args, &self.env, &self.log, self.dir.path())
                .await;
        assert_eq!(url, self.url, "the server listens where it was told");
        self.child = child;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("the server's log:\n{}\n", self.log()).as_bytes(),
            )
            .unwrap_or_default();
        }
    }
}

/// A server that stands still.
pub(crate) struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A client whose requests may stay open, as feeds do, but not hang while connecting.
fn client_with(headers: HeaderMap) -> reqwest::Client {
    // One process has one provider of cryptography; a second attempt to set it changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(CONNECT_WAIT)
        .build()
        .expect("a client")
}

/// The program, about to be started.
fn command(
    database_url: &str,
    listen: &str,
    args: &[String],
    env: &[(String, String)],
    log: &Path,
    dir: &Path,
) -> Command {
    let stderr = File::options().create(true).append(true).open(log).expect("open the log");
    let mut command = Command::new(cadastre_bin());
    command
        .args(["up", "--database-url", database_url, "--listen", listen])
        .args(args)
        .current_dir(dir)
        .env("CADASTRE_ADMIN_TOKEN", ADMIN_TOKEN)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true);
    command
}

/// Starts the program and waits until it says where it listens, which it does when it is ready.
async fn spawn(
    database_url: &str,
    listen: &str,
    args: &[String],
    env: &[(String, String)],
    log: &Path,
    dir: &Path,
) -> (Child, String) {
    let mut command = command(database_url, listen, args, env, log, dir);
    let mut child = command.spawn().expect("start the server");
    let stdout = child.stdout.take().expect("its output is piped");
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(WAIT, lines.next_line()).await;
    let said = || std::fs::read_to_string(log).unwrap_or_default();
    match line {
        Ok(Ok(Some(url))) => (child, url.trim().to_owned()),
        Ok(_) => panic!("the server ended before it was ready; its log:\n{}", said()),
        Err(_) => panic!("the server was not ready within {WAIT:?}; its log:\n{}", said()),
    }
}
