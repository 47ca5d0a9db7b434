//! The directory of the server's Unix socket.
//!
//! It lies in the data directory, unless that makes the socket's path longer than the system
//! allows; then in the system's directory for temporary files, under a name derived from the data
//! directory so that it is the same at every start.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::account::Account;
use super::cluster::{Layout, private_dir};
use super::{Error, SOCKET_PORT};

/// Longest path of a socket in bytes that every system takes: macOS allows 103, Linux 107.
const PATH_BYTES_MAX: usize = 103;

/// A private directory for the socket.
#[derive(Debug)]
pub(super) struct Socket {
    dir: PathBuf,
    port: u16,
    /// Whether the directory lies outside the data directory and is removed at the end.
    away: bool,
}

impl Socket {
    /// Makes the directory. `port` is the server's loopback port, if it has one.
    pub(super) fn prepare(
        layout: &Layout,
        account: Option<&Account>,
        port: Option<u16>,
    ) -> Result<Self, Error> {
        let port = port.unwrap_or(SOCKET_PORT);
        let (dir, away) = place(layout.data_dir(), &std::env::temp_dir(), port);
        if let (Some(account), Some(parent)) = (account, dir.parent()) {
            account.must_reach(parent)?;
        }
        private_dir(&dir, account)?;
        Ok(Self { dir, port, away })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The port that is part of the socket's name.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The directory as an element of a list in a server setting.
    pub(super) fn setting(&self) -> String {
        format!("\"{}\"", self.dir.to_string_lossy().replace('"', "\"\""))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.away {
            // Whatever stays is found and used again by the next start.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Where the socket goes, and whether that is away from the data directory.
fn place(data_dir: &Path, temp_dir: &Path, port: u16) -> (PathBuf, bool) {
    let near = data_dir.join("socket");
    if near.join(format!(".s.PGSQL.{port}.lock")).as_os_str().len() <= PATH_BYTES_MAX {
        return (near, false);
    }
    let digest = Sha256::digest(data_dir.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    (temp_dir.join(format!("cadastre-{name}")), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_data_directory_moves_the_socket_to_a_short_and_stable_place() {
        let temp = Path::new("/tmp");
        assert_eq!(
            place(Path::new("/var/lib/cadastre"), temp, 5432),
            (PathBuf::from("/var/lib/cadastre/socket"), false)
        );
        let long = PathBuf::from(format!("/{}", "long/".repeat(20)));
        let (dir, away) = place(&long, temp, 5432);
        assert!(away && dir.starts_with(temp) && dir.as_os_str().len() < 40, "{dir:?}");
        assert_eq!(place(&long, temp, 5432).0, dir);
        assert_ne!(place(&long.join("other"), temp, 5432).0, dir);
    }
}
