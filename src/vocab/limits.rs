//! Every cap in one place: its unit is in the name, its reason in the text.

use std::time::Duration;

/// Longest service name, in bytes: with the longest source name and a prefix it must fit a role
/// name of 63 bytes (`cadastre_SOURCE_SERVICE`).
pub const SERVICE_NAME_BYTES_MAX: usize = 32;

/// Longest source name, in bytes; see [`SERVICE_NAME_BYTES_MAX`].
pub const SOURCE_NAME_BYTES_MAX: usize = 20;

/// Largest batch of encoded changes, in bytes before compression. A larger single change stands
/// alone in its batch.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Encoded changes a source keeps in memory for readers at the tail, in bytes.
pub const TAIL_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Encoded changes that may wait to become durable before capture stops reading, in bytes.
pub const PENDING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most valid tokens of one service, of all admins, of all auditors: a rotation needs two, and all are
/// held in memory.
pub const TOKENS_PER_PRINCIPAL_MAX: usize = 100;

/// Records of an unfinished transaction gathered before they go to disk, and read back at once, in
/// bytes.
pub const SPILL_BUFFER_BYTES: usize = 256 * 1024;

/// Savepoints remembered of all unfinished transactions of a source, at about 50 bytes each; beyond
/// it PostgreSQL keeps the transactions itself.
pub const SPILL_SAVEPOINTS_MAX: usize = 200_000;

/// How long a proposed transfer may be accepted when nothing is said, and at most.
pub const TRANSFER_VALID_DEFAULT: chrono::TimeDelta = chrono::TimeDelta::days(7);
/// See [`TRANSFER_VALID_DEFAULT`]; what nobody has accepted in so long nobody remembers.
pub const TRANSFER_VALID_MAX: chrono::TimeDelta = chrono::TimeDelta::days(90);

/// Longest that glass may be broken for: longer, and it is a hand-over.
pub const BREAK_GLASS_VALID_MAX: chrono::TimeDelta = chrono::TimeDelta::hours(24);

/// Permissions to break glass shown of a dataset, the latest ones.
pub const BREAK_GLASS_SHOWN_MAX: usize = 100;

/// Longest reason given for a transfer or a permission, in bytes; a paragraph fits.
pub const REASON_BYTES_MAX: usize = 1_000;

/// Largest HTTP request body, in bytes; a manifest of some thousand datasets fits.
pub const REQUEST_BODY_BYTES_MAX: usize = 1024 * 1024;

/// Deepest GraphQL query; the deepest sensible one is about 8.
pub const GRAPHQL_DEPTH_MAX: usize = 15;

/// Highest GraphQL complexity (one per field, a page counts its size).
pub const GRAPHQL_COMPLEXITY_MAX: usize = 5_000;

/// Largest page of a GraphQL connection.
pub const PAGE_ITEMS_MAX: usize = 100;

/// Most GraphQL operations under way on one WebSocket.
pub const SOCKET_OPERATIONS_MAX: usize = 100;

/// Longest wait for the first message on a WebSocket, which says who is there.
pub const SOCKET_INIT_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest wait of a read for the revision it wants to be at least as fresh as.
pub const REVISION_WAIT_MAX: Duration = Duration::from_secs(5);

/// Most changes in one webhook request: with small rows some hundred KiB, which receivers take.
pub const WEBHOOK_BATCH_MAX: usize = 1_000;

/// Most deliveries of one subscription under way at a time.
pub const DELIVERIES_PARALLEL_MAX: usize = 64;

/// Most changes of one subscription that wait outside the log for their turn (out with a consumer,
/// failed and to be tried again, behind one of these). At that many no more are read from the log.
pub const SUBSCRIPTION_HELD_MAX: usize = 10_000;

/// Most parked changes of one subscription. At that many it stops: nobody looks at its queue.
pub const DEAD_LETTERS_MAX: usize = 10_000;

/// Largest batch that a consumer fetches, in changes.
pub const PULL_BATCH_MAX: usize = 1_000;

/// Largest batch that a consumer fetches and largest request to a receiver, in bytes of encoded
/// changes. A larger single change goes alone.
pub const DELIVERY_BYTES_MAX: usize = 1024 * 1024;

/// Longest that a consumer may wait for changes.
pub const PULL_WAIT_MAX: Duration = Duration::from_secs(30);

/// Changes of one subscription in memory, read and not settled.
pub const DELIVERY_WINDOW_CHANGES_MAX: usize = 2_000;

/// The same in bytes of encoded changes.
pub const DELIVERY_WINDOW_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most subscriptions: each has its own task, window and connections.
pub const SUBSCRIPTIONS_MAX: usize = 1_000;

/// Most datasets one feed may name.
pub const FEED_DATASETS_MAX: usize = 1_000;

/// Most feeds open at the same time; the next is told to come back later.
pub const FEED_READERS_MAX: usize = 12_000;

/// Longest search for a page of history before it is given up.
pub const HISTORY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest silence on a feed before a comment or blank line proves that it lives.
pub const FEED_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Most rows that one request to the write gateway may name: a transaction that stays short.
pub const GATEWAY_ROWS_MAX: usize = 1_000;

/// Most sessions of one service in one source that the write gateway keeps.
pub const GATEWAY_SESSIONS_MAX: usize = 4;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// How long a finding that is no longer there is kept, in days: long enough for a quarterly review.
pub const FINDINGS_KEPT_DAYS: i32 = 100;

/// Longest condition of a subscriber on the rows it wants, in bytes.
pub const PREDICATE_BYTES_MAX: usize = 4_096;

/// Deepest nesting of one.
pub const PREDICATE_DEPTH_MAX: usize = 32;

/// Most tables without an owner that are recorded as findings of a source: more are one problem.
pub const UNOWNED_FINDINGS_MAX: usize = 1_000;

/// Rows of one chunk of a snapshot in memory, in bytes, about: times the chunks of all snapshots.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 2 * 1024 * 1024;
