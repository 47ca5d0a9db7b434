//! A cursor over one message: every read is checked against what is left.

use super::DecodeError;

/// Reads the fields of one message in order. All integers are big-endian.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
    message: &'static str,
}

impl<'a> Reader<'a> {
    /// A cursor at the first byte of a message.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total: bytes.len(), message: "unknown" }
    }

    /// From here on errors name this kind of message.
    pub(super) fn name(&mut self, message: &'static str) {
        self.message = message;
    }

    /// The bytes not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// An error at the present place.
    pub(super) fn expected<T>(&self, expected: &'static str) -> Result<T, DecodeError> {
        let offset = self.total.saturating_sub(self.rest.len());
        Err(DecodeError { message: self.message, offset, expected })
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return self.expected(expected);
        };
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub(super) fn u8(&mut self, expected: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(expected).map(u8::from_be_bytes)
    }

    /// A 16-bit count, which PostgreSQL sends as a signed integer that is never negative.
    pub(super) fn count(&mut self, expected: &'static str) -> Result<u16, DecodeError> {
        let at = Self { ..*self };
        let value = i16::from_be_bytes(self.array(expected)?);
        u16::try_from(value).or_else(|_| at.expected(expected))
    }

    /// A 32-bit unsigned integer: an OID, a transaction id.
    pub(super) fn u32(&mut self, expected: &'static str) -> Result<u32, DecodeError> {
        self.array(expected).map(u32::from_be_bytes)
    }

    /// A 32-bit signed integer.
    pub(super) fn i32(&mut self, expected: &'static str) -> Result<i32, DecodeError> {
        self.array(expected).map(i32::from_be_bytes)
    }

    /// A 64-bit unsigned integer: an LSN.
    pub(super) fn u64(&mut self, expected: &'static str) -> Result<u64, DecodeError> {
        self.array(expected).map(u64::from_be_bytes)
    }

    /// A 64-bit signed integer: a time.
    pub(super) fn i64(&mut self, expected: &'static str) -> Result<i64, DecodeError> {
        self.array(expected).map(i64::from_be_bytes)
    }

    /// A 32-bit length and as many bytes.
    pub(super) fn bytes(&mut self, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        let at = Self { ..*self };
        let split = usize::try_from(self.i32(expected)?)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        let Some((head, rest)) = split else { return at.expected(expected) };
        self.rest = rest;
        Ok(head)
    }

    /// Bytes up to a NUL, which is read too but not returned.
    pub(super) fn string(&mut self, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        let split = memchr::memchr(0, self.rest).and_then(|end| self.rest.split_at_checked(end));
        let Some((head, [_nul, rest @ ..])) = split else { return self.expected(expected) };
        self.rest = rest;
        Ok(head)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { self.expected("the end of the message") }
    }
}
