//! How a subscription is declared: from where on it reads, how it is delivered to, what happens
//! when that fails.
//!
//! A declaration is kept as it was written, so that an export gives it back; this is what it means.
//! Reading one either gives a [`SubscriptionSpec`] whose every value is in range, or everything that
//! is wrong with it, each with the path of the field. What is left out has its default here.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::vocab::{Op, Position, Predicate, PredicateError, limits};

/// What may stand in a declaration beside service and datasets.
pub const SPEC_FIELDS: [&str; 6] = ["deliver", "filter", "retry", "start", "budget", "deadLetters"];

/// Why a snapshot cannot be had by who wants no rows.
pub const SNAPSHOT_NEEDS_ROWS: &str =
    "a snapshot gives rows as r, which has to be among the operations";

/// What the name of a subscription looks like, for messages.
pub const SUBSCRIPTION_NAME_FORM: &str = "1 to 63 characters, a lower-case letter first, then \
     lower-case letters, digits and hyphens";

/// Whether a text has that form.
pub fn is_subscription_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A subscription's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriptionSpec {
    /// The way changes go out.
    pub deliver: Deliver,
    /// Which changes are wanted.
    pub filter: Filter,
    /// What happens when they do not arrive.
    pub retry: RetryPolicy,
    /// Where the first run begins.
    pub start: StartAt,
    /// The most it may take.
    pub budget: Budget,
    /// How long a parked change is kept before it counts as given up; `None` is for ever.
    pub expire_after: Option<Duration>,
}

/// Which changes are wanted; `None` is all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// Only these operations.
    pub ops: Option<Vec<Op>>,
    /// Only changes of rows of which this holds.
    pub predicate: Option<Predicate>,
    /// Only these columns of the rows.
    pub columns: Option<BTreeSet<String>>,
}

/// The way changes go out.
#[derive(Debug, Clone, PartialEq)]
pub enum Deliver {
    /// Consumers fetch batches under a lease.
    Pull {
        /// How long a consumer has before its changes are handed to another.
        lease: Duration,
    },
    /// HTTP requests by the Standard Webhooks rules.
    Webhook(WebhookSpec),
    /// A NATS JetStream stream.
    Nats(NatsSpec),
    /// A Kafka cluster, which this server keeps the settings for and does not deliver to.
    Kafka,
}

/// An HTTP receiver.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookSpec {
    /// `http` or `https`, without user and password.
    pub url: String,
    /// Longest wait for one request to be answered.
    pub timeout: Duration,
    /// Most changes in one request. One change is sent as it is, more as an array.
    pub batch: usize,
    /// Most requests at a time; changes of one key are never in two.
    pub parallel: usize,
    /// In the JSON format of CloudEvents.
    pub cloud_events: bool,
}

/// A JetStream stream.
#[derive(Debug, Clone, PartialEq)]
pub struct NatsSpec {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; may refer to the environment as `${NATS_URL}`.
    pub url: String,
    /// The stream, made if it is not there.
    pub stream: String,
    /// What subjects begin with; the dataset's name follows.
    pub subject: String,
    /// Longest wait for an acknowledgement.
    pub timeout: Duration,
}

/// What happens when a change does not arrive.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after which a change is parked.
    pub max_attempts: u32,
    /// Pause after the first attempt; it doubles from then on.
    pub initial: Duration,
    /// Longest pause.
    pub max: Duration,
    /// What becomes of the changes of a parked change's key that follow it.
    pub on_park: OnPark,
}

/// What becomes of the changes that follow a parked one of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPark {
    /// They wait until it is redriven or dropped: the key's order holds.
    Block,
    /// They are delivered.
    Pass,
}

/// Where the first run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// With the next change.
    Now,
    /// With the rows as they are, then with the changes that they do not contain.
    Snapshot,
    /// With the oldest change the log holds.
    Earliest,
    /// With the change after this position.
    After(Position),
    /// With the first change committed at or after this time.
    Time(DateTime<Utc>),
}

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "now" => return Ok(Self::Now),
            "earliest" => return Ok(Self::Earliest),
            "snapshot" => return Ok(Self::Snapshot),
            _ => {}
        }
        if let Ok(position) = text.parse() {
            return Ok(Self::After(position));
        }
        let time = DateTime::parse_from_rfc3339(text).map(|time| Self::Time(time.to_utc()));
        time.map_err(|_| {
            "expected \"now\", \"earliest\", \"snapshot\", a position such as \
             01-00000000016CA548-00000003, or a time such as 2026-03-01T12:00:00Z"
                .to_owned()
        })
    }
}

