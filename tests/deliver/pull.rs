//! Consumers that fetch.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};

use super::{ORDERS, Shop, answer, checksum};
use crate::support::{WAIT, eventually};

/// The ids of the rows in fetched changes.
fn ids(fetched: &Value) -> Vec<i64> {
    let changes = fetched["changes"].as_array().unwrap().iter();
    changes.map(|change| change["change"]["after"]["id"].as_i64().unwrap()).collect()
}

fn positions(fetched: &Value) -> Vec<String> {
    let changes = fetched["changes"].as_array().unwrap().iter();
    changes.map(|change| change["position"].as_str().unwrap().to_owned()).collect()
}

fn pull() -> Value {
    json!({ "deliver": { "pull": { "lease": "1h" } } })
}

#[tokio::test]
async fn what_is_acknowledged_is_gone_and_what_is_not_comes_again() {
    let shop = Shop::open().await;
    shop.subscribe("invoices", pull()).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 5) n").await;

    let first = shop.get("invoices", "changes?max=3&wait=30s").await;
    assert_eq!(ids(&first), [1, 2, 3]);
    assert_eq!(first["changes"][0]["attempt"], 1);
    assert_eq!(first["changes"][0]["change"]["position"], first["changes"][0]["position"]);
    let out = positions(&first);
    let done = json!({ "lease": first["lease"], "positions": &out[..2] });
    let done = shop.post("invoices", "ack", done).await;
    assert_eq!((&done["changes"], &done["gone"]), (&json!(2), &json!([])));
    let again = json!({ "positions": [&out[0]] });
    let again = shop.post("invoices", "ack", again).await;
    assert_eq!((&again["changes"], &again["gone"]), (&json!(0), &json!([out[0]])));

    let refused = json!({ "positions": [&out[2]], "error": "no such customer", "delay": "0s" });
    shop.post("invoices", "nack", refused).await;
    // The pause after an attempt is random; the changes of other rows do not wait for it.
    let mut delivered = out[..2].to_vec();
    let mut attempts = Vec::new();
    while delivered.len() < 5 {
        let rest = shop.get("invoices", "changes?wait=30s").await;
        shop.post("invoices", "ack", json!({ "lease": rest["lease"] })).await;
        delivered.extend(positions(&rest));
        attempts.extend(
            rest["changes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| (it["position"].clone(), it["attempt"].clone())),
        );
    }
    assert!(attempts.contains(&(json!(out[2]), json!(2))), "{attempts:?}");
    assert_eq!(shop.get("invoices", "changes").await["changes"], json!([]));

    let status = shop.status("invoices").await;
    let counts = json!({ "logged": 5, "delivered": 5, "pending": 0, "parked": 0, "filtered": 0,
        "dropped": 0, "reconcile": true });
    assert_eq!(status["counts"], counts);
    let distinct: BTreeSet<&str> = delivered.iter().map(String::as_str).collect();
    assert_eq!(status["checksum"], checksum(distinct), "a consumer computes the same");
}

#[tokio::test]
async fn a_key_that_is_out_is_handed_to_nobody_else() {
    let shop = Shop::open().await;
    shop.subscribe("invoices", pull()).await;
    shop.write("INSERT INTO orders VALUES (1, 'open'); UPDATE orders SET status = 'paid'").await;
    let first = shop.get("invoices", "changes?max=1&wait=30s").await;
    assert_eq!(first["changes"][0]["change"]["op"], "c");
    let second = shop.get("invoices", "changes").await;
    assert_eq!(second["changes"], json!([]), "the update waits for the insert");
    assert_eq!(shop.status("invoices").await["counts"]["reconcile"], true);
    // Time that is given away is over at once: the change goes to the next who asks.
    shop.post("invoices", "extend", json!({ "lease": first["lease"], "by": "0s" })).await;
    let next = shop.get("invoices", "changes?wait=30s").await;
    assert_eq!(next["changes"][0]["position"], first["changes"][0]["position"]);
    assert_eq!(next["changes"][0]["attempt"], 2);
    let late = shop.post("invoices", "ack", json!({ "lease": first["lease"] })).await;
    assert_eq!(late["changes"], 0, "the first consumer's lease is over");
}

