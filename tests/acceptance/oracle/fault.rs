//! What goes wrong.

use cadastre::task::Failpoint;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::support::Weather;

/// Places to die at that every change passes.
const DEATHS: [Failpoint; 3] =
    [Failpoint::CaptureBeforeAppend, Failpoint::LogBeforeDurable, Failpoint::LogAfterDurable];

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The server dies.
    Kill,
    /// The server dies, and again at this place of its next life.
    Die(Failpoint),
    /// A PostgreSQL is stopped as if it had crashed.
    Crash(Victim),
    /// The source's network does this for a while.
    Network(Weather),
    /// Somebody drops the slot: changes are missing from then on until there is another.
    SlotDropped,
    /// The source is replaced by a standby that has not its slot.
    Promoted,
}

/// Whose PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub(super) enum Victim {
    Source,
    Registry,
}

impl Fault {
    /// One that loses nothing.
    pub(super) fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..6) {
            0 => Self::Kill,
            1 | 2 => Self::Die(DEATHS[random.random_range(0..DEATHS.len())]),
            3 => Self::Crash([Victim::Source, Victim::Registry][random.random_range(0..2)]),
            _ => Self::Network(
                [Weather::Cut, Weather::Stalled, Weather::Dripping][random.random_range(0..3)],
            ),
        }
    }

    /// One that breaks continuity: each in its turn, one seed after the other.
    pub(super) fn gap(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::SlotDropped } else { Self::Promoted }
    }
}
