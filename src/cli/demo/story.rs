//! The story itself: what is done, and what must come of it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::error::Error;
use super::super::plan::Answer;
use super::narrator::Narrator;
use super::stage::Stage;
use super::subscriber::Subscriber;
use crate::pg::{self, Connection, quote_literal};
use crate::vocab::TraceParent;

/// The table with an owner.
const ORDERS: &str = "shop.public.orders";

/// Longest wait for a change that was committed.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A violation is on record after this time at the latest.
const RECORDED: Duration = Duration::from_secs(1);

/// What the owner writes; the intruder tries the same.
const INSERT: &str = "INSERT INTO orders (item, status) VALUES ('tea', 'open')";

/// What became of a transaction.
enum Outcome {
    Accepted,
    Rejected { sqlstate: String, message: String },
}

/// Tells it. Fails only when it cannot go on; what is not as it should be is the narrator's to
/// count.
pub(super) async fn tell(stage: &mut Stage, narrator: &mut Narrator) -> Result<(), Error> {
    declare(stage, narrator).await?;
    let mut subscriber = subscribe(stage, narrator).await?;
    owner_writes(stage, narrator, &mut subscriber).await?;
    intruder_writes(stage, narrator).await?;
    intruder_hides_in_a_transaction(stage, narrator).await?;
    intruder_alters(stage, narrator).await?;
    cadastre_is_down(stage, narrator, &mut subscriber).await
}

async fn declare(stage: &Stage, narrator: &mut Narrator) -> Result<(), Error> {
    narrator.step(
        "A manifest says who owns what",
        "It is applied whole or not at all; the guard is then part of the database.",
    )?;
    let manifest = format!(
        "apiVersion: cadastre/v1\n\
         sources:\n  \
           shop: {{ url: {} }}\n\
         services:\n  \
           orders:  {{ team: checkout, contact: \"#checkout\", roles: {{ shop: [orders_app] }} }}\n  \
           billing: {{ team: finance, contact: \"#finance\", roles: {{ shop: [billing_app] }} }}\n\
         datasets:\n  \
           shop.public.orders:   {{ owner: orders, mode: enforce }}\n  \
           shop.public.invoices: {{ owner: billing, mode: enforce, derivedFrom: [shop.public.orders] }}\n",
        json!(stage.shop_url())
    );
    narrator.note(&manifest)?;
    let applied: Answer = stage.client().manifest("apply", "demo.yaml", manifest).await?;
    narrator.expect(applied.findings.is_empty(), "the manifest is applied")?;
    Ok(())
}

async fn subscribe(stage: &Stage, narrator: &mut Narrator) -> Result<Subscriber, Error> {
    narrator.step(
        "Somebody subscribes to the orders",
        "Any program that can read HTTP can: one JSON object for each change.",
    )?;
    narrator.act("subscriber", &format!("GET /v1/feed?datasets={ORDERS}&after=now"))?;
    let subscriber = Subscriber::open(stage.client(), ORDERS).await?;
    narrator.expect(true, "the feed is open")?;
    Ok(subscriber)
}

async fn owner_writes(
    stage: &Stage,
    narrator: &mut Narrator,
    subscriber: &mut Subscriber,
) -> Result<(), Error> {
    narrator.step(
        "The owner writes",
        "Plain SQL, no library. The trace context is optional: SET LOCAL cadastre.traceparent.",
    )?;
    let trace = trace();
    narrator.act("orders_app", INSERT)?;
    let outcome = transact(&stage.orders, &trace, INSERT).await?;
    let committed = Instant::now();
    accepted(narrator, &outcome)?;
    arrival(narrator, subscriber, &trace, committed).await
}

async fn intruder_writes(stage: &Stage, narrator: &mut Narrator) -> Result<(), Error> {
    narrator.step(
        "An intruder writes",
        "billing has every privilege on the table, and PostgreSQL alone would let it through.",
    )?;
    let trace = trace();
    narrator.act("billing_app", INSERT)?;
    let outcome = transact(&stage.billing, &trace, INSERT).await?;
    rejected(narrator, &outcome)?;
    recorded(stage, narrator, &trace, "INSERT").await
}

