//! `plan`, `apply` and `export`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{MANIFEST, Ran, bare, cadastre, run, shop};
use crate::support::Server;

/// A directory with a manifest in it.
fn written(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("cadastre.yaml");
    std::fs::write(&path, text).expect("write the manifest");
    (dir, path)
}

/// Runs a command of this name on a file.
async fn on(server: &Server, name: &str, file: &Path, more: &[&str]) -> Ran {
    let file = file.to_str().expect("a path of text");
    cadastre(server, &[&[name, "-f", file], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_manifest_is_planned_applied_once_and_exported() {
    let (cluster, server) = shop().await;
    let (_dir, file) = written(MANIFEST);

    let planned = on(&server, "plan", &file, &[]).await.exited(0).stdout;
    assert!(planned.contains("+ create dataset shop.public.orders"), "{planned}");
    let again = on(&server, "plan", &file, &[]).await.exited(0).stdout;
    assert_eq!(planned, again, "planning changes nothing");

    let applied = on(&server, "apply", &file, &["--yes"]).await.exited(0).stdout;
    assert_eq!(applied, planned, "what was planned is done");
    let intruder = cluster.connect_as("shop", "billing_app").await;
    let error = intruder.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap_err();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("42501"), "{error:?}");

    let applied = on(&server, "apply", &file, &["--yes"]).await.exited(0).stdout;
    assert_eq!(applied, "nothing to change\n");

    let exported = cadastre(&server, &["export"]).await.exited(0).stdout;
    insta::assert_snapshot!(exported);
    let (_dir, file) = written(&exported);
    let planned = on(&server, "plan", &file, &[]).await.exited(0).stdout;
    assert_eq!(planned, "nothing to change\n", "the export is equivalent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_be_applied_is_refused_whole_with_every_line() {
    let (_cluster, server) = shop().await;
    for (broken, line, says) in [
        (MANIFEST.replace("    tags: [core]", "    labels: [core]"), 12, "labels"),
        (MANIFEST.replace("    owner: billing", "    owner: accounts"), 15, "accounts"),
        (MANIFEST.replace("  shop.public.invoices:", "  shop.public.refunds:"), 14, "refunds"),
        (MANIFEST.replace("[billing_app]", "[nobody_app]"), 6, "nobody_app"),
    ] {
        let (_dir, file) = written(&broken);
        let place = format!("{}:{line}:", file.display());
        for (command, more) in [("plan", &[][..]), ("apply", &["--yes"])] {
            let Ran { stderr, .. } = on(&server, command, &file, more).await.exited(1);
            assert!(stderr.contains(&place) && stderr.contains(says), "{command}: {stderr}");
        }
    }
    let exported = cadastre(&server, &["export"]).await.exited(0).stdout;
    assert!(!exported.contains("shop"), "nothing was applied: {exported}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_can_be_read_by_programs() {
    let (_cluster, server) = shop().await;
    let (_dir, file) = written(MANIFEST);
    let printed = on(&server, "plan", &file, &["--format", "json"]).await.exited(0).stdout;
    let plan: serde_json::Value = serde_json::from_str(&printed).expect("a JSON document");
    let kinds: Vec<_> = plan["steps"].as_array().unwrap().iter().map(|s| &s["kind"]).collect();
    assert!(kinds.iter().any(|kind| *kind == "source"), "{plan}");
    assert!(kinds.iter().any(|kind| *kind == "subscription"), "{plan}");
}

#[tokio::test]
async fn applying_without_anybody_to_ask_needs_a_yes() {
    let (_dir, file) = written(MANIFEST);
    let Ran { stderr, .. } = run(bare().arg("apply").arg("-f").arg(&file)).await.exited(2);
    assert!(stderr.contains("--yes"), "{stderr}");
}

#[tokio::test]
async fn a_manifest_that_is_not_there_is_wrong_usage() {
    let Ran { stderr, .. } =
        run(bare().args(["plan", "-f", "/nonexistent/cadastre.yaml"])).await.exited(2);
    assert!(stderr.contains("/nonexistent/cadastre.yaml"), "{stderr}");
}
