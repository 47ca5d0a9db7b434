//! What users of change data capture complain of, and where this project's answer is shown. The
//! tests named here must exist; those of this directory show what no other test does.
//!
//! | complaint, or pitfall of the protocol | shown by |
//! |---|---|
//! | one slow or dead reader stops all others, and pins WAL | `capture::beatable::pressure::a_reader_that_stops_reading_holds_back_nothing` |
//! | WAL is kept for ever while the watched tables are idle | `capture::heartbeat::the_slot_of_an_idle_source_moves_on_by_it` |
//! | … while other databases of the cluster write | `capture::beatable::pressure::what_other_databases_write_is_let_go_as_well` |
//! | a keepalive's answer confirms what was not kept | `capture::beatable::pressure::what_is_not_durable_is_not_confirmed` |
//! | the stream stalls and looks healthy | `capture::heartbeat::a_walsender_that_hangs_is_seen_and_its_return_too` |
//! | the writer of the log hangs, the acknowledgement is pinned | `capture::heartbeat::a_log_that_hangs_is_seen_although_the_stream_is_read` |
//! | a broken source stops the others | `capture::sources::a_source_that_hangs_and_one_that_is_wrong_touch_no_other` |
//! | the slot is invalidated, in silence | `capture::slot::a_slot_that_postgresql_gave_up_is_a_gap_and_made_anew` |
//! | nobody acts before the WAL is gone | `capture::slot::a_source_that_keeps_too_much_wal_is_said_and_protected_as_declared` |
//! | a slot is dropped, recreated or moved, in silence | `capture::slot::a_slot_dropped_under_a_running_server_is_a_gap_and_made_anew` |
//! | the slot is gone after a failover | `capture::slot::a_promoted_standby_goes_on_where_its_slot_does_and_is_a_gap_where_it_has_none` |
//! | a restored backup is taken for what it was | `capture::slot::a_database_put_back_to_an_older_copy_is_not_taken_for_itself` |
//! | a slot waits for somebody's transaction, and nobody knows whose | `capture::slot::a_slot_that_waits_for_a_transaction_says_for_whose` |
//! | a snapshot starts over after a crash; an enum in its key breaks it | `capture::beatable::repair::a_snapshot_goes_on_after_a_crash_where_it_was` |
//! | a restart skips changes that share an LSN | `capture::beatable::positions::rows_that_share_an_lsn_are_told_apart` |
//! | a restart skips or repeats transactions | `acceptance::restarts::a_server_that_dies_between_any_two_steps_loses_and_doubles_nothing` |
//! | what commits at the confirmed position is lost | `capture::setup::tests::what_commits_at_the_confirmed_position_was_not_handled` |
//! | LSNs go backwards across transactions | `capture::beatable::positions::transactions_that_overlap_come_in_the_order_of_their_commits` |
//! | values stored out of line are missing or null | `capture::beatable::positions::a_value_out_of_line_is_merged_or_named_and_never_null` |
//! | a large transaction takes all memory | `capture::parts::a_transaction_far_larger_than_the_memory_for_it_goes_through` |
//! | a savepoint rolled back in a streamed transaction takes too much, or nothing, with it | `capture::parts::what_arrives_in_parts_has_the_positions_and_content_of_what_arrives_whole` |
//! | a message is parsed by guess, not by the version asked for | `capture::decode::tests::an_abort_is_read_as_it_was_asked_for` |
//! | the connection is killed under backpressure | `capture::beatable::pressure::a_walsender_is_answered_while_nothing_can_be_kept` |
//! | a stop of PostgreSQL waits for its consumer for ever | `capture::beatable::pressure::an_orderly_stop_of_postgresql_is_not_held_up` |
//! | whoever has connected is not live yet, and misses changes | `api::feed::who_has_seen_that_the_feed_is_live_misses_nothing` |
//! | changes of a table's columns are lost or guessed | `guard::evolve::the_feed_tells_of_each_change_of_the_table_in_order_with_the_rows` |
//! | the catalog of now is taken for that of the stream | `capture::assemble::tests::evolve::types_are_what_they_were_at_each_place` |
//! | types made in the database fail the stream | `capture::types::types_of_a_database_are_followed_to_what_they_are_made_of` |
//! | partitions come and go unseen | `guard::kinds::rows_that_come_and_go_with_a_part_are_told_as_such` |
//! | publishing a table breaks its owner's statements | `guard::kinds::what_would_break_its_owner_once_published_is_refused_with_the_remedy` |
//! | one truncate of several tables is one of them, or has no place | `capture::beatable::positions::a_truncate_of_several_tables_tells_each_in_its_place` |
//! | a publication that was missing fails the slot for ever | `capture::beatable::repair::a_publication_that_was_dropped_is_made_again_and_the_gap_said` |
//! | nobody knows who changed it | `guard::attribution::several_writers_of_one_transaction_are_told_apart` |
//! | what a subscription applies is not told from what is written here | `guard::subscription::rows_that_a_subscription_applies_are_guarded_too` |
//! | the log is cut under a reader, in silence | `feed::tests::a_reader_that_is_cut_is_told_of_the_gap_and_goes_on` |
//! | nobody can prove that nothing is missing | `log::proof::anyone_can_compute_the_digest_of_what_was_read` |

mod positions;
mod pressure;
mod repair;

use std::path::Path;

/// All source files below a directory, with their text.
fn sources(dir: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let module = path.with_extension("").display().to_string().replace('/', "::");
            into.push((module.trim_end_matches("::mod").to_owned(), text));
        }
    }
}

#[test]
fn the_tests_named_above_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&root.join(dir), &mut files);
    }
    let head = include_str!("mod.rs").lines().take_while(|line| line.starts_with("//!"));
    let named: Vec<&str> =
        head.filter_map(|line| line.rsplit_once("| `")?.1.strip_suffix("` |")).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let (module, function) = name.rsplit_once("::").unwrap();
        // The unit tests of a file are in a module of it.
        let alternative = module.trim_end_matches("::tests");
        let declared = format!("fn {function}(");
        let found = files.iter().any(|(path, text)| {
            let here = path.ends_with(&format!("::{module}"))
                || path.ends_with(&format!("::{alternative}"));
            here && text
                .split("#[tokio::test")
                .chain(text.split("#[test]"))
                .skip(1)
                .any(|part| part.lines().take(3).any(|line| line.contains(&declared)))
        });
        assert!(found, "{name} is no test; name the one that shows it");
    }
}
