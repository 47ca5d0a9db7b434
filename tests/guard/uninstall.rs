//! Leaving: uninstalling takes everything away, whenever it is interrupted, and installing begun
//! again ends the same.

use cadastre::task::Failpoint;

use super::load::Load;
use super::{SETUP, Shop};
use crate::support::{Cluster, Server, WAIT, eventually};

/// The answer to a mutation of one field: what `errors` and `userErrors` say, or nothing.
pub(super) async fn mutate(server: &Server, mutation: &str) -> Result<Vec<String>, reqwest::Error> {
    let request = server.client().post(server.at("/graphql"));
    let query = serde_json::json!({ "query": format!("mutation {{ {mutation} }}") });
    let answer: serde_json::Value = request.json(&query).send().await?.json().await?;
    let mut said = Vec::new();
    for errors in [&answer["errors"], &answer["data"]["it"]["userErrors"]] {
        let errors = errors.as_array().into_iter().flatten();
        said.extend(errors.map(|error| error["message"].as_str().unwrap().to_owned()));
    }
    let left = answer["data"]["it"]["left"].as_array().into_iter().flatten();
    said.extend(left.map(ToString::to_string));
    Ok(said)
}

pub(super) const UNINSTALL: &str =
    "it: sourceUninstall(input: { source: \"shop\" }) { left userErrors { message } }";

impl Shop {
    /// Whether the registry still shows the source.
    async fn knows_the_source(&self) -> bool {
        let exported = self.server.client().get(self.server.at("/v1/manifest")).send().await;
        exported.unwrap().text().await.unwrap().contains("shop:")
    }
}

#[tokio::test]
async fn uninstalling_leaves_the_catalog_as_it_was_and_the_source_may_come_back() {
    let shop = Shop::ungoverned().await;
    let before = shop.catalog().await;
    for mode in ["observe", "enforce", "lockdown"] {
        let (status, answer) = shop.apply(&shop.manifest(mode)).await;
        assert_eq!(status, 200, "{answer}");
        let owner = shop.session("orders_app").await;
        owner.batch_execute("UPDATE orders SET status = 'x' WHERE id = 1").await.unwrap();
        shop.changes("shop.public.orders", 1).await;
        assert_ne!(shop.catalog().await, before);
        assert_eq!(mutate(&shop.server, UNINSTALL).await.unwrap(), Vec::<String>::new());
        assert_eq!(shop.catalog().await, before, "after {mode}");
        assert!(!shop.knows_the_source().await);
        let intruder = shop.session("billing_app").await;
        intruder.batch_execute("UPDATE orders SET status = 'y' WHERE id = 1").await.unwrap();
        drop(owner);
    }
}

#[tokio::test]
async fn a_dataset_that_is_released_is_anybodys_and_the_others_stay_governed() {
    let shop = Shop::governed("enforce").await;
    let release = "it: datasetRelease(input: { dataset: \"shop.public.parts\" }) {
        userErrors { message } }";
    assert_eq!(mutate(&shop.server, release).await.unwrap(), Vec::<String>::new());
    let intruder = shop.session("billing_app").await;
    intruder.batch_execute("INSERT INTO parts VALUES (1), (101)").await.unwrap();
    let update = "UPDATE orders SET status = 'x' WHERE id = 1";
    super::rejected(update, intruder.batch_execute(update).await);
    let answer = shop.ask("{ datasets { nodes { name } } }").await;
    let left = answer["datasets"]["nodes"].as_array().unwrap();
    let left: Vec<_> = left.iter().map(|dataset| dataset["name"].as_str().unwrap()).collect();
    assert_eq!(left, ["shop.public.invoices", "shop.public.orders"]);
    let again = mutate(&shop.server, release).await.unwrap();
    assert_eq!(again, ["no dataset is named \"shop.public.parts\""]);
    // Declared again, it is governed again.
    assert_eq!(shop.apply(&shop.manifest("enforce")).await.0, 200);
    let insert = "INSERT INTO parts VALUES (2)";
    super::rejected(insert, intruder.batch_execute(insert).await);
}

