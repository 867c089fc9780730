//! Why a process cannot start, in words that say what to do.

use crate::{
    admin::AdminError,
    config::ConfigError,
    identity::{AuthorityError, LedgerError, SvidError},
    transport::TransportError,
};

/// A start that failed. Fatal: nothing goes on half started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value of the configuration is wrong.
    #[error("{key}: {text}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what would be right.
        text: String,
    },
    /// An entry of a list in the configuration is wrong.
    #[error("{key}: {text}")]
    Entry {
        /// The key, with its place.
        key: String,
        /// What is wrong and what would be right.
        text: String,
    },
    /// There is no CA.
    #[error("no certificate authority in {dir}: make one with `attache ca init --dir {dir}`")]
    NoAuthority {
        /// Where it was looked for.
        dir: String,
    },
    /// The CA cannot be used.
    #[error("the certificate authority cannot be used: {0}")]
    Authority(#[from] AuthorityError),
    /// A certificate cannot be used.
    #[error("the certificate cannot be used: {0}")]
    Svid(#[from] SvidError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The admin listener cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The list of who is shut out cannot be read: nobody is let in without it.
    #[error("the list of revocations cannot be read: {0}")]
    Ledger(LedgerError),
    /// The catalog's database cannot be opened.
    #[error(
        "the catalog's database in {dir} cannot be used: {text}; does another registry run on it?"
    )]
    Store {
        /// Its directory.
        dir: String,
        /// Why.
        text: String,
    },
    /// A thread or a file is not to be had.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The sidecar cannot start.
    #[error(transparent)]
    Sidecar(#[from] crate::sidecar::SidecarError),
}

impl StartError {
    pub(super) fn value(key: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Value {
            key,
            text: error.to_string(),
        }
    }

    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
