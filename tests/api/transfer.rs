//! Transfers of ownership over HTTP: proposed, decided, expired, and seen in the feed.

use serde_json::{Value, json};

use super::{ORDERS, Shop};
use crate::support::WAIT;

const PROPOSE: &str = "mutation($input: TransferProposeInput!) {
    ownershipTransferPropose(input: $input) {
        transfer { id state from { name } to { name } reason proposedBy }
        userErrors { code message field } } }";

impl Shop {
    async fn propose(&self, input: Value) -> Value {
        let data = self.data(PROPOSE, json!({ "input": input })).await;
        data["ownershipTransferPropose"].clone()
    }

    async fn decide(&self, action: &str, id: &Value) -> Value {
        let field = format!("ownershipTransfer{action}");
        let query = format!(
            "mutation($id: ID!) {{ {field}(input: {{id: $id}}) {{ transfer {{ state decidedBy
                dataset {{ owner {{ name }} guard {{ state }} }} }}
                userErrors {{ code message field }} }} }}"
        );
        self.data(&query, json!({ "id": id })).await[&field].take()
    }
}

fn to_billing() -> Value {
    json!({ "dataset": ORDERS, "to": "billing", "reason": "the teams merge" })
}

#[tokio::test]
async fn a_dataset_passes_to_who_accepts_it_and_the_feed_tells_where() {
    let shop = Shop::declared().await;
    let admin = shop.cluster.connect("shop").await;
    admin.batch_execute("GRANT ALL ON orders TO billing_app").await.unwrap();
    let orders = shop.cluster.connect_as("shop", "orders_app").await;
    let billing = shop.cluster.connect_as("shop", "billing_app").await;
    orders.batch_execute("INSERT INTO orders VALUES (1, 'by orders')").await.unwrap();

    let proposed = shop.propose(to_billing()).await;
    assert_eq!(proposed["userErrors"], json!([]), "{proposed}");
    let transfer = &proposed["transfer"];
    assert_eq!(
        (&transfer["state"], &transfer["proposedBy"]),
        (&json!("PROPOSED"), &json!("admin"))
    );
    let second = shop.propose(to_billing()).await;
    assert_eq!(second["userErrors"][0]["code"], "CONFLICT", "{second}");
    orders.batch_execute("INSERT INTO orders VALUES (2, 'still by orders')").await.unwrap();

    let accepted = shop.decide("Accept", &transfer["id"]).await;
    assert_eq!(
        accepted,
        json!({"transfer": {"state": "COMPLETED", "decidedBy": "admin",
            "dataset": {"owner": {"name": "billing"}, "guard": {"state": "INSTALLED"}}},
            "userErrors": []})
    );
    let rejected = orders.batch_execute("INSERT INTO orders VALUES (3, 'too late')").await;
    assert_eq!(rejected.unwrap_err().code().unwrap().code(), "42501");
    billing.batch_execute("INSERT INTO orders VALUES (4, 'by billing')").await.unwrap();
    for action in ["Accept", "Decline", "Cancel"] {
        let again = shop.decide(action, &transfer["id"]).await;
        assert_eq!(again["userErrors"][0]["code"], "CONFLICT", "{action}: {again}");
    }

    let query = "{ dataset(name: \"shop.public.orders\") { ownershipHistory {
        serviceName reason actor to } } transfers(state: COMPLETED) { nodes { id } } }";
    let data = shop.data(query, json!({})).await;
    let history = data["dataset"]["ownershipHistory"].as_array().unwrap();
    assert_eq!(
        history[0],
        json!({"serviceName": "billing", "reason": "the teams merge",
        "actor": "admin", "to": null})
    );
    assert_eq!(
        (&history[1]["serviceName"], &history[1]["reason"]),
        (&json!("orders"), &json!("registered"))
    );
    assert_eq!(data["transfers"]["nodes"], json!([{ "id": transfer["id"] }]));

    let feed = shop.get(&format!("/v1/feed?datasets={ORDERS}&after=earliest&ops=d"));
    let mut feed = feed.send().await.unwrap();
    let mut text = String::new();
    let told = async {
        while !text.contains("\"event\":\"ownership\"") {
            text.push_str(std::str::from_utf8(&feed.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(WAIT, told).await.expect("the feed tells of the new owner");
    assert!(text.contains("event: ownership\n"), "{text}");
    assert!(text.contains("\"from\":\"orders\"") && text.contains("\"to\":\"billing\""), "{text}");
    assert!(!text.contains("event: change"), "only what concerns the dataset itself: {text}");
}

#[tokio::test]
async fn a_proposal_ends_by_being_declined_taken_back_or_forgotten() {
    let shop = Shop::declared().await;
    for (action, state) in [("Decline", "DECLINED"), ("Cancel", "CANCELLED")] {
        let proposed = shop.propose(to_billing()).await;
        let id = &proposed["transfer"]["id"];
        let ended = shop.decide(action, id).await;
        assert_eq!(ended["transfer"]["state"], state, "{ended}");
        assert_eq!(ended["transfer"]["dataset"]["owner"]["name"], "orders", "{ended}");
        let late = shop.decide("Accept", id).await;
        assert_eq!(late["userErrors"][0]["code"], "CONFLICT", "{late}");
    }
    let proposed = shop.propose(to_billing()).await;
    let id = proposed["transfer"]["id"].clone();
    let registry = shop.cluster.connect("registry").await;
    let age = "UPDATE cadastre_registry.transfers SET proposed_at = now() - interval '2 days',
        expires_at = now() - interval '1 day' WHERE state = 'proposed'";
    registry.batch_execute(age).await.unwrap();
    let late = shop.decide("Accept", &id).await;
    assert_eq!(late["userErrors"][0]["code"], "CONFLICT", "{late}");
    assert!(late["userErrors"][0]["message"].as_str().unwrap().contains("expired"), "{late}");
    let query = "{ expired: transfers(state: EXPIRED) { nodes { id state } }
        open: transfers(state: PROPOSED) { nodes { id } } }";
    let data = shop.data(query, json!({})).await;
    assert_eq!(data["expired"]["nodes"], json!([{ "id": id, "state": "EXPIRED" }]), "{data}");
    assert_eq!(data["open"]["nodes"], json!([]), "{data}");
    let next = shop.propose(to_billing()).await;
    assert_eq!(next["transfer"]["state"], "PROPOSED", "an expired one makes room: {next}");
}

#[tokio::test]
async fn what_cannot_be_proposed_is_refused_with_what_can() {
    let shop = Shop::declared().await;
    for (change, code, field) in [
        (json!({ "to": "nobody" }), "NOT_FOUND", json!(["input"])),
        (json!({ "to": "orders" }), "INVALID", json!(["input", "to"])),
        (json!({ "to": "No" }), "INVALID", json!(["input", "to"])),
        (json!({ "dataset": "orders" }), "INVALID", json!(["input", "dataset"])),
        (json!({ "reason": " " }), "INVALID", json!(["input", "reason"])),
        (json!({ "expiresAt": "2001-01-01T00:00:00Z" }), "INVALID", json!(["input", "expiresAt"])),
        (json!({ "expiresAt": "2901-01-01T00:00:00Z" }), "INVALID", json!(["input", "expiresAt"])),
    ] {
        let mut input = to_billing();
        input.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let refused = shop.propose(input).await;
        let error = &refused["userErrors"][0];
        assert_eq!((&error["code"], &error["field"]), (&json!(code), &field), "{change} {refused}");
    }
    let unknown = shop.decide("Accept", &json!("99")).await;
    assert_eq!(unknown["userErrors"][0]["code"], "NOT_FOUND", "{unknown}");
}
