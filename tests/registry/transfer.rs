//! Transfers in the registry: who owns what, and that nobody takes a dataset back unawares.

use cadastre::registry::{Decided, Ending, Error, Mutation, NewTransfer, Registry, Transfer};
use cadastre::vocab::Mode;
use chrono::{TimeDelta, Utc};

use super::{dataset, migrated, open, shop};

fn to_billing() -> NewTransfer {
    NewTransfer {
        dataset: "shop.public.orders".parse().unwrap(),
        from: "orders".parse().unwrap(),
        to: "billing".parse().unwrap(),
        reason: "the teams merge".to_owned(),
        proposed_by: "service orders".to_owned(),
        expires_at: Utc::now() + TimeDelta::hours(1),
    }
}

async fn accept(registry: &Registry, transfer: &Transfer) -> Result<(), Error> {
    let by = "service billing".to_owned();
    let accept = Mutation::OwnershipTransfer { transfer: transfer.id, by };
    registry.apply(&[accept]).await.map(drop)
}

#[track_caller]
fn conflict<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Conflict { message }) => message,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

#[tokio::test]
async fn an_accepted_transfer_ends_one_period_and_begins_the_next() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let (transfer, _) = registry.transfer_propose(to_billing()).await.unwrap();
    assert!(registry.snapshot().transfers.contains_key(&transfer.id));
    accept(&registry, &transfer).await.unwrap();
    let snapshot = registry.snapshot();
    assert!(snapshot.transfers.is_empty());
    let orders = &snapshot.datasets[&transfer.dataset];
    assert_eq!(orders.owner.as_str(), "billing");
    let tenure = &snapshot.tenures[&orders.id];
    assert_eq!(tenure.transfer, Some(transfer.id));
    assert_eq!(tenure.reason.as_deref(), Some("the teams merge"));
    assert_eq!(tenure.actor.as_deref(), Some("service billing"));
    let history = registry.ownership_history(orders.id).await.unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[0].to, Some(history[1].from), "no moment without an owner");
    assert!(conflict(accept(&registry, &transfer).await).contains("completed already"));
}

#[tokio::test]
async fn what_was_decided_before_a_hand_over_does_not_take_the_dataset_back() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let before = registry.snapshot();
    let (transfer, _) = registry.transfer_propose(to_billing()).await.unwrap();
    accept(&registry, &transfer).await.unwrap();

    let enforce = [dataset("orders", "orders", Mode::Enforce)];
    let stale = Decided::on(&before, &enforce, "service orders");
    let message = conflict(registry.apply_decided(&enforce, &stale).await);
    assert!(message.contains("passed to another owner"), "{message}");
    let new = [dataset("orders", "billing", Mode::Enforce)];
    let fresh = Decided::on(&registry.snapshot(), &new, "service billing");
    registry.apply_decided(&new, &fresh).await.unwrap();
    let unseen = Decided::on(&cadastre::registry::Snapshot::default(), &new, "admin");
    conflict(registry.apply_decided(&new, &unseen).await);
}

#[tokio::test]
async fn one_proposal_at_a_time_by_the_present_owner_alone() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    shop(&registry).await;
    let (first, _) = registry.transfer_propose(to_billing()).await.unwrap();
    conflict(registry.transfer_propose(to_billing()).await);
    let (ended, _) =
        registry.transfer_end(first.id, Ending::Declined, "service billing").await.unwrap();
    assert_eq!(ended.decided_by.as_deref(), Some("service billing"));
    assert!(conflict(accept(&registry, &first).await).contains("declined already"));
    let not_owner = NewTransfer { from: "billing".parse().unwrap(), ..to_billing() };
    let not_owner = NewTransfer { to: "orders".parse().unwrap(), ..not_owner };
    conflict(registry.transfer_propose(not_owner).await);

    // A dataset that has a new owner by declaration is not the old one's to give any more.
    let (second, _) = registry.transfer_propose(to_billing()).await.unwrap();
    registry.apply(&[dataset("orders", "billing", Mode::Observe)]).await.unwrap();
    assert!(conflict(accept(&registry, &second).await).contains("does not own"));
}
