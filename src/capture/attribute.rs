//! What the guard says through logical messages: who wrote, and who was not allowed to.
//!
//! Messages are JSON with `"v":1`. One that cannot be read is no reason to stop: whatever may emit
//! messages in a source could otherwise hold up its stream.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::registry::{NewViolation, Shape, Standing, TableName, Verdict};
use crate::vocab::{Epoch, Lsn, Mode, ServiceName, SourceId, TraceParent};

/// Prefix of the transactional message that names the writer of a dataset's next changes.
pub(super) const WRITER: &[u8] = b"cadastre.writer";

/// Prefix of the message that reports a violation; sent even when the transaction aborts.
pub(super) const VIOLATION: &[u8] = b"cadastre.violation";

/// Prefix of the transactional message that stands where a guard was installed, and with it where
/// an owner or a mode begins.
pub(super) const OWNERSHIP: &[u8] = b"cadastre.ownership";

/// Prefix of the message that this program sends through a source and expects back.
pub(super) const HEARTBEAT: &[u8] = b"cadastre.heartbeat";

/// A heartbeat.
#[derive(Debug, Deserialize)]
pub(super) struct HeartbeatMessage {
    #[serde(rename = "v")]
    _version: Version1,
    /// Which process sent it, and its number there.
    pub(super) id: String,
}
/// Prefix of the transactional message that says that the guard of a dataset is off, or stands again.
pub(super) const GUARD: &[u8] = b"cadastre.guard";

/// Prefix of the transactional message that says what became of a table.
pub(super) const SCHEMA: &[u8] = b"cadastre.schema";

/// What became of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SchemaKind {
    /// The guard was installed on it.
    Installed,
    /// Its columns, its key or their types are others.
    Altered,
    /// It has another name.
    Renamed,
    /// It is in another schema.
    Moved,
    /// It is gone.
    Dropped,
    /// A table with rows became a part of it.
    Attached,
    /// A part with rows is no longer part of it.
    Detached,
    /// A foreign key of another service's table refers to it.
    Coupled,
    /// Such a key is gone.
    Uncoupled,
    /// A table that nobody has registered is there, or has another name.
    Created,
    /// A table that nobody has registered is gone.
    Gone,
}

impl SchemaKind {
    /// The lower-case word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Altered => "altered",
            Self::Renamed => "renamed",
            Self::Moved => "moved",
            Self::Dropped => "dropped",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Coupled => "coupled",
            Self::Uncoupled => "uncoupled",
            Self::Created => "created",
            Self::Gone => "gone",
        }
    }
}

/// What became of a table; `schema/guard/04_ddl.sql` says which members come with which kind.
#[derive(Debug, Deserialize)]
pub(super) struct SchemaMessage {
    #[serde(rename = "v")]
    _version: Version1,
    /// What.
    pub(super) kind: SchemaKind,
    /// The dataset's name; none for a table that nobody has registered.
    pub(super) dataset: Option<String>,
    /// The table's OID.
    pub(super) relid: u32,
    /// The table's name.
    #[serde(flatten)]
    pub(super) name: TableName,
    /// The command's tag.
    pub(super) command: String,
    /// The service as the source knows it.
    pub(super) service: Option<String>,
    /// The role that ran the command.
    pub(super) role: String,
    /// The table as it is now.
    pub(super) shape: Option<Shape>,
    /// The part that came or went.
    pub(super) part: Option<PartMessage>,
    /// A foreign key's name.
    pub(super) constraint: Option<String>,
    /// The table of the foreign key.
    pub(super) from: Option<TableName>,
}

/// A part of a table.
#[derive(Debug, Deserialize)]
pub(super) struct PartMessage {
    /// Its OID.
    pub(super) relid: u32,
    /// Its name.
    #[serde(flatten)]
    pub(super) name: TableName,
}

/// Whose a dataset is from here on, and how that is held.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnershipMessage {
    #[serde(rename = "v")]
    _version: Version1,
    /// The dataset's name.
    pub(super) dataset: String,
    owner: ServiceName,
    mode: Mode,
    /// What the source held before; absent for a dataset that was not governed there.
    owner_before: Option<ServiceName>,
    mode_before: Option<Mode>,
    /// The transfer that this completes.
    pub(super) transfer: Option<i64>,
    /// Why.
    pub(super) reason: Option<String>,
    /// Who had it done.
    pub(super) actor: Option<String>,
}

impl OwnershipMessage {
    /// What was before.
    pub(super) fn before(&self) -> Option<Standing> {
        Some(Standing { owner: self.owner_before.clone()?, mode: self.mode_before? })
    }

    /// What is from here on.
    pub(super) fn after(&self) -> Standing {
        Standing { owner: self.owner.clone(), mode: self.mode }
    }
}

/// Why a message names the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    /// The owner writes, in a trace.
    Trace,
    /// Another service writes and is let through.
    Observed,
    /// A superuser writes.
    Privileged,
    /// A service writes that an admin let for a time.
    BreakGlass,
}

