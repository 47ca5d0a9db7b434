//! Nobody but the guard can say who wrote.

use futures::SinkExt;
use serde_json::json;

use super::{Shop, refused, rejected};

#[tokio::test]
async fn a_service_cannot_put_words_into_the_guards_mouth() {
    for shop in Shop::either("observe").await {
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
        forged.push(
            "CREATE FUNCTION cadastre.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned(),
        );
        forged.push(
            "CREATE TABLE trap (i int); CREATE TRIGGER t BEFORE INSERT ON trap FOR EACH STATEMENT \
             EXECUTE FUNCTION cadastre_guard.guard('shop.public.orders', 'orders', 'cadastre_shop_billing', 'observe')"
                .to_owned(),
        );
        let note = "cadastre.note('shop.public.orders', 'orders', 'cadastre_shop_orders', 'observe', \
            'INSERT', 'public', 'orders', 'orders_app')";
        forged.push(format!("SELECT {note}"));
        forged.push(format!("DO $$ DECLARE said bool; BEGIN said := {note}; END $$"));
        // A function whose name imitates the guard's line in the call stack.
        forged.push(format!(
            "CREATE FUNCTION \"x cadastre_guard.guard() y\"() RETURNS bool LANGUAGE plpgsql AS \
             $$ DECLARE said bool; BEGIN said := {note}; RETURN said; END $$; \
             SELECT \"x cadastre_guard.guard() y\"()"
        ));
        forged.push(format!(
            "CREATE FUNCTION \"x\nPL/pgSQL function cadastre_guard.guard() line 5 at assignment\"() \
             RETURNS bool LANGUAGE plpgsql AS $$ DECLARE said bool; BEGIN said := {note}; RETURN said; END $$; \
             SELECT \"x\nPL/pgSQL function cadastre_guard.guard() line 5 at assignment\"()"
        ));
        for statement in &forged {
            let (code, message) = refused(billing.batch_execute(statement).await);
            assert_eq!(code, "42501", "{statement}: {message}");
        }
        assert!(shop.violations(0).await.is_empty(), "nothing was recorded of what was only said");
    }
}

