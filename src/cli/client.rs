//! The HTTP client behind every command that talks to a server.
//!
//! Every call has a deadline; only a feed is open-ended, and it has a longest silence instead.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::app;
use crate::vocab::limits;

/// Longest wait for a connection to the server.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait for an answer. Above the server's own waits on its database, so that its message
/// arrives instead of a bare timeout.
const ANSWER: Duration = Duration::from_secs(30);

/// Longest wait for a manifest to be applied: the server keeps asking for table locks for
/// `--guard-patience`, per source.
const APPLY: Duration = Duration::from_secs(300);

/// Longest silence on a feed: three of the server's signs of life.
const SILENCE: Duration = limits::FEED_SILENCE_MAX.saturating_mul(3);

/// Where the server is, and who asks.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientOptions {
    /// The server's base URL.
    #[arg(long, env = "CADASTRE_URL", default_value = "http://127.0.0.1:7400", value_name = "URL")]
    pub(crate) url: Url,
    /// API token. Without it, and for a server on this machine, the admin token that `cadastre up`
    /// keeps in its data directory (`CADASTRE_DATA_DIR`, default `.cadastre`) is used if it can be
    /// read.
    #[arg(long, env = "CADASTRE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<SecretString>,
    /// The data directory to look for the admin token in.
    #[arg(skip = std::env::var_os("CADASTRE_DATA_DIR").map(PathBuf::from))]
    data_dir: Option<PathBuf>,
}

impl ClientOptions {
    /// A server on this machine, with the token in its data directory.
    pub(crate) fn local(addr: SocketAddr, data_dir: &Path) -> Result<Self, Error> {
        let url = format!("http://{addr}")
            .parse()
            .map_err(|_| Error::Usage(format!("{addr} cannot be called")))?;
        Ok(Self { url, token: None, data_dir: Some(data_dir.to_owned()) })
    }
}

/// An RFC 9457 problem as the server sends it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// Stable code.
    pub(crate) code: String,
    /// What is wrong and what would be right.
    #[serde(default)]
    pub(crate) detail: Option<String>,
    /// Places in a file the server was given.
    #[serde(default)]
    pub(crate) errors: Vec<Finding>,
    /// Names the request in the server's log.
    #[serde(default)]
    pub(crate) request_id: Option<String>,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Finding {
    /// The file as the client named it.
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// Its line, from 1.
    #[serde(default)]
    pub(crate) line: Option<u64>,
    /// What is wrong and what was expected.
    pub(crate) message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            write!(f, " ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.errors.is_empty() {
            let findings: Vec<_> = self.errors.iter().map(ToString::to_string).collect();
            return f.write_str(&findings.join("\n"));
        }
        f.write_str(self.detail.as_deref().unwrap_or(&self.code))?;
        match &self.request_id {
            Some(id) if self.status >= 500 => write!(f, " (request {id} in the server's log)"),
            _ => Ok(()),
        }
    }
}

impl Problem {
    /// 3 when the server could not do its work, 2 when it was asked in a wrong way, else 1.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self.status {
            500.. | 408 | 429 => ExitCode::from(3),
            400 | 401 | 403 | 405 | 413 | 415 => ExitCode::from(2),
            _ => ExitCode::from(1),
        }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.status, 500..|408| 429)
    }
}

/// A connection-reusing client of one server.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
}

impl Client {
    /// A client for these options.
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, Error> {
        if !matches!(options.url.scheme(), "http" | "https") {
            return Err(Error::Usage(format!(
                "{}: expected a URL such as http://127.0.0.1:7400",
                options.url
            )));
        }
        let token = match &options.token {
            Some(token) => Some(token.clone()),
            None if is_local(&options.url) => {
                let dir = options.data_dir.as_deref().unwrap_or_else(|| Path::new(app::DATA_DIR));
                app::admin_token_kept_in(dir)
            }
            None => None,
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("cadastre/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|source| Error::Unreachable { url: options.url.to_string(), source })?;
        Ok(Self { http, base: options.url.clone(), token })
    }

    /// The address of `path` (segments, escaped here) below the base URL.
    fn url(&self, path: &[&str]) -> Result<Url, Error> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::Usage(format!("{}: expected a base URL", self.base)))?
            .pop_if_empty()
            .extend(path);
        Ok(url)
    }