/// The most a subscription may take; `None` is as much as comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Changes a second.
    pub changes_per_second: Option<u64>,
    /// Bytes of encoded changes a second.
    pub bytes_per_second: Option<u64>,
}

/// One thing that is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// The field, outermost name first.
    pub path: Vec<String>,
    /// What follows the field's name in a sentence, such as `: expected a number`.
    said: String,
}

impl SpecError {
    /// The sentence, about a field of `what`.
    pub fn about(&self, what: &str) -> String {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        match path.as_slice() {
            [] => format!("{what}{}", self.said),
            path => format!("{} of {what}{}", path.join(" of "), self.said),
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path.join("."), self.said)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
            on_park: OnPark::Block,
        }
    }
}

impl OnPark {
    /// As it is declared.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Pass => "pass",
        }
    }
}

impl Deliver {
    /// As it is declared.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pull { .. } => "pull",
            Self::Webhook(_) => "webhook",
            Self::Nats(_) => "nats",
            Self::Kafka => "kafka",
        }
    }
}

impl SubscriptionSpec {
    /// Reads a declaration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(spec: &Value) -> Result<Self, Vec<SpecError>> {
        let mut reader = Reader::default();
        let parsed = reader.spec(spec);
        match parsed {
            Some(parsed) if reader.wrong.is_empty() => Ok(parsed),
            _ => Err(reader.wrong),
        }
    }
}

/// The ways of delivery, for messages.
const WAYS: &str = "expected one of pull: {}, webhook: {url: …}, nats: {…}, kafka: {…}";

/// Reads a declaration and collects what is wrong with it.
#[derive(Default)]
struct Reader {
    wrong: Vec<SpecError>,
}

/// One object of a declaration and the path that leads to it.
struct Section<'a> {
    path: Vec<&'a str>,
    fields: &'a Map<String, Value>,
}

impl Reader {
    fn report(&mut self, path: &[&str], said: impl Into<String>) {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        self.wrong.push(SpecError { path, said: said.into() });
    }

    fn spec(&mut self, spec: &Value) -> Option<SubscriptionSpec> {
        let Some(fields) = spec.as_object() else {
            self.report(&[], ": expected an object");
            return None;
        };
        let root = Section { path: Vec::new(), fields };
        self.only(&root, &SPEC_FIELDS);
        let deliver = self.deliver(&root);
        let filter = self.filter(&root);
        let retry = self.retry(&root);
        let start = self.start(&root);
        let rows = filter.ops.as_ref().is_none_or(|ops| ops.contains(&Op::Read));
        if start == StartAt::Snapshot && !rows {
            self.report(&["filter", "ops"], format!(": {SNAPSHOT_NEEDS_ROWS}"));
        }
        let budget = self.budget(&root);
        let expire_after = self.section(&root, "deadLetters").and_then(|letters| {
            self.only(&letters, &["expireAfter"]);
            self.duration(&letters, "expireAfter", Duration::from_secs(1))
        });
        Some(SubscriptionSpec { deliver: deliver?, filter, retry, start, budget, expire_after })
    }

    fn deliver(&mut self, root: &Section<'_>) -> Option<Deliver> {
        let Some(deliver) = root.fields.get("deliver").filter(|value| !value.is_null()) else {
            self.report(&["deliver"], format!(" is missing: {WAYS}"));
            return None;
        };
        let Some(ways) = deliver.as_object() else {
            self.report(&["deliver"], format!(": expected a mapping, found {}", kind(deliver)));
            return None;
        };
        let mut entries = ways.iter();
        let (Some((way, settings)), None) = (entries.next(), entries.next()) else {
            self.report(&["deliver"], format!(": {WAYS}, and only one"));
            return None;
        };
        let Some(fields) = settings.as_object() else {
            let said = format!(": expected a mapping, found {}", kind(settings));
            self.report(&["deliver", way], said);
            return None;
        };
        let section = Section { path: vec!["deliver", way], fields };
        match way.as_str() {
            "pull" => {
                self.only(&section, &["lease"]);
                let lease = self.duration(&section, "lease", Duration::from_secs(1));
                Some(Deliver::Pull { lease: lease.unwrap_or(Duration::from_secs(30)) })
            }
            "webhook" => self.webhook(&section).map(Deliver::Webhook),
            "nats" => self.nats(&section).map(Deliver::Nats),
            "kafka" => Some(Deliver::Kafka),
            other => {
                self.report(&["deliver"], format!(": unknown delivery \"{other}\": {WAYS}"));
                None
            }
        }
    }