async fn intruder_hides_in_a_transaction(
    stage: &Stage,
    narrator: &mut Narrator,
) -> Result<(), Error> {
    narrator.step(
        "An intruder writes its own table and somebody else's in one transaction",
        "A rejected write takes the whole transaction with it, also what was allowed by itself.",
    )?;
    let trace = trace();
    let before = count(&stage.billing, "invoices").await?;
    let sql = "INSERT INTO invoices (amount) VALUES (9.99); UPDATE orders SET status = 'paid'";
    narrator.act("billing_app", &format!("BEGIN; {sql}; COMMIT"))?;
    let outcome = transact(&stage.billing, &trace, sql).await?;
    rejected(narrator, &outcome)?;
    let after = count(&stage.billing, "invoices").await?;
    narrator.expect(before == after, "its own invoice is not there either")?;
    recorded(stage, narrator, &trace, "UPDATE").await
}

async fn intruder_alters(stage: &Stage, narrator: &mut Narrator) -> Result<(), Error> {
    narrator.step(
        "An intruder changes the table itself",
        "The shape of the data is its owner's as well, whatever PostgreSQL would allow.",
    )?;
    let trace = trace();
    let sql = "ALTER TABLE orders ADD COLUMN paid boolean";
    narrator.act("billing_app", sql)?;
    let outcome = transact(&stage.billing, &trace, sql).await?;
    rejected(narrator, &outcome)?;
    recorded(stage, narrator, &trace, "ALTER TABLE").await
}

async fn cadastre_is_down(
    stage: &mut Stage,
    narrator: &mut Narrator,
    subscriber: &mut Subscriber,
) -> Result<(), Error> {
    narrator.step(
        "Cadastre stops, the rule stays",
        "The guard is in PostgreSQL: no write waits for Cadastre, and none slips past it.",
    )?;
    stage.stop_server().await;
    let (owners, intruders) = (trace(), trace());
    narrator.act("orders_app", INSERT)?;
    let outcome = transact(&stage.orders, &owners, INSERT).await?;
    accepted(narrator, &outcome)?;
    narrator.act("billing_app", INSERT)?;
    let outcome = transact(&stage.billing, &intruders, INSERT).await?;
    rejected(narrator, &outcome)?;

    narrator.step(
        "Cadastre comes back",
        "The subscriber goes on behind the last change it saw; nothing is lost.",
    )?;
    stage.start_server().await?;
    let back = Instant::now();
    subscriber.resume(stage.client()).await?;
    arrival(narrator, subscriber, &owners, back).await?;
    let found = violation(stage, &intruders, ARRIVAL).await?;
    narrator.expect(found.is_some(), "the attempt made meanwhile is on record, too")?;
    Ok(())
}

/// A trace context as the service's caller would have handed it down.
fn trace() -> TraceParent {
    TraceParent::from_ids(rand::random(), rand::random())
}

/// Runs `sql` in one transaction with this trace context.
async fn transact(
    connection: &Connection,
    trace: &TraceParent,
    sql: &str,
) -> Result<Outcome, Error> {
    let trace = quote_literal(trace.as_str());
    let sql = format!("BEGIN; SET LOCAL cadastre.traceparent = {trace}; {sql}; COMMIT");
    let Err(error) = connection.batch_execute(&sql).await else { return Ok(Outcome::Accepted) };
    let Some(refusal) = error.as_db_error() else { return Err(pg::Error::from(error).into()) };
    connection.batch_execute("ROLLBACK").await.map_err(pg::Error::from)?;
    let parts = [Some(refusal.message()), refusal.detail(), refusal.hint()];
    Ok(Outcome::Rejected {
        sqlstate: refusal.code().code().to_owned(),
        message: parts.into_iter().flatten().collect::<Vec<_>>().join("\n"),
    })
}

async fn count(connection: &Connection, table: &str) -> Result<i64, Error> {
    let sql = format!("SELECT count(*) FROM {}", pg::quote_ident(table));
    let row = connection.query_one(&sql, &[]).await.map_err(pg::Error::from)?;
    Ok(row.get(0))
}

