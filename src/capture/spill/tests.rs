//! A model of how PostgreSQL sends a transaction with savepoints in parts, against what is read back.

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::capture::decode::encode::{in_part, insert, logical};

const TOP: u32 = 1_000;

fn source() -> SourceName {
    "shop".parse().unwrap()
}

async fn spill(dir: &TempDir, bytes_max: u64) -> Spill {
    Spill::open(dir.path().join("spill"), bytes_max, &source()).await.unwrap()
}

fn row(xid: u32, number: u32) -> Vec<u8> {
    in_part(xid, insert(number, &[]))
}

async fn contents(mut kept: Kept) -> Vec<(Lsn, Vec<u8>)> {
    let mut records = Vec::new();
    while kept.fill().await.unwrap() {
        while let Some((wal, message)) = kept.next() {
            records.push((wal, message.to_vec()));
        }
    }
    records
}

/// What a session does, and when the server sends a part.
#[derive(Debug, Clone, Copy)]
enum Step {
    Row,
    Message,
    Savepoint,
    Release,
    Rollback,
    Part,
}

/// The top-level transaction or a savepoint, and what lies inside it.
#[derive(Default)]
struct Level {
    xid: Option<u32>,
    released: Vec<u32>,
}

/// The server's side.
struct Server {
    levels: Vec<Level>,
    next_xid: u32,
    /// Not sent yet: the subtransaction it belongs to, and the message as it will be sent.
    unsent: Vec<(u32, Vec<u8>)>,
    /// Subtransactions of which something was sent.
    sent: Vec<u32>,
    /// What a subscriber is to see in the end.
    expected: Vec<(u32, Vec<u8>)>,
    first: bool,
}

impl Server {
    fn new() -> Self {
        let levels = vec![Level { xid: Some(TOP), released: vec![] }];
        let (unsent, sent, expected) = (vec![], vec![], vec![]);
        Self { levels, next_xid: TOP + 1, unsent, sent, expected, first: true }
    }

    /// Ids are given when first needed, to parents before children.
    fn xid(&mut self) -> u32 {
        for level in &mut self.levels {
            if level.xid.is_none() {
                level.xid = Some(self.next_xid);
                self.next_xid += 1;
            }
        }
        self.levels.last().and_then(|level| level.xid).unwrap()
    }

    fn write(&mut self, message: impl FnOnce(u32) -> Vec<u8>) {
        let xid = self.xid();
        let message = message(xid);
        self.unsent.push((xid, message.clone()));
        self.expected.push((xid, message));
    }

    async fn part(&mut self, spill: &mut Spill) -> Result<(), SpillError> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        spill.start(TOP, std::mem::take(&mut self.first))?;
        for (xid, message) in self.unsent.drain(..) {
            self.sent.push(xid);
            spill.keep(Lsn::ZERO, &message).await?;
        }
        spill.stop().await
    }

    fn rollback(&mut self, spill: &mut Spill) -> Result<(), SpillError> {
        let Level { xid, released } = self.levels.pop().unwrap();
        let gone: Vec<u32> = released.into_iter().chain(xid).collect();
        self.unsent.retain(|(xid, _)| !gone.contains(xid));
        self.expected.retain(|(xid, _)| !gone.contains(xid));
        for xid in gone {
            if self.sent.contains(&xid) {
                spill.abort(TOP, xid)?;
            }
        }
        Ok(())
    }
}

/// Runs the steps and commits; what was read back, and what should have been.
async fn run(steps: &[Step]) -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), SpillError> {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = spill(&dir, 1 << 20).await;
    let mut server = Server::new();
    for (number, step) in (0..).zip(steps) {
        match step {
            Step::Row => server.write(|xid| row(xid, number)),
            Step::Message => server
                .write(|_| in_part(TOP, logical(true, number.into(), b"cadastre.writer", b"{}"))),
            Step::Savepoint => server.levels.push(Level::default()),
            Step::Release if server.levels.len() > 1 => {
                let Level { xid, released } = server.levels.pop().unwrap();
                server.levels.last_mut().unwrap().released.extend(released.into_iter().chain(xid));
            }
            Step::Rollback if server.levels.len() > 1 => server.rollback(&mut spill)?,
            Step::Part => server.part(&mut spill).await?,
            Step::Release | Step::Rollback => {}
        }
    }
    server.part(&mut spill).await?;
    if server.first {
        return Ok((vec![], vec![]));
    }
    let kept = spill.commit(TOP, &source())?;
    assert_eq!((spill.used, spill.savepoints), (0, 0));
    let read = contents(kept).await.into_iter().map(|(_, message)| message).collect();
    Ok((read, server.expected.into_iter().map(|(_, message)| message).collect()))
}

