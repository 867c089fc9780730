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

use std::time::Duration;

use tokio::time::sleep;

use crate::h2::connection::Config;
use crate::h2::frame::ErrorCode;

use super::World;

pub(super) use self::cable::{Cable, Socket};
pub(super) use self::door::Door;
pub(super) use self::said::Said;
pub(super) use self::way::Way;
pub(super) use self::words::unreachable;

/// How often calls are counted, until as many are made as taken.
const LOOKS: usize = 10;
const LOOK: Duration = Duration::from_secs(5);

/// A connection between sidecars, as the real ones are run; its windows are small, so that messages
/// wait for them.
fn peer(world: &World, config: Config) -> Config {
    Config {
        stream_window: world.roll(500..8000),
        connection_window: 65_535,
        ..config
    }
}

/// Whether a connection ended because something took too long, which no rule forbids.
fn is_slow(code: ErrorCode, what: &str) -> bool {
    let late =
        code == ErrorCode::EnhanceYourCalm && (what.contains("time") || what.contains("long"));
    late || matches!(code, ErrorCode::NoError | ErrorCode::SettingsTimeout)
}

/// In calm: calls that nobody has made any more are nowhere, and those that there are, are everywhere.
async fn calls(world: &World) -> (usize, usize, usize) {
    let (mut made, mut passed, mut taken) = (0, 0, 0);
    for node in &world.nodes {
        let life = node.up().await;
        let (through, inside) = life.door.calls();
        made += life.way.calls();
        passed += through;
        taken += inside;
    }
    (made, passed, taken)
}

/// Notes where calls are left over.
pub(super) async fn count(world: &World) {
    let mut seen = Vec::new();
    // Some are on their way at any time.
    for _ in 0..LOOKS {
        let (made, passed, taken) = calls(world).await;
        if made == passed && passed == taken {
            return;
        }
        seen.push((made, passed, taken));
        sleep(LOOK).await;
    }
    let how = format!("E4: calls made, passed on and taken are not as many: {seen:?}");
    world.history.lock().breach(how);
}
