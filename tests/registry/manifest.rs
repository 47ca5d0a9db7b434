//! A manifest through the database and back.

use cadastre::registry::manifest::Manifest;

use super::{migrated, open};

const MANIFEST: &str = r##"
apiVersion: cadastre/v1
sources:
  shop: { url: "${SHOP_DATABASE_URL}" }
services:
  orders: { team: checkout, contact: "#checkout", roles: { shop: [orders_app, "Zed", a b] } }
  billing: { team: "", roles: { shop: [billing_app] } }
datasets:
  shop.public.orders:
    owner: orders
    mode: enforce
    description: "two\nlines, \"quotes\" and é"
    tags: [zebra, Zebra, apple, Äpfel]
    columns: { customer_email: { classification: pii }, "odd, name": {} }
  'shop.public."Order lines.v2"':
    owner: billing
    derivedFrom: [shop.public.orders, "kafka://broker/topic"]
subscriptions:
  billing-orders:
    service: billing
    datasets: [shop.public.orders, 'shop.public."Order lines.v2"']
    deliver: { kafka: { z: 1, a: [true, ~, 2.5, "x"], m: { b: 1, a: 2 } } }
    retry: { maxAttempts: 8, initial: 1s, max: 5m }
"##;

#[tokio::test]
async fn what_is_applied_differs_in_nothing_from_what_was_declared() {
    let cluster = migrated().await;
    let registry = open(&cluster).await;
    let manifest = Manifest::parse(MANIFEST, "cadastre.yaml").unwrap();
    assert_eq!(manifest.validate(&registry.snapshot()), []);
    let plan = manifest.diff(&registry.snapshot());
    assert_eq!(plan.steps.len(), 6);
    registry.apply(&plan.mutations).await.unwrap();
    let again = manifest.diff(&registry.snapshot());
    assert_eq!(again.steps, []);
    assert_eq!(again.unmanaged, [""; 0]);
    let exported = Manifest::export(&registry.snapshot());
    let read_back = Manifest::parse(&exported, "export").unwrap();
    assert_eq!(read_back.diff(&registry.snapshot()).steps, []);
    // Another instance reads the same from the database.
    assert_eq!(Manifest::export(&open(&cluster).await.snapshot()), exported);
}
