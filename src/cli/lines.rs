//! An open feed, read as whole lines.

use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::client::Problem;

/// The lines of an NDJSON feed as they come.
pub(crate) struct Lines {
    body: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    pending: Vec<u8>,
}

impl Lines {
    /// Reads this response.
    pub(crate) fn of(response: reqwest::Response) -> Self {
        Self { body: response.bytes_stream().boxed(), pending: Vec::new() }
    }

    /// The next lines, each with its end; `None` when the feed is over. A line that was cut off
    /// with the connection is left out: the next connection brings it again. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let bytes = self.body.next().await?.ok()?;
            self.pending.extend_from_slice(&bytes);
            if let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.pending.len() - (bytes.len() - end - 1);
                let rest = self.pending.split_off(rest);
                return Some(std::mem::replace(&mut self.pending, rest));
            }
        }
    }
}

/// The last line of a feed that failed.
#[derive(Deserialize)]
struct Failure {
    error: Problem,
}

/// Why the feed ends, if that is what this line says.
pub(crate) fn failure(line: &[u8]) -> Option<Problem> {
    if !line.starts_with(b"{\"error\":") {
        return None;
    }
    serde_json::from_slice::<Failure>(line).ok().map(|failure| failure.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_however_they_were_cut() {
        let pieces = ["\n", "{\"a\":", "1}\n{\"b\"", ":2}\n", "{\"c\":3}\n{\"d\":4}\n{\"cut"];
        let body = futures::stream::iter(pieces.map(|piece| Ok(bytes::Bytes::from(piece)))).boxed();
        let mut lines = Lines { body, pending: Vec::new() };
        let mut seen = Vec::new();
        while let Some(block) = lines.next().await {
            seen.push(String::from_utf8(block).unwrap());
        }
        assert_eq!(seen, ["\n", "{\"a\":1}\n", "{\"b\":2}\n", "{\"c\":3}\n{\"d\":4}\n"]);
    }

    #[test]
    fn a_feed_says_why_it_ends() {
        let line = br#"{"error":{"status":410,"code":"position_trimmed","detail":"gone"}}"#;
        assert_eq!(failure(line).unwrap().code, "position_trimmed");
        assert!(failure(br#"{"op":"c"}"#).is_none());
    }
}
