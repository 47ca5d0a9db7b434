//! Finding the PostgreSQL server programs of this machine.
//!
//! Distributions keep them off `PATH`, one directory for each major version, so the usual places
//! are searched after `PATH`. The newest supported version wins; an existing cluster decides for
//! its own.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;

/// Major versions that Cadastre works with.
const SUPPORTED: RangeInclusive<u32> = 14..=18;
/// The programs needed; they must lie in one directory.
const PROGRAMS: [&str; 2] = ["postgres", "initdb"];
/// Longest that `postgres --version` may take: a slow disk's cold start is well below.
const VERSION_WAIT: Duration = Duration::from_secs(20);

/// Directories of server programs by packager: parent, start of the version's directory, rest.
const PLACES: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// How to get a server.
const INSTALL: &str = "\
to install one:
  Debian, Ubuntu   apt-get install postgresql
  Fedora, RHEL     dnf install postgresql-server
  macOS            brew install postgresql@17";

/// The server programs of one PostgreSQL version.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
    version: String,
}

impl Binaries {
    /// The newest supported programs, or those of `major`; only from `bin_dir` when it is given.
    pub async fn find(bin_dir: Option<&Path>, major: Option<u32>) -> Result<Self, Error> {
        match bin_dir {
            Some(dir) => {
                let looked = dir.display().to_string();
                Self::pick(vec![dir.to_owned()], &looked, major).await
            }
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let looked = std::iter::once("the directories of PATH".to_owned())
                    .chain(PLACES.iter().map(|(dir, start, rest)| format!("{dir}/{start}*/{rest}")))
                    .collect::<Vec<_>>()
                    .join("\n  ");
                Self::pick(candidates(&path, Path::new("/")), &looked, major).await
            }
        }
    }

    /// Directory of the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Version as the server says it, such as `15.14`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Path of one program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The best of `dirs`; the first of equals.
    async fn pick(dirs: Vec<PathBuf>, looked: &str, major: Option<u32>) -> Result<Self, Error> {
        let mut best: Option<Self> = None;
        let mut unsuitable = Vec::new();
        for dir in dirs {
            match Self::inspect(&dir).await {
                Ok(found) => {
                    let suitable = SUPPORTED.contains(&found.major)
                        && major.is_none_or(|major| major == found.major);
                    if !suitable {
                        let version = &found.version;
                        unsuitable.push(format!("{} (version {version})", dir.display()));
                    } else if best.as_ref().is_none_or(|best| best.major < found.major) {
                        best = Some(found);
                    }
                }
                Err(reason) => unsuitable.push(format!("{} ({reason})", dir.display())),
            }
        }
        best.ok_or_else(|| {
            let wanted = match major {
                Some(major) => format!("version {major}, which made the cluster"),
                None => format!("version {} to {}", SUPPORTED.start(), SUPPORTED.end()),
            };
            let mut report = format!("looked in:\n  {looked}\n");
            if !unsuitable.is_empty() {
                report.push_str(&format!("not suitable:\n  {}\n", unsuitable.join("\n  ")));
            }
            report.push_str(INSTALL);
            Error::NoBinaries { wanted, report }
        })
    }

    /// What lies in `dir`, or why it is no use.
    async fn inspect(dir: &Path) -> Result<Self, String> {
        for program in PROGRAMS {
            if !is_executable(&dir.join(program)) {
                return Err(format!("no {program} there"));
            }
        }
        let asked = tokio::process::Command::new(dir.join("postgres"))
            .arg("--version")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(VERSION_WAIT, asked)
            .await
            .map_err(|_| "postgres --version does not answer".to_owned())?
            .map_err(|error| format!("postgres --version: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (major, version) = parse_version(&text)
            .ok_or_else(|| format!("postgres --version says `{}`", text.trim()))?;
        Ok(Self { dir: dir.to_owned(), major, version })
    }
}

/// Directories worth inspecting: those of `path` that have a server, links resolved, then the
/// usual places below `root`.
fn candidates(path: &OsStr, root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::env::split_paths(path) {
        // The neighbours of a linked program lie where the link points.
        if let Ok(program) = entry.join("postgres").canonicalize()
            && let Some(dir) = program.parent()
        {
            found.push(dir.to_owned());
        }
    }
    for (parent, start, rest) in PLACES {
        let Ok(entries) = root.join(parent.trim_start_matches('/')).read_dir() else { continue };
        for entry in entries.flatten() {
            let dir = entry.path().join(rest);
            if entry.file_name().to_string_lossy().starts_with(start)
                && dir.join("postgres").exists()
            {
                found.push(dir);
            }
        }
    }
    let mut distinct: Vec<PathBuf> = Vec::new();
    for dir in found {
        if !distinct.contains(&dir) {
            distinct.push(dir);
        }
    }
    distinct
}

/// Major and full version from `postgres (PostgreSQL) 15.14 (Debian 15.14-0)`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let rest = text.strip_prefix("postgres (PostgreSQL) ")?;
    let version = rest.split_whitespace().next()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((digits.parse().ok()?, version.to_owned()))
}

