//! Supervised background work: nothing is spawned without a name, an owner and a way to stop.
//!
//! A [`Tasks`] owns every task started through it and the token that stops them. Dropping a
//! running future is not how work ends: each task watches [`Tasks::stopping`] and returns.
//! The room does not decide what to do about a failure; tasks that can fail loop over their own
//! errors and report them. A [`Failpoint`] is where a test can have the process die.

mod failpoint;

pub use failpoint::Failpoint;

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of named tasks with one stop signal. Cheap to clone; clones share the group.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// The signal that the group is to stop. Cancel-safe to await in a `select!`.
    pub fn stopping(&self) -> CancellationToken {
        self.token.clone()
    }

    /// A group that stops when this one does, or earlier by itself.
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// Runs `work` under `name` until it returns. A panic is logged with the name and stops the
    /// whole group: a part that died silently would be worse than a restart.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let span = tracing::info_span!(parent: None, "task", task.name = name);
        let handle = tokio::spawn(work.instrument(span));
        drop(self.tracker.spawn(async move {
            if let Err(error) = handle.await
                && error.is_panic()
            {
                tracing::error!(task.name = name, error = %error, "task panicked; stopping");
                token.cancel();
            }
        }));
    }

    /// Signals every task to stop and waits for them, at most `grace`. Returns whether all ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
