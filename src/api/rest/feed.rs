//! The change feed over plain HTTP: server-sent events or newline-delimited JSON.
//!
//! The feed is open before the first byte is sent: who has seen the head, or the comment `: live`,
//! misses nothing from then on. A feed that ends by an error says so as its last event; one that
//! ends without is the server's shutdown or a lost connection, and may be resumed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures::Stream;
use futures::stream;
use metrics::{Counter, Gauge};

use crate::api::auth::{self, Caller};
use crate::api::code::Code;
use crate::api::input::{Query, header_text};
use crate::api::negotiate;
use crate::api::observe::Identity;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::feed::{self, After, Cursor, Delivery, Shape, Until};
use crate::vocab::{DatasetName, Op, Predicate, limits};

/// Largest piece given to the connection at once, in bytes: what a reader that stopped reading
/// holds in buffers of its connection grows with it.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Every parameter of the interface.
const PARAMETERS: [&str; 8] =
    ["datasets", "after", "until", "ops", "key", "columns", "where", "format"];

/// The changes of some datasets from a position on, for as long as the client stays.
///
/// With `after=snapshot` the present rows come first, then precisely the changes they do not
/// contain; events named `snapshot` tell how far it is. Until it is done positions are longer, and
/// resuming goes on in the middle of it.
///
/// Each change is one event whose `id` is its position, so that `Last-Event-ID` resumes where a
/// reader stopped. Silence is broken by comments (or empty lines), which prove that the feed lives.
/// A feed that fails ends with an event `error` (or a line with the member `error`).
#[utoipa::path(
    get, path = "/v1/feed", tag = "changes",
    params(
        ("datasets" = String, Query, description = "Names, separated by commas; all of one source. A part with a dot, a comma or a double quote in it stands in double quotes"),
        ("after" = Option<String>, Query, description = "`now` (default), `earliest`, `snapshot` (the rows as they are, as op `r`, then the changes), a position, or a time: begins with the first change committed at or after it"),
        ("until" = Option<String>, Query, description = "Ends the response: `now`, with this position, or before the first change committed at or after a time; goes on for ever by default; not with a snapshot"),
        ("key" = Option<String>, Query, description = "Only changes of the row with this key: a JSON object of columns and values, or the value of a key of one column; of one dataset; not with a snapshot"),
        ("ops" = Option<String>, Query, description = "Of c, u, d, t, r, separated by commas; all by default"),
        ("where" = Option<String>, Query, description = "Only changes of rows of which this holds, such as `status = 'paid' and amount >= 100`"),
        ("columns" = Option<String>, Query, description = "Only these columns of the rows, separated by commas"),
        ("format" = Option<String>, Query, description = "`debezium` (default), or `cloudevents` for the JSON format of CloudEvents 1.0"),
        ("Last-Event-ID" = Option<String>, Header, description = "A position; overrides `after`"),
    ),
    responses(
        (status = 200, content(
            (String = "text/event-stream"),
            (String = "application/x-ndjson"),
        )),
        (status = 400, description = "bad_request, malformed_name, malformed_position", body = super::openapi::Problem),
        (status = 404, description = "unknown_dataset", body = super::openapi::Problem),
        (status = 406, description = "not_acceptable", body = super::openapi::Problem),
        (status = 410, description = "position_trimmed, with `earliest`", body = super::openapi::Problem),
        (status = 422, description = "refused: the source's role may not read the table", body = super::openapi::Problem),
        (status = 503, description = "too_many_feeds, too_many_snapshots, busy, unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn feed(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let form = Form::of(header_text(request.headers(), header::ACCEPT.as_str()))?;
    let last_event_id = header_text(request.headers(), "last-event-id");
    let (asked, part) = parse(request.query_string(), last_event_id)?;
    let cursor = shared.context.feed.open_part(asked, part).await?;
    let body = Body {
        cursor,
        form,
        shared: shared.into_inner(),
        caller,
        pending: form.alive(),
        over: false,
        meter: Meter::new(Identity::of_request(&request).request_id),
    };
    Ok(HttpResponse::Ok()
        .content_type(form.media())
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // Asks nginx not to hold events back.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body.into_stream()))
}

/// How changes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Sse,
    Ndjson,
}

impl Form {
    const MEDIA: [&str; 2] = ["text/event-stream", "application/x-ndjson"];

    fn of(accept: Option<&str>) -> Result<Self, Problem> {
        match negotiate::best(accept, &Self::MEDIA) {
            Some(0) => Ok(Self::Sse),
            Some(_) => Ok(Self::Ndjson),
            None => {
                let detail = format!("expected Accept: {}", Self::MEDIA.join(" or "));
                Err(Problem::new(Code::NotAcceptable, detail))
            }
        }
    }

    fn media(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// The first bytes.
    fn alive(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Sse => b": live\n\n",
            Self::Ndjson => b"\n",
        })
    }

    /// What breaks a silence.
    fn still_alive(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Sse => b":\n\n",
            Self::Ndjson => b"\n",
        })
    }

    fn changes(self, delivery: &Delivery) -> Bytes {
        match self {
            Self::Sse => delivery.sse(),
            Self::Ndjson => delivery.ndjson(),
        }
    }

    /// The last bytes of a feed that failed.
    fn failure(self, problem: &Problem, request_id: &str) -> Bytes {
        let json = problem.to_json(Some(request_id));
        match self {
            Self::Sse => format!("event: error\ndata: {json}\n\n").into(),
            Self::Ndjson => format!("{{\"error\":{json}}}\n").into(),
        }
    }
}

