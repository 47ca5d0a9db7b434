//! The stable codes of what can go wrong, each with its status and title.
//!
//! REST shows a code as it stands here, GraphQL in upper case: one vocabulary for both.

use actix_web::http::StatusCode;

/// What went wrong, for programs. A code keeps its meaning for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// No token was given.
    Unauthenticated,
    /// A token was given that is not one of ours.
    InvalidToken,
    /// The token is good, but not for this.
    Forbidden,
    /// The dataset is another service's.
    NotOwner,
    /// No such route or object.
    NotFound,
    /// No dataset has this name.
    UnknownDataset,
    /// No service has this name.
    UnknownService,
    /// No source has this name.
    UnknownSource,
    /// No subscription has this name.
    UnknownSubscription,
    /// The request says something that cannot be.
    BadRequest,
    /// The name cannot be the name of anything.
    MalformedName,
    /// The position is not of the form of one.
    MalformedPosition,
    /// The log no longer holds what follows this position.
    PositionTrimmed,
    /// The body is larger than allowed.
    PayloadTooLarge,
    /// The body is of a type that is not read here.
    UnsupportedMediaType,
    /// No representation that the client accepts.
    NotAcceptable,
    /// The route does not know this method.
    MethodNotAllowed,
    /// The declaration contradicts itself, the registry or the source; `errors` says where.
    Refused,
    /// No row has the key, or several have it.
    RowNotFound,
    /// A constraint of the table does not allow it.
    ConstraintViolated,
    /// The idempotency key was used for a request with another body.
    IdempotencyKeyReused,
    /// Somebody else's change stands in the way.
    Conflict,
    /// A table stayed locked; the same request may succeed later.
    Busy,
    /// As many feeds are open as may be.
    TooManyFeeds,
    /// A chunk of the log is not what was stored.
    LogCorrupt,
    /// As many snapshots are under way as may be.
    TooManySnapshots,
    /// Something this server depends on does not answer.
    Unavailable,
    /// A fault of this server.
    Internal,
}

impl Code {
    /// The code as problems show it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::InvalidToken => "invalid_token",
            Self::Forbidden => "forbidden",
            Self::NotOwner => "not_owner",
            Self::RowNotFound => "row_not_found",
            Self::ConstraintViolated => "constraint_violated",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::NotFound => "not_found",
            Self::UnknownDataset => "unknown_dataset",
            Self::UnknownService => "unknown_service",
            Self::UnknownSource => "unknown_source",
            Self::UnknownSubscription => "unknown_subscription",
            Self::BadRequest => "bad_request",
            Self::MalformedName => "malformed_name",
            Self::MalformedPosition => "malformed_position",
            Self::PositionTrimmed => "position_trimmed",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::NotAcceptable => "not_acceptable",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::TooManyFeeds => "too_many_feeds",
            Self::LogCorrupt => "log_corrupt",
            Self::TooManySnapshots => "too_many_snapshots",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The code as `extensions.code` of a GraphQL error shows it.
    pub(super) fn graphql(self) -> String {
        self.as_str().to_ascii_uppercase()
    }

    /// The status that goes with the code.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::NotOwner => StatusCode::FORBIDDEN,
            Self::RowNotFound
            | Self::NotFound
            | Self::UnknownDataset
            | Self::UnknownService
            | Self::UnknownSource
            | Self::UnknownSubscription => StatusCode::NOT_FOUND,
            Self::BadRequest | Self::MalformedName | Self::MalformedPosition => {
                StatusCode::BAD_REQUEST
            }
            Self::PositionTrimmed => StatusCode::GONE,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Refused | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict | Self::ConstraintViolated => StatusCode::CONFLICT,
            Self::Busy | Self::TooManyFeeds | Self::TooManySnapshots | Self::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::LogCorrupt | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The same few words for every problem of this code.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Unauthenticated => "A token is needed",
            Self::InvalidToken => "The token is not valid",
            Self::Forbidden => "The token does not allow this",
            Self::NotOwner => "The dataset is another service's",
            Self::RowNotFound => "No row has this key",
            Self::ConstraintViolated => "A constraint of the table does not allow it",
            Self::IdempotencyKeyReused => "The key stands for another request",
            Self::NotFound => "There is nothing here",
            Self::UnknownDataset => "No dataset has this name",
            Self::UnknownService => "No service has this name",
            Self::UnknownSource => "No source has this name",
            Self::UnknownSubscription => "No subscription has this name",
            Self::BadRequest => "The request is not well formed",
            Self::MalformedName => "The name is not well formed",
            Self::MalformedPosition => "The position is not well formed",
            Self::PositionTrimmed => "The log no longer holds this position",
            Self::PayloadTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body is of another type than expected",
            Self::NotAcceptable => "Nothing here that the client accepts",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::Refused => "The declaration cannot be applied",
            Self::Conflict => "The request conflicts with the present state",
            Self::Busy => "A table is locked",
            Self::TooManyFeeds => "Too many feeds are open",
            Self::LogCorrupt => "Part of the log is damaged",
            Self::TooManySnapshots => "Too many snapshots are under way",
            Self::Unavailable => "A dependency does not answer",
            Self::Internal => "The server failed",
        }
    }
}
