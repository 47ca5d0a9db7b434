//! `demo --once`: the whole story, as a newcomer runs it.

use super::{bare, run};
use crate::support::data_dir;

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_the_demo_does_what_it_says() {
    let temporary = data_dir();
    let mut demo = bare();
    demo.args(["demo", "--once"]).env("TMPDIR", temporary.path());
    let told = run(&mut demo).await.exited(0).stdout;
    for sign in [
        "✓ accepted",
        "✓ rejected by the database with SQLSTATE 42501",
        "✓ its own invoice is not there either",
        "✓ it says that the service orders wrote it",
        "✓ it carries the trace context that the session had set",
        "rejected INSERT on shop.public.orders by role billing_app",
        "rejected UPDATE on shop.public.orders by role billing_app",
        "rejected ALTER TABLE on shop.public.orders by role billing_app",
        "✓ the attempt made meanwhile is on record, too",
        "Every step did what it says.",
    ] {
        assert!(told.contains(sign), "{sign} is missing in:\n{told}");
    }
    assert!(!told.contains('✗'), "{told}");
    let left: Vec<_> = temporary.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "everything temporary is gone: {left:?}");
}
