//! `transfer`: a dataset handed over from the command line, by the tokens of the two services.

use super::{Ran, cadastre, governed_shop};

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_handed_over_by_the_two_who_are_concerned() {
    let (_cluster, server) = governed_shop().await;
    let mut tokens = Vec::new();
    for service in ["orders", "billing"] {
        let create = ["token", "create", "--service", service];
        tokens.push(cadastre(&server, &create).await.exited(0).stdout.trim().to_owned());
    }
    let [orders, billing] = [&*tokens[0], &*tokens[1]];
    let dataset = "shop.public.orders";
    let propose = ["transfer", "propose", dataset, "--to", "billing", "--reason", "teams merge"];
    let Ran { stderr, .. } =
        cadastre(&server, &[&propose[..], &["--token", billing]].concat()).await.exited(2);
    assert!(stderr.contains("needs an admin's token, or one of service \"orders\""), "{stderr}");
    let Ran { stdout, .. } =
        cadastre(&server, &[&propose[..], &["--token", orders]].concat()).await.exited(0);
    let first = stdout.trim();
    cadastre(&server, &["transfer", "accept", first, "--token", orders]).await.exited(2);
    cadastre(&server, &["transfer", "decline", first, "--token", billing]).await.exited(0);
    cadastre(&server, &["transfer", "accept", first, "--token", billing]).await.exited(1);

    let Ran { stdout, .. } =
        cadastre(&server, &[&propose[..], &["--token", orders]].concat()).await.exited(0);
    let second = stdout.trim();
    cadastre(&server, &["transfer", "accept", second, "--token", billing]).await.exited(0);
    let owner = cadastre(&server, &["owner", dataset]).await.exited(0).stdout;
    assert!(owner.contains("billing"), "{owner}");
    let list =
        cadastre(&server, &["transfer", "list", "--dataset", dataset]).await.exited(0).stdout;
    let lines: Vec<_> = list.lines().skip(1).collect();
    assert!(lines[0].contains("completed") && lines[1].contains("declined"), "{list}");
    let open = cadastre(&server, &["transfer", "list", "--open"]).await.exited(0).stdout;
    assert_eq!(open.lines().count(), 1, "{open}");

    // The dataset has gone, so that nothing keeps the service; the other has everything now.
    let Ran { stderr, .. } = cadastre(&server, &["service", "retire", "billing"]).await.exited(1);
    assert!(stderr.contains("would orphan dataset shop.public.orders"), "{stderr}");
    cadastre(&server, &["service", "retire", "orders"]).await.exited(0);
    cadastre(&server, &["service", "retire", "orders"]).await.exited(1);
}
