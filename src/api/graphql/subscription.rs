//! What can be followed: the feed, and violations as they are recorded.

#![expect(clippy::unused_async, reason = "async-graphql calls every resolver as a future")]

use std::collections::HashSet;

use async_graphql::{Context, ID, Json, SimpleObject};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::broadcast::error::RecvError;

use super::query::unknown_dataset;
use super::scalar::shared;
use super::violation::ViolationNode;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::api::rest::{parse_after, parse_predicate};
use crate::feed;
use crate::vocab::{DatasetName, Op, Position};

/// One change.
#[derive(SimpleObject)]
#[graphql(name = "Change")]
pub(super) struct ChangeNode {
    /// Where it stands; give it as `after` to go on from here.
    position: String,
    /// The dataset's name.
    dataset: String,
    /// `c`, `u`, `d`, `t` or `r`, as in the event.
    op: String,
    /// The whole event, as the feed sends it.
    event: Json<serde_json::Value>,
}

impl ChangeNode {
    /// The change as the feed gives it.
    pub(super) fn new(position: String, op: Op, event: &Bytes) -> Result<Self, Problem> {
        let event: serde_json::Value = serde_json::from_slice(event)
            .map_err(|error| Problem::internal(format!("event at {position}: {error}")))?;
        let dataset = event.get("dataset").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(Self { position, dataset: dataset.to_owned(), op: op.to_string(), event: Json(event) })
    }
}

/// A new owner or mode of a dataset.
#[derive(SimpleObject)]
#[graphql(name = "OwnershipChange")]
pub(super) struct OwnershipChangeNode {
    /// Where it stands: changes before it are the old owner's, changes after it the new one's. Give
    /// it as `after` to go on from here.
    position: String,
    /// The dataset's name.
    dataset: String,
    /// The owner before.
    from: Option<String>,
    /// The owner from here on.
    to: String,
    /// The mode from here on, in lower case.
    mode: String,
    /// The transfer that this completes.
    transfer: Option<ID>,
    /// The whole event, as the feed sends it.
    event: Json<serde_json::Value>,
}

impl OwnershipChangeNode {
    fn new(position: Position, event: &Bytes) -> Result<Self, Problem> {
        let event: serde_json::Value = serde_json::from_slice(event)
            .map_err(|error| Problem::internal(format!("event at {position}: {error}")))?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let ownership = &event["ownership"];
        Ok(Self {
            position: position.to_string(),
            dataset: text(&event["dataset"]).unwrap_or_default(),
            from: text(&ownership["from"]),
            to: text(&ownership["to"]).unwrap_or_default(),
            mode: text(&ownership["mode"]).unwrap_or_default(),
            transfer: text(&ownership["transfer"]).map(ID),
            event: Json(event),
        })
    }
}

/// The root of subscriptions, over graphql-transport-ws.
pub(in crate::api) struct Subscription;

#[async_graphql::Subscription]
impl Subscription {
    /// The changes of datasets of one source, after `now` (default), `earliest`, `snapshot` (the rows
    /// as they are, as `r`, then the changes) or a position.
    async fn changes(
        &self,
        ctx: &Context<'_>,
        datasets: Vec<String>,
        after: Option<String>,
        #[graphql(
            name = "where",
            desc = "Only changes of rows of which this holds, such as `status = 'paid' and amount >= 100`."
        )]
        condition: Option<String>,
        #[graphql(desc = "Only these columns of the rows.")] columns: Option<Vec<String>>,
    ) -> Result<impl Stream<Item = Result<ChangeNode, Problem>> + use<>, Problem> {
        let datasets = datasets.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let after = parse_after(after.as_deref())?;
        let shape = feed::Shape {
            predicate: condition.as_deref().map(parse_predicate).transpose()?,
            columns: columns.map(|columns| columns.into_iter().collect()),
            cloud_event: false,
        };
        let request = feed::Request { datasets, after, ops: None, shape };
        let cursor = shared(ctx).context.feed.open(request).await?;
        let deliveries = stream::try_unfold(cursor, |mut cursor| async move {
            let delivery = cursor.next().await.map_err(Problem::from)?;
            Ok::<_, Problem>(Some((delivery, cursor)))
        });
        Ok(deliveries
            .map_ok(|delivery| {
                let changes: Vec<_> = delivery
                    .events()
                    .filter_map(|(id, _, op, event)| Some(ChangeNode::new(id, op?, &event)))
                    .collect();
                stream::iter(changes)
            })
            .try_flatten())
    }

    /// New owners and modes of datasets of one source, in commit order with their changes, after `now`
    /// (default), `earliest` or a position.
    async fn ownership_changes(
        &self,
        ctx: &Context<'_>,
        datasets: Vec<String>,
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<OwnershipChangeNode, Problem>> + use<>, Problem> {
        let datasets = datasets.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let after = parse_after(after.as_deref())?;
        // Of changes the fewest there are; what concerns the dataset itself comes in any case.
        let request = feed::Request {
            datasets,
            after,
            ops: Some(vec![Op::Truncate]),
            shape: feed::Shape::default(),
        };
        let cursor = shared(ctx).context.feed.open(request).await?;
        let deliveries = stream::try_unfold(cursor, |mut cursor| async move {
            let delivery = cursor.next().await.map_err(Problem::from)?;
            Ok::<_, Problem>(Some((delivery, cursor)))
        });
        Ok(deliveries
            .map_ok(|delivery| {
                let changes: Vec<_> = delivery
                    .iter()
                    .filter(|(_, op, _)| *op == Op::Ownership)
                    .map(|(position, _, event)| OwnershipChangeNode::new(position, &event))
                    .collect();
                stream::iter(changes)
            })
            .try_flatten())
    }

    /// Violations as they are recorded, of these datasets or of all.
    async fn violations(
        &self,
        ctx: &Context<'_>,
        datasets: Option<Vec<String>>,
    ) -> Result<impl Stream<Item = Result<ViolationNode, Problem>> + use<>, Problem> {
        let registry = shared(ctx).context.registry.clone();
        let live = registry.violations_live();
        let snapshot = registry.snapshot();
        let mut wanted = HashSet::new();
        for name in datasets.iter().flatten() {
            let name: DatasetName = name.parse()?;
            if snapshot.dataset(&name).is_none() {
                return Err(unknown_dataset(&name));
            }
            wanted.insert(name.to_string());
        }
        let all = datasets.is_none();
        let recorded = stream::try_unfold(live, |mut live| async move {
            match live.recv().await {
                Ok(violation) => Ok(Some((violation, live))),
                Err(RecvError::Closed) => Ok(None),
                Err(RecvError::Lagged(missed)) => {
                    let detail = format!("{missed} violations were missed: read them by query");
                    Err(Problem::new(Code::Conflict, detail))
                }
            }
        });
        Ok(recorded
            .try_filter(move |violation| {
                let passes = all || wanted.contains(&violation.report.dataset);
                std::future::ready(passes)
            })
            .map_ok(move |violation| ViolationNode { snapshot: registry.snapshot(), violation })
            .boxed())
    }
}
