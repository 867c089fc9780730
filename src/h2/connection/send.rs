//! Frames out: into the output buffer, never beyond the peer's windows.

use super::{
    Connection, OUTPUT_FULL, Role, Share, Stream, broken, lifetime::Leaving, share::most_of,
};
use crate::h2::{
    budget::{Cost, Earning},
    frame::{ErrorCode, MIN_MAX_FRAME_SIZE, write},
    hpack::{Fields, Name},
    slab::Key,
    stream::{Side, State},
    window::{ReceiveWindow, SendWindow},
};
use tokio::time::Instant;

/// The largest frame that is sent: what every peer takes.
const FRAME_MAX: usize = MIN_MAX_FRAME_SIZE as usize;
/// DATA cut shorter than this by a window costs the peer: a head alone is nine bytes.
const SLIVER: usize = 64;

/// Whether a stream can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Now.
    Yes,
    /// Once the peer has greeted, or one of its streams has ended.
    Later,
    /// Never again on this connection.
    Never,
}

impl Connection {
    /// Whether a stream can be opened. Nothing is opened before the peer's SETTINGS: it would be
    /// refused where they allow less.
    pub fn room(&self) -> Room {
        if self.role() == Role::Server || self.leaving != Leaving::Not || self.streams.exhausted() {
            return Room::Never;
        }
        if !self.peer.greeted || self.streams.len() >= self.peer.max_streams as usize {
            return Room::Later;
        }
        Room::Yes
    }

    /// The same for one of those who share it: nobody has all of its streams.
    #[inline]
    pub fn room_for(&self, share: Share) -> Room {
        match self.room() {
            Room::Yes if self.held(share) >= self.most() => Room::Later,
            room @ (Room::Yes | Room::Later | Room::Never) => room,
        }
    }

    /// How many streams one has of those who share it, given up or not.
    #[inline]
    pub fn held(&self, share: Share) -> usize {
        self.streams.held(share)
    }

    /// How many streams one may have of those who share it.
    #[inline]
    pub fn most(&self) -> usize {
        most_of(self.peer.max_streams)
    }

    /// Opens a stream of ours with a request. There is [`Room`].
    pub fn open(
        &mut self,
        (call, share): (Key, Share),
        request: &Fields,
        end: bool,
        now: Instant,
    ) -> Key {
        debug_assert_eq!(self.room(), Room::Yes);
        let id = self.streams.next();
        self.write_fields(id, request, end);
        self.streams.insert(Stream {
            id,
            state: State {
                received: Side::Head,
                sent: if end { Side::Ended } else { Side::Body },
            },
            opened: now,
            call: Some(call),
            share,
            send: SendWindow::new(self.peer.initial_window),
            receive: ReceiveWindow::new(self.config.stream_window),
            length: None,
            head_only: request.get(Name::Method) == Some(b"HEAD"),
        })
    }

    /// Sends an answer's fields, or trailers. `false` where the stream is gone, or its state does
    /// not allow them.
    pub fn send_fields(&mut self, key: Key, fields: &Fields, interim: bool, end: bool) -> bool {
        let Some(stream) = self.streams.get_mut(key) else {
            return false;
        };
        let id = stream.id;
        if stream.state.sent.block(interim, end).is_err() {
            return false;
        }
        self.write_fields(id, fields, end);
        self.close_if_through(key);
        true
    }

    /// How much DATA can be sent on a stream now.
    #[inline]
    pub fn capacity(&self, key: Key) -> usize {
        let Some(stream) = self.streams.get(key) else {
            return 0;
        };
        if self.backlog() >= OUTPUT_FULL {
            return 0;
        }
        self.send.available().min(stream.send.available())
    }

    /// Whether the connection itself takes DATA now, whatever the stream says.
    pub fn takes_data(&self) -> bool {
        self.backlog() < OUTPUT_FULL && self.send.available() > 0
    }

    /// Sends one DATA frame of as much of `data` as fits, with END_STREAM where that is all of it
    /// and `end` says so. Answers how much was sent; `None` where nothing could be.
    #[inline]
    pub fn send_data(&mut self, key: Key, data: &[u8], end: bool, now: Instant) -> Option<usize> {
        let capacity = self.capacity(key);
        let fits = data.len().min(capacity).min(FRAME_MAX);
        let all = fits == data.len();
        let stream = self.streams.get_mut(key)?;
        if (fits == 0 && !(all && end)) || stream.state.sent.data(all && end).is_err() {
            return None;
        }
        stream.send.take(fits);
        self.send.take(fits);
        write::data(&mut self.out, stream.id, &data[..fits], all && end);
        self.budget.earn(Earning::Sent);
        if !all && fits < SLIVER && fits == capacity {
            self.count_sliver(now);
        }
        if end && all {
            self.close_if_through(key);
        }
        Some(fits)
    }

    /// The peer takes DATA by crumbs: it is told like any other excess.
    #[cold]
    fn count_sliver(&mut self, now: Instant) {
        if let Err(overdrawn) = self.budget.spend(Cost::Sliver, now) {
            self.fail(&broken(ErrorCode::EnhanceYourCalm, overdrawn.cost.limit()));
        }
    }

    /// Resets a stream at once: one that the peer opened. Late frames of it are forgiven for a while.
    pub fn reset(&mut self, key: Key, code: ErrorCode) {
        if let Some(stream) = self.streams.remove(key) {
            if code == ErrorCode::NoError && !stream.state.received.ended() {
                self.budget.earn(Earning::AnsweredEarly);
            }
            self.write_reset(stream.id, code);
        }
    }

    /// A call of this peer was answered by somebody else.
    pub fn earn_answer(&mut self) {
        self.budget.earn(Earning::Answered);
    }

    /// `bytes` of the connection's window are free again.
    #[inline]
    pub fn release_connection(&mut self, bytes: u32) {
        if let Some(increment) = self.receive.release(bytes) {
            write::window_update(&mut self.out, 0, increment);
        }
    }

    /// `bytes` of a stream's window are free again. Nothing is said once the peer has ended.
    #[inline]
    pub fn release_stream(&mut self, key: Key, bytes: u32) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.state.received.ended()
            && let Some(increment) = stream.receive.release(bytes)
        {
            write::window_update(&mut self.out, stream.id, increment);
        }
    }

    pub(super) fn write_reset(&mut self, id: u32, code: ErrorCode) {
        write::reset(&mut self.out, id, code);
        self.streams.remember_reset(id);
    }

    fn write_fields(&mut self, id: u32, fields: &Fields, end: bool) {
        let encoder = &mut self.encoder;
        write::headers(&mut self.out, id, end, MIN_MAX_FRAME_SIZE, |out| {
            encoder.encode(fields, out);
        });
        self.budget.earn(Earning::Sent);
    }
}
