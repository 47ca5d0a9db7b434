//! Capture against a real PostgreSQL.

mod beatable;
mod heartbeat;
mod parts;
mod slot;
mod snapshot;
mod sources;
mod stage;
mod types;
