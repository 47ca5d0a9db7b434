//! The HTTP interface of a running server, from outside.

mod access;
mod bad_input;
mod clients;
mod feed;
mod graphql;
mod history;
mod manifest;
mod operation;
mod retire;
mod schema;
mod socket;
mod token;
mod transfer;

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::support::{Cluster, Server};

/// The dataset most tests are about.
const ORDERS: &str = "shop.public.orders";

/// A server over a shop: a source, two services, a table of the first.
struct Shop {
    // Dropped in this order: the server goes before its database.
    server: Server,
    cluster: Cluster,
}

impl Shop {
    /// A shop that nobody has declared yet.
    async fn undeclared() -> Self {
        let cluster = Cluster::start().await;
        cluster.create_database("registry").await;
        cluster.create_database("shop").await;
        let setup = "
            CREATE ROLE orders_app LOGIN;
            CREATE ROLE billing_app LOGIN;
            GRANT CREATE ON SCHEMA public TO orders_app;
            CREATE TABLE orders (id bigint PRIMARY KEY, status text);
            ALTER TABLE orders OWNER TO orders_app;
            CREATE TABLE invoices (id bigint PRIMARY KEY);
            ALTER TABLE invoices OWNER TO billing_app;";
        cluster.connect("shop").await.batch_execute(setup).await.unwrap();
        let server = Server::start(&cluster.url("registry")).await;
        Self { server, cluster }
    }

    /// A shop whose `orders` are owned by the service orders.
    async fn declared() -> Self {
        let shop = Self::undeclared().await;
        let (status, answer) = shop.apply(&shop.manifest()).await;
        assert_eq!(status, 200, "{answer}");
        shop
    }

    /// What [`declared`](Self::declared) declares.
    fn manifest(&self) -> String {
        format!(
            "apiVersion: cadastre/v1
sources:
  shop: {{ url: \"{url}\" }}
services:
  billing: {{ team: finance, roles: {{ shop: [billing_app] }} }}
  orders: {{ team: checkout, contact: \"#checkout\", roles: {{ shop: [orders_app] }} }}
datasets:
  {ORDERS}:
    owner: orders
    mode: enforce
    description: One row per order
    tags: [core]
",
            url = self.cluster.url("shop")
        )
    }

    async fn apply(&self, manifest: &str) -> (u16, Value) {
        self.send_manifest("apply", manifest).await
    }

    async fn send_manifest(&self, action: &str, manifest: &str) -> (u16, Value) {
        let request = self
            .post(&format!("/v1/manifest/{action}?file=shop.yaml"))
            .header("content-type", "application/yaml")
            .body(manifest.to_owned());
        answer(request).await
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.server.client().get(self.server.at(path))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.server.client().post(self.server.at(path))
    }

    /// The answer to a GraphQL request and its status.
    async fn graphql(&self, query: &str, variables: Value) -> (u16, Value) {
        let body = json!({ "query": query, "variables": variables });
        answer(self.post("/graphql").json(&body)).await
    }

    /// The data of a GraphQL request that succeeds.
    async fn data(&self, query: &str, variables: Value) -> Value {
        let (status, mut answer) = self.graphql(query, variables).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].take()
    }
}

/// Status and JSON of an answer.
async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
}