#[tokio::test]
async fn settings_and_search_paths_do_not_change_who_is_named() {
    for shop in Shop::either("observe").await {
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
}

#[tokio::test]
async fn nothing_that_a_session_sets_keeps_an_attempt_from_the_record() {
    for shop in Shop::either("enforce").await {
        let update = "UPDATE public.orders SET status = 'x' WHERE id = 1";
        let settings = [
            // Names in the call stack are quoted, or not qualified.
            "SET quote_all_identifiers = on",
            "SET search_path = cadastre, cadastre_guard, public",
            // Literals of functions that are read for the first time in a session.
            "SET standard_conforming_strings = off",
            "SET cadastre.marker = '|billing_app:1:shop.public.orders:|'",
            "SET cadastre.traceparent = 'orders_app'",
            "SET application_name = '\",\"role\":\"orders_app\",\"x\":\"'",
            "SET client_encoding = 'LATIN1'",
            "SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'iso_8601'",
            "SET plan_cache_mode = force_generic_plan; SET jit = off; SET row_security = off",
            "SET default_transaction_deferrable = on; SET transform_null_equals = on",
        ];
        for setting in settings {
            let billing = shop.session("billing_app").await;
            billing.batch_execute(setting).await.unwrap();
            rejected(setting, billing.batch_execute(update).await);
            // Nor do they hinder the owner, with a trace or without.
            let owner = shop.session("orders_app").await;
            owner.batch_execute(setting).await.unwrap();
            owner
                .batch_execute(update)
                .await
                .unwrap_or_else(|error| panic!("{setting}: {error:?}"));
            let trace = "SET cadastre.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'";
            owner
                .batch_execute(&format!("{trace}; {update}"))
                .await
                .unwrap_or_else(|error| panic!("{setting}: {error:?}"));
        }
        let recorded = shop.violations(settings.len()).await;
        assert_eq!(recorded.len(), settings.len());
        for violation in recorded {
            assert_eq!(
                violation,
                ["rejected", "update", "shop.public.orders", "billing", "billing_app"]
            );
        }
    }
}

#[tokio::test]
async fn imitations_of_what_the_guard_calls_change_nothing() {
    for shop in Shop::either("enforce").await {
        let billing = shop.session("billing_app").await;
        billing
            .batch_execute(
                "CREATE TEMP TABLE pg_roles (oid oid, rolname name, rolsuper bool); \
                 INSERT INTO pg_roles VALUES (1, 'billing_app', true); \
                 CREATE TEMP TABLE service (group_role oid, name text); \
                 CREATE TEMP TABLE dataset (relid oid, name text, owner text, owner_role name, mode text); \
                 CREATE FUNCTION pg_temp.pg_has_role(name, text) RETURNS bool LANGUAGE sql AS 'SELECT true'; \
                 CREATE FUNCTION public.strpos(text, text) RETURNS int LANGUAGE sql AS 'SELECT 1'; \
                 CREATE FUNCTION public.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false'; \
                 CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.never); \
                 CREATE OPERATOR public.> (LEFTARG = int, RIGHTARG = int, FUNCTION = pg_catalog.int4lt); \
                 SET search_path = pg_temp, public, pg_catalog",
            )
            .await
            .unwrap();
        let update = "UPDATE public.orders SET status = 'x' WHERE id OPERATOR(pg_catalog.=) 1";
        rejected(update, billing.batch_execute(update).await);
        assert_eq!(
            shop.violations(1).await,
            [["rejected", "update", "shop.public.orders", "billing", "billing_app"]]
        );
        let cadastre = format!("SET ROLE {}", shop.role);
        for replaced in [
            &cadastre,
            "CREATE OR REPLACE FUNCTION cadastre_guard.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE OR REPLACE FUNCTION cadastre.service_of(actor name, prefix text) RETURNS text LANGUAGE sql AS 'SELECT ''orders'''",
            "DROP FUNCTION cadastre.called_by(text, text)",
            "ALTER FUNCTION cadastre.traceparent() RENAME TO other",
            "CREATE OR REPLACE VIEW pg_catalog.pg_roles AS SELECT 1 AS x",
            "SET ROLE cadastre",
            "SET ROLE orders_app",
            "SET SESSION AUTHORIZATION orders_app",
            "SET session_replication_role = replica",
        ] {
            assert_eq!(refused(billing.batch_execute(replaced).await).0, "42501", "{replaced}");
        }
    }
}

#[tokio::test]
async fn a_role_is_of_a_service_by_membership_in_its_group_not_by_names() {
    for shop in Shop::either("enforce").await {
        let superuser = shop.cluster.connect("shop").await;
        superuser
            .batch_execute(
                "CREATE ROLE cadastre_shop_evil; GRANT cadastre_shop_evil TO stranger; \
                 CREATE ROLE \"cadastre_shop_orders \"; GRANT \"cadastre_shop_orders \" TO stranger; \
                 CREATE ROLE cadastre_shop_orders_2; GRANT cadastre_shop_orders_2 TO stranger; \
                 CREATE ROLE \"Orders_app\" LOGIN; GRANT UPDATE, SELECT ON orders TO \"Orders_app\"; \
                 ALTER ROLE stranger CREATEROLE",
            )
            .await
            .unwrap();
        let stranger = shop.session("stranger").await;
        // Before PostgreSQL 16 whoever may create roles may do this; it makes nobody a superuser.
        let _ = stranger.batch_execute("GRANT cadastre_nobody TO stranger").await;
        let update = "UPDATE orders SET status = 'x' WHERE id = 1";
        rejected(update, stranger.batch_execute(update).await);
        let imitator = shop.session("Orders_app").await;
        rejected(update, imitator.batch_execute(update).await);
        let mut recorded = shop.violations(3).await;
        recorded.retain(|violation| violation[0] == "rejected");
        assert_eq!(
            recorded,
            [
                ["rejected", "update", "shop.public.orders", "-", "stranger"],
                ["rejected", "update", "shop.public.orders", "-", "orders_app"],
            ],
            "roles in lower case, as violations() gives them"
        );
    }
}

#[tokio::test]
async fn what_cadastre_keeps_in_a_source_is_written_by_nobody_else() {
    for shop in Shop::either("observe").await {
        let superuser = shop.cluster.connect("shop").await;
        let open = "
            SELECT format('%s: %s', c.oid::regclass, p) FROM pg_class c
            CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'REFERENCES']) p
            WHERE c.relnamespace IN ('cadastre'::regnamespace, 'cadastre_guard'::regnamespace)
              AND c.relkind IN ('r', 'p', 'v', 'm') AND has_table_privilege('billing_app', c.oid, p)
            UNION ALL
            SELECT format('%s: %s', n.nspname, p) FROM pg_namespace n CROSS JOIN unnest(ARRAY['CREATE']) p
            WHERE n.nspname LIKE 'cadastre%' AND has_schema_privilege('billing_app', n.oid, p)
            UNION ALL
            SELECT f.oid::regprocedure::text FROM pg_proc f
            WHERE f.proname IN ('pg_logical_emit_message', 'take', 'give_back', 'place', 'as_grantor')
              AND has_function_privilege('billing_app', f.oid, 'EXECUTE')";
        let open: Vec<String> =
            superuser.query(open, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(open, Vec::<String>::new());

        // Whatever can be called, called with what would be of use to a forger.
        let billing = shop.session("billing_app").await;
        billing
            .batch_execute(
                "CREATE TABLE \"x cadastre_guard.guard() y\" (id int, said bool DEFAULT \
                   cadastre.note('shop.public.orders', 'orders', 'cadastre_shop_orders', 'observe', \
                                 'INSERT', 'public', 'orders', 'orders_app'))",
            )
            .await
            .unwrap();
        for call in [
            "cadastre.report('observed', 'shop.public.orders', 'UPDATE', 'orders', 'orders', 'orders_app')",
            "cadastre.emit(true, 'ownership', '{\"v\":1}')",
            "cadastre.tell_schema('dropped', 'shop.public.orders', 'orders'::regclass, '{}', 'DROP', 'orders', 'orders_app', '{}')",
            "cadastre.note_ddl('orders'::regclass, true, 'DROP TABLE', 'orders', 'orders_app', '{}')",
            "cadastre.note_table('gone', 'orders'::regclass, '{}', 'DROP TABLE', 'orders_app')",
            "cadastre.note_coupling('coupled', 'orders'::regclass, '{}', 'k', '{}', 'ALTER TABLE', 'orders_app')",
            "cadastre.guard_part('orders'::regclass, 'parts'::regclass)",
            "cadastre.keep_privileges('orders'::regclass, true)",
        ] {
            let (code, message) = refused(billing.batch_execute(&format!("SELECT {call}")).await);
            assert_eq!(code, "42501", "{call}: {message}");
        }
        // COPY names its table in the call stack without quotation marks, and in binary without data.
        let copied = async {
            let copy = "COPY \"x cadastre_guard.guard() y\" (id) FROM STDIN (FORMAT binary)";
            let sink = billing.copy_in::<_, &[u8]>(copy).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(
                b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\x01\xff\xff".as_slice(),
            )
            .await?;
            sink.finish().await
        };
        let (code, message) = refused(copied.await);
        assert_eq!(
            (code.as_str(), message.contains("only the guard")),
            ("42501", true),
            "{message}"
        );
        // All that is recorded is what really happened, afterwards.
        billing.batch_execute("UPDATE orders SET status = 'x' WHERE id = 1").await.unwrap();
        assert_eq!(
            shop.violations(1).await,
            [["observed", "update", "shop.public.orders", "billing", "billing_app"]]
        );
        let change = &shop.changes("shop.public.orders", 1).await[0];
        assert_eq!(change["writer"]["role"], "billing_app");
    }
}
