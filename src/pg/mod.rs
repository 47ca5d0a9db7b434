//! PostgreSQL connections: where to connect, with which deadlines, and the registry's pool.
//!
//! Every connection made here has a connect, statement, lock and idle-in-transaction timeout, and
//! TCP keepalives that notice a dead peer. A connection string is parsed once into a [`Target`];
//! after that its password is never shown again, neither by `Debug` nor by an error.
//!
//! This room knows no table. diesel and tokio-postgres types stop here, in the `store.rs` files,
//! in the guard's installer and in capture's stream.

mod connect;
mod error;
mod ident;
mod migrate;
mod pool;
mod slot;
mod target;
mod tls;

pub use connect::{Connection, Listener};
pub use error::Error;
pub use ident::{quote_ident, quote_literal};
pub use migrate::{MIGRATIONS, REGISTRY_SCHEMA, migrate};
pub use pool::{Pool, PooledConnection};
pub use slot::{
    STREAMED_BY, SlotFound, SlotState, SlotWal, capturer, drop_slot, ensure_publication,
    ensure_slot, in_recovery, publication_options, server_version, slot_state, slot_wal,
    take_slot_away, wal_end,
};
pub use target::Target;
