//! Any bytes as the content of a message of the guard: passed over or understood, no panic, and the
//! ordinals of what follows do not depend on it.

#![no_main]

use std::sync::Arc;

use cadastre::capture::assemble::{Assembler, Output, Received, Sink, StreamOrigin};
use cadastre::capture::decode::{Message, PgTime};
use cadastre::registry::{Dataset, GuardState, KnownTables, Snapshot};
use cadastre::vocab::{DatasetId, DatasetName, Epoch, Lsn, Mode, Op, Position, SourceId};
use libfuzzer_sys::fuzz_target;

/// Every event must be one line of JSON, at increasing positions.
#[derive(Default)]
struct Checked(Option<Position>);

impl Sink for Checked {
    fn push(&mut self, at: Position, _: DatasetId, _: Op, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        encode(&mut out);
        serde_json::from_slice::<serde_json::Value>(&out).expect("an event is JSON");
        assert!(!out.contains(&b'\n') && self.0 < Some(at));
        self.0 = Some(at);
    }
}

fn registry() -> Arc<Snapshot> {
    let name: DatasetName = "shop.public.orders".parse().expect("a name");
    let dataset = Arc::new(Dataset {
        id: DatasetId(1),
        name: name.clone(),
        source_id: SourceId(1),
        owner: "orders".parse().expect("a name"),
        mode: Mode::Enforce,
        description: None,
        tags: Vec::new(),
        columns: [].into(),
        derived_from: Vec::new(),
        guard: GuardState::Installed,
        gaps: Vec::new(),
        created_at: Default::default(),
    });
    let mut snapshot = Snapshot::default();
    snapshot.datasets_by_id.insert(dataset.id, Arc::clone(&dataset));
    snapshot.datasets.insert(name, dataset);
    Arc::new(snapshot)
}

fuzz_target!(|messages: Vec<(u8, bool, &[u8])>| {
    let origin = StreamOrigin {
        source_id: SourceId(1),
        source: "shop".parse().expect("a name"),
        database: "shop".to_owned(),
        epoch: Epoch::FIRST,
    };
    let known = KnownTables::default();
    let mut assembler = Assembler::new(origin, registry(), Position::MIN, known);
    let mut sink = Checked::default();
    let received = |wal| Received { wal: Lsn::new(wal), now_ms: 0 };
    let begin = Message::Begin { final_lsn: Lsn::new(9), committed: PgTime(0), xid: 1 };
    let _ = assembler.take(received(1), begin, &mut sink);
    for (at, (kind, transactional, content)) in (2..).zip(messages) {
        let prefixes: [&[u8]; 6] = [
            b"cadastre.schema",
            b"cadastre.writer",
            b"cadastre.violation",
            b"cadastre.ownership",
            b"cadastre.guard",
            b"cadastre.heartbeat",
        ];
        let prefix = prefixes[usize::from(kind) % prefixes.len()];
        let message = Message::Logical { transactional, lsn: Lsn::new(at), prefix, content };
        let taken = assembler.take(received(at), message, &mut sink);
        if taken.expect("no message of the guard stops the stream") == Output::RegistryWanted {
            let again = assembler.take(received(at), message, &mut sink);
            assert!(!matches!(again, Ok(Output::RegistryWanted) | Err(_)));
        }
    }
    let commit = Message::Commit { lsn: Lsn::new(9), end: Lsn::new(10), committed: PgTime(0) };
    assembler.take(received(u64::MAX), commit, &mut sink).expect("the transaction is open");
});
