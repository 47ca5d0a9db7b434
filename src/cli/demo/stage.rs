//! What the story needs: a private PostgreSQL with a shop in it, two services, a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::super::client::{Client, ClientOptions};
use super::super::error::Error;
use crate::app::{self, App};
use crate::config::{
    CaptureOptions, DeliveryOptions, HttpOptions, LogOptions, PostgresOptions, SnapshotOptions,
};
use crate::embedded::{self, PrivatePostgres};
use crate::pg::{Connection, Target};

/// The registry's database.
const REGISTRY: &str = "cadastre";

/// The governed database.
const SHOP: &str = "shop";

/// The shop as it stood before anybody thought of ownership: both services are members of the role
/// that owns every table. Can run again on a directory that was kept.
const SETUP: &str = "
    DO $$ BEGIN
        CREATE ROLE shop_tables NOLOGIN;
        CREATE ROLE orders_app LOGIN IN ROLE shop_tables;
        CREATE ROLE billing_app LOGIN IN ROLE shop_tables;
    EXCEPTION WHEN duplicate_object THEN NULL; END $$;
    CREATE TABLE IF NOT EXISTS orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL, status text NOT NULL);
    CREATE TABLE IF NOT EXISTS invoices (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount numeric NOT NULL);
    ALTER TABLE orders OWNER TO shop_tables;
    ALTER TABLE invoices OWNER TO shop_tables;
";

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is a temporary file all the same.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that runs. Dropped in the order of its fields: PostgreSQL before its files.
pub(super) struct Stage {
    /// The registry's database and what the server needs besides; the port as picked.
    options: app::Options,
    app: Option<App>,
    client: Client,
    /// A session of the service orders.
    pub(super) orders: Connection,
    /// A session of the service billing.
    pub(super) billing: Connection,
    postgres: PrivatePostgres,
    data_dir: PathBuf,
    _scratch: Option<Scratch>,
}

impl Stage {
    /// Starts PostgreSQL, makes the shop, starts the server.
    pub(super) async fn build(
        data_dir: Option<PathBuf>,
        listen: &str,
        bin_dir: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let (data_dir, scratch) = match data_dir {
            Some(dir) => (dir, None),
            None => {
                let name = format!("cadastre-demo-{:08x}", rand::random::<u32>());
                let dir = std::env::temp_dir().join(name);
                (dir.clone(), Some(Scratch(dir)))
            }
        };
        let postgres = PrivatePostgres::start(embedded::Options {
            data_dir: data_dir.clone(),
            bin_dir,
            port: None,
            settings: Vec::new(),
        })
        .await?;
        postgres.create_database(REGISTRY).await?;
        postgres.create_database(SHOP).await?;
        let shop = Target::parse(&postgres.url(SHOP))?;
        let waits = PostgresOptions::default();
        let admin = shop.connect("demo", &waits).await?;
        admin.batch_execute(SETUP).await.map_err(crate::pg::Error::from)?;
        let session = async |service, role| {
            shop.with_user(role, None).connect(service, &waits).await.map_err(Error::Database)
        };
        let (orders, billing) =
            (session("orders", "orders_app").await?, session("billing", "billing_app").await?);
        let mut options = app::Options {
            database_url: Some(SecretString::from(postgres.url(REGISTRY))),
            data_dir: data_dir.clone(),
            database_wait: Duration::ZERO,
            postgres_bin: None,
            postgres_port: None,
            gateway_logins: Vec::new(),
            admin_token: None,
            secrets_key: None,
            http: HttpOptions { listen: listen.to_owned(), ..HttpOptions::default() },
            postgres: waits,
            capture: CaptureOptions::default(),
            log: LogOptions::default(),
            delivery: DeliveryOptions::default(),
            snapshot: SnapshotOptions::default(),
        };
        let app = App::start(options.clone()).await?;
        options.http.listen = app.addr().to_string();
        let client = Client::new(&ClientOptions::local(app.addr(), &data_dir)?)?;
        Ok(Self {
            options,
            app: Some(app),
            client,
            orders,
            billing,
            postgres,
            data_dir,
            _scratch: scratch,
        })
    }

    /// A client of the server's HTTP interface.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The connection string of the shop, for the manifest.
    pub(super) fn shop_url(&self) -> String {
        self.postgres.url(SHOP)
    }

    /// Stops the server; PostgreSQL goes on.
    pub(super) async fn stop_server(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop().await;
        }
    }

    /// Starts the server again where it was.
    pub(super) async fn start_server(&mut self) -> Result<(), Error> {
        self.app = Some(App::start(self.options.clone()).await?);
        Ok(())
    }

    /// Stops everything and removes what is temporary.
    pub(super) async fn clear(mut self) {
        self.stop_server().await;
        if let Err(error) = self.postgres.stop().await {
            eprintln!("cadastre: {}", crate::telemetry::ErrorChain(&error));
        }
    }

    /// What to try next.
    pub(super) fn invitation(&self) -> String {
        let url = format!("http://{}", self.options.http.listen);
        let dir = absolute(&self.data_dir);
        let dir = dir.display();
        let shop = |role: &str| {
            let host = self.postgres.socket_dir().display();
            format!("psql 'postgresql://{role}@/{SHOP}?host={host}'")
        };
        format!(
            "\nCadastre serves at {url} until Ctrl-C. In another terminal:\n\n\
             export CADASTRE_URL={url} CADASTRE_DATA_DIR={dir}\n\
             cadastre owner shop.public.orders\n\
             cadastre check billing shop.public.orders\n\
             cadastre tail shop.public.orders --after earliest\n\
             cadastre doctor shop\n\
             curl -N -H \"Authorization: Bearer $(cat {dir}/admin-token)\" \\\n    \
             '{url}/v1/feed?datasets=shop.public.orders&after=earliest'\n\
             {}    # the owner: INSERT INTO orders (item, status) VALUES ('tea', 'open');\n\
             {}   # the intruder: the same\n",
            shop("orders_app"),
            shop("billing_app"),
        )
    }
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
