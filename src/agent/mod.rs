//! For agents in Rust: a few lines make a handler that a sidecar gives tasks to.
//!
//! It speaks plaintext gRPC on loopback or a Unix socket only, as every agent does; identity, the
//! mesh and the task's life are the sidecar's.
//!
//! ```no_run
//! use attache::agent::{self, Task};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), agent::AgentError> {
//!     // Listens on $ATTACHE_LISTEN, calls the sidecar at $ATTACHE_SIDECAR, ends at SIGTERM.
//!     agent::serve(None, |task: Task| async move {
//!         task.progress(0.5, "half way").await;
//!         Ok(agent::text(format!("you said: {}", task.text())))
//!     })
//!     .await
//! }
//! ```

mod attached;
mod callback;
mod channel;
mod failure;
mod question;
mod server;
mod sidecar;
mod socket;
mod task;

pub use attached::Attached;
pub use callback::{tell_agent, tell_url};
pub use channel::Channel;
pub use failure::{Failure, failure};
pub use question::{Answer, Question};
pub use server::{Agent, Handler, serve, serve_attached};
pub use sidecar::Sidecar;
pub use task::{Task, text};
/// What implementations of [`Handler`] for a type of their own need.
pub use tonic::async_trait;

use crate::pb;

/// What the work came to: parts of content, and the artifacts that belong to it.
pub type TaskResult = pb::TaskResult;

/// Why an agent does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A variable that a sidecar's agent is started with is missing.
    #[error("{0} is not set: it is unix:/path or host:port, the same as in the sidecar's settings")]
    Unset(&'static str),
    /// Neither a Unix socket nor an address of this machine.
    #[error("{0:?} is not unix:/path or a loopback host:port: an agent asks nobody who they are")]
    Address(String),
    /// The sidecar does not take it, and will not.
    #[error("the sidecar refuses the agent: {0}")]
    Refused(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// As it was given.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
}
