//! The loop that compares sources with the registry and mends what it may.
//!
//! ```text
//! look ─► tell: "off since …" ─► record findings ─► mend, one dataset at a time ─► look ─► record
//!          │ at once, no lock                        │ lock_timeout, a few tries   │
//!          └ capture: not vouched for                └ "on" in the same commit     └ sound: note where
//! ```
//!
//! What the drift is and what may be mended is [`drift`]'s to say. Telling comes first
//! and takes no lock, so that a repair that has to wait does not leave changes looking verified.
//! A repair looks once more under a lock that no command on the table passes: what came after the
//! first look is told and recorded too before it is mended, and "on" is told when nobody can have
//! switched the guard off in between.

use std::collections::{BTreeMap, BTreeSet};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use metrics::{counter, gauge};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::desired::{Desired, desired};
use super::drift;
use super::governor::{Governor, failed};
use super::install::{self, Scripts};
use super::locate::Located;
use super::look::{Drift, Look, Repair};
use super::privilege::is_event_trigger;
use super::uninstall::{self, Progress};
use super::{Error, audit, fingerprint, preflight};
use crate::pg::{self, Connection, ensure_publication, quote_ident};
use crate::registry::{Baseline, Finding, GuardState, NewFinding, Source};
use crate::telemetry::ErrorChain;
use crate::vocab::{DatasetName, Lsn, SourceName};

/// How soon a repair that did not get its lock is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often a repair of one dataset asks for its lock before the next has its turn.
const ATTEMPTS: usize = 3;

