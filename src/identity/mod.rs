//! Who members are and how they prove it: the CA, joining and renewal, TLS, and the door.
//!
//! The one URI SAN of a certificate is the only source of identity; a common name or metadata
//! never is. Opens no sockets: channels and connections are handed in.

pub mod authority;
pub mod authorize;
pub mod certificate;
pub mod credentials;
pub mod csr;
pub mod enrollment;
mod files;
#[cfg(test)]
mod fixture;
pub mod join;
pub mod ledger;
pub mod peer;
pub mod renewal;
pub mod revocation;
pub mod service;
pub mod shutting;
pub mod svid;
pub mod token;
mod told;
mod verify;

pub use authority::{Authority, AuthorityError, Names, Overlap};
pub use authorize::{Action, authorize, may_see_task};
pub use credentials::{Credentials, Expect, joining_config};
pub use csr::{Draft, PublicKey};
pub use enrollment::EnrollmentService;
pub use files::{FileError, write_secret};
pub use ledger::{Ledger, LedgerError, MemoryLedger};
pub use peer::{Caller, Connection, EXPORTER_LABEL, Peer, exporter};
pub use renewal::{Counted, Due, OwnSigner, Renewer, keep_renewed, renewal_due};
pub use revocation::{Revocation, Revocations, Revoked};
pub use service::IdentityService;
pub use shutting::Shutting;
pub use svid::{Svid, SvidError};
pub use token::{JoinString, Token, create_join_token};
pub use verify::Mismatch;
