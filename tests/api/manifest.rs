//! The declared state: planned, applied once, written out again.

use serde_json::{Value, json};

use super::{ORDERS, Shop, answer};
use crate::support::{WAIT, eventually};

#[tokio::test]
async fn a_manifest_is_planned_applied_and_then_changes_nothing() {
    let shop = Shop::undeclared().await;
    let manifest = shop.manifest();
    let (status, plan) = shop.send_manifest("plan", &manifest).await;
    assert_eq!(status, 200, "{plan}");
    assert_eq!(plan["findings"], json!([]), "{plan}");
    let names = |answer: &Value| -> Vec<String> {
        let steps = answer["steps"].as_array().unwrap().iter();
        steps.map(|step| step["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut planned = names(&plan);
    planned.sort_unstable();
    assert_eq!(planned, ["billing", "orders", "shop", ORDERS]);

    let (status, applied) = shop.apply(&manifest).await;
    assert_eq!(status, 200, "{applied}");
    assert_eq!(names(&applied), names(&plan));
    let (status, again) = shop.apply(&manifest).await;
    assert_eq!((status, names(&again)), (200, vec![]), "{again}");
    assert_eq!(again["revision"], applied["revision"]);

    let exported = shop.get("/v1/manifest").send().await.unwrap();
    assert_eq!(exported.headers()["content-type"], "application/yaml");
    let (status, roundtrip) = shop.send_manifest("plan", &exported.text().await.unwrap()).await;
    assert_eq!((status, names(&roundtrip)), (200, vec![]), "{roundtrip}");
}

#[tokio::test]
async fn a_plan_that_cannot_be_applied_says_why_and_where() {
    let shop = Shop::undeclared().await;
    let manifest = shop.manifest().replace(ORDERS, "shop.public.nothing");
    let (status, plan) = shop.send_manifest("plan", &manifest).await;
    assert_eq!(status, 200, "{plan}");
    let finding = &plan["findings"][0];
    assert_eq!((&finding["file"], &finding["line"]), (&json!("shop.yaml"), &json!(8)), "{plan}");
    assert!(finding["message"].as_str().unwrap().contains("nothing"), "{plan}");
}

#[tokio::test]
async fn the_doctor_finds_a_governed_source_in_health() {
    let shop = Shop::declared().await;
    // The slot streams once capture has come to it.
    eventually(WAIT, async || {
        let ready = shop.get("/readyz").send().await.unwrap();
        ready.status().is_success().then_some(())
    })
    .await;
    let (status, needs) = answer(shop.get("/v1/sources/shop/doctor")).await;
    assert_eq!(status, 200, "{needs}");
    let needs = needs.as_array().unwrap();
    assert!(!needs.is_empty());
    assert!(needs.iter().all(|need| need["ok"] == true), "{needs:?}");
}
