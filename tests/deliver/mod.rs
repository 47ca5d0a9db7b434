//! Delivery from outside: subscriptions, those who fetch and those who are sent to.

mod isolation;
mod nats;
mod pull;
mod receiver;
mod snapshot;
mod subscriptions;
mod webhook;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Cluster, Server};

/// The dataset that tests subscribe to.
const ORDERS: &str = "shop.public.orders";

/// A server over a shop: a source and a table of the service orders, read by billing.
struct Shop {
    // Dropped in this order: the server goes before its database.
    server: Server,
    cluster: Cluster,
}

impl Shop {
    async fn open() -> Self {
        Self::with_env(&[]).await
    }

    async fn with_env(env: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start().await;
        cluster.create_database("registry").await;
        cluster.create_database("shop").await;
        let setup = "
            CREATE ROLE orders_app LOGIN;
            CREATE TABLE orders (id bigint PRIMARY KEY, status text);
            ALTER TABLE orders OWNER TO orders_app;";
        cluster.connect("shop").await.batch_execute(setup).await.unwrap();
        let server = Server::start_with_env(&cluster.url("registry"), &[], env).await;
        let shop = Self { server, cluster };
        shop.apply("").await;
        shop
    }

    /// Applies what the shop always has and these subscriptions.
    async fn apply(&self, subscriptions: &str) {
        let manifest = format!(
            "apiVersion: cadastre/v1
sources:
  shop: {{ url: \"{url}\" }}
services:
  billing: {{ team: finance }}
  orders: {{ team: checkout, roles: {{ shop: [orders_app] }} }}
datasets:
  {ORDERS}: {{ owner: orders, mode: enforce }}
{subscriptions}",
            url = self.cluster.url("shop")
        );
        let client = self.server.client();
        let request = client
            .post(self.server.at("/v1/manifest/apply"))
            .header("content-type", "application/yaml")
            .body(manifest);
        let (status, answer) = answer(request).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Writes orders as their owner.
    async fn write(&self, sql: &str) {
        let orders = self.cluster.connect_as("shop", "orders_app").await;
        orders.batch_execute(sql).await.unwrap();
    }

    /// Creates a subscription to the orders; the payload.
    async fn create(&self, name: &str, spec: Value) -> Value {
        let input =
            json!({ "name": name, "service": "billing", "datasets": [ORDERS], "spec": spec });
        let query = "mutation Create($input: SubscriptionCreateInput!) {
            subscriptionCreate(input: $input) {
                subscription { name kind } secret userErrors { code message field }
            }
        }";
        let data = self.graphql(query, json!({ "input": input })).await;
        data["subscriptionCreate"].clone()
    }

    /// Creates a subscription, which must succeed.
    async fn subscribe(&self, name: &str, spec: Value) -> Value {
        let created = self.create(name, spec).await;
        assert_eq!(created["userErrors"], json!([]), "{created}");
        created
    }

    /// How a subscription stands.
    async fn status(&self, name: &str) -> Value {
        let query = "query Show($name: String!) { subscription(name: $name) { status {
            paused cursor begun logEnd breaker trouble checksum
            counts { logged delivered pending parked filtered dropped reconcile } } } }";
        let mut data = self.graphql(query, json!({ "name": name })).await;
        data["subscription"]["status"].take()
    }

    /// The data of a GraphQL request that succeeds.
    async fn graphql(&self, query: &str, variables: Value) -> Value {
        let body = json!({ "query": query, "variables": variables });
        let request = self.server.client().post(self.server.at("/graphql")).json(&body);
        let (status, mut answer) = answer(request).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].take()
    }

    fn request(&self, method: Method, subscription: &str, path: &str) -> RequestBuilder {
        let path = format!("/v1/subscriptions/{subscription}/{path}");
        self.server.client().request(method, self.server.at(&path))
    }

    /// The answer of a route below a subscription, which must be a success.
    async fn get(&self, subscription: &str, path: &str) -> Value {
        let (status, answer) = answer(self.request(Method::GET, subscription, path)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn post(&self, subscription: &str, path: &str, body: Value) -> Value {
        let request = self.request(Method::POST, subscription, path).json(&body);
        let (status, answer) = answer(request).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

/// Status and JSON of an answer.
async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
}

/// What a checksum must be when exactly these positions were delivered.
fn checksum<'a>(positions: impl IntoIterator<Item = &'a str>) -> String {
    use sha2::{Digest, Sha256};
    let mut sum = [0_u8; 8];
    for position in positions {
        let digest = Sha256::digest(position.as_bytes());
        sum.iter_mut().zip(digest).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}
