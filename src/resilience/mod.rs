//! Which instance gets the next call, which gets none for a while, and what may be tried again.
//!
//! Pure: no socket, no task, no clock. Time and chance come in as arguments, so that tables and
//! simulations drive the very code that carries calls. Callers hold three things:
//!
//! ```text
//!   Set (who fits a request) --pick--> Permit (one call) --finish--> Endpoint (what is known of one)
//!   Budget (how many calls may be second tries), Injection (faults on purpose)
//! ```
//!
//! An [`Endpoint`] is one instance as seen from here, shared by every set that it is in and by every
//! thread: its calls, latency by [`Kind`] of work, breaker. A [`Set`] draws two of those that may be called and takes the
//! cheaper one. A [`Permit`] lives as long as its call and tells the endpoint how it went, also when
//! it is only dropped.

mod breaker;
mod budget;
mod cost;
mod endpoint;
mod epoch;
mod ewma;
mod injection;
mod outcome;
mod pace;
mod permit;
mod retry;
mod set;
mod settings;
mod tally;
mod view;
mod window;

pub use breaker::{Trip, Turn};
pub use budget::Budget;
pub use endpoint::{Endpoint, Phase, Sight};
pub use epoch::Epoch;
pub use injection::{Abort, Delay, Injected, Injection};
pub use outcome::Outcome;
pub use pace::Kind;
pub use permit::Permit;
pub use retry::{Failed, Progress, Pushback, Safety, backoff, retry_after};
pub use set::{Ask, Member, Pick, Set};
pub use settings::{BalanceSettings, BreakerSettings, RetrySettings, Settings};
pub use tally::Counts;
