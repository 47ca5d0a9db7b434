//! Who is asking: bearer tokens.
//!
//! A token is the static admin token of the server or one that the registry holds; both are known
//! by their SHA-256 alone and answered from memory. A token never reaches a log line or a message.
//! What its bearer may do is decided by [`super::access`].

use std::future::{Ready, ready};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use chrono::Utc;
use secrecy::{ExposeSecret, SecretString};

use super::access::{self, Needs};
use super::code::Code;
use super::problem::Problem;
use super::server::{Context, Shared};
pub use crate::registry::Principal;
use crate::registry::{TokenDigest, TokenId};

/// The static admin token, as its digest.
#[derive(Debug, Clone)]
pub struct Tokens {
    admin: TokenDigest,
}

impl Tokens {
    /// Knows this admin token.
    pub fn new(admin: &SecretString) -> Self {
        Self { admin: TokenDigest::of(admin.expose_secret()) }
    }

    /// Whether this is it.
    fn is_admin(&self, token: &str) -> bool {
        self.admin.is(&TokenDigest::of(token))
    }
}

/// Who a request is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// Whom the token stands for.
    pub(super) principal: Principal,
    /// Which token; `None` for the static admin token.
    pub(super) token: Option<TokenId>,
}

impl Caller {
    /// Whether the token still stands for the same: it may have been revoked or have expired since.
    pub(super) fn is_still_valid(&self, context: &Context) -> bool {
        let Some(id) = &self.token else { return true };
        let snapshot = context.registry.snapshot();
        snapshot.grants.get(id).is_some_and(|grant| grant.is_valid(Utc::now()))
    }

    /// Who is written down as having done something.
    pub(super) fn actor(&self) -> String {
        match &self.token {
            Some(id) => format!("{} (token {id})", self.principal),
            None => self.principal.to_string(),
        }
    }
}

/// A handler that takes a [`Caller`] is for who has said who they are.
impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        ready(request.extensions().get::<Self>().cloned().ok_or_else(unauthenticated))
    }
}

/// Who `authorization` (the value of such a header) stands for.
pub(super) fn authenticate(context: &Context, authorization: &str) -> Result<Caller, Problem> {
    let token = bearer(authorization)?;
    if context.tokens.is_admin(token) {
        return Ok(Caller { principal: Principal::Admin, token: None });
    }
    match context.registry.authenticate(token) {
        Some(grant) => Ok(Caller { principal: grant.principal, token: Some(grant.id) }),
        None => Err(invalid_token()),
    }
}

/// The problem of a token that stands for nobody.
pub(super) fn invalid_token() -> Problem {
    Problem::new(
        Code::InvalidToken,
        "the token is unknown or has been revoked, or its time is over",
    )
}

fn unauthenticated() -> Problem {
    Problem::new(Code::Unauthenticated, "expected the header Authorization: Bearer cad_…")
}

/// The token in the value of an `Authorization` header.
fn bearer(authorization: &str) -> Result<&str, Problem> {
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        Some(_) | None => Err(unauthenticated()),
    }
}

/// Who the request is from; `None` when it does not say.
fn caller(context: &Context, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    authenticate(context, value.to_str().unwrap_or_default()).map(Some)
}

/// Middleware: turns away who does not say who they are, and who may never ask for this route.
///
/// A WebSocket may say so later, in `connection_init`, because browsers cannot set its headers.
pub(super) async fn require<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    match admit(&request) {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller);
        }
        Ok(None) => {}
        Err(problem) => return Ok(request.error_response(problem)),
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

/// Who may go on, if they have to say who they are.
fn admit(request: &ServiceRequest) -> Result<Option<Caller>, Problem> {
    let route = request.match_pattern();
    let needs = access::of_route(request.method().as_str(), route.as_deref());
    if needs == Needs::Nothing {
        return Ok(None);
    }
    let shared = request
        .app_data::<web::Data<Shared>>()
        .ok_or_else(|| Problem::internal("the application has no shared state"))?;
    let later = request.path() == "/graphql" && request.headers().contains_key(header::UPGRADE);
    match caller(&shared.context, request.headers())? {
        Some(caller) => {
            let what = format!("{} {}", request.method(), route.as_deref().unwrap_or("this"));
            access::allow(&caller, needs, &what)?;
            Ok(Some(caller))
        }
        None if later => Ok(None),
        None => Err(unauthenticated()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_token_is_known_by_its_digest() {
        let tokens = Tokens::new(&SecretString::from("cad_right"));
        assert!(tokens.is_admin("cad_right"));
        assert!(!tokens.is_admin("cad_wrong") && !tokens.is_admin(""));
        assert!(!format!("{tokens:?}").contains("cad_right"));
    }

    #[test]
    fn a_header_without_a_bearer_token_says_nothing() {
        assert_eq!(bearer("Bearer cad_x").unwrap(), "cad_x");
        assert_eq!(bearer("bearer  cad_x ").unwrap(), "cad_x");
        for value in ["Basic YTpi", "cad_x", ""] {
            assert_eq!(bearer(value).unwrap_err().code(), Code::Unauthenticated);
        }
    }
}
