//! Which protocol a stream speaks: what was asked for when it was started, never guessed from bytes.

/// What pgoutput was asked for. The same bytes mean different things in different dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    version: u8,
    streaming: Streaming,
}

/// Whether large transactions arrive before they have committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streaming {
    /// PostgreSQL keeps them until they commit.
    Off,
    /// They arrive in parts.
    On,
    /// They arrive in parts, and an abort says where and when it happened.
    Parallel,
}

impl Dialect {
    /// Protocol 1: whole transactions, once they have committed.
    pub const WHOLE: Self = Self { version: 1, streaming: Streaming::Off };

    /// The richest that a server with this `server_version_num` speaks. Without `streaming` large
    /// transactions are kept by PostgreSQL until they commit.
    pub const fn newest(server_version: u32, streaming: bool) -> Self {
        let version = match server_version / 10_000 {
            ..=13 => return Self::WHOLE,
            14 => 2,
            15 => 3,
            _ => 4,
        };
        let streaming = match version {
            _ if !streaming => Streaming::Off,
            4 => Streaming::Parallel,
            _ => Streaming::On,
        };
        Self { version, streaming }
    }

    /// The protocol's number.
    pub const fn version(self) -> u8 {
        self.version
    }

    /// The value of the option `streaming`; `None` where it is not to be given.
    pub const fn streaming_option(self) -> Option<&'static str> {
        match self.streaming {
            Streaming::Off => None,
            Streaming::On => Some("on"),
            Streaming::Parallel => Some("parallel"),
        }
    }

    /// Whether transactions may arrive in parts.
    pub(super) const fn streams(self) -> bool {
        !matches!(self.streaming, Streaming::Off)
    }

    /// Whether an abort carries its LSN and time.
    pub(super) const fn says_where_aborted(self) -> bool {
        matches!(self.streaming, Streaming::Parallel)
    }

    /// Whether prepared transactions may arrive as such.
    pub(super) const fn prepares(self) -> bool {
        self.version >= 3
    }

    /// For errors: what a message may begin with.
    pub(super) const fn expected_kind(self) -> &'static str {
        match self.version {
            1 => "a message kind of protocol 1",
            2 => "a message kind of protocol 2",
            3 => "a message kind of protocol 3",
            _ => "a message kind of protocol 4",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_asked_for_the_most_it_knows() {
        let asked = |version, streaming| {
            let dialect = Dialect::newest(version, streaming);
            (dialect.version(), dialect.streaming_option())
        };
        assert_eq!(asked(130_020, true), (1, None));
        assert_eq!(asked(140_011, true), (2, Some("on")));
        assert_eq!(asked(150_018, true), (3, Some("on")));
        assert_eq!(asked(160_000, true), (4, Some("parallel")));
        assert_eq!(asked(180_004, true), (4, Some("parallel")));
        assert_eq!(asked(180_004, false), (4, None));
    }
}
