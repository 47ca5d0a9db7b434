//! `FeedSubscription` and `DeadLetter`: named readers, how far they have come, what did not arrive.
//!
//! The type is not called `Subscription`: that is the name of GraphQL's own root.

mod mutation;

pub(super) use self::mutation::SubscriptionMutation;

use std::ops::Bound;
use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Json, Object, SimpleObject};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::dataset::DatasetNode;
use super::page::{self, DATABASE_COST, Page};
use super::scalar::{shared, snapshot};
use super::service::ServiceNode;
use crate::api::problem::Problem;
use crate::feed::{self, DeadLetter, LetterState, Status, Subscriptions};
use crate::registry::{self, Revision, Snapshot, SubscriptionSpec};
use crate::vocab::ServiceName;

/// What became of a change that could not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "feed::LetterState")]
pub(super) enum DeadLetterState {
    /// It waits for somebody to decide.
    Parked,
    /// It is being delivered again.
    Redriving,
    /// It has been delivered after all.
    Delivered,
    /// It was given up on purpose.
    Dropped,
    /// It was given up because nobody decided in time.
    Expired,
}

/// A named reader as one snapshot knows it.
#[derive(Clone)]
pub(super) struct FeedSubscriptionNode {
    snapshot: Arc<Snapshot>,
    subscription: Arc<registry::Subscription>,
}

impl FeedSubscriptionNode {
    /// The subscription with this name.
    pub(super) fn find(snapshot: &Arc<Snapshot>, name: &str) -> Option<Self> {
        let subscription = Arc::clone(snapshot.subscriptions.get(name)?);
        Some(Self { snapshot: Arc::clone(snapshot), subscription })
    }
}

/// A named, durable reader of changes, whose place is kept by the server.
#[Object(name = "FeedSubscription")]
impl FeedSubscriptionNode {
    /// Unique name.
    async fn name(&self) -> &str {
        &self.subscription.name
    }

    /// The service that reads.
    async fn service(&self) -> Option<ServiceNode> {
        ServiceNode::find(&self.snapshot, &self.subscription.service)
    }

    /// What it reads.
    async fn datasets(&self) -> Vec<DatasetNode> {
        let names = self.subscription.datasets.iter();
        names.filter_map(|name| DatasetNode::find(&self.snapshot, name)).collect()
    }

    /// The way changes go out: `pull`, `webhook`, `nats` or `kafka`.
    async fn kind(&self) -> Option<&'static str> {
        SubscriptionSpec::parse(&self.subscription.spec).ok().map(|spec| spec.deliver.kind())
    }

    /// How it is declared: `deliver`, `retry`, `start`, `budget`, `deadLetters`.
    async fn spec(&self) -> Json<Value> {
        Json(self.subscription.spec.clone())
    }

    /// How far it has come.
    #[graphql(complexity = "DATABASE_COST + child_complexity")]
    async fn status(&self, ctx: &Context<'_>) -> Option<Result<StatusNode, Problem>> {
        let status = subscriptions(ctx).status(&self.subscription.name).await;
        Some(status.map(StatusNode::from).map_err(Problem::from))
    }
}

/// How far a subscription has come.
#[derive(SimpleObject)]
#[graphql(name = "FeedSubscriptionStatus")]
pub(super) struct StatusNode {
    /// Whether delivery is stopped on purpose.
    paused: bool,
    /// Everything up to here, inclusive, is delivered, filtered, held or parked.
    cursor: String,
    /// Where this run began, with the subscription or the last seek: the counts are of what follows.
    begun: String,
    /// The newest change in the log of its source.
    log_end: String,
    /// The counts of this run.
    counts: CountsNode,
    /// Exclusive or of the fingerprints of the delivered positions, in hexadecimal. A position's
    /// fingerprint is the first 8 bytes of the SHA-256 of its text.
    checksum: String,
    /// `closed`: delivers. `open`: the receiver fails, nothing is sent. `half-open`: one is tried.
    breaker: String,
    /// What stands in its way, if anything does.
    trouble: Option<String>,
    /// When something was delivered last.
    delivered_at: Option<DateTime<Utc>>,
}

/// What became of every change up to the cursor.
#[derive(SimpleObject)]
#[graphql(name = "FeedSubscriptionCounts")]
struct CountsNode {
    /// Changes of its datasets in the log, from where the run began up to the cursor.
    logged: i64,
    /// Acknowledged by the receiver.
    delivered: i64,
    /// Out with a consumer, to be tried again, or waiting behind one of these.
    pending: i64,
    /// In the dead-letter queue.
    parked: i64,
    /// Not wanted.
    filtered: i64,
    /// Given up on purpose, or expired.
    dropped: i64,
    /// Whether `logged` is the sum of the others.
    reconcile: bool,
}

impl From<Status> for StatusNode {
    fn from(status: Status) -> Self {
        let (counts, tally) = (status.counts, status.counts.tally);
        Self {
            paused: status.paused,
            cursor: status.cursor.to_string(),
            begun: status.begun.to_string(),
            log_end: status.log_end.to_string(),
            counts: CountsNode {
                logged: tally.logged,
                delivered: tally.delivered,
                pending: counts.pending,
                parked: counts.parked,
                filtered: tally.filtered,
                dropped: tally.dropped,
                reconcile: counts.reconcile(),
            },
            checksum: status.checksum.to_string(),
            breaker: status.breaker,
            trouble: status.trouble,
            delivered_at: status.delivered_at,
        }
    }
}

