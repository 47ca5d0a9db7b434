//! `cadastre subscription`: named readers, how far they have come, and what did not reach them.

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, ClientOptions};
use super::error::Error;
use super::output::{self, Format};

/// What is asked of a subscription.
const FIELDS: &str = "name kind service { name } datasets { name } spec
    status { paused cursor begun logEnd breaker trouble checksum deliveredAt
        counts { logged delivered pending parked filtered dropped reconcile } }";

/// Shows and steers subscriptions: named readers whose place the server keeps.
#[derive(Debug, Args)]
pub(crate) struct Subscription {
    #[command(subcommand)]
    action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Action {
    /// Lists all, or those of one service.
    List {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Shows one: how it is declared, how far it has come, whether its counts reconcile.
    Show {
        #[command(flatten)]
        named: Named,
    },
    /// Stops delivery; changes wait in the log.
    Pause {
        #[command(flatten)]
        named: Named,
    },
    /// Lets delivery go on where it stopped.
    Resume {
        #[command(flatten)]
        named: Named,
    },
    /// Goes on somewhere else, with the counts begun anew.
    Seek {
        #[command(flatten)]
        named: Named,
        /// `now`, `earliest`, `snapshot` (the rows as they are), after a position, or from a time such as 2026-03-01T12:00:00Z.
        #[arg(long, value_name = "PLACE")]
        to: String,
    },
    /// Forgets it and where it was.
    Delete {
        #[command(flatten)]
        named: Named,
        /// Drops its dead letters with it, for this reason.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Prints the secret that requests to a webhook are signed with.
    Secret {
        #[command(flatten)]
        named: Named,
    },
    /// Makes a new secret for a webhook and prints it.
    RotateSecret {
        #[command(flatten)]
        named: Named,
        /// How long the present secret stays valid.
        #[arg(long, default_value = "1day", value_parser = humantime::parse_duration)]
        overlap: std::time::Duration,
    },
    /// Lists what could not be delivered and waits for somebody to decide.
    DeadLetters {
        #[command(flatten)]
        named: Named,
    },
    /// Delivers parked changes again: one, or all in order.
    Redrive {
        #[command(flatten)]
        named: Named,
        /// Only this dead letter.
        #[arg(long)]
        id: Option<i64>,
    },
    /// Gives parked changes up on purpose.
    Drop {
        #[command(flatten)]
        named: Named,
        /// The dead letters.
        #[arg(long = "id", required = true)]
        ids: Vec<i64>,
        /// Why; it is kept with them.
        #[arg(long)]
        reason: String,
    },
}

/// How to ask and to print.
#[derive(Debug, Args)]
struct Common {
    /// How to print the answer.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    client: ClientOptions,
}

/// One subscription.
#[derive(Debug, Args)]
struct Named {
    /// The subscription.
    name: String,
    #[command(flatten)]
    common: Common,
}

/// A subscription as the server describes it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    kind: Option<String>,
    service: Option<Name>,
    datasets: Vec<Name>,
    spec: Value,
    status: Option<Status>,
}

/// Something with a name.
#[derive(Debug, Deserialize, Serialize)]
struct Name {
    name: String,
}

/// How far it has come.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    paused: bool,
    cursor: String,
    begun: String,
    log_end: String,
    breaker: String,
    trouble: Option<String>,
    checksum: String,
    delivered_at: Option<String>,
    counts: Counts,
}

/// What became of every change up to the cursor.
#[derive(Debug, Deserialize, Serialize)]
struct Counts {
    logged: u64,
    delivered: u64,
    pending: u64,
    parked: u64,
    filtered: u64,
    dropped: u64,
    reconcile: bool,
}

/// Why something was not done.
#[derive(Debug, Deserialize)]
struct UserError {
    message: String,
}

/// What every mutation says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    #[serde(default)]
    secret: Option<String>,
    #[serde(default)]
    count: Option<u64>,
    user_errors: Vec<UserError>,
}

