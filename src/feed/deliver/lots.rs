//! The changes of one subscription that are under way, and what of them may move.
//!
//! ```text
//!  ··· settled ···│ stored: rows in subscription_held │ window: in memory, after the cursor │ log
//!                                                cursor ┘                           examined ┘
//! ```
//!
//! What is delivered, filtered or parked leaves. What fails, or is behind one that failed, gets a row
//! when the cursor passes it, so that one bad change does not hold the cursor and with it the log.
//! Pure: the runner carries out what is planned here.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};

use crate::feed::subscription::held::{Barred, Held, Item, Room};
use crate::feed::subscription::{Checksum, Mark};
use crate::vocab::{Position, limits};

/// One change under way.
#[derive(Debug)]
pub(super) struct Lot {
    pub(super) held: Held,
    /// In memory as long as it has no row.
    pub(super) item: Option<Item>,
    /// It has a row: the cursor has passed it.
    pub(super) stored: bool,
    /// The row says something else.
    pub(super) dirty: bool,
    pub(super) stage: Stage,
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// For its turn, or for a pause to end.
    Waits,
    /// It is being sent.
    Out,
    Delivered,
    Filtered,
    Parked,
}

/// All changes under way.
#[derive(Debug)]
pub(super) struct Lots {
    lots: BTreeMap<Mark, Lot>,
    /// Keys of parked changes, if these block.
    blocked: HashSet<i64>,
    blocks: bool,
    stored: usize,
    window_changes: usize,
    window_bytes: usize,
}

/// What can be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// These, in order, together.
    Send(Vec<Mark>),
    /// Nothing, until then or until something changes.
    Nothing { until: Option<DateTime<Utc>> },
}

/// What one transaction writes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The cursor afterwards, unless it stays.
    pub(super) cursor: Option<Position>,
    pub(super) logged: i64,
    pub(super) filtered: i64,
    pub(super) delivered: i64,
    pub(super) checksum: Checksum,
    /// Get a row.
    pub(super) store: Vec<Mark>,
    /// Are parked without ever having had a row.
    pub(super) park: Vec<Mark>,
    /// Had a row and are delivered.
    pub(super) gone: Vec<Mark>,
    /// Had a row and are parked.
    pub(super) park_stored: Vec<Mark>,
    /// Have a row that says something else.
    pub(super) update: Vec<Mark>,
}

impl Lots {
    /// What is held already; with `blocks`, nothing overtakes a parked change of these keys.
    pub(super) fn new(held: Vec<Held>, parked: Vec<i64>, blocks: bool) -> Self {
        let stored = held.len();
        let lot = |held: Held| {
            let stage = Stage::Waits;
            (held.position, Lot { held, item: None, stored: true, dirty: false, stage })
        };
        Self {
            lots: held.into_iter().map(lot).collect(),
            blocked: if blocks { parked.into_iter().collect() } else { HashSet::new() },
            blocks,
            stored,
            window_changes: 0,
            window_bytes: 0,
        }
    }

    /// Whether more may be read from the log.
    pub(super) fn has_room(&self) -> bool {
        self.window_changes < limits::DELIVERY_WINDOW_CHANGES_MAX
            && self.window_bytes < limits::DELIVERY_WINDOW_BYTES_MAX
    }

    /// Whether no more may be held.
    pub(super) fn is_full(&self) -> bool {
        self.stored >= limits::SUBSCRIPTION_HELD_MAX
    }

    /// Adds a change from the log, wanted or not.
    pub(super) fn push(&mut self, item: Item, wanted: bool) {
        let bytes = if wanted { item.json.len() } else { 0 };
        let held = Held {
            position: item.position,
            keys: item.keys.clone(),
            attempts: 0,
            tried: Vec::new(),
            due: DateTime::UNIX_EPOCH,
            lease: None,
            bytes,
            letter: None,
        };
        self.window_changes += 1;
        self.window_bytes += bytes;
        let stage = if wanted { Stage::Waits } else { Stage::Filtered };
        let item = wanted.then_some(item);
        self.lots.insert(held.position, Lot { held, item, stored: false, dirty: false, stage });
    }

