//! RFC 9457 problems: what a client is told when a request fails.
//!
//! The one table from every room's error to a code (and with it to a status), used by REST and
//! GraphQL alike. What a client reads (`detail`) and what an operator reads (`cause`) are
//! different texts: the second is logged once, where the request is, and never sent.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde_json::{Map, Value};

use super::code::Code;
use crate::capture::snapshot;
use crate::telemetry::ErrorChain;
use crate::vocab::{ModeError, NameError, PositionError, Retry, limits};
use crate::{feed, gateway, guard, log, registry};

/// How long a client is asked to wait before it repeats what was refused for a passing reason.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a request failed.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    code: Code,
    detail: String,
    members: Map<String, Value>,
    allow: Option<&'static str>,
    cause: Option<String>,
}

impl Problem {
    /// A problem with a text for the client: what is wrong and what would be right.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), members: Map::new(), allow: None, cause: None }
    }

    /// The method is not one of `allow` (as the header writes them).
    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(Code::MethodNotAllowed, format!("this route answers {allow}"))
        }
    }

    /// The body is larger than it may be.
    pub(super) fn payload_too_large() -> Self {
        let max = limits::REQUEST_BODY_BYTES_MAX;
        Self::new(Code::PayloadTooLarge, format!("a body may have at most {max} bytes"))
            .with("limit_bytes", max.into())
    }

    /// A fault of ours; `cause` is for the log alone.
    pub(super) fn internal(cause: impl Into<String>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(Code::Internal, "the failure is logged under this request_id")
        }
    }

    /// An error that actix made before or instead of a handler, told apart by its status alone.
    pub(super) fn foreign(error: &actix_web::Error) -> Self {
        let status = error.as_response_error().status_code();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            Self::payload_too_large()
        } else if status.is_client_error() {
            Self::new(Code::BadRequest, error.to_string())
        } else {
            Self::internal(error.to_string())
        }
    }

    /// The same with an extension member.
    pub(super) fn with(mut self, member: &str, value: Value) -> Self {
        self.members.insert(member.to_owned(), value);
        self
    }

    fn caused_by(mut self, error: &(dyn StdError + 'static)) -> Self {
        self.cause = Some(ErrorChain(error).to_string());
        self
    }

    /// The stable code.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// What the client is told.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// What the operator is told, if there is more to tell.
    pub(super) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Extension members, such as `earliest` or `errors`.
    pub(super) fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// The problem as JSON.
    pub(super) fn to_json(&self, request_id: Option<&str>) -> Value {
        let mut json = Map::new();
        json.insert("type".into(), format!("urn:cadastre:problem:{}", self.code.as_str()).into());
        json.insert("title".into(), self.code.title().into());
        json.insert("status".into(), self.code.status().as_u16().into());
        json.insert("detail".into(), self.detail.as_str().into());
        json.insert("code".into(), self.code.as_str().into());
        if let Some(id) = request_id {
            json.insert("request_id".into(), id.into());
        }
        json.extend(self.members.clone());
        Value::Object(json)
    }

    /// The problem as a response.
    pub(super) fn respond(&self, request_id: Option<&str>) -> HttpResponse<BoxBody> {
        let mut response = HttpResponseBuilder::new(self.code.status());
        response.content_type("application/problem+json");
        match self.code {
            Code::Unauthenticated => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"cadastre\""));
            }
            Code::InvalidToken => {
                response.insert_header((
                    header::WWW_AUTHENTICATE,
                    "Bearer realm=\"cadastre\", error=\"invalid_token\"",
                ));
            }
            Code::Busy | Code::TooManyFeeds | Code::TooManySnapshots | Code::Unavailable => {
                response.insert_header((header::RETRY_AFTER, RETRY_AFTER.as_secs()));
            }
            Code::MethodNotAllowed => {
                response.insert_header((header::ALLOW, self.allow.unwrap_or_default()));
            }
            Code::Forbidden
            | Code::NotFound
            | Code::UnknownDataset
            | Code::UnknownService
            | Code::UnknownSource
            | Code::UnknownSubscription
            | Code::BadRequest
            | Code::MalformedName
            | Code::MalformedPosition
            | Code::PositionTrimmed
            | Code::PayloadTooLarge
            | Code::UnsupportedMediaType
            | Code::NotAcceptable
            | Code::Refused
            | Code::Conflict
            | Code::NotOwner
            | Code::RowNotFound
            | Code::ConstraintViolated
            | Code::IdempotencyKeyReused
            | Code::LogCorrupt
            | Code::Internal => {}
        }
        response.body(self.to_json(request_id).to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        self.respond(None)
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::new(Code::MalformedName, error.to_string())
    }
}

