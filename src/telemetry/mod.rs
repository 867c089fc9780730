//! What is seen from outside: crosses every component and knows none of them.

pub mod call;
pub mod metrics;
