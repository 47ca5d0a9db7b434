//! Follows a dataset from Rust, with `reqwest` and `tokio`.
//!
//! ```text
//! CADASTRE_URL=http://localhost:7400 CADASTRE_TOKEN=… \
//!     cargo run --example follow -- shop.public.orders position.txt
//! ```
//!
//! The first run begins with the rows as they are, a later one after the position in the file.
//! Whatever is cut (this program, the network, the server), it goes on where it was.

#![expect(clippy::print_stdout, reason = "its output is what it has handled")]

use std::error::Error;
use std::time::Duration;
use std::{env, fs, io};

use futures::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::Value;

/// The feed breaks every silence after ten seconds: a connection silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// Between two connections.
const PAUSE: Duration = Duration::from_secs(1);

/// Where to go on, and where that is kept.
struct Place {
    /// Holds the position.
    file: String,
    /// That of the last event that was handled.
    position: String,
}

impl Place {
    /// Where the last run was, or the rows as they are.
    fn load(file: String) -> Self {
        let position = fs::read_to_string(&file).unwrap_or_else(|_| "snapshot".to_owned());
        Self { file, position }
    }

    /// So that a crash leaves the old one or the new one.
    fn keep(&mut self, position: &str) -> io::Result<()> {
        position.clone_into(&mut self.position);
        let new = format!("{}.new", self.file);
        fs::write(&new, position)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(new, &self.file)
    }
}

/// What is to be done with an event. It may come again after a crash: recognise it by its position.
fn handle(event: &Value) {
    println!("{event}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One process chooses its cryptography once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut args = env::args().skip(1);
    let (Some(dataset), Some(file)) = (args.next(), args.next()) else {
        return Err("expected a dataset and a file for the position".into());
    };
    let (url, token) = (env::var("CADASTRE_URL")?, env::var("CADASTRE_TOKEN")?);
    let client = Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build()?;
    let mut place = Place::load(file);
    loop {
        let feed = format!("{url}/v1/feed?datasets={dataset}&after={}", place.position);
        let request = client.get(feed).bearer_auth(&token).header("accept", "application/x-ndjson");
        // Who is not reached now is reached later.
        if let Ok(response) = request.send().await {
            match response.status() {
                StatusCode::OK => read(response, &mut place).await?,
                // The log does not go back that far any more.
                StatusCode::GONE => "snapshot".clone_into(&mut place.position),
                status if status.is_server_error() => {}
                status => return Err(format!("{status}: {}", response.text().await?).into()),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Handles events until the connection ends.
async fn read(response: reqwest::Response, place: &mut Place) -> Result<(), Box<dyn Error>> {
    let mut pieces = response.bytes_stream();
    let mut text = Vec::new();
    while let Some(Ok(piece)) = pieces.next().await {
        text.extend_from_slice(&piece);
        // A line that is cut in the middle comes again.
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { continue };
        let rest = text.split_off(end + 1);
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line)?;
            if let Some(error) = event.get("error") {
                if error["status"] == 410 {
                    "snapshot".clone_into(&mut place.position);
                }
                return Ok(());
            }
            handle(&event);
            place.keep(event["position"].as_str().ok_or("an event without a position")?)?;
        }
        text = rest;
    }
    Ok(())
}
