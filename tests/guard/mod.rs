//! The guard, from the writers' side: every route to a governed table, in a real PostgreSQL, and
//! what the registry and the feed say of it afterwards.

mod attribution;
mod break_glass;
mod change;
mod ddl;
mod drift;
mod evolve;
mod forgery;
mod gateway;
mod identifiers;
mod kinds;
mod load;
mod lockdown;
mod matrix;
mod privilege;
mod routes;
mod subscription;
mod uninstall;

use serde_json::{Value, json};
use tokio_postgres::{Client, Error};

use crate::support::{Cluster, Server, WAIT, eventually};

/// Tables of two services in a database as they grow: PostgreSQL itself lets both write both.
const SETUP: &str = "
    CREATE ROLE orders_app LOGIN;
    CREATE ROLE billing_app LOGIN;
    CREATE ROLE stranger LOGIN;
    CREATE ROLE pooler LOGIN NOINHERIT IN ROLE orders_app, billing_app;
    GRANT CREATE, USAGE ON SCHEMA public TO orders_app, billing_app;
    CREATE TABLE orders (id int PRIMARY KEY, status text);
    INSERT INTO orders VALUES (1, 'open'), (2, 'open');
    CREATE TABLE invoices (id int PRIMARY KEY, amount numeric);
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200);
    ALTER TABLE orders OWNER TO orders_app;
    ALTER TABLE parts OWNER TO orders_app;
    ALTER TABLE invoices OWNER TO billing_app;
    GRANT ALL ON orders, invoices, parts, parts_low, parts_high TO orders_app, billing_app, stranger;
";

/// A governed shop and the server that governs it.
struct Shop {
    // Dropped in this order: the server goes before its database.
    server: Server,
    cluster: Cluster,
    /// Whom Cadastre connects as.
    role: &'static str,
}

impl Shop {
    /// The shop, with all its tables in `mode`.
    async fn governed(mode: &str) -> Self {
        let shop = Self::ungoverned().await;
        let (status, answer) = shop.apply(&shop.manifest(mode)).await;
        assert_eq!(status, 200, "{answer}");
        shop
    }

    /// The shop before anything is declared.
    async fn ungoverned() -> Self {
        Self::started(&[], &[]).await
    }

    /// The same with more arguments for the server.
    async fn ungoverned_with(args: &[&str]) -> Self {
        Self::started(&[], args).await
    }

    /// The same, its PostgreSQL with more settings.
    async fn with_settings(settings: &[(&str, &str)]) -> Self {
        Self::started(settings, &[]).await
    }

    async fn started(settings: &[(&str, &str)], args: &[&str]) -> Self {
        let quick = [("fsync", "off"), ("full_page_writes", "off")];
        let settings: Vec<_> = quick.iter().chain(settings).copied().collect();
        let cluster = Cluster::with_settings(&settings).await;
        cluster.create_database("registry").await;
        cluster.create_database("shop").await;
        cluster.connect("shop").await.batch_execute(SETUP).await.unwrap();
        let args = [&["--guard-patience", "3s"], args].concat();
        let server = Server::start_with(&cluster.url("registry"), &args).await;
        Self { server, cluster, role: "postgres" }
    }

    /// What [`Shop::governed`] declares.
    fn manifest(&self, mode: &str) -> String {
        format!(
            "apiVersion: cadastre/v1\n{}services:\n  \
             orders: {{ roles: {{ shop: [orders_app] }} }}\n  \
             billing: {{ roles: {{ shop: [billing_app] }} }}\ndatasets:\n  \
             shop.public.orders: {{ owner: orders, mode: {mode} }}\n  \
             shop.public.parts: {{ owner: orders, mode: {mode} }}\n  \
             shop.public.invoices: {{ owner: billing, mode: {mode} }}\n",
            self.source()
        )
    }

    /// The manifest's sources.
    fn source(&self) -> String {
        let url = self.cluster.url_as("shop", self.role);
        format!("sources:\n  shop: {{ url: \"{url}\" }}\n")
    }

