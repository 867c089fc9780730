//! `attache up`: a whole mesh on one machine from one file.

pub mod mesh;

pub use mesh::Mesh;