    fn webhook(&mut self, section: &Section<'_>) -> Option<WebhookSpec> {
        self.only(section, &["url", "timeout", "batch", "parallel", "format"]);
        let expected = "an http or https address";
        let url = self.required(section, "url", expected)?;
        let at = [&section.path[..], &["url"]].concat();
        if !(url.starts_with("https://") || url.starts_with("http://")) {
            self.report(&at, format!(": expected {expected}"));
        } else if authority(&url).contains('@') {
            self.report(&at, ": expected no user and password; the signature says who sends");
        }
        let timeout = self.duration(section, "timeout", Duration::from_millis(100));
        let batch = self.number(section, "batch", limits::WEBHOOK_BATCH_MAX);
        let parallel = self.number(section, "parallel", limits::DELIVERIES_PARALLEL_MAX);
        let cloud_events = match self.text(section, "format").as_deref() {
            None | Some("debezium") => false,
            Some("cloudevents") => true,
            Some(_) => {
                let at = [&section.path[..], &["format"]].concat();
                self.report(&at, ": expected debezium or cloudevents");
                false
            }
        };
        Some(WebhookSpec {
            url,
            timeout: timeout.unwrap_or(Duration::from_secs(10)),
            batch: batch.unwrap_or(1),
            parallel: parallel.unwrap_or(4),
            cloud_events,
        })
    }

    fn nats(&mut self, section: &Section<'_>) -> Option<NatsSpec> {
        self.only(section, &["url", "stream", "subject", "timeout"]);
        let url = self.required(section, "url", "nats://HOST:PORT");
        if url.as_deref().is_some_and(|url| {
            let before_host = authority(url).split_once('@').map_or("", |(user, _)| user);
            before_host.split_once(':').is_some_and(|(_, word)| !word.starts_with("${"))
        }) {
            let said = ": the address holds a password; refer to an environment variable instead, \
                        such as nats://app:${NATS_PASSWORD}@HOST or ${NATS_URL}";
            self.report(&[&section.path[..], &["url"]].concat(), said);
        }
        let stream = self.required(section, "stream", "the name of a stream");
        let name = |text: &str, dots: bool| {
            let fits =
                |c: char| c.is_ascii_alphanumeric() || "_-".contains(c) || (dots && c == '.');
            (1..=128).contains(&text.len()) && text.chars().all(fits)
        };
        if stream.as_ref().is_some_and(|stream| !name(stream, false)) {
            let said = ": expected 1 to 128 letters, digits, hyphens and underscores";
            self.report(&[&section.path[..], &["stream"]].concat(), said);
        }
        let subject = self.text(section, "subject").unwrap_or_else(|| "cadastre".to_owned());
        if !name(&subject, true) || subject.split('.').any(str::is_empty) {
            let said = ": expected words of letters, digits, hyphens and underscores, with a dot \
                        between them";
            self.report(&[&section.path[..], &["subject"]].concat(), said);
        }
        let timeout = self.duration(section, "timeout", Duration::from_millis(100));
        let timeout = timeout.unwrap_or(Duration::from_secs(10));
        Some(NatsSpec { url: url?, stream: stream?, subject, timeout })
    }

    fn filter(&mut self, root: &Section<'_>) -> Filter {
        let Some(section) = self.section(root, "filter") else { return Filter::default() };
        self.only(&section, &["ops", "where", "columns"]);
        let ops = self.texts(&section, "ops").map(|ops| {
            let mut known = Vec::new();
            for text in ops {
                let op = match text.as_bytes() {
                    [code] => Op::from_code(*code).filter(|op| Op::CHANGES.contains(op)),
                    _ => None,
                };
                match op {
                    Some(op) => known.push(op),
                    None => self.report(
                        &["filter", "ops"],
                        format!(": unknown operation \"{text}\": expected of c, u, d, t, r"),
                    ),
                }
            }
            known
        });
        let predicate = self.text(&section, "where").and_then(|text| match text.parse() {
            Ok(predicate) => Some(predicate),
            Err(error) => {
                let error: PredicateError = error;
                self.report(&["filter", "where"], format!(": {error}"));
                None
            }
        });
        let columns = self.texts(&section, "columns");
        Filter { ops, predicate, columns: columns.map(|names| names.into_iter().collect()) }
    }

    /// A list of texts, at least one.
    fn texts(&mut self, section: &Section<'_>, name: &str) -> Option<Vec<String>> {
        let value = section.fields.get(name).filter(|value| !value.is_null())?;
        let texts: Option<Vec<String>> = value
            .as_array()
            .filter(|items| !items.is_empty())
            .and_then(|items| items.iter().map(|it| it.as_str().map(str::to_owned)).collect());
        if texts.is_none() {
            let at = [&section.path[..], &[name]].concat();
            self.report(&at, ": expected a list of texts such as [a, b]");
        }
        texts
    }