impl Governor {
    /// Compares sources with the registry, at start, at every `guard_interval`, when the registry
    /// changes and when the guard reports a command on a governed table, and mends what it may,
    /// until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut timer = tokio::time::interval(self.options.guard_interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.registry.changes();
        let mut violations = self.registry.violations_live();
        let mut again: Option<Instant> = None;
        let mut failing: BTreeMap<SourceName, String> = BTreeMap::new();
        // Each source by itself: one that hangs keeps no other waiting.
        let mut looking = FuturesUnordered::new();
        let (mut busy, mut once_more) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let retry = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut wanted: BTreeSet<SourceName> = BTreeSet::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((name, outcome)) = looking.next(), if !looking.is_empty() => {
                    if !self.looked(&name, outcome, &mut failing) {
                        again = Some(Instant::now() + RETRY);
                    }
                    busy.remove(&name);
                    wanted.extend(once_more.take(&name));
                }
                _ = timer.tick() => wanted = self.sources(),
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    wanted = self.sources();
                }
                reported = violations.recv() => match reported {
                    // Rows are the trigger's affair; a command may have changed the trigger.
                    Ok(violation) if is_row(&violation.report.operation) => {}
                    // A reader that fell behind cannot know what it missed, so it looks.
                    Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        wanted = self.sources();
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
                () = retry => {
                    again = None;
                    wanted = self.sources();
                }
            }
            for name in wanted {
                if busy.insert(name.clone()) {
                    let governor = &self;
                    looking.push(async move {
                        let look = governor.reconcile(&name);
                        let deadline = governor.deadline() * 2;
                        let outcome = governor.within(&name, deadline, look).await;
                        (name, outcome)
                    });
                } else {
                    once_more.insert(name);
                }
            }
        }
    }

    fn sources(&self) -> BTreeSet<SourceName> {
        self.registry.snapshot().sources.keys().cloned().collect()
    }

    /// A source was looked at. Returns false when that has to be done again soon.
    fn looked(
        &self,
        name: &SourceName,
        outcome: Result<bool, Error>,
        failing: &mut BTreeMap<SourceName, String>,
    ) -> bool {
        let failed = match outcome {
            Ok(done) => {
                failing.remove(name);
                return done;
            }
            Err(error) => ErrorChain(&error).to_string(),
        };
        // Said once; the same again at every look would drown what else is said.
        if failing.get(name) != Some(&failed) {
            tracing::warn!(source = %name, error = failed, "guards could not be compared");
            failing.insert(name.clone(), failed);
        }
        true
    }

    /// Brings one source to what the registry says now. Returns false when a repair has to be tried
    /// again soon.
    async fn reconcile(&self, name: &SourceName) -> Result<bool, Error> {
        let turn = self.turn_of(name).await?;
        self.registry.refresh().await?;
        let Some(source) = self.registry.snapshot().sources.get(name).cloned() else {
            return Ok(true);
        };
        if source.leaving {
            drop(turn);
            return Ok(self.leave(&source).await? != Progress::Waiting);
        }
        let (sources, _) = desired(&self.registry.snapshot(), &[]);
        let Some(wanted) = sources.get(name) else { return Ok(true) };
        let client = self.open(name, wanted).await?;
        let fail = |cause| failed(name, cause);
        let baseline = self.registry.baseline(source.id).await?;
        let look = drift::look(&client, name, wanted, baseline.as_ref()).await.map_err(fail)?;
        let writers = self.registry.writers(source.id).await?;
        let facts = audit::look(&client, name, wanted, &writers).await.map_err(fail)?;
        let open = self.open_gaps(name);
        let untold: BTreeSet<DatasetName> =
            look.unguarded(wanted).into_iter().filter(|it| !open.contains(it)).collect();
        let untold: BTreeSet<DatasetName> =
            untold.into_iter().filter(|name| self.stood(name)).collect();
        if !untold.is_empty() {
            let since = baseline.as_ref().and_then(|baseline| baseline.sound);
            self.tell_off(&client, &untold, since).await.map_err(fail)?;
        }
        self.record(&source, &look, &facts).await?;
        if !install::exceptions_stand(&client, name, wanted).await.map_err(fail)? {
            self.mend_exceptions(&client, &source).await.map_err(fail)?;
        }
        let gaps: BTreeSet<DatasetName> = open.union(&untold).cloned().collect();
        let given_up = look.given_up(wanted);
        let to_close: BTreeSet<DatasetName> = gaps.difference(&given_up).cloned().collect();
        let pending = self.pending(name);
        if !look.repairable() && pending.is_empty() && to_close.is_empty() {
            if look.unguarded(wanted).is_empty() && baseline.is_some() {
                self.registry.baseline_sound(source.id, look.at).await?;
            }
            return Ok(true);
        }
        ensure_publication(&client, name).await.map_err(fail)?;
        let (mut done, mut denied) = (true, None);
        let mut late = Vec::new();
        if look.wants_scripts() {
            done &= allowed(
                self.mend_objects(&client, &source, wanted, baseline.as_ref(), &mut late).await,
                &mut denied,
            )?;
        }
        for drift in &look.drifts {
            if let Repair::Release(dataset) = &drift.repair {
                done &= allowed(self.mend_released(&client, &source, dataset).await, &mut denied)?;
            }
        }
        let mut to_mend: BTreeSet<DatasetName> = look
            .drifts
            .iter()
            .filter(|drift| drift.repair == Repair::Install)
            .filter_map(|drift| drift.finding.dataset.clone())
            .collect();
        to_mend.extend(to_close);
        to_mend.extend(pending.iter().cloned());
        for dataset in wanted.datasets.keys().filter(|dataset| to_mend.contains(*dataset)) {
            let was_off = gaps.contains(dataset);
            done &= allowed(
                self.mend(&client, &source, Some(dataset), was_off, &mut late).await,
                &mut denied,
            )?;
        }
        if to_mend.is_empty() && look.repairable() {
            done &=
                allowed(self.mend(&client, &source, None, false, &mut late).await, &mut denied)?;
        }
        if let Some(look) = look.with(late) {
            self.record(&source, &look, &facts).await?;
        }
        let baseline = self.registry.baseline(source.id).await?;
        let look = drift::look(&client, name, wanted, baseline.as_ref()).await.map_err(fail)?;
        self.record(&source, &look, &facts).await?;
        if done && !pending.is_empty() {
            self.installed(&BTreeSet::from([name.clone()])).await?;
        }
        denied.map_or(Ok(done), Err)
    }

    /// Permissions to break glass and services that were retired, as the registry has them by now.
    async fn mend_exceptions(&self, client: &Connection, source: &Source) -> Result<(), pg::Error> {
        install::begin(client, &self.options).await?;
        let refreshed = self.registry.refresh().await;
        let (sources, _) = desired(&self.registry.snapshot(), &[]);
        if let (Ok(_), Some(wanted)) = (refreshed, sources.get(&source.name))
            && install::exceptions(client, &source.name, wanted).await?
        {
            install::exceptions_followed(client).await?;
        }
        client.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// Datasets of a source whose guard is registered and not known to have been installed.
    fn pending(&self, source: &SourceName) -> BTreeSet<DatasetName> {
        let snapshot = self.registry.snapshot();
        let datasets = snapshot.datasets.values();
        datasets
            .filter(|it| it.name.source() == source && it.guard == GuardState::Pending)
            .map(|it| it.name.clone())
            .collect()
    }

    /// Datasets of a source that nobody vouches for, as capture has recorded.
    fn open_gaps(&self, source: &SourceName) -> BTreeSet<DatasetName> {
        let snapshot = self.registry.snapshot();
        let datasets = snapshot.datasets.values().filter(|it| it.name.source() == source);
        datasets
            .filter(|it| it.gaps.iter().any(|gap| gap.to.is_none()))
            .map(|it| it.name.clone())
            .collect()
    }

    /// Whether changes of a dataset count as verified unless something else is told.
    fn stood(&self, dataset: &DatasetName) -> bool {
        let snapshot = self.registry.snapshot();
        snapshot.datasets.get(dataset).is_some_and(|it| it.guard == GuardState::Installed)
    }

    /// Says in the stream, now, that these guards do not stand.
    async fn tell_off(
        &self,
        client: &Connection,
        datasets: &BTreeSet<DatasetName>,
        since: Option<Lsn>,
    ) -> Result<(), pg::Error> {
        client.batch_execute("BEGIN").await?;
        install::tell(client, datasets, false, since).await?;
        client.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// Records what a look found, and says once what is new and what is gone.
    async fn record(
        &self,
        source: &Source,
        look: &Look,
        facts: &[NewFinding],
    ) -> Result<(), Error> {
        let drifts = look.drifts.iter().map(|drift| drift.finding.clone());
        let found: Vec<NewFinding> = drifts.chain(facts.iter().cloned()).collect();
        let changed = self.registry.findings_record(source.id, &found).await?;
        for kind in drift::kind::ALL {
            let count = found.iter().filter(|finding| finding.kind == kind).count();
            let labels = [("source", source.name.to_string()), ("kind", kind.to_owned())];
            gauge!("cadastre_guard_drift_findings", &labels).set(count as f64);
        }
        let dataset = |finding: &Finding| finding.dataset.clone().unwrap_or_default();
        let is_drift = |finding: &&Finding| drift::kind::ALL.contains(&finding.kind.as_str());
        for finding in changed.opened.iter().filter(is_drift) {
            tracing::warn!(
                source = %finding.source, dataset = dataset(finding), kind = finding.kind,
                object = finding.object, found = finding.found, expected = finding.expected,
                "drift"
            );
        }
        for finding in changed.closed.iter().filter(is_drift) {
            tracing::info!(
                source = %finding.source, dataset = dataset(finding), kind = finding.kind,
                object = finding.object, "drift is mended"
            );
        }
        Ok(())
    }

    /// Runs the scripts again. Returns false when something it needs stayed locked.
    async fn mend_objects(
        &self,
        client: &Connection,
        source: &Source,
        wanted: &Desired,
        baseline: Option<&Baseline>,
        late: &mut Vec<Drift>,
    ) -> Result<bool, Error> {
        let nothing = Desired { datasets: BTreeMap::new(), ..wanted.clone() };
        let attempt = async {
            install::begin(client, &self.options).await?;
            let look = drift::look(client, &source.name, wanted, baseline).await?;
            late.extend(look.drifts.into_iter().filter(|it| it.repair == Repair::Scripts));
            install::install(client, &source.name, &nothing, Scripts::Always).await
        };
        let Some(installed) = self.given_up(client, source, attempt.await).await? else {
            return Ok(false);
        };
        let version = fingerprint::version();
        let known = baseline.filter(|baseline| baseline.version == version);
        let (objects, at) = installed.objects.unwrap_or_default();
        // What was foreign before is not made ours by running the scripts beside it, and a table or
        // a role is not redefined by them.
        let own = |(object, digest): (&String, &String)| (object.clone(), digest.clone());
        let objects: BTreeMap<String, String> = match known {
            None => objects,
            Some(known) => known
                .objects
                .iter()
                .filter_map(|(object, digest)| {
                    let kept =
                        ["table ", "index ", "role "].iter().any(|it| object.starts_with(it));
                    let now = if kept { Some(digest) } else { objects.get(object) };
                    Some((object.clone(), now?.clone()))
                })
                .chain(objects.iter().filter(|(object, _)| is_event_trigger(object)).map(own))
                .collect(),
        };
        self.registry.baseline_put(source.id, &version, &objects, at).await?;
        self.commit(client, source).await?;
        Ok(true)
    }

    /// Takes what is left of a released dataset out of the source.
    async fn mend_released(
        &self,
        client: &Connection,
        source: &Source,
        dataset: &DatasetName,
    ) -> Result<bool, Error> {
        let attempt = async {
            install::begin(client, &self.options).await?;
            // Another instance may have registered it while this one waited for the lock.
            let refreshed = self.registry.refresh().await;
            let (sources, _) = desired(&self.registry.snapshot(), &[]);
            let wanted = sources.get(&source.name);
            if refreshed.is_err() || wanted.is_some_and(|it| it.datasets.contains_key(dataset)) {
                return Ok(());
            }
            uninstall::release(client, &source.name, dataset).await
        };
        let released = self.given_up(client, source, attempt.await).await?;
        if released.is_some() {
            self.commit(client, source).await?;
        }
        Ok(released.is_some())
    }

    /// Installs one dataset (or only roles and publication), and tells that its guard stands again
    /// if it was told that it does not. What it mends goes to `late`. Returns false when a table
    /// stayed locked.
    async fn mend(
        &self,
        client: &Connection,
        source: &Source,
        dataset: Option<&DatasetName>,
        was_off: bool,
        late: &mut Vec<Drift>,
    ) -> Result<bool, Error> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_jitter()
            .with_max_times(ATTEMPTS - 1)
            .build();
        loop {
            let attempt = self.try_mend(client, source, dataset, was_off, late).await;
            let Some(changed) = self.given_up(client, source, attempt).await? else {
                let Some(pause) = pauses.next() else { return Ok(false) };
                tokio::time::sleep(pause).await;
                continue;
            };
            self.commit(client, source).await?;
            for dataset in &changed {
                counter!("cadastre_guard_repairs_total", "source" => source.name.to_string())
                    .increment(1);
                tracing::warn!(source = %source.name, %dataset, "guard installed again");
            }
            return Ok(true);
        }
    }

    /// One attempt at [`Governor::mend`], up to the commit.
    async fn try_mend(
        &self,
        client: &Connection,
        source: &Source,
        dataset: Option<&DatasetName>,
        was_off: bool,
        late: &mut Vec<Drift>,
    ) -> Result<Vec<DatasetName>, pg::Error> {
        install::begin(client, &self.options).await?;
        // Another instance may have changed both sides while this one waited for the lock.
        if self.registry.refresh().await.is_err() {
            return Ok(Vec::new());
        }
        let (mut sources, _) = desired(&self.registry.snapshot(), &[]);
        let Some(mut wanted) = sources.remove(&source.name) else { return Ok(Vec::new()) };
        wanted.datasets.retain(|name, _| Some(name) == dataset);
        // Tables that are gone or cannot be governed now are findings; they must not keep the others
        // from being guarded.
        let located = Located::load(client).await?;
        if let Some(name) = dataset
            && !preflight::table(client, (name, &located.of(name)), &[], false).await?.is_empty()
        {
            wanted.datasets.clear();
        }
        let guarded = dataset.filter(|name| wanted.datasets.contains_key(*name));
        if let Some(name) = guarded {
            // No command on the table passes this lock; writers do.
            let at = located.of(name);
            let table = format!("{}.{}", quote_ident(&at.schema), quote_ident(&at.table));
            client.batch_execute(&format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE")).await?;
        }
        let baseline = self.registry.baseline(source.id).await.ok().flatten();
        let look = drift::look(client, &source.name, &wanted, baseline.as_ref()).await?;
        let told = was_off || guarded.is_none_or(|name| !self.stood(name));
        let untold = if told { BTreeSet::new() } else { look.unguarded(&wanted) };
        let since = baseline.as_ref().and_then(|baseline| baseline.sound);
        install::tell(client, &untold, false, since).await?;
        late.extend(look.drifts.into_iter().filter(|it| {
            it.repair == Repair::Install
                && it.finding.dataset.as_ref().is_none_or(|name| Some(name) == dataset)
        }));
        let installed =
            install::install(client, &source.name, &wanted, Scripts::IfOutdated).await?;
        if let Some(name) = guarded.filter(|_| was_off || !untold.is_empty()) {
            let look = drift::look(client, &source.name, &wanted, baseline.as_ref()).await?;
            if baseline.is_some() && look.unguarded(&wanted).is_empty() {
                install::tell(client, [name], true, None).await?;
            }
        }
        Ok(installed.changed)
    }

    /// What an attempt gave; `None`, with everything taken back, when it did not get a lock in time.
    async fn given_up<T>(
        &self,
        client: &Connection,
        source: &Source,
        attempt: Result<T, pg::Error>,
    ) -> Result<Option<T>, Error> {
        let fail = |cause| failed(&source.name, cause);
        match attempt {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                client.batch_execute("ROLLBACK").await.map_err(|error| fail(error.into()))?;
                if error.is_lock_timeout() { Ok(None) } else { Err(fail(error)) }
            }
        }
    }

    async fn commit(&self, client: &Connection, source: &Source) -> Result<(), Error> {
        let committed = client.batch_execute("COMMIT").await;
        committed.map_err(|error| failed(&source.name, error.into()))
    }
}

/// A repair that the role may not make keeps no other from being made, and is said at the end.
fn allowed(outcome: Result<bool, Error>, denied: &mut Option<Error>) -> Result<bool, Error> {
    match outcome {
        Err(Error::Source { source_name, cause }) if cause.is_denied() => {
            *denied = Some(Error::Source { source_name, cause });
            Ok(true)
        }
        other => other,
    }
}

/// Whether an operation is one on rows.
fn is_row(operation: &str) -> bool {
    matches!(operation, "INSERT" | "UPDATE" | "DELETE" | "TRUNCATE")
}
