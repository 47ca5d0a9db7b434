//! The integration tests: one binary, a folder per room. They enter by the library's handles, by
//! HTTP, by the command line and by SQL, always against a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "what a test does not expect is a failed test")]

mod acceptance;
mod api;
mod capture;
mod cli;
mod deliver;
mod embedded;
mod feed;
mod guard;
mod log;
mod pg;
mod registry;
mod support;
