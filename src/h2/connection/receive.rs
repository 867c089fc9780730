//! One frame in: is it allowed now, what does it change, what has the owner to know.

use tokio::time::Instant;

use super::{Connection, Role, broken, streams::Whereabouts};
use crate::h2::{
    budget::Cost,
    frame::{self, ErrorCode, Frame, PREFACE, Scope},
    hpack::Fields,
    slab::Key,
    stream::Part,
    window,
};

/// What the owner has to know. Fields are in the list that was passed in.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Nothing.
    Quiet,
    /// The peer opened a stream (server only). Give it a call with [`Connection::assign`].
    Request {
        /// The stream.
        stream: Key,
        /// Nothing follows.
        end: bool,
    },
    /// A request whose fields are more than we take. The stream is open and waits for an answer.
    Oversized {
        /// The stream.
        stream: Key,
    },
    /// A valid list of fields on a stream that has a call.
    Fields {
        /// Whose.
        call: Key,
        /// What they are.
        part: Part,
        /// Nothing follows.
        end: bool,
    },
    /// DATA, already counted against both windows.
    Data {
        /// Whose.
        call: Key,
        /// Without padding.
        data: &'a [u8],
        /// What it took from the windows.
        flow: u32,
        /// Nothing follows.
        end: bool,
    },
    /// The stream is gone before both sides had ended.
    Reset {
        /// Whose.
        call: Key,
        /// Why.
        code: ErrorCode,
        /// By whom: `true` where the peer broke a rule and we have reset the stream.
        ours: bool,
    },
    /// The peer takes more on this stream.
    Widened {
        /// Whose.
        call: Key,
    },
    /// The peer takes more on the connection.
    Eased,
    /// The peer's SETTINGS came: there may be room for streams, and windows of all may be larger.
    Changed,
    /// The peer takes no new streams (client only): see [`Connection::take_unprocessed`].
    GoAway {
        /// The last of our streams that it may have worked on.
        last: u32,
        /// Why.
        code: ErrorCode,
    },
}

