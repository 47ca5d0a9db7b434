//! What one look at a source found of drift, and what follows from it.

use std::collections::BTreeSet;

use super::desired::Desired;
use crate::registry::NewFinding;
use crate::vocab::{DatasetName, Lsn};

/// Whose writers nobody vouches for while a drift lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nobody's: writes are still stopped or recorded.
    Nothing,
    /// Those of one dataset.
    Dataset(DatasetName),
    /// Those of every dataset that one service owns.
    Owner(String),
    /// Those of the whole source.
    Source,
}

/// What mends a drift.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repair {
    /// Installing again what is not as wanted.
    Install,
    /// Running the scripts again.
    Scripts,
    /// Taking the guard off a table that is not governed.
    Release(DatasetName),
    /// A person.
    Nobody,
}

/// One difference.
#[derive(Debug, Clone)]
pub(super) struct Drift {
    /// What is recorded of it.
    pub(super) finding: NewFinding,
    /// Whom it unguards.
    pub(super) reach: Reach,
    /// What mends it.
    pub(super) repair: Repair,
}

/// What one look found.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// Where the WAL ended when it began.
    pub(super) at: Lsn,
    /// The differences, each kind and object once.
    pub(super) drifts: Vec<Drift>,
}

impl Look {
    /// What was found while the WAL ended `at`.
    pub(super) fn new(at: Lsn, mut drifts: Vec<Drift>) -> Self {
        each_once(&mut drifts);
        Self { at, drifts }
    }

    /// This look with what was found later, if that is more.
    pub(super) fn with(mut self, late: Vec<Drift>) -> Option<Self> {
        let known = self.drifts.len();
        self.drifts.extend(late);
        each_once(&mut self.drifts);
        (self.drifts.len() > known).then_some(self)
    }

    /// The datasets whose writers nobody vouches for.
    pub(super) fn unguarded(&self, wanted: &Desired) -> BTreeSet<DatasetName> {
        self.reached(wanted, |_| true)
    }

    /// Those of them where a person has to mend something first.
    pub(super) fn given_up(&self, wanted: &Desired) -> BTreeSet<DatasetName> {
        self.reached(wanted, |drift| drift.repair == Repair::Nobody)
    }

    /// Datasets that these differences leave unguarded.
    fn reached(&self, wanted: &Desired, which: impl Fn(&Drift) -> bool) -> BTreeSet<DatasetName> {
        let mut unguarded = BTreeSet::new();
        for drift in self.drifts.iter().filter(|drift| which(drift)) {
            let reached = |name: &DatasetName, owner: &str| match &drift.reach {
                Reach::Nothing => false,
                Reach::Dataset(dataset) => dataset == name,
                Reach::Owner(service) => service == owner,
                Reach::Source => true,
            };
            let datasets = wanted.datasets.iter();
            let reached = datasets.filter(|(name, it)| reached(name, it.owner.as_str()));
            unguarded.extend(reached.map(|(name, _)| name.clone()));
        }
        unguarded
    }

    /// Whether anything can be mended without a person.
    pub(super) fn repairable(&self) -> bool {
        self.drifts.iter().any(|drift| drift.repair != Repair::Nobody)
    }

    /// Whether the scripts have to run again.
    pub(super) fn wants_scripts(&self) -> bool {
        self.drifts.iter().any(|drift| drift.repair == Repair::Scripts)
    }
}

/// Leaves the first difference of each kind and object.
fn each_once(drifts: &mut Vec<Drift>) {
    let mut seen = BTreeSet::new();
    drifts.retain(|drift| seen.insert((drift.finding.kind, drift.finding.object.clone())));
}
