//! Webhooks by the Standard Webhooks rules: signed, with an id to recognise a repetition by.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
//!
//! `webhook-id` is the position of the change, of the last one of a batch. One change is sent as the
//! event it is, several as an array. While a secret replaces another, requests carry a signature
//! with each. Redirects are not followed, and only addresses that may be sent to are connected to.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use sha2::Sha256;

use super::address::Addresses;
use super::sink::{Blame, Failure, Sink};
use crate::feed::shape::cloud_event;
use crate::feed::subscription::held::Item;
use crate::registry::WebhookSpec;
use crate::vocab::{Network, TraceParent};

/// How much of an answer is kept with a failed attempt, in characters.
const EXCERPT_CHARS: usize = 200;

/// How much of it is read for that, in bytes.
const EXCERPT_BYTES: usize = 1024;

/// Longest wait for a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait that a receiver can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Sends to every webhook. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(super) struct Webhooks {
    client: Client,
    addresses: Addresses,
}

impl Webhooks {
    /// Webhooks on the public internet and in these networks.
    pub(super) fn new(allowed: &[Network]) -> Result<Self, reqwest::Error> {
        let addresses = Addresses::new(allowed);
        let client = Client::builder()
            .user_agent(concat!("cadastre/", env!("CARGO_PKG_VERSION")))
            // So that a receiver that is not reached is told apart from one that does not answer.
            .connect_timeout(CONNECT)
            .redirect(redirect::Policy::none())
            // A proxy would connect to what was not checked.
            .no_proxy()
            .dns_resolver(Arc::new(addresses.clone()))
            .build()?;
        Ok(Self { client, addresses })
    }

    /// One of them.
    pub(super) fn sink(&self, spec: &WebhookSpec, secrets: Vec<Vec<u8>>) -> Webhook {
        Webhook { webhooks: self.clone(), spec: spec.clone(), secrets }
    }
}

/// One receiver.
pub(super) struct Webhook {
    webhooks: Webhooks,
    spec: WebhookSpec,
    secrets: Vec<Vec<u8>>,
}

impl Sink for Webhook {
    fn send<'a>(&'a self, items: &'a [Item]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.post(items))
    }

    fn timeout(&self) -> Duration {
        self.spec.timeout
    }

    fn batch(&self) -> usize {
        self.spec.batch
    }

    fn parallel(&self) -> usize {
        self.spec.parallel
    }
}

impl Webhook {
    async fn post(&self, items: &[Item]) -> Result<(), Failure> {
        let Some(last) = items.last() else { return Ok(()) };
        let receiver = |error: String| Failure::new(Blame::Receiver, error);
        let url = Url::parse(&self.spec.url).map_err(|error| receiver(error.to_string()))?;
        // Names are checked where they are resolved; an address written out is resolved by nobody.
        if let Some(address) = literal(&url)
            && !self.webhooks.addresses.permits(address)
        {
            return Err(receiver(format!("{address} is not an address that may be sent to")));
        }
        let (id, at) = (last.position.to_string(), Utc::now());
        let body = body(items, self.spec.cloud_events);
        let mut request = self
            .webhooks
            .client
            .post(url)
            .header(CONTENT_TYPE, media(items.len(), self.spec.cloud_events))
            .header("webhook-id", &id)
            .header("webhook-timestamp", at.timestamp().to_string())
            .header("webhook-signature", signatures(&self.secrets, &id, at, &body));
        if let [only] = items
            && let Some(traceparent) = traceparent(&only.json)
        {
            request = request.header("traceparent", traceparent.as_str());
        }
        let answered = request.body(body).send().await;
        let response = answered.map_err(|error| unanswered(&error))?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(refused(response).await)
    }
}

/// The address that stands in the place of a name.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// What is sent: one event, or several; in which envelope.
fn media(changes: usize, cloud_events: bool) -> &'static str {
    match (cloud_events, changes) {
        (false, _) => "application/json",
        (true, 1) => "application/cloudevents+json",
        (true, _) => "application/cloudevents-batch+json",
    }
}

/// One event as it is, several as an array.
fn body(items: &[Item], cloud_events: bool) -> Vec<u8> {
    let event = |item: &Item| match cloud_events {
        true => cloud_event(item.position, item.op, &item.json),
        false => item.json.to_vec(),
    };
    if let [only] = items {
        return event(only);
    }
    let size = items.iter().map(|item| item.json.len() + 1).sum::<usize>() + 1;
    let mut body = Vec::with_capacity(size);
    let mut separator = b'[';
    for item in items {
        body.push(separator);
        body.extend_from_slice(&event(item));
        separator = b',';
    }
    body.push(b']');
    body
}