    fn request(&self, method: Method, url: Url) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    /// Sends; an answer that is no success becomes [`Error::Problem`].
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Error> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(error))?;
        Err(Error::Problem(problem(status, &body)))
    }

    /// The server could not be reached, or broke off.
    pub(super) fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable { url: self.base.to_string(), source: source.without_url() }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, Error> {
        let body = self.text(request).await?;
        serde_json::from_str(&body)
            .map_err(|source| Error::Answer { url: self.base.to_string(), source })
    }

    async fn text(&self, request: reqwest::RequestBuilder) -> Result<String, Error> {
        let response = self.send(request).await?;
        response.text().await.map_err(|error| self.unreachable(error))
    }

    /// GET, JSON out.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Error> {
        let request = self.request(Method::GET, self.url(path)?).timeout(ANSWER);
        self.json(request).await
    }

    /// GET with a query string, JSON out.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Error> {
        let mut url = self.url(path)?;
        url.query_pairs_mut().extend_pairs(query);
        self.json(self.request(Method::GET, url).timeout(ANSWER)).await
    }

    /// GET, text out.
    pub(crate) async fn get_text(&self, path: &[&str]) -> Result<String, Error> {
        self.text(self.request(Method::GET, self.url(path)?).timeout(ANSWER)).await
    }

    /// POST of JSON, JSON out.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &serde_json::Value,
    ) -> Result<T, Error> {
        let request = self.request(Method::POST, self.url(path)?).timeout(ANSWER).json(body);
        self.json(request).await
    }

    /// The same for what changes guards, and may wait for locks.
    pub(crate) async fn post_patiently<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &serde_json::Value,
    ) -> Result<T, Error> {
        let request = self.request(Method::POST, self.url(path)?).timeout(APPLY).json(body);
        self.json(request).await
    }

    /// POST of a manifest named `file` to `/v1/manifest/ACTION`.
    pub(crate) async fn manifest<T: DeserializeOwned>(
        &self,
        action: &str,
        file: &str,
        yaml: String,
    ) -> Result<T, Error> {
        let mut url = self.url(&["v1", "manifest", action])?;
        url.query_pairs_mut().append_pair("file", file);
        let request = self
            .request(Method::POST, url)
            .timeout(APPLY)
            .header("content-type", "application/yaml")
            .body(yaml);
        self.json(request).await
    }

    /// A GraphQL query; its `data`. The first error becomes [`Error::Problem`].
    pub(crate) async fn graphql<T: DeserializeOwned>(
        &self,
        query: &str,
        variables: serde_json::Value,
    ) -> Result<T, Error> {
        self.graphql_within(ANSWER, query, variables).await
    }

    async fn graphql_within<T: DeserializeOwned>(
        &self,
        timeout: Duration,
        query: &str,
        variables: serde_json::Value,
    ) -> Result<T, Error> {
        let body = serde_json::json!({ "query": query, "variables": variables });
        let request = self
            .request(Method::POST, self.url(&["graphql"])?)
            .timeout(timeout)
            .header("accept", "application/graphql-response+json, application/json")
            .json(&body);
        let answer: GraphqlAnswer<T> = self.json(request).await?;
        match (answer.errors.into_iter().next(), answer.data) {
            (None, Some(data)) => Ok(data),
            (error, _) => Err(Error::Problem(error.unwrap_or_default().into())),
        }
    }

    /// A GraphQL mutation of one field; its payload. What stands in `userErrors`, which `query` must
    /// ask for, becomes [`Error::Problem`].
    pub(crate) async fn mutation<T: DeserializeOwned>(
        &self,
        field: &str,
        query: &str,
        variables: serde_json::Value,
    ) -> Result<T, Error> {
        let malformed = |source| Error::Answer { url: self.base.to_string(), source };
        let mut data: serde_json::Value = self.graphql_within(APPLY, query, variables).await?;
        let payload = data.get_mut(field).map(serde_json::Value::take).unwrap_or_default();
        let refused: Refused = serde_json::from_value(payload.clone()).map_err(malformed)?;
        if !refused.user_errors.is_empty() {
            return Err(Error::Problem(refused.into()));
        }
        serde_json::from_value(payload).map_err(malformed)
    }

    /// Opens a feed as NDJSON.
    pub(crate) async fn feed(
        &self,
        dataset: &str,
        after: &str,
    ) -> Result<reqwest::Response, Error> {
        self.feed_part(dataset, &[("after", after)]).await
    }

    /// The same with these parameters.
    pub(crate) async fn feed_part(
        &self,
        dataset: &str,
        parameters: &[(&str, &str)],
    ) -> Result<reqwest::Response, Error> {
        let mut url = self.url(&["v1", "feed"])?;
        url.query_pairs_mut().append_pair("datasets", dataset).extend_pairs(parameters);
        self.send(self.request(Method::GET, url).header("accept", "application/x-ndjson")).await
    }
}