/// Runs the command.
pub(crate) async fn run(command: Subscription) -> Result<(), Error> {
    match command.action {
        Action::List { service, common } => list(service, &common).await,
        Action::Show { named } => show(&named).await,
        Action::Pause { named } => {
            act(&named, "subscriptionPause", "SubscriptionInput", json!({})).await?;
            output::line("paused")
        }
        Action::Resume { named } => {
            act(&named, "subscriptionResume", "SubscriptionInput", json!({})).await?;
            output::line("resumed")
        }
        Action::Seek { named, to } => {
            let input = json!({ "to": to });
            act(&named, "subscriptionSeek", "SubscriptionSeekInput", input).await?;
            output::line("moved")
        }
        Action::Delete { named, reason } => {
            let input = json!({ "reason": reason });
            act(&named, "subscriptionDelete", "SubscriptionDeleteInput", input).await?;
            output::line("deleted")
        }
        Action::RotateSecret { named, overlap } => {
            let input = json!({ "overlapSeconds": overlap.as_secs() });
            let kind = "SubscriptionSecretRotateInput";
            let done = act(&named, "subscriptionSecretRotate", kind, input).await?;
            output::line(&done.secret.unwrap_or_default())
        }
        Action::Secret { named } => secret(&named).await,
        Action::DeadLetters { named } => dead_letters(&named).await,
        Action::Redrive { named, id } => {
            let input = json!({ "subscription": named.name, "id": id });
            let done = letters(&named, "deadLettersRedrive", "DeadLettersRedriveInput", input);
            output::line(&format!("{} on their way again", done.await?.count.unwrap_or_default()))
        }
        Action::Drop { named, ids, reason } => {
            let input = json!({ "subscription": named.name, "ids": ids, "reason": reason });
            let done = letters(&named, "deadLettersDrop", "DeadLettersDropInput", input);
            output::line(&format!("{} dropped", done.await?.count.unwrap_or_default()))
        }
    }
}

async fn list(service: Option<String>, common: &Common) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Answer {
        subscriptions: Page,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        nodes: Vec<Described>,
        page_info: PageInfo,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PageInfo {
        has_next_page: bool,
        end_cursor: Option<String>,
    }
    let client = Client::new(&common.client)?;
    let query = format!(
        "query List($service: String, $after: String) {{
            subscriptions(service: $service, first: 50, after: $after) {{
                nodes {{ {FIELDS} }} pageInfo {{ hasNextPage endCursor }}
            }}
        }}"
    );
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let variables = json!({ "service": service, "after": after });
        let answer: Answer = client.graphql(&query, variables).await?;
        all.extend(answer.subscriptions.nodes);
        after = answer.subscriptions.page_info.end_cursor;
        if !answer.subscriptions.page_info.has_next_page {
            break;
        }
    }
    match common.format {
        Format::Json => output::json(&all),
        Format::Table => output::text(&output::table(&rows(&all))),
    }
}

fn rows(all: &[Described]) -> Vec<Vec<String>> {
    let heads = ["name", "service", "kind", "state", "delivered", "pending", "parked"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for one in all {
        let count = |count: fn(&Counts) -> u64| {
            let counted = one.status.as_ref().map(|status| count(&status.counts).to_string());
            counted.unwrap_or_else(|| "?".to_owned())
        };
        rows.push(vec![
            one.name.clone(),
            one.service.as_ref().map_or(String::new(), |service| service.name.clone()),
            one.kind.clone().unwrap_or_default(),
            one.status.as_ref().map_or_else(|| "unknown".to_owned(), state),
            count(|counts| counts.delivered),
            count(|counts| counts.pending),
            count(|counts| counts.parked),
        ]);
    }
    rows
}

fn state(status: &Status) -> String {
    match (status.paused, status.breaker.as_str(), &status.trouble) {
        (true, ..) => "paused".to_owned(),
        (false, "closed", None) => "active".to_owned(),
        (false, "closed", Some(_)) => "in trouble".to_owned(),
        (false, breaker, _) => format!("breaker {breaker}"),
    }
}

async fn show(named: &Named) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Answer {
        subscription: Option<Described>,
    }
    let client = Client::new(&named.common.client)?;
    let query =
        format!("query Show($name: String!) {{ subscription(name: $name) {{ {FIELDS} }} }}");
    let answer: Answer = client.graphql(&query, json!({ "name": named.name })).await?;
    let Some(one) = answer.subscription else {
        eprintln!("cadastre: no subscription is named \"{}\"", named.name);
        return Err(Error::No);
    };
    match named.common.format {
        Format::Json => output::json(&one),
        Format::Table => output::text(&to_text(&one)),
    }
}

fn to_text(one: &Described) -> String {
    let datasets: Vec<&str> = one.datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    let mut facts = vec![
        ("name", one.name.clone()),
        ("service", one.service.as_ref().map_or(String::new(), |it| it.name.clone())),
        ("datasets", datasets.join(", ")),
        ("declared", one.spec.to_string()),
    ];
    if let Some(status) = &one.status {
        let counts = &status.counts;
        let sum = if counts.reconcile { "reconciles" } else { "DOES NOT RECONCILE" };
        facts.push(("state", state(status)));
        facts.extend(status.trouble.clone().map(|trouble| ("trouble", trouble)));
        facts.push(("cursor", status.cursor.clone()));
        facts.push(("log ends", status.log_end.clone()));
        facts.push((
            "counts",
            format!(
                "{} logged = {} delivered + {} pending + {} parked + {} filtered + {} dropped: {sum}",
                counts.logged,
                counts.delivered,
                counts.pending,
                counts.parked,
                counts.filtered,
                counts.dropped
            ),
        ));
        facts.push(("checksum", status.checksum.clone()));
    }
    let rows = facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    output::table(&rows.collect::<Vec<_>>())
}