/// A signature with each secret, the newest first: `v1,…` separated by spaces.
fn signatures(secrets: &[Vec<u8>], id: &str, at: DateTime<Utc>, body: &[u8]) -> String {
    let sign = |secret: &Vec<u8>| {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        mac.update(format!("{id}.{}.", at.timestamp()).as_bytes());
        mac.update(body);
        Some(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
    };
    secrets.iter().filter_map(sign).collect::<Vec<_>>().join(" ")
}

/// The trace that the change was made in.
fn traceparent(event: &[u8]) -> Option<TraceParent> {
    #[derive(Deserialize)]
    struct Event {
        traceparent: Option<TraceParent>,
    }
    serde_json::from_slice::<Event>(event).ok()?.traceparent
}

/// A request without an answer: when no connection was made, no change is to blame.
fn unanswered(error: &reqwest::Error) -> Failure {
    let blame = if error.is_connect() { Blame::Receiver } else { Blame::Unclear };
    // Without the address, which the reader knows; the causes say more than the outermost text.
    let mut text = String::new();
    let mut cause: Option<&dyn StdError> = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    Failure::new(blame, if text.is_empty() { "the request failed".to_owned() } else { text })
}

/// An answer that says no.
async fn refused(response: Response) -> Failure {
    let status = response.status();
    let retry_after = retry_after(response.headers(), Utc::now());
    let blame = blame(status, retry_after.is_some());
    let mut error = format!("the receiver answered {status}");
    let excerpt = excerpt(response).await;
    if !excerpt.is_empty() {
        error.push_str(": ");
        error.push_str(&excerpt);
    }
    Failure { blame, error, retry_after: retry_after.filter(|_| blame == Blame::Receiver) }
}

/// What a status says. A receiver that wants another address, another method, other credentials or
/// more time takes nothing from us now; one that does not like what it reads lives.
fn blame(status: StatusCode, asks_for_time: bool) -> Blame {
    match status.as_u16() {
        401 | 403 | 404 | 405 | 407 | 410 | 429 => Blame::Receiver,
        503 if asks_for_time => Blame::Receiver,
        400..=499 if status != StatusCode::REQUEST_TIMEOUT && status.as_u16() != 425 => {
            Blame::Change
        }
        300..=399 => Blame::Receiver,
        _ => Blame::Unclear,
    }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = DateTime::parse_from_rfc2822(text).ok()?;
            (date.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The beginning of what the receiver says, on one line.
async fn excerpt(mut response: Response) -> String {
    let mut read = Vec::new();
    while read.len() < EXCERPT_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&read);
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(EXCERPT_CHARS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::vocab::{Epoch, Lsn, Op, Position};

    fn item(json: &'static str) -> Item {
        Item {
            position: Position::new(Epoch::FIRST, Lsn::new(1), 1).into(),
            dataset: "shop.public.orders".to_owned(),
            op: Op::Create,
            keys: vec![1],
            json: Bytes::from_static(json.as_bytes()),
        }
    }

    #[test]
    fn the_signature_is_that_of_the_rules() {
        // The example of the specification's own libraries.
        let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = DateTime::from_timestamp(1_614_265_330, 0).unwrap();
        let signed = signatures(
            std::slice::from_ref(&secret),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            at,
            b"{\"test\": 2432232314}",
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = signatures(&[secret.clone(), secret], "a", at, b"");
        assert_eq!(both.split(' ').count(), 2);
    }

    #[test]
    fn one_change_is_sent_as_it_is_and_several_as_an_array() {
        let (one, two) = (item("{\"a\":1}"), item("{\"a\":2}"));
        assert_eq!(body(std::slice::from_ref(&one), false), b"{\"a\":1}");
        assert_eq!(body(&[one.clone(), two], false), b"[{\"a\":1},{\"a\":2}]");
        let wrapped: serde_json::Value = serde_json::from_slice(&body(&[one], true)).unwrap();
        assert_eq!((&wrapped["specversion"], &wrapped["data"]["a"]), (&"1.0".into(), &1.into()));
        assert_eq!(media(1, true), "application/cloudevents+json");
    }

    #[test]
    fn the_trace_is_that_of_the_change() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let event = format!("{{\"op\":\"c\",\"traceparent\":\"{text}\"}}");
        assert_eq!(traceparent(event.as_bytes()).unwrap().as_str(), text);
        assert_eq!(traceparent(b"{\"op\":\"c\"}"), None);
        assert_eq!(traceparent(b"{\"traceparent\":\"x\"}"), None);
    }

    #[test]
    fn a_status_says_whose_fault_it_is() {
        for (status, wait, expected) in [
            (400, false, Blame::Change),
            (422, false, Blame::Change),
            (401, false, Blame::Receiver),
            (404, false, Blame::Receiver),
            (429, false, Blame::Receiver),
            (301, false, Blame::Receiver),
            (408, false, Blame::Unclear),
            (500, false, Blame::Unclear),
            (503, false, Blame::Unclear),
            (503, true, Blame::Receiver),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(blame(status, wait), expected, "{status}");
        }
    }

    #[test]
    fn a_wait_is_read_in_both_forms_and_has_an_end() {
        let now = DateTime::parse_from_rfc3339("2015-10-21T07:27:00Z").unwrap().to_utc();
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(read("soon"), None);
    }
}
