//! Who asks, and the tokens by which they show it.
//!
//! ```text
//!   cad_ 4f9a01c2d3e4b5f6 _ kR3v…(32 random bytes in base64url)
//!        the id: public     the secret
//! ```
//!
//! The id names a token in lists and log lines; the SHA-256 of the whole token is all that is kept
//! of its secret. Secrets are random and long, which is why a plain digest is enough, and digests
//! are compared in constant time. A service may have several valid tokens, so that a new one can be
//! rolled out before the old one is revoked.
//!
//! Not here: what a principal may do; the API decides that.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::vocab::ServiceName;

/// How every token begins, so that scanners for leaked secrets can tell one.
const PREFIX: &str = "cad_";

/// Random bytes of the id.
const ID_BYTES: usize = 8;

/// Random bytes of the secret.
const SECRET_BYTES: usize = 32;

/// Who is behind a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Reads and changes everything.
    Admin,
    /// Reads everything, changes nothing.
    Auditor,
    /// Reads everything, changes what this service owns.
    Service(ServiceName),
}

impl Principal {
    /// The word for its kind, as the database and the interface spell it.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Auditor => "auditor",
            Self::Service(_) => "service",
        }
    }

    /// The service, if it is one.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Service(name) => Some(name),
            Self::Admin | Self::Auditor => None,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin | Self::Auditor => f.write_str(self.role()),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// The public part of a token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(String);

/// A text that is not the id of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid token id \"{0}\": expected 16 hexadecimal digits, as `cadastre token list` shows")]
pub struct TokenIdError(String);

impl TokenId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TokenId {
    type Err = TokenIdError;

    fn from_str(text: &str) -> Result<Self, TokenIdError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 2 * ID_BYTES && text.bytes().all(digit) {
            return Ok(Self(text.to_owned()));
        }
        // Whoever pastes the whole token here must not find it in a message.
        Err(TokenIdError(text.chars().take(2 * ID_BYTES).collect()))
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a whole token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// A stored digest; `None` when it has another length.
    pub(super) fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is stored.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether two digests are equal, in the same time wherever they differ.
    pub fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

/// A digest could be tried against guesses; there is no reason to print one.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest")
    }
}

/// What a token that has not been revoked is good for.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Its id.
    pub id: TokenId,
    /// Whom it stands for.
    pub principal: Principal,
    /// From when on it stands for nobody.
    pub expires_at: Option<DateTime<Utc>>,
    /// What the token must have.
    pub(super) digest: TokenDigest,
}

impl Grant {
    /// Whether it stands for somebody at `now`.
    pub fn is_valid(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// The grant among `grants` that `token` proves, valid at `now`.
pub(super) fn prove<'a>(
    grants: &'a HashMap<TokenId, Grant>,
    token: &str,
    now: DateTime<Utc>,
) -> Option<&'a Grant> {
    let id = token.strip_prefix(PREFIX)?.get(..2 * ID_BYTES)?;
    let grant = grants.get(&id.parse().ok()?)?;
    (grant.digest.is(&TokenDigest::of(token)) && grant.is_valid(now)).then_some(grant)
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Whom it shall stand for.
    pub principal: Principal,
    /// What it is for, in words.
    pub description: Option<String>,
    /// From when on it stands for nobody.
    pub expires_at: Option<DateTime<Utc>>,
    /// Who has it made.
    pub created_by: String,
}

/// A token as lists show it: everything but its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Ascending in the order of making.
    pub number: i64,
    /// Its public part.
    pub id: TokenId,
    /// Whom it stands for.
    pub principal: Principal,
    /// What it is for, in words.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By whom.
    pub created_by: String,
    /// From when on it stands for nobody.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last seen, to within a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A new id with its token.
