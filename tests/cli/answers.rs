//! `owner`, `check`, `doctor`: one answer each, and an exit code for scripts.

use super::{Ran, bare, cadastre, governed_shop, run};
use crate::support::{WAIT, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn who_owns_a_dataset_is_answered_for_now_and_for_then() {
    let (_cluster, server) = governed_shop().await;
    let owner = cadastre(&server, &["owner", "shop.public.orders"]).await.exited(0).stdout;
    assert_eq!(owner, "owner    orders\nteam     checkout\ncontact  #checkout\n");
    let json = ["owner", "shop.public.orders", "--format", "json"];
    let owner = cadastre(&server, &json).await.exited(0).stdout;
    let owner: serde_json::Value = serde_json::from_str(&owner).expect("a JSON document");
    assert_eq!(owner["name"], "orders");
    let then = ["owner", "shop.public.orders", "--as-of", "2001-01-01T00:00:00Z"];
    let Ran { stdout, .. } = cadastre(&server, &then).await.exited(1);
    assert_eq!(stdout, "", "nobody owned it then");
    let Ran { stderr, .. } = cadastre(&server, &["owner", "shop.public.none"]).await.exited(1);
    assert!(stderr.contains("shop.public.none"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_service_may_write_is_an_exit_code() {
    let (_cluster, server) = governed_shop().await;
    let yes = cadastre(&server, &["check", "orders", "shop.public.orders"]).await.exited(0).stdout;
    assert_eq!(yes, "yes: orders owns shop.public.orders (enforce)\n");
    let no = cadastre(&server, &["check", "billing", "shop.public.orders"]).await.exited(1).stdout;
    assert!(no.starts_with("no: shop.public.orders is owned by orders"), "{no}");
    let Ran { stderr, .. } =
        cadastre(&server, &["check", "nobody", "shop.public.orders"]).await.exited(1);
    assert!(stderr.contains("nobody"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_a_governed_source_well_and_what_is_broken_in_it() {
    let (cluster, server) = governed_shop().await;
    eventually(WAIT, async || {
        let ready = server.client().get(server.at("/readyz")).send().await.ok()?;
        ready.status().is_success().then_some(())
    })
    .await;
    let report = cadastre(&server, &["doctor", "shop"]).await.exited(0).stdout;
    assert!(report.contains("wal_level"), "{report}");
    let admin = cluster.connect("shop").await;
    admin.batch_execute("ALTER TABLE invoices DROP CONSTRAINT invoices_pkey").await.unwrap();
    let report = cadastre(&server, &["doctor", "shop"]).await.exited(1).stdout;
    assert!(report.contains("MISSING"), "{report}");
    let Ran { stderr, .. } = cadastre(&server, &["doctor", "nowhere"]).await.exited(1);
    assert!(stderr.contains("nowhere"), "{stderr}");
}

#[tokio::test]
async fn an_unreachable_server_is_told_from_a_no() {
    // Port 1 is reserved and answered by nobody.
    let url = ["--url", "http://127.0.0.1:1"];
    for command in [
        &["owner", "shop.public.orders"][..],
        &["check", "orders", "shop.public.orders"],
        &["doctor", "shop"],
        &["tail", "shop.public.orders"],
        &["export"],
    ] {
        let Ran { stderr, .. } = run(bare().args(command).args(url)).await.exited(3);
        assert!(stderr.contains("http://127.0.0.1:1"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_and_a_malformed_name_are_wrong_usage() {
    let (_cluster, server) = governed_shop().await;
    let args = ["owner", "shop.public.orders", "--token", "cad_wrong"];
    let Ran { stderr, .. } = cadastre(&server, &args).await.exited(2);
    assert!(stderr.contains("token") && !stderr.contains("cad_wrong"), "{stderr}");
    let Ran { stderr, .. } = cadastre(&server, &["owner", "orders"]).await.exited(2);
    assert!(stderr.contains("SOURCE.SCHEMA.TABLE"), "{stderr}");
}
