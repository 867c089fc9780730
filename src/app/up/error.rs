//! Why a local mesh does not come up, with what to look at next.

use std::io;

use super::{build::BuildError, state::StateError};
use crate::{
    config::ConfigError,
    domain::Fault,
    identity::{AuthorityError, SvidError},
};

/// A mesh that did not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// mesh.toml is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// An agent cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The development CA cannot be used.
    #[error("the development CA cannot be used: {0}; `--clean` makes a new one")]
    Authority(#[from] AuthorityError),
    /// The operator's certificate cannot be written.
    #[error("the operator's certificate cannot be kept: {0}")]
    Svid(#[from] SvidError),
    /// The CA is of another trust domain.
    #[error(
        "this state belongs to the trust domain {found}, mesh.toml says {wanted}: put it back, or start over with --clean"
    )]
    OtherDomain {
        /// What the state has.
        found: String,
        /// What mesh.toml says.
        wanted: String,
    },
    /// No port is free.
    #[error("no free port: {0}")]
    NoPort(io::Error),
    /// Our own executable cannot be found.
    #[error("cannot find attache's own executable: {0}")]
    NoProgram(io::Error),
    /// The registry refuses to invite a sidecar.
    #[error("the registry gives no join token: {0}")]
    Invite(Fault),
    /// A process died before it was ready.
    #[error("{name} {how}; {}", said(last_lines))]
    Died {
        /// Its name.
        name: String,
        /// How.
        how: String,
        /// The end of its log.
        last_lines: String,
    },
    /// A process is not ready in time.
    #[error("{name} was not ready within a minute: {why}; {}", said(last_lines))]
    NotReady {
        /// Its name.
        name: String,
        /// What it says is missing.
        why: String,
        /// The end of its log.
        last_lines: String,
    },
}

fn said(last_lines: &str) -> String {
    if last_lines.is_empty() {
        "it said nothing".to_owned()
    } else {
        format!("its last lines:\n{last_lines}")
    }
}