    fn retry(&mut self, root: &Section<'_>) -> RetryPolicy {
        let mut policy = RetryPolicy::default();
        let Some(retry) = self.section(root, "retry") else { return policy };
        self.only(&retry, &["maxAttempts", "initial", "max", "onPark"]);
        if let Some(attempts) = retry.fields.get("maxAttempts") {
            let valid = attempts.as_u64().and_then(|attempts| u32::try_from(attempts).ok());
            match valid.filter(|attempts| *attempts > 0) {
                Some(attempts) => policy.max_attempts = attempts,
                None => {
                    self.report(&["retry", "maxAttempts"], ": expected a whole number above 0");
                }
            }
        }
        let shortest = Duration::from_millis(1);
        policy.initial = self.duration(&retry, "initial", shortest).unwrap_or(policy.initial);
        policy.max = self.duration(&retry, "max", shortest).unwrap_or(policy.max);
        policy.max = policy.max.max(policy.initial);
        match self.text(&retry, "onPark").as_deref() {
            None | Some("block") => {}
            Some("pass") => policy.on_park = OnPark::Pass,
            Some(_) => self.report(&["retry", "onPark"], ": expected block or pass"),
        }
        policy
    }

    fn start(&mut self, root: &Section<'_>) -> StartAt {
        let Some(text) = self.text(root, "start") else { return StartAt::Now };
        text.parse().unwrap_or_else(|expected| {
            self.report(&["start"], format!(": {expected}"));
            StartAt::Now
        })
    }

    fn budget(&mut self, root: &Section<'_>) -> Budget {
        let Some(budget) = self.section(root, "budget") else { return Budget::default() };
        self.only(&budget, &["changesPerSecond", "bytesPerSecond"]);
        let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
        let rate = |found: Option<usize>| found.and_then(|rate| u64::try_from(rate).ok());
        Budget {
            changes_per_second: rate(self.number(&budget, "changesPerSecond", most)),
            bytes_per_second: rate(self.number(&budget, "bytesPerSecond", most)),
        }
    }

    fn section<'a>(&mut self, root: &Section<'a>, name: &'a str) -> Option<Section<'a>> {
        let value = root.fields.get(name).filter(|value| !value.is_null())?;
        match value.as_object() {
            Some(fields) => Some(Section { path: vec![name], fields }),
            None => {
                self.report(&[name], format!(": expected a mapping, found {}", kind(value)));
                None
            }
        }
    }

    fn only(&mut self, section: &Section<'_>, known: &[&str]) {
        for name in section.fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let expected = match known {
                [only] => (*only).to_owned(),
                _ => format!("one of {}", known.join(", ")),
            };
            self.report(&section.path, format!(": unknown key \"{name}\": expected {expected}"));
        }
    }

    fn required(&mut self, section: &Section<'_>, name: &str, expected: &str) -> Option<String> {
        if section.fields.get(name).is_none_or(Value::is_null) {
            let at = [&section.path[..], &[name]].concat();
            self.report(&at, format!(" is missing: expected {expected}"));
            return None;
        }
        self.text(section, name)
    }

    fn text(&mut self, section: &Section<'_>, name: &str) -> Option<String> {
        let value = section.fields.get(name).filter(|value| !value.is_null())?;
        let text = value.as_str();
        if text.is_none() {
            let at = [&section.path[..], &[name]].concat();
            self.report(&at, format!(": expected text, found {}", kind(value)));
        }
        text.map(str::to_owned)
    }

    fn duration(&mut self, section: &Section<'_>, name: &str, least: Duration) -> Option<Duration> {
        let text = self.text(section, name)?;
        let at = [&section.path[..], &[name]].concat();
        match humantime::parse_duration(&text) {
            Ok(duration) if duration >= least => Some(duration),
            Ok(_) => {
                let least = humantime::format_duration(least);
                self.report(&at, format!(": expected at least {least}"));
                None
            }
            Err(_) => {
                self.report(&at, ": expected a duration such as 1s or 5m");
                None
            }
        }
    }

    fn number(&mut self, section: &Section<'_>, name: &str, most: usize) -> Option<usize> {
        let value = section.fields.get(name).filter(|value| !value.is_null())?;
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let number = number.filter(|number| (1..=most).contains(number));
        if number.is_none() {
            let at = [&section.path[..], &[name]].concat();
            self.report(&at, format!(": expected a whole number from 1 to {most}"));
        }
        number
    }
}

