//! The secrets that requests to webhooks are signed with.
//!
//! They are sealed at rest: who has a copy of the registry's database and not this server's key can
//! sign nothing. A webhook has a secret from its beginning, however it was declared; its owner can
//! read it again, and replace it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::state::SubscriptionId;
use super::{Declared, Subscriptions, locked, store};
use crate::feed::Error;
use crate::registry::Deliver;

/// As many as SHA-256 gives; the rules ask for 24 to 64.
const SECRET_BYTES: usize = 32;

/// Seals secrets with a key that is not in the database: ChaCha20-Poly1305 (RFC 8439), a random nonce
/// before each, bound to its subscription. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    key: Arc<LessSafeKey>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    /// With the key that this text stands for; the same text opens what it has sealed.
    ///
    /// # Panics
    /// Never: a digest has the length of a key.
    pub fn new(text: &SecretString) -> Self {
        let key = Sha256::digest(text.expose_secret().trim().as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).expect("a digest has a key's length");
        Self { key: Arc::new(LessSafeKey::new(key)) }
    }

    fn seal(&self, id: SubscriptionId, secret: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = secret.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about(id), &mut text)
            .expect("a few bytes can be sealed");
        [&nonce[..], &text].concat()
    }

    fn open(&self, id: SubscriptionId, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        self.key.open_in_place(nonce, about(id), &mut text).ok().map(|secret| secret.to_vec())
    }
}

/// What a sealed secret is bound to.
fn about(id: SubscriptionId) -> Aad<String> {
    Aad::from(format!("secret of subscription {}", id.0))
}

/// As the rules write it.
fn written(secret: &[u8]) -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(secret))
}

impl Subscriptions {
    /// Makes a secret that requests to a webhook are signed with, in the form `whsec_…`. The one
    /// before stays valid for `overlap`: requests carry a signature with each.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is not delivered to by webhook.
    pub async fn secret_rotate(&self, name: &str, overlap: Duration) -> Result<String, Error> {
        let declared = self.declared(name)?;
        must_be_signed(&declared)?;
        self.begun(&declared).await?;
        let secret = rand::random::<[u8; SECRET_BYTES]>();
        self.transaction(async |connection| {
            let state = locked(connection, name).await?;
            let sealed = self.shared.sealer.seal(state.id, &secret);
            store::secret_add(connection, state.id, &sealed, overlap).await?;
            store::wish(connection, state.id).await?;
            Ok(())
        })
        .await?;
        self.wished();
        Ok(written(&secret))
    }

    /// The secret that requests to a webhook are signed with, the newest, in the form `whsec_…`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is not delivered to by webhook, or this server's key does not open
    /// it.
    pub async fn secret(&self, name: &str) -> Result<String, Error> {
        let declared = self.declared(name)?;
        must_be_signed(&declared)?;
        self.begun(&declared).await?;
        let secrets = self.secrets(&declared).await?;
        secrets.first().map(|secret| written(secret)).ok_or_else(|| {
            Error::Conflict(format!("subscription \"{name}\" has no secret: rotate it"))
        })
    }

    /// The secrets that are valid now, the newest first; none for what is not signed. A webhook that
    /// has none gets one, and those that were stored before there was a key are sealed.
    pub(in crate::feed) async fn secrets(
        &self,
        declared: &Declared,
    ) -> Result<Vec<Vec<u8>>, Error> {
        if must_be_signed(declared).is_err() {
            return Ok(Vec::new());
        }
        let (name, sealer) = (declared.subscription.name.as_str(), &self.shared.sealer);
        self.transaction(async |connection| {
            let id = locked(connection, name).await?.id;
            for plain in store::secrets_unsealed(connection, id).await? {
                store::secret_seal(connection, id, &plain, &sealer.seal(id, &plain)).await?;
            }
            let mut sealed = store::secrets(connection, id).await?;
            if sealed.is_empty() {
                sealed.push(sealer.seal(id, &rand::random::<[u8; SECRET_BYTES]>()));
                store::secret_add(connection, id, &sealed[0], Duration::ZERO).await?;
            }
            let opened = sealed.iter().map(|sealed| sealer.open(id, sealed));
            opened.collect::<Option<_>>().ok_or_else(|| {
                Error::Conflict(format!(
                    "the secret of subscription \"{name}\" cannot be opened with this server's key: \
                     start it with the CADASTRE_SECRETS_KEY or the file secrets-key that it was \
                     sealed with, or rotate the secret with an overlap of 0"
                ))
            })
        })
        .await
    }
}

fn must_be_signed(declared: &Declared) -> Result<(), Error> {
    let (name, kind) = (&declared.subscription.name, declared.spec.deliver.kind());
    match declared.spec.deliver {
        Deliver::Webhook(_) => Ok(()),
        _ => Err(Error::Conflict(format!(
            "subscription \"{name}\" is delivered by {kind}: only webhooks are signed"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_for_the_same_subscription_only() {
        let sealer = |text: &str| Sealer::new(&SecretString::from(text.to_owned()));
        let (one, two) = (SubscriptionId(1), SubscriptionId(2));
        let sealed = sealer("a").seal(one, b"secret");
        assert!(!sealed.windows(6).any(|six| six == b"secret"));
        assert_ne!(sealed, sealer("a").seal(one, b"secret"), "never the same twice");
        assert_eq!(sealer("a\n").open(one, &sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(sealer("b").open(one, &sealed), None);
        assert_eq!(sealer("a").open(two, &sealed), None);
        let mut forged = sealed;
        forged[20] ^= 1;
        assert_eq!(sealer("a").open(one, &forged), None);
        assert_eq!(sealer("a").open(one, b"short"), None);
    }
}