/// A change that could not be delivered.
pub(super) struct DeadLetterNode(DeadLetter);

/// One attempt to deliver a change.
#[derive(SimpleObject)]
#[graphql(name = "DeliveryAttempt")]
struct AttemptNode {
    /// When it ended.
    at: DateTime<Utc>,
    /// Why it failed.
    error: String,
}

/// A change that could not be delivered to a subscription.
#[Object(name = "DeadLetter")]
impl DeadLetterNode {
    /// Its number, ascending in the order of parking.
    async fn id(&self) -> ID {
        self.0.id.into()
    }

    /// The name of the subscription.
    async fn subscription(&self) -> &str {
        &self.0.subscription
    }

    /// What became of it.
    async fn state(&self) -> DeadLetterState {
        self.0.state.into()
    }

    /// Where the change stands.
    async fn position(&self) -> String {
        self.0.position.to_string()
    }

    /// The name of its dataset.
    async fn dataset(&self) -> &str {
        &self.0.dataset
    }

    /// What happened to the row.
    async fn op(&self) -> String {
        self.0.op.to_string()
    }

    /// The event as it was logged.
    async fn event(&self) -> Option<Result<Json<Value>, Problem>> {
        Some(self.json(&self.0.event))
    }

    /// The event that is sent instead, if somebody has mended it.
    async fn edited(&self) -> Option<Result<Json<Value>, Problem>> {
        self.0.edited.as_ref().map(|event| self.json(event))
    }

    /// Every attempt, oldest first.
    async fn attempts(&self) -> Vec<AttemptNode> {
        let attempts = self.0.attempts.iter();
        attempts.map(|it| AttemptNode { at: it.at, error: it.error.clone() }).collect()
    }

    /// When it was parked, last.
    async fn parked_at(&self) -> DateTime<Utc> {
        self.0.parked_at
    }

    /// When it was decided about.
    async fn settled_at(&self) -> Option<DateTime<Utc>> {
        self.0.settled_at
    }

    /// By whom.
    async fn settled_by(&self) -> Option<&str> {
        self.0.settled_by.as_deref()
    }

    /// Why.
    async fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }
}

impl DeadLetterNode {
    fn json(&self, event: &[u8]) -> Result<Json<Value>, Problem> {
        serde_json::from_slice(event)
            .map(Json)
            .map_err(|error| Problem::internal(format!("dead letter {}: {error}", self.0.id)))
    }
}

fn subscriptions(ctx: &Context<'_>) -> Subscriptions {
    shared(ctx).context.subscriptions.clone()
}

/// The part of the root of queries that is about named readers.
#[derive(Default)]
pub(super) struct SubscriptionQuery;

#[Object]
impl SubscriptionQuery {
    /// The subscription with this name.
    async fn subscription(
        &self,
        ctx: &Context<'_>,
        name: String,
        at_least: Option<Revision>,
    ) -> Option<Result<FeedSubscriptionNode, Problem>> {
        let find = async { Ok(FeedSubscriptionNode::find(&snapshot(ctx, at_least).await?, &name)) };
        find.await.transpose()
    }

    /// All subscriptions, by name.
    #[graphql(complexity = "page::cost(first, child_complexity)")]
    async fn subscriptions(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Of this service alone.")] service: Option<String>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
        at_least: Option<Revision>,
    ) -> Option<Result<Page<FeedSubscriptionNode>, Problem>> {
        let list = async {
            let service: Option<ServiceName> = service.map(|name| name.parse()).transpose()?;
            let snapshot = snapshot(ctx, at_least).await?;
            list(&snapshot, service.as_ref(), first, after.as_deref())
        };
        Some(list.await)
    }

    /// The changes that could not be delivered to a subscription, in the order of parking.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn dead_letters(
        &self,
        ctx: &Context<'_>,
        subscription: String,
        #[graphql(desc = "In this state; parked when not given.")] state: Option<DeadLetterState>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<DeadLetterNode>, Problem>> {
        let state = state.unwrap_or(DeadLetterState::Parked);
        Some(dead_letters(ctx, &subscription, state, first, after).await)
    }
}

/// The subscriptions of a snapshot, by name.
fn list(
    snapshot: &Arc<Snapshot>,
    service: Option<&ServiceName>,
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Page<FeedSubscriptionNode>, Problem> {
    let wanted = page::wanted::<String>(first, after)?;
    let start = wanted.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let found = snapshot.subscriptions.range::<str, _>((start, Bound::Unbounded));
    let found = found.filter(|(_, it)| service.is_none_or(|service| it.service == *service));
    let nodes = found.map(|(name, it)| {
        let node =
            FeedSubscriptionNode { snapshot: Arc::clone(snapshot), subscription: Arc::clone(it) };
        (name.clone(), node)
    });
    Ok(page::page(&wanted, nodes))
}

/// One page of a dead-letter queue.
async fn dead_letters(
    ctx: &Context<'_>,
    subscription: &str,
    state: DeadLetterState,
    first: Option<i32>,
    after: Option<String>,
) -> Result<Page<DeadLetterNode>, Problem> {
    let wanted = page::wanted::<i64>(first, after.as_deref())?;
    let state = Some(LetterState::from(state));
    let after = wanted.after.unwrap_or(0);
    let found =
        subscriptions(ctx).dead_letters(subscription, state, after, wanted.first + 1).await?;
    let nodes = found.into_iter().map(|letter| (letter.id.to_string(), DeadLetterNode(letter)));
    Ok(page::page(&wanted, nodes))
}
