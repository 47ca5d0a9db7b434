//! `break-glass`: leave to write another's dataset, from the command line.

use super::{Ran, cadastre, governed_shop};

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_is_granted_listed_and_taken_back() {
    let (cluster, server) = governed_shop().await;
    let dataset = "shop.public.orders";
    let billing = cluster.connect_as("shop", "billing_app").await;
    let insert = "INSERT INTO orders SELECT coalesce(max(id), 0) + 1 FROM orders";
    billing.batch_execute(insert).await.unwrap_err();
    let grant =
        ["break-glass", "grant", dataset, "--service", "billing", "--reason", "orders is down"];
    let Ran { stdout, stderr, .. } = cadastre(&server, &grant).await.exited(0);
    let id = stdout.trim();
    assert!(stderr.contains("billing may write shop.public.orders until "), "{stderr}");
    billing.batch_execute(insert).await.unwrap();
    let list = cadastre(&server, &["break-glass", "list", dataset]).await.exited(0).stdout;
    assert!(
        list.contains(id) && list.contains("active") && list.contains("orders is down"),
        "{list}"
    );

    cadastre(&server, &["break-glass", "revoke", id]).await.exited(0);
    billing.batch_execute(insert).await.unwrap_err();
    let list = cadastre(&server, &["break-glass", "list", dataset]).await.exited(0).stdout;
    assert!(list.contains("revoked"), "{list}");
    let active = ["break-glass", "list", dataset, "--active"];
    let list = cadastre(&server, &active).await.exited(0).stdout;
    assert_eq!(list.lines().count(), 1, "{list}");

    // What is refused says what would be right.
    let again = cadastre(&server, &["break-glass", "revoke", id]).await.exited(1);
    assert!(again.stderr.contains("no permission"), "{}", again.stderr);
    let long = [&grant[..], &["--expires", "2d"]].concat();
    let refused = cadastre(&server, &long).await.exited(1);
    assert!(refused.stderr.contains("at most 24 hours ahead"), "{}", refused.stderr);
    let token = cadastre(&server, &["token", "create", "--service", "billing"]).await.exited(0);
    let own = [&grant[..], &["--token", token.stdout.trim()]].concat();
    cadastre(&server, &own).await.exited(2);
}
