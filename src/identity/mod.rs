//! Who members are and how they prove it: the CA, joining and renewal, TLS, and the door.
//!
//! The one URI SAN of a certificate is the only source of identity; a common name or metadata
//! never is. Opens no sockets: channels and connections are handed in.

pub mod authority;
pub mod authorize;
pub mod certificate;
pub mod credentials;
pub mod csr;
mod files;
pub mod ledger;
pub mod peer;
pub mod svid;
mod verify;

pub use authority::{Authority, AuthorityError, Names};
pub use authorize::{Action, authorize, may_see_task};
pub use credentials::{Credentials, Expect, joining_config};
pub use csr::{Draft, PublicKey};
pub use ledger::{Ledger, LedgerError, MemoryLedger};
pub use peer::{Caller, Connection, EXPORTER_LABEL, Peer, exporter};
pub use svid::{Svid, SvidError};
pub use verify::Mismatch;
