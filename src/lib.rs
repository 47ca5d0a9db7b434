//! Cadastre: every dataset has one owner, held inside PostgreSQL, and everyone else subscribes.
//!
//! The rooms, in the order they may import one another (later ones import earlier ones):
//!
//! ```text
//! vocab ← config ← {telemetry, task} ← pg ← {registry, log} ← {guard, capture} ← feed
//!       ← {api, embedded} ← app ← cli
//! ```
//!
//! `ARCHITECTURE.md` has the drawing and an invariant for each room.

pub mod api;
pub mod app;
pub mod capture;
pub mod cli;
pub mod config;
pub mod embedded;
pub mod feed;
pub mod gateway;
pub mod guard;
pub mod log;
pub mod pg;
pub mod registry;
pub mod task;
pub mod telemetry;
pub mod vocab;
