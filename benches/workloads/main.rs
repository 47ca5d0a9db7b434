//! The workloads by which Cadastre is measured: each figure is a ratio within one run, ours beside
//! a reference on the same work, interleaved, the median of several rounds with the spread.
//!
//! `cargo bench` runs them small; `-- --full` at the sizes the targets are set for; `-- --only W1`
//! one of them; `-- --json` prints one JSON object per row instead of the table.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a table")]

mod drain;
mod fanout;
mod guard;
mod isolation;
mod latency;
mod memory;
mod stage;

use std::process::ExitCode;

use serde::Serialize;

/// What to run and how large.
pub(crate) struct Plan {
    /// The sizes that the targets are set for, instead of small ones.
    full: bool,
    /// Rounds per figure.
    rounds: usize,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Its number and name.
    workload: &'static str,
    /// On what.
    size: String,
    /// Of both figures.
    unit: &'static str,
    /// Median of ours.
    ours: f64,
    /// Median of the reference.
    reference: f64,
    /// Median of the rounds' ratios, ours to reference.
    ratio: f64,
    /// Lowest and highest of them.
    spread: (f64, f64),
    /// What the ratio is to reach.
    target: &'static str,
}

impl Row {
    /// A row from the rounds' pairs of (ours, reference).
    pub(crate) fn new(
        workload: &'static str,
        size: String,
        unit: &'static str,
        target: &'static str,
        rounds: &[(f64, f64)],
    ) -> Self {
        let ratios: Vec<f64> = rounds.iter().map(|(ours, reference)| ours / reference).collect();
        let sorted = sorted(&ratios);
        Self {
            workload,
            size,
            unit,
            ours: median(&rounds.iter().map(|round| round.0).collect::<Vec<_>>()),
            reference: median(&rounds.iter().map(|round| round.1).collect::<Vec<_>>()),
            ratio: median(&ratios),
            spread: (sorted[0], sorted[sorted.len() - 1]),
            target,
        }
    }
}

/// A sorted copy.
fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which this share of all values lies.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let last = sorted.len().saturating_sub(1);
    sorted[((last as f64) * share).round() as usize]
}

#[tokio::main]
async fn main() -> ExitCode {
    // The HTTP client brings no provider of cryptography of its own; none was set before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    let full = has("--full");
    let plan = Plan { full, rounds: 5 };

    let mut rows = Vec::new();
    if wanted("W1") {
        rows.extend(drain::run(&plan).await);
    }
    if wanted("W2") {
        rows.extend(latency::run(&plan).await);
    }
    if wanted("W3") {
        rows.extend(fanout::run(&plan).await);
    }
    if wanted("W4") {
        rows.extend(isolation::run(&plan).await);
    }
    if wanted("W5") {
        rows.extend(guard::run(&plan).await);
    }
    if wanted("W8") {
        rows.extend(memory::run(&plan).await);
    }
    if rows.is_empty() {
        eprintln!("no such workload: expected --only W1, W2, W3, W4, W5 or W8");
        return ExitCode::from(2);
    }
    if has("--json") {
        for row in &rows {
            println!("{}", serde_json::to_string(row).expect("rows are plain values"));
        }
        return ExitCode::SUCCESS;
    }
    println!("| workload | size | unit | ours | reference | ratio (spread) | target |");
    println!("|---|---|---|---|---|---|---|");
    for row in &rows {
        let Row { workload, size, unit, ours, reference, ratio, spread, target } = row;
        println!(
            "| {workload} | {size} | {unit} | {ours:.0} | {reference:.0} \
             | {ratio:.2} ({:.2}–{:.2}) | {target} |",
            spread.0, spread.1
        );
    }
    ExitCode::SUCCESS
}
