//! The words every room shares: names, positions, modes, changes, limits.
//!
//! Everything here is a plain value that is valid by construction: text is parsed once at the edge
//! and trusted afterwards. This room does no I/O and knows no other room.

mod change;
mod id;
pub mod limits;
mod mode;
mod name;
mod network;
mod position;
mod predicate;
mod retry;
mod trace;

pub use change::{Op, Writer};
pub use id::{DatasetId, SourceId};
pub use mode::{Mode, ModeError};
pub use name::{DatasetName, NameError, RoleName, ServiceName, SourceName};
pub use network::{Network, NetworkError};
pub use position::{Epoch, Lsn, Position, PositionError};
pub use predicate::{Column, Found, Predicate, PredicateError, Side};
pub use retry::Retry;
pub use trace::{TraceParent, TraceParentError};
