//! The registry's SQL, one function per question. Callers own the connection.

mod break_glass;
mod evolve;
mod finding;
mod gap;
mod leave;
mod read;
mod slot;
mod token;
mod transfer;
mod violation;
mod write;
mod writer;

pub(super) use break_glass::break_glass_of;
pub(super) use evolve::{
    couplings, evolutions_record, known_tables, schema_history, unowned_count, unowned_tables,
};
pub(super) use finding::{findings, findings_record};
pub(super) use gap::{baseline, baseline_put, baseline_sound, gap_close, gap_open};
pub(super) use leave::{dataset_release, source_leave, source_left};
pub(super) use read::{owner_at, ownership_history, revision, snapshot};
pub(super) use slot::{epoch_begin, slot_confirm, slot_record, slot_record_put};
pub(super) use token::{find as token, token_create, token_revoke, token_uses, tokens};
pub(super) use transfer::{
    switches, switches_record, transfer, transfer_end, transfer_propose, transfers,
};
pub(super) use violation::{violations, violations_record};
pub(super) use write::{apply, guard_state, subscription_delete};
pub(super) use writer::writers;

use diesel::result::Error as DieselError;

use super::Error;

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        Self::Unavailable(error.into())
    }
}

/// A stored value that this program would not have stored.
fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> DieselError {
    DieselError::DeserializationError(Box::new(error))
}
