//! Connections, the pool and migrations against a real PostgreSQL.

mod connect;
mod migrate;
