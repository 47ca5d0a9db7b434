//! Capture against a real PostgreSQL.

mod types;
