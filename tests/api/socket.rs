//! GraphQL subscriptions over graphql-transport-ws.

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{ORDERS, Shop};
use crate::support::{ADMIN_TOKEN, WAIT};

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// An upgraded connection; `protocol` as browsers offer it.
    async fn open(shop: &Shop, protocol: &str) -> Result<Self, u16> {
        let url = shop.server.at("/graphql").replace("http://", "ws://");
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        match connect_async(request).await {
            Ok((stream, _)) => Ok(Self(stream)),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A connection whose client has said who it is.
    async fn acknowledged(shop: &Shop) -> Self {
        let mut socket = Self::open(shop, "graphql-transport-ws").await.unwrap();
        let authorization = format!("Bearer {ADMIN_TOKEN}");
        let payload = json!({ "authorization": authorization });
        socket.send(json!({"type": "connection_init", "payload": payload})).await;
        assert_eq!(socket.next().await, json!({"type": "connection_ack"}));
        socket
    }

    async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn subscribe(&mut self, id: &str, query: &str) {
        let payload = json!({ "query": query });
        self.send(json!({"type": "subscribe", "id": id, "payload": payload})).await;
    }

    /// The next frame that is not a ping.
    async fn frame(&mut self) -> Message {
        loop {
            let frame = tokio::time::timeout(WAIT, self.0.next()).await;
            match frame.expect("the server says something in time").unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                frame => return frame,
            }
        }
    }

    async fn next(&mut self) -> Value {
        match self.frame().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected text, got {other:?}"),
        }
    }

    /// The code the server closes with.
    async fn closed(&mut self) -> u16 {
        match self.frame().await {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("expected a close frame, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn changes_arrive_on_a_socket_and_can_be_resumed() {
    let shop = Shop::declared().await;
    let mut socket = Socket::acknowledged(&shop).await;
    let subscription = |after: &str| {
        format!(
            "subscription {{ changes(datasets: [\"{ORDERS}\"], after: \"{after}\") {{
                position dataset op event }} }}"
        )
    };
    socket.subscribe("1", &subscription("earliest")).await;
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1, 'a'), (2, 'b')").await.unwrap();
    let first = socket.next().await;
    assert_eq!((&first["type"], &first["id"]), (&json!("next"), &json!("1")), "{first}");
    let change = &first["payload"]["data"]["changes"];
    assert_eq!((&change["dataset"], &change["op"]), (&json!(ORDERS), &json!("c")), "{first}");
    assert_eq!(change["event"]["after"]["id"], 1, "{first}");
    assert_eq!(change["event"]["position"], change["position"], "{first}");
    assert_eq!(socket.next().await["payload"]["data"]["changes"]["event"]["after"]["id"], 2);

    let position = change["position"].as_str().unwrap();
    socket.subscribe("2", &subscription(position)).await;
    let resumed = socket.next().await;
    assert_eq!(resumed["id"], "2");
    assert_eq!(resumed["payload"]["data"]["changes"]["event"]["after"]["id"], 2, "{resumed}");
    socket.send(json!({"type": "complete", "id": "1"})).await;
    socket.send(json!({"type": "ping", "payload": {"n": 1}})).await;
    assert_eq!(socket.next().await, json!({"type": "pong", "payload": {"n": 1}}));
}