/// Whether the address is on this machine: only there the token kept on it is sent unasked.
fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// One error of a GraphQL answer.
#[derive(Debug, Default, Deserialize)]
struct GraphqlError {
    message: String,
    #[serde(default)]
    extensions: Extensions,
}

/// What is beside the message of a GraphQL error.
#[derive(Debug, Default, Deserialize)]
struct Extensions {
    #[serde(default)]
    code: String,
    #[serde(default)]
    request_id: Option<String>,
}

/// What the payload of every mutation has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    user_errors: Vec<UserError>,
}

/// Something about a change that the caller can mend.
#[derive(Debug, Deserialize)]
struct UserError {
    code: String,
    message: String,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let code = refused.user_errors.first().map(|error| error.code.to_ascii_lowercase());
        let messages: Vec<_> = refused.user_errors.into_iter().map(|error| error.message).collect();
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
            code: code.unwrap_or_default(),
            detail: Some(messages.join("\n")),
            ..Self::default()
        }
    }
}

/// A GraphQL answer.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct GraphqlAnswer<T> {
    data: Option<T>,
    #[serde(default)]
    errors: Vec<GraphqlError>,
}

impl From<GraphqlError> for Problem {
    /// The codes are those of REST in upper case, so that the status follows from them.
    fn from(error: GraphqlError) -> Self {
        let code = error.extensions.code.to_ascii_lowercase();
        let status = match code.as_str() {
            "unauthenticated" | "invalid_token" => 401,
            "forbidden" => 403,
            "not_found" | "unknown_dataset" | "unknown_service" | "unknown_source" => 404,
            "busy" | "unavailable" => 503,
            "internal" => 500,
            _ => 400,
        };
        let request_id = error.extensions.request_id;
        Self { status, code, detail: Some(error.message), errors: Vec::new(), request_id }
    }
}

/// The problem that a refusal describes; whatever its body is, the status at least.
fn problem(status: StatusCode, body: &[u8]) -> Problem {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return problem;
    }
    let answer = serde_json::from_slice::<GraphqlAnswer<serde::de::IgnoredAny>>(body);
    if let Some(error) = answer.ok().and_then(|answer| answer.errors.into_iter().next()) {
        return error.into();
    }
    let detail = format!("the server answered {status} and gave no reason");
    Problem { status: status.as_u16(), detail: Some(detail), ..Problem::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_kept_here_is_only_for_servers_here() {
        for (url, local) in [
            ("http://127.0.0.1:7400", true),
            ("http://localhost:7400", true),
            ("http://[::1]:7400", true),
            ("http://10.0.0.1:7400", false),
            ("https://localhost.example.org", false),
        ] {
            assert_eq!(is_local(&url.parse().unwrap()), local, "{url}");
        }
    }

    #[test]
    fn a_refusal_is_understood_in_every_form() {
        let rest = br#"{"status":404,"code":"unknown_dataset","detail":"no such"}"#;
        let graphql =
            br#"{"errors":[{"message":"no such","extensions":{"code":"UNKNOWN_DATASET"}}]}"#;
        for body in [&rest[..], &graphql[..]] {
            let problem = problem(StatusCode::NOT_FOUND, body);
            assert_eq!((problem.status, problem.code.as_str()), (404, "unknown_dataset"));
            assert_eq!(problem.to_string(), "no such");
        }
        let proxy = problem(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(proxy.is_transient());
        assert!(proxy.to_string().contains("502"), "{proxy}");
    }

    #[test]
    fn findings_are_printed_as_compilers_do() {
        let body = br#"{"status":422,"code":"refused","detail":"2 findings",
            "errors":[{"file":"c.yaml","line":3,"message":"unknown key"},{"message":"no such table"}]}"#;
        let problem = problem(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!(problem.to_string(), "c.yaml:3: unknown key\nno such table");
    }
}
