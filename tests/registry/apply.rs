//! Lists of mutations: all or nothing, in any order, one writer at a time.

use std::collections::BTreeMap;

use cadastre::registry::{
    ColumnFacts, Error, GuardState, Mutation, Revision, SlotRecord, Subscription,
};
use cadastre::vocab::{Epoch, Lsn, Mode, Retry, RoleName, SourceId};

use super::{dataset, migrated, open, service, shop, source};

#[tokio::test]
async fn what_is_applied_is_read_back_in_the_next_snapshot() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    assert_eq!(registry.snapshot().revision, Revision(0));
    let facts = ColumnFacts { classification: Some("pii".to_owned()), description: None };
    let declared = [
        // Against the order in which they depend on one another.
        Mutation::SubscriptionPut(Subscription {
            name: "billing-orders".to_owned(),
            service: "billing".parse().unwrap(),
            datasets: vec!["shop.public.orders".parse().unwrap()],
            spec: serde_json::json!({"deliver": {"pull": {}}}),
        }),
        Mutation::DatasetPut {
            name: "shop.public.orders".parse().unwrap(),
            owner: "orders".parse().unwrap(),
            mode: Mode::Enforce,
            description: Some("One row per order, \"quoted\"".to_owned()),
            tags: vec!["z".to_owned(), "a".to_owned(), "z".to_owned()],
            columns: BTreeMap::from([("email".to_owned(), facts.clone())]),
            derived_from: vec!["shop.public.carts".to_owned()],
        },
        service("orders", &["orders_app", "orders_job"]),
        service("billing", &["billing_app"]),
        source("shop"),
    ];
    let revision = registry.apply(&declared).await.unwrap();
    assert_eq!(revision, Revision(1));
    let snapshot = registry.snapshot();
    assert_eq!(snapshot.revision, revision);
    let orders = &snapshot.datasets[&"shop.public.orders".parse().unwrap()];
    assert_eq!((orders.owner.as_str(), orders.mode), ("orders", Mode::Enforce));
    assert_eq!(orders.description.as_deref(), Some("One row per order, \"quoted\""));
    assert_eq!(orders.tags, ["a", "z"]);
    assert_eq!(orders.columns["email"], facts);
    assert_eq!(orders.derived_from, ["shop.public.carts"]);
    assert_eq!(orders.guard, GuardState::Pending);
    let source = &snapshot.sources[&"shop".parse().unwrap()];
    assert_eq!((source.url.as_str(), source.epoch), ("${SHOP_DATABASE_URL}", Epoch::FIRST));
    assert_eq!(orders.source_id, source.id);
    let service = &snapshot.services[&"orders".parse().unwrap()];
    let roles: Vec<_> = service.roles[&source.name].iter().map(RoleName::as_str).collect();
    assert_eq!(roles, ["orders_app", "orders_job"]);
    assert_eq!(snapshot.subscriptions["billing-orders"].service.as_str(), "billing");
    // Another instance reads the same.
    assert_eq!(open(&cluster).await.snapshot().datasets, snapshot.datasets);
    // The same again changes nothing but the revision.
    assert_eq!(registry.apply(&declared).await.unwrap(), Revision(2));
    assert_eq!(registry.snapshot().datasets, snapshot.datasets);
    assert_eq!(registry.apply(&[]).await.unwrap(), Revision(2));
}

#[tokio::test]
async fn one_bad_mutation_undoes_the_whole_list() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let before = registry.snapshot();
    for (bad, message) in [
        (dataset("x", "nobody", Mode::Observe), "no service is named \"nobody\""),
        (
            Mutation::DatasetPut {
                name: "mars.public.x".parse().unwrap(),
                owner: "orders".parse().unwrap(),
                mode: Mode::Observe,
                description: None,
                tags: vec![],
                columns: BTreeMap::new(),
                derived_from: vec![],
            },
            "no source is named \"mars\"",
        ),
        (
            Mutation::SubscriptionPut(Subscription {
                name: "s".to_owned(),
                service: "orders".parse().unwrap(),
                datasets: vec!["shop.public.x".parse().unwrap()],
                spec: serde_json::json!({"deliver": {"pull": {}}}),
            }),
            "no dataset is named \"shop.public.x\"",
        ),
        (
            service("new", &["orders_app"]),
            "role \"orders_app\" of source \"shop\" is claimed by service \"orders\" and by service \
             \"new\": a role writes for one service",
        ),
        (
            Mutation::SourcePut {
                name: "shop".parse().unwrap(),
                url: "postgresql://app:geheim@db/shop".to_owned(),
            },
            "url: the connection string holds a password",
        ),
        (
            Mutation::ServicePut {
                name: "orders".parse().unwrap(),
                team: Some("a\0b".to_owned()),
                contact: None,
                roles: BTreeMap::new(),
            },
            "team: expected text without a NUL character",
        ),
    ] {
        let list = [service("innocent", &[]), bad];
        let error = registry.apply(&list).await.unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert_eq!(error.retry(), Retry::Never);
        assert!(!error.to_string().contains("geheim"));
    }
    registry.refresh().await.unwrap();
    assert_eq!(registry.snapshot().revision, before.revision);
    assert_eq!(registry.snapshot().services, before.services);
}

