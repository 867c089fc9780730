//! `attache up`: a whole mesh on one machine from one file.

pub mod build;
pub mod child;
pub mod leftovers;
pub mod mesh;
pub mod state;

pub use mesh::Mesh;
