//! The registry's schema: made once, the same by every road, and undone without a trace.

use cadastre::config::PostgresOptions;
use cadastre::pg::{Error, MIGRATIONS, Pool, REGISTRY_SCHEMA, migrate};
use cadastre::vocab::Retry;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::MigrationHarness;

use crate::support::Cluster;

fn migrations() -> Vec<Box<dyn Migration<Pg>>> {
    let mut all: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().expect("embedded");
    all.sort_by(|a, b| a.name().version().cmp(&b.name().version()));
    all
}

/// Every object of the registry's schema as PostgreSQL describes it, without the table in which
/// diesel keeps its own record.
async fn described(cluster: &Cluster, database: &str) -> Vec<String> {
    let sql = "
        WITH ours AS (
            SELECT c.oid, c.relname, c.relkind FROM pg_class c
            WHERE c.relnamespace = to_regnamespace($1)
              AND c.relname NOT LIKE '%diesel_schema_migrations%'
        )
        SELECT format('%s %s', relkind, relname) FROM ours
        UNION ALL
        SELECT format('%s.%s %s null=%s default=%s identity=%s generated=%s #%s', relname, attname,
                   format_type(atttypid, atttypmod), NOT attnotnull, pg_get_expr(adbin, adrelid),
                   attidentity, attgenerated, attnum)
        FROM ours JOIN pg_attribute a ON a.attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = ours.oid AND d.adnum = a.attnum
        UNION ALL
        SELECT format('%s %s %s', relname, conname, pg_get_constraintdef(k.oid))
        FROM ours JOIN pg_constraint k ON k.conrelid = ours.oid
        UNION ALL
        SELECT pg_get_indexdef(oid) FROM ours WHERE relkind = 'i'
        UNION ALL
        SELECT format('%s %s', relname, pg_get_triggerdef(t.oid))
        FROM ours JOIN pg_trigger t ON t.tgrelid = ours.oid AND NOT t.tgisinternal
        UNION ALL
        SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = to_regnamespace($1)
        UNION ALL
        SELECT format('type %s %s', typname, typtype) FROM pg_type
        WHERE typnamespace = to_regnamespace($1) AND typname NOT LIKE '%diesel_schema_migrations%'
        ORDER BY 1";
    let rows = cluster
        .connect(database)
        .await
        .query(sql, &[&REGISTRY_SCHEMA])
        .await
        .expect("a description");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Runs `work` with diesel's synchronous harness on a connection to the registry's schema.
async fn with_harness<T: Send + 'static>(
    cluster: &Cluster,
    database: &str,
    work: impl FnOnce(&mut AsyncConnectionWrapper<AsyncPgConnection>) -> T + Send + 'static,
) -> T {
    let client = cluster.connect(database).await;
    client
        .batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS {REGISTRY_SCHEMA}; SET search_path = {REGISTRY_SCHEMA}"
        ))
        .await
        .expect("the registry's schema");
    let connection = AsyncPgConnection::try_from(client).await.expect("a diesel connection");
    tokio::task::spawn_blocking(move || {
        let mut harness = AsyncConnectionWrapper::from(connection);
        // Also creates diesel's own table.
        harness.applied_migrations().expect("diesel's table");
        work(&mut harness)
    })
    .await
    .expect("no panic")
}

#[tokio::test]
async fn instances_that_start_together_migrate_once() {
    let cluster = Cluster::start().await;
    let (target, options) = (cluster.target("postgres"), PostgresOptions::default());
    let run = futures::future::join_all((0..4).map(|_| migrate(&target, &options))).await;
    let mut run: Vec<usize> = run.into_iter().map(Result::unwrap).collect();
    run.sort_unstable();
    assert_eq!(run, [0, 0, 0, migrations().len()]);
    assert_eq!(migrate(&target, &options).await.unwrap(), 0);
}

#[tokio::test]
async fn each_down_undoes_its_up() {
    let cluster = Cluster::start().await;
    for index in 0..migrations().len() {
        let before = described(&cluster, "postgres").await;
        let name = with_harness(&cluster, "postgres", move |harness| {
            let migration = migrations().swap_remove(index);
            harness.run_migration(&migration).unwrap();
            harness.revert_migration(&migration).unwrap();
            migration.name().to_string()
        })
        .await;
        assert_eq!(described(&cluster, "postgres").await, before, "{name}");
        with_harness(&cluster, "postgres", move |harness| {
            harness.run_migration(&migrations().swap_remove(index)).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn step_by_step_and_all_at_once_give_the_same_schema() {
    let cluster = Cluster::start().await;
    cluster.create_database("stepwise").await;
    for index in 0..migrations().len() {
        with_harness(&cluster, "stepwise", move |harness| {
            harness.run_migration(&migrations().swap_remove(index)).unwrap();
        })
        .await;
    }
    let options = PostgresOptions::default();
    migrate(&cluster.target("postgres"), &options).await.unwrap();
    let fresh = described(&cluster, "postgres").await;
    assert!(fresh.iter().any(|line| line == "r datasets"), "{fresh:?}");
    assert_eq!(described(&cluster, "stepwise").await, fresh);
    // What was migrated by steps counts as migrated.
    assert_eq!(migrate(&cluster.target("stepwise"), &options).await.unwrap(), 0);
}

#[tokio::test]
async fn a_database_from_a_later_version_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let (target, options) = (cluster.target("postgres"), PostgresOptions::default());
    migrate(&target, &options).await.unwrap();
    let sql = format!(
        "INSERT INTO {REGISTRY_SCHEMA}.__diesel_schema_migrations (version) VALUES ('99990101')"
    );
    cluster.connect("postgres").await.batch_execute(&sql).await.unwrap();
    let error = migrate(&target, &options).await.unwrap_err();
    assert!(matches!(error, Error::SchemaNewer { .. }), "{error}");
    assert!(error.to_string().contains("99990101"), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn nothing_is_put_outside_the_registrys_schema() {
    let cluster = Cluster::start().await;
    let (target, options) = (cluster.target("postgres"), PostgresOptions::default());
    migrate(&target, &options).await.unwrap();
    drop(Pool::new(&target, &options).unwrap().get().await.unwrap());
    let sql = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', $1)";
    let row = cluster.connect("postgres").await.query_one(sql, &[&REGISTRY_SCHEMA]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}
