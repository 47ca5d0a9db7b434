//! What a failure says about trying again.

/// Whether the operation that failed may be tried again, decided by the error that knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same attempt may succeed at once, for example after a serialization failure.
    Now,
    /// It may succeed after a pause, for example when a server is restarting.
    Later,
    /// It will fail again until somebody changes something.
    Never,
}
