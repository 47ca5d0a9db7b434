//! Logs on stderr: bunyan records, or text for people.

use std::io::{self, IsTerminal, Write};

use tracing::{Level, Metadata, Subscriber};
use tracing_bunyan_formatter::{BunyanFormattingLayer, JsonStorageLayer};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use super::Error;

/// The environment variable that says what is logged.
const FILTER_VARIABLE: &str = "CADASTRE_LOG";
/// What is logged when nothing is said.
const FILTER_DEFAULT: &str = "info";
/// The program's name in every record, and the start of its own log targets.
const NAME: &str = "cadastre";

/// How to log.
#[derive(Debug, Clone)]
pub struct TelemetryOptions {
    /// Text for people instead of JSON records.
    pub pretty: bool,
    /// What to log: a level, or a list such as `info,cadastre::capture=debug`.
    pub filter: String,
}

impl Default for TelemetryOptions {
    /// Text when stderr is a terminal; the filter of `CADASTRE_LOG`, else `info`.
    fn default() -> Self {
        let filter = std::env::var(FILTER_VARIABLE).ok().filter(|filter| !filter.is_empty());
        Self {
            pretty: std::io::stderr().is_terminal(),
            filter: filter.unwrap_or_else(|| FILTER_DEFAULT.to_owned()),
        }
    }
}

/// Starts logging, for the rest of the process.
pub fn init(options: &TelemetryOptions) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&options.filter)
        .map_err(|source| Error::Filter { filter: options.filter.clone(), source })?;
    let started = if options.pretty {
        let text = fmt::layer().with_writer(std::io::stderr).with_target(false);
        let layers = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
        layers.with(text).try_init()
    } else {
        json(filter, std::io::stderr).try_init()
    };
    started.map_err(Error::Logs)
}

/// A subscriber that writes bunyan records to `writer`.
fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(is_discreet))
        .with(JsonStorageLayer)
        .with(BunyanFormattingLayer::new(NAME.to_owned(), EventsOnly(writer)))
}

/// Lets events pass and drops the records by which the formatter announces that a span begins or
/// ends: one line for each thing that happened, not three.
struct EventsOnly<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EventsOnly<W> {
    type Writer = EventsOnly<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EventsOnly(self.0.make_writer())
    }
}

impl<W: Write> Write for EventsOnly<W> {
    /// The formatter writes one whole record at a time.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if !announces_span(record) {
            self.0.write_all(record)?;
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether a record's message is `[NAME - START]` or `[NAME - END]`.
fn announces_span(record: &[u8]) -> bool {
    let Some(at) = memchr::memmem::find(record, b"\"msg\":\"[") else { return false };
    let message = record.get(at..).unwrap_or_default();
    let end = memchr::memmem::find(message, b"]\"").unwrap_or_default();
    let message = message.get(..end).unwrap_or_default();
    message.ends_with(b" - START") || message.ends_with(b" - END")
}

/// Whether what is said there cannot hold data: our own words, or a library's at `info` and above.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with(NAME)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::Value;

    use super::*;

    /// Collects what is written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The records logged by `work`.
    fn records(filter: &str, work: impl FnOnce()) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = json(EnvFilter::new(filter), move || writer.clone());
        tracing::subscriber::with_default(subscriber, work);
        let written = String::from_utf8(lines.0.lock().clone()).unwrap();
        written.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn every_line_is_a_bunyan_record_with_the_fields_of_its_span() {
        let records = records("info", || {
            let span = tracing::info_span!("capture", source = "shop", slot.name = "cadastre_shop");
            let _inside = span.enter();
            tracing::warn!(
                pg.lsn = "0/16B3748",
                duration_ms = 12_u64,
                "a line\nbreak and a \"quote\""
            );
        });
        assert_eq!(records.len(), 1, "only what happened is a line: {records:?}");
        for record in &records {
            assert_eq!(record["v"], 0);
            assert_eq!(record["name"], "cadastre");
            assert_eq!(record["pid"], std::process::id());
            assert!(record["hostname"].as_str().is_some_and(|name| !name.is_empty()), "{record}");
            assert!(record["level"].is_u64() && record["msg"].is_string(), "{record}");
            chrono::DateTime::parse_from_rfc3339(record["time"].as_str().unwrap()).unwrap();
        }
        let event = records.iter().find(|record| record["level"] == 40).expect("the warning");
        assert!(event["msg"].as_str().unwrap().ends_with("a line\nbreak and a \"quote\""));
        assert_eq!(event["source"], "shop");
        assert_eq!(event["slot.name"], "cadastre_shop");
        assert_eq!(event["pg.lsn"], "0/16B3748");
        assert_eq!(event["duration_ms"], 12);
    }

    #[test]
    fn libraries_are_not_heard_below_info_whatever_the_filter_says() {
        let records = records("trace,tokio_postgres=trace", || {
            tracing::debug!(target: "tokio_postgres::query", "executing with parameters: secret");
            tracing::info!(target: "tokio_postgres::query", "heard");
            tracing::debug!(target: "cadastre::capture", "heard too");
        });
        let said: Vec<&str> = records.iter().filter_map(|record| record["msg"].as_str()).collect();
        assert_eq!(said, ["heard", "heard too"]);
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_an_example() {
        let options = TelemetryOptions { pretty: false, filter: "cadastre=loud".to_owned() };
        let message = init(&options).unwrap_err().to_string();
        assert!(message.contains("`cadastre=loud`") && message.contains("cadastre::"), "{message}");
    }
}
