//! What can go wrong between sockets, and what to do about each. Nothing here names a secret.

use std::{io, path::PathBuf};

use crate::domain::Fault;
use crate::domain::Reason;

/// Why a listener cannot be opened. Each text names the address and the cause.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The text is no address.
    #[error(
        "`{address}` is no address to listen on: {why}; write `host:port`, `[::]:port` or `unix:/path`"
    )]
    Address {
        /// As it was written.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else listens there.
    #[error(
        "port {port} of {address} is taken by another process: {source}; stop that process or set another `listen` address"
    )]
    Taken {
        /// As it was written.
        address: String,
        /// Its port.
        port: u16,
        /// The system's word.
        source: io::Error,
    },
    /// The system refuses the address for another reason.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// As it was written.
        address: String,
        /// The system's word.
        source: io::Error,
    },
    /// Another process holds the lock beside the socket.
    #[error(
        "{} is in use by another process, which holds {}.lock; stop it or choose another socket", .0.display(), .0.display()
    )]
    SocketHeld(PathBuf),
    /// A file that is no socket is in the way.
    #[error("{} exists and is no socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// A listener without authentication would be open to the network.
    #[error(
        "{0} is not a loopback address; this listener has no authentication, so it is for this machine only"
    )]
    NotLoopback(String),
}

/// Why no connection could be made to one endpoint. No byte of a request was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody answers, or the way there is broken.
    #[error("{endpoint}: {why}")]
    Unreachable {
        /// Where to.
        endpoint: String,
        /// The cause.
        why: String,
    },
    /// Somebody else answers.
    #[error("{endpoint}: {why}")]
    Mismatch {
        /// Where to.
        endpoint: String,
        /// Whom we expected and whom we met.
        why: String,
    },
    /// The peer does not take our certificate.
    #[error(
        "{endpoint} refused our certificate ({why}); is it expired, revoked, or of another mesh?"
    )]
    Refused {
        /// Where to.
        endpoint: String,
        /// The TLS alert.
        why: String,
    },
    /// The target names no endpoint.
    #[error("the peer advertises no endpoint")]
    NoEndpoint,
}

/// One fault for all endpoints of a target that were tried, in their order.
pub(super) fn fault_of(tried: &[DialError]) -> Fault {
    let texts: Vec<String> = tried.iter().map(ToString::to_string).collect();
    let mismatch = tried
        .iter()
        .any(|error| matches!(error, DialError::Mismatch { .. }));
    let refused = tried
        .iter()
        .any(|error| matches!(error, DialError::Refused { .. }));
    let text = texts.join("; ");
    if mismatch {
        let text = format!("the peer is not who it should be, nothing was sent: {text}");
        return Fault::new(Reason::PeerMismatch, text);
    }
    let fault = Fault::new(
        Reason::PeerUnreachable,
        format!("cannot reach the peer, nothing was sent: {text}"),
    );
    if refused {
        fault.with("cause", "certificate_refused")
    } else {
        fault
    }
}
