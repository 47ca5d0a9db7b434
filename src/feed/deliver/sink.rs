//! What every way of sending promises, and what a failure says about the change and the receiver.

use std::time::Duration;

use futures::future::BoxFuture;

use crate::feed::subscription::held::Item;

/// Somewhere that changes are sent to.
pub(super) trait Sink: Send + Sync + 'static {
    /// Sends these changes, in order, and waits until the receiver has taken responsibility for all
    /// of them. The caller ends it after [`Sink::timeout`].
    fn send<'a>(&'a self, items: &'a [Item]) -> BoxFuture<'a, Result<(), Failure>>;

    /// Longest wait for one [`Sink::send`].
    fn timeout(&self) -> Duration;

    /// Most changes in one.
    fn batch(&self) -> usize;

    /// Most under way at a time.
    fn parallel(&self) -> usize;
}

/// Why an attempt failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// Whose fault it is, as far as can be told.
    pub(super) blame: Blame,
    /// What happened, for the dead-letter queue.
    pub(super) error: String,
    /// The receiver asks not to be tried before.
    pub(super) retry_after: Option<Duration>,
}

/// Whose fault a failed attempt is. It decides what counts: towards parking the change, or towards
/// leaving the receiver alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The receiver was not reached, or takes nothing from us now: no change is parked for that.
    Receiver,
    /// Either may be the cause.
    Unclear,
    /// The receiver lives and refuses this change.
    Change,
}

impl Failure {
    /// A failure without a wish of the receiver.
    pub(super) fn new(blame: Blame, error: impl Into<String>) -> Self {
        Self { blame, error: error.into(), retry_after: None }
    }
}
