//! What is wrong with the bytes of a message.

/// The bytes are not a message of pgoutput in the dialect that was asked for.
///
/// Nothing of the content is shown: it may hold row values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message} message at byte {offset}: expected {expected}")]
pub struct DecodeError {
    /// The kind of message, `unknown` when its first byte names none.
    pub message: &'static str,
    /// How many bytes of the message were read before.
    pub offset: usize,
    /// What should have stood there.
    pub expected: &'static str,
}
