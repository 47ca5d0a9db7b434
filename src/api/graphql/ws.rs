//! GraphQL over a WebSocket: the graphql-transport-ws protocol.
//!
//! ```text
//! client                            server
//!   connection_init {authorization}  ──►   ◄── connection_ack      else closed: 4403, 4408, 4429
//!   subscribe {id, payload}          ──►   ◄── next {id, payload} …  before the ack: 4401
//!   complete {id}                    ──►   ◄── complete {id} or error {id, payload}
//! ```
//!
//! Protocol: <https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>. Browsers cannot set
//! headers here, so a token may also come in the payload of `connection_init`.
//!
//! Nothing is read from an operation before what it gave is handed to the connection, whose buffer
//! is bounded: a slow client holds back its own operations and nobody else's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Session};
use async_graphql::parser::types::OperationType;
use async_graphql::{Executor, Response};
use futures::stream::{AbortHandle, Abortable, BoxStream, SelectAll};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument;

use super::failure;
use super::operation;
use super::{Schema, http};
use crate::api::auth::{self, Caller};
use crate::api::code::Code;
use crate::api::observe::Identity;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::vocab::limits;

/// The one protocol spoken.
const PROTOCOL: &str = "graphql-transport-ws";

/// A peer not heard of for this long is gone; it is asked for a sign of life three times before.
const SILENCE_MAX: Duration = Duration::from_secs(3 * limits::FEED_SILENCE_MAX.as_secs());

/// Turns the connection into a WebSocket and serves it until either side ends it.
pub(super) fn upgrade(
    shared: Arc<Shared>,
    schema: Schema,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let (response, session, messages) =
        actix_ws::handle_with_protocols(request, payload, &[PROTOCOL])
            .map_err(|error| Problem::foreign(&error))?;
    if !response.headers().contains_key("sec-websocket-protocol") {
        let detail = format!("expected Sec-WebSocket-Protocol: {PROTOCOL}");
        return Err(Problem::new(Code::BadRequest, detail));
    }
    let messages = messages
        .max_frame_size(limits::REQUEST_BODY_BYTES_MAX)
        .aggregate_continuations()
        .max_continuation_size(limits::REQUEST_BODY_BYTES_MAX);
    let socket = Socket {
        caller: request.extensions().get::<Caller>().cloned(),
        request_id: Identity::of_request(request).request_id,
        shared,
        schema,
        session,
        acknowledged: false,
        operations: HashMap::new(),
        events: SelectAll::new(),
    };
    // Owned by its connection: it ends when that does, or with the server's stop signal.
    actix_web::rt::spawn(socket.run(messages).instrument(tracing::Span::current()));
    Ok(response)
}

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Incoming {
    ConnectionInit {
        #[serde(default)]
        payload: Value,
    },
    Ping {
        #[serde(default)]
        payload: Option<Value>,
    },
    Pong {},
    Subscribe {
        id: String,
        payload: Value,
    },
    Complete {
        id: String,
    },
}

/// What an operation gives.
struct Event {
    id: String,
    /// `None` when it is complete.
    response: Option<Response>,
}

/// Why the socket is closed.
type End = Option<CloseReason>;

fn close(code: u16, reason: &str) -> End {
    Some(CloseReason { code: CloseCode::Other(code), description: Some(reason.to_owned()) })
}

/// One connection.
struct Socket<E> {
    shared: Arc<Shared>,
    schema: E,
    session: Session,
    request_id: String,
    /// Who it is from, as soon as they have said.
    caller: Option<Caller>,
    /// Whether `connection_init` was accepted.
    acknowledged: bool,
    /// Under way, by the client's id.
    operations: HashMap<String, AbortHandle>,
    events: SelectAll<BoxStream<'static, Event>>,
}

impl<E: Executor> Socket<E> {
    async fn run(mut self, messages: AggregatedMessageStream) {
        let end = match self.serve(messages).await {
            Ok(()) => None,
            Err(end) => end,
        };
        tracing::info!(
            request_id = self.request_id,
            reason = end.as_ref().and_then(|end| end.description.as_deref()),
            "socket ended"
        );
        // A peer that has gone already cannot be told.
        let _closed = self.session.close(end).await;
    }

