//! What happened to a dataset, or to one row of it, between two moments.

use async_graphql::{Context, Object};
use tokio::time::{Instant, timeout_at};

use super::page::{self, DATABASE_COST, Page};
use super::scalar::shared;
use super::subscription::ChangeNode;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::api::rest::{parse_after, parse_until};
use crate::feed::{self, After, Until};
use crate::vocab::{Position, limits};

/// The part of the root of queries that is about what happened.
#[derive(Default)]
pub(super) struct HistoryQuery;

#[Object]
impl HistoryQuery {
    /// The changes of a dataset in the order they were committed, as far back as the log goes.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    #[expect(clippy::too_many_arguments, reason = "they are the arguments of the field")]
    async fn history(
        &self,
        ctx: &Context<'_>,
        dataset: String,
        #[graphql(
            desc = "Only of the row with this key: a JSON object of columns and values, or \
                          the value of a key of one column."
        )]
        key: Option<String>,
        #[graphql(
            desc = "`earliest` (default), a position, or a time: the first change committed \
                          at or after it."
        )]
        from: Option<String>,
        #[graphql(
            desc = "`now` (default), a position, or a time: up to the last change committed \
                          before it."
        )]
        to: Option<String>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Result<Page<ChangeNode>, Problem> {
        let wanted = page::wanted::<Position>(first, after.as_deref())?;
        let from = match (wanted.after, from.as_deref()) {
            (Some(position), _) => After::Position(position),
            (None, None) => After::Earliest,
            (None, from) => parse_after(from)?,
        };
        let until = to.as_deref().map_or(Ok(Until::Now), parse_until)?;
        let shape = feed::Shape::default();
        let request =
            feed::Request { datasets: vec![dataset.parse()?], after: from, ops: None, shape };
        let part = feed::Part { until: Some(until), key };
        let mut cursor = shared(ctx).context.feed.open_part(request, part).await?;

        let deadline = Instant::now() + limits::HISTORY_WAIT_MAX;
        let mut found = Vec::new();
        while found.len() <= wanted.first {
            let next = timeout_at(deadline, cursor.try_next()).await.map_err(|_| too_long())?;
            let Some(delivery) = next? else { break };
            for (position, op, event) in delivery.iter() {
                found.push((
                    position.to_string(),
                    ChangeNode::new(position.to_string(), op, &event)?,
                ));
            }
        }
        Ok(page::page(&wanted, found))
    }
}

fn too_long() -> Problem {
    let seconds = limits::HISTORY_WAIT_MAX.as_secs();
    let detail = format!(
        "there is more to look through than {seconds} s allow: ask for less with \"from\" and \
         \"to\", or read GET /v1/feed, which takes its time"
    );
    Problem::new(Code::Unavailable, detail)
}