pub(super) fn generate() -> (TokenId, SecretString) {
    let id: String =
        rand::random::<[u8; ID_BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
    let token = SecretString::from(format!("{PREFIX}{id}_{secret}"));
    (TokenId(id), token)
}

/// The digest of a new token.
pub(super) fn digest(token: &SecretString) -> TokenDigest {
    TokenDigest::of(token.expose_secret())
}

/// When each token was last seen, until it is written down: bounded by the number of tokens.
#[derive(Debug, Default)]
pub(super) struct Uses {
    seen: Mutex<HashMap<TokenId, DateTime<Utc>>>,
}

impl Uses {
    /// Notes that a token was seen.
    pub(super) fn note(&self, id: &TokenId, at: DateTime<Utc>) {
        let mut seen = self.seen.lock();
        match seen.get_mut(id) {
            Some(last) => *last = at,
            None => drop(seen.insert(id.clone(), at)),
        }
    }

    /// When it was last seen, if that is not written down yet.
    pub(super) fn last(&self, id: &TokenId) -> Option<DateTime<Utc>> {
        self.seen.lock().get(id).copied()
    }

    /// Takes what is not written down yet.
    pub(super) fn take(&self) -> Vec<(TokenId, DateTime<Utc>)> {
        std::mem::take(&mut *self.seen.lock()).into_iter().collect()
    }

    /// Gives back what could not be written, unless there is something later.
    pub(super) fn give_back(&self, uses: Vec<(TokenId, DateTime<Utc>)>) {
        let mut seen = self.seen.lock();
        for (id, at) in uses {
            seen.entry(id).or_insert(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn granted(expires_at: Option<DateTime<Utc>>) -> (SecretString, HashMap<TokenId, Grant>) {
        let (id, token) = generate();
        let grant = Grant {
            id: id.clone(),
            principal: Principal::Auditor,
            expires_at,
            digest: digest(&token),
        };
        (token, HashMap::from([(id, grant)]))
    }

    #[test]
    fn a_token_is_recognisable_long_and_proves_its_grant() {
        let (token, grants) = granted(None);
        let text = token.expose_secret();
        assert!(text.starts_with("cad_"));
        assert_eq!(text.len(), 4 + 16 + 1 + 43);
        let grant = prove(&grants, text, Utc::now()).unwrap();
        assert_eq!(grant.principal, Principal::Auditor);
        assert!(!format!("{grant:?}").contains(&text[21..]));
    }

    #[test]
    fn nothing_but_the_whole_token_proves_anything() {
        let (token, grants) = granted(None);
        let text = token.expose_secret();
        let mut other = text.to_owned();
        other.pop();
        for wrong in [&text[..20], &other, &format!("{text}x"), &text[4..], "cad_", "", "cad_é"] {
            assert!(prove(&grants, wrong, Utc::now()).is_none(), "{wrong}");
        }
        let (unknown, _) = granted(None);
        assert!(prove(&grants, unknown.expose_secret(), Utc::now()).is_none());
    }

    #[test]
    fn a_token_ends_at_its_expiry() {
        let now = Utc::now();
        let (token, grants) = granted(Some(now));
        assert!(prove(&grants, token.expose_secret(), now).is_none());
        let before = now - TimeDelta::microseconds(1);
        assert!(prove(&grants, token.expose_secret(), before).is_some());
    }

    #[test]
    fn an_id_is_told_from_a_token_and_a_pasted_token_is_not_repeated() {
        let (id, token) = generate();
        assert_eq!(id.to_string().parse::<TokenId>().unwrap(), id);
        let error = token.expose_secret().parse::<TokenId>().unwrap_err().to_string();
        assert!(!error.contains(&token.expose_secret()[21..]), "{error}");
    }

    #[test]
    fn uses_are_kept_until_they_are_written_down() {
        let (id, _) = generate();
        let (early, late) = (DateTime::UNIX_EPOCH, Utc::now());
        let uses = Uses::default();
        uses.note(&id, early);
        let taken = uses.take();
        assert_eq!(uses.last(&id), None);
        uses.note(&id, late);
        uses.give_back(taken);
        assert_eq!(uses.last(&id), Some(late));
    }
}
