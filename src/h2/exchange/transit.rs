//! DATA: straight into the other side's output, or parked until windows open.
//!
//! What a peer may send is given back in two ways. The stream's window only as bytes leave: so no
//! call holds more than one window. The connection's window at once, as long as all parked bytes
//! together are within bounds: so a slow reader holds up its own stream and no other.

use tokio::time::Instant;

use super::{Exchange, KEPT_MAX, PARKED_MAX, Policy, timing::STALL_PRESSED};
use crate::h2::{
    call::{Call, Ending, Leg, Way},
    connection::Role,
    slab::Key,
};

/// One DATA frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Without padding.
    pub(super) data: &'a [u8],
    /// What it took from the windows.
    pub(super) flow: u32,
    /// Nothing follows.
    pub(super) end: bool,
}

/// What came of trying to send something of a call.
enum Progress {
    /// Something went, and more waits: to the end of the line.
    Moved,
    /// Nothing waits, or the stream's window is shut: out of the line.
    Out,
    /// Nothing waits and the end was passed on.
    Ended,
    /// The connection takes nothing.
    Full,
}

impl<P: Policy> Exchange<P> {
    #[inline]
    pub(super) fn transit(&mut self, line: Key, key: Key, piece: Piece<'_>, now: Instant) {
        let Piece { data, flow, end } = piece;
        let Some(call) = self.calls.get_mut(key) else {
            return self.release(line, None, flow, 0);
        };
        let way = call.way_from(line);
        if way == Way::Request && !call.answered {
            self.kept -= call.kept.body().len();
            if self.kept + call.kept.body().len() + data.len() > KEPT_MAX {
                call.kept.give_up();
            }
            call.kept.add(data);
            self.kept += call.kept.body().len();
        }
        let (lane, from, to) = call.lane(way);
        let from = from.and_then(|leg| leg.stream);
        lane.bytes += data.len() as u64;
        if end {
            lane.ending = Ending::End;
        }
        if lane.closed {
            lane.sent |= end;
            self.release(line, from, flow, flow);
            return self.finish_if_through(key, now);
        }
        if let (
            true,
            Some(Leg {
                line: to,
                stream: Some(stream),
            }),
        ) = (lane.parked.is_empty(), to)
            && let Some(place) = self.lines.get_mut(to)
            && place.connection.capacity(stream) >= data.len()
        {
            let sent = place.connection.send_data(stream, data, end, now);
            debug_assert!(sent == Some(data.len()) || data.is_empty());
            lane.moved = now;
            lane.sent |= end;
            self.touch(to);
            self.release(line, from, flow, flow);
            if end {
                self.finish_if_through(key, now);
            }
            return;
        }
        self.park(line, key, data, flow, now);
    }

    fn park(&mut self, line: Key, key: Key, data: &[u8], flow: u32, now: Instant) {
        let early = self.parked + data.len() <= PARKED_MAX;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (lane, from, to) = call.lane(call.way_from(line));
        if lane.parked.is_empty() {
            lane.moved = now;
        }
        lane.parked.push(data);
        self.parked += data.len();
        let bytes = u32::try_from(data.len()).expect("a frame has 24 bits");
        let padding = flow - bytes;
        if !early {
            lane.owed += bytes;
        }
        let from = from.and_then(|leg| leg.stream);
        let back = if early { flow } else { padding };
        self.release(line, from, back, padding);
        self.arm_call(key, now + STALL_PRESSED);
        if let Some(to) = to {
            self.queue(to.line, key);
            self.stir(to.line);
        }
    }

    /// Gives back windows: `connection` bytes of the line's, `stream` bytes of the stream's.
    #[inline]
    pub(super) fn release(&mut self, line: Key, from: Option<Key>, connection: u32, stream: u32) {
        if let Some(place) = self.lines.get_mut(line) {
            let before = place.connection.backlog();
            place.connection.release_connection(connection);
            if let Some(from) = from {
                place.connection.release_stream(from, stream);
            }
            if place.connection.backlog() > before {
                self.touch(line);
            }
        }
    }

