//! A manifest from text to plan and back.

use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::registry::{
    ColumnFacts, Dataset, GuardState, Revision, Service, Snapshot, Source, Subscription,
};
use crate::vocab::{DatasetId, DatasetName, Epoch, SourceId};

const EXAMPLE: &str = r##"
apiVersion: cadastre/v1
sources:
  shop: { url: "${SHOP_DATABASE_URL}" }        # environment references
services:
  orders:  { team: checkout, contact: "#checkout", roles: { shop: [orders_app] } }
  billing: { team: finance,  contact: "billing@example.org", roles: { shop: [billing_app] } }
datasets:
  shop.public.orders:
    owner: orders
    mode: enforce
    description: One row per order, from cart to refund
    tags: [core]
    columns: { customer_email: { classification: pii } }
  shop.public.invoices:
    owner: billing
    mode: observe
    derivedFrom: [shop.public.orders]
subscriptions:
  billing-orders:
    service: billing
    datasets: [shop.public.orders]
    deliver: { webhook: { url: "https://billing.internal/hooks/orders" } }
    retry: { maxAttempts: 8, initial: 1s, max: 5m }
"##;

/// The registry after these mutations, as the store would leave it.
fn applied(mutations: &[Mutation]) -> Snapshot {
    let (mut sources, mut services, mut datasets, mut subscriptions) =
        (vec![], vec![], vec![], vec![]);
    for mutation in mutations.iter().cloned() {
        let created_at = DateTime::UNIX_EPOCH;
        match mutation {
            Mutation::OwnershipTransfer { .. }
            | Mutation::BreakGlassGrant { .. }
            | Mutation::BreakGlassRevoke { .. }
            | Mutation::ServiceRetire { .. } => unreachable!("no manifest says this"),
            Mutation::SourcePut { name, url } => {
                sources.push(Source {
                    id: SourceId(1),
                    name,
                    url,
                    epoch: Epoch::FIRST,
                    leaving: false,
                    created_at,
                });
            }
            Mutation::ServicePut { name, team, contact, roles } => {
                services.push(Service { id: 1, name, team, contact, roles, created_at });
            }
            Mutation::DatasetPut {
                name,
                owner,
                mode,
                description,
                tags,
                columns,
                derived_from,
            } => {
                datasets.push(Dataset {
                    id: DatasetId(1),
                    name,
                    source_id: SourceId(1),
                    owner,
                    mode,
                    description,
                    tags,
                    columns,
                    derived_from,
                    guard: GuardState::Pending,
                    gaps: Vec::new(),
                    created_at,
                });
            }
            Mutation::SubscriptionPut(subscription) => subscriptions.push(subscription),
        }
    }
    Snapshot::new(Revision(1), services, sources, datasets, subscriptions)
}

fn parsed(text: &str) -> Manifest {
    Manifest::parse(text, "cadastre.yaml").unwrap()
}

/// Findings as they are printed, one a line.
fn shown(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn refused(text: &str) -> String {
    shown(&Manifest::parse(text, "m.yaml").unwrap_err())
}

/// The steps as a person reads them.
fn steps(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        text.push_str(&format!("{} {} {}\n", step.action, step.kind, step.name));
        for change in &step.changes {
            text.push_str(&format!("  {change}\n"));
        }
    }
    text
}

