//! What the registry knows, as plain values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::GuardGap;
use super::break_glass::BreakGlass;
use super::token::{Grant, TokenId};
use super::transfer::{Tenure, Transfer};
use crate::vocab::{
    DatasetId, DatasetName, Epoch, Lsn, Mode, RoleName, ServiceName, SourceId, SourceName,
};

/// Counts mutations of the registry. A read that has seen revision N has seen every mutation up to
/// N.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Revision(pub i64);

/// A program that owns or consumes data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The registry's number.
    pub id: i32,
    /// Unique name.
    pub name: ServiceName,
    /// The team that answers for it.
    pub team: Option<String>,
    /// How to reach that team: an address, a channel.
    pub contact: Option<String>,
    /// Its database roles in each source.
    pub roles: BTreeMap<SourceName, Vec<RoleName>>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A PostgreSQL database under governance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The registry's number.
    pub id: SourceId,
    /// Unique name.
    pub name: SourceName,
    /// Connection string as declared: references like `${SHOP_DATABASE_URL}` are not resolved here.
    pub url: String,
    /// The generation of its slot.
    pub epoch: Epoch,
    /// It is being uninstalled: it has no datasets any more and is not captured.
    pub leaving: bool,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// What is known of one column beyond its catalog entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnFacts {
    /// Sensitivity, such as `pii`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<String>,
    /// What it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Whether the guard of a dataset stands in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardState {
    /// Registered; the guard is not (or no longer known to be) in the source as registered.
    Pending,
    /// The guard stands in the source with the registered owner and mode.
    Installed,
    /// The table was dropped. The dataset stays, with its history, and is guarded again when the table
    /// is there again.
    Dropped,
}

/// A governed table: exactly one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The registry's number.
    pub id: DatasetId,
    /// `SOURCE.SCHEMA.TABLE`.
    pub name: DatasetName,
    /// The number of its source.
    pub source_id: SourceId,
    /// The one service that may write it.
    pub owner: ServiceName,
    /// What the guard does with anyone else's write.
    pub mode: Mode,
    /// One line on what a row is.
    pub description: Option<String>,
    /// Free labels, sorted.
    pub tags: Vec<String>,
    /// Facts about columns, by name.
    pub columns: BTreeMap<String, ColumnFacts>,
    /// Datasets it is declared to derive from (declared lineage), sorted.
    pub derived_from: Vec<String>,
    /// Whether its guard stands.
    pub guard: GuardState,
    /// Where in the source's WAL nobody vouches for its changes: what still lasts, and what ended
    /// lately enough to be read again.
    pub gaps: Vec<GuardGap>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A named reader as declared. Delivery reads it; here it is only kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    /// Unique name.
    pub name: String,
    /// The service that reads.
    pub service: ServiceName,
    /// What it reads.
    pub datasets: Vec<DatasetName>,
    /// `deliver`, `retry` as declared in the manifest.
    pub spec: serde_json::Value,
}

/// A service that held a dataset for a span of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipPeriod {
    /// The owner.
    pub service: ServiceName,
    /// From, inclusive.
    pub from: DateTime<Utc>,
    /// To, exclusive; `None` for the present owner.
    pub to: Option<DateTime<Utc>>,
    /// Why it began.
    pub tenure: Tenure,
}

/// Everything the registry answers from: immutable, shared, swapped whole.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The last mutation it contains.
    pub revision: Revision,
    /// By name.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// By name.
    pub sources: BTreeMap<SourceName, Arc<Source>>,
    /// By name.
    pub datasets: BTreeMap<DatasetName, Arc<Dataset>>,
    /// By name.
    pub subscriptions: BTreeMap<String, Arc<Subscription>>,
    /// Names that datasets' tables have or had beside those they are registered under.
    pub aliases: HashMap<DatasetName, DatasetId>,
    /// Datasets by number.
    pub datasets_by_id: HashMap<DatasetId, Arc<Dataset>>,
    /// The service a role writes for, by source and role.
    pub service_by_role: HashMap<(SourceName, RoleName), ServiceName>,
    /// Why the present owners are owners.
    pub tenures: HashMap<DatasetId, Tenure>,
    /// Transfers that nobody has decided, those past their time included.
    pub transfers: BTreeMap<i64, Transfer>,
    /// Permissions to break glass that held when this was loaded.
    pub break_glass: BTreeMap<Uuid, BreakGlass>,
    /// Services that were retired, and when.
    pub retired: BTreeMap<ServiceName, DateTime<Utc>>,
    /// What tokens are good for, by id; revoked ones are not here.
    pub grants: HashMap<TokenId, Grant>,
}