#[tokio::test]
async fn what_somebody_granted_to_a_role_of_ours_is_not_taken_but_named() {
    let shop = Shop::governed("observe").await;
    let superuser = shop.cluster.connect("shop").await;
    superuser.batch_execute("GRANT SELECT ON orders TO cadastre_shop_orders").await.unwrap();
    let left = mutate(&shop.server, UNINSTALL).await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].contains("DROP OWNED BY \\\"cadastre_shop_orders\\\""), "{left:?}");
}

/// A small shop, so that every point of a crash is tried in little time.
pub(super) async fn small_shop() -> Shop {
    let cluster = Cluster::start().await;
    cluster.create_database("registry").await;
    cluster.create_database("shop").await;
    let busy = "CREATE TABLE busy (id bigserial PRIMARY KEY); ALTER TABLE busy OWNER TO orders_app";
    cluster.connect("shop").await.batch_execute(&format!("{SETUP}{busy}")).await.unwrap();
    let args = ["--guard-interval", "200ms", "--guard-patience", "20s"];
    let server = Server::start_with(&cluster.url("registry"), &args).await;
    Shop { server, cluster, role: "postgres" }
}

impl Shop {
    /// One service, one table.
    fn small_manifest(&self, mode: &str) -> String {
        format!(
            "apiVersion: cadastre/v1\n{}services:\n  orders: {{ roles: {{ shop: [orders_app] }} }}\n\
             datasets:\n  shop.public.busy: {{ owner: orders, mode: {mode} }}\n",
            self.source()
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstallation_that_was_killed_anywhere_goes_on_by_itself_under_load() {
    let mut shop = small_shop().await;
    let before = shop.catalog().await;
    let load = Load::begin(&shop).await;
    let mut deaths = 0;
    for count in 1.. {
        assert_eq!(shop.apply(&shop.small_manifest("enforce")).await.0, 200);
        shop.server.terminate().await;
        shop.server.restart_armed(Failpoint::GuardUninstall, count).await;
        let survived = mutate(&shop.server, UNINSTALL).await.is_ok();
        if !survived {
            deaths += 1;
            shop.server.died().await;
            shop.server.restart().await;
        }
        eventually(WAIT, async || (!shop.knows_the_source().await).then_some(())).await;
        assert_eq!(shop.catalog().await, before, "killed the {count}. time");
        if survived {
            break;
        }
    }
    assert!(deaths >= 5, "{deaths} deaths");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_or_change_that_was_killed_anywhere_ends_the_same_under_load() {
    let mut shop = small_shop().await;
    let load = Load::begin(&shop).await;
    // What it comes to when nothing happens in between.
    let mut expected = Vec::new();
    for mode in ["observe", "enforce"] {
        assert_eq!(shop.apply(&shop.small_manifest(mode)).await.0, 200);
        expected.push(shop.catalog().await);
    }
    let mut deaths = 0;
    for count in 1.. {
        let mut died = false;
        assert_eq!(mutate(&shop.server, UNINSTALL).await.unwrap(), Vec::<String>::new());
        for (mode, expected) in ["observe", "enforce"].into_iter().zip(&expected) {
            shop.server.terminate().await;
            shop.server.restart_armed(Failpoint::GuardApply, count).await;
            let manifest = shop.small_manifest(mode);
            let request = shop
                .server
                .client()
                .post(shop.server.at("/v1/manifest/apply"))
                .header("content-type", "application/yaml")
                .body(manifest.clone());
            let answer = request.send().await;
            if answer.is_err() {
                (died, deaths) = (true, deaths + 1);
                shop.server.died().await;
                shop.server.restart().await;
                let (status, answer) = shop.apply(&manifest).await;
                assert_eq!(status, 200, "{answer}");
            }
            eventually(WAIT, async || (shop.catalog().await == *expected).then_some(())).await;
        }
        if !died {
            break;
        }
    }
    assert!(deaths >= 6, "{deaths} deaths");
    load.end().await;
}
