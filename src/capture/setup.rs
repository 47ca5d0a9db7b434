//! Before the stream: publication and slot exist, and what is found is compared with what was last
//! known, so that the feed goes on only where it really goes on.
//!
//! ```text
//! slot, then record, then cluster ──► judge ──► goes on ───────────────────────► stream
//!                                       └─────► broken: next epoch ──► gap in the log ──► stream
//! ```
//!
//! PostgreSQL does not say any of this by itself: a stream that is asked to begin before the slot's
//! confirmed position silently begins there, a slot has no identity but its name, and a database
//! restored from a copy gives new changes LSNs that were used before.
//!
//! What was confirmed is written down before it is confirmed ([`confirm`](super::confirm)), so a
//! slot that was confirmed further is another one, or was moved by somebody else. The cluster's
//! identifier and timeline tell another cluster; on a later timeline of the same one, history up to
//! the switch is shared. A copy that was put back on the same timeline is told by WAL that ends
//! before what was confirmed, or by a heartbeat that its stream should repeat and does not
//! ([`Retrace`]).

use std::convert::Infallible;

use chrono::Utc;
use metrics::counter;
use tokio::time::timeout;

use super::Error;
use super::stream::{Identity, Wire};
use crate::config::PostgresOptions;
use crate::log::{Batch, BatchBuilder, Gap, GapReason, Writer};
use crate::pg::{self, Connection, SlotState};
use crate::registry::{Dataset, Registry, SlotRecord, Source, Standing, Switch};
use crate::vocab::{DatasetName, Epoch, Lsn, Op, Position};

/// A governed table that is not published.
const UNPUBLISHED: &str = "
    SELECT d.name FROM cadastre.dataset d JOIN pg_class c ON c.oid = d.relid
    WHERE NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                      WHERE p.pubname = $1 AND r.prrelid = d.relid)
    ORDER BY d.name LIMIT 1";

/// From where a session goes on.
#[derive(Debug)]
pub(super) struct Start {
    /// The epoch of the positions to come.
    pub(super) epoch: Epoch,
    /// Changes up to here were handled before.
    pub(super) seen: Position,
    /// What the stream has to repeat, if it begins before that.
    pub(super) retrace: Option<Retrace>,
}

/// A heartbeat that was read before and that the stream, beginning before it, has to contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Retrace {
    lsn: Lsn,
    id: String,
}

impl Retrace {
    /// Whether a stream that begins here repeats it. Where it begins is certain only once it
    /// streams: until then the walsender of an instance that died may still take what that one
    /// confirmed last.
    pub(super) fn is_from(&self, begins: Lsn) -> bool {
        begins <= self.lsn
    }

    /// Whether this is that heartbeat; [`Error::Diverged`] when the stream is past it.
    pub(super) fn heartbeat(&self, lsn: Lsn, id: &str) -> Result<bool, Error> {
        if lsn == self.lsn && id == self.id {
            return Ok(true);
        }
        self.reached(lsn)?;
        Ok(false)
    }

    /// [`Error::Diverged`] when the stream has got past the heartbeat without it.
    pub(super) fn reached(&self, lsn: Lsn) -> Result<(), Error> {
        if lsn > self.lsn { Err(Error::Diverged { at: self.lsn }) } else { Ok(()) }
    }
}

/// What the source is now.
#[derive(Debug)]
struct Found {
    identity: Identity,
    /// Where each earlier timeline ended.
    history: Vec<(u32, Lsn)>,
    /// The end of its WAL.
    wal_end: Lsn,
    slot: Option<SlotState>,
}

/// What is needed to find out.
pub(super) struct Setup<'a> {
    /// The source's own database.
    pub(super) catalog: &'a Connection,
    /// The source.
    pub(super) source: &'a Source,
    /// The name of that database.
    pub(super) database: &'a str,
    /// Where it is written down.
    pub(super) registry: &'a Registry,
    /// Deadlines.
    pub(super) postgres: &'a PostgresOptions,
}