/// What the client asks for. `Last-Event-ID` is what the reader has really seen, so that it
/// overrides where the address says to begin.
fn parse(query: &str, last_event_id: Option<&str>) -> Result<(feed::Request, feed::Part), Problem> {
    let query = Query::parse(query, &PARAMETERS)?;
    let cloud_event = match query.one("format")? {
        None | Some("debezium") => false,
        Some("cloudevents") => true,
        Some(other) => {
            let detail =
                format!("unknown format \"{other}\": expected \"debezium\" or \"cloudevents\"");
            return Err(Problem::new(Code::BadRequest, detail));
        }
    };
    let predicate = query.one("where")?.map(parse_predicate).transpose()?;
    let columns = query.one("columns")?.map(parse_columns).transpose()?;
    let names = query.all("datasets").flat_map(DatasetName::split);
    let datasets = names.map(str::parse).collect::<Result<Vec<_>, _>>()?;
    if datasets.is_empty() {
        query.required("datasets", "datasets=shop.public.orders")?;
        return Err(Problem::new(Code::BadRequest, "datasets= names no dataset"));
    }
    let after = parse_after(last_event_id.or(query.one("after")?))?;
    let ops = query.one("ops")?.map(parse_ops).transpose()?;
    let shape = Shape { predicate, columns, cloud_event };
    let until = query.one("until")?.map(parse_until).transpose()?;
    let part = feed::Part { until, key: query.one("key")?.map(str::to_owned) };
    Ok((feed::Request { datasets, after, ops, shape }, part))
}

/// Where to end.
pub(in crate::api) fn parse_until(text: &str) -> Result<Until, Problem> {
    Ok(text.parse()?)
}

/// Where to begin: `now` when nothing is said.
pub(in crate::api) fn parse_after(text: Option<&str>) -> Result<After, Problem> {
    match text {
        None | Some("now") => Ok(After::Now),
        Some("earliest") => Ok(After::Earliest),
        Some("snapshot") => Ok(After::Snapshot),
        Some(token) if token.contains('~') => match token.parse() {
            Ok(token) => Ok(After::Resume(Box::new(token))),
            Err(error) => {
                let error: feed::MalformedToken = error;
                Err(Problem::new(Code::MalformedPosition, error.to_string()))
            }
        },
        Some(text) => match text.parse() {
            Ok(after) => Ok(after),
            Err(error) => {
                let error: feed::Error = error;
                Err(Problem::new(Code::MalformedPosition, error.to_string()))
            }
        },
    }
}

