//! The guard, from the writers' side: every route to a governed table, in a real PostgreSQL, and
//! what the registry and the feed say of it afterwards.

mod attribution;
mod change;
mod ddl;
mod forgery;
mod gateway;
mod routes;

use serde_json::{Value, json};
use tokio_postgres::{Client, Error};

use crate::support::{Cluster, Server, WAIT, eventually};

/// Tables of two services in a database as they grow: PostgreSQL itself lets both write both.
const SETUP: &str = "
    CREATE ROLE orders_app LOGIN;
    CREATE ROLE billing_app LOGIN;
    CREATE ROLE stranger LOGIN;
    CREATE ROLE pooler LOGIN NOINHERIT IN ROLE orders_app, billing_app;
    GRANT CREATE, USAGE ON SCHEMA public TO orders_app, billing_app;
    CREATE TABLE orders (id int PRIMARY KEY, status text);
    INSERT INTO orders VALUES (1, 'open'), (2, 'open');
    CREATE TABLE invoices (id int PRIMARY KEY, amount numeric);
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200);
    ALTER TABLE orders OWNER TO orders_app;
    ALTER TABLE parts OWNER TO orders_app;
    ALTER TABLE invoices OWNER TO billing_app;
    GRANT ALL ON orders, invoices, parts, parts_low, parts_high TO orders_app, billing_app, stranger;
";

/// A governed shop and the server that governs it.
struct Shop {
    // Dropped in this order: the server goes before its database.
    server: Server,
    cluster: Cluster,
}

impl Shop {
    /// The shop, with all its tables in `mode`.
    async fn governed(mode: &str) -> Self {
        let shop = Self::ungoverned().await;
        let (status, answer) = shop.apply(&shop.manifest(mode)).await;
        assert_eq!(status, 200, "{answer}");
        shop
    }

    /// The shop before anything is declared.
    async fn ungoverned() -> Self {
        let cluster = Cluster::start().await;
        cluster.create_database("registry").await;
        cluster.create_database("shop").await;
        cluster.connect("shop").await.batch_execute(SETUP).await.unwrap();
        let patience = ["--guard-patience", "3s"];
        let server = Server::start_with(&cluster.url("registry"), &patience).await;
        Self { server, cluster }
    }

    /// What [`Shop::governed`] declares.
    fn manifest(&self, mode: &str) -> String {
        format!(
            "apiVersion: cadastre/v1\n{}services:\n  \
             orders: {{ roles: {{ shop: [orders_app] }} }}\n  \
             billing: {{ roles: {{ shop: [billing_app] }} }}\ndatasets:\n  \
             shop.public.orders: {{ owner: orders, mode: {mode} }}\n  \
             shop.public.parts: {{ owner: orders, mode: {mode} }}\n  \
             shop.public.invoices: {{ owner: billing, mode: {mode} }}\n",
            self.source()
        )
    }

    /// The manifest's sources.
    fn source(&self) -> String {
        format!("sources:\n  shop: {{ url: \"{}\" }}\n", self.cluster.url("shop"))
    }

    /// Applies a manifest; the status and the answer.
    async fn apply(&self, manifest: &str) -> (u16, String) {
        let request = self
            .server
            .client()
            .post(self.server.at("/v1/manifest/apply"))
            .header("content-type", "application/yaml")
            .body(manifest.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// A token of a service.
    async fn token(&self, service: &str) -> String {
        let query =
            format!("mutation {{ tokenCreate(input: {{ service: \"{service}\" }}) {{ secret }} }}");
        let request = self.server.client().post(self.server.at("/graphql"));
        let response = request.json(&json!({ "query": query })).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        answer["data"]["tokenCreate"]["secret"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// A session of `role` in the shop.
    async fn session(&self, role: &str) -> Client {
        self.cluster.connect_as("shop", role).await
    }

    /// Every violation so far, oldest first, once there are at least `count`: verdict, operation,
    /// dataset, service, role.
    async fn violations(&self, count: usize) -> Vec<[String; 5]> {
        let query = "{ violations(first: 100) { nodes {
            verdict operation datasetName serviceName role } } }";
        eventually(WAIT, async || {
            let request = self.server.client().post(self.server.at("/graphql"));
            let response = request.json(&json!({ "query": query })).send().await.unwrap();
            let answer: Value = response.json().await.unwrap();
            let nodes = answer["data"]["violations"]["nodes"].as_array().unwrap();
            let text =
                |node: &Value, name: &str| node[name].as_str().unwrap_or("-").to_ascii_lowercase();
            let mut found: Vec<[String; 5]> = nodes
                .iter()
                .map(|node| {
                    ["verdict", "operation", "datasetName", "serviceName", "role"]
                        .map(|name| text(node, name))
                })
                .collect();
            found.reverse();
            (found.len() >= count).then_some(found)
        })
        .await
    }

    /// The first `count` changes of a dataset, from the beginning.
    async fn changes(&self, dataset: &str, count: usize) -> Vec<Value> {
        let url = format!("/v1/feed?datasets={dataset}&after=earliest");
        let request = self.server.client().get(self.server.at(&url));
        let response = request.header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut response = response;
        let (mut text, mut changes) = (String::new(), Vec::new());
        while changes.len() < count {
            let bytes = tokio::time::timeout(WAIT, response.chunk()).await;
            let bytes = bytes.expect("changes arrive in time").unwrap().expect("the feed goes on");
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let lines: String = text.drain(..whole).collect();
            let lines = lines.lines().filter(|line| !line.is_empty());
            changes.extend(lines.map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        changes
    }
}

/// The SQLSTATE and message of a statement that must fail.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (String, String) {
    let error = outcome.unwrap_err();
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

/// Asserts that the guard, not PostgreSQL's own privileges, rejected a statement.
#[track_caller]
fn rejected<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) {
    let (code, message) = refused(outcome);
    assert_eq!(code, "42501", "{what}: {message}");
    assert!(message.starts_with("cadastre: "), "{what}: {message}");
}