#[tokio::test]
async fn after_the_last_attempt_a_change_is_parked_and_can_be_mended_redriven_or_dropped() {
    let shop = Shop::open().await;
    let spec = json!({
        "deliver": { "pull": {} },
        "retry": { "maxAttempts": 2, "initial": "1ms", "max": "1ms", "onPark": "pass" },
    });
    shop.subscribe("invoices", spec).await;
    shop.write("INSERT INTO orders VALUES (1, 'open'), (2, 'open')").await;
    while shop.status("invoices").await["counts"]["parked"] != 2 {
        let fetched = shop.get("invoices", "changes?max=2&wait=1s").await;
        for change in fetched["changes"].as_array().unwrap() {
            let error = format!("attempt {}", change["attempt"]);
            let nack = json!({ "positions": [change["position"]], "error": error });
            shop.post("invoices", "nack", nack).await;
        }
    }
    shop.write("INSERT INTO orders VALUES (3, 'open')").await;
    let rest = shop.get("invoices", "changes?wait=30s").await;
    assert_eq!(ids(&rest), [3], "a parked change stops nothing");
    shop.post("invoices", "ack", json!({ "lease": rest["lease"] })).await;

    let letters = shop.get("invoices", "dead-letters").await;
    let letters = letters["dead_letters"].as_array().unwrap();
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0]["change"]["after"]["id"], 1);
    let errors: Vec<_> =
        letters[0]["attempts"].as_array().unwrap().iter().map(|it| &it["error"]).collect();
    assert_eq!(errors, ["attempt 1", "attempt 2"]);
    assert_eq!(shop.status("invoices").await["counts"]["parked"], 2);

    let (first, second) = (&letters[0]["id"], &letters[1]["id"]);
    let mended = json!({ "change": { "after": { "id": 100 } } });
    let edit = shop.request(Method::PUT, "invoices", &format!("dead-letters/{first}"));
    let (status, edited) = answer(edit.json(&mended)).await;
    assert_eq!((status, &edited["edited"]["after"]["id"]), (200, &json!(100)), "{edited}");
    let redriven = shop.post("invoices", "dead-letters/redrive", json!({ "id": first })).await;
    assert_eq!(redriven["redriven"], 1);
    let again = shop.get("invoices", "changes?wait=30s").await;
    assert_eq!(ids(&again), [100], "what is sent is what was mended");
    assert_eq!(again["changes"][0]["position"], letters[0]["position"]);
    shop.post("invoices", "ack", json!({ "lease": again["lease"] })).await;

    let gone = format!("dead-letters/{second}");
    let (status, refused) = answer(shop.request(Method::DELETE, "invoices", &gone)).await;
    assert_eq!((status, &refused["code"]), (400, &json!("bad_request")), "a reason is needed");
    let path = format!("{gone}?reason=a%20test%20order");
    let (status, dropped) = answer(shop.request(Method::DELETE, "invoices", &path)).await;
    assert_eq!(status, 200, "{dropped}");
    assert_eq!(
        (&dropped["state"], &dropped["reason"]),
        (&json!("dropped"), &json!("a test order"))
    );
    assert_eq!(dropped["settled_by"], "admin");
    let (status, twice) = answer(shop.request(Method::DELETE, "invoices", &path)).await;
    assert_eq!((status, &twice["code"]), (409, &json!("conflict")));

    let all = shop.get("invoices", "dead-letters?state=all").await;
    let states: Vec<_> =
        all["dead_letters"].as_array().unwrap().iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["delivered", "dropped"], "nothing is ever deleted");
    let counts = json!({ "logged": 3, "delivered": 2, "pending": 0, "parked": 0, "filtered": 0,
        "dropped": 1, "reconcile": true });
    assert_eq!(shop.status("invoices").await["counts"], counts);
}

#[tokio::test]
async fn a_parked_change_holds_back_its_key_until_somebody_decides() {
    let shop = Shop::open().await;
    let spec = json!({
        "deliver": { "pull": {} },
        "retry": { "maxAttempts": 1, "onPark": "block" },
    });
    shop.subscribe("invoices", spec).await;
    shop.write("INSERT INTO orders VALUES (1, 'open'); UPDATE orders SET status = 'paid'").await;
    let fetched = shop.get("invoices", "changes?max=1&wait=30s").await;
    shop.post("invoices", "nack", json!({ "lease": fetched["lease"], "error": "no" })).await;
    assert_eq!(shop.get("invoices", "changes").await["changes"], json!([]));
    assert_eq!(shop.status("invoices").await["counts"]["parked"], 1);
    let redriven = shop.post("invoices", "dead-letters/redrive", json!({})).await;
    assert_eq!(redriven["redriven"], 1);
    let both = shop.get("invoices", "changes?wait=30s").await;
    let ops: Vec<_> =
        both["changes"].as_array().unwrap().iter().map(|it| &it["change"]["op"]).collect();
    assert_eq!(ops[0], "c", "in order");
    shop.post("invoices", "ack", json!({ "lease": both["lease"] })).await;
}

