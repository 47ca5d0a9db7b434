//! The account that PostgreSQL runs as when Cadastre runs as root.
//!
//! PostgreSQL refuses to run as root. An existing cluster decides by its owner; a new one goes to
//! `postgres`, which the server packages make, or to `nobody`.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use nix::unistd::{Uid, User};

use super::Error;
use super::cluster::Layout;

/// An account other than the one this process runs as.
#[derive(Debug, Clone)]
pub(super) struct Account {
    /// Name for messages.
    pub(super) name: String,
    /// User id.
    pub(super) uid: u32,
    /// Primary group. Children have no other: dropping root drops its groups.
    pub(super) gid: u32,
}

impl Account {
    /// The account to change to; `None` when this process is not root and stays who it is.
    pub(super) fn choose(layout: &Layout) -> Result<Option<Self>, Error> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let account = match layout.cluster().metadata() {
            Ok(cluster) if cluster.uid() != 0 => {
                let user = User::from_uid(cluster.uid().into()).ok().flatten();
                let name = user.map_or_else(|| cluster.uid().to_string(), |user| user.name);
                Self { name, uid: cluster.uid(), gid: cluster.gid() }
            }
            _ => Self::spare()?,
        };
        account.must_reach(layout.data_dir())?;
        Ok(Some(account))
    }

    /// The account for a new cluster.
    fn spare() -> Result<Self, Error> {
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
            .ok_or(Error::NoAccount)
    }

    /// Checks that the account may enter `dir` and every directory above it.
    pub(super) fn must_reach(&self, dir: &Path) -> Result<(), Error> {
        let mut way: Vec<&Path> = dir.ancestors().collect();
        way.reverse();
        for step in way {
            let meta = step.metadata().map_err(Error::file("inspect", step))?;
            let execute = if meta.uid() == self.uid {
                0o100
            } else if meta.gid() == self.gid {
                0o010
            } else {
                0o001
            };
            if meta.mode() & execute == 0 {
                return Err(Error::Unreachable {
                    account: self.name.clone(),
                    dir: step.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Makes the account the owner of `path` and of everything in it; links are not followed.
    pub(super) fn own(&self, path: &Path) -> Result<(), Error> {
        lchown(path, Some(self.uid), Some(self.gid))
            .map_err(Error::file("change owner of", path))?;
        let meta = path.symlink_metadata().map_err(Error::file("inspect", path))?;
        if meta.is_dir() {
            for entry in path.read_dir().map_err(Error::file("read", path))? {
                self.own(&entry.map_err(Error::file("read", path))?.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_closed_to_the_account_is_named_with_its_remedy() {
        let outer = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(outer.path(), 0o755);
        let closed = outer.path().join("closed");
        let inner = closed.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        mode(&closed, 0o700);
        let stranger = Account { name: "stranger".to_owned(), uid: 54321, gid: 54321 };
        let message = stranger.must_reach(&inner).unwrap_err().to_string();
        assert!(message.contains("`stranger`"), "{message}");
        assert!(message.contains(&format!("chmod o+x {}", closed.display())), "{message}");
        mode(&closed, 0o711);
        stranger.must_reach(&inner).unwrap();
    }
}
