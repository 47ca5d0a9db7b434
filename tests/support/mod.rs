//! What the integration tests share: a PostgreSQL cluster per test, a server under test, and
//! waiting on conditions.
#![allow(dead_code, reason = "not every helper has a user in every state of the tests")]

mod cluster;
mod digest;
mod proxy;
mod server;
mod subscriber;
mod template;
mod wait;

use std::path::Path;

pub(crate) use cluster::{Cluster, data_dir};
pub(crate) use digest::digest;
pub(crate) use proxy::{Proxy, Weather};
pub(crate) use server::{ADMIN_TOKEN, Server};
pub(crate) use subscriber::{Copy, Plan, Rows, Subscriber};
pub(crate) use wait::{WAIT, eventually};

/// The program under test.
pub(crate) fn cadastre_bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cadastre"))
}