/// A condition on rows.
pub(in crate::api) fn parse_predicate(text: &str) -> Result<Predicate, Problem> {
    text.parse().map_err(|error| Problem::new(Code::BadRequest, format!("where: {error}")))
}

fn parse_columns(text: &str) -> Result<BTreeSet<String>, Problem> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let columns: BTreeSet<String> = names.map(str::to_owned).collect();
    if columns.is_empty() {
        return Err(Problem::new(Code::BadRequest, "columns= names no column"));
    }
    Ok(columns)
}

fn parse_ops(text: &str) -> Result<Vec<Op>, Problem> {
    let op = |letter: &str| match letter.as_bytes() {
        [code] => Op::from_code(*code).filter(|op| Op::CHANGES.contains(op)),
        _ => None,
    };
    text.split(',')
        .map(|letter| {
            op(letter.trim()).ok_or_else(|| {
                let detail = format!("unknown operation \"{letter}\": expected of c, u, d, t, r");
                Problem::new(Code::BadRequest, detail)
            })
        })
        .collect()
}

/// An open feed, drawn piece by piece by the connection: nothing is read from the log before the
/// client has taken what was read before.
struct Body {
    cursor: Cursor,
    form: Form,
    shared: Arc<Shared>,
    /// Who reads; a feed ends with the token it was opened with.
    caller: Caller,
    /// Ready to be sent, in pieces.
    pending: Bytes,
    /// Whether the feed ends after `pending`.
    over: bool,
    meter: Meter,
}

impl Body {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut body| async move {
            let piece = body.next().await?;
            Some((Ok(piece), body))
        })
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.pending.is_empty() {
            self.pending = self.next_frame().await?;
        }
        let piece = self.pending.split_to(self.pending.len().min(PIECE_BYTES_MAX));
        self.meter.bytes.increment(piece.len() as u64);
        Some(piece)
    }

    async fn next_frame(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let delivered = tokio::select! {
            biased;
            () = self.shared.stopping.cancelled() => return None,
            delivered = tokio::time::timeout(limits::FEED_SILENCE_MAX, self.cursor.try_next()) => delivered,
        };
        if !self.caller.is_still_valid(&self.shared.context) {
            return Some(self.fail(&auth::invalid_token()));
        }
        Some(match delivered {
            Err(_silence) => self.form.still_alive(),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(delivery))) => {
                self.meter.sent(&delivery);
                self.form.changes(&delivery)
            }
            Ok(Err(error)) => self.fail(&Problem::from(error)),
        })
    }

    /// The last frame of a feed that cannot go on.
    fn fail(&mut self, problem: &Problem) -> Bytes {
        self.over = true;
        self.meter.failed(problem);
        self.form.failure(problem, &self.meter.request_id)
    }
}

/// Counts what a feed sends, and writes its last log line.
struct Meter {
    request_id: String,
    changes_sent: u64,
    readers: Gauge,
    changes: Counter,
    bytes: Counter,
}

impl Meter {
    fn new(request_id: String) -> Self {
        let readers = metrics::gauge!("cadastre_feed_readers");
        readers.increment(1.0);
        Self {
            request_id,
            changes_sent: 0,
            readers,
            changes: metrics::counter!("cadastre_feed_changes_sent_total"),
            bytes: metrics::counter!("cadastre_feed_bytes_sent_total"),
        }
    }

    fn sent(&mut self, delivery: &Delivery) {
        let changes = delivery.changes() as u64;
        self.changes_sent += changes;
        self.changes.increment(changes);
    }