/// The writer of the changes of a dataset that follow in the transaction.
#[derive(Debug, Deserialize)]
pub(super) struct WriterMessage {
    #[serde(rename = "v")]
    _version: Version1,
    /// The dataset's name.
    pub(super) dataset: String,
    /// The role that writes.
    pub(super) role: String,
    /// The session's trace.
    pub(super) traceparent: Option<String>,
    /// Why this is said.
    pub(super) reason: Reason,
    /// The service as the source knows it.
    pub(super) service: Option<String>,
}

/// Whether a guard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stands {
    /// It does not: anybody may have written from here on.
    Off,
    /// It does again.
    On,
}

/// The guard of a dataset is off, or stands again.
#[derive(Debug, Deserialize)]
pub(super) struct GuardMessage {
    #[serde(rename = "v")]
    _version: Version1,
    /// The dataset's name.
    pub(super) dataset: String,
    /// Which of the two.
    pub(super) state: Stands,
    /// Where the WAL ended when it was last seen to stand, as PostgreSQL writes it.
    pub(super) since: Option<String>,
}

/// An attempt by a service that is not the owner.
#[derive(Debug, Deserialize)]
pub(super) struct ViolationMessage {
    #[serde(rename = "v")]
    _version: Version1,
    verdict: Verdict,
    dataset: String,
    op: String,
    /// The role that wrote.
    pub(super) role: String,
    login: String,
    app: Option<String>,
    client: Option<String>,
    xid: Option<String>,
    traceparent: Option<String>,
    at: DateTime<Utc>,
    /// The service as the source knows it.
    pub(super) service: Option<String>,
}

impl ViolationMessage {
    /// Transaction, dataset and role, if the write was let through.
    pub(super) fn let_through(&self) -> Option<[String; 3]> {
        let xid = self.xid.clone()?;
        let passed = [xid, self.dataset.clone(), self.role.clone()];
        (self.verdict != Verdict::Rejected).then_some(passed)
    }

    /// What is recorded of it.
    pub(super) fn into_report(
        self,
        (source_id, epoch, lsn): (SourceId, Epoch, Lsn),
        service: Option<String>,
    ) -> NewViolation {
        NewViolation {
            source_id,
            epoch,
            lsn,
            at: self.at,
            verdict: self.verdict,
            operation: self.op,
            dataset: self.dataset,
            service,
            role: self.role,
            login: self.login,
            application: self.app,
            client: self.client,
            traceparent: trace(self.traceparent.as_deref()).map(|trace| trace.to_string()),
        }
    }
}

/// A trace context if it is one: sessions may set anything.
pub(super) fn trace(text: Option<&str>) -> Option<TraceParent> {
    text?.parse().ok()
}

/// Reads a message; `None` when it is not one of version 1.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(content: &[u8]) -> Option<T> {
    serde_json::from_slice(content).ok()
}

/// The number 1 and no other.
#[derive(Debug, Deserialize)]
#[serde(try_from = "u32")]
struct Version1;

impl TryFrom<u32> for Version1 {
    type Error = &'static str;

    fn try_from(version: u32) -> Result<Self, Self::Error> {
        if version == 1 { Ok(Self) } else { Err("expected version 1") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_guard_are_read() {
        let writer: WriterMessage = parse(
            br#"{"v":1,"dataset":"shop.public.orders","role":"orders_app","login":"orders_app",
                 "traceparent":null,"reason":"trace"}"#,
        )
        .unwrap();
        assert_eq!((writer.role.as_str(), writer.reason), ("orders_app", Reason::Trace));

        for at in ["2026-11-24 04:55:47.123+00:00", "2026-11-24T04:55:47.123Z"] {
            let message = format!(
                r#"{{"v":1,"verdict":"rejected","dataset":"shop.public.orders","op":"INSERT",
                "owner":"orders","role":"billing_app","login":"billing_app","app":"psql",
                "client":null,"traceparent":"forged","xid":"741","pid":1,"at":"{at}"}}"#
            );
            let violation: ViolationMessage = parse(message.as_bytes()).unwrap();
            let at = (SourceId(3), Epoch::FIRST, Lsn::new(9));
            let report = violation.into_report(at, Some("billing".to_owned()));
            assert_eq!(report.at.to_rfc3339(), "2026-11-24T04:55:47.123+00:00");
            assert_eq!((report.verdict, report.operation.as_str()), (Verdict::Rejected, "INSERT"));
            assert_eq!((report.traceparent, report.client), (None, None));
        }
    }

    #[test]
    fn what_is_not_a_message_of_version_1_is_none() {
        for content in [
            &b""[..],
            b"\xff",
            b"[]",
            br#"{"dataset":"shop.public.orders","role":"r","reason":"trace"}"#,
            br#"{"v":2,"dataset":"shop.public.orders","role":"r","reason":"trace"}"#,
            br#"{"v":1,"dataset":"shop.public.orders","role":"r","reason":"whim"}"#,
        ] {
            assert!(parse::<WriterMessage>(content).is_none());
        }
    }
}