    async fn serve(&mut self, mut messages: AggregatedMessageStream) -> Result<(), End> {
        let stopping = self.shared.stopping.clone();
        let opened = Instant::now();
        let mut heard = opened;
        let mut pulse = tokio::time::interval(limits::FEED_SILENCE_MAX);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Err(close(1001, "the server is stopping")),
                _ = pulse.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Ok(());
                    }
                    if let Some(caller) = &self.caller {
                        self.still_known(caller)?;
                    }
                    self.session.ping(b"").await.map_err(|_| None)?;
                }
                () = tokio::time::sleep_until(opened + limits::SOCKET_INIT_WAIT_MAX),
                    if !self.acknowledged =>
                {
                    return Err(close(4408, "Connection initialisation timeout"));
                }
                message = messages.recv() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) => self.hear(message).await?,
                        Some(Err(_)) | None => return Ok(()),
                    }
                }
                Some(event) = self.events.next() => self.tell(event).await?,
            }
        }
    }

    /// Acts on a frame of the client.
    async fn hear(&mut self, message: AggregatedMessage) -> Result<(), End> {
        let text = match message {
            AggregatedMessage::Text(text) => text,
            AggregatedMessage::Binary(_) => return Err(close(4400, "Expected text")),
            AggregatedMessage::Ping(bytes) => {
                return self.session.pong(&bytes).await.map_err(|_| None);
            }
            AggregatedMessage::Pong(_) => return Ok(()),
            AggregatedMessage::Close(reason) => return Err(reason),
        };
        let message = serde_json::from_str(&text)
            .map_err(|error| close(4400, &short(&format!("Invalid message: {error}"))))?;
        match message {
            Incoming::ConnectionInit { payload } => self.acknowledge(&payload).await,
            Incoming::Ping { payload } => {
                let pong = match payload {
                    Some(payload) => json!({"type": "pong", "payload": payload}),
                    None => json!({"type": "pong"}),
                };
                self.send(&pong).await
            }
            Incoming::Pong {} => Ok(()),
            Incoming::Subscribe { id, payload } => self.subscribe(id, payload).await,
            Incoming::Complete { id } => {
                if let Some(operation) = self.operations.remove(&id) {
                    operation.abort();
                }
                Ok(())
            }
        }
    }

    async fn acknowledge(&mut self, payload: &Value) -> Result<(), End> {
        if self.acknowledged {
            return Err(close(4429, "Too many initialisation requests"));
        }
        let given = payload.get("authorization").or_else(|| payload.get("Authorization"));
        if self.caller.is_none() {
            let given = given.and_then(Value::as_str).unwrap_or_default();
            self.caller = auth::authenticate(&self.shared.context, given).ok();
        }
        if self.caller.is_none() {
            return Err(close(4403, "Forbidden"));
        }
        self.acknowledged = true;
        self.send(&json!({"type": "connection_ack"})).await
    }

    /// Ends the socket of who has lost their token since.
    fn still_known(&self, caller: &Caller) -> Result<(), End> {
        if caller.is_still_valid(&self.shared.context) {
            return Ok(());
        }
        Err(close(4403, "Forbidden"))
    }

    async fn subscribe(&mut self, id: String, payload: Value) -> Result<(), End> {
        let Some(caller) = self.caller.clone().filter(|_| self.acknowledged) else {
            return Err(close(4401, "Unauthorized"));
        };
        self.still_known(&caller)?;
        if self.operations.contains_key(&id) {
            return Err(close(4409, &short(&format!("Subscriber for {id} already exists"))));
        }
        let full = self.operations.len() >= limits::SOCKET_OPERATIONS_MAX;
        let operation = match operation::from_json(payload) {
            Ok(_) if full => {
                let max = limits::SOCKET_OPERATIONS_MAX;
                let message = format!("expected at most {max} operations at once on a socket");
                let error = failure::error(failure::BAD_REQUEST, message);
                return self.fail(&id, Response::from_errors(vec![error])).await;
            }
            Ok(operation) => match operation.by(&caller) {
                Ok(operation) => operation,
                Err(refusal) => return self.fail(&id, *refusal).await,
            },
            Err(unreadable) => {
                let error = unreadable.into_error();
                return self.fail(&id, Response::from_errors(vec![error])).await;
            }
        };
        let responses = match operation.kind {
            OperationType::Subscription => self.schema.execute_stream(operation.request, None),
            OperationType::Query | OperationType::Mutation => {
                let schema = self.schema.clone();
                stream::once(async move { schema.execute(operation.request).await }).boxed()
            }
        };
        let (handle, registration) = AbortHandle::new_pair();
        let (each, last) = (id.clone(), id.clone());
        let events = responses
            .map(move |response| Event { id: each.clone(), response: Some(response) })
            .chain(stream::once(async move { Event { id: last, response: None } }));
        self.operations.insert(id, handle);
        self.events.push(Abortable::new(events, registration).boxed());
        Ok(())
    }

    /// Passes on what an operation gave.
    async fn tell(&mut self, event: Event) -> Result<(), End> {
        let Event { id, response } = event;
        if !self.operations.contains_key(&id) {
            return Ok(());
        }
        let Some(mut response) = response else {
            self.operations.remove(&id);
            return self.send(&json!({"type": "complete", "id": id})).await;
        };
        // A stream that fails has nothing more to give: its client must hear that it is over.
        if response.is_err() && response.data == async_graphql::Value::Null
            || http::failed_as_request(&response)
        {
            return self.fail(&id, response).await;
        }
        failure::complete(&mut response.errors, &self.request_id);
        self.send(&json!({"type": "next", "id": id, "payload": response})).await
    }

    /// Ends an operation with its errors.
    async fn fail(&mut self, id: &str, mut response: Response) -> Result<(), End> {
        if let Some(operation) = self.operations.remove(id) {
            operation.abort();
        }
        failure::complete(&mut response.errors, &self.request_id);
        self.send(&json!({"type": "error", "id": id, "payload": response.errors})).await
    }

    /// Hands a message to the connection; waits while its buffer is full.
    async fn send(&mut self, message: &Value) -> Result<(), End> {
        let stopping = self.shared.stopping.clone();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Err(close(1001, "the server is stopping")),
            sent = self.session.text(message.to_string()) => sent.map_err(|_| None),
        }
    }
}

/// A close reason has at most 123 bytes.
fn short(text: &str) -> String {
    text.chars().filter(char::is_ascii).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_by_their_type() {
        let parse = serde_json::from_str::<Incoming>;
        assert!(matches!(
            parse(r#"{"type":"connection_init"}"#),
            Ok(Incoming::ConnectionInit { payload: Value::Null })
        ));
        assert!(matches!(parse(r#"{"type":"pong","payload":{}}"#), Ok(Incoming::Pong {})));
        assert!(matches!(
            parse(r#"{"type":"subscribe","id":"1","payload":{"query":"{a}"}}"#),
            Ok(Incoming::Subscribe { .. })
        ));
        assert!(parse(r#"{"type":"start","id":"1","payload":{}}"#).is_err());
        assert!(parse("[]").is_err());
    }

    #[test]
    fn close_reasons_fit_their_frame() {
        assert_eq!(short(&"é".repeat(200)), "");
        assert_eq!(short(&"a".repeat(200)).len(), 120);
    }
}