    fn failed(&self, problem: &Problem) {
        tracing::warn!(
            request_id = self.request_id,
            code = problem.code().as_str(),
            error = problem.cause().unwrap_or_else(|| problem.detail()),
            "feed failed"
        );
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.readers.decrement(1.0);
        tracing::info!(
            request_id = self.request_id,
            changes_sent = self.changes_sent,
            "feed ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_datasets_a_place_and_operations() {
        let (asked, part) = parse("datasets=shop.public.a,shop.public.b&ops=c,u", None).unwrap();
        assert!(part.until.is_none() && part.key.is_none());
        assert_eq!(asked.datasets.len(), 2);
        assert_eq!(asked.after, After::Now);
        assert_eq!(asked.ops, Some(vec![Op::Create, Op::Update]));
        assert!(asked.shape.is_plain());
        let query = "datasets=a.b.c&columns=id,status&where=id%20%3E%201&format=cloudevents";
        let shape = parse(query, None).unwrap().0.shape;
        assert_eq!(shape.columns, Some(["id".to_owned(), "status".to_owned()].into()));
        assert_eq!(shape.predicate, Some("id > 1".parse().unwrap()));
        assert!(shape.cloud_event);
    }

    #[test]
    fn a_part_is_asked_for_by_time_and_key() {
        let query = "datasets=a.b.c&after=2026-11-26T10:00:00Z&until=now&key=%7B%22id%22:7%7D";
        let (asked, part) = parse(query, None).unwrap();
        assert_eq!(asked.after, After::Time("2026-11-26T10:00:00Z".parse().unwrap()));
        assert_eq!(part.until, Some(Until::Now));
        assert_eq!(part.key.as_deref(), Some("{\"id\":7}"));
    }

    #[test]
    fn what_the_reader_has_seen_overrides_where_it_first_began() {
        let position = "01-00000000016CA548-00000003";
        let (asked, _) = parse("datasets=shop.public.a&after=earliest", Some(position)).unwrap();
        assert_eq!(asked.after, After::Position(position.parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_what_can() {
        for (query, code, hint) in [
            ("", Code::BadRequest, "datasets=shop.public.orders"),
            ("datasets=,", Code::BadRequest, "names no dataset"),
            ("datasets=orders", Code::MalformedName, "SOURCE.SCHEMA.TABLE"),
            ("datasets=a.b.c&since=1", Code::BadRequest, "expected datasets, after"),
            ("datasets=a.b.c&after=12", Code::MalformedPosition, "\"earliest\""),
            ("datasets=a.b.c&after=12~3", Code::MalformedPosition, "POSITION~COUNT~STATE"),
            ("datasets=a.b.c&ops=x", Code::BadRequest, "c, u, d, t, r"),
            ("datasets=a.b.c&ops=g", Code::BadRequest, "c, u, d, t, r"),
            (
                "datasets=a.b.c&where=status%20=",
                Code::BadRequest,
                "where: at character 9: expected a value",
            ),
            ("datasets=a.b.c&columns=,", Code::BadRequest, "names no column"),
            (
                "datasets=a.b.c&after=2026-13-01T00:00:00Z",
                Code::MalformedPosition,
                "a time such as",
            ),
            ("datasets=a.b.c&until=later", Code::BadRequest, "not a place to end"),
            ("datasets=a.b.c&format=xml", Code::BadRequest, "debezium"),
        ] {
            let problem = parse(query, None).unwrap_err();
            assert_eq!(problem.code(), code, "{query}");
            assert!(problem.detail().contains(hint), "{query}: {}", problem.detail());
        }
    }

    #[test]
    fn the_form_follows_the_accept_header() {
        assert_eq!(Form::of(None).unwrap(), Form::Sse);
        assert_eq!(Form::of(Some("*/*")).unwrap(), Form::Sse);
        assert_eq!(Form::of(Some("application/x-ndjson")).unwrap(), Form::Ndjson);
        let problem = Form::of(Some("application/json")).unwrap_err();
        assert_eq!(problem.code(), Code::NotAcceptable);
    }

    #[test]
    fn a_failure_is_the_last_event_and_never_silent() {
        let problem = Problem::new(Code::Unavailable, "the log cannot be read now");
        let sse = Form::Sse.failure(&problem, "r-1");
        assert!(sse.starts_with(b"event: error\ndata: {"), "{sse:?}");
        assert!(sse.ends_with(b"}\n\n"));
        let line = Form::Ndjson.failure(&problem, "r-1");
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["error"]["code"], "unavailable");
        assert_eq!(json["error"]["request_id"], "r-1");
    }
}