impl Connection {
    /// Takes the first frame of `input`. Answers how many bytes it was, 0 where it is not whole
    /// yet, and what it means. After an error: [`Self::fail`].
    ///
    /// # Errors
    /// A rule of the protocol that ends the connection, or a budget overdrawn.
    pub fn receive<'a>(
        &mut self,
        input: &'a [u8],
        fields: &mut Fields,
        now: Instant,
    ) -> Result<(usize, Event<'a>), frame::Error> {
        if self.preface_due {
            return Ok((self.preface(input)?, Event::Quiet));
        }
        let (event, used) = match frame::split(input, frame::MIN_MAX_FRAME_SIZE) {
            Ok(None) => return Ok((0, Event::Quiet)),
            Ok(Some(frame::Split { head, payload, .. })) => {
                let frame = Frame::parse(head, payload);
                let event = frame.and_then(|frame| self.handle(frame, fields, now));
                (event, frame::Head::SIZE + payload.len())
            }
            Err(error) => match self.whole_frame(input, &error) {
                Some(used) => (Err(error), used),
                None if error.scope == Scope::Connection => return Err(error),
                None => return Ok((0, Event::Quiet)),
            },
        };
        match event {
            Ok(event) => Ok((used, event)),
            Err(error) => Ok((used, self.break_stream(&error, now)?)),
        }
    }

    /// The end of a batch: whether part of a frame was left over, and whether any frame was whole.
    /// Neither a frame nor a field block may take for ever.
    pub fn note_remainder(&mut self, partial: bool, progress: bool, now: Instant) {
        self.times.received = now;
        self.times.asked = None;
        self.note_busy(now);
        self.times.partial = match self.times.partial {
            _ if !partial => None,
            Some(since) if !progress => Some(since),
            _ => Some(now),
        };
        let block = self.times.block.unwrap_or(now);
        self.times.block = self.assembly.running().then_some(block);
    }

    /// The length of a frame whose head is in error, where the connection goes on behind it.
    fn whole_frame(&self, input: &[u8], error: &frame::Error) -> Option<usize> {
        let head = frame::Head::read(input)?;
        let whole = frame::Head::SIZE + usize::try_from(head.length).ok()?;
        (error.scope != Scope::Connection && input.len() >= whole).then_some(whole)
    }

    fn preface(&mut self, input: &[u8]) -> Result<usize, frame::Error> {
        if input.len() < PREFACE.len() && PREFACE.starts_with(input) {
            return Ok(0);
        }
        if !input.starts_with(PREFACE) {
            return Err(broken(ErrorCode::Protocol, "this is not HTTP/2"));
        }
        self.preface_due = false;
        Ok(PREFACE.len())
    }

    #[inline]
    fn handle<'a>(
        &mut self,
        frame: Frame<'a>,
        fields: &mut Fields,
        now: Instant,
    ) -> Result<Event<'a>, frame::Error> {
        self.check_order(&frame)?;
        match frame {
            Frame::Data {
                stream,
                data,
                flow,
                end_stream,
            } => self.data(stream, data, flow, end_stream, now),
            Frame::Headers { .. } | Frame::Continuation { .. } => self.block(frame, fields, now),
            Frame::Priority { .. } | Frame::Unknown { .. } => {
                self.spend(Cost::Priority, now)?;
                Ok(Event::Quiet)
            }
            Frame::Reset { stream, code } => self.reset_by_peer(stream, code, now),
            Frame::Settings(settings) => self.settings(settings, now),
            Frame::SettingsAck => {
                self.times.acknowledged = true;
                Ok(Event::Quiet)
            }
            Frame::PushPromise { .. } => {
                Err(broken(ErrorCode::Protocol, "PUSH_PROMISE, which is off"))
            }
            Frame::Ping { ack, opaque } => self.ping(ack, opaque, now),
            Frame::GoAway {
                last_stream, code, ..
            } => Ok(self.goaway(last_stream, code)),
            Frame::WindowUpdate { stream, increment } => self.window_update(stream, increment, now),
        }
    }

    /// SETTINGS come first; nothing comes between the pieces of a field block.
    #[inline]
    fn check_order(&self, frame: &Frame<'_>) -> Result<(), frame::Error> {
        if !self.peer.greeted && !matches!(frame, Frame::Settings(_)) {
            return Err(broken(
                ErrorCode::Protocol,
                "the first frame is not SETTINGS",
            ));
        }
        match (self.assembly.stream(), frame) {
            (Some(open), Frame::Continuation { stream, .. }) if open == *stream => Ok(()),
            (None, Frame::Continuation { .. }) => {
                Err(broken(ErrorCode::Protocol, "CONTINUATION without HEADERS"))
            }
            (Some(_), _) => {
                let what = "a frame between the pieces of a field block";
                Err(broken(ErrorCode::Protocol, what))
            }
            (None, _) => Ok(()),
        }
    }

    fn data<'a>(
        &mut self,
        id: u32,
        data: &'a [u8],
        flow: u32,
        end: bool,
        now: Instant,
    ) -> Result<Event<'a>, frame::Error> {
        self.receive
            .receive(flow)
            .map_err(|_| broken(ErrorCode::FlowControl, "more DATA than the window had left"))?;
        if data.is_empty() && !end {
            self.spend(Cost::EmptyData, now)?;
        }
        let stream = match self.streams.find(id) {
            Whereabouts::Open(stream) => stream,
            whereabouts @ (Whereabouts::Idle | Whereabouts::Reset | Whereabouts::Ended) => {
                self.release_connection(flow);
                return self.late(id, whereabouts, now);
            }
        };
        match self.stream_data(stream, data.len(), flow, end) {
            Ok(Some(call)) => {
                self.close_if_through(stream);
                Ok(Event::Data {
                    call,
                    data,
                    flow,
                    end,
                })
            }
            Ok(None) => {
                self.release_connection(flow);
                self.close_if_through(stream);
                Ok(Event::Quiet)
            }
            Err((code, what)) => {
                self.release_connection(flow);
                Err(frame::Error::stream(id, code, what))
            }
        }
    }

    /// The stream's own rules for DATA: its state, its window, its announced length.
    #[inline]
    fn stream_data(
        &mut self,
        stream: Key,
        length: usize,
        flow: u32,
        end: bool,
    ) -> Result<Option<Key>, (ErrorCode, &'static str)> {
        let Some(stream) = self.streams.get_mut(stream) else {
            return Ok(None);
        };
        let after = |violation: crate::h2::stream::Violation| {
            (
                violation.code(),
                "DATA that the stream's state does not allow",
            )
        };
        stream.state.received.data(end).map_err(after)?;
        let exceeded = |_: window::Violation| {
            let what = "more DATA than the stream's window had left";
            (ErrorCode::FlowControl, what)
        };
        stream.receive.receive(flow).map_err(exceeded)?;
        if let Some(left) = &mut stream.length {
            let fits = left.checked_sub(length as u64);
            let fits = fits.filter(|left| !end || *left == 0);
            let what = "content-length is not the length of the content";
            *left = fits.ok_or((ErrorCode::Protocol, what))?;
        }
        Ok(stream.call)
    }

    /// HEADERS or DATA for a stream that is not open. The peer may not have seen our reset yet,
    /// and a shared connection must not fall because of one call; but nobody may do so for ever.
    pub(super) fn late(
        &mut self,
        id: u32,
        whereabouts: Whereabouts,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        if whereabouts == Whereabouts::Idle {
            let what = "a frame on a stream that was never opened";
            return Err(broken(ErrorCode::Protocol, what));
        }
        self.spend(Cost::Late, now)?;
        if whereabouts == Whereabouts::Ended && self.role() == Role::Server {
            let what = "a frame on a stream that has ended";
            return Err(frame::Error::stream(id, ErrorCode::StreamClosed, what));
        }
        Ok(Event::Quiet)
    }

    fn reset_by_peer(
        &mut self,
        id: u32,
        code: ErrorCode,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        self.spend(Cost::Reset, now)?;
        let stream = match self.streams.find(id) {
            Whereabouts::Open(stream) => stream,
            Whereabouts::Idle => {
                let what = "RST_STREAM on a stream that was never opened";
                return Err(broken(ErrorCode::Protocol, what));
            }
            Whereabouts::Reset | Whereabouts::Ended => return Ok(Event::Quiet),
        };
        let call = self.streams.remove(stream).and_then(|stream| stream.call);
        Ok(call.map_or(Event::Quiet, |call| Event::Reset {
            call,
            code,
            ours: false,
        }))
    }

    /// An error of one stream: the stream is reset, which the peer pays for, and the connection
    /// goes on. An error of the connection goes through.
    fn break_stream(
        &mut self,
        error: &frame::Error,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        let Scope::Stream(id) = error.scope else {
            return Err(*error);
        };
        self.spend(Cost::Reset, now)?;
        let call = match self.streams.find(id) {
            Whereabouts::Idle => return Err(broken(error.code, error.what)),
            Whereabouts::Reset => return Ok(Event::Quiet),
            Whereabouts::Ended => None,
            Whereabouts::Open(stream) => self.streams.remove(stream).and_then(|stream| stream.call),
        };
        self.write_reset(id, error.code);
        Ok(call.map_or(Event::Quiet, |call| Event::Reset {
            call,
            code: error.code,
            ours: true,
        }))
    }

    /// Counts what the peer asks beyond calls.
    #[inline]
    pub(super) fn spend(&mut self, cost: Cost, now: Instant) -> Result<(), frame::Error> {
        self.budget
            .spend(cost, now)
            .map_err(|overdrawn| broken(ErrorCode::EnhanceYourCalm, overdrawn.cost.limit()))
    }

    /// Both sides have ended: the stream is over.
    #[inline]
    pub(super) fn close_if_through(&mut self, stream: Key) {
        if self
            .streams
            .get(stream)
            .is_some_and(|stream| stream.state.closed())
        {
            self.streams.remove(stream);
        }
    }
}
