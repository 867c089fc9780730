//! How a breach of the framing rules is answered: RFC 9113, section 5.4.

use thiserror::Error;

use super::ErrorCode;

/// A frame that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{code}: {what}")]
pub struct Error {
    /// What the peer is told.
    pub code: ErrorCode,
    /// What ends because of it.
    pub scope: Scope,
    /// The rule that was broken, for the log and for GOAWAY's debug data.
    pub what: &'static str,
}

/// What ends because of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole connection, by GOAWAY.
    Connection,
    /// This stream only, by RST_STREAM.
    Stream(u32),
}

impl Error {
    /// An error that ends the connection.
    #[must_use]
    pub const fn connection(code: ErrorCode, what: &'static str) -> Self {
        Self {
            code,
            scope: Scope::Connection,
            what,
        }
    }

    /// An error that ends one stream. On stream 0 there is only the connection to end.
    #[must_use]
    pub const fn stream(stream: u32, code: ErrorCode, what: &'static str) -> Self {
        let scope = match stream {
            0 => Scope::Connection,
            id => Scope::Stream(id),
        };
        Self { code, scope, what }
    }
}