/// A mutation of the subscription; what the server refuses is an error.
async fn act(
    named: &Named,
    mutation: &str,
    kind: &str,
    mut input: Value,
) -> Result<Payload, Error> {
    input["name"] = json!(named.name);
    let query = format!(
        "mutation Act($input: {kind}!) {{
            done: {mutation}(input: $input) {{ secret userErrors {{ message }} }}
        }}"
    );
    mutate(named, &query, input).await
}

/// A mutation of its dead letters.
async fn letters(
    named: &Named,
    mutation: &str,
    kind: &str,
    input: Value,
) -> Result<Payload, Error> {
    let query = format!(
        "mutation Letters($input: {kind}!) {{
            done: {mutation}(input: $input) {{ count userErrors {{ message }} }}
        }}"
    );
    mutate(named, &query, input).await
}

async fn mutate(named: &Named, query: &str, input: Value) -> Result<Payload, Error> {
    #[derive(Deserialize)]
    struct Answer {
        done: Payload,
    }
    let client = Client::new(&named.common.client)?;
    let answer: Answer = client.graphql(query, json!({ "input": input })).await?;
    if answer.done.user_errors.is_empty() {
        return Ok(answer.done);
    }
    for error in &answer.done.user_errors {
        eprintln!("cadastre: {}", error.message);
    }
    Err(Error::No)
}

async fn secret(named: &Named) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Answer {
        secret: String,
    }
    let client = Client::new(&named.common.client)?;
    let path = ["v1", "subscriptions", named.name.as_str(), "secret"];
    let answer: Answer = client.get_with(&path, &[]).await?;
    output::line(&answer.secret)
}

async fn dead_letters(named: &Named) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Answer {
        dead_letters: Vec<Value>,
        next: Option<i64>,
    }
    let client = Client::new(&named.common.client)?;
    let path = ["v1", "subscriptions", named.name.as_str(), "dead-letters"];
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let answer: Answer =
            client.get_with(&path, &[("first", "100"), ("after", &after.to_string())]).await?;
        all.extend(answer.dead_letters);
        match answer.next {
            Some(next) => after = next,
            None => break,
        }
    }
    match named.common.format {
        Format::Json => output::json(&all),
        Format::Table => output::text(&output::table(&letter_rows(&all))),
    }
}

fn letter_rows(all: &[Value]) -> Vec<Vec<String>> {
    let heads = ["id", "position", "dataset", "op", "attempts", "last error"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for letter in all {
        let attempts = letter["attempts"].as_array();
        let last = attempts.and_then(|attempts| attempts.last());
        rows.push(vec![
            text(&letter["id"]),
            text(&letter["position"]),
            text(&letter["dataset"]),
            text(&letter["op"]),
            attempts.map_or(0, Vec::len).to_string(),
            last.map_or(String::new(), |attempt| text(&attempt["error"])),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_shows_that_its_counts_reconcile() {
        let one: Described = serde_json::from_value(json!({
            "name": "billing-orders", "kind": "pull", "service": { "name": "billing" },
            "datasets": [{ "name": "shop.public.orders" }], "spec": { "deliver": { "pull": {} } },
            "status": {
                "paused": false, "cursor": "01-1-1", "begun": "01-0-0", "logEnd": "01-1-2",
                "breaker": "closed", "trouble": null, "checksum": "cffc3cbae9edc4f6",
                "deliveredAt": null,
                "counts": { "logged": 3, "delivered": 1, "pending": 1, "parked": 1, "filtered": 0,
                    "dropped": 0, "reconcile": true },
            },
        }))
        .unwrap();
        insta::assert_snapshot!(to_text(&one), @r#"
        name      billing-orders
        service   billing
        datasets  shop.public.orders
        declared  {"deliver":{"pull":{}}}
        state     active
        cursor    01-1-1
        log ends  01-1-2
        counts    3 logged = 1 delivered + 1 pending + 1 parked + 0 filtered + 0 dropped: reconciles
        checksum  cffc3cbae9edc4f6
        "#);
        insta::assert_snapshot!(output::table(&rows(&[one])), @r"
        name            service  kind  state   delivered  pending  parked
        billing-orders  billing  pull  active  1          1        1
        ");
    }
}