#[tokio::test]
async fn queries_and_failures_end_their_operation_and_not_the_socket() {
    let shop = Shop::declared().await;
    let mut socket = Socket::acknowledged(&shop).await;
    socket.subscribe("q", "{ dataset(name: \"shop.public.orders\") { mode } }").await;
    let answer = socket.next().await;
    assert_eq!(answer["payload"]["data"]["dataset"]["mode"], "ENFORCE", "{answer}");
    assert_eq!(socket.next().await, json!({"type": "complete", "id": "q"}));
    for (query, code) in [
        ("subscription { changes(datasets: [\"shop.public.no\"]) { op } }", "UNKNOWN_DATASET"),
        (
            "subscription { changes(datasets: [\"shop.public.orders\"], after: \"7\") { op } }",
            "MALFORMED_POSITION",
        ),
        ("subscription { changes }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription {", "GRAPHQL_PARSE_FAILED"),
    ] {
        socket.subscribe("e", query).await;
        let error = socket.next().await;
        assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("e")), "{error}");
        assert_eq!(error["payload"][0]["extensions"]["code"], code, "{error}");
        assert!(error["payload"][0]["extensions"]["requestId"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_how() {
    let shop = Shop::declared().await;
    assert_eq!(Socket::open(&shop, "graphql-ws").await.err(), Some(400));
    let open = async || Socket::open(&shop, "graphql-transport-ws").await.unwrap();

    let mut wrong = open().await;
    let payload = json!({"authorization": "Bearer cad_wrong"});
    wrong.send(json!({"type": "connection_init", "payload": payload})).await;
    assert_eq!(wrong.closed().await, 4403);
    let mut silent = open().await;
    silent.send(json!({"type": "connection_init"})).await;
    assert_eq!(silent.closed().await, 4403);
    let mut early = open().await;
    early.subscribe("1", "{ __typename }").await;
    assert_eq!(early.closed().await, 4401);
    let mut noise = open().await;
    noise.0.send(Message::text("noise")).await.unwrap();
    assert_eq!(noise.closed().await, 4400);
    let mut twice = Socket::acknowledged(&shop).await;
    twice.send(json!({"type": "connection_init"})).await;
    assert_eq!(twice.closed().await, 4429);
    let mut double = Socket::acknowledged(&shop).await;
    for _ in 0..2 {
        double
            .subscribe("1", "subscription { changes(datasets: [\"shop.public.orders\"]) { op } }")
            .await;
    }
    assert_eq!(double.closed().await, 4409);
}

#[tokio::test]
async fn violations_arrive_on_a_socket() {
    let shop = Shop::declared().await;
    let mut socket = Socket::acknowledged(&shop).await;
    socket
        .subscribe(
            "v",
            "subscription { violations(datasets: [\"shop.public.orders\"]) {
                verdict operation role serviceName dataset { name } } }",
        )
        .await;
    // Answered on the same connection, in order: the subscription stands when this has come back.
    socket.subscribe("q", "{ __typename }").await;
    assert_eq!(socket.next().await["id"], "q");
    assert_eq!(socket.next().await["type"], "complete");
    shop.cluster
        .connect("shop")
        .await
        .batch_execute("GRANT INSERT ON orders TO billing_app")
        .await
        .unwrap();
    let billing = shop.cluster.connect_as("shop", "billing_app").await;
    let rejected =
        billing.execute("INSERT INTO orders VALUES (1, 'stolen')", &[]).await.unwrap_err();
    assert_eq!(rejected.code().unwrap().code(), "42501");
    // A superuser's GRANT on somebody's table is no secret either.
    let granted = socket.next().await;
    assert_eq!(granted["payload"]["data"]["violations"]["operation"], "GRANT", "{granted}");
    assert_eq!(granted["payload"]["data"]["violations"]["verdict"], "PRIVILEGED", "{granted}");
    let violation = socket.next().await;
    assert_eq!(
        violation["payload"]["data"]["violations"],
        json!({"verdict": "REJECTED", "operation": "INSERT", "role": "billing_app",
            "serviceName": "billing", "dataset": {"name": ORDERS}}),
        "{violation}"
    );
}

#[tokio::test]
async fn new_owners_arrive_on_a_socket_and_nothing_else() {
    let shop = Shop::declared().await;
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    let mut socket = Socket::acknowledged(&shop).await;
    let follow = format!(
        "subscription {{ ownershipChanges(datasets: [\"{ORDERS}\"], after: \"earliest\") {{
            dataset from to mode transfer position event }} }}"
    );
    socket.subscribe("o", &follow).await;
    orders.batch_execute("INSERT INTO orders VALUES (1, 'open'); TRUNCATE orders").await.unwrap();
    let propose = format!(
        "mutation {{ ownershipTransferPropose(input: {{dataset: \"{ORDERS}\", to: \"billing\",
            reason: \"refunds\"}}) {{ transfer {{ id }} }} }}"
    );
    shop.data(&propose, json!({})).await;
    let accept = "mutation { ownershipTransferAccept(input: {id: 1}) { transfer { state } } }";
    shop.data(accept, json!({})).await;
    let told = socket.next().await;
    let change = &told["payload"]["data"]["ownershipChanges"];
    for (name, value) in [
        ("dataset", ORDERS),
        ("from", "orders"),
        ("to", "billing"),
        ("mode", "enforce"),
        ("transfer", "1"),
    ] {
        assert_eq!(change[name], value, "{told}");
    }
    assert_eq!(change["event"]["position"], change["position"], "{told}");
    assert_eq!(change["event"]["ownership"]["reason"], "refunds", "{told}");
    let observe = "mutation($d: String!) { datasetSetMode(input: {dataset: $d, mode: OBSERVE}) {
        userErrors { message } } }";
    shop.data(observe, json!({ "d": ORDERS })).await;
    let told = socket.next().await;
    let change = &told["payload"]["data"]["ownershipChanges"];
    assert_eq!((&change["to"], &change["mode"]), (&json!("billing"), &json!("observe")), "{told}");
}

#[tokio::test]
async fn sockets_are_closed_when_the_server_is_stopped() {
    let mut shop = Shop::declared().await;
    let mut socket = Socket::acknowledged(&shop).await;
    let status = shop.server.terminate().await;
    assert!(status.success(), "{status}");
    assert_eq!(socket.closed().await, 1001);
}