impl Setup<'_> {
    /// Makes sure of the publication, then of the slot (in this order: a slot decodes with the
    /// catalog of its time, and fails for ever on a publication that did not exist then), and finds
    /// out from where the stream goes on.
    ///
    /// When it does not go on, the next epoch is begun and [`Error::Broken`] returned: the session
    /// after this one, with a writer that knows nothing of the old LSNs, announces the gap.
    pub(super) async fn start(&self, wire: &mut Wire, writer: &mut Writer) -> Result<Start, Error> {
        let Self { catalog, source, registry, .. } = self;
        let name = source.name.slot();
        if pg::in_recovery(catalog).await? {
            return Err(Error::Standby);
        }
        pg::ensure_publication(catalog, &source.name).await?;
        // The slot first: another instance may be streaming, and writes down before it confirms.
        let slot = pg::slot_state(catalog, &name).await?;
        let record = registry.slot_record(source.id).await?;
        let identity = wire.identify().await?;
        let history = match &record {
            Some(record) if record.timeline < identity.timeline => {
                wire.timeline_history(identity.timeline).await?
            }
            _ => Vec::new(),
        };
        let wal_end = pg::wal_end(catalog).await?;
        let found = Found { identity, history, wal_end, slot };
        let epoch = self.epoch(writer);
        match record {
            None if found.slot.is_none() && writer.last() != Position::MIN => {
                let record = found.record(Lsn::ZERO);
                Err(self.end(epoch, record, GapReason::SlotLost, writer.last()).await)
            }
            None => {
                let slot = self.fresh_slot(found.slot.as_ref()).await?;
                self.keep(&found.record(slot.confirmed)).await?;
                Ok(Start { epoch, seen: writer.last(), retrace: None })
            }
            Some(SlotRecord { broken: Some(reason), .. }) => {
                self.published().await?;
                let slot = self.fresh_slot(found.slot.as_ref()).await?;
                self.ownership(epoch).await?;
                if writer.last().epoch() < epoch {
                    self.announce(epoch, &reason, slot.confirmed, writer).await?;
                }
                self.keep(&found.record(slot.confirmed)).await?;
                Ok(Start { epoch, seen: writer.last(), retrace: None })
            }
            Some(record) => match judge(&record, &found) {
                Some(reason) => Err(self.end(epoch, record, reason, writer.last()).await),
                None => {
                    let retrace = record.heartbeat.clone().map(|(lsn, id)| Retrace { lsn, id });
                    let seen = handled(epoch, record.confirmed).max(writer.last());
                    if record.timeline != found.identity.timeline {
                        let timeline = found.identity.timeline;
                        tracing::info!(source = %source.name, timeline, "goes on after a promotion");
                        self.keep(&SlotRecord { timeline, ..record }).await?;
                    }
                    Ok(Start { epoch, seen, retrace })
                }
            },
        }
    }

    /// Ends continuity: what the stream should have repeated is not in it.
    pub(super) async fn diverged(&self, writer: &Writer) -> Error {
        match self.registry.slot_record(self.source.id).await {
            Ok(Some(record)) if record.broken.is_none() => {
                let epoch = self.epoch(writer);
                self.end(epoch, record, GapReason::SourceReplaced, writer.last()).await
            }
            Ok(_) => Error::Broken { reason: GapReason::SourceReplaced.as_str() },
            Err(error) => error.into(),
        }
    }

    /// The source's epoch: what the registry says, and no earlier than what the log holds.
    fn epoch(&self, writer: &Writer) -> Epoch {
        let snapshot = self.registry.snapshot();
        let known = snapshot.sources.get(&self.source.name);
        known.map_or(self.source.epoch, |source| source.epoch).max(writer.last().epoch())
    }

    async fn keep(&self, record: &SlotRecord) -> Result<(), Error> {
        Ok(self.registry.slot_record_put(self.source.id, record).await?)
    }

    /// A slot that can be streamed: the one there is, or a new one in place of none or a lost one.
    async fn fresh_slot(&self, found: Option<&SlotState>) -> Result<SlotState, Error> {
        let name = self.source.name.slot();
        match found {
            Some(slot) if slot.lost.is_none() => return Ok(slot.clone()),
            Some(_) => pg::drop_slot(self.catalog, &name).await?,
            None => {}
        }
        pg::ensure_slot(self.catalog, &name).await?;
        let made = pg::slot_state(self.catalog, &name).await?;
        made.ok_or_else(|| Error::SlotGone { slot: name })
    }

    /// Begins the next epoch, in which positions increase although LSNs may not.
    async fn end(
        &self,
        epoch: Epoch,
        record: SlotRecord,
        reason: GapReason,
        last: Position,
    ) -> Error {
        let Self { source, registry, .. } = self;
        let reason = reason.as_str();
        let Some(next) = epoch.get().checked_add(1).map(Epoch::new) else {
            return Error::EpochsExhausted { last };
        };
        let record = SlotRecord { broken: Some(reason.to_owned()), ..record };
        if let Err(error) = registry.epoch_begin(source.id, next, &record).await {
            return error.into();
        }
        tracing::error!(
            source = %source.name, position = %last, epoch = next.get(), reason,
            "changes are missing from here on until the stream begins anew"
        );
        counter!("cadastre_capture_gaps_total", "source" => source.name.to_string(), "reason" => reason)
            .increment(1);
        Error::Broken { reason }
    }

    /// [`Error::Unpublished`] when a table that is governed is not in the publication: a gap that was
    /// announced now would end before its changes are in the stream again.
    async fn published(&self) -> Result<(), Error> {
        if !self.governed().await? {
            return Ok(());
        }
        let publication = self.source.name.publication();
        let missing = self.catalog.query_opt(UNPUBLISHED, &[&publication]).await;
        match missing.map_err(pg::Error::from)? {
            None => Ok(()),
            Some(row) => {
                let dataset = row.try_get(0).map_err(pg::Error::from)?;
                Err(Error::Unpublished { dataset, publication })
            }
        }
    }

    /// Whether the guard is installed.
    async fn governed(&self) -> Result<bool, Error> {
        let governed = "SELECT to_regclass('cadastre.dataset') IS NOT NULL";
        let row = self.catalog.query_one(governed, &[]).await.map_err(pg::Error::from)?;
        Ok(row.try_get(0).map_err(pg::Error::from)?)
    }

    /// Notes whose each dataset is, as the source itself holds it where the new epoch begins: what
    /// the stream would have said of it may be in the gap.
    async fn ownership(&self, epoch: Epoch) -> Result<(), Error> {
        let Self { catalog, source, registry, .. } = self;
        if !self.governed().await? {
            return Ok(());
        }
        let held = "SELECT name, owner, mode FROM cadastre.dataset";
        let snapshot = registry.snapshot();
        let mut switches = Vec::new();
        for row in catalog.query(held, &[]).await.map_err(pg::Error::from)? {
            let column = |index| row.try_get::<_, &str>(index).map_err(pg::Error::from);
            let (name, owner, mode) = (column(0)?, column(1)?, column(2)?);
            let name = name.parse::<DatasetName>().ok();
            let dataset = name.and_then(|name| snapshot.datasets.get(&name));
            if let (Some(dataset), Ok(owner), Ok(mode)) = (dataset, owner.parse(), mode.parse()) {
                switches.push(Switch {
                    dataset: dataset.id,
                    position: Position::new(epoch, Lsn::ZERO, 0),
                    before: None,
                    after: Standing { owner, mode },
                    transfer: None,
                });
            }
        }
        if !switches.is_empty() {
            tracing::info!(source = %source.name, datasets = switches.len(), "owners as the source has them");
            registry.switches_record(&switches).await?;
        }
        Ok(())
    }

    /// Puts a gap event for each dataset of the source into the log, before everything that the
    /// stream from `begins` on will bring, and waits until it is durable.
    async fn announce(
        &self,
        epoch: Epoch,
        reason: &str,
        begins: Lsn,
        writer: &mut Writer,
    ) -> Result<(), Error> {
        let Some(batch) = self.gaps(epoch, reason, begins, writer.last()) else { return Ok(()) };
        let mut durable = writer.durable();
        writer.append(batch, Some(begins)).await?;
        let deadline = self.postgres.statement_timeout * 2;
        match timeout(deadline, durable.wait_for(|durable| *durable >= begins)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::Unannounced),
        }
    }

    /// The gap events; `None` when the source has no dataset.
    fn gaps(&self, epoch: Epoch, reason: &str, begins: Lsn, from: Position) -> Option<Batch> {
        let reason = GapReason::ALL.into_iter().find(|known| known.as_str() == reason);
        let reason = reason.unwrap_or(GapReason::SlotLost);
        let snapshot = self.registry.snapshot();
        let of_source = |dataset: &&std::sync::Arc<Dataset>| dataset.source_id == self.source.id;
        let mut datasets: Vec<_> = snapshot.datasets.values().filter(of_source).collect();
        datasets.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let names: Vec<DatasetName> = datasets.iter().map(|it| it.name.clone()).collect();
        // The first transaction to come may commit at `begins` itself.
        let before = Lsn::new(begins.get().saturating_sub(1));
        let mut builder = BatchBuilder::new();
        for (ordinal, dataset) in (1..).zip(datasets) {
            let position = Position::new(epoch, before, ordinal);
            let gap = Gap {
                source: &self.source.name,
                database: Some(self.database),
                dataset: &dataset.name,
                datasets: &names,
                reason,
                from,
                to: Position::new(epoch, before, 0),
                position,
                now_ms: Utc::now().timestamp_millis(),
            };
            let Ok(()) = builder.push(position, dataset.id, Op::Gap, |out| {
                gap.encode(out);
                Ok::<(), Infallible>(())
            });
        }
        builder.finish()
    }
}

