//! Getting changes to those who subscribed: by themselves, or sent to them.

mod keys;
pub(super) mod pull;
