//! Nobody but the guard can say who wrote.

use serde_json::json;

use super::{Shop, refused};

#[tokio::test]
async fn a_service_cannot_put_words_into_the_guards_mouth() {
    let shop = Shop::governed("observe").await;
    let billing = shop.session("billing_app").await;
    let words = "'{\"v\":1,\"dataset\":\"shop.public.orders\",\"role\":\"orders_app\",\
         \"login\":\"orders_app\",\"traceparent\":null,\"reason\":\"trace\"}'";
    let mut forged = Vec::new();
    for kind in ["writer", "violation", "ownership"] {
        for transactional in [true, false] {
            forged.push(format!(
                "SELECT pg_logical_emit_message({transactional}, 'cadastre.{kind}', {words})"
            ));
            forged.push(format!(
                "SELECT pg_logical_emit_message({transactional}, 'cadastre.{kind}', {words}::bytea)"
            ));
        }
    }
    forged.push("INSERT INTO cadastre.installing VALUES (pg_current_xact_id())".to_owned());
    forged.push("UPDATE cadastre.dataset SET owner = 'billing'".to_owned());
    forged
        .push("CREATE FUNCTION cadastre.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned());
    forged.push(
        "CREATE TABLE trap (i int); CREATE TRIGGER t BEFORE INSERT ON trap FOR EACH STATEMENT \
         EXECUTE FUNCTION cadastre.guard('shop.public.orders', 'orders', 'cadastre_shop_billing', 'observe')"
            .to_owned(),
    );
    let note = "cadastre.note('shop.public.orders', 'orders', 'cadastre_shop_orders', 'observe', \
        'INSERT', 'public', 'orders', 'orders_app')";
    forged.push(format!("SELECT {note}"));
    forged.push(format!("DO $$ DECLARE said bool; BEGIN said := {note}; END $$"));
    // A function whose name imitates the guard's line in the call stack.
    forged.push(format!(
        "CREATE FUNCTION \"x cadastre.guard() y\"() RETURNS bool LANGUAGE plpgsql AS \
         $$ DECLARE said bool; BEGIN said := {note}; RETURN said; END $$; \
         SELECT \"x cadastre.guard() y\"()"
    ));
    forged.push(format!(
        "CREATE FUNCTION \"x\nPL/pgSQL function cadastre.guard() line 5 at assignment\"() \
         RETURNS bool LANGUAGE plpgsql AS $$ DECLARE said bool; BEGIN said := {note}; RETURN said; END $$; \
         SELECT \"x\nPL/pgSQL function cadastre.guard() line 5 at assignment\"()"
    ));
    for statement in &forged {
        let (code, message) = refused(billing.batch_execute(statement).await);
        assert_eq!(code, "42501", "{statement}: {message}");
    }
    assert!(shop.violations(0).await.is_empty(), "nothing was recorded of what was only said");
}

#[tokio::test]
async fn settings_and_search_paths_do_not_change_who_is_named() {
    let shop = Shop::governed("observe").await;
    let billing = shop.session("billing_app").await;
    billing
        .batch_execute(
            "CREATE SCHEMA IF NOT EXISTS pg_temp_imitation; \
             SET application_name = 'orders_app'",
        )
        .await
        .unwrap_err();
    billing
        .batch_execute(
            "CREATE FUNCTION public.pg_has_role(name, text) RETURNS bool LANGUAGE sql AS 'SELECT true'; \
             CREATE FUNCTION public.current_setting(text, bool) RETURNS text LANGUAGE sql AS 'SELECT NULL'; \
             SET search_path = public, pg_catalog; \
             BEGIN; \
             SELECT set_config('cadastre.marker', concat('|orders_app:', pg_current_xact_id(), \
               ':shop.public.orders:|', '|billing_app:', pg_current_xact_id(), ':shop.public.orders:|'), true); \
             UPDATE orders SET status = 'sly' WHERE id = 1; COMMIT",
        )
        .await
        .unwrap();
    let change = &shop.changes("shop.public.orders", 1).await[0];
    assert_eq!(
        change["writer"],
        json!({"service": "billing", "role": "billing_app", "verified": true})
    );
    assert_eq!(shop.violations(1).await[0][0], "observed");
}
