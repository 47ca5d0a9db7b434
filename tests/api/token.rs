//! API tokens over their life: made, used, rotated, revoked, expired; on every server of a registry.

use serde_json::{Value, json};

use super::{ORDERS, Shop};
use crate::support::{Server, WAIT, eventually};

/// Status of a read with this token.
async fn status(server: &Server, token: &str) -> u16 {
    let request = server.anonymous().get(server.at("/v1/manifest")).bearer_auth(token);
    request.send().await.unwrap().status().as_u16()
}

/// Makes a token; its secret and id.
async fn create(shop: &Shop, input: Value) -> (String, String) {
    let query = "mutation($input: TokenCreateInput!) { tokenCreate(input: $input) {
        secret token { id state role service { name } createdBy } userErrors { message } } }";
    let data = shop.data(query, json!({ "input": input })).await;
    let created = &data["tokenCreate"];
    assert_eq!(created["userErrors"], json!([]), "{data}");
    assert_eq!(created["token"]["state"], "ACTIVE", "{data}");
    assert_eq!(created["token"]["createdBy"], "admin", "{data}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&created["secret"]), text(&created["token"]["id"]))
}

async fn revoke(shop: &Shop, id: &str) -> Value {
    let query = "mutation($id: ID!) { tokenRevoke(input: {id: $id}) {
        token { state } userErrors { code message field } } }";
    shop.data(query, json!({ "id": id })).await["tokenRevoke"].take()
}

#[tokio::test]
async fn a_token_is_rolled_over_and_its_revocation_is_seen_by_every_server() {
    let shop = Shop::declared().await;
    let second = Server::start(&shop.cluster.url("registry")).await;
    let (old, old_id) = create(&shop, json!({ "service": "orders" })).await;
    let (new, _) = create(&shop, json!({ "service": "orders", "description": "rollout" })).await;
    for server in [&shop.server, &second] {
        for token in [&old, &new] {
            let known = async || (status(server, token).await == 200).then_some(());
            eventually(WAIT, known).await;
        }
    }
    // A feed that is open ends with the token it was opened with.
    let url = shop.server.at(&format!("/v1/feed?datasets={ORDERS}"));
    let request = shop.server.anonymous().get(url).bearer_auth(&old);
    let feed = request.header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(feed.status(), 200);

    assert_eq!(revoke(&shop, &old_id).await["token"]["state"], "REVOKED");
    assert_eq!(status(&shop.server, &old).await, 401, "revoked here before the mutation answers");
    eventually(WAIT, async || (status(&second, &old).await == 401).then_some(())).await;
    assert_eq!(status(&shop.server, &new).await, 200);
    assert_eq!(status(&second, &new).await, 200);
    let rest = tokio::time::timeout(WAIT, feed.text()).await.expect("the feed ends").unwrap();
    assert!(rest.contains("\"code\":\"invalid_token\""), "{rest}");

    let again = revoke(&shop, &old_id).await;
    assert_eq!(again["token"]["state"], "REVOKED", "revoking again changes nothing: {again}");
    let unknown = revoke(&shop, "0000000000000000").await;
    assert_eq!(unknown["userErrors"][0]["code"], "NOT_FOUND", "{unknown}");
    let malformed = revoke(&shop, &old).await;
    assert_eq!(malformed["userErrors"][0]["code"], "INVALID", "{malformed}");
    assert!(!malformed.to_string().contains(&old[21..]), "a secret in a message: {malformed}");
}

#[tokio::test]
async fn nothing_but_a_digest_is_kept_and_uses_are_written_down_at_the_end() {
    let mut shop = Shop::declared().await;
    let (secret, id) = create(&shop, json!({ "role": "AUDITOR" })).await;
    assert!(secret.starts_with(&format!("cad_{id}_")), "a token names itself");
    assert_eq!(status(&shop.server, &secret).await, 200);
    let query = "{ tokens { nodes { id role state lastUsedAt service { name } } } }";
    let data = shop.data(query, json!({})).await;
    let listed = &data["tokens"]["nodes"][0];
    assert_eq!((&listed["id"], &listed["role"]), (&json!(id), &json!("AUDITOR")));
    assert!(listed["lastUsedAt"].is_string(), "known before it is written down: {listed}");

    let client = shop.cluster.connect("registry").await;
    let row = "SELECT t::text, digest = sha256(convert_to($1, 'UTF8')), last_used_at IS NOT NULL
        FROM cadastre_registry.tokens t WHERE id = $2";
    let stored = client.query_one(row, &[&secret, &id]).await.unwrap();
    assert!(!stored.get::<_, String>(0).contains(&secret[21..]), "a secret in the database");
    assert!(stored.get::<_, bool>(1), "the digest is that of the whole token");
    assert!(!stored.get::<_, bool>(2), "no request writes");
    assert!(shop.server.terminate().await.success());
    let stored = client.query_one(row, &[&secret, &id]).await.unwrap();
    assert!(stored.get::<_, bool>(2), "written down at the end");
}

#[tokio::test]
async fn what_cannot_be_a_token_is_refused_with_what_can() {
    let shop = Shop::declared().await;
    let query = "mutation($input: TokenCreateInput!) { tokenCreate(input: $input) {
        secret userErrors { code message field } } }";
    for (input, code, field) in [
        (json!({}), "INVALID", json!(["input"])),
        (json!({ "role": "SERVICE" }), "INVALID", json!(["input"])),
        (json!({ "role": "ADMIN", "service": "orders" }), "INVALID", json!(["input"])),
        (json!({ "service": "nobody" }), "NOT_FOUND", json!(["input", "service"])),
        (json!({ "service": "No Body" }), "INVALID", json!(["input", "service"])),
        (
            json!({ "service": "orders", "expiresAt": "2001-01-01T00:00:00Z" }),
            "INVALID",
            json!(["input", "expiresAt"]),
        ),
        (
            json!({ "service": "orders", "description": "a\u{0}b" }),
            "INVALID",
            json!(["input", "description"]),
        ),
    ] {
        let data = shop.data(query, json!({ "input": input })).await;
        let error = &data["tokenCreate"]["userErrors"][0];
        assert_eq!((&error["code"], &error["field"]), (&json!(code), &field), "{input} {data}");
        assert_eq!(data["tokenCreate"]["secret"], Value::Null, "{data}");
    }
    // The registry's clock may end a token while it is in use.
    let (secret, id) = create(&shop, json!({ "service": "orders" })).await;
    let expire = "UPDATE cadastre_registry.tokens SET expires_at = now() WHERE id = $1";
    let registry = shop.cluster.connect("registry").await;
    registry.execute(expire, &[&id]).await.unwrap();
    let noticed = "UPDATE cadastre_registry.registry_state SET revision = revision + 1";
    registry.batch_execute(noticed).await.unwrap();
    eventually(WAIT, async || (status(&shop.server, &secret).await == 401).then_some(())).await;
    let data = shop.data("{ tokens { nodes { id state } } }", json!({})).await;
    assert_eq!(data["tokens"]["nodes"], json!([{ "id": id, "state": "EXPIRED" }]));
}
