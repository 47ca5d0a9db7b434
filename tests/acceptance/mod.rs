//! The promises of the change path, kept under load and under faults, end to end: real PostgreSQL,
//! the real binary, a subscriber over HTTP.

mod continuity;
mod fidelity;
mod follower;
mod hand_over;
mod oracle;
mod restarts;
mod workload;