/// One change of the registry. A list of them is applied whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Mutation {
    /// Creates a service or replaces what is declared of it (roles included).
    ServicePut {
        /// Unique name.
        name: ServiceName,
        /// The team that answers for it.
        team: Option<String>,
        /// How to reach it.
        contact: Option<String>,
        /// Its roles in each source; roles not listed are taken away.
        roles: BTreeMap<SourceName, Vec<RoleName>>,
    },
    /// Creates a source or replaces its connection string.
    SourcePut {
        /// Unique name.
        name: SourceName,
        /// Connection string, unresolved.
        url: String,
    },
    /// Creates a dataset or replaces what is declared of it. Changing the owner here ends the
    /// present ownership period and begins the next.
    DatasetPut {
        /// `SOURCE.SCHEMA.TABLE`.
        name: DatasetName,
        /// The one service that may write it.
        owner: ServiceName,
        /// Mode.
        mode: Mode,
        /// One line on what a row is.
        description: Option<String>,
        /// Free labels.
        tags: Vec<String>,
        /// Facts about columns.
        columns: BTreeMap<String, ColumnFacts>,
        /// Declared lineage.
        derived_from: Vec<String>,
    },
    /// Lets a dataset pass to the receiver of a proposed transfer.
    OwnershipTransfer {
        /// The transfer.
        transfer: i64,
        /// Who accepts it.
        by: String,
    },
    /// Lets one service write another's dataset for a time.
    BreakGlassGrant {
        /// Made up by who grants it.
        id: Uuid,
        /// What may be written.
        dataset: DatasetName,
        /// By whom.
        service: ServiceName,
        /// Why.
        reason: String,
        /// From when on it is over.
        expires_at: DateTime<Utc>,
        /// Who grants it.
        by: String,
    },
    /// Takes such a permission back before its end.
    BreakGlassRevoke {
        /// Which.
        id: Uuid,
        /// Who takes it back.
        by: String,
    },
    /// Retires a service that nothing depends on: its roles and tokens are taken away.
    ServiceRetire {
        /// Which.
        name: ServiceName,
        /// Who retires it.
        by: String,
    },
    /// Creates a subscription or replaces what is declared of it.
    SubscriptionPut(Subscription),
}

/// What became of an attempt by a service that is not the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Recorded and let through.
    Observed,
    /// Rejected.
    Rejected,
    /// Let through because PostgreSQL cannot stop a superuser.
    Privileged,
    /// Let through because an admin had permitted it for a time.
    BreakGlass,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Observed, Self::Rejected, Self::Privileged, Self::BreakGlass];

    /// The lower-case word used in the database and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Rejected => "rejected",
            Self::Privileged => "privileged",
            Self::BreakGlass => "break_glass",
        }
    }
}

/// One attempted write by a service that is not the owner, as the guard reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewViolation {
    /// Where it was seen.
    pub source_id: SourceId,
    /// Slot generation and LSN of the guard's message: together with the source its identity, so
    /// that a replayed message is recorded once.
    pub epoch: Epoch,
    /// LSN of the guard's message.
    pub lsn: Lsn,
    /// When, by the source's clock.
    pub at: DateTime<Utc>,
    /// What became of it.
    pub verdict: Verdict,
    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE` or a DDL command tag.
    pub operation: String,
    /// The dataset written to.
    pub dataset: String,
    /// The service the role belongs to, if any.
    pub service: Option<String>,
    /// The role that wrote (`current_user`).
    pub role: String,
    /// The login it wrote through (`session_user`).
    pub login: String,
    /// `application_name`.
    pub application: Option<String>,
    /// Client address; `None` over a Unix socket.
    pub client: Option<String>,
    /// The session's trace context.
    pub traceparent: Option<String>,
}

/// A recorded violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Ascending in the order of recording.
    pub id: i64,
    /// What was reported.
    pub report: NewViolation,
}
