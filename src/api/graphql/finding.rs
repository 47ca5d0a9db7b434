//! `Finding`: what was found in a source and is not as it should be.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};

use super::dataset::DatasetNode;
use super::page::{self, Kind, Page};
use super::scalar::shared;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::guard;
use crate::registry::{self, Dataset, Finding, FindingFilter, Snapshot};
use crate::vocab::Position;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "Severity", remote = "registry::Severity")]
pub(super) enum Severity {
    /// Worth knowing.
    Info,
    /// It weakens a promise, or will.
    Warning,
    /// A promise does not hold.
    Error,
}

/// Which question of an audit a finding belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "Question", remote = "registry::Question")]
pub(super) enum Question {
    /// Where does data flow?
    DataFlow,
    /// Who owns it?
    Ownership,
    /// What happens when a part fails?
    FailureHandling,
    /// Is anything being dropped?
    Observability,
}

/// A finding, with the snapshot that knows its dataset.
#[derive(Clone)]
pub(super) struct FindingNode {
    /// Where the dataset is looked up.
    pub(super) snapshot: Arc<Snapshot>,
    /// The finding.
    pub(super) finding: Arc<Finding>,
}

/// Something in a source that is not as it should be, from when it was first seen until it was gone.
#[Object(name = "Finding")]
impl FindingNode {
    /// Global, opaque.
    pub(super) async fn id(&self) -> ID {
        Kind::Finding.id(self.finding.id)
    }

    /// The question of an audit that it belongs to.
    async fn question(&self) -> Question {
        self.finding.question.into()
    }

    /// What kind of finding, such as `guard_disabled`.
    async fn kind(&self) -> &str {
        &self.finding.kind
    }

    /// How bad it is.
    async fn severity(&self) -> Severity {
        self.finding.severity.into()
    }

    /// The source it was found in.
    async fn source(&self) -> &str {
        self.finding.source.as_str()
    }

    /// The name of the dataset it is about, if it is about one.
    async fn dataset_name(&self) -> Option<&str> {
        self.finding.dataset.as_deref()
    }

    /// The dataset it is about, if it is registered still.
    async fn dataset(&self) -> Option<DatasetNode> {
        DatasetNode::find(&self.snapshot, &self.finding.dataset.as_deref()?.parse().ok()?)
    }

    /// What exactly: a table, a function, a role, as the source calls it.
    async fn object(&self) -> &str {
        &self.finding.object
    }

    /// What was found when it was last seen.
    async fn found(&self) -> &str {
        &self.finding.found
    }

    /// What should be.
    async fn expected(&self) -> &str {
        &self.finding.expected
    }

    /// The statement that mends it, where there is one.
    async fn mend(&self) -> Option<&str> {
        self.finding.mend.as_deref()
    }

    /// When it was first seen.
    async fn first_seen_at(&self) -> DateTime<Utc> {
        self.finding.first_seen_at
    }

    /// When it was last seen.
    async fn last_seen_at(&self) -> DateTime<Utc> {
        self.finding.last_seen_at
    }

    /// When it was there no more; null while it is.
    async fn repaired_at(&self) -> Option<DateTime<Utc>> {
        self.finding.repaired_at
    }
}

/// A stretch of the feed whose changes nobody vouches for: `writer.verified` is false in it, but for
/// what was delivered before it was known of.
#[derive(SimpleObject)]
#[graphql(name = "UnverifiedRange")]
pub(super) struct UnverifiedRangeNode {
    /// From this position on, inclusive.
    from: String,
    /// To this position, exclusive; null while it lasts.
    to: Option<String>,
}

/// The stretches of a dataset that last or ended in the last days, the oldest first.
pub(super) fn unverified(dataset: &Dataset) -> Vec<UnverifiedRangeNode> {
    let range = |gap: &registry::GuardGap| UnverifiedRangeNode {
        from: Position::new(gap.epoch, gap.from, 0).to_string(),
        to: gap.to.map(|to| Position::new(gap.epoch, to, 0).to_string()),
    };
    dataset.gaps.iter().map(range).collect()
}

/// Which findings are asked for.
pub(super) fn drift_filter() -> FindingFilter {
    let kinds = guard::DRIFT_KINDS.iter().map(|&kind| kind.to_owned()).collect();
    FindingFilter { kinds: Some(kinds), ..FindingFilter::default() }
}

/// The problem of a source that nobody registered.
pub(super) fn known_source(snapshot: &Snapshot, filter: &FindingFilter) -> Result<(), Problem> {
    let unknown = filter.source.as_ref().filter(|name| !snapshot.sources.contains_key(*name));
    unknown.map_or(Ok(()), |name| {
        let detail = format!("no source is named \"{name}\"");
        Err(Problem::new(Code::UnknownSource, detail))
    })
}

/// Findings that pass a filter, the latest first.
pub(super) async fn list(
    ctx: &Context<'_>,
    snapshot: &Arc<Snapshot>,
    filter: &FindingFilter,
    first: Option<i32>,
    after: Option<String>,
) -> Result<Page<FindingNode>, Problem> {
    let wanted = page::wanted::<i64>(first, after.as_deref())?;
    let asked = registry::Page { first: wanted.first + 1, after: wanted.after };
    let found = shared(ctx).context.registry.findings(filter, asked).await?;
    let nodes = found.into_iter().map(|finding| {
        let key = finding.id.to_string();
        (key, FindingNode { snapshot: Arc::clone(snapshot), finding: Arc::new(finding) })
    });
    Ok(page::page(&wanted, nodes))
}

/// The finding with this number.
pub(super) async fn find(
    ctx: &Context<'_>,
    snapshot: &Arc<Snapshot>,
    id: i64,
) -> Result<Option<FindingNode>, Problem> {
    // The latest first: the one after `id + 1` is `id` or older.
    let Some(next) = id.checked_add(1) else {
        return Ok(None);
    };
    let page = registry::Page { first: 1, after: Some(next) };
    let found = shared(ctx).context.registry.findings(&FindingFilter::default(), page).await?;
    Ok(found
        .into_iter()
        .find(|finding| finding.id == id)
        .map(|finding| FindingNode { snapshot: Arc::clone(snapshot), finding: Arc::new(finding) }))
}
