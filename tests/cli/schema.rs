//! `schema`: what the directory `schema/` holds is what the program prints.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Ran, bare, run};

/// Every file below `dir`, by path.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in next.read_dir().expect("list") {
            let path = entry.expect("list").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            found.insert(name, std::fs::read_to_string(&path).expect("read"));
        }
    }
    found
}

#[tokio::test]
async fn the_schema_directory_is_what_the_program_prints() {
    let dir = tempfile::tempdir().unwrap();
    run(bare().args(["schema", "--write"]).arg(dir.path())).await.exited(0);
    let printed = files(dir.path());
    let kept = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("schema"));
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&printed), "`make schema` writes the files");
    for (name, text) in kept {
        assert!(text == printed[&name], "schema/{name} is stale; `make schema` writes it");
    }
}

#[tokio::test]
async fn every_part_is_printed_by_its_name() {
    for (part, sign) in [
        ("graphql", "type Query"),
        ("openapi", "\"/v1/feed\""),
        ("events", "\"traceparent\""),
        ("guard", "42501"),
    ] {
        let Ran { stdout, .. } = run(bare().args(["schema", part])).await.exited(0);
        assert!(stdout.contains(sign), "{part}: {stdout}");
    }
    run(bare().arg("schema")).await.exited(2);
}
