//! Kinds of findings that are drift, as they stand in the registry.

/// No guard on a table.
pub(super) const GUARD_MISSING: &str = "guard_missing";
/// A guard that is not enabled always.
pub(super) const GUARD_DISABLED: &str = "guard_disabled";
/// A guard that is not as installed.
pub(super) const GUARD_ALTERED: &str = "guard_altered";
/// The source notes something else about a dataset.
pub(super) const REGISTRATION: &str = "registration_altered";
/// An object of the guard is gone.
pub(super) const OBJECT_MISSING: &str = "object_missing";
/// An object of the guard is not as installed.
pub(super) const OBJECT_ALTERED: &str = "object_altered";
/// Something in the guard's schema that is not the guard's.
pub(super) const OBJECT_FOREIGN: &str = "object_foreign";
/// An event trigger is gone, off or altered.
pub(super) const EVENT_TRIGGER: &str = "event_trigger_altered";
/// Somebody else may emit logical messages.
pub(super) const EMIT_OPEN: &str = "emit_open";
/// A role is a member where it is not declared, or is not where it is.
pub(super) const MEMBERSHIP: &str = "membership_altered";
/// A login can act for two services.
pub(super) const ROLE_SHARED: &str = "role_shared";
/// The publication is gone, or its options are others.
pub(super) const PUBLICATION: &str = "publication_altered";
/// A dataset is not in the publication, or only in part.
pub(super) const UNPUBLISHED: &str = "unpublished";
/// The table of a dataset is gone.
pub(super) const TABLE_MISSING: &str = "table_missing";
/// Somebody else has a privilege to write a dataset in lockdown.
pub(super) const PRIVILEGE_OPEN: &str = "privilege_open";

/// The kinds of findings that are drift.
pub const ALL: [&str; 15] = [
    GUARD_MISSING,
    GUARD_DISABLED,
    GUARD_ALTERED,
    REGISTRATION,
    OBJECT_MISSING,
    OBJECT_ALTERED,
    OBJECT_FOREIGN,
    EVENT_TRIGGER,
    EMIT_OPEN,
    MEMBERSHIP,
    ROLE_SHARED,
    PUBLICATION,
    UNPUBLISHED,
    TABLE_MISSING,
    PRIVILEGE_OPEN,
];