fn accepted(narrator: &mut Narrator, outcome: &Outcome) -> Result<(), Error> {
    match outcome {
        Outcome::Accepted => narrator.expect(true, "accepted").map(drop),
        Outcome::Rejected { message, .. } => {
            narrator.expect(false, "accepted: it was rejected")?;
            narrator.note(message)
        }
    }
}

fn rejected(narrator: &mut Narrator, outcome: &Outcome) -> Result<(), Error> {
    match outcome {
        Outcome::Accepted => narrator.expect(false, "rejected: it was accepted").map(drop),
        Outcome::Rejected { sqlstate, message } => {
            let what = format!("rejected by the database with SQLSTATE {sqlstate}");
            narrator.expect(sqlstate == "42501", &what)?;
            narrator.note(message)
        }
    }
}

/// The owner's change reaches the subscriber, with its writer and the trace context.
async fn arrival(
    narrator: &mut Narrator,
    subscriber: &mut Subscriber,
    trace: &TraceParent,
    since: Instant,
) -> Result<(), Error> {
    let Some(change) = subscriber.next(ARRIVAL).await? else {
        narrator.expect(false, "the subscriber has it: nothing came")?;
        return Ok(());
    };
    let what = format!("the subscriber has it after {} ms", since.elapsed().as_millis());
    narrator.expect(true, &what)?;
    for member in ["dataset", "op", "after", "writer", "traceparent", "position"] {
        narrator.note(format!("{member}: {}", change.get(member).unwrap_or(&Value::Null)))?;
    }
    let service = change.pointer("/writer/service").and_then(Value::as_str);
    narrator.expect(service == Some("orders"), "it says that the service orders wrote it")?;
    let same = change.get("traceparent").and_then(Value::as_str) == Some(trace.as_str());
    narrator.expect(same, "it carries the trace context that the session had set")?;
    Ok(())
}

/// The rejected attempt is on record in time, with all that is known of it.
async fn recorded(
    stage: &Stage,
    narrator: &mut Narrator,
    trace: &TraceParent,
    operation: &str,
) -> Result<(), Error> {
    let since = Instant::now();
    let Some(found) = violation(stage, trace, ARRIVAL).await? else {
        narrator.expect(false, "the attempt is on record: it is not")?;
        return Ok(());
    };
    let elapsed = since.elapsed();
    let what = format!("the attempt is on record after {} ms", elapsed.as_millis());
    narrator.expect(elapsed <= RECORDED, &what)?;
    narrator.note(format!(
        "{} {} on {} by role {} of service {}, traceparent {}",
        found.verdict.to_lowercase(),
        found.operation,
        found.dataset_name,
        found.role,
        found.service_name.as_deref().unwrap_or("(none)"),
        trace
    ))?;
    let complete = found.operation == operation
        && found.dataset_name == ORDERS
        && found.role == "billing_app"
        && found.verdict == "REJECTED";
    narrator.expect(complete, "with role, operation, dataset and trace context")?;
    Ok(())
}

/// A violation as GraphQL shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Violation {
    verdict: String,
    operation: String,
    dataset_name: String,
    service_name: Option<String>,
    role: String,
    traceparent: Option<String>,
}

/// Looks for the violation with this trace context until it is there, or the time is over.
async fn violation(
    stage: &Stage,
    trace: &TraceParent,
    within: Duration,
) -> Result<Option<Violation>, Error> {
    #[derive(Deserialize)]
    struct Data {
        violations: Nodes,
    }
    #[derive(Deserialize)]
    struct Nodes {
        nodes: Vec<Violation>,
    }
    const QUERY: &str = "query Violations($dataset: String!) {
        violations(dataset: $dataset, first: 10) {
            nodes { verdict operation datasetName serviceName role traceparent }
        }
    }";
    let deadline = Instant::now() + within;
    loop {
        let data: Data = stage.client().graphql(QUERY, json!({ "dataset": ORDERS })).await?;
        let found = data
            .violations
            .nodes
            .into_iter()
            .find(|v| v.traceparent.as_deref() == Some(trace.as_str()));
        if found.is_some() || Instant::now() >= deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
