//! The catalog: who is here, what they can do, and how everybody learns of it.
//!
//! `service` answers over gRPC, `engine` holds what members write, `storage` keeps it; `catalog`,
//! `query`, `card` and `lease` are pure. `client` is what a sidecar uses of it.

pub mod card;
pub mod catalog;
pub mod client;
mod digest;
mod endpoint;
pub mod engine;
pub mod lease;
pub mod live;
pub mod page;
mod places;
mod promises;
pub mod query;
pub mod reads;
pub mod rules;
pub mod service;
pub mod sight;
pub mod storage;
pub mod watch;

#[cfg(test)]
pub(crate) mod fixture;

pub use card::{Door, Who};
pub use catalog::{Catalog, Entry, Revision};
pub use engine::Engine;
pub use query::Query;
pub use service::RegistryService;
pub use sight::Sight;