#[tokio::test]
async fn a_role_passes_from_one_service_to_another_in_either_order() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let holder = |role: &str| {
        let key = ("shop".parse().unwrap(), role.parse().unwrap());
        registry.snapshot().service_by_role.get(&key).map(ToString::to_string)
    };
    registry
        .apply(&[service("billing", &["billing_app", "orders_app"]), service("orders", &[])])
        .await
        .unwrap();
    assert_eq!(holder("orders_app").as_deref(), Some("billing"));
    registry
        .apply(&[service("billing", &["billing_app"]), service("orders", &["orders_app"])])
        .await
        .unwrap();
    assert_eq!(holder("orders_app").as_deref(), Some("orders"));
    // Two claims in one list are a conflict, and the same claim twice is not.
    let both = [service("billing", &["r"]), service("orders", &["r"])];
    assert!(matches!(registry.apply(&both).await, Err(Error::Conflict { .. })));
    registry.apply(&[service("billing", &["r", "r"])]).await.unwrap();
}

#[tokio::test]
async fn concurrent_writers_take_turns() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let others = [open(&cluster).await, open(&cluster).await, registry.clone()];
    let mut running = tokio::task::JoinSet::new();
    for number in 0..30 {
        let registry = others[number % others.len()].clone();
        running.spawn(async move {
            let owner = if number % 2 == 0 { "orders" } else { "billing" };
            let list = [
                service(&format!("s{number}"), &[]),
                dataset("orders", owner, Mode::Enforce),
                dataset(&format!("t{number}"), owner, Mode::Observe),
            ];
            registry.apply(&list).await.unwrap().0
        });
    }
    let mut revisions = running.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (2..32).collect::<Vec<i64>>());
    registry.refresh().await.unwrap();
    let snapshot = registry.snapshot();
    assert_eq!((snapshot.datasets.len(), snapshot.services.len()), (31, 32));
    let orders = &snapshot.datasets[&"shop.public.orders".parse().unwrap()];
    let history = registry.ownership_history(orders.id).await.unwrap();
    assert_eq!(history.last().unwrap().service, orders.owner);
    for pair in history.windows(2) {
        assert_eq!(pair[0].to, Some(pair[1].from), "{history:?}");
        assert_ne!(pair[0].service, pair[1].service);
    }
}

#[tokio::test]
async fn a_guard_is_pending_again_once_owner_or_mode_changed() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let name = "shop.public.orders".parse().unwrap();
    let id = registry.snapshot().datasets[&name].id;
    let guard = || registry.snapshot().datasets[&name].guard;
    let install = async || registry.guard_state(&[id], GuardState::Installed).await.unwrap();
    let before = registry.snapshot().revision;
    assert_eq!(install().await, Revision(before.0 + 1));
    assert_eq!(guard(), GuardState::Installed);
    registry.apply(&[dataset("orders", "orders", Mode::Observe)]).await.unwrap();
    assert_eq!(guard(), GuardState::Installed);
    registry.apply(&[dataset("orders", "orders", Mode::Enforce)]).await.unwrap();
    assert_eq!(guard(), GuardState::Pending);
    install().await;
    registry.apply(&[dataset("orders", "billing", Mode::Enforce)]).await.unwrap();
    assert_eq!(guard(), GuardState::Pending);
}

#[tokio::test]
async fn an_epoch_is_kept_through_a_new_declaration_of_its_source() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let id = registry.snapshot().sources[&"shop".parse().unwrap()].id;
    let record = SlotRecord {
        system_identifier: "18446744073709551615".to_owned(),
        timeline: 3,
        confirmed: Lsn::new(80),
        heartbeat: Some((Lsn::new(70), "a-1".to_owned())),
        broken: Some("slot_lost".to_owned()),
    };
    registry.epoch_begin(id, Epoch::new(200), &record).await.unwrap();
    registry.apply(&[source("shop")]).await.unwrap();
    let snapshot = registry.snapshot();
    let source = &snapshot.sources[&"shop".parse().unwrap()];
    assert_eq!((source.id, source.epoch), (id, Epoch::new(200)));
    let unknown = SourceId(999);
    let refused = registry.epoch_begin(unknown, Epoch::FIRST, &record).await;
    assert!(matches!(refused, Err(Error::NotFound { .. })));

    // While continuity is broken nothing may be confirmed; afterwards it never goes back.
    assert_eq!(registry.slot_record(id).await.unwrap().as_ref(), Some(&record));
    assert_eq!(registry.slot_record(unknown).await.unwrap(), None);
    assert!(!registry.slot_confirm(id, Lsn::new(90), None).await.unwrap());
    let mended = SlotRecord { broken: None, ..record };
    registry.slot_record_put(id, &mended).await.unwrap();
    assert!(registry.slot_confirm(id, Lsn::new(90), None).await.unwrap());
    let heartbeat = (Lsn::new(85), "a-2".to_owned());
    assert!(registry.slot_confirm(id, Lsn::new(60), Some(&heartbeat)).await.unwrap());
    let expected = SlotRecord { confirmed: Lsn::new(90), heartbeat: Some(heartbeat), ..mended };
    assert_eq!(registry.slot_record(id).await.unwrap(), Some(expected));
}
