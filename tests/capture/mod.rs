//! Capture against a real PostgreSQL.

mod heartbeat;
mod types;
