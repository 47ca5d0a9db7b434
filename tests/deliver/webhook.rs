//! Receivers that are sent to: what they get, and what becomes of what they do not take.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use cadastre::task::Failpoint;
use serde_json::{Value, json};
use tokio::process::Command;

use super::receiver::{Does, Receiver, Request};
use super::{ORDERS, Shop, checksum};
use crate::support::{WAIT, eventually};

/// Tests receive on this machine, which is closed otherwise; a crashed server's cursor is free soon.
pub(super) const ENV: [(&str, &str); 2] =
    [("CADASTRE_WEBHOOK_ALLOW", "127.0.0.1"), ("CADASTRE_DELIVERY_HOLD", "500ms")];

fn webhook(receiver: &Receiver, retry: Value) -> Value {
    json!({
        "deliver": { "webhook": { "url": receiver.url(), "timeout": "1s" } },
        "retry": retry,
    })
}

fn quick() -> Value {
    json!({ "maxAttempts": 4, "initial": "20ms", "max": "100ms", "onPark": "pass" })
}

fn id(event: &Value) -> i64 {
    event["after"]["id"].as_i64().unwrap_or(-1)
}

/// Waits until everything logged for a subscription is settled; its counts then.
pub(super) async fn settled(shop: &Shop, name: &str, logged: u64) -> Value {
    eventually(WAIT * 2, async || {
        let status = shop.status(name).await;
        let counts = &status["counts"];
        assert_eq!(counts["reconcile"], true, "{status}");
        let done = counts["logged"] == logged && counts["pending"] == 0;
        done.then_some(status)
    })
    .await
}

/// Whether each row's changes came in the order of their positions, repetitions aside.
fn in_order(taken: &[Value]) -> bool {
    let mut last: BTreeMap<i64, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    taken.iter().filter(|event| seen.insert(event["position"].as_str())).all(|event| {
        let position = event["position"].as_str().unwrap();
        last.insert(id(event), position).is_none_or(|before| before < position)
    })
}

#[tokio::test]
async fn every_change_is_sent_in_order_with_an_id_and_a_signature() {
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    let created = shop.subscribe("hook", webhook(&receiver, json!({}))).await;
    let secret = created["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"), "{secret}");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    shop.write(&format!(
        "SET cadastre.traceparent = '{trace}';
         INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 20) n"
    ))
    .await;
    let status = settled(&shop, "hook", 20).await;
    assert_eq!(status["counts"]["delivered"], 20);
    let requests = receiver.requests();
    let positions: Vec<&str> = requests.iter().map(|it| it.header("webhook-id")).collect();
    assert_eq!(status["checksum"], checksum(positions.iter().copied()));
    assert_eq!(requests[0].events()[0]["position"], positions[0]);
    assert_eq!(requests[0].header("content-type"), "application/json");
    assert!(requests[0].header("webhook-signature").starts_with("v1,"));
    assert_eq!(requests[0].header("traceparent"), trace);
    let log = shop.server.log();
    assert!(!log.contains(secret), "a secret in the log");
}

#[tokio::test]
async fn the_official_library_verifies_across_a_rotation() {
    let python = standard_webhooks().await;
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    let created = shop.subscribe("hook", webhook(&receiver, json!({}))).await;
    let first = created["secret"].as_str().unwrap().to_owned();
    let rotate = async |overlap: u32| {
        let query = "mutation Rotate($input: SubscriptionSecretRotateInput!) {
            subscriptionSecretRotate(input: $input) { secret userErrors { message } } }";
        let input = json!({ "name": "hook", "overlapSeconds": overlap });
        let data = shop.graphql(query, json!({ "input": input })).await;
        data["subscriptionSecretRotate"]["secret"].as_str().unwrap().to_owned()
    };
    let mut rows = 0;
    // What was under way when a secret was replaced may still be signed as before.
    let mut signed_with = async |secret: &str| loop {
        rows += 1;
        shop.write(&format!("INSERT INTO orders VALUES ({rows}, 'open')")).await;
        settled(&shop, "hook", rows).await;
        let request = receiver.requests().pop().unwrap();
        if verify(&python, &request, secret).await {
            break request;
        }
    };
    let one = signed_with(&first).await;
    let second = rotate(3600).await;
    let both = signed_with(&second).await;
    let third = rotate(0).await;
    let last = signed_with(&third).await;
    for (request, secret, verifies) in [
        (&one, &second, false),
        (&both, &first, true),
        (&last, &first, false),
        (&last, &second, false),
    ] {
        let what = request.header("webhook-signature");
        assert_eq!(verify(&python, request, secret).await, verifies, "{what}");
    }
    let mut forged = last.clone();
    forged.body.push(b' ');
    assert!(!verify(&python, &forged, &third).await, "another body");
}

