//! `token`: made, used, listed and revoked from the command line.

use super::{Ran, cadastre, governed_shop};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_made_listed_and_revoked() {
    let (_cluster, server) = governed_shop().await;
    let create = ["token", "create", "--service", "orders", "--expires", "90d"];
    let Ran { stdout, stderr, .. } = cadastre(&server, &create).await.exited(0);
    let token = stdout.trim();
    assert!(token.starts_with("cad_") && stderr.contains("service orders"), "{stderr}");
    assert!(!stderr.contains(token), "the secret is data, not talk");

    let owner = ["owner", "shop.public.orders", "--token", token];
    cadastre(&server, &owner).await.exited(0);
    let create = ["token", "create", "--role", "auditor", "--token", token];
    let Ran { stderr, .. } = cadastre(&server, &create).await.exited(2);
    assert!(stderr.contains("needs an admin's token"), "{stderr}");

    let list = cadastre(&server, &["token", "list", "--service", "orders"]).await.exited(0).stdout;
    let id = list.lines().nth(1).and_then(|line| line.split(' ').next()).expect("one token");
    assert!(list.contains("service orders  active"), "{list}");
    assert!(!list.contains(token), "{list}");
    cadastre(&server, &["token", "revoke", id]).await.exited(0);
    let Ran { stderr, .. } = cadastre(&server, &owner).await.exited(2);
    assert!(stderr.contains("revoked"), "{stderr}");
    let json = ["token", "list", "--format", "json"];
    let list = cadastre(&server, &json).await.exited(0).stdout;
    let list: serde_json::Value = serde_json::from_str(&list).expect("a JSON document");
    assert_eq!(list[0]["state"], "REVOKED", "{list}");

    let Ran { stderr, .. } =
        cadastre(&server, &["token", "create", "--service", "nobody"]).await.exited(1);
    assert!(stderr.contains("nobody"), "{stderr}");
    cadastre(&server, &["token", "create"]).await.exited(2);
    let both = ["token", "create", "--service", "orders", "--role", "admin"];
    cadastre(&server, &both).await.exited(2);
    cadastre(&server, &["token", "revoke", token]).await.exited(2);
}