impl Found {
    /// What is written down of it.
    fn record(&self, confirmed: Lsn) -> SlotRecord {
        let Identity { system_identifier, timeline } = self.identity.clone();
        SlotRecord { system_identifier, timeline, confirmed, heartbeat: None, broken: None }
    }
}

/// Everything that committed before `confirmed`: at it, the next transaction may commit.
fn handled(epoch: Epoch, confirmed: Lsn) -> Position {
    match confirmed.get().checked_sub(1) {
        Some(before) => Position::new(epoch, Lsn::new(before), u32::MAX),
        None => Position::MIN,
    }
}

/// Why what was found does not go on from what was known; `None` when it does.
fn judge(record: &SlotRecord, found: &Found) -> Option<GapReason> {
    let Found { identity, history, wal_end, slot } = found;
    if identity.system_identifier != record.system_identifier
        || identity.timeline < record.timeline
        || *wal_end < record.confirmed
    {
        return Some(GapReason::SourceReplaced);
    }
    if identity.timeline > record.timeline {
        let ended = history.iter().find(|(timeline, _)| *timeline == record.timeline);
        // What was handled and is not in the shared history was lost in the promotion.
        if ended.is_none_or(|(_, end)| *end < record.confirmed) {
            return Some(GapReason::SourceReplaced);
        }
    }
    match slot {
        Some(slot) if slot.lost.is_none() && slot.confirmed <= record.confirmed => None,
        Some(_) | None => Some(GapReason::SlotLost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> SlotRecord {
        SlotRecord {
            system_identifier: "7".to_owned(),
            timeline: 3,
            confirmed: Lsn::new(100),
            heartbeat: None,
            broken: None,
        }
    }

    fn found() -> Found {
        let identity = Identity { system_identifier: "7".to_owned(), timeline: 3 };
        let slot = Some(SlotState { confirmed: Lsn::new(100), lost: None });
        Found { identity, history: vec![], wal_end: Lsn::new(100), slot }
    }

    #[test]
    fn what_was_known_goes_on() {
        assert_eq!(judge(&known(), &found()), None);
        let behind = SlotState { confirmed: Lsn::new(1), lost: None };
        assert_eq!(judge(&known(), &Found { slot: Some(behind), ..found() }), None);
        assert_eq!(judge(&known(), &Found { wal_end: Lsn::new(101), ..found() }), None);
    }

    #[test]
    fn a_slot_that_is_gone_lost_or_another_one_is_a_gap() {
        let ahead = SlotState { confirmed: Lsn::new(101), lost: None };
        let lost = SlotState { confirmed: Lsn::new(100), lost: Some("wal_removed".to_owned()) };
        for slot in [None, Some(ahead), Some(lost)] {
            let found = Found { slot, ..found() };
            assert_eq!(judge(&known(), &found), Some(GapReason::SlotLost), "{found:?}");
        }
    }

    #[test]
    fn another_cluster_or_an_older_state_of_it_is_a_gap() {
        let other = Identity { system_identifier: "8".to_owned(), timeline: 3 };
        let older = Identity { timeline: 2, ..found().identity };
        for found in [
            Found { identity: other, ..found() },
            Found { identity: older, ..found() },
            Found { wal_end: Lsn::new(99), ..found() },
        ] {
            assert_eq!(judge(&known(), &found), Some(GapReason::SourceReplaced), "{found:?}");
        }
    }

    #[test]
    fn after_a_promotion_what_counts_is_where_the_timelines_part() {
        let promoted = |end| Found {
            identity: Identity { timeline: 5, ..found().identity },
            history: vec![(2, Lsn::new(50)), (3, Lsn::new(end)), (4, Lsn::new(500))],
            ..found()
        };
        assert_eq!(judge(&known(), &promoted(100)), None);
        assert_eq!(judge(&known(), &promoted(99)), Some(GapReason::SourceReplaced));
        let stranger = Found { history: vec![(2, Lsn::new(500))], ..promoted(100) };
        assert_eq!(judge(&known(), &stranger), Some(GapReason::SourceReplaced));
        let without_slot = Found { slot: None, ..promoted(100) };
        assert_eq!(judge(&known(), &without_slot), Some(GapReason::SlotLost));
    }

    #[test]
    fn what_commits_at_the_confirmed_position_was_not_handled() {
        let at = |lsn| Position::new(Epoch::FIRST, Lsn::new(lsn), 1);
        let handled = handled(Epoch::FIRST, Lsn::new(100));
        assert!(at(99) <= handled && at(100) > handled);
    }

    #[test]
    fn a_heartbeat_that_does_not_come_again_is_noticed() {
        let retrace = Retrace { lsn: Lsn::new(50), id: "a-1".to_owned() };
        assert!(!retrace.heartbeat(Lsn::new(40), "a-0").unwrap());
        assert!(retrace.reached(Lsn::new(50)).is_ok());
        assert!(retrace.heartbeat(Lsn::new(50), "a-1").unwrap());
        assert!(!retrace.heartbeat(Lsn::new(50), "b-7").unwrap());
        assert!(retrace.heartbeat(Lsn::new(51), "a-1").is_err());
        assert!(retrace.reached(Lsn::new(51)).is_err());
    }
}
