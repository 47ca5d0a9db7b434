//! `cadastre audit`: everything that weakens a promise now.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};
use crate::vocab::SourceName;

const QUERY: &str = "query Audit($source: String, $after: String) {
    findings(source: $source, open: true, first: 100, after: $after) {
        nodes { question kind severity source datasetName object found expected mend
                firstSeenAt lastSeenAt }
        pageInfo { hasNextPage endCursor }
    }
}";

/// Lists what was found in the sources and is not as it should be, with what mends it.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Only this source.
    source: Option<SourceName>,
    /// Exit 1 when there is a finding at least as severe.
    #[arg(long, value_enum, value_name = "SEVERITY")]
    fail_on: Option<Severity>,
    /// How to print the findings.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Severity {
    /// Worth knowing.
    Info,
    /// It weakens a promise, or will.
    Warning,
    /// A promise does not hold.
    Error,
}

#[derive(Debug, Deserialize)]
struct Answer {
    /// Null beside an error, which is reported instead.
    findings: Option<Page>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    nodes: Vec<Finding>,
    page_info: PageInfo,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

/// One finding.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    question: String,
    kind: String,
    severity: Severity,
    source: String,
    dataset_name: Option<String>,
    object: String,
    found: String,
    expected: String,
    mend: Option<String>,
    first_seen_at: String,
    last_seen_at: String,
}

/// Runs the command.
pub(crate) async fn run(command: Audit) -> Result<(), Error> {
    let client = Client::new(&command.client)?;
    let mut findings = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let variables = serde_json::json!({ "source": command.source, "after": after });
        let answer: Answer = client.graphql(QUERY, variables).await?;
        let Some(page) = answer.findings else { break };
        findings.extend(page.nodes);
        after = page.page_info.end_cursor;
        if !page.page_info.has_next_page || after.is_none() {
            break;
        }
    }
    findings.sort_by(|a, b| (&a.question, b.severity).cmp(&(&b.question, a.severity)));
    match command.format {
        Format::Json => output::json(&findings)?,
        Format::Table => output::text(&report(&findings))?,
    }
    let failed =
        command.fail_on.is_some_and(|least| findings.iter().any(|it| it.severity >= least));
    if failed { Err(Error::No) } else { Ok(()) }
}

/// The findings by question, the worst first, with what mends each below it.
fn report(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let severity = format!("{:?}", finding.severity).to_lowercase();
        let found = format!("{} (expected: {})", finding.found, finding.expected);
        let at = format!("{} {}", finding.source, finding.object);
        vec![severity, finding.kind.clone(), at, found]
    };
    let table = output::table(&findings.iter().map(row).collect::<Vec<_>>());
    let (mut text, mut question) = (String::new(), "");
    for (line, finding) in table.lines().zip(findings) {
        if finding.question != question {
            question = &finding.question;
            text.push_str(&format!("{}\n", question.to_lowercase().replace('_', " ")));
        }
        text.push_str(&format!("  {line}\n"));
        for mend in finding.mend.iter().flat_map(|mend| mend.lines()) {
            text.push_str(&format!("      {mend}\n"));
        }
    }
    if findings.is_empty() {
        text.push_str("nothing was found\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_by_question_with_their_remedy() {
        let finding = |question: &str, severity, mend: Option<&str>| Finding {
            question: question.to_owned(),
            kind: "guard_disabled".to_owned(),
            severity,
            source: "shop".to_owned(),
            dataset_name: None,
            object: "public.orders".to_owned(),
            found: "disabled".to_owned(),
            expected: "enabled always".to_owned(),
            mend: mend.map(str::to_owned),
            first_seen_at: String::new(),
            last_seen_at: String::new(),
        };
        let findings = [
            finding("DATA_FLOW", Severity::Error, None),
            finding("OWNERSHIP", Severity::Warning, Some("ALTER TABLE")),
        ];
        insta::assert_snapshot!(report(&findings), @r"
        data flow
          error    guard_disabled  shop public.orders  disabled (expected: enabled always)
        ownership
          warning  guard_disabled  shop public.orders  disabled (expected: enabled always)
              ALTER TABLE
        ");
        assert_eq!(report(&[]), "nothing was found\n");
    }
}
