//! Frames about the connection: SETTINGS, PING, GOAWAY, WINDOW_UPDATE.

use tokio::time::Instant;

use super::{
    Connection, Event, Role, TABLE, broken,
    lifetime::{Asked, Leaving},
    streams::Whereabouts,
};
use crate::h2::{
    budget::Cost,
    frame::{self, ErrorCode, Setting, Settings, write},
    slab::Key,
};

impl Connection {
    pub(super) fn settings(
        &mut self,
        settings: Settings<'_>,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        self.spend(Cost::Settings, now)?;
        let before = self.peer.initial_window;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the others bind nobody here"
        )]
        for setting in settings {
            match setting {
                Setting::HeaderTableSize(size) => {
                    self.encoder.set_table_max(size.min(TABLE));
                }
                Setting::EnablePush(true) if self.role() == Role::Client => {
                    return Err(broken(ErrorCode::Protocol, "a server cannot be pushed to"));
                }
                Setting::MaxConcurrentStreams(most) => self.peer.max_streams = most,
                Setting::InitialWindowSize(size) => self.peer.initial_window = size,
                // Larger frames than everybody takes would only wait longer for each other.
                _ => {}
            }
        }
        self.peer.greeted = true;
        write::settings_ack(&mut self.out);
        let change = i64::from(self.peer.initial_window) - i64::from(before);
        if change != 0 {
            for stream in self.streams.values_mut() {
                stream.send.shift(change).map_err(|_| {
                    let what = "SETTINGS_INITIAL_WINDOW_SIZE lifts a window above 2^31-1";
                    broken(ErrorCode::FlowControl, what)
                })?;
            }
        }
        Ok(Event::Changed)
    }

    pub(super) fn ping(
        &mut self,
        ack: bool,
        opaque: [u8; 8],
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        if ack {
            // That anything came at all has answered whether the peer is alive.
            if Asked::of(opaque) == Some(Asked::Drained) {
                self.hold_drain(now);
            }
        } else {
            self.spend(Cost::Ping, now)?;
            write::ping(&mut self.out, true, opaque);
        }
        Ok(Event::Quiet)
    }

    /// The peer takes no more streams; what is open goes on.
    pub(super) fn goaway(&mut self, last: u32, code: ErrorCode) -> Event<'static> {
        if self.leaving != Leaving::Over {
            self.leaving = Leaving::Last;
        }
        match self.role() {
            Role::Server => Event::Quiet,
            Role::Client => Event::GoAway { last, code },
        }
    }

    /// Gives up all streams of ours above `last`, which the peer says it has not looked at: their
    /// calls can be sent again on another connection.
    pub fn take_unprocessed(&mut self, last: u32) -> Vec<Key> {
        let streams: Vec<Key> = self.streams.above(last).collect();
        let gone = streams
            .into_iter()
            .filter_map(|key| self.streams.remove(key));
        gone.filter_map(|stream| stream.call).collect()
    }

    pub(super) fn window_update(
        &mut self,
        id: u32,
        increment: u32,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        self.spend(Cost::WindowUpdate, now)?;
        let what = "a flow control window above 2^31-1";
        if id == 0 {
            let widened = self.send.widen(increment);
            widened.map_err(|_| broken(ErrorCode::FlowControl, what))?;
            return Ok(Event::Eased);
        }
        match self.streams.find(id) {
            Whereabouts::Open(key) => {
                let Some(stream) = self.streams.get_mut(key) else {
                    return Ok(Event::Quiet);
                };
                let widened = stream.send.widen(increment);
                widened.map_err(|_| frame::Error::stream(id, ErrorCode::FlowControl, what))?;
                let call = stream.call;
                Ok(call.map_or(Event::Quiet, |call| Event::Widened { call }))
            }
            Whereabouts::Idle => {
                let what = "WINDOW_UPDATE on a stream that was never opened";
                Err(broken(ErrorCode::Protocol, what))
            }
            Whereabouts::Reset | Whereabouts::Ended => Ok(Event::Quiet),
        }
    }
}
