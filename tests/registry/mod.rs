//! The registry against a real PostgreSQL.

mod apply;
mod follow;
mod manifest;
mod ownership;
mod transfer;
mod violations;

use std::collections::BTreeMap;

use cadastre::config::PostgresOptions;
use cadastre::pg::{Pool, migrate};
use cadastre::registry::{Mutation, Registry};
use cadastre::vocab::Mode;

use crate::support::Cluster;

/// A cluster whose database `postgres` is migrated.
async fn migrated() -> Cluster {
    let cluster = Cluster::start().await;
    migrate(&cluster.target("postgres"), &PostgresOptions::default()).await.expect("migrate");
    cluster
}

/// One more instance on the same database.
async fn open(cluster: &Cluster) -> Registry {
    let pool = Pool::new(&cluster.target("postgres"), &PostgresOptions::default()).expect("a pool");
    Registry::open(pool).await.expect("open the registry")
}

fn source(name: &str) -> Mutation {
    Mutation::SourcePut {
        name: name.parse().expect("a name"),
        url: "${SHOP_DATABASE_URL}".to_owned(),
    }
}

fn service(name: &str, roles: &[&str]) -> Mutation {
    let roles: Vec<_> = roles.iter().map(|role| role.parse().expect("a role")).collect();
    let in_shop = BTreeMap::from([("shop".parse().expect("a source"), roles)]);
    Mutation::ServicePut {
        name: name.parse().expect("a name"),
        team: Some(format!("team of {name}")),
        contact: None,
        roles: if in_shop.values().all(Vec::is_empty) { BTreeMap::new() } else { in_shop },
    }
}

fn dataset(table: &str, owner: &str, mode: Mode) -> Mutation {
    Mutation::DatasetPut {
        name: format!("shop.public.{table}").parse().expect("a dataset"),
        owner: owner.parse().expect("a service"),
        mode,
        description: None,
        tags: vec!["pii".to_owned(), "core".to_owned(), "core".to_owned()],
        columns: BTreeMap::new(),
        derived_from: vec![],
    }
}

/// Two services and a dataset of the first.
async fn shop(registry: &Registry) {
    let shop = [
        source("shop"),
        service("orders", &["orders_app"]),
        service("billing", &["billing_app"]),
        dataset("orders", "orders", Mode::Observe),
    ];
    registry.apply(&shop).await.expect("apply");
}
