//! The server's process: start, wait until it answers, stop; and stop one left behind.
//!
//! Readiness is what the server writes into `postmaster.pid`, the way `pg_ctl -w` looks at it
//! (<https://www.postgresql.org/docs/current/storage-file-layout.html>): no connection is needed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::Error;
use super::account::Account;
use super::binaries::Binaries;
use super::cluster::{Layout, command};

/// Longest wait for the server to accept connections; recovery after a crash happens in here.
const START_WAIT: Duration = Duration::from_secs(120);
/// Longest wait for a fast shutdown, which ends with a checkpoint.
const FAST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for an immediate shutdown; the server kills its children after 5 s.
const IMMEDIATE_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks at the process.
const POLL: Duration = Duration::from_millis(10);
/// How much of the end of the log an error carries.
const LOG_TAIL_BYTES: u64 = 2048;
/// The server finds processes of its predecessor that have yet to notice its death.
const PREDECESSOR_LINGERS: &str = "pre-existing shared memory block";

/// The running server. Dropping it stops it at once, as `pg_ctl stop -m immediate` does.
#[derive(Debug)]
pub(super) struct Postmaster {
    child: Child,
}

impl Postmaster {
    /// Starts the server and waits until it accepts connections.
    pub(super) async fn start(
        layout: &Layout,
        binaries: &Binaries,
        account: Option<&Account>,
        settings: &[(String, String)],
    ) -> Result<Self, Error> {
        let deadline = Instant::now() + START_WAIT;
        loop {
            let mut postmaster = Self::spawn(layout, binaries, account, settings)?;
            match postmaster.ready(layout, deadline).await {
                Ok(()) => return Ok(postmaster),
                Err(Error::Exited { log, .. })
                    if log.contains(PREDECESSOR_LINGERS) && Instant::now() < deadline =>
                {
                    sleep(POLL * 10).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Process id of the server.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fast shutdown, then immediate, then the hard way.
    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        for (signal, wait) in [(Signal::SIGINT, FAST_WAIT), (Signal::SIGQUIT, IMMEDIATE_WAIT)] {
            self.signal(signal);
            let deadline = Instant::now() + wait;
            while Instant::now() < deadline {
                if self.exited()?.is_some() {
                    return Ok(());
                }
                sleep(POLL).await;
            }
            tracing::warn!(%signal, "private PostgreSQL does not stop in time");
        }
        self.child.kill().and_then(|()| self.child.wait()).map_err(run_failed)?;
        Ok(())
    }

    /// Starts the process, in a process group of its own: an interrupt typed at the terminal is
    /// for Cadastre, which then stops the server in order.
    fn spawn(
        layout: &Layout,
        binaries: &Binaries,
        account: Option<&Account>,
        settings: &[(String, String)],
    ) -> Result<Self, Error> {
        let path = layout.log();
        // Fails when there is no log yet.
        let _ = std::fs::rename(&path, path.with_extension("log.old"));
        let log = File::create(&path).map_err(Error::file("make", &path))?;
        let errors = log.try_clone().map_err(Error::file("open", &path))?;
        let program = binaries.program("postgres");
        let mut command = command(&program, account);
        command.arg("-D").arg(layout.cluster());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(Stdio::from(log)).stderr(Stdio::from(errors)).process_group(0);
        let child = command.spawn().map_err(|source| Error::Run { program, source })?;
        Ok(Self { child })
    }

    /// Waits until the server accepts connections.
    async fn ready(&mut self, layout: &Layout, deadline: Instant) -> Result<(), Error> {
        loop {
            if let Some(status) = self.exited()? {
                return Err(Error::Exited { status, log: log_tail(&layout.log()) });
            }
            let recorded = Recorded::read(layout);
            if recorded.is_some_and(|it| it.ready && it.pid.as_raw().cast_unsigned() == self.pid())
            {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = log_tail(&layout.log());
                return Err(Error::NotReady { seconds: START_WAIT.as_secs(), log });
            }
            sleep(POLL).await;
        }
    }

    /// How the process ended, if it did.
    fn exited(&mut self) -> Result<Option<String>, Error> {
        let status = self.child.try_wait().map_err(run_failed)?;
        Ok(status.map(|status| status.to_string()))
    }

    /// Sends a signal, unless the process has been reaped already.
    fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            // It can only fail when the process is gone, which the caller sees next.
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        }
    }
}

impl Drop for Postmaster {
    /// Blocks until the process is gone: some milliseconds, as an immediate shutdown writes
    /// nothing.
    fn drop(&mut self) {
        self.signal(Signal::SIGQUIT);
        let deadline = Instant::now() + IMMEDIATE_WAIT;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Stops a server that still runs on this cluster after the process that started it was killed.
/// The caller holds the lock of the data directory, so nobody else wants that server.
pub(super) async fn stop_orphan(layout: &Layout) -> Result<(), Error> {
    let Some(Recorded { pid, .. }) = Recorded::read(layout) else { return Ok(()) };
    if !runs_on(pid, layout) {
        // The system has given the process id to another program since. The server would take
        // that for a running server and refuse to start.
        if kill(pid, None).is_ok() {
            let path = layout.pid_file();
            std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
        return Ok(());
    }
    tracing::warn!(pid = pid.as_raw(), "stopping a PostgreSQL server that was left behind");
    for (signal, wait) in [(Signal::SIGINT, FAST_WAIT), (Signal::SIGQUIT, IMMEDIATE_WAIT)] {
        // It can only fail when the process is gone, which is looked at next.
        let _ = kill(pid, signal);
        let deadline = Instant::now() + wait;
        while Instant::now() < deadline {
            if !runs_on(pid, layout) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }
    Err(Error::OrphanStays { pid: pid.as_raw() })
}

/// What `postmaster.pid` says.
struct Recorded {
    pid: Pid,
    ready: bool,
}

impl Recorded {
    /// `None` when there is no such file, or one that is still being written.
    fn read(layout: &Layout) -> Option<Self> {
        let text = std::fs::read_to_string(layout.pid_file()).ok()?;
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
        let ready = lines.nth(6).is_some_and(|status| status.trim() == "ready");
        Some(Self { pid: Pid::from_raw(pid), ready })
    }
}

/// Whether `pid` is a server on this cluster: its command line names the directory.
fn runs_on(pid: Pid, layout: &Layout) -> bool {
    let command_line = match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => line,
        Err(_) if Path::new("/proc/self").exists() => return false,
        Err(_) => {
            let ps = command(Path::new("/bin/ps"), None)
                .args(["-o", "command=", "-p", &pid.to_string()])
                .output();
            ps.map(|output| output.stdout).unwrap_or_default()
        }
    };
    let cluster = layout.cluster();
    memchr::memmem::find(&command_line, cluster.as_os_str().as_encoded_bytes()).is_some()
}

/// The last lines of the server's log.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    match read() {
        Ok(tail) => String::from_utf8_lossy(&tail).trim_end().to_owned(),
        Err(error) => format!("(the log cannot be read: {error})"),
    }
}

/// Waiting for a child of our own can only fail by a bug; it is still no reason to panic.
fn run_failed(source: std::io::Error) -> Error {
    Error::Run { program: "postgres".into(), source }
}
