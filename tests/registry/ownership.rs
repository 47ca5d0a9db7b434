//! Exactly one owner: what the handle records and what the tables cannot hold.

use cadastre::vocab::Mode;
use chrono::{TimeDelta, Utc};
use tokio_postgres::error::SqlState;

use super::{dataset, migrated, open, shop};

#[tokio::test]
async fn owners_follow_one_another_without_gap_or_overlap() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    let before = Utc::now() - TimeDelta::seconds(1);
    shop(&registry).await;
    let id = registry.snapshot().datasets[&"shop.public.orders".parse().unwrap()].id;
    for owner in ["billing", "billing", "orders", "billing"] {
        registry.apply(&[dataset("orders", owner, Mode::Observe)]).await.unwrap();
    }
    // Several in one list, too: the clock need not move between them.
    let list = ["orders", "billing"].map(|owner| dataset("orders", owner, Mode::Observe));
    registry.apply(&list).await.unwrap();
    let history = registry.ownership_history(id).await.unwrap();
    let owners: Vec<&str> = history.iter().map(|period| period.service.as_str()).collect();
    assert_eq!(owners, ["orders", "billing", "orders", "billing", "orders", "billing"]);
    for pair in history.windows(2) {
        assert_eq!(pair[0].to, Some(pair[1].from));
        assert!(pair[0].from < pair[1].from);
    }
    assert_eq!(history.last().unwrap().to, None);
    assert_eq!(registry.owner_at(id, before).await.unwrap(), None);
    for period in &history {
        // From is inclusive, to is not.
        assert_eq!(registry.owner_at(id, period.from).await.unwrap(), Some(period.service.clone()));
    }
    let now = registry.owner_at(id, Utc::now() + TimeDelta::days(1)).await.unwrap();
    assert_eq!(now.unwrap().as_str(), "billing");
}

#[tokio::test]
async fn the_tables_hold_neither_no_owner_nor_two() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET search_path = cadastre_registry").await.unwrap();
    let insert = "INSERT INTO datasets (source_id, schema_name, table_name, owner_id, mode)
                  SELECT s.id, 'public', 'rogue', o.id, 'observe'
                  FROM sources s, services o WHERE o.name = 'orders'";
    for (sql, state) in [
        // No owner.
        ("UPDATE datasets SET owner_id = NULL", SqlState::NOT_NULL_VIOLATION),
        ("UPDATE datasets SET owner_id = 999", SqlState::FOREIGN_KEY_VIOLATION),
        ("DELETE FROM services WHERE name = 'orders'", SqlState::FOREIGN_KEY_VIOLATION),
        // An owner of whom the history knows nothing.
        (insert, SqlState::FOREIGN_KEY_VIOLATION),
        (
            "UPDATE datasets SET owner_id = (SELECT id FROM services WHERE name = 'billing')",
            SqlState::FOREIGN_KEY_VIOLATION,
        ),
        // A history that ends while the dataset lives.
        ("DELETE FROM ownership_periods", SqlState::FOREIGN_KEY_VIOLATION),
        (
            "UPDATE ownership_periods SET during = tstzrange(lower(during), now() + '1 hour')",
            SqlState::FOREIGN_KEY_VIOLATION,
        ),
        // Two owners at one time: now, in the past, and the same one twice.
        (
            "INSERT INTO ownership_periods (dataset_id, service_id, during)
             SELECT d.id, o.id, tstzrange(now(), NULL) FROM datasets d, services o
             WHERE o.name = 'billing'",
            SqlState::EXCLUSION_VIOLATION,
        ),
        (
            "INSERT INTO ownership_periods (dataset_id, service_id, during)
             SELECT dataset_id, service_id, tstzrange(lower(during) - interval '1 day',
                                                      lower(during) + interval '1 microsecond')
             FROM ownership_periods",
            SqlState::EXCLUSION_VIOLATION,
        ),
        // Ranges that say nothing or hide that they are open.
        ("UPDATE ownership_periods SET during = 'empty'", SqlState::CHECK_VIOLATION),
        (
            "UPDATE ownership_periods SET during = tstzrange(lower(during), 'infinity')",
            SqlState::CHECK_VIOLATION,
        ),
        // Only what is released has no owner, and what is released has none.
        ("UPDATE datasets SET owned = NULL", SqlState::CHECK_VIOLATION),
        ("UPDATE datasets SET released_at = now()", SqlState::CHECK_VIOLATION),
        ("UPDATE datasets SET owned = false", SqlState::CHECK_VIOLATION),
        ("UPDATE datasets SET mode = 'whatever'", SqlState::CHECK_VIOLATION),
        (
            "INSERT INTO service_roles SELECT source_id, role, service_id + 1 FROM service_roles",
            SqlState::UNIQUE_VIOLATION,
        ),
    ] {
        let error = client.execute(sql, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&state), "{sql}: {error:?}");
    }
}
