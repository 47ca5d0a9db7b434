//! NATS JetStream: a stream with a subject for each dataset, every publication acknowledged.
//!
//! `Nats-Msg-Id` is the position, so that the server drops what it gets twice within the stream's
//! window. A server or a process that was away for longer is no exception: when the stream is first
//! used, its end is read, and what is there already is not published again.
//!
//! The stream is made if it is not there; one that is there must take our subjects.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::time::Duration;

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, HeaderValue};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::sink::{Blame, Failure, Sink};
use crate::feed::subscription::Mark;
use crate::feed::subscription::held::Item;
use crate::registry::NatsSpec;
use crate::vocab::limits;

/// Most changes in one round of publications.
const BATCH: usize = 256;

/// How long the server remembers ids, in a stream that is made here.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How much of the stream's end is read: all that a run can have published without writing it down.
const END: u64 = limits::DELIVERY_WINDOW_CHANGES_MAX as u64;

/// One stream.
pub(super) struct Nats {
    spec: NatsSpec,
    session: OnceCell<Session>,
}

/// A connection that keeps itself up, and what the stream had when it was made.
struct Session {
    context: Context,
    published: Mutex<HashSet<Mark>>,
}

impl Nats {
    /// A stream that is connected to when there is something to send.
    pub(super) fn new(spec: &NatsSpec) -> Self {
        Self { spec: spec.clone(), session: OnceCell::new() }
    }
}

impl Sink for Nats {
    fn send<'a>(&'a self, items: &'a [Item]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.publish(items))
    }

    fn timeout(&self) -> Duration {
        self.spec.timeout
    }

    fn batch(&self) -> usize {
        BATCH
    }

    /// The stream is one: its order is that of the positions.
    fn parallel(&self) -> usize {
        1
    }
}

impl Nats {
    async fn publish(&self, items: &[Item]) -> Result<(), Failure> {
        let session = self.session.get_or_try_init(|| self.connect()).await?;
        let mut acknowledgements = Vec::with_capacity(items.len());
        for item in items {
            if session.published.lock().contains(&item.position) {
                continue;
            }
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, HeaderValue::from(item.position.to_string()));
            let subject = format!("{}.{}", self.spec.subject, token(&item.dataset));
            let sent = session.context.publish_with_headers(subject, headers, item.json.clone());
            acknowledgements.push(sent.await.map_err(|error| unpublished(error.kind(), &error))?);
        }
        for acknowledgement in acknowledgements {
            acknowledgement.await.map_err(|error| unpublished(error.kind(), &error))?;
        }
        session.published.lock().clear();
        Ok(())
    }

    async fn connect(&self) -> Result<Session, Failure> {
        let receiver = |what: &str, error: &(dyn StdError + 'static)| {
            Failure::new(Blame::Receiver, told(what, error))
        };
        let url =
            resolved(&self.spec.url).map_err(|missing| Failure::new(Blame::Receiver, missing))?;
        let client = ConnectOptions::new()
            .name("cadastre")
            .connection_timeout(self.spec.timeout)
            .request_timeout(Some(self.spec.timeout))
            .connect(url)
            .await
            .map_err(|error| receiver("cannot connect", &error))?;
        let mut context = jetstream::new(client);
        context.set_timeout(self.spec.timeout);
        let subjects = format!("{}.>", self.spec.subject);
        let config = Config {
            name: self.spec.stream.clone(),
            subjects: vec![subjects.clone()],
            duplicate_window: DUPLICATE_WINDOW,
            ..Config::default()
        };
        let stream = context
            .get_or_create_stream(config)
            .await
            .map_err(|error| receiver("the stream cannot be used", &error))?;
        let takes = &stream.cached_info().config.subjects;
        if !takes.iter().any(|taken| covers(taken, &subjects)) {
            let error = format!(
                "stream {} takes {}, not {subjects}: add it, or choose another stream",
                self.spec.stream,
                takes.join(", ")
            );
            return Err(Failure::new(Blame::Receiver, error));
        }
        let published = end_of(&stream, &self.spec.subject).await;
        let published =
            published.map_err(|error| receiver("the stream cannot be read", &*error))?;
        Ok(Session { context, published: Mutex::new(published) })
    }
}

/// The positions that the stream ends with.
async fn end_of(
    stream: &Stream,
    subject: &str,
) -> Result<HashSet<Mark>, Box<dyn StdError + Send + Sync>> {
    let info = stream.get_info().await?;
    let mut found = HashSet::new();
    let first = info.state.first_sequence.max(info.state.last_sequence.saturating_sub(END));
    for sequence in (first..=info.state.last_sequence).rev() {
        // One that was deleted in between leaves a hole.
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        let ours = message
            .subject
            .as_str()
            .strip_prefix(subject)
            .is_some_and(|rest| rest.starts_with('.'));
        let id = message.headers.get(NATS_MESSAGE_ID);
        let id: Option<Mark> = id.and_then(|id| id.as_str().parse().ok());
        found.extend(id.filter(|_| ours));
    }
    Ok(found)
}

/// A dataset's name as subject tokens: dots separate, and what has a meaning there is replaced.
fn token(dataset: &str) -> String {
    dataset.chars().map(|c| if c.is_whitespace() || "*>".contains(c) { '_' } else { c }).collect()
}

/// Whether a stream with the subject `taken` takes all of `wanted`, which ends in `>`.
fn covers(taken: &str, wanted: &str) -> bool {
    let mut wanted = wanted.split('.');
    for token in taken.split('.') {
        match (token, wanted.next()) {
            (">", Some(_)) => return true,
            ("*", Some(other)) if other != ">" => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

fn unpublished(kind: PublishErrorKind, error: &(dyn StdError + 'static)) -> Failure {
    let blame = match kind {
        PublishErrorKind::MaxPayloadExceeded => Blame::Change,
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => Blame::Receiver,
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::Other => Blame::Unclear,
    };
    Failure::new(blame, told("not published", error))
}

/// An error with its causes.
fn told(what: &str, error: &(dyn StdError + 'static)) -> String {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The text with `${NAME}` replaced by what the environment says.
fn resolved(template: &str) -> Result<String, String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err("url: a reference to the environment has no end".to_owned());
        };
        let value = std::env::var(name)
            .map_err(|_| format!("url: the environment variable {name} is not set"))?;
        text.push_str(before);
        text.push_str(&value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_must_take_all_our_subjects() {
        for (taken, covered) in [
            ("shop.>", true),
            (">", true),
            ("*.>", true),
            ("shop.*", false),
            ("shop", false),
            ("other.>", false),
            ("shop.public.>", false),
        ] {
            assert_eq!(covers(taken, "shop.>"), covered, "{taken}");
        }
        assert!(covers("a.*.>", "a.b.>"));
    }

    #[test]
    fn a_dataset_makes_a_subject() {
        assert_eq!(token("shop.public.orders"), "shop.public.orders");
        assert_eq!(token("shop.public.a b>*"), "shop.public.a_b__");
    }

    #[test]
    fn a_url_refers_to_the_environment_or_says_what_is_missing() {
        assert_eq!(resolved("nats://x:4222").unwrap(), "nats://x:4222");
        let path = std::env::var("PATH").unwrap();
        assert_eq!(resolved("a${PATH}b").unwrap(), format!("a{path}b"));
        assert!(resolved("${NOT_SET_ANYWHERE}").unwrap_err().contains("NOT_SET_ANYWHERE"));
        assert!(resolved("${PATH").is_err());
    }
}