#[test]
fn the_documented_example_is_created_then_unchanged() {
    let manifest = parsed(EXAMPLE);
    let empty = Snapshot::default();
    assert_eq!(manifest.validate(&empty), []);
    let plan = manifest.diff(&empty);
    insta::assert_snapshot!(steps(&plan), @r##"
    create source shop
      url: ${SHOP_DATABASE_URL}
    create service billing
      team: "finance"
      contact: "billing@example.org"
      roles in shop: [billing_app]
    create service orders
      team: "checkout"
      contact: "#checkout"
      roles in shop: [orders_app]
    create dataset shop.public.invoices
      owner: billing
      mode: observe
      derivedFrom: [shop.public.orders]
    create dataset shop.public.orders
      owner: orders
      mode: enforce
      description: "One row per order, from cart to refund"
      tags: [core]
      column "customer_email": classification "pii"
    create subscription billing-orders
      service: billing
      datasets: [shop.public.orders]
      deliver: {"webhook":{"url":"https://billing.internal/hooks/orders"}}
      retry: {"initial":"1s","max":"5m","maxAttempts":8}
    "##);
    assert_eq!(plan.mutations.len(), 6);
    assert_eq!(plan.notes, [] as [&str; 0]);
    let after = applied(&plan.mutations);
    let again = manifest.diff(&after);
    assert!(again.steps.is_empty() && again.mutations.is_empty() && again.unmanaged.is_empty());
}

#[test]
fn lines_are_kept_for_later_messages() {
    let manifest = parsed(EXAMPLE);
    assert_eq!(manifest.line_of("source", "shop"), Some(4));
    assert_eq!(manifest.line_of("service", "billing"), Some(7));
    assert_eq!(manifest.line_of("dataset", "shop.public.invoices"), Some(15));
    assert_eq!(manifest.line_of("subscription", "billing-orders"), Some(20));
    assert_eq!(manifest.line_of("dataset", "shop.public.nothing"), None);
}

#[test]
fn changes_are_told_field_by_field_and_the_rest_is_left_alone() {
    let before = applied(&parsed(EXAMPLE).diff(&Snapshot::default()).mutations);
    let changed = parsed(
        r##"
apiVersion: cadastre/v1
services:
  billing: { contact: "#money", roles: { shop: [billing_app, "Billing Job"] } }
datasets:
  shop.public.orders:
    owner: billing
    description: One row per order, from cart to refund
    tags: [core, "with, comma"]
    columns: { customer_email: { classification: secret, description: where } }
"##,
    );
    assert_eq!(changed.validate(&before), []);
    let plan = changed.diff(&before);
    insta::assert_snapshot!(steps(&plan), @r##"
    update service billing
      contact: "billing@example.org" → "#money"
      roles in shop: [billing_app] → ["Billing Job", billing_app]
      team: "finance" → none
    update dataset shop.public.orders
      owner: orders → billing
      mode: enforce → observe
      tags: [core] → [core, "with, comma"]
      column "customer_email": classification "pii" → classification "secret", description "where"
    "##);
    assert_eq!(
        plan.unmanaged,
        [
            "source \"shop\"",
            "service \"orders\"",
            "dataset \"shop.public.invoices\"",
            "subscription \"billing-orders\""
        ]
    );
}

#[test]
fn every_mistake_is_reported_with_its_line_and_what_was_expected() {
    let text = r##"apiVersion: cadastre/v2
sources:
  shop: { uri: x }
  Shop: { url: "postgresql://app:geheim@db/shop" }
  mars: { url: "no connection string" }
services:
  orders: { team: 42, contact: [a], roles: { shop: orders_app, Mars: [x] } }
  bill_ing: {}
  orders: {}
datasets:
  orders: { owner: orders }
  shop.public.orders:
    ownr: orders
    mode: locked
    tags: [core, 7, {a: b}]
    columns: { email: pii, name: { classifcation: pii } }
  shop.public.invoices: { owner: Orders, mode: enforce, mode: observe }
  shop.public.carts:
subscriptions:
  Bad_Name: { service: orders, datasets: [], deliver: { pull: {}, nats: {} } }
  a: { service: orders, datasets: [x], deliver: { webhook: { url: ftp://x } } }
  b: { deliver: { pigeon: {} }, retry: { maxAttempts: 0, initial: soon, mx: 1s } }
  c: { service: orders, datasets: [shop.public.carts], deliver: { pull: { url: x } } }
  d: { service: orders, datasets: shop.public.carts }
colour: red
"##;
    let message = refused(text);
    assert!(!message.contains("geheim"), "{message}");
    insta::assert_snapshot!(message, @r#"
    m.yaml:1: apiVersion: expected cadastre/v1
    m.yaml:3: source "shop": unknown key "uri": expected url
    m.yaml:3: url of source "shop" is missing: expected a connection string such as "${SHOP_DATABASE_URL}"
    m.yaml:4: invalid source name "Shop": expected 1 to 20 characters, a lower-case letter first, then lower-case letters, digits and underscores
    m.yaml:4: url of source "Shop": the connection string holds a password; refer to an environment variable instead, such as postgresql://app:${SHOP_PASSWORD}@HOST/DATABASE or ${SHOP_DATABASE_URL}
    m.yaml:5: url of source "mars": malformed connection string: it has neither form; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE or key=value pairs such as "host=/run/postgresql user=app dbname=shop"
    m.yaml:7: contact of service "orders": expected text, found a list
    m.yaml:7: invalid source name "Mars": expected 1 to 20 characters, a lower-case letter first, then lower-case letters, digits and underscores
    m.yaml:7: roles of service "orders" in source "shop": expected a list such as [a, b], found text
    m.yaml:7: team of service "orders": expected text, found a number; put it in quotes
    m.yaml:8: invalid service name "bill_ing": expected 1 to 32 characters, a lower-case letter first, then lower-case letters, digits and hyphens
    m.yaml:9: services: "orders" is given twice, first on line 7: expected once
    m.yaml:11: invalid dataset name "orders": expected SOURCE.SCHEMA.TABLE, such as shop.public.orders or shop.public."v1.orders"
    m.yaml:12: owner of dataset "shop.public.orders" is missing: expected the name of one service
    m.yaml:13: dataset "shop.public.orders": unknown key "ownr": expected one of owner, mode, description, tags, columns, derivedFrom
    m.yaml:14: unknown mode "locked": expected "observe", "enforce" or "lockdown"
    m.yaml:15: tags of dataset "shop.public.orders": expected text, found a mapping
    m.yaml:15: tags of dataset "shop.public.orders": expected text, found a number; put it in quotes
    m.yaml:16: column "email" of dataset "shop.public.orders": expected a mapping, found text
    m.yaml:16: column "name" of dataset "shop.public.orders": unknown key "classifcation": expected one of classification, description
    m.yaml:17: dataset "shop.public.invoices": "mode" is given twice, first on line 17: expected once
    m.yaml:17: invalid service name "Orders": expected 1 to 32 characters, a lower-case letter first, then lower-case letters, digits and hyphens
    m.yaml:18: dataset "shop.public.carts": expected a mapping, found nothing
    m.yaml:20: datasets of subscription "Bad_Name": expected at least one
    m.yaml:20: deliver of subscription "Bad_Name": expected one of pull: {}, webhook: {url: …}, nats: {…}, kafka: {…}, and only one
    m.yaml:20: invalid subscription name "Bad_Name": expected 1 to 63 characters, a lower-case letter first, then lower-case letters, digits and hyphens
    m.yaml:21: invalid dataset name "x": expected SOURCE.SCHEMA.TABLE, such as shop.public.orders or shop.public."v1.orders"
    m.yaml:21: url of webhook of deliver of subscription "a": expected an http or https address
    m.yaml:22: datasets of subscription "b" is missing: expected a list of dataset names
    m.yaml:22: deliver of subscription "b": unknown delivery "pigeon": expected one of pull: {}, webhook: {url: …}, nats: {…}, kafka: {…}
    m.yaml:22: initial of retry of subscription "b": expected a duration such as 1s or 5m
    m.yaml:22: maxAttempts of retry of subscription "b": expected a whole number above 0
    m.yaml:22: retry of subscription "b": unknown key "mx": expected one of maxAttempts, initial, max, onPark
    m.yaml:22: service of subscription "b" is missing: expected the name of one service
    m.yaml:23: pull of deliver of subscription "c": unknown key "url": expected lease
    m.yaml:24: datasets of subscription "d": expected a list such as [a, b], found text
    m.yaml:24: deliver of subscription "d" is missing: expected one of pull: {}, webhook: {url: …}, nats: {…}, kafka: {…}
    m.yaml:25: the manifest: unknown key "colour": expected one of apiVersion, sources, services, datasets, subscriptions
    "#);
}

#[test]
fn references_are_checked_against_manifest_and_registry() {
    let registry = applied(&parsed(EXAMPLE).diff(&Snapshot::default()).mutations);
    let text = r##"apiVersion: cadastre/v1
services:
  shipping:
    roles:
      shop:
        - shipping_app
        - orders_app
      mars: [x]
  shipping-two: { roles: { shop: [shipping_app] } }
datasets:
  shop.public.parcels:
    mode: observe
    owner: nobody
  mars.public.rocks: { owner: orders }
subscriptions:
  parcels:
    service: nobody
    deliver: { pull: {} }
    datasets:
      - shop.public.orders
      - shop.public.parcels
      - shop.public.nothing
"##;
    insta::assert_snapshot!(shown(&parsed(text).validate(&registry)), @r#"
    cadastre.yaml:7: role "orders_app" of source "shop" is claimed by service "orders" and by service "shipping": expected a role to write for one service
    cadastre.yaml:8: roles of service "shipping": source "mars" is neither declared nor registered: expected one of shop
    cadastre.yaml:9: role "shipping_app" of source "shop" is claimed by service "shipping" and by service "shipping-two": expected a role to write for one service
    cadastre.yaml:13: owner of dataset "shop.public.parcels": service "nobody" is neither declared nor registered: expected one of billing, orders, shipping, shipping-two
    cadastre.yaml:14: dataset "mars.public.rocks": source "mars" is neither declared nor registered: expected one of shop
    cadastre.yaml:17: subscription "parcels": service "nobody" is neither declared nor registered: expected one of billing, orders, shipping, shipping-two
    cadastre.yaml:22: subscription "parcels": dataset "shop.public.nothing" is neither declared nor registered: expected one of mars.public.rocks, shop.public.invoices, shop.public.orders, shop.public.parcels
    "#);
    let alone = parsed("apiVersion: cadastre/v1\ndatasets: { shop.public.x: { owner: me } }");
    insta::assert_snapshot!(shown(&alone.validate(&Snapshot::default())), @r#"
    cadastre.yaml:2: owner of dataset "shop.public.x": service "me" is neither declared nor registered: expected a service declared under "services"
    cadastre.yaml:2: dataset "shop.public.x": source "shop" is neither declared nor registered: expected a source declared under "sources"
    "#);
}

#[test]
fn a_role_may_move_between_services_that_are_both_declared() {
    let registry = applied(&parsed(EXAMPLE).diff(&Snapshot::default()).mutations);
    let text = "apiVersion: cadastre/v1
services:
  orders: {}
  billing: { roles: { shop: [billing_app, orders_app] } }
";
    assert_eq!(parsed(text).validate(&registry), []);
}

#[test]
fn text_that_is_no_manifest_says_so() {
    for (text, expected) in [
        ("", "m.yaml:1: the manifest: expected a mapping, found nothing"),
        ("- a", "m.yaml:1: the manifest: expected a mapping, found a list"),
        ("datasets: {}", "m.yaml:1: apiVersion is missing: expected cadastre/v1"),
        ("a: [", "m.yaml:1: expected YAML: unclosed bracket '['"),
    ] {
        assert_eq!(refused(text), expected);
    }
}

#[test]
fn the_export_is_written_as_people_write_it() {
    let snapshot = applied(&parsed(EXAMPLE).diff(&Snapshot::default()).mutations);
    insta::assert_snapshot!(Manifest::export(&snapshot), @r##"
    apiVersion: cadastre/v1
    sources:
      shop:
        url: ${SHOP_DATABASE_URL}
    services:
      billing:
        team: finance
        contact: billing@example.org
        roles:
          shop:
          - billing_app
      orders:
        team: checkout
        contact: "#checkout"
        roles:
          shop:
          - orders_app
    datasets:
      shop.public.invoices:
        owner: billing
        mode: observe
        derivedFrom:
        - shop.public.orders
      shop.public.orders:
        owner: orders
        mode: enforce
        description: One row per order, from cart to refund
        tags:
        - core
        columns:
          customer_email:
            classification: pii
    subscriptions:
      billing-orders:
        service: billing
        datasets:
        - shop.public.orders
        deliver:
          webhook:
            url: https://billing.internal/hooks/orders
        retry:
          initial: 1s
          max: 5m
          maxAttempts: 8
    "##);
    assert_eq!(Manifest::export(&Snapshot::default()), "apiVersion: cadastre/v1\n");
}

/// Any text PostgreSQL can hold, with what YAML finds hard overrepresented.
fn any_text() -> impl Strategy<Value = String> {
    let hard = prop::sample::select(vec![
        "",
        " ",
        "~",
        "null",
        "yes",
        "No",
        "0755",
        "1e3",
        "0x1F",
        ".inf",
        "-",
        "- a",
        "? b",
        "a: b",
        "# c",
        "a #b",
        "'",
        "\"",
        "\\",
        "\t",
        "\n",
        "a\n\nb\n",
        " lead",
        "trail ",
        "|",
        ">",
        "%",
        "@",
        "`",
        "&a",
        "*a",
        "!!int 1",
        "{",
        "[",
        "2020-01-01",
        "<<",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "é",
        "\r\n",
        "${X}",
        "---",
        "...",
        "=",
        "\u{7f}",
        "\u{1}",
        "👩‍🚀",
    ]);
    let any = prop::collection::vec(any::<char>().prop_filter("NUL", |c| *c != '\0'), 0..12);
    prop_oneof![
        hard.prop_map(str::to_owned),
        any.prop_map(String::from_iter),
        "[a-z \n#:'\"-]{0,120}",
    ]
}

fn any_set() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set(any_text(), 0..4).prop_map(|set| set.into_iter().collect())
}

prop_compose! {
    /// A registry of two sources and three services with whatever texts.
    fn any_snapshot()(
        teams in prop::collection::vec(prop::option::of(any_text()), 3),
        roles in prop::collection::btree_map("[a-zA-Z0-9_ '\"-]{1,63}|[é☃ ]{1,9}", (0..3_usize, 0..2_usize), 0..6),
        datasets in prop::collection::btree_map(
            ("s0|s1", "[a-zA-Z ._'\",#é-]{1,9}", "[a-zA-Z0-9 .:_'\",#é{-]{1,20}")
                .prop_map(|(source, schema, table)| DatasetName::new(&source.parse().unwrap(), &schema, &table).unwrap()),
            (0..3_usize, any::<bool>(), prop::option::of(any_text()), any_set(), any_set(),
             prop::collection::btree_map(any_text(), (prop::option::of(any_text()), prop::option::of(any_text())), 0..3)),
            0..5),
        retry in prop::option::of((1..100_u64, "[1-9]s")),
        setting in any_text(),
    ) -> Snapshot {
        let service = |index: usize| ["one", "two", "three-3"][index].parse().unwrap();
        let source = |index: usize| ["s0", "s1"][index].parse().unwrap();
        let mut mutations: Vec<Mutation> = (0..2)
            .map(|index| Mutation::SourcePut { name: source(index), url: format!("${{S{index}}}") })
            .collect();
        for (index, team) in teams.into_iter().enumerate() {
            let mut of_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for (role, _) in roles.iter().filter(|(_, (holder, _))| *holder == index) {
                of_service.entry(source(roles[role].1)).or_default().push(role.parse().unwrap());
            }
            let name = service(index);
            mutations.push(Mutation::ServicePut { name, team: team.clone(), contact: team, roles: of_service });
        }
        let in_first = datasets.keys().filter(|name| name.source().as_str() == "s0");
        let names: Vec<_> = in_first.cloned().collect();
        for (name, (owner, enforce, description, tags, derived_from, columns)) in datasets {
            mutations.push(Mutation::DatasetPut {
                name,
                owner: service(owner),
                mode: if enforce { crate::vocab::Mode::Enforce } else { crate::vocab::Mode::Observe },
                description,
                tags,
                columns: columns
                    .into_iter()
                    .map(|(column, (classification, description))| (column, ColumnFacts { classification, description }))
                    .collect(),
                derived_from,
            });
        }
        if !names.is_empty() {
            let mut spec = serde_json::json!({"deliver": {"kafka": {"subject": setting, "list": [1, null, true, -2.5]}}});
            if let Some((attempts, initial)) = retry {
                spec["retry"] = serde_json::json!({"maxAttempts": attempts, "initial": initial});
            }
            let name = "reader-1".to_owned();
            mutations.push(Mutation::SubscriptionPut(Subscription { name, service: service(0), datasets: names, spec }));
        }
        applied(&mutations)
    }
}

proptest! {
    #[test]
    fn what_is_exported_reads_back_as_the_same(snapshot in any_snapshot()) {
        let text = Manifest::export(&snapshot);
        prop_assert_eq!(&text, &Manifest::export(&snapshot));
        let manifest = match Manifest::parse(&text, "export") {
            Ok(manifest) => manifest,
            Err(findings) => return Err(TestCaseError::fail(format!("{}\n{text}", shown(&findings)))),
        };
        prop_assert_eq!(manifest.validate(&snapshot), []);
        let plan = manifest.diff(&snapshot);
        prop_assert!(plan.steps.is_empty(), "{}\n{text}", steps(&plan));
        prop_assert!(plan.unmanaged.is_empty());
        // From nothing, too, it makes the same registry.
        let rebuilt = applied(&manifest.diff(&Snapshot::default()).mutations);
        prop_assert_eq!(Manifest::export(&rebuilt), text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-zA-Z0-9:{}\\[\\],&*#?|\\->!%@\"' \n\t~]{0,200}") {
        let _ = Manifest::parse(&text, "m.yaml");
        let _ = Manifest::parse(&format!("apiVersion: cadastre/v1\ndatasets:\n  {text}"), "m.yaml");
    }
}
