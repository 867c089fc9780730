//! Why a sidecar cannot start or go on.

use crate::{
    admin::AdminError, domain::Fault, identity::SvidError, task::courier::web::TrustError,
    task::journal::JournalError, transport::TransportError,
};

/// A sidecar that cannot start or go on. Fatal.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// It has neither a certificate nor a join string.
    #[error(
        "no certificate in {dir} and no join string: make one with `attache ca token`, then set join_file or ATTACHE_JOIN"
    )]
    NotInvited {
        /// Its state directory.
        dir: String,
    },
    /// The join string cannot be read.
    #[error("the join string cannot be used: {0}")]
    JoinString(String),
    /// The registry refuses it.
    #[error("the registry does not let this sidecar in: {0}")]
    Refused(String),
    /// Its certificate cannot be used.
    #[error("the certificate cannot be used: {0}")]
    Svid(#[from] SvidError),
    /// The certificate names a member that cannot have a sidecar.
    #[error("{0} has no instances: a sidecar belongs to an agent or a service")]
    NoInstance(String),
    /// A listener cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The admin listener cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The journal cannot be used.
    #[error("the journal of tasks cannot be used: {0}")]
    Journal(#[from] JournalError),
    /// The journal's records do not follow each other.
    #[error("the journal of tasks does not make sense: {0}")]
    Records(String),
    /// The journal failed while running: nothing more could be acknowledged.
    #[error(
        "the journal could not be written and nothing more is acknowledged: look at the disk, then start again; what was acknowledged is safe"
    )]
    JournalFailed,
    /// A value of the configuration is wrong.
    #[error("{key}: {text}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what would be right.
        text: String,
    },
    /// Receivers of callbacks cannot be recognised.
    #[error("callbacks.ca_file: {0}")]
    Callbacks(#[from] TrustError),
    /// The agent's card cannot be.
    #[error("{path}: {text}")]
    Card {
        /// Path in the card.
        path: String,
        /// What is wrong with it.
        text: String,
    },
    /// A directory or thread is not to be had.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Something else was refused.
    #[error(transparent)]
    Fault(#[from] Fault),
}
