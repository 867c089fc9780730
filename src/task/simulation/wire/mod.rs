//! What is between two sidecars: our own engine over connections that are made up.
//!
//! ```text
//!   home --> End ==== cable ====> driver --> exchange --> driver --> pipe --> End --> executor
//!            client   (faults)    transport's, h2's                           server
//! ```
//!
//! | file | what |
//! |---|---|
//! | `cable` | bytes each way, late, in pieces, or not at all |
//! | `end` | an end that speaks for itself: an engine's connection and its calls |
//! | `talk` | one call: messages at the pace of its reader |
//! | `words` | gRPC's fields and statuses |
//! | `said` | what was sent, for what is heard to be held against |
//! | `door` | the executor's side: exchange, pipe, services |
//! | `way` | the home's side: connections and calls to all others |

mod cable;
mod door;
mod end;
mod said;
mod talk;
mod way;
mod words;

use crate::h2::connection::Config;
use crate::h2::frame::ErrorCode;

use super::World;

pub(super) use self::cable::{Cable, Socket};
pub(super) use self::door::Door;
pub(super) use self::said::Said;
pub(super) use self::way::Way;
pub(super) use self::words::unreachable;

/// A connection between sidecars, as the real ones are run; its windows are small, so that messages
/// wait for them.
fn peer(world: &World, config: Config) -> Config {
    Config {
        stream_window: world.roll(200..4000),
        connection_window: 65_535,
        ..config
    }
}

/// Whether a connection ended because something took too long, which no rule forbids.
fn is_slow(code: ErrorCode, what: &str) -> bool {
    match code {
        ErrorCode::NoError | ErrorCode::SettingsTimeout => true,
        ErrorCode::EnhanceYourCalm => what.contains("time") || what.contains("too long"),
        _ => false,
    }
}
