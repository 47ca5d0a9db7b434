//! Retiring a service: only when nothing would miss it, and then for good.

use serde_json::{Value, json};

use super::{ORDERS, Shop};

impl Shop {
    async fn retire(&self, name: &str) -> Value {
        let query = "mutation($name: String!) { serviceRetire(input: {name: $name}) {
            service { name retiredAt roles { source } } userErrors { code message field } } }";
        self.data(query, json!({ "name": name })).await["serviceRetire"].take()
    }
}

fn messages(payload: &Value) -> Vec<&str> {
    let errors = payload["userErrors"].as_array().unwrap();
    errors.iter().map(|error| error["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_service_that_would_be_missed_is_not_retired_and_one_that_would_not_is() {
    let shop = Shop::declared().await;
    let subscribed = format!(
        "apiVersion: cadastre/v1\nsubscriptions:\n  orders-audit: {{ service: orders, datasets: [{ORDERS}],
    deliver: {{ pull: {{}} }} }}\n"
    );
    let (status, answer) = shop.apply(&subscribed).await;
    assert_eq!(status, 200, "{answer}");
    let propose = format!(
        "mutation {{ ownershipTransferPropose(input: {{dataset: \"{ORDERS}\", to: \"billing\",
            reason: \"orders retires\"}}) {{ transfer {{ id }} }} }}"
    );
    shop.data(&propose, json!({})).await;
    let refused = shop.retire("orders").await;
    assert_eq!(
        messages(&refused),
        [
            "retiring \"orders\" would orphan dataset shop.public.orders",
            "retiring \"orders\" would orphan subscription orders-audit",
            "retiring \"orders\" would orphan transfer 1"
        ],
        "{refused}"
    );
    let receiver = shop.retire("billing").await;
    assert_eq!(messages(&receiver), ["retiring \"billing\" would orphan transfer 1"]);
    let cancel = "mutation { ownershipTransferCancel(input: {id: 1}) { userErrors { message } } }";
    shop.data(cancel, json!({})).await;

    let create = "mutation { tokenCreate(input: {service: \"billing\"}) { secret } }";
    let secret = shop.data(create, json!({})).await["tokenCreate"]["secret"].take();
    let members = "SELECT 1 FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid
        WHERE g.rolname = 'cadastre_shop_billing'";
    let admin = shop.cluster.connect("shop").await;
    assert_eq!(admin.query(members, &[]).await.unwrap().len(), 1);
    let retired = shop.retire("billing").await;
    assert_eq!(retired["userErrors"], json!([]), "{retired}");
    assert!(retired["service"]["retiredAt"].is_string(), "{retired}");
    assert_eq!(retired["service"]["roles"], json!([]), "{retired}");
    assert!(admin.query(members, &[]).await.unwrap().is_empty(), "its roles stand for nobody");
    let request = shop.server.anonymous().get(shop.server.at("/v1/manifest"));
    let response = request.bearer_auth(secret.as_str().unwrap()).send().await.unwrap();
    assert_eq!(response.status(), 401, "its tokens are revoked");
    let manifest = shop.get("/v1/manifest").send().await.unwrap().text().await.unwrap();
    assert!(!manifest.contains("billing"), "{manifest}");

    // Nothing can be given to it, until somebody declares it again.
    let late = shop.data(&propose, json!({})).await;
    assert_eq!(late["ownershipTransferPropose"]["transfer"], Value::Null, "{late}");
    let again = shop.retire("billing").await;
    assert_eq!(again["userErrors"][0]["code"], "NOT_FOUND", "{again}");
    let (status, answer) = shop.apply(&shop.manifest()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(admin.query(members, &[]).await.unwrap().len(), 1);
    let unknown = shop.retire("nobody").await;
    assert_eq!(unknown["userErrors"][0]["code"], "NOT_FOUND", "{unknown}");
}