#[tokio::test]
async fn competing_consumers_share_all_and_keep_what_is_out_through_a_crash() {
    let mut shop = Shop::open().await;
    shop.subscribe("invoices", pull()).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 200) n").await;
    let first = shop.get("invoices", "changes?max=50&wait=30s").await;
    shop.server.kill().await;
    shop.server.restart().await;
    let done = shop.post("invoices", "ack", json!({ "lease": first["lease"] })).await;
    assert_eq!(done["changes"], 50, "a lease outlives the server that gave it");

    let mut seen: Vec<String> = positions(&first);
    let work = async || {
        let mut mine = Vec::new();
        loop {
            let fetched = shop.get("invoices", "changes?max=7").await;
            mine.extend(positions(&fetched));
            if fetched["lease"].is_null() {
                if shop.status("invoices").await["counts"]["delivered"] == 200 {
                    return mine;
                }
                continue;
            }
            shop.post("invoices", "ack", json!({ "lease": fetched["lease"] })).await;
        }
    };
    let (a, b) = tokio::time::timeout(WAIT, async { tokio::join!(work(), work()) }).await.unwrap();
    seen.extend(a);
    seen.extend(b);
    let distinct: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!((seen.len(), distinct.len()), (200, 200), "each once, none missing");
    let status = shop.status("invoices").await;
    assert_eq!(status["counts"]["reconcile"], true);
    assert_eq!(status["checksum"], checksum(distinct));
    let metrics = async || {
        let text = shop.server.client().get(shop.server.at("/metrics")).send().await.ok()?;
        let text = text.text().await.ok()?;
        let line = "cadastre_feed_subscription_dead_letters{subscription=\"invoices\"} 0";
        text.lines().any(|found| found == line).then_some(())
    };
    eventually(WAIT, metrics).await;
}

#[tokio::test]
async fn a_fetch_that_does_not_wait_finds_what_only_the_store_has() {
    let mut shop = Shop::open().await;
    shop.subscribe("invoices", pull()).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 20) n").await;
    let logged = async |shop: &Shop| {
        eventually(WAIT, async || {
            let path = format!("/v1/feed?datasets={ORDERS}&after=earliest&until=now&ops=c");
            let request = shop.server.client().get(shop.server.at(&path));
            let request = request.header("accept", "application/x-ndjson");
            let text = request.send().await.ok()?.text().await.ok()?;
            (text.lines().filter(|line| !line.is_empty()).count() == 20).then_some(())
        })
        .await;
    };
    logged(&shop).await;
    assert!(shop.server.terminate().await.success());
    shop.server.restart().await;
    logged(&shop).await;
    for from in [1, 8, 15] {
        let fetched = shop.get("invoices", "changes?max=7").await;
        let expected: Vec<i64> = (from..=20).take(7).collect();
        assert_eq!(ids(&fetched), expected, "at the first time of asking");
    }
}

#[tokio::test]
async fn whatever_consumers_do_everything_is_handled_and_only_poison_is_parked() {
    let shop = Shop::open().await;
    let spec = json!({
        "deliver": { "pull": { "lease": "1s" } },
        "retry": { "maxAttempts": 20, "initial": "1ms", "max": "5ms", "onPark": "pass" },
    });
    shop.subscribe("invoices", spec).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 20) n").await;
    shop.write("UPDATE orders SET status = 'paid' WHERE id <> 13").await;
    let tries: Mutex<BTreeMap<String, u32>> = Mutex::default();
    let handled: Mutex<Vec<(i64, String)>> = Mutex::default();
    let consume = async || loop {
        let counts = shop.status("invoices").await["counts"].take();
        assert_eq!(counts["reconcile"], true, "{counts}");
        if counts["delivered"] == 38 && counts["pending"] == 0 {
            return;
        }
        let fetched = shop.get("invoices", "changes?max=3&wait=200ms").await;
        for (row, position) in ids(&fetched).into_iter().zip(positions(&fetched)) {
            let time = {
                let mut tries = tries.lock();
                let time = tries.entry(position.clone()).or_default();
                *time += 1;
                *time
            };
            let this = json!({ "lease": fetched["lease"], "positions": [position] });
            match (row, time) {
                (13, _) => {
                    let no = json!({ "positions": [position], "error": "poison", "delay": "0s" });
                    shop.post("invoices", "nack", no).await;
                }
                // It dies: the lease ends by itself.
                (_, 1) if row % 5 == 0 => {}
                (_, 1) if row % 5 == 1 => {
                    let no = json!({ "positions": [position], "error": "busy" });
                    shop.post("invoices", "nack", no).await;
                }
                // It asks for more time, and then needs it.
                (_, 1) if row % 5 == 2 => {
                    let more = json!({ "positions": [position], "by": "5s" });
                    shop.post("invoices", "extend", more).await;
                    handled.lock().push((row, position));
                    shop.post("invoices", "ack", this).await;
                }
                // It has done the work and comes too late to say so: it does it again.
                (_, 1) if row % 5 == 3 => handled.lock().push((row, position)),
                _ => {
                    handled.lock().push((row, position));
                    shop.post("invoices", "ack", this).await;
                }
            }
        }
    };
    let three = async { tokio::join!(consume(), consume(), consume()) };
    tokio::time::timeout(WAIT * 2, three).await.unwrap();
    let counts = json!({ "logged": 39, "delivered": 38, "pending": 0, "parked": 1, "filtered": 0,
        "dropped": 0, "reconcile": true });
    assert_eq!(shop.status("invoices").await["counts"], counts);
    let letters = shop.get("invoices", "dead-letters").await;
    let letter = &letters["dead_letters"][0];
    assert_eq!(letter["change"]["after"]["id"], 13, "{letter}");
    assert_eq!(letter["attempts"].as_array().unwrap().len(), 20, "{letter}");
    let handled = handled.lock();
    let distinct: BTreeSet<&str> = handled.iter().map(|(_, at)| at.as_str()).collect();
    assert_eq!(distinct.len(), 38, "at least once");
    let mut last: BTreeMap<i64, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (row, position) in handled.iter().filter(|(_, at)| seen.insert(at.as_str())) {
        let before = last.insert(*row, position);
        assert!(before.is_none_or(|before| before < position.as_str()), "row {row} out of order");
    }
}