impl From<registry::TokenIdError> for Problem {
    fn from(error: registry::TokenIdError) -> Self {
        Self::new(Code::BadRequest, error.to_string())
    }
}

impl From<PositionError> for Problem {
    fn from(error: PositionError) -> Self {
        Self::new(Code::MalformedPosition, error.to_string())
    }
}

impl From<ModeError> for Problem {
    fn from(error: ModeError) -> Self {
        Self::new(Code::BadRequest, error.to_string())
    }
}

impl From<registry::Error> for Problem {
    fn from(error: registry::Error) -> Self {
        use registry::Error;
        match &error {
            Error::NotFound { kind, .. } => {
                let code = match *kind {
                    "dataset" => Code::UnknownDataset,
                    "service" => Code::UnknownService,
                    "source" => Code::UnknownSource,
                    "subscription" => Code::UnknownSubscription,
                    _ => Code::NotFound,
                };
                Self::new(code, error.to_string())
            }
            Error::Invalid { .. } => Self::new(Code::BadRequest, error.to_string()),
            Error::Conflict { .. } => Self::new(Code::Conflict, error.to_string()),
            Error::Unavailable(_) => {
                Self::new(Code::Unavailable, error.to_string()).caused_by(&error)
            }
        }
    }
}

impl From<guard::Error> for Problem {
    fn from(error: guard::Error) -> Self {
        use guard::Error;
        match error {
            Error::Refused(refusals) => {
                let errors = refusals
                    .iter()
                    .map(|refusal| {
                        serde_json::json!({
                            "kind": refusal.kind, "name": refusal.name, "message": refusal.message
                        })
                    })
                    .collect();
                let detail =
                    refusals.iter().map(|refusal| refusal.message.as_str()).collect::<Vec<_>>();
                Self::new(Code::Refused, detail.join("; ")).with("errors", Value::Array(errors))
            }
            Error::Registry(error) => error.into(),
            Error::Source { .. } => {
                Self::new(Code::Unavailable, error.to_string()).caused_by(&error)
            }
            Error::Busy { .. } | Error::Occupied { .. } => Self::new(Code::Busy, error.to_string()),
            Error::UnknownDataset(_) => Self::new(Code::UnknownDataset, error.to_string()),
            Error::UnknownSource(_) => Self::new(Code::UnknownSource, error.to_string()),
        }
    }
}

impl From<gateway::Error> for Problem {
    fn from(error: gateway::Error) -> Self {
        use gateway::Error;
        let text = error.to_string();
        match error {
            Error::Invalid { .. } => Self::new(Code::BadRequest, text),
            Error::UnknownDataset(_) => Self::new(Code::UnknownDataset, text),
            Error::NoRole { .. } | Error::NoPrivilege { .. } => Self::new(Code::Forbidden, text),
            Error::NotOwner { owner, .. } => {
                Self::new(Code::NotOwner, text).with("owner", owner.as_str().into())
            }
            Error::NoSuchRow { .. } => Self::new(Code::RowNotFound, text),
            Error::Constraint { constraint, column, .. } => {
                let mut problem = Self::new(Code::ConstraintViolated, text);
                for (member, value) in [("constraint", constraint), ("column", column)] {
                    if let Some(value) = value {
                        problem = problem.with(member, value.into());
                    }
                }
                problem
            }
            Error::Refused { .. } => Self::new(Code::Refused, text),
            Error::KeyReused => Self::new(Code::IdempotencyKeyReused, text),
            Error::Busy | Error::Full { .. } => Self::new(Code::Busy, text),
            Error::Source { .. } | Error::Unknown { .. } => {
                Self::new(Code::Unavailable, text).caused_by(&error)
            }
        }
    }
}

