//! The HTTP server: its routes, its workers, its end.
//!
//! actix runs one single-threaded runtime for each core and handles requests there. Work that
//! must not end with its caller's connection, such as a change of the registry and its sources,
//! goes to the main runtime by [`Shared::detached`].

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpResponse, HttpServer, Resource, Route, web};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::auth::{self, Tokens};
use super::code::Code;
use super::error::Error;
use super::observe::observe;
use super::problem::Problem;
use super::{graphql, rest};
use crate::capture::Captures;
use crate::config::HttpOptions;
use crate::feed::{Feed, Subscriptions};
use crate::gateway::Gateway;
use crate::guard::Governor;
use crate::registry::Registry;
use crate::task::Tasks;

/// What the API serves, put together by the composition root.
#[derive(Clone)]
pub struct Context {
    /// Ownership: snapshot reads, history, violations.
    pub registry: Registry,
    /// The one way to change the registry and its sources.
    pub governor: Governor,
    /// Rows written for services.
    pub gateway: Gateway,
    /// The change feed.
    pub feed: Feed,
    /// Named readers, and how far they have come.
    pub subscriptions: Subscriptions,
    /// How each source's capture stands.
    pub captures: Captures,
    /// Who may ask.
    pub tokens: Tokens,
    /// The metrics of the whole process in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What troubles the logs now, one sentence each; empty when all is well.
    pub log_troubles: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// What every handler can reach.
pub(super) struct Shared {
    /// The rooms.
    pub(super) context: Context,
    /// The signal to end feeds and sockets.
    pub(super) stopping: CancellationToken,
    tasks: Tasks,
    main: Handle,
}

impl Shared {
    /// Runs `work` on the main runtime and waits for it. It runs to its end even when the client
    /// leaves and this future is dropped.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, receiver) = oneshot::channel();
        let work = async move {
            // The receiver is gone when the client is; the work was worth doing all the same.
            let _gone = sender.send(work.await);
        };
        {
            let _main = self.main.enter();
            self.tasks.spawn(name, work.instrument(tracing::Span::current()));
        }
        receiver
            .await
            .map_err(|_| Problem::internal(format!("task {name} ended without an answer")))
    }
}

/// A server that accepts requests.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens, the port as picked.
    pub addr: SocketAddr,
    ended: oneshot::Receiver<()>,
}

impl Serving {
    /// Waits until the server has ended: after the stop signal, when the last request has been
    /// answered or the grace is over.
    pub async fn ended(self) {
        // An error is the sender's end without a word, which is an end as well.
        let _ended = self.ended.await;
    }
}

/// Starts to serve. Stops when `tasks` do: no more connections, open feeds end after their present
/// frame, requests under way get the grace of `options`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    context: Context,
    options: &HttpOptions,
    tasks: &Tasks,
) -> Result<Serving, Error> {
    let stopping = tasks.stopping();
    let shared = Arc::new(Shared {
        context,
        stopping: stopping.clone(),
        tasks: tasks.clone(),
        main: Handle::current(),
    });
    let schema = web::Data::new(graphql::schema(Arc::clone(&shared)));
    let shared = web::Data::from(shared);
    let listen = |cause| Error::Listen { address: options.listen.clone(), cause };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(schema.clone())
            .configure(routes)
            .default_service(web::to(nothing_here))
            .wrap(from_fn(auth::require))
            .wrap(from_fn(observe))
    })
    .workers(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
    .tcp_nodelay(true)
    .client_request_timeout(options.request_timeout)
    .shutdown_timeout(options.grace.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX))
    .shutdown_signal(stopping.cancelled_owned())
    .bind(&options.listen)
    .map_err(listen)?;
    let addr =
        *server.addrs().first().ok_or_else(|| listen(std::io::ErrorKind::NotFound.into()))?;

    let (sender, ended) = oneshot::channel();
    let server = server.run();
    tasks.spawn("http", async move {
        if let Err(error) = server.await {
            tracing::error!(error = %error, "the HTTP server ended");
        }
        drop(sender);
    });
    Ok(Serving { addr, ended })
}

/// Every route of the server.
fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/healthz", "GET", [web::get().to(rest::healthz)]))
        .service(resource("/readyz", "GET", [web::get().to(rest::readyz)]))
        .service(resource("/metrics", "GET", [web::get().to(rest::metrics)]))
        .service(resource("/v1/openapi.json", "GET", [web::get().to(rest::openapi)]))
        .service(resource(
            "/v1/check",
            "GET, POST",
            [web::get().to(rest::check_query), web::post().to(rest::check_body)],
        ))
        .service(resource("/v1/feed", "GET", [web::get().to(rest::feed)]))
        .service(resource("/v1/datasets/{dataset}/rows", "POST", [web::post().to(rest::rows)]))
        .service(resource("/v1/subscriptions/{name}/changes", "GET", [web::get().to(rest::fetch)]))
        .service(resource("/v1/subscriptions/{name}/ack", "POST", [web::post().to(rest::ack)]))
        .service(resource("/v1/subscriptions/{name}/nack", "POST", [web::post().to(rest::nack)]))
        .service(resource(
            "/v1/subscriptions/{name}/extend",
            "POST",
            [web::post().to(rest::extend)],
        ))
        .service(resource("/v1/subscriptions/{name}/secret", "GET", [web::get().to(rest::secret)]))
        .service(resource(
            "/v1/subscriptions/{name}/dead-letters",
            "GET",
            [web::get().to(rest::dead_letters::list)],
        ))
        .service(resource(
            "/v1/subscriptions/{name}/dead-letters/redrive",
            "POST",
            [web::post().to(rest::dead_letters::redrive)],
        ))
        .service(resource(
            "/v1/subscriptions/{name}/dead-letters/{id}",
            "GET, PUT, DELETE",
            [
                web::get().to(rest::dead_letters::get),
                web::put().to(rest::dead_letters::edit),
                web::delete().to(rest::dead_letters::drop_letter),
            ],
        ))
        .service(resource("/v1/snapshots", "GET", [web::get().to(rest::snapshots)]))
        .service(resource("/v1/manifest", "GET", [web::get().to(rest::export)]))
        .service(resource("/v1/manifest/plan", "POST", [web::post().to(rest::plan)]))
        .service(resource("/v1/manifest/apply", "POST", [web::post().to(rest::apply)]))
        .service(resource("/v1/sources/{name}/adopt", "POST", [web::post().to(rest::adopt)]))
        .service(resource("/v1/sources/{name}/adoption", "GET", [web::get().to(rest::adoption)]))
        .service(resource("/v1/sources/{name}/doctor", "GET", [web::get().to(rest::doctor)]))
        .service(resource("/v1/sources/{name}/proof", "GET", [web::get().to(rest::proof)]))
        .service(resource(
            "/graphql",
            "GET, POST",
            [web::get().to(graphql::get), web::post().to(graphql::post)],
        ));
}

/// A path with its methods; any other method is told which there are.
fn resource<const N: usize>(path: &str, allow: &'static str, routes: [Route; N]) -> Resource {
    routes.into_iter().fold(web::resource(path), Resource::route).default_service(web::to(
        move || async move { Err::<HttpResponse, _>(Problem::method_not_allowed(allow)) },
    ))
}

async fn nothing_here() -> Result<HttpResponse, Problem> {
    Err(Problem::new(Code::NotFound, "no such route: GET /v1/openapi.json lists them"))
}
