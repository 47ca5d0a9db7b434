//! The data directory: its files, its lock, and the cluster made in it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::Uid;
use rand::RngExt;
use secrecy::SecretString;

use super::account::Account;
use super::binaries::Binaries;
use super::{Error, SUPERUSER};

/// Longest that `initdb` may take; it writes and syncs some 40 MB.
const INITDB_WAIT: Duration = Duration::from_secs(180);
/// Variables that children inherit. Everything else stays here, secrets above all.
const INHERITED: [&str; 3] = ["PATH", "TZ", "LD_LIBRARY_PATH"];
/// Locales for a new cluster: sorting by code point everywhere; the first also knows letters
/// beyond ASCII but is not on every system.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// Where everything lies in the data directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    data_dir: PathBuf,
}

impl Layout {
    /// Makes the data directory unless it is there.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, Error> {
        if !data_dir.exists() {
            // The server's account must pass through a directory that root makes, not list it.
            let mode = if Uid::effective().is_root() { 0o711 } else { 0o700 };
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(data_dir)
                .map_err(Error::file("make", data_dir))?;
            std::fs::set_permissions(data_dir, PermissionsExt::from_mode(mode))
                .map_err(Error::file("set the mode of", data_dir))?;
        }
        let data_dir = data_dir.canonicalize().map_err(Error::file("find", data_dir))?;
        Ok(Self { data_dir })
    }

    /// The data directory, absolute and without links.
    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The cluster's directory; complete when it exists.
    pub(super) fn cluster(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    /// The file that the running server writes about itself.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.cluster().join("postmaster.pid")
    }

    /// The server's log.
    pub(super) fn log(&self) -> PathBuf {
        self.data_dir.join("postgres.log")
    }

    /// Takes the lock of the data directory, which lasts until the file is closed. The system
    /// closes it even when this process is killed, and no child inherits it.
    pub(super) fn lock(&self) -> Result<File, Error> {
        let path = self.data_dir.join("cadastre.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let holder = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
                    _ => "another process".to_owned(),
                };
                return Err(Error::InUse { dir: self.data_dir.clone(), holder });
            }
            Err(TryLockError::Error(source)) => {
                return Err(Error::File { action: "lock", path, source });
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(Error::file("write", &path))?;
        Ok(file)
    }

    /// Major version of the cluster, `None` when there is none yet. A cluster that root brought
    /// along (a copy, say) is handed to `account`.
    pub(super) fn major(&self, account: Option<&Account>) -> Result<Option<u32>, Error> {
        let cluster = self.cluster();
        let Ok(meta) = cluster.metadata() else { return Ok(None) };
        match account {
            Some(account) if meta.uid() != account.uid => account.own(&cluster)?,
            None if meta.uid() != Uid::effective().as_raw() => {
                return Err(Error::Foreign { path: cluster, owner: meta.uid() });
            }
            _ => {}
        }
        let path = cluster.join("PG_VERSION");
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(Error::BadVersionFile { path, text: text.trim().to_owned() }),
        }
    }

    /// The superuser's password, made when there is none yet.
    pub(super) fn password(&self, account: Option<&Account>) -> Result<SecretString, Error> {
        let path = self.password_file();
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(SecretString::from(text.trim())),
            Ok(_) => self.make_password(account),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.make_password(account)
            }
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// Makes the cluster. It is made beside its place and moved there when it is complete, so an
    /// interrupted attempt is started over.
    pub(super) async fn initdb(
        &self,
        binaries: &Binaries,
        account: Option<&Account>,
    ) -> Result<(), Error> {
        let unfinished = self.data_dir.join("postgres.new");
        let mut outcome = Ok(());
        for locale in LOCALES {
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished).map_err(Error::file("remove", &unfinished))?;
            }
            private_dir(&unfinished, account)?;
            outcome = self.run_initdb(binaries, account, locale, &unfinished).await;
            match &outcome {
                Err(Error::InitDb { output, .. }) if output.contains("locale") => {}
                _ => break,
            }
        }
        outcome?;
        std::fs::rename(&unfinished, self.cluster()).map_err(Error::file("rename", unfinished))
    }

    /// One run of `initdb` with one locale.
    async fn run_initdb(
        &self,
        binaries: &Binaries,
        account: Option<&Account>,
        locale: &str,
        dir: &Path,
    ) -> Result<(), Error> {
        let program = binaries.program("initdb");
        let mut command = tokio::process::Command::from(command(&program, account));
        command
            .arg(format!("--pgdata={}", dir.display()))
            .arg(format!("--pwfile={}", self.password_file().display()))
            .arg(format!("--username={SUPERUSER}"))
            .arg(format!("--locale={locale}"))
            .args(["--encoding=UTF8", "--auth-local=trust", "--auth-host=scram-sha-256"])
            .kill_on_drop(true);
        let output = tokio::time::timeout(INITDB_WAIT, command.output())
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| Error::Run { program, source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::InitDb { dir: self.cluster(), output: said })
    }

    /// Writes a new password, readable by the account that runs `initdb`.
    fn make_password(&self, account: Option<&Account>) -> Result<SecretString, Error> {
        let path = self.password_file();
        let bytes: [u8; 24] = rand::rng().random();
        let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(password.as_bytes()))
            .map_err(Error::file("write", &path))?;
        if let Some(account) = account {
            account.own(&path)?;
        }
        Ok(SecretString::from(password))
    }

    /// Where the superuser's password is kept.
    fn password_file(&self) -> PathBuf {
        self.data_dir.join("postgres.password")
    }
}

/// A child process that runs `program` as `account`, with hardly any environment and no input.
pub(super) fn command(program: &Path, account: Option<&Account>) -> Command {
    use std::os::unix::process::CommandExt;

    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    // The server's account may not be able to enter the directory this process is in.
    command.current_dir("/");
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Makes `path` a directory that only the server's account can enter. One that is there already
/// must not belong to anybody else: others may write to the directory above it.
pub(super) fn private_dir(path: &Path, account: Option<&Account>) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::file("make", path)(error));
        }
        _ => {}
    }
    let meta = path.symlink_metadata().map_err(Error::file("inspect", path))?;
    let ours = [Some(Uid::effective().as_raw()), account.map(|account| account.uid)];
    if !meta.is_dir() || !ours.contains(&Some(meta.uid())) {
        return Err(Error::Foreign { path: path.to_owned(), owner: meta.uid() });
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))
        .map_err(Error::file("set the mode of", path))?;
    match account {
        Some(account) => account.own(path),
        None => Ok(()),
    }
}