impl From<feed::Error> for Problem {
    fn from(error: feed::Error) -> Self {
        use feed::Error;
        let trimmed = |earliest: crate::vocab::Position| {
            let detail = format!(
                "changes after that position are gone from the log: read after {earliest} or with \
                 after=earliest, and take it that changes were missed"
            );
            Self::new(Code::PositionTrimmed, detail).with("earliest", earliest.to_string().into())
        };
        if let Error::Registry(error) = error {
            return error.into();
        }
        match &error {
            Error::UnknownDataset(_) => Self::new(Code::UnknownDataset, error.to_string()),
            Error::UnknownSubscription(_) => {
                Self::new(Code::UnknownSubscription, error.to_string())
            }
            Error::UnknownDeadLetter { .. } => Self::new(Code::NotFound, error.to_string()),
            Error::Conflict(_) => Self::new(Code::Conflict, error.to_string()),
            Error::Store(_) | Error::Registry(_) => {
                Self::new(Code::Unavailable, error.to_string()).caused_by(&error)
            }
            Error::Invalid(_) => Self::new(Code::BadRequest, error.to_string()),
            Error::Full { limit } => {
                let detail = format!("{limit} feeds are open, which is as many as may be");
                Self::new(Code::TooManyFeeds, detail).with("limit", (*limit).into())
            }
            Error::SnapshotsFull { limit } => {
                let detail = format!("{limit} snapshots are under way, which is as many as may be");
                Self::new(Code::TooManySnapshots, detail).with("limit", (*limit).into())
            }
            Error::Unsettled { .. } => Self::new(Code::Busy, error.to_string()),
            Error::CapturedElsewhere { .. } => Self::new(Code::Unavailable, error.to_string()),
            Error::Source(cause) => match cause {
                snapshot::Error::Gone(_) | snapshot::Error::Denied { .. } => {
                    Self::new(Code::Refused, cause.to_string())
                }
                snapshot::Error::Surprise(_) => Self::internal(ErrorChain(&error).to_string()),
                snapshot::Error::Source(_) => {
                    Self::new(Code::Unavailable, "the source cannot be read now").caused_by(&error)
                }
            },
            Error::Trimmed { earliest } | Error::Log(log::Error::Trimmed { earliest }) => {
                trimmed(*earliest)
            }
            Error::Log(
                log::Error::Busy { .. }
                | log::Error::Stopped
                | log::Error::Database { retry: Retry::Now | Retry::Later, .. },
            ) => Self::new(Code::Unavailable, "the log cannot be read now").caused_by(&error),
            Error::Log(error @ log::Error::Corrupt { .. }) => {
                Self::new(Code::LogCorrupt, error.to_string()).caused_by(error)
            }
            Error::Log(
                log::Error::OutOfOrder { .. }
                | log::Error::TooLarge { .. }
                | log::Error::Database { retry: Retry::Never, .. },
            ) => Self::internal(ErrorChain(&error).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Epoch, Lsn, Position};

    #[test]
    fn a_problem_carries_code_status_and_request_id() {
        let problem = Problem::new(Code::UnknownDataset, "no dataset is named \"a.b.c\"");
        insta::assert_json_snapshot!(problem.to_json(Some("r-1")), @r#"
        {
          "code": "unknown_dataset",
          "detail": "no dataset is named \"a.b.c\"",
          "request_id": "r-1",
          "status": 404,
          "title": "No dataset has this name",
          "type": "urn:cadastre:problem:unknown_dataset"
        }
        "#);
    }

    #[test]
    fn a_trimmed_position_says_where_the_log_begins() {
        let earliest = Position::new(Epoch::FIRST, Lsn::new(7), 1);
        let problem = Problem::from(feed::Error::Trimmed { earliest });
        assert_eq!(problem.status_code(), StatusCode::GONE);
        assert_eq!(problem.members()["earliest"], "01-0000000000000007-00000001");
    }

    #[test]
    fn passing_failures_say_when_to_come_back() {
        let response = Problem::from(feed::Error::Full { limit: 3 }).respond(None);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get(header::RETRY_AFTER).unwrap(), "2");
    }

    #[test]
    fn causes_are_for_the_log_alone() {
        let problem = Problem::internal("connection to 10.0.0.7 refused");
        assert!(!problem.to_json(None).to_string().contains("10.0.0.7"));
        assert_eq!(problem.cause(), Some("connection to 10.0.0.7 refused"));
    }
}
