//! Who is on the other end of a connection: what handlers read from a request's extensions.
//!
//! Made once per connection from the verified certificate, never from metadata.

use std::{fmt, net::SocketAddr, sync::Arc, time::SystemTime};

use rustls::ConnectionCommon;

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;

/// Label of the TLS exporter (RFC 9266 section 2 has the idea) that binds a rejoin to one connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-attache-rejoin-v1";

/// A member as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The one URI SAN.
    pub id: SpiffeId,
    /// The instance that the certificate signs, if any.
    pub instance: Option<InstanceId>,
    /// Start of the certificate's life, backdated by 60 s.
    pub not_before: SystemTime,
    /// End of the certificate's life: the connection ends with it.
    pub not_after: SystemTime,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate's public key (SPKI).
    pub key: [u8; 32],
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A member, by mutual TLS.
    Member(Arc<Peer>),
    /// The sidecar's own agent, on its local listener.
    Local,
    /// Nobody yet: the enrolment listener.
    Anonymous,
}

/// As lines of the log have it: a SPIFFE id, `local` or `anonymous`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(peer) => peer.id.fmt(f),
            Self::Local => f.write_str("local"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// The connection that a request came by. In every request's extensions as `Arc<Connection>`.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who calls.
    pub caller: Caller,
    /// The other end's address; none on a Unix socket.
    pub remote: Option<SocketAddr>,
    /// Our address that the other end reached; none on a Unix socket.
    pub local: Option<SocketAddr>,
    /// Keying material that only the two ends of this TLS connection know.
    pub exporter: Option<[u8; 32]>,
}

impl Connection {
    /// The connection of a request.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` where the transport has put none: such a request has no identity.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Fault> {
        let found = request.extensions().get::<Arc<Self>>();
        found.cloned().ok_or_else(|| {
            Fault::new(
                Reason::Unauthenticated,
                "the call came without a verified connection",
            )
        })
    }

    /// The member on the other end.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` on listeners that ask for no certificate.
    pub fn member(&self) -> Result<&Arc<Peer>, Fault> {
        match &self.caller {
            Caller::Member(peer) => Ok(peer),
            Caller::Local | Caller::Anonymous => Err(Fault::new(
                Reason::Unauthenticated,
                "this call needs a member's certificate: use the mutual TLS listener",
            )),
        }
    }
}

/// The exporter of a TLS connection whose handshake is done; `None` before that.
pub fn exporter<Side>(tls: &ConnectionCommon<Side>) -> Option<[u8; 32]> {
    tls.export_keying_material([0; 32], EXPORTER_LABEL, None)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Reason;

    #[test]
    fn a_request_without_a_connection_is_nobodys() {
        let mut request = tonic::Request::new(());
        assert_eq!(
            Connection::of(&request).unwrap_err().reason,
            Reason::Unauthenticated
        );
        for caller in [Caller::Local, Caller::Anonymous] {
            let connection = Connection {
                caller,
                remote: None,
                local: None,
                exporter: None,
            };
            request.extensions_mut().insert(Arc::new(connection));
            let found = Connection::of(&request).unwrap();
            assert_eq!(found.member().unwrap_err().reason, Reason::Unauthenticated);
        }
    }
}
