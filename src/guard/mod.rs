//! The guard: ownership compiled into PostgreSQL.
//!
//! A trigger on every governed table asks, before each statement, whether the role that runs it
//! belongs to the owning service. If not, the attempt is reported through the WAL and, in
//! `enforce` mode, rejected with SQLSTATE 42501. Cadastre's process is not on that path: what stands
//! in the source (`schema/guard/*.sql`) works without it.
//!
//! This room puts it there and keeps it there. [`Governor::apply`] is the one way to change what the
//! registry declares:
//!
//! ```text
//! preflight ─► publication, slot ─► BEGIN; guards ─► registry COMMIT ─► source COMMIT ─► Installed
//!  in every source, refusals            │ lock_timeout,    │ the desired state
//!  collected, nothing changed           │ retried          │ now stands
//! ```
//!
//! The registry commits first, because capture must know a dataset before its first change arrives.
//! If the process dies in between, the registry holds the desired state and the dataset is
//! `Pending`: [`Governor::run`] installs what is missing, at start, on a timer and when the registry
//! changes, and finds and mends what drifted. A lock for a guard never queues for longer than `guard_lock_timeout`, so that owners'
//! writes do not pile up behind it.
//!
//! Not here: reading what the guard reports (capture does, from the WAL), rows (never looked at).

mod adopt;
mod audit;
mod desired;
mod doctor;
mod drift;
mod error;
mod finding_kind;
mod fingerprint;
mod governor;
mod install;
mod leave;
mod locate;
mod look;
mod preflight;
mod privilege;
mod reconcile;
mod roles;
mod turns;
mod uninstall;

pub use adopt::{AdoptedTable, Adoption, SeenWriter};
pub use doctor::Need;
pub use drift::kind::ALL as DRIFT_KINDS;
pub use error::{Error, Refusal};
pub use governor::Governor;
pub use privilege::bootstrap;

/// The SQL that is installed into a source, in order, by file name.
pub const SCHEMA: [(&str, &str); 8] = [
    ("00_roles.sql", include_str!("../../schema/guard/00_roles.sql")),
    ("01_base.sql", include_str!("../../schema/guard/01_base.sql")),
    ("02_note.sql", include_str!("../../schema/guard/02_note.sql")),
    ("03_guard.sql", include_str!("../../schema/guard/03_guard.sql")),
    ("04_ddl.sql", include_str!("../../schema/guard/04_ddl.sql")),
    ("05_gateway.sql", include_str!("../../schema/guard/05_gateway.sql")),
    ("06_lockdown.sql", include_str!("../../schema/guard/06_lockdown.sql")),
    ("07_parts.sql", include_str!("../../schema/guard/07_parts.sql")),
];
