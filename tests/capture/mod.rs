//! Capture against a real PostgreSQL.

mod heartbeat;
mod parts;
mod slot;
mod sources;
mod types;