#[tokio::test]
async fn a_budget_holds_for_consumers_that_fetch_however_many_they_are() {
    let shop = Shop::open().await;
    let spec = json!({ "deliver": { "pull": {} }, "budget": { "changesPerSecond": 20 } });
    shop.subscribe("invoices", spec).await;
    shop.subscribe("free", pull()).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 80) n").await;
    let began = std::time::Instant::now();
    let consume = async || {
        let mut mine = 0;
        while shop.status("invoices").await["counts"]["delivered"] != 80 {
            let fetched = shop.get("invoices", "changes?max=1000&wait=1s").await;
            let count = ids(&fetched).len();
            assert!(count <= 20, "a second's worth at most: {count}");
            mine += count;
            if count > 0 {
                shop.post("invoices", "ack", json!({ "lease": fetched["lease"] })).await;
            }
        }
        mine
    };
    let both = async { tokio::join!(consume(), consume()) };
    let (a, b) = tokio::time::timeout(WAIT, both).await.unwrap();
    assert_eq!(a + b, 80);
    // A second's worth at once; the rest takes three seconds at least, less what each fetch rounds up.
    assert!(began.elapsed().as_secs() >= 2, "{:?}", began.elapsed());
    let free = shop.get("free", "changes?max=1000&wait=30s").await;
    assert_eq!(ids(&free).len(), 80, "another's budget is its own");
}

#[tokio::test]
async fn what_is_not_wanted_is_counted_and_not_handed_out() {
    let shop = Shop::open().await;
    let spec = json!({
        "deliver": { "pull": {} },
        "filter": { "ops": ["c", "u"], "where": "status = 'paid' and id <= 3", "columns": ["id"] },
    });
    shop.subscribe("invoices", spec).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 5) n").await;
    shop.write("UPDATE orders SET status = 'paid'; DELETE FROM orders").await;
    let fetched = shop.get("invoices", "changes?wait=30s").await;
    let mut all = ids(&fetched);
    shop.post("invoices", "ack", json!({ "lease": fetched["lease"] })).await;
    let rest = async {
        loop {
            let fetched = shop.get("invoices", "changes").await;
            all.extend(ids(&fetched));
            if !fetched["lease"].is_null() {
                shop.post("invoices", "ack", json!({ "lease": fetched["lease"] })).await;
            }
            let mut status = shop.status("invoices").await;
            if status["counts"]["logged"] == 15 && status["counts"]["pending"] == 0 {
                return status["counts"].take();
            }
        }
    };
    let counts = tokio::time::timeout(WAIT, rest).await.unwrap();
    assert_eq!(all, [1, 2, 3]);
    assert_eq!(fetched["changes"][0]["change"]["after"], json!({ "id": 1 }));
    let expected = json!({ "logged": 15, "delivered": 3, "pending": 0, "parked": 0,
        "filtered": 12, "dropped": 0, "reconcile": true });
    assert_eq!(counts, expected);
}
