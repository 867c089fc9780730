//! `attache up`: a whole mesh on one machine from one file.

pub mod build;
pub mod child;
pub mod error;
mod jobs;
pub mod leftovers;
pub mod local;
pub mod mesh;
pub mod operator;
mod places;
mod probe;
pub mod roles;
pub mod state;

pub use error::UpError;
pub use local::{LocalMesh, ends_within};
pub use mesh::Mesh;
pub use state::State;
