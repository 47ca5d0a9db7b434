//! Getting changes to those who subscribed: they fetch them, or are sent them.
//!
//! ```text
//!               ┌ pull: consumers fetch under a lease
//! log ─► cursor ┤
//!               └ dispatch ─► runner ─► sink: webhook, NATS
//!                   │           ├ lots     what is under way, in which order, what may be written
//!                   │           ├ breaker  leaves a receiver alone that takes nothing
//!                   │           └ pace     keeps to the subscription's budget
//!                   └ one runner for each subscription, on one replica
//! ```
//!
//! A subscription's receiver can hold up its own subscription and nothing else: each has its own
//! task, its own bounded window, its own place in the log.

mod address;
mod breaker;
mod dispatch;
pub(super) mod keys;
mod lots;
mod nats;
mod pace;
pub(super) mod pull;
mod runner;
mod sink;
mod webhook;

pub use dispatch::Sinks;
