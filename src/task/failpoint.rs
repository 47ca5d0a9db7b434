//! Places where a debug build can be told to die, so that tests see what a crash there leaves.
//!
//! `CADASTRE_FAILPOINTS=capture.before_append=3,log.after_durable=1` kills the process with
//! `SIGKILL`, as `kill -9` does, the third time it is about to append and the first time something
//! has become durable. A count without a name behind it is refused when the first place is
//! reached. A release build has none of this: [`Failpoint::hit`] is empty there.

/// A place that a crash test can name. Each stands between two steps that must not both be lost or
/// both be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// Part of an unfinished transaction was received and not written to disk.
    CaptureSpill,
    /// Any step of applying a change of guards.
    GuardApply,
    /// Any step of taking Cadastre out of a source.
    GuardUninstall,
    /// Changes were decoded and not appended.
    CaptureBeforeAppend,
    /// Changes were appended: readers see them, the store does not have them.
    LogBeforeDurable,
    /// The store has changes; the slot was not yet told.
    LogAfterDurable,
    /// A change was chosen and not sent to its receiver.
    DeliverBeforeSend,
    /// A receiver has taken changes, and nothing knows it yet.
    DeliverAfterSend,
    /// What was settled is about to be written with the cursor.
    DeliverBeforeCursor,
    /// Rows of a snapshot are held, and where in it to go on; neither is committed.
    SnapshotBeforeStep,
}

impl Failpoint {
    /// Every place.
    pub const ALL: [Self; 10] = [
        Self::GuardApply,
        Self::GuardUninstall,
        Self::CaptureSpill,
        Self::CaptureBeforeAppend,
        Self::LogBeforeDurable,
        Self::LogAfterDurable,
        Self::DeliverBeforeSend,
        Self::DeliverAfterSend,
        Self::DeliverBeforeCursor,
        Self::SnapshotBeforeStep,
    ];

    /// Its name in `CADASTRE_FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GuardApply => "guard.apply",
            Self::GuardUninstall => "guard.uninstall",
            Self::CaptureSpill => "capture.spill",
            Self::CaptureBeforeAppend => "capture.before_append",
            Self::LogBeforeDurable => "log.before_durable",
            Self::LogAfterDurable => "log.after_durable",
            Self::DeliverBeforeSend => "deliver.before_send",
            Self::DeliverAfterSend => "deliver.after_send",
            Self::DeliverBeforeCursor => "deliver.before_cursor",
            Self::SnapshotBeforeStep => "snapshot.before_step",
        }
    }

    /// Dies here if this is the time that was asked for.
    #[inline]
    pub fn hit(self) {
        #[cfg(debug_assertions)]
        armed::hit(self);
    }
}

#[cfg(debug_assertions)]
mod armed {
    //! What the environment asks for, read once.

    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Failpoint;

    const VARIABLE: &str = "CADASTRE_FAILPOINTS";

    /// A place and how many times it will still be passed alive, plus one.
    type Armed = Vec<(Failpoint, AtomicU32)>;

    static ARMED: OnceLock<Armed> = OnceLock::new();

    pub(super) fn hit(point: Failpoint) {
        for (armed, left) in ARMED.get_or_init(from_environment) {
            // Counts on past zero and around, which no test lives to see.
            if *armed == point && left.fetch_sub(1, Ordering::Relaxed) == 1 {
                die();
            }
        }
    }

    fn from_environment() -> Armed {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        match parse(&text) {
            Ok(armed) => {
                armed.into_iter().map(|(point, count)| (point, AtomicU32::new(count))).collect()
            }
            Err(reason) => {
                tracing::error!(reason, "{VARIABLE} is wrong");
                std::process::abort()
            }
        }
    }

    /// As a crash: no destructor runs, nothing is flushed.
    fn die() {
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }

    /// Reads `name=count,…`.
    pub(super) fn parse(text: &str) -> Result<Vec<(Failpoint, u32)>, String> {
        let one = |part: &str| {
            let (name, count) = part.split_once('=').unwrap_or((part, "1"));
            let point = Failpoint::ALL.into_iter().find(|point| point.name() == name);
            let names = || Failpoint::ALL.map(Failpoint::name).join(", ");
            let point =
                point.ok_or_else(|| format!("no place \"{name}\": there are {}", names()))?;
            let count = count.parse().ok().filter(|count| *count > 0);
            let count = count.ok_or_else(|| format!("\"{part}\": expected a count from 1 on"))?;
            Ok((point, count))
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(one).collect()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::Failpoint;
    use super::armed::parse;

    #[test]
    fn places_are_named_with_the_time_to_die() {
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(
            parse("capture.before_append=3, log.after_durable").unwrap(),
            [(Failpoint::CaptureBeforeAppend, 3), (Failpoint::LogAfterDurable, 1)]
        );
    }

    #[test]
    fn a_wrong_name_or_count_is_said_with_what_is_right() {
        assert!(parse("capture.nowhere=1").unwrap_err().contains("capture.before_append"));
        for text in ["log.after_durable=0", "log.after_durable=x", "log.after_durable=-1"] {
            assert!(parse(text).unwrap_err().contains("a count from 1 on"), "{text}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names = Failpoint::ALL.map(Failpoint::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Failpoint::ALL.len());
    }
}
