//! House rules that no compiler checks: which room may import which, where foreign types stop, that
//! every file says what it is for and stays readable, and which words have no place here.
//!
//! Each rule is a function from a file to its breaches, with a test of its own that shows it fail.

use std::fmt::{Display, Formatter};
use std::path::Path;

/// The rooms, earliest first. A room imports from earlier levels only; rooms of one level do not
/// know each other.
const LEVELS: &[&[&str]] = &[
    &["vocab"],
    &["config"],
    &["telemetry", "task"],
    &["pg"],
    &["registry", "log"],
    &["guard", "capture", "gateway"],
    &["feed"],
    &["api", "embedded"],
    &["app"],
    &["cli"],
];

/// Crates whose types stay in a few files: the crates, then where they may appear. A place ending in
/// `/` is a directory, one beginning with `**/` may lie anywhere below `src`.
const FOREIGN: &[(&[&str], &[&str])] = &[
    (
        &["actix_web", "tracing_actix_web", "async_graphql", "async_graphql_actix_web"],
        &["src/api/"],
    ),
    (
        &["diesel", "diesel_async", "diesel_migrations"],
        &[
            "src/pg/",
            "src/registry/store/",
            "src/registry/schema.rs",
            "src/log/store/",
            "**/store.rs",
        ],
    ),
    (
        &["tokio_postgres"],
        &[
            "src/pg/",
            "src/guard/source.rs",
            "src/capture/stream.rs",
            "src/capture/catalog.rs",
            "src/capture/setup.rs",
            "**/store.rs",
        ],
    ),
];

/// Most lines of a file, its unit tests not counted.
const LINES_MAX: usize = 600;

/// Words that belong to a moment, a machine or a to-do list, not to the project.
const WORDS: &[&str] = &["TODO", "FIXME", "XXX", "/work/", "/tmp/wt", "/root/"];

/// Breaches that are accepted: rule, file, reason. One that is no longer needed is a breach too.
const EXCEPTIONS: &[(Rule, &str, &str)] = &[];

/// The rules by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Arrow,
    Foreign,
    Opening,
    Length,
    Words,
}

/// A file, its path relative to the project with forward slashes.
struct Source {
    path: String,
    text: String,
}

/// One place where a rule is broken.
struct Breach {
    rule: Rule,
    path: String,
    line: usize,
    what: String,
}

impl Display for Breach {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.path, self.line, self.rule, self.what)
    }
}

impl Source {
    fn breach(&self, rule: Rule, line: usize, what: String) -> Breach {
        Breach { rule, path: self.path.clone(), line, what }
    }
}

#[test]
fn the_project_keeps_its_house_rules() {
    let mut breaches = Vec::new();
    for source in read(&["src", "tests", "benches", "examples"], &["rs"]) {
        breaches.extend(opening(&source));
        breaches.extend(length(&source));
        if source.path.starts_with("src/") {
            breaches.extend(arrows(&source));
            breaches.extend(foreign(&source));
        }
    }
    let written = ["rs", "sql", "sh", "md", "toml", "graphql", "json", "py", "mjs"];
    let places =
        ["src", "tests", "benches", "examples", "migrations", "schema", "scripts", "README.md"];
    for source in read(&places, &written) {
        // This file names the words it looks for.
        if source.path != "tests/tidy.rs" {
            breaches.extend(words(&source));
        }
    }
    let excused = |breach: &Breach, (rule, path, _): &(Rule, &str, &str)| {
        breach.rule == *rule && breach.path == *path
    };
    let stale: Vec<_> = EXCEPTIONS
        .iter()
        .filter(|exception| !breaches.iter().any(|breach| excused(breach, exception)))
        .collect();
    assert!(stale.is_empty(), "exceptions that are not needed: {stale:?}");
    breaches.retain(|breach| !EXCEPTIONS.iter().any(|exception| excused(breach, exception)));
    let report: Vec<String> = breaches.iter().map(Breach::to_string).collect();
    assert!(report.is_empty(), "{} breaches:\n{}", report.len(), report.join("\n"));
}

/// Imports that run backwards or sideways.
fn arrows(source: &Source) -> Vec<Breach> {
    let Some(room) = room(&source.path) else { return Vec::new() };
    let Some(own) = level(room) else {
        return vec![source.breach(Rule::Arrow, 1, format!("room `{room}` has no level"))];
    };
    let mut breaches = Vec::new();
    for (line, imported) in crate_paths(&code(&source.text)) {
        let Some(other) = level(&imported) else { continue };
        if imported != room && other >= own {
            let what = format!("room `{room}` may not import `{imported}`");
            breaches.push(source.breach(Rule::Arrow, line, what));
        }
    }
    breaches
}

/// Types of foreign crates outside their places.
fn foreign(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for token in tokens(&code(&source.text)) {
        for (crates, places) in FOREIGN {
            if crates.contains(&token.text) && !places.iter().any(|place| lies(&source.path, place))
            {
                let what = format!("`{}` stays in {}", token.text, places.join(", "));
                breaches.push(source.breach(Rule::Foreign, token.line, what));
            }
        }
    }
    breaches
}