/// What stands between the scheme and the path of an address.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// What a value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(spec: &Value) -> Vec<String> {
        let errors = SubscriptionSpec::parse(spec).unwrap_err();
        errors.iter().map(|error| error.about("subscription \"s\"")).collect()
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let spec = SubscriptionSpec::parse(&json!({ "deliver": { "pull": {} } })).unwrap();
        assert_eq!(spec.deliver, Deliver::Pull { lease: Duration::from_secs(30) });
        assert_eq!(spec.retry, RetryPolicy::default());
        assert_eq!((spec.start, spec.budget), (StartAt::Now, Budget::default()));
        assert_eq!(spec.expire_after, None);
    }

    #[test]
    fn everything_that_can_be_declared_is_read() {
        let spec = json!({
            "deliver": { "webhook": {
                "url": "https://billing.internal/hooks", "timeout": "3s", "batch": 50, "parallel": 2
            } },
            "retry": { "maxAttempts": 3, "initial": "10ms", "max": "1s", "onPark": "pass" },
            "start": "earliest",
            "budget": { "changesPerSecond": 100, "bytesPerSecond": 65_536 },
            "deadLetters": { "expireAfter": "30d" },
        });
        let spec = SubscriptionSpec::parse(&spec).unwrap();
        let Deliver::Webhook(webhook) = &spec.deliver else { panic!("{spec:?}") };
        assert_eq!((webhook.batch, webhook.parallel), (50, 2));
        assert_eq!(webhook.timeout, Duration::from_secs(3));
        assert_eq!((spec.retry.max_attempts, spec.retry.on_park), (3, OnPark::Pass));
        assert_eq!(spec.start, StartAt::Earliest);
        assert_eq!(spec.budget.changes_per_second, Some(100));
        assert_eq!(spec.expire_after, Some(Duration::from_secs(30 * 86_400)));
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_what_would_be_right() {
        assert_eq!(
            wrong(&json!({
                "deliver": { "webhook": { "url": "ftp://x", "batch": 0, "timeout": "1ms", "to": 1 } },
                "retry": { "maxAttempts": 0, "initial": "soon", "onPark": "stop" },
                "start": "yesterday",
                "budget": 7,
                "colour": "red",
            })),
            [
                "subscription \"s\": unknown key \"colour\": expected one of deliver, filter, retry, \
                 start, budget, deadLetters",
                "webhook of deliver of subscription \"s\": unknown key \"to\": expected one of url, \
                 timeout, batch, parallel, format",
                "url of webhook of deliver of subscription \"s\": expected an http or https address",
                "timeout of webhook of deliver of subscription \"s\": expected at least 100ms",
                "batch of webhook of deliver of subscription \"s\": expected a whole number from 1 to 1000",
                "maxAttempts of retry of subscription \"s\": expected a whole number above 0",
                "initial of retry of subscription \"s\": expected a duration such as 1s or 5m",
                "onPark of retry of subscription \"s\": expected block or pass",
                "start of subscription \"s\": expected \"now\", \"earliest\", \"snapshot\", a position \
                 such as 01-00000000016CA548-00000003, or a time such as 2026-03-01T12:00:00Z",
                "budget of subscription \"s\": expected a mapping, found a number",
            ]
        );
        let secret = json!({ "deliver": { "webhook": { "url": "https://me:geheim@x/" } } });
        assert!(wrong(&secret)[0].contains("expected no user and password"));
        assert!(!wrong(&secret)[0].contains("geheim"));
        let filter = json!({
            "deliver": { "pull": {} },
            "filter": { "ops": ["c", "x"], "where": "status = ", "columns": "id" },
        });
        assert_eq!(
            wrong(&filter),
            [
                "ops of filter of subscription \"s\": unknown operation \"x\": expected of c, u, d, t, r",
                "where of filter of subscription \"s\": at character 10: expected a value such as \
                 'paid', 100 or true, got the end",
                "columns of filter of subscription \"s\": expected a list of texts such as [a, b]",
            ]
        );
        let nats = json!({ "deliver": { "nats": { "url": "nats://a:geheim@x", "stream": "S" } } });
        assert!(wrong(&nats)[0].contains("refer to an environment variable instead"));
        assert!(!wrong(&nats)[0].contains("geheim"));
        let rowless = json!({
            "deliver": { "pull": {} }, "start": "snapshot", "filter": { "ops": ["c"] },
        });
        assert!(wrong(&rowless)[0].ends_with("which has to be among the operations"));
        let two = json!({ "deliver": { "pull": {}, "nats": {} } });
        assert!(wrong(&two)[0].ends_with("and only one"));
    }
}
