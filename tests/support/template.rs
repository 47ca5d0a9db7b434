//! The cluster that tests start from: made once by `initdb`, then copied.

use std::fs::File;
use std::path::{Path, PathBuf};

use cadastre::embedded::{Binaries, Options, PrivatePostgres};

/// The template's directory for the server programs in use; made by the first test that asks,
/// while the others wait.
pub(super) async fn cluster(binaries: &Binaries) -> PathBuf {
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let template = shared.join(format!("cluster-{}", binaries.version()));
    if !template.exists() {
        std::fs::create_dir_all(shared).expect("make the shared directory");
        let lock = File::create(shared.join("cluster.lock")).expect("open the lock");
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        let _lock = lock.expect("wait for the lock").expect("lock");
        make(binaries, &template).await;
    }
    template
}

/// Makes the template. PostgreSQL may run under an account that cannot enter the build directory,
/// so the cluster is made among the temporary files and copied from there.
async fn make(binaries: &Binaries, template: &Path) {
    if template.exists() {
        return;
    }
    let scratch = super::cluster::data_dir();
    let options = Options {
        data_dir: scratch.path().to_owned(),
        bin_dir: Some(binaries.dir().to_owned()),
        port: None,
        settings: vec![("fsync".to_owned(), "off".to_owned())],
    };
    let postgres = PrivatePostgres::start(options).await.expect("make a cluster");
    postgres.stop().await.expect("stop the new cluster");
    let unfinished = template.with_extension("new");
    let _ = std::fs::remove_dir_all(&unfinished);
    copy(&scratch.path().join("postgres"), &unfinished);
    std::fs::rename(&unfinished, template).expect("put the template in place");
}

/// Copies a directory with its permissions; a cluster holds no links.
pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("make a directory");
    let mode = from.metadata().expect("inspect").permissions();
    std::fs::set_permissions(to, mode).expect("set the mode");
    for entry in from.read_dir().expect("list") {
        let entry = entry.expect("list");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("inspect").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}
