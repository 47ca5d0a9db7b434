//! The registry as a graph.

use serde_json::{Value, json};

use super::{ORDERS, Shop};

#[tokio::test]
async fn a_dataset_its_owner_and_its_guard_are_read_in_one_query() {
    let shop = Shop::declared().await;
    let query = "query($name: String!) { dataset(name: $name) {
        id name mode description tags owner { name team contact roles { source roles }
            owns { nodes { name } } }
        guard { state } source { name slot publication }
        ownershipHistory { serviceName to }
        violations { nodes { id } pageInfo { hasNextPage } } } }";
    let data = shop.data(query, json!({ "name": ORDERS })).await;
    let dataset = &data["dataset"];
    let id = dataset["id"].as_str().unwrap();
    assert_eq!(
        dataset,
        &json!({
            "id": id, "name": ORDERS, "mode": "ENFORCE", "description": "One row per order",
            "tags": ["core"],
            "owner": {
                "name": "orders", "team": "checkout", "contact": "#checkout",
                "roles": [{"source": "shop", "roles": ["orders_app"]}],
                "owns": {"nodes": [{"name": ORDERS}]}
            },
            "guard": {"state": "INSTALLED"},
            "source": {"name": "shop", "slot": "cadastre_shop", "publication": "cadastre_shop"},
            "ownershipHistory": [{"serviceName": "orders", "to": null}],
            "violations": {"nodes": [], "pageInfo": {"hasNextPage": false}}
        })
    );
    let query = "query($id: ID!) { node(id: $id) { id ... on Dataset { name } } }";
    let node = shop.data(query, json!({ "id": id })).await;
    assert_eq!(node["node"], json!({"id": id, "name": ORDERS}));
}

#[tokio::test]
async fn who_may_write_is_answered_by_graphql_and_by_rest_alike() {
    let shop = Shop::declared().await;
    let query = "query($service: String!, $dataset: String!) {
        canWrite(service: $service, dataset: $dataset) { allowed mode revision owner { name } } }";
    for (service, allowed) in [("orders", true), ("billing", false)] {
        let asked = json!({ "service": service, "dataset": ORDERS });
        let data = shop.data(query, asked.clone()).await;
        let decision = &data["canWrite"];
        assert_eq!(decision["allowed"], allowed);
        assert_eq!(decision["owner"]["name"], "orders");
        let (status, rest) = super::answer(shop.post("/v1/check").json(&asked)).await;
        assert_eq!(status, 200);
        assert_eq!(
            rest,
            json!({"allowed": allowed, "owner": "orders", "mode": "enforce",
                "revision": decision["revision"]})
        );
    }
}

#[tokio::test]
async fn services_are_listed_page_by_page() {
    let shop = Shop::declared().await;
    let query = "query($after: String) { services(first: 1, after: $after) {
        nodes { name } edges { cursor } pageInfo { hasNextPage endCursor } } }";
    let first = shop.data(query, json!({})).await;
    let page = &first["services"];
    assert_eq!(page["nodes"], json!([{"name": "billing"}]));
    assert_eq!(page["pageInfo"]["hasNextPage"], true);
    let second = shop.data(query, json!({"after": page["pageInfo"]["endCursor"]})).await;
    assert_eq!(second["services"]["nodes"], json!([{"name": "orders"}]));
    assert_eq!(second["services"]["pageInfo"]["hasNextPage"], false);
    let (status, answer) = shop.graphql("{services(first: 101) {nodes {name}}}", json!({})).await;
    assert_eq!(status, 200);
    assert_eq!(answer["errors"][0]["message"], "\"first\" must be between 1 and 100, got 101");
    assert_eq!(answer["data"], json!({"services": null}));
    let filtered = "{datasets(filter: {owner: \"billing\"}) {nodes {name}}}";
    assert_eq!(shop.data(filtered, json!({})).await["datasets"]["nodes"], json!([]));
    let filtered = "{datasets(filter: {tag: \"core\", mode: ENFORCE}) {nodes {name}}}";
    let found = shop.data(filtered, json!({})).await;
    assert_eq!(found["datasets"]["nodes"], json!([{"name": ORDERS}]));
}

#[tokio::test]
async fn everything_can_be_registered_by_mutations() {
    let shop = Shop::undeclared().await;
    let source = "mutation($url: String!) { sourceRegister(input: {name: \"shop\", url: $url}) {
        source { name } userErrors { code message field } revision } }";
    let data = shop.data(source, json!({ "url": shop.cluster.url("shop") })).await;
    assert_eq!(data["sourceRegister"]["source"]["name"], "shop", "{data}");
    let service = "mutation { serviceRegister(input: {name: \"orders\", team: \"checkout\",
            roles: [{source: \"shop\", roles: [\"orders_app\"]}]}) {
        service { name team } userErrors { code message field } revision } }";
    let data = shop.data(service, json!({})).await;
    assert_eq!(data["serviceRegister"]["service"]["team"], "checkout", "{data}");
    let dataset = "mutation($name: String!, $owner: String!) {
        datasetRegister(input: {name: $name, owner: $owner, mode: OBSERVE,
            columns: [{name: \"status\", classification: \"internal\"}]}) {
        dataset { name mode columns { name classification } }
        userErrors { code message field } revision } }";
    let register = async |name: &str, owner: &str| {
        shop.data(dataset, json!({"name": name, "owner": owner})).await
    };
    let data = register(ORDERS, "orders").await;
    let registered = &data["datasetRegister"];
    assert_eq!(registered["userErrors"], json!([]), "{data}");
    assert_eq!(registered["dataset"]["mode"], "OBSERVE");
    let status = json!({"name": "status", "classification": "internal"});
    let columns = registered["dataset"]["columns"].as_array().unwrap();
    assert!(columns.contains(&status), "{data}");

    let revision = registered["revision"].as_i64().unwrap();
    let fresh = "query($revision: Revision) { dataset(name: \"shop.public.orders\",
        atLeast: $revision) { owner { name } } }";
    let data = shop.data(fresh, json!({ "revision": revision })).await;
    assert_eq!(data["dataset"]["owner"]["name"], "orders");

    let enforce = "mutation { datasetSetMode(input: {dataset: \"shop.public.orders\",
        mode: ENFORCE}) { dataset { mode guard { state } } userErrors { code } revision } }";
    let data = shop.data(enforce, json!({})).await;
    let changed = &data["datasetSetMode"];
    assert_eq!(changed["dataset"], json!({"mode": "ENFORCE", "guard": {"state": "INSTALLED"}}));
    assert!(changed["revision"].as_i64().unwrap() > revision);

    let refusals = |data: &Value| data["datasetRegister"]["userErrors"].clone();
    let malformed = register("orders", "orders").await;
    assert_eq!(refusals(&malformed)[0]["code"], "INVALID", "{malformed}");
    assert_eq!(refusals(&malformed)[0]["field"], json!(["input", "name"]), "{malformed}");
    let transfer = register(ORDERS, "billing").await;
    assert_eq!(refusals(&transfer)[0]["code"], "CONFLICT", "{transfer}");
    let missing = register("shop.public.nothing", "orders").await;
    assert_eq!(refusals(&missing)[0]["code"], "REFUSED", "{missing}");
    assert_eq!(missing["datasetRegister"]["dataset"], Value::Null);
}