fn steps(with_messages: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Row),
        u32::from(with_messages) => Just(Step::Message),
        2 => Just(Step::Savepoint),
        1 => Just(Step::Release),
        2 => Just(Step::Rollback),
        2 => Just(Step::Part),
    ];
    vec(step, 0..40)
}

proptest! {
    #[test]
    fn what_savepoints_rolled_back_is_dropped_and_nothing_else(steps in steps(false)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (read, expected) = runtime.block_on(run(&steps)).unwrap();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn a_message_is_kept_or_dropped_rightly_or_the_doubt_is_said(steps in steps(true)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        match runtime.block_on(run(&steps)) {
            Ok((read, expected)) => prop_assert_eq!(read, expected),
            Err(error) => {
                prop_assert!(matches!(error, SpillError::Doubtful { xid: TOP }), "{error}");
                prop_assert!(steps.iter().any(|step| matches!(step, Step::Message)));
            }
        }
    }
}

#[tokio::test]
async fn transactions_larger_than_any_buffer_come_back_whole_and_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = spill(&dir, 1 << 30).await;
    let message = |xid: u32, number: usize| {
        let size = if number == 7 { 3 * SPILL_BUFFER_BYTES } else { 10_000 };
        in_part(xid, logical(true, 0, b"x", &vec![u8::try_from(number % 251).unwrap(); size]))
    };
    // Two at the same time, in alternating parts.
    for part in 0..4 {
        for xid in [5, 6] {
            spill.start(xid, part == 0).unwrap();
            for number in part * 25..(part + 1) * 25 {
                let wal = Lsn::new(number as u64);
                spill.keep(wal, &message(xid, number)).await.unwrap();
            }
            spill.stop().await.unwrap();
        }
    }
    assert!(spill.used > 2_000_000, "{} bytes", spill.used);
    let left = dir.path().join("spill").read_dir().unwrap().count();
    assert_eq!(left, 0, "files have no names");
    for xid in [6, 5] {
        let records = contents(spill.commit(xid, &source()).unwrap()).await;
        assert_eq!(records.len(), 100);
        for (number, (wal, read)) in records.into_iter().enumerate() {
            assert_eq!(wal, Lsn::new(number as u64));
            assert!(read == message(xid, number), "record {number} of {xid}");
        }
    }
    assert_eq!(spill.used, 0);
}

#[tokio::test]
async fn too_much_is_refused_and_what_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("spill");
    std::fs::create_dir(&at).unwrap();
    for name in ["shop.1-1.part", "other.1-1.part", "shop.txt"] {
        std::fs::write(at.join(name), "left").unwrap();
    }
    let mut spill = spill(&dir, 1_000).await;
    let mut names: Vec<_> =
        at.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["other.1-1.part", "shop.txt"]);

    spill.start(5, true).unwrap();
    spill.keep(Lsn::ZERO, &row(5, 1)).await.unwrap();
    spill.stop().await.unwrap();
    spill.start(5, false).unwrap();
    spill.keep(Lsn::ZERO, &[0; 1_000]).await.unwrap();
    let full = spill.stop().await.unwrap_err();
    assert!(matches!(full, SpillError::Full { bytes_max: 1_000 }), "{full}");
}

#[tokio::test]
async fn parts_that_do_not_fit_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = spill(&dir, 1_000).await;
    let refused = |result: Result<(), SpillError>| result.unwrap_err().to_string();
    assert!(refused(spill.start(5, false)).contains("the first part is missing"));
    assert!(refused(spill.keep(Lsn::ZERO, b"I").await).contains("did not begin"));
    assert!(spill.commit(5, &source()).is_err());
    spill.start(5, true).unwrap();
    assert!(refused(spill.start(6, true)).contains("inside another part"));
    assert!(refused(spill.abort(5, 5)).contains("inside a part"));
    assert!(spill.commit(5, &source()).is_err());
    spill.stop().await.unwrap();
    assert!(refused(spill.start(5, true)).contains("is not"));
    // Unknown ones may be rolled back: nothing is lost by that.
    spill.abort(9, 9).unwrap();
    spill.abort(5, 8).unwrap();
    spill.abort(5, 5).unwrap();
    assert!(spill.commit(5, &source()).is_err());
}
