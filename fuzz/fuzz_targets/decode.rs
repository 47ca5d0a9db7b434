//! Any bytes as a pgoutput message: an error or a message that can be walked to its end, no panic.

#![no_main]

use cadastre::capture::decode::{Message, Old, Tuple, decode};
use libfuzzer_sys::fuzz_target;

fn walk(tuple: Tuple<'_>) {
    assert_eq!(tuple.columns().count(), tuple.len());
}

fuzz_target!(|bytes: &[u8]| {
    match decode(bytes) {
        Ok(Message::Insert { new, .. }) => walk(new),
        Ok(Message::Update { old, new, .. }) => {
            if let Some(Old::Key(tuple) | Old::Row(tuple)) = old {
                walk(tuple);
            }
            walk(new);
        }
        Ok(Message::Delete { old: Old::Key(tuple) | Old::Row(tuple), .. }) => walk(tuple),
        Ok(Message::Relation(relation)) => drop(relation.columns().count()),
        Ok(Message::Truncate(truncate)) => drop(truncate.relations().count()),
        Ok(_) | Err(_) => {}
    }
});
