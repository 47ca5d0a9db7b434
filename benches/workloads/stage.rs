//! What every workload stands on: a private PostgreSQL with a governed database, and the binary.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cadastre::config::PostgresOptions;
use cadastre::embedded::{Options, PrivatePostgres};
use cadastre::pg::{Connection, Target};

/// The token of the server under test.
pub(crate) const TOKEN: &str = "cad_bench";

/// A PostgreSQL of its own, with databases `registry` and `shop`.
pub(crate) struct Stage {
    postgres: PrivatePostgres,
    /// Holds the cluster and the server's data.
    pub(crate) directory: tempfile::TempDir,
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Its base URL.
    pub(crate) url: String,
}

impl Stage {
    /// Starts PostgreSQL and makes `shop` with `tables`.
    pub(crate) async fn set(tables: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let postgres = PrivatePostgres::start(Options {
            data_dir: directory.path().to_path_buf(),
            bin_dir: None,
            port: None,
            settings: vec![
                ("shared_buffers".to_owned(), "256MB".to_owned()),
                ("max_wal_size".to_owned(), "8GB".to_owned()),
            ],
        })
        .await
        .expect("PostgreSQL starts");
        for database in ["registry", "shop"] {
            postgres.create_database(database).await.expect("a database");
        }
        let stage = Self { postgres, directory };
        stage.shop().await.batch_execute(tables).await.expect("tables");
        stage
    }

    /// Connection string of a database, as superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// A superuser's connection to `shop`, without a deadline on statements.
    pub(crate) async fn shop(&self) -> Connection {
        let target = Target::parse(&self.url("shop")).expect("a connection string");
        let options =
            PostgresOptions { statement_timeout: Duration::ZERO, ..PostgresOptions::default() };
        target.connect("bench", &options).await.expect("a connection")
    }

    /// One of PostgreSQL's programs, run as any client would. Debian keeps a few elsewhere.
    pub(crate) fn program(&self, name: &str) -> Command {
        let beside = self.postgres.bin_dir().join(name);
        Command::new(if beside.exists() { beside } else { Path::new(name).to_path_buf() })
    }

    /// Starts the server and returns once it serves.
    pub(crate) fn serve(&self) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cadastre"))
            .args(["up", "--listen", "127.0.0.1:0", "--database-url", &self.url("registry")])
            .arg("--data-dir")
            .arg(self.directory.path().join("server"))
            .env("CADASTRE_ADMIN_TOKEN", TOKEN)
            .env("CADASTRE_LOG", "warn")
            .env("CADASTRE_WEBHOOK_ALLOW", "127.0.0.1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut url).expect("the server says where it listens");
        Server { child, url: url.trim().to_owned() }
    }

    /// Declares `shop` with these tables of schema `public` owned by service `orders`.
    pub(crate) async fn govern(&self, server: &Server, tables: &[&str]) {
        let datasets: String = tables
            .iter()
            .map(|table| format!("  shop.public.{table}: {{ owner: orders, mode: enforce }}\n"))
            .collect();
        let manifest = format!(
            "apiVersion: cadastre/v1\nsources:\n  shop: {{ url: \"{}\" }}\nservices:\n  \
             orders: {{ roles: {{ shop: [orders_app] }} }}\ndatasets:\n{datasets}",
            self.url("shop")
        );
        let response = reqwest::Client::new()
            .post(format!("{}/v1/manifest/apply", server.url))
            .bearer_auth(TOKEN)
            .header("content-type", "application/yaml")
            .body(manifest)
            .send()
            .await
            .expect("the server answers");
        let (status, body) = (response.status(), response.text().await.unwrap_or_default());
        assert!(status.is_success(), "{status}: {body}");
    }
}

impl Server {
    /// Memory that it has resident, in KiB, as Linux tells.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_default()
    }

    /// Opens a feed.
    pub(crate) async fn feed(&self, accept: &str, query: &str) -> reqwest::Response {
        let response = reqwest::Client::new()
            .get(format!("{}/v1/feed?{query}", self.url))
            .bearer_auth(TOKEN)
            .header("accept", accept)
            .send()
            .await
            .expect("the server answers");
        assert!(response.status().is_success(), "{}", response.status());
        response
    }
}

impl Server {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in good order.
    pub(crate) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it still runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