/// Whether `path` is a file that somebody may execute.
fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs in `dir` that claim to be `version`.
    fn install(dir: &Path, version: &str) {
        std::fs::create_dir_all(dir).unwrap();
        for program in PROGRAMS {
            let path = dir.join(program);
            let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn versions_of_releases_betas_and_packagers_are_read() {
        let parse = |text| parse_version(text).map(|(major, _)| major);
        assert_eq!(parse("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse("postgres (PostgreSQL) 9.6.24\n"), Some(9));
        assert_eq!(parse("postgres (EnterpriseDB) nonsense"), None);
        assert_eq!(parse(""), None);
    }

    #[tokio::test]
    async fn the_newest_supported_version_wins_wherever_it_lies() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr/lib/postgresql/13/bin"), "13.9");
        install(&root.path().join("usr/lib/postgresql/16/bin"), "16.4");
        install(&root.path().join("usr/pgsql-17/bin"), "17.1");
        install(&root.path().join("opt/homebrew/opt/postgresql@99/bin"), "99.0");
        let dirs = candidates(OsStr::new(""), root.path());
        let found = Binaries::pick(dirs.clone(), "", None).await.unwrap();
        assert_eq!((found.major(), found.version()), (17, "17.1"));
        assert_eq!(found.dir(), root.path().join("usr/pgsql-17/bin"));
        let found = Binaries::pick(dirs, "", Some(16)).await.unwrap();
        assert_eq!(found.major(), 16);
    }

    #[tokio::test]
    async fn a_link_on_the_path_leads_to_the_programs_beside_its_target() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap().join("pg/15/bin");
        install(&real, "15.2");
        let path = root.path().join("bin");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), path.join("postgres")).unwrap();
        let dirs = candidates(path.as_os_str(), &root.path().join("nowhere"));
        assert_eq!(dirs, std::slice::from_ref(&real));
        assert_eq!(Binaries::pick(dirs, "", None).await.unwrap().dir(), real);
    }

    #[tokio::test]
    async fn without_a_suitable_server_the_error_says_where_it_looked_and_how_to_install() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("13"), "13.9");
        let dirs = vec![root.path().join("13"), root.path().join("empty")];
        let message = Binaries::pick(dirs, "PLACES", None).await.unwrap_err().to_string();
        for part in [
            "version 14 to 18",
            "PLACES",
            "13 (version 13.9)",
            "empty (no postgres there)",
            "apt-get install postgresql",
            "dnf install postgresql-server",
            "brew install postgresql@",
        ] {
            assert!(message.contains(part), "{part:?} is missing in:\n{message}");
        }
    }

    #[tokio::test]
    async fn a_cluster_of_a_version_that_is_gone_is_named() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("16"), "16.4");
        let error = Binaries::find(Some(&root.path().join("16")), Some(15)).await.unwrap_err();
        assert!(error.to_string().contains("version 15, which made the cluster"), "{error}");
    }
}