    /// Puts a call with something parked for this line into its queue, once.
    pub(super) fn queue(&mut self, line: Key, key: Key) {
        let (Some(call), Some(place)) = (self.calls.get_mut(key), self.lines.get_mut(line)) else {
            return;
        };
        let lane = lane_to(call, place.connection.role());
        if lane.queued || !lane.waits() {
            return;
        }
        lane.queued = true;
        if place.ready.len() > 64 + 2 * place.connection.active() {
            let calls = &self.calls;
            place.ready.retain(|call| calls.get(*call).is_some());
        }
        place.ready.push_back(key);
    }

    /// The same for every call of a line: its windows have changed.
    pub(super) fn queue_all(&mut self, line: Key) {
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        place.greeted = true;
        let calls: Vec<Key> = place.connection.calls().collect();
        for call in calls {
            self.queue(line, call);
        }
    }

    /// Sends what is parked for a line, one frame of each call in turn, as far as it goes.
    pub(super) fn flush(&mut self, line: Key, now: Instant) {
        let mut any = false;
        while let Some(key) = self
            .lines
            .get(line)
            .and_then(|line| line.ready.front().copied())
        {
            let progress = self.advance(line, key, now);
            let Some(place) = self.lines.get_mut(line) else {
                return;
            };
            match progress {
                Progress::Full => break,
                Progress::Moved => {
                    place.ready.pop_front();
                    place.ready.push_back(key);
                    any = true;
                }
                Progress::Out | Progress::Ended => {
                    place.ready.pop_front();
                    if let Some(call) = self.calls.get_mut(key) {
                        lane_to(call, place.connection.role()).queued = false;
                    }
                    any = true;
                }
            }
            if matches!(progress, Progress::Ended) {
                self.finish_if_through(key, now);
            }
        }
        if any {
            self.touch(line);
        }
    }

    /// Sends one frame of a call to a line.
    fn advance(&mut self, line: Key, key: Key, now: Instant) -> Progress {
        let (Some(call), Some(place)) = (self.calls.get_mut(key), self.lines.get_mut(line)) else {
            return Progress::Out;
        };
        let connection = &mut place.connection;
        let way = way_to(connection.role());
        let (lane, from, to) = call.lane(way);
        let Some(stream) = to.filter(|to| to.line == line).and_then(|to| to.stream) else {
            return Progress::Out;
        };
        if lane.parked.is_empty() {
            match std::mem::take(&mut lane.ending) {
                Ending::Open => return Progress::Out,
                Ending::End if lane.sent => {}
                Ending::End => {
                    connection.send_data(stream, b"", true, now);
                }
                Ending::Trailers(fields) => {
                    connection.send_fields(stream, &fields, false, true);
                }
            }
            lane.ending = Ending::End;
            lane.sent = true;
            return Progress::Ended;
        }
        if !connection.takes_data() {
            return Progress::Full;
        }
        let last = matches!(lane.ending, Ending::End);
        let Some(sent) = connection.send_data(stream, lane.parked.as_slice(), last, now) else {
            return Progress::Out;
        };
        let (owed, fresh) = lane.left(sent, now);
        self.parked -= sent;
        lane.sent = last && lane.parked.is_empty();
        let (ended, more) = (lane.sent, lane.waits());
        if let Some(from) = from {
            self.release(from.line, from.stream, owed, fresh);
        }
        match (ended, more) {
            (true, _) => Progress::Ended,
            (false, true) => Progress::Moved,
            (false, false) => Progress::Out,
        }
    }
}

/// Which way bytes go that leave by a line in this role: a server's peer is a caller.
fn way_to(role: Role) -> Way {
    match role {
        Role::Server => Way::Response,
        Role::Client => Way::Request,
    }
}

fn lane_to<C>(call: &mut Call<C>, role: Role) -> &mut crate::h2::call::Lane {
    match way_to(role) {
        Way::Response => &mut call.response,
        Way::Request => &mut call.request,
    }
}