/// Files that do not begin by saying what they are for.
fn opening(source: &Source) -> Option<Breach> {
    let first = source.text.lines().next().unwrap_or_default();
    let purpose = first.strip_prefix("//!").is_some_and(|words| words.trim().len() > 10);
    (!purpose).then(|| source.breach(Rule::Opening, 1, "begin with `//!` and a purpose".into()))
}

/// Files too long to be read in one go.
fn length(source: &Source) -> Option<Breach> {
    let lines: Vec<&str> = source.text.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    });
    let length = tests.unwrap_or(lines.len());
    let what = || format!("{length} lines, more than {LINES_MAX}: split it by noun");
    (length > LINES_MAX).then(|| source.breach(Rule::Length, LINES_MAX + 1, what()))
}

/// Words that have no place in the project.
fn words(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for word in WORDS {
            if line.contains(word) {
                breaches.push(source.breach(Rule::Words, number + 1, format!("`{word}`")));
            }
        }
        let lower = line.to_lowercase();
        for (at, marker) in lower.match_indices("issue #") {
            if lower[at + marker.len()..].starts_with(|c: char| c.is_ascii_digit()) {
                let what = "an issue's number: say the reason itself".to_owned();
                breaches.push(source.breach(Rule::Words, number + 1, what));
            }
        }
    }
    breaches
}

/// The room that a file belongs to; the crate's roots belong to none.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    match inside.split_once('/') {
        Some((room, _)) => Some(room),
        None => inside.strip_suffix(".rs").filter(|file| !["lib", "main"].contains(file)),
    }
}

/// Where a room stands in the order.
fn level(room: &str) -> Option<usize> {
    LEVELS.iter().position(|rooms| rooms.contains(&room))
}

/// Whether `path` lies at a place of [`FOREIGN`].
fn lies(path: &str, place: &str) -> bool {
    match place.strip_prefix("**") {
        Some(end) => path.ends_with(end),
        None if place.ends_with('/') => path.starts_with(place),
        None => path == place,
    }
}

/// A word or a punctuation mark, and its line.
#[derive(Clone, Copy)]
struct Token<'a> {
    line: usize,
    text: &'a str,
}

/// Splits code into words and single marks; `::` is one mark.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let end = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            let (text, after) = rest.split_at(end);
            tokens.push(Token { line: number + 1, text });
            rest = after.trim_start();
        }
    }
    tokens
}

/// The first segment of every path from the crate's root, groups included:
/// `crate::{a::b, c}` gives `a` and `c`.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let [root, colons, ..] = &tokens[at..] else { break };
        if root.text != "crate" || colons.text != "::" {
            continue;
        }
        let rest = &tokens[at + 2..];
        if rest.first().is_some_and(|token| token.text == "{") {
            found.extend(group(&rest[1..]));
        } else if let Some(first) = rest.first() {
            found.push((first.line, first.text.to_owned()));
        }
    }
    found
}

/// The first segments of the members of a group, up to its closing brace.
fn group(tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut depth, mut starts) = (0_usize, true);
    for token in tokens {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => {
                starts = true;
                continue;
            }
            _ if starts => found.push((token.line, token.text.to_owned())),
            _ => {}
        }
        starts = false;
    }
    found
}

/// `text` with comments and the insides of literals blanked out; lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(end) = raw_string(rest, out.chars().last()) {
            end
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_char_literal(rest) {
            quoted(rest, '\'')
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        let (gone, after) = rest.split_at(skipped);
        out.push(' ');
        out.extend(gone.chars().filter(|c| *c == '\n'));
        rest = after;
    }
    out
}

/// Length of the block comment that `text` begins with; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Length of the raw string that `text` begins with, unless its `r` ends a longer word.
fn raw_string(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| (c.is_alphanumeric() || c == '_') && c != 'b') {
        return None;
    }
    let rest = text.strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let inside = rest[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let end = inside.find(&closing).map_or(inside.len(), |at| at + closing.len());
    Some(text.len() - inside.len() + end)
}