#[tokio::test]
async fn a_webhook_of_a_manifest_is_signed_and_its_secret_is_sealed_and_its_owners_to_read() {
    let python = standard_webhooks().await;
    let mut shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    shop.apply(&format!(
        "subscriptions:
  hook:
    service: billing
    datasets: [{ORDERS}]
    deliver: {{ webhook: {{ url: \"{}\" }} }}
",
        receiver.url()
    ))
    .await;
    let show = async |shop: &Shop| {
        let shown = shop.server.command().args(["subscription", "secret", "hook"]).output().await;
        String::from_utf8(shown.unwrap().stdout).unwrap().trim().to_owned()
    };
    let secret = show(&shop).await;
    assert!(secret.starts_with("whsec_"), "{secret}");
    shop.write("INSERT INTO orders VALUES (1, 'open')").await;
    settled(&shop, "hook", 1).await;
    let request = receiver.requests().pop().unwrap();
    assert!(verify(&python, &request, &secret).await);

    // Whoever has the database alone has no secret.
    use base64::Engine;
    let plain = secret.strip_prefix("whsec_").unwrap();
    let plain = base64::prelude::BASE64_STANDARD.decode(plain).unwrap();
    let registry = shop.cluster.connect("registry").await;
    let stored = "SELECT secret FROM cadastre_registry.subscription_secrets";
    let stored = registry.query(stored, &[]).await.unwrap();
    let stored: Vec<Vec<u8>> = stored.iter().map(|row| row.get(0)).collect();
    assert!(stored.iter().all(|it| !it.windows(plain.len()).any(|part| part == plain)));
    assert_eq!(stored.len(), 1);

    // One that an earlier program stored in the clear is sealed, and stays what it is.
    let clear = "UPDATE cadastre_registry.subscription_secrets SET secret = $1, sealed = false";
    shop.server.kill().await;
    registry.execute(clear, &[&plain]).await.unwrap();
    shop.server.restart().await;
    assert_eq!(show(&shop).await, secret);
    let sealed = "SELECT count(*) FROM cadastre_registry.subscription_secrets WHERE sealed";
    assert_eq!(registry.query_one(sealed, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert!(!shop.server.log().contains(&secret), "a secret in the log");
}

/// A Python that has the official library of Standard Webhooks, installed once.
async fn standard_webhooks() -> PathBuf {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("standardwebhooks");
    let python = home.join("bin/python3");
    let run = async |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).output().await.unwrap();
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    };
    if !home.join("installed").exists() {
        let home = home.to_str().unwrap();
        run("python3", &["-m", "venv", home]).await;
        run(
            python.to_str().unwrap(),
            &["-m", "pip", "install", "--quiet", "standardwebhooks==1.0.1"],
        )
        .await;
        std::fs::write(format!("{home}/installed"), "").unwrap();
    }
    python
}

/// What that library says of a request.
async fn verify(python: &PathBuf, request: &Request, secret: &str) -> bool {
    const PROGRAM: &str = "
import base64, json, sys
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
asked = json.load(sys.stdin)
try:
    Webhook(asked['secret']).verify(base64.b64decode(asked['body']), asked['headers'])
except WebhookVerificationError as error:
    sys.exit(7)
";
    use base64::Engine;
    use tokio::io::AsyncWriteExt;
    let body = base64::prelude::BASE64_STANDARD.encode(&request.body);
    let asked = json!({ "secret": secret, "headers": request.headers, "body": body });
    let mut child = Command::new(python)
        .args(["-c", PROGRAM])
        .stdin(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(asked.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let ended = tokio::time::timeout(WAIT, child.wait()).await.unwrap().unwrap();
    assert!([0, 7].contains(&ended.code().unwrap()), "the library itself failed: {ended}");
    ended.success()
}

#[tokio::test]
async fn whatever_a_receiver_does_everything_arrives_and_only_poison_is_parked() {
    /// Failures of each kind before the receiver recovers.
    const FAILURES: usize = 6;
    let shop = Shop::with_env(&ENV).await;
    let faults = [
        ("reject", Does::Answer(500)),
        ("unauthorised", Does::Answer(401)),
        ("hang", Does::Hang),
        ("drip", Does::Drip),
        ("reset", Does::Reset),
        ("fail-after-write", Does::TakeAndReset),
        ("ask-for-time", Does::AskForTime),
        ("redirect", Does::Answer(302)),
        ("healthy", Does::Take),
    ];
    let mut receivers = Vec::new();
    for (name, fault) in faults {
        let receiver = Receiver::start().await;
        let failed = AtomicUsize::new(0);
        receiver.behave(move |request| {
            if fault != Does::Take && failed.fetch_add(1, Ordering::Relaxed) < FAILURES {
                return fault;
            }
            let poison = request.events().iter().any(|event| id(event) == 13);
            if poison { Does::Answer(422) } else { Does::Take }
        });
        let retry = json!({ "maxAttempts": 12, "initial": "5ms", "max": "50ms", "onPark": "pass" });
        shop.subscribe(name, webhook(&receiver, retry)).await;
        receivers.push((name, receiver));
    }
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 20) n").await;
    shop.write("UPDATE orders SET status = 'paid' WHERE id <> 13").await;
    for (name, receiver) in &receivers {
        let status = settled(&shop, name, 39).await;
        assert_eq!(status["counts"]["parked"], 1, "{name}: {status}");
        assert_eq!(status["counts"]["delivered"], 38, "{name}: {status}");
        assert_eq!(status["breaker"], "closed", "{name}: {status}");
        let letters = shop.get(name, "dead-letters").await;
        let letter = &letters["dead_letters"][0];
        assert_eq!(id(&letter["change"]), 13, "{name}: {letter}");
        let last = letter["attempts"].as_array().unwrap().last().unwrap();
        let said = last["error"].as_str().unwrap();
        assert!(said.starts_with("the receiver answered 422"), "{name}: {said}");
        let taken = receiver.taken();
        let distinct: BTreeSet<&str> =
            taken.iter().map(|event| event["position"].as_str().unwrap()).collect();
        assert_eq!(distinct.len(), 38, "{name}: at least once");
        assert!(in_order(&taken), "{name}: {taken:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_is_left_alone_and_taken_up_again() {
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    receiver.behave(|_| Does::Answer(500));
    let retry = json!({ "maxAttempts": 50, "initial": "100ms", "max": "200ms", "onPark": "pass" });
    shop.subscribe("hook", webhook(&receiver, retry)).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 30) n").await;
    let gauge = async |value: &str| {
        let text = shop.server.client().get(shop.server.at("/metrics")).send().await.unwrap();
        let text = text.text().await.unwrap();
        let line = format!("cadastre_feed_breaker_state{{subscription=\"hook\"}} {value}");
        text.lines().any(|found| found == line).then_some(())
    };
    // Refused for what it is, a change does not count against the receiver: that it is one row,
    // tried again and again, is not enough to open the breaker. Refusing to be reached is.
    receiver.behave(|_| Does::Answer(401));
    let open = eventually(WAIT, async || {
        let status = shop.status("hook").await;
        (status["breaker"] != "closed").then_some(status)
    })
    .await;
    let trouble = open["trouble"].as_str().unwrap();
    assert!(trouble.contains("the receiver answered"), "{open}");
    assert_eq!(open["counts"]["parked"], 0, "{open}");
    eventually(WAIT, async || gauge("2").await.or(gauge("1").await)).await;
    receiver.behave(|_| Does::Take);
    let status = settled(&shop, "hook", 30).await;
    assert_eq!((&status["breaker"], &status["trouble"]), (&json!("closed"), &Value::Null));
    eventually(WAIT, async || gauge("0").await).await;
}

#[tokio::test]
async fn what_only_this_server_can_reach_is_not_sent_to() {
    // Nothing is allowed here: this machine's own addresses are closed.
    let shop = Shop::open().await;
    let receiver = Receiver::start().await;
    for (name, host) in [
        ("literal", "127.0.0.1"),
        ("name", "localhost"),
        ("short", "127.1"),
        ("mapped", "[::ffff:7f00:1]"),
    ] {
        let url = format!("http://{host}:{}/hook", receiver.port());
        let spec = json!({ "deliver": { "webhook": { "url": url } }, "retry": quick() });
        shop.subscribe(name, spec).await;
    }
    // A receiver that does not speak TLS: nothing is reached, so that no change is to blame.
    shop.write("INSERT INTO orders VALUES (1, 'open')").await;
    for name in ["literal", "name", "short", "mapped"] {
        let trouble = eventually(WAIT, async || {
            shop.status(name).await["trouble"].as_str().map(str::to_owned)
        })
        .await;
        assert!(trouble.contains("may be sent to"), "{name}: {trouble}");
    }
    assert!(receiver.requests().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_receiver_with_the_wrong_tls_is_not_sent_to_and_nothing_is_parked() {
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    let url = format!("https://127.0.0.1:{}/hook", receiver.port());
    let spec = json!({ "deliver": { "webhook": { "url": url } }, "retry": quick() });
    shop.subscribe("hook", spec).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 10) n").await;
    let status = eventually(WAIT, async || {
        let status = shop.status("hook").await;
        (status["breaker"] == "open").then_some(status)
    })
    .await;
    assert_eq!(status["counts"]["parked"], 0, "{status}");
    assert!(receiver.taken().is_empty());
}

#[tokio::test]
async fn killed_at_any_step_it_repeats_at_most_and_loses_nothing() {
    let mut shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    shop.subscribe("hook", webhook(&receiver, quick())).await;
    let steps = [
        (Failpoint::DeliverBeforeSend, 2),
        (Failpoint::DeliverAfterSend, 2),
        (Failpoint::DeliverBeforeCursor, 1),
    ];
    for (n, (step, count)) in (0..).zip(steps) {
        shop.server.kill().await;
        let (from, to) = (n * 5 + 1, n * 5 + 5);
        let rows = format!("SELECT n, 'open' FROM generate_series({from}, {to}) n");
        shop.write(&format!("INSERT INTO orders {rows}")).await;
        shop.server.restart_to_die_at(step, count).await;
        shop.server.restart().await;
        let status = settled(&shop, "hook", u64::try_from(to).unwrap()).await;
        assert_eq!(status["counts"]["delivered"], to, "{step:?} {status}");
    }
    let taken = receiver.taken();
    let distinct: BTreeSet<&str> =
        taken.iter().map(|event| event["position"].as_str().unwrap()).collect();
    assert_eq!(distinct.len(), 15);
    assert!(taken.len() < 30, "a step repeats what was under way, not everything: {}", taken.len());
    assert_eq!(shop.status("hook").await["checksum"], checksum(distinct));
    assert!(in_order(&taken));
}

#[tokio::test]
async fn changes_go_in_batches_if_they_shall_and_one_bad_one_spoils_only_itself() {
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    receiver.behave(|request| {
        let bad = request.events().iter().any(|event| id(event) == 7);
        if bad { Does::Answer(400) } else { Does::Take }
    });
    let spec = json!({
        "deliver": { "webhook": { "url": receiver.url(), "batch": 10, "parallel": 1 } },
        "retry": { "maxAttempts": 2, "initial": "5ms", "max": "5ms", "onPark": "pass" },
    });
    shop.subscribe("hook", spec).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 30) n").await;
    let status = settled(&shop, "hook", 30).await;
    assert_eq!(
        (&status["counts"]["parked"], &status["counts"]["delivered"]),
        (&json!(1), &json!(29))
    );
    let largest = receiver.requests().iter().map(|it| it.events().len()).max();
    assert!(largest > Some(1), "several in one request");
    let redriven = shop.post("hook", "dead-letters/redrive", json!({})).await;
    assert_eq!(redriven["redriven"], 1);
    receiver.behave(|_| Does::Take);
    let status = settled(&shop, "hook", 30).await;
    let all = eventually(WAIT, async || {
        let status = shop.status("hook").await;
        (status["counts"]["delivered"] == 30).then_some(status)
    })
    .await;
    assert_eq!(all["counts"]["reconcile"], true, "{status}");
}

#[tokio::test]
async fn of_two_servers_one_sends() {
    let shop = Shop::with_env(&ENV).await;
    let second =
        crate::support::Server::start_with_env(&shop.cluster.url("registry"), &[], &ENV).await;
    let receiver = Receiver::start().await;
    shop.subscribe("hook", webhook(&receiver, quick())).await;
    for n in 1..=10 {
        shop.write(&format!("INSERT INTO orders VALUES ({n}, 'open')")).await;
    }
    let status = settled(&shop, "hook", 10).await;
    assert_eq!(status["counts"]["delivered"], 10);
    assert_eq!(receiver.taken().len(), 10, "each once");
    drop(second);
}

#[tokio::test]
async fn a_change_that_is_not_taken_holds_back_its_own_row_and_no_other() {
    let shop = Shop::with_env(&ENV).await;
    let receiver = Receiver::start().await;
    receiver.behave(|request| {
        let bad = request.events().iter().any(|event| id(event) == 3);
        if bad { Does::Answer(422) } else { Does::Take }
    });
    let retry = json!({ "maxAttempts": 2, "initial": "5ms", "max": "5ms", "onPark": "block" });
    shop.subscribe("hook", webhook(&receiver, retry)).await;
    shop.write("INSERT INTO orders SELECT n, 'open' FROM generate_series(1, 10) n").await;
    shop.write("UPDATE orders SET status = 'paid'").await;
    let status = eventually(WAIT, async || {
        let status = shop.status("hook").await;
        (status["counts"]["delivered"] == 18 && status["counts"]["parked"] == 1).then_some(status)
    })
    .await;
    assert_eq!(status["counts"]["pending"], 1, "the update of the row waits for its insert");
    assert_eq!(status["counts"]["reconcile"], true, "{status}");
    receiver.behave(|_| Does::Take);
    shop.post("hook", "dead-letters/redrive", json!({})).await;
    let status = settled(&shop, "hook", 20).await;
    assert_eq!(status["counts"]["delivered"], 20);
    let of_row: Vec<Value> = receiver.taken().into_iter().filter(|event| id(event) == 3).collect();
    let ops: Vec<_> = of_row.iter().map(|event| &event["op"]).collect();
    assert_eq!(ops, ["c", "u"], "in order, after all");
}
