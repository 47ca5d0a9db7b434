//! Who may do what, asked of a running server: every route and every field of GraphQL's roots, by
//! every kind of caller.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use super::Shop;
use crate::support::WAIT;

/// Who asks.
const CALLERS: [&str; 5] = ["nobody", "billing", "orders", "auditor", "admin"];

/// Which of [`CALLERS`] are let in; `orders` owns the dataset.
const ANYONE: [bool; 5] = [true, true, true, true, true];
const TOKEN: [bool; 5] = [false, true, true, true, true];
const OWNER: [bool; 5] = [false, false, true, false, true];
const RECEIVER: [bool; 5] = [false, true, false, false, true];
const ADMIN: [bool; 5] = [false, false, false, false, true];

/// A request to each route, and who is let in.
const ROUTES: &[(&str, &str, &str, &str, [bool; 5])] = &[
    ("GET", "/healthz", "/healthz", "", ANYONE),
    ("GET", "/readyz", "/readyz", "", ANYONE),
    ("GET", "/metrics", "/metrics", "", ANYONE),
    ("GET", "/v1/openapi.json", "/v1/openapi.json", "", ANYONE),
    ("GET", "/v1/check", "/v1/check?service=orders&dataset=shop.public.orders", "", TOKEN),
    (
        "POST",
        "/v1/check",
        "/v1/check",
        r#"{"service":"orders","dataset":"shop.public.orders"}"#,
        TOKEN,
    ),
    ("GET", "/v1/feed", "/v1/feed?datasets=shop.public.orders", "", TOKEN),
    ("GET", "/v1/snapshots", "/v1/snapshots", "", TOKEN),
    // Whoever has rows: any service, and the guard in the database says which are its own.
    (
        "POST",
        "/v1/datasets/{dataset}/rows",
        "/v1/datasets/shop.public.orders/rows",
        r#"{"insert":[]}"#,
        [false, true, true, false, false],
    ),
    ("GET", "/v1/subscriptions/{name}/changes", "/v1/subscriptions/mine/changes", "", OWNER),
    ("POST", "/v1/subscriptions/{name}/ack", "/v1/subscriptions/mine/ack", NO_POSITIONS, OWNER),
    ("POST", "/v1/subscriptions/{name}/nack", "/v1/subscriptions/mine/nack", NO_POSITIONS, OWNER),
    (
        "POST",
        "/v1/subscriptions/{name}/extend",
        "/v1/subscriptions/mine/extend",
        r#"{"positions":[],"by":"1s"}"#,
        OWNER,
    ),
    ("GET", "/v1/subscriptions/{name}/secret", "/v1/subscriptions/mine/secret", "", OWNER),
    (
        "GET",
        "/v1/subscriptions/{name}/dead-letters",
        "/v1/subscriptions/mine/dead-letters",
        "",
        TOKEN,
    ),
    (
        "POST",
        "/v1/subscriptions/{name}/dead-letters/redrive",
        "/v1/subscriptions/mine/dead-letters/redrive",
        "{}",
        OWNER,
    ),
    (
        "GET",
        "/v1/subscriptions/{name}/dead-letters/{id}",
        "/v1/subscriptions/mine/dead-letters/1",
        "",
        TOKEN,
    ),
    (
        "PUT",
        "/v1/subscriptions/{name}/dead-letters/{id}",
        "/v1/subscriptions/mine/dead-letters/1",
        r#"{"change":{}}"#,
        OWNER,
    ),
    (
        "DELETE",
        "/v1/subscriptions/{name}/dead-letters/{id}",
        "/v1/subscriptions/mine/dead-letters/1?reason=none",
        "",
        OWNER,
    ),
    ("GET", "/v1/manifest", "/v1/manifest", "", TOKEN),
    ("POST", "/v1/manifest/plan", "/v1/manifest/plan", DESCRIBED, TOKEN),
    ("POST", "/v1/manifest/plan", "/v1/manifest/plan", NEW_SOURCE, ADMIN),
    ("POST", "/v1/manifest/apply", "/v1/manifest/apply", DESCRIBED, OWNER),
    ("POST", "/v1/manifest/apply", "/v1/manifest/apply", NEW_SERVICE, ADMIN),
    ("POST", "/v1/sources/{name}/adopt", "/v1/sources/nowhere/adopt", "{}", ADMIN),
    ("GET", "/v1/sources/{name}/adoption", "/v1/sources/nowhere/adoption", "", TOKEN),
    ("GET", "/v1/sources/{name}/doctor", "/v1/sources/shop/doctor", "", TOKEN),
    ("GET", "/v1/sources/{name}/proof", "/v1/sources/shop/proof", "", TOKEN),
    ("GET", "/graphql", "/graphql?query=%7B__typename%7D", "", TOKEN),
    ("POST", "/graphql", "/graphql", r#"{"query":"{__typename}"}"#, TOKEN),
];

/// An acknowledgement of nothing.
const NO_POSITIONS: &str = r#"{"positions":[]}"#;

/// A change of what is declared of the owner's dataset.
const DESCRIBED: &str = "apiVersion: cadastre/v1
datasets: { shop.public.orders: { owner: orders, mode: enforce, description: changed } }";

/// A source that nobody has declared.
const NEW_SOURCE: &str = "apiVersion: cadastre/v1
sources: { other: { url: \"postgresql://127.0.0.1:1/other\" } }";

/// A service that nobody has declared.
const NEW_SERVICE: &str = "apiVersion: cadastre/v1
services: { shipping: { team: logistics } }";

/// A selection of each field of the roots, and who is let in. `TOKEN` stands for the id of a token
/// of the owner.
const FIELDS: &[(&str, &str, &str, [bool; 5])] = &[
    ("Query", "node", "node(id: \"x\") { id }", TOKEN),
    ("Query", "service", "service(name: \"orders\") { name }", TOKEN),
    ("Query", "services", "services { nodes { name } }", TOKEN),
    ("Query", "dataset", "dataset(name: \"shop.public.orders\") { name }", TOKEN),
    ("Query", "datasets", "datasets { nodes { name } }", TOKEN),
    ("Query", "owner", "owner(dataset: \"shop.public.orders\") { name }", TOKEN),
    (
        "Query",
        "canWrite",
        "canWrite(service: \"orders\", dataset: \"shop.public.orders\") { allowed }",
        TOKEN,
    ),
    ("Query", "violations", "violations { nodes { id } }", TOKEN),
    ("Query", "history", "history(dataset: \"shop.public.orders\") { nodes { op } }", TOKEN),
    ("Query", "driftFindings", "driftFindings { nodes { id } }", TOKEN),
    ("Query", "unownedTables", "unownedTables { nodes { table } }", TOKEN),
    ("Query", "subscription", "subscription(name: \"mine\") { name }", TOKEN),
    ("Query", "subscriptions", "subscriptions { nodes { name } }", TOKEN),
    ("Query", "deadLetters", "deadLetters(subscription: \"mine\") { nodes { id } }", TOKEN),
    ("Query", "findings", "findings { nodes { id } }", TOKEN),
    ("Query", "sources", "sources { name status { state } }", TOKEN),
    ("Query", "source", "source(name: \"shop\") { epoch }", TOKEN),
    ("Query", "snapshots", "snapshots { id }", TOKEN),
    ("Query", "tokens", "tokens { nodes { id } }", TOKEN),
    (
        "Query",
        "tokens",
        "tokens(service: \"orders\") { nodes { id } }",
        [false, false, true, true, true],
    ),
    ("Query", "transfers", "transfers { nodes { id } }", TOKEN),
    ("Mutation", "serviceRetire", "serviceRetire(input: {name: \"nobody\"}) { revision }", ADMIN),
    ("Mutation", "serviceRegister", "serviceRegister(input: {name: \"new\"}) { revision }", ADMIN),
    (
        "Mutation",
        "sourceRegister",
        "sourceRegister(input: {name: \"new\", url: \"${NOT_SET}\"}) { revision }",
        ADMIN,
    ),
    (
        "Mutation",
        "datasetRegister",
        "datasetRegister(input: {name: \"shop.public.orders\", owner: \"orders\", mode: ENFORCE}) {
            revision }",
        OWNER,
    ),
    (
        "Mutation",
        "datasetRegister",
        "datasetRegister(input: {name: \"shop.public.invoices\", owner: \"orders\", mode: OBSERVE}) {
            revision }",
        ADMIN,
    ),
    (
        "Mutation",
        "sourceUninstall",
        "sourceUninstall(input: {source: \"nowhere\"}) { revision }",
        ADMIN,
    ),
    (
        "Mutation",
        "datasetRelease",
        "datasetRelease(input: {dataset: \"shop.public.nothing\"}) { revision }",
        ADMIN,
    ),
    (
        "Mutation",
        "datasetSetMode",
        "datasetSetMode(input: {dataset: \"shop.public.orders\", mode: ENFORCE}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionCreate",
        "subscriptionCreate(input: {name: \"new\", service: \"orders\", spec: {deliver: {pull: {}}},
            datasets: [\"shop.public.orders\"]}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionPause",
        "subscriptionPause(input: {name: \"mine\"}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionResume",
        "subscriptionResume(input: {name: \"mine\"}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionSeek",
        "subscriptionSeek(input: {name: \"mine\", to: \"now\"}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionSecretRotate",
        "subscriptionSecretRotate(input: {name: \"mine\"}) { secret }",
        OWNER,
    ),
    (
        "Mutation",
        "deadLettersRedrive",
        "deadLettersRedrive(input: {subscription: \"mine\"}) { count }",
        OWNER,
    ),
    (
        "Mutation",
        "deadLettersDrop",
        "deadLettersDrop(input: {subscription: \"mine\", ids: [], reason: \"none\"}) { count }",
        OWNER,
    ),
    (
        "Mutation",
        "deadLetterEdit",
        "deadLetterEdit(input: {subscription: \"mine\", id: 1, event: {}}) { count }",
        OWNER,
    ),
    (
        "Mutation",
        "subscriptionDelete",
        "subscriptionDelete(input: {name: \"mine\"}) { revision }",
        OWNER,
    ),
    (
        "Mutation",
        "ownershipTransferPropose",
        "ownershipTransferPropose(input: {dataset: \"shop.public.orders\", to: \"billing\",
            reason: \"test\"}) { revision }",
        OWNER,
    ),
    // Transfer 1 gives the owner's dataset to billing.
    ("Mutation", "ownershipTransferDecline", "ownershipTransferDecline(input: {id: 1}) { revision }", RECEIVER),
    ("Mutation", "ownershipTransferCancel", "ownershipTransferCancel(input: {id: 1}) { revision }", OWNER),
    ("Mutation", "ownershipTransferAccept", "ownershipTransferAccept(input: {id: 1}) { revision }", RECEIVER),
    ("Mutation", "tokenCreate", "tokenCreate(input: {service: \"orders\"}) { revision }", ADMIN),
    (
        "Mutation",
        "breakGlassGrant",
        "breakGlassGrant(input: {dataset: \"shop.public.orders\", service: \"billing\", reason: \"test\",
            expiresAt: \"2001-01-01T00:00:00Z\"}) { revision }",
        ADMIN,
    ),
    ("Mutation", "breakGlassRevoke", "breakGlassRevoke(input: {id: \"x\"}) { revision }", ADMIN),
    ("Mutation", "tokenRevoke", "tokenRevoke(input: {id: \"TOKEN\"}) { revision }", OWNER),
];

/// The token of each caller but the first, and the id of one that may be revoked.
async fn tokens(shop: &Shop) -> (BTreeMap<&'static str, String>, String) {
    let mut tokens = BTreeMap::new();
    let mut spare = String::new();
    for (name, whom) in [
        ("billing", "service: \"billing\""),
        ("orders", "service: \"orders\""),
        ("auditor", "role: AUDITOR"),
        ("admin", "role: ADMIN"),
        ("spare", "service: \"orders\""),
    ] {
        let create = format!(
            "mutation {{ tokenCreate(input: {{{whom}}}) {{ secret token {{ id }} userErrors {{ message }} }} }}"
        );
        let data = shop.data(&create, json!({})).await;
        let created = &data["tokenCreate"];
        assert_eq!(created["userErrors"], json!([]), "{data}");
        if name == "spare" {
            created["token"]["id"].as_str().unwrap().clone_into(&mut spare);
        } else {
            tokens.insert(name, created["secret"].as_str().unwrap().to_owned());
        }
    }
    (tokens, spare)
}

/// The first error's code in a GraphQL answer, if there is one.
fn code(answer: &Value) -> Option<&str> {
    answer["errors"][0]["extensions"]["code"].as_str()
}

#[tokio::test]
async fn every_route_and_field_lets_in_whom_it_should_and_nobody_else() {
    let shop = Shop::declared().await;
    let (tokens, spare) = tokens(&shop).await;
    let mine = "mutation { subscriptionCreate(input: {name: \"mine\", service: \"orders\",
        datasets: [\"shop.public.orders\"], spec: {deliver: {pull: {}}}}) { userErrors { message } } }";
    let made = shop.data(mine, json!({})).await;
    assert_eq!(made["subscriptionCreate"]["userErrors"], json!([]), "{made}");
    let http = shop.server.anonymous();
    for (method, _, path, body, expected) in ROUTES {
        for (caller, expected) in CALLERS.iter().zip(expected) {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = http.request(method.clone(), shop.server.at(path));
            if let Some(token) = tokens.get(caller) {
                request = request.bearer_auth(token);
            }
            if !body.is_empty() {
                let yaml = path.starts_with("/v1/manifest");
                let media = if yaml { "application/yaml" } else { "application/json" };
                request = request.header("content-type", media).body((*body).to_owned());
            }
            let response = tokio::time::timeout(WAIT, request.send()).await.unwrap().unwrap();
            let status = response.status().as_u16();
            let what = format!("{method} {path} by {caller}: {status}");
            match (expected, *caller) {
                (true, _) => assert!(![401, 403].contains(&status), "{what}"),
                (false, "nobody") => assert_eq!(status, 401, "{what}"),
                (false, _) => {
                    assert_eq!(status, 403, "{what}");
                    let problem: Value = response.json().await.unwrap();
                    assert_eq!(problem["code"], "forbidden", "{what} {problem}");
                    assert!(problem["needed"].as_str().unwrap().contains("token"), "{problem}");
                }
            }
        }
    }
    let propose = "mutation { ownershipTransferPropose(input: {dataset: \"shop.public.orders\",
        to: \"billing\", reason: \"test\"}) { transfer { id } } }";
    let data = shop.data(propose, json!({})).await;
    assert_eq!(data["ownershipTransferPropose"]["transfer"]["id"], "1");
    for (root, field, selection, expected) in FIELDS {
        let selection = selection.replace("TOKEN", &spare);
        let query = format!("{} {{ {selection} }}", root.to_ascii_lowercase());
        for (caller, expected) in CALLERS.iter().zip(expected) {
            let mut request =
                http.post(shop.server.at("/graphql")).json(&json!({ "query": query }));
            if let Some(token) = tokens.get(caller) {
                request = request.bearer_auth(token);
            }
            let response = tokio::time::timeout(WAIT, request.send()).await.unwrap().unwrap();
            let status = response.status().as_u16();
            let answer: Value = response.json().await.unwrap();
            let what = format!("{root}.{field} by {caller}: {status} {answer}");
            match (expected, *caller) {
                (true, _) => {
                    assert_eq!(status, 200, "{what}");
                    assert_ne!(code(&answer), Some("FORBIDDEN"), "{what}");
                }
                (false, "nobody") => assert_eq!(status, 401, "{what}"),
                (false, _) => {
                    assert_eq!(status, 200, "{what}");
                    assert_eq!(code(&answer), Some("FORBIDDEN"), "{what}");
                    assert_eq!(answer["errors"][0]["path"], json!([field]), "{what}");
                }
            }
        }
    }
    let log = shop.server.log();
    assert!(log.contains("forbidden"), "refusals are logged");
    for token in tokens.values() {
        assert!(!log.contains(token.as_str()), "a token in the log");
    }
}

#[test]
fn no_route_and_no_field_is_without_a_case() {
    let source = include_str!("../../src/api/server.rs");
    let mut routes = BTreeSet::new();
    for call in source.split(".service(resource(").skip(1) {
        let mut literals = call.split('"').skip(1).step_by(2);
        let (path, methods) = (literals.next().unwrap(), literals.next().unwrap());
        routes.extend(methods.split(", ").map(|method| (method, path)));
    }
    let cases: BTreeSet<_> = ROUTES.iter().map(|(method, route, ..)| (*method, *route)).collect();
    assert_eq!(cases, routes, "left: the cases above, right: the server's routes");

    let sdl = cadastre::api::graphql_sdl();
    let mut fields = BTreeSet::new();
    for root in ["Query", "Mutation"] {
        let body = sdl.split(&format!("\ntype {root} {{\n")).nth(1).unwrap();
        let mut described = false;
        for line in body.split("\n}").next().unwrap().lines() {
            let line = line.strip_prefix('\t').unwrap();
            described ^= line == "\"\"\"";
            if described {
                continue;
            }
            let end = line.find(|c: char| !c.is_alphanumeric()).unwrap_or(0);
            if end > 0 {
                fields.insert((root, line[..end].to_owned()));
            }
        }
    }
    let cases: BTreeSet<_> =
        FIELDS.iter().map(|(root, field, ..)| (*root, (*field).to_owned())).collect();
    assert_eq!(cases, fields, "left: the cases above, right: the schema's fields");
}

#[tokio::test]
async fn a_forbidden_field_keeps_its_neighbours_from_being_executed() {
    let shop = Shop::declared().await;
    let (tokens, spare) = tokens(&shop).await;
    let ask = async |token: &str, query: String| -> Value {
        let request = shop.server.anonymous().post(shop.server.at("/graphql")).bearer_auth(token);
        request.json(&json!({ "query": query })).send().await.unwrap().json().await.unwrap()
    };
    let hidden = format!(
        "mutation {{ tokenRevoke(input: {{id: \"{spare}\"}}) {{ revision }} ...F }}
         fragment F on Mutation {{ ... {{ other: tokenCreate(input: {{role: ADMIN}}) {{ secret }} }} }}"
    );
    let answer = ask(&tokens["orders"], hidden).await;
    assert_eq!((code(&answer), &answer["data"]), (Some("FORBIDDEN"), &Value::Null), "{answer}");
    let state = ask(&tokens["orders"], "{ tokens { nodes { id state } } }".to_owned()).await;
    assert!(
        state.to_string().contains(&format!("{{\"id\":\"{spare}\",\"state\":\"ACTIVE\"}}")),
        "{state}"
    );
}
