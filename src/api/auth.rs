//! Who is asking: bearer tokens.
//!
//! Every route needs a token unless [`PUBLIC`] names it, so that a new route is closed by default.
//! Tokens are random and long, which is why a plain SHA-256 of them is enough to keep; digests are
//! compared in constant time. A token never reaches a log line or a message.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::code::Code;
use super::problem::Problem;
use super::server::Shared;

/// The routes that answer anyone: they tell nothing of what the registry or the log holds.
pub(super) const PUBLIC: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/v1/openapi.json"];

/// Who a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// May read and change everything.
    Admin,
}

/// The tokens this server knows, as digests.
#[derive(Debug, Clone)]
pub struct Tokens {
    admin: [u8; 32],
}

impl Tokens {
    /// Knows this admin token.
    pub fn new(admin: &SecretString) -> Self {
        Self { admin: digest(admin.expose_secret()) }
    }

    /// Who `authorization` (the value of such a header) stands for.
    pub(super) fn authenticate(&self, authorization: &str) -> Result<Principal, Problem> {
        let token = match authorization.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            Some(_) | None => {
                return Err(Problem::new(
                    Code::Unauthenticated,
                    "expected the header Authorization: Bearer cad_…",
                ));
            }
        };
        if same(&self.admin, &digest(token)) {
            return Ok(Principal::Admin);
        }
        Err(Problem::new(Code::InvalidToken, "the token is unknown or has been revoked"))
    }

    /// Who the request is from; `None` when it does not say.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(None);
        };
        self.authenticate(value.to_str().unwrap_or_default()).map(Some)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether two digests are equal, in the same time wherever they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Middleware: turns away who does not say who they are.
///
/// A WebSocket may say so later, in `connection_init`, because browsers cannot set its headers.
pub(super) async fn require<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let caller = match request.app_data::<web::Data<Shared>>() {
        Some(shared) => shared.context.tokens.caller(request.headers()),
        None => Err(Problem::internal("the application has no shared state")),
    };
    let public = PUBLIC.contains(&request.path());
    let later = request.path() == "/graphql" && request.headers().contains_key(header::UPGRADE);
    match caller {
        _ if public => {}
        Ok(Some(principal)) => {
            request.extensions_mut().insert(principal);
        }
        Ok(None) if later => {}
        Ok(None) => {
            let problem = Problem::new(
                Code::Unauthenticated,
                "expected the header Authorization: Bearer cad_…",
            );
            return Ok(request.error_response(problem));
        }
        Err(problem) => return Ok(request.error_response(problem)),
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(&SecretString::from("cad_right"))
    }

    #[test]
    fn the_admin_token_is_known_by_its_digest() {
        assert_eq!(tokens().authenticate("Bearer cad_right").unwrap(), Principal::Admin);
        assert_eq!(tokens().authenticate("bearer cad_right").unwrap(), Principal::Admin);
        assert!(!format!("{:?}", tokens()).contains("cad_right"));
    }

    #[test]
    fn a_wrong_token_and_no_token_are_told_apart() {
        let code = |value: &str| tokens().authenticate(value).unwrap_err().code();
        assert_eq!(code("Bearer cad_wrong"), Code::InvalidToken);
        assert_eq!(code("Bearer "), Code::InvalidToken);
        assert_eq!(code("Basic YTpi"), Code::Unauthenticated);
        assert_eq!(code("cad_right"), Code::Unauthenticated);
        assert_eq!(tokens().caller(&HeaderMap::new()).unwrap(), None);
    }
}
