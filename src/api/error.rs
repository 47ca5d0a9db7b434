//! Why the server did not come up.

use std::io;

/// Why the server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
}