    pub(super) fn get(&self, position: Mark) -> Option<&Lot> {
        self.lots.get(&position)
    }

    fn has_row(&self, position: Mark) -> bool {
        self.lots.get(&position).is_some_and(|lot| lot.stored)
    }

    pub(super) fn get_mut(&mut self, position: Mark) -> Option<&mut Lot> {
        self.lots.get_mut(&position)
    }

    /// What waits for a pause to end waits no longer: the receiver is back.
    pub(super) fn all_due(&mut self, now: DateTime<Utc>) {
        for lot in self.lots.values_mut().filter(|lot| lot.stage == Stage::Waits) {
            lot.held.due = lot.held.due.min(now);
        }
    }

    /// What can be sent at `now`. A change that has failed goes alone; so does a probe, for which the
    /// one that failed least is taken. Those with a row and those without do not go together.
    pub(super) fn choose(&self, now: DateTime<Utc>, mut room: Room, probe: bool) -> Choice {
        let mut barred = Barred::new(self.blocked.iter().copied());
        let mut chosen = Vec::new();
        let mut until: Option<DateTime<Utc>> = None;
        let mut best: Option<(usize, Mark)> = None;
        for (position, lot) in &self.lots {
            match lot.stage {
                Stage::Delivered | Stage::Filtered => continue,
                Stage::Parked => {
                    if self.blocks {
                        barred.block(&lot.held.keys);
                    }
                    continue;
                }
                Stage::Out => {
                    barred.bar(&lot.held.keys);
                    continue;
                }
                Stage::Waits => {}
            }
            if barred.bars(&lot.held.keys) {
                continue;
            }
            if lot.held.due > now {
                until = Some(until.map_or(lot.held.due, |until| until.min(lot.held.due)));
                barred.bar(&lot.held.keys);
                continue;
            }
            let alone = !lot.held.tried.is_empty();
            if probe {
                let failed = lot.held.tried.len();
                if best.is_none_or(|(least, _)| failed < least) {
                    best = Some((failed, *position));
                }
                if failed == 0 {
                    break;
                }
                barred.bar(&lot.held.keys);
            } else if alone {
                if chosen.is_empty() {
                    return Choice::Send(vec![*position]);
                }
                barred.bar(&lot.held.keys);
            } else if chosen.first().is_none_or(|first| self.has_row(*first) == lot.stored)
                && room.take(lot.held.bytes, chosen.is_empty())
            {
                chosen.push(*position);
            } else {
                break;
            }
        }
        chosen.extend(best.map(|(_, position)| position));
        if chosen.is_empty() { Choice::Nothing { until } } else { Choice::Send(chosen) }
    }

    /// What can be written, with the log examined up to `examined`.
    pub(super) fn plan(&self, cursor: Position, examined: Position) -> Plan {
        let mut plan = Plan::default();
        let mut barred = Barred::new(self.blocked.iter().copied());
        let mut room = limits::SUBSCRIPTION_HELD_MAX.saturating_sub(self.stored);
        let mut passes = true;
        for (position, lot) in &self.lots {
            let keys = &lot.held.keys;
            if lot.stage == Stage::Parked && self.blocks {
                barred.block(keys);
            }
            if lot.stored {
                match lot.stage {
                    Stage::Delivered | Stage::Filtered => plan.gone.push(*position),
                    Stage::Parked => plan.park_stored.push(*position),
                    Stage::Waits | Stage::Out => {
                        if lot.dirty && lot.stage == Stage::Waits {
                            plan.update.push(*position);
                        }
                        if !barred.bars(keys) {
                            barred.bar(keys);
                        }
                    }
                }
                continue;
            }
            match lot.stage {
                Stage::Delivered => {
                    plan.delivered += 1;
                    plan.checksum.add(*position);
                }
                Stage::Filtered => plan.filtered += 1,
                Stage::Parked => plan.park.push(*position),
                Stage::Out => passes = false,
                Stage::Waits => {
                    let behind = barred.bars(keys);
                    if (behind || !lot.held.tried.is_empty()) && room > 0 {
                        if !behind {
                            barred.bar(keys);
                        }
                        plan.store.push(*position);
                        room -= 1;
                    } else {
                        passes = false;
                    }
                }
            }
            if !passes {
                break;
            }
            plan.logged += 1;
            plan.cursor = Some(position.position());
        }
        if passes {
            plan.cursor = plan.cursor.max(Some(examined));
        }
        plan.cursor = plan.cursor.filter(|planned| *planned > cursor);
        plan
    }

