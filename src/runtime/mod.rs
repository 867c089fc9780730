//! The only place that spawns. Every task has a nursery, every nursery ends.

pub mod backoff;
pub mod chance;
pub mod clock;
pub mod files;
pub mod metronome;
pub mod nursery;
pub mod threads;
pub mod watch;

pub use backoff::Backoff;
pub use metronome::Metronome;
pub use nursery::{Nursery, Stop};
pub use threads::DataThreads;
