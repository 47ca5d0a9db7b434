//! Any bytes as a pgoutput message, in every dialect, outside and inside part of a transaction: an
//! error or a message that can be walked to its end, no panic.

#![no_main]

use cadastre::capture::decode::{Dialect, Message, Old, Tuple, decode, decode_part, part_xid};
use libfuzzer_sys::fuzz_target;

fn walk_tuple(tuple: Tuple<'_>) {
    assert_eq!(tuple.columns().count(), tuple.len());
}

fn walk(message: &Message<'_>) {
    match *message {
        Message::Insert { new, .. } => walk_tuple(new),
        Message::Update { old, new, .. } => {
            if let Some(Old::Key(tuple) | Old::Row(tuple)) = old {
                walk_tuple(tuple);
            }
            walk_tuple(new);
        }
        Message::Delete { old: Old::Key(tuple) | Old::Row(tuple), .. } => walk_tuple(tuple),
        Message::Relation(relation) => drop(relation.columns().count()),
        Message::Truncate(truncate) => drop(truncate.relations().count()),
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    for server in [130_000, 140_000, 150_000, 160_000] {
        for streaming in [false, true] {
            if let Ok(message) = decode(bytes, Dialect::newest(server, streaming)) {
                walk(&message);
            }
        }
    }
    if let Ok(message) = decode_part(bytes) {
        assert!(part_xid(bytes).is_some() || matches!(message, Message::Origin { .. }));
        walk(&message);
    }
});