    /// The plan has been carried out.
    pub(super) fn done(&mut self, plan: &Plan) {
        for position in plan.park.iter().chain(&plan.park_stored) {
            if let Some(lot) = self.lots.get(position)
                && self.blocks
            {
                self.blocked.extend(&lot.held.keys);
            }
        }
        for position in &plan.store {
            if let Some(lot) = self.lots.get_mut(position) {
                (lot.stored, lot.dirty, lot.item) = (true, false, None);
                self.stored += 1;
                self.window_changes -= 1;
                self.window_bytes -= lot.held.bytes;
            }
        }
        for position in &plan.update {
            if let Some(lot) = self.lots.get_mut(position) {
                lot.dirty = false;
            }
        }
        let (mut stored, mut changes, mut bytes) = (0, 0, 0);
        self.lots.retain(|position, lot| {
            let settled = matches!(lot.stage, Stage::Delivered | Stage::Filtered | Stage::Parked);
            let passed =
                lot.stored || plan.cursor.is_some_and(|cursor| position.position() <= cursor);
            if settled && passed {
                if lot.stored {
                    stored += 1;
                } else {
                    changes += 1;
                    bytes += lot.held.bytes;
                }
            }
            !(settled && passed)
        });
        self.stored -= stored;
        self.window_changes -= changes;
        self.window_bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::TimeDelta;

    use super::*;
    use crate::feed::subscription::Attempt;
    use crate::vocab::{Epoch, Lsn, Op};

    fn position(n: u32) -> Mark {
        at(n).into()
    }

    fn at(n: u32) -> Position {
        Position::new(Epoch::FIRST, Lsn::new(1), n)
    }

    fn lots(keys: &[&[i64]]) -> Lots {
        let mut lots = Lots::new(Vec::new(), Vec::new(), true);
        for (n, keys) in (1..).zip(keys) {
            let item = Item {
                position: position(n),
                dataset: "shop.public.orders".to_owned(),
                op: Op::Create,
                keys: keys.to_vec(),
                json: Bytes::from_static(b"{}"),
            };
            lots.push(item, true);
        }
        lots
    }

    fn stage(lots: &mut Lots, n: u32, stage: Stage) {
        lots.get_mut(position(n)).unwrap().stage = stage;
    }

    fn fail(lots: &mut Lots, n: u32) {
        let lot = lots.get_mut(position(n)).unwrap();
        lot.held.tried.push(Attempt { at: now(), error: "no".to_owned() });
        lot.held.due = now() + TimeDelta::seconds(1);
        (lot.stage, lot.dirty) = (Stage::Waits, lot.stored);
    }

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn chosen(lots: &Lots, changes: usize, probe: bool) -> Vec<u32> {
        match lots.choose(now(), Room { changes, bytes: 1000 }, probe) {
            Choice::Send(chosen) => {
                chosen.iter().map(|position| position.position().ordinal()).collect()
            }
            Choice::Nothing { .. } => Vec::new(),
        }
    }

    fn ordinals(positions: &[Mark]) -> Vec<u32> {
        positions.iter().map(|position| position.position().ordinal()).collect()
    }

    #[test]
    fn what_shares_no_key_may_be_under_way_at_the_same_time() {
        let mut lots = lots(&[&[1], &[2], &[1]]);
        assert_eq!(chosen(&lots, 1, false), [1]);
        stage(&mut lots, 1, Stage::Out);
        assert_eq!(chosen(&lots, 10, false), [2], "the third waits for the first");
        stage(&mut lots, 1, Stage::Delivered);
        assert_eq!(chosen(&lots, 10, false), [2, 3]);
    }

    #[test]
    fn the_cursor_passes_what_is_settled_and_stops_at_what_is_out() {
        let mut lots = lots(&[&[1], &[2], &[3]]);
        stage(&mut lots, 1, Stage::Out);
        stage(&mut lots, 2, Stage::Delivered);
        assert_eq!(lots.plan(at(0), at(3)), Plan::default());
        stage(&mut lots, 1, Stage::Delivered);
        let plan = lots.plan(at(0), at(3));
        assert_eq!((plan.cursor, plan.logged, plan.delivered), (Some(at(2)), 2, 2));
        lots.done(&plan);
        assert_eq!(lots.plan(at(2), at(3)), Plan::default());
        stage(&mut lots, 3, Stage::Filtered);
        let plan = lots.plan(at(2), at(9));
        assert_eq!((plan.cursor, plan.filtered), (Some(at(9)), 1), "up to where it looked");
        lots.done(&plan);
        assert_eq!((lots.window_changes, lots.window_bytes), (0, 0));
    }

    #[test]
    fn what_failed_and_what_is_behind_it_get_rows_so_that_the_cursor_moves_on() {
        let mut lots = lots(&[&[1], &[1], &[2]]);
        fail(&mut lots, 1);
        assert_eq!(chosen(&lots, 10, false), [3], "the rest goes on");
        stage(&mut lots, 3, Stage::Delivered);
        let plan = lots.plan(at(0), at(3));
        assert_eq!(ordinals(&plan.store), [1, 2]);
        assert_eq!((plan.cursor, plan.logged, plan.delivered), (Some(at(3)), 3, 1));
        lots.done(&plan);
        lots.all_due(now());
        assert_eq!(chosen(&lots, 10, false), [1], "alone");
        stage(&mut lots, 1, Stage::Delivered);
        assert_eq!(chosen(&lots, 10, false), [2]);
        stage(&mut lots, 2, Stage::Parked);
        let plan = lots.plan(at(3), at(3));
        assert_eq!((ordinals(&plan.gone), ordinals(&plan.park_stored)), (vec![1], vec![2]));
        lots.done(&plan);
        assert!(lots.lots.is_empty());
        assert_eq!(lots.stored, 0);
    }

    #[test]
    fn a_parked_change_blocks_its_key_only_if_it_shall() {
        for (blocks, expected) in [(true, vec![]), (false, vec![2])] {
            let mut lots = lots(&[&[1], &[1]]);
            lots.blocks = blocks;
            stage(&mut lots, 1, Stage::Parked);
            assert_eq!(chosen(&lots, 10, false), expected, "before it is written");
            let plan = lots.plan(at(0), at(2));
            assert_eq!(ordinals(&plan.park), [1]);
            assert_eq!(ordinals(&plan.store), if blocks { vec![2] } else { vec![] });
            lots.done(&plan);
            assert_eq!(chosen(&lots, 10, false), expected);
        }
    }

    #[test]
    fn a_probe_is_one_change_and_the_one_that_failed_least() {
        let mut lots = lots(&[&[1], &[2], &[3]]);
        fail(&mut lots, 1);
        lots.all_due(now());
        assert_eq!(chosen(&lots, 10, true), [2]);
        for n in [2, 3, 3] {
            fail(&mut lots, n);
        }
        assert_eq!(
            lots.choose(now(), Room { changes: 1, bytes: 1 }, true),
            Choice::Send(vec![position(1)])
        );
        fail(&mut lots, 1);
        let until = Some(now() + TimeDelta::seconds(1));
        assert_eq!(
            lots.choose(now(), Room { changes: 1, bytes: 1 }, true),
            Choice::Nothing { until }
        );
    }
}