    /// Applies a manifest; the status and the answer.
    async fn apply(&self, manifest: &str) -> (u16, String) {
        let request = self
            .server
            .client()
            .post(self.server.at("/v1/manifest/apply"))
            .header("content-type", "application/yaml")
            .body(manifest.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// A token of a service.
    async fn token(&self, service: &str) -> String {
        let query =
            format!("mutation {{ tokenCreate(input: {{ service: \"{service}\" }}) {{ secret }} }}");
        let request = self.server.client().post(self.server.at("/graphql"));
        let response = request.json(&json!({ "query": query })).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        answer["data"]["tokenCreate"]["secret"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// A session of `role` in the shop.
    async fn session(&self, role: &str) -> Client {
        self.cluster.connect_as("shop", role).await
    }

    /// The data of a GraphQL query.
    async fn ask(&self, query: &str) -> Value {
        let request = self.server.client().post(self.server.at("/graphql"));
        let response = request.json(&json!({ "query": query })).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["errors"], Value::Null, "{query}");
        answer["data"].clone()
    }

    /// Every violation so far, oldest first, once there are at least `count`: verdict, operation,
    /// dataset, service, role.
    async fn violations(&self, count: usize) -> Vec<[String; 5]> {
        let query = "{ violations(first: 100) { nodes {
            verdict operation datasetName serviceName role } } }";
        eventually(WAIT, async || {
            let answer = self.ask(query).await;
            let nodes = answer["violations"]["nodes"].as_array().unwrap();
            let text =
                |node: &Value, name: &str| node[name].as_str().unwrap_or("-").to_ascii_lowercase();
            let mut found: Vec<[String; 5]> = nodes
                .iter()
                .map(|node| {
                    ["verdict", "operation", "datasetName", "serviceName", "role"]
                        .map(|name| text(node, name))
                })
                .collect();
            found.reverse();
            (found.len() >= count).then_some(found)
        })
        .await
    }

    /// The first `count` changes of a dataset, from the beginning.
    async fn changes(&self, dataset: &str, count: usize) -> Vec<Value> {
        let url = format!("/v1/feed?datasets={dataset}&after=earliest");
        let request = self.server.client().get(self.server.at(&url));
        let response = request.header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut response = response;
        let (mut text, mut changes) = (String::new(), Vec::new());
        while changes.len() < count {
            let bytes = tokio::time::timeout(WAIT, response.chunk()).await;
            let bytes = bytes.expect("changes arrive in time").unwrap().expect("the feed goes on");
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let lines: String = text.drain(..whole).collect();
            let lines = lines.lines().filter(|line| !line.is_empty());
            changes.extend(lines.map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        changes
    }
}

/// `server_version_num`.
async fn version(client: &Client) -> i32 {
    let sql = "SELECT current_setting('server_version_num')::int";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The SQLSTATE and message of a statement that must fail.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (String, String) {
    let error = outcome.unwrap_err();
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

/// Asserts that the guard, not PostgreSQL's own privileges, rejected a statement.
#[track_caller]
fn rejected<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) {
    let (code, message) = refused(outcome);
    assert_eq!(code, "42501", "{what}: {message}");
    assert!(message.starts_with("cadastre: "), "{what}: {message}");
}

/// Everything in a catalog that Cadastre touches, as text that is the same for the same state:
/// triggers, functions, event triggers, roles and members, privileges, publications and slots.
const CATALOG: &str = "
    SELECT format('trigger %s on %s %s: %s', t.tgname, t.tgrelid::regclass, t.tgenabled, pg_get_triggerdef(t.oid))
      FROM pg_trigger t WHERE NOT t.tgisinternal
    UNION ALL SELECT format('function %s %s: %s', p.oid::regprocedure, p.proowner::regrole, md5(pg_get_functiondef(p.oid)))
      FROM pg_proc p WHERE p.pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    UNION ALL SELECT format('privilege on %s: %s %s', p.oid::regprocedure,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type)
      FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      WHERE p.proname = 'pg_logical_emit_message' OR p.pronamespace = to_regnamespace('cadastre')
    UNION ALL SELECT format('privilege on %s: %s %s by %s', c.oid::regclass,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type, a.grantor::regrole)
      FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
      WHERE c.relkind IN ('r', 'p') AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    UNION ALL SELECT format('schema %s %s %s', n.nspname, n.nspowner::regrole, n.nspacl)
      FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast_)?temp'
    UNION ALL SELECT format('event trigger %s %s %s', e.evtname, e.evtevent, e.evtenabled) FROM pg_event_trigger e
    UNION ALL SELECT format('role %s %s %s %s', r.rolname, r.rolsuper, r.rolcanlogin, r.rolinherit) FROM pg_roles r
    UNION ALL SELECT format('member %s of %s', m.member::regrole, m.roleid::regrole) FROM pg_auth_members m
    UNION ALL SELECT format('publication %s %s %s', p.pubname, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
        p.pubviaroot) FROM pg_publication p
    UNION ALL SELECT format('published %s in %s', r.prrelid::regclass, p.pubname)
      FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    UNION ALL SELECT format('slot %s', s.slot_name) FROM pg_replication_slots s
    ORDER BY 1";

impl Shop {
    /// What stands in the shop's catalog.
    async fn catalog(&self) -> Vec<String> {
        let rows = self.cluster.connect("shop").await.query(CATALOG, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}