/// Length of the quoted literal that `text` begins with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether the `'` that `text` begins with opens a character, not a lifetime.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The files with these extensions in these places of the project.
fn read(places: &[&str], extensions: &[&str]) -> Vec<Source> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut paths: Vec<_> = places.iter().map(|place| project.join(place)).collect();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = path.read_dir().expect("list a directory");
            paths.extend(entries.map(|entry| entry.expect("list a directory").path()));
        } else if path.is_file()
            && let Some(extension) = path.extension()
            && extensions.iter().any(|wanted| extension == *wanted)
        {
            let inside = path.strip_prefix(project).expect("inside the project");
            let text = std::fs::read_to_string(&path).expect("read a file");
            sources.push(Source { path: inside.display().to_string(), text });
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// A file for the tests of the rules.
fn file(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

/// What was found, by line and words.
fn said(breaches: impl IntoIterator<Item = Breach>) -> Vec<(usize, String)> {
    breaches.into_iter().map(|breach| (breach.line, breach.what)).collect()
}

#[test]
fn an_arrow_that_runs_backwards_or_sideways_is_found() {
    let found = |path, text| arrows(&file(path, text)).len();
    assert_eq!(found("src/log/store.rs", "use crate::feed::Hub;"), 1);
    assert_eq!(found("src/log/store.rs", "use crate::registry::Registry;"), 1, "sideways");
    assert_eq!(found("src/log/store.rs", "fn f() { crate::api::serve() }"), 1, "inline");
    assert_eq!(found("src/pg/pool.rs", "use crate::{vocab::{Lsn, Op}, log, cli::main};"), 2);
    assert_eq!(found("src/pg/pool.rs", "use crate::{\n    app,\n};"), 1, "over lines");
    assert_eq!(found("src/pg/pool.rs", "pub(crate) use crate :: feed :: Hub;"), 1, "spaced");
    assert_eq!(found("src/app.rs", "use crate::cli::main;"), 1);
    assert_eq!(found("src/cellar/mod.rs", ""), 1, "a room without a level");
    let found = said(arrows(&file("src/task/mod.rs", "\n\nuse crate::telemetry::x;")));
    assert_eq!(found, [(3, "room `task` may not import `telemetry`".to_owned())]);
}

#[test]
fn an_arrow_that_runs_forwards_is_fine() {
    let found = |path, text| arrows(&file(path, text)).len();
    assert_eq!(found("src/feed/hub.rs", "use crate::log::Log; use crate::vocab::Op;"), 0);
    assert_eq!(found("src/feed/hub.rs", "use crate::feed::cursor;"), 0, "its own room");
    assert_eq!(found("src/log/store.rs", "// crate::feed\n/* crate::api /* */ crate::cli */"), 0);
    assert_eq!(found("src/log/store.rs", "const A: &str = \"crate::feed \\\" crate::cli\";"), 0);
    assert_eq!(found("src/log/store.rs", "const A: &str = r#\"crate::feed \" crate::cli\"#;"), 0);
    assert_eq!(found("src/lib.rs", "use crate::cli;"), 0);
}

#[test]
fn literals_do_not_hide_the_code_after_them() {
    let found = |text| arrows(&file("src/log/store.rs", text)).len();
    assert_eq!(found("fn f<'a>(x: &'a str) -> char { '\"' } use crate::feed::Hub;"), 1);
    assert_eq!(found("const Q: char = '\\''; use crate::feed::Hub; const R: char = '\\'';"), 1);
    assert_eq!(found("const B: &[u8] = br\"\\\"; use crate::feed::Hub;"), 1);
    assert_eq!(found("const B: &str = \"https://\"; use crate::feed::Hub;"), 1);
}

#[test]
fn a_foreign_type_outside_its_place_is_found() {
    let found = |path, text| foreign(&file(path, text)).len();
    assert_eq!(found("src/feed/hub.rs", "use actix_web::HttpResponse;"), 1);
    assert_eq!(found("src/cli/tail.rs", "#[actix_web::main]"), 1);
    assert_eq!(found("src/registry/model.rs", "#[derive(diesel::Queryable)]"), 1);
    assert_eq!(found("src/embedded/mod.rs", "fn f(c: tokio_postgres::Client) {}"), 1);
    assert_eq!(found("src/api/rest/check.rs", "use actix_web::HttpResponse;"), 0);
    assert_eq!(found("src/log/store.rs", "use diesel::prelude::*; use tokio_postgres::Row;"), 0);
    assert_eq!(found("src/registry/store/read.rs", "use diesel::prelude::*;"), 0);
    assert_eq!(found("src/feed/hub.rs", "// as actix_web does"), 0);
}

#[test]
fn a_file_without_a_purpose_is_found() {
    assert!(opening(&file("src/a.rs", "use std::fmt;\n//! Too late to say it.\n")).is_some());
    assert!(opening(&file("src/a.rs", "//! stub\n")).is_some());
    assert!(opening(&file("src/a.rs", "")).is_some());
    assert!(opening(&file("src/a.rs", "//! Keeps what was said.\n")).is_none());
}

#[test]
fn a_file_that_is_too_long_is_found_and_its_tests_do_not_count() {
    let body = "x\n".repeat(LINES_MAX);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{body}}}\n");
    assert!(length(&file("src/a.rs", &body)).is_none());
    assert!(length(&file("src/a.rs", &format!("{body}x\n"))).is_some());
    assert!(length(&file("src/a.rs", &format!("{body}{tests}"))).is_none());
    let declared = format!("#[cfg(test)]\nmod tests;\n{body}");
    assert!(length(&file("src/a.rs", &declared)).is_some(), "a declaration ends no file");
}

#[test]
fn a_word_that_does_not_belong_is_found() {
    let found = |text| words(&file("src/a.rs", text)).len();
    assert_eq!(found("// TODO later\n// FIXME\n"), 2);
    assert_eq!(found("// see Issue #12, in /work/x"), 2);
    assert_eq!(found("// the issue # of a magazine; his work/life balance"), 0);
}
