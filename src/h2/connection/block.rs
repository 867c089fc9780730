//! Field blocks: HEADERS and its CONTINUATIONs put together, decoded, judged, and given their part.
//!
//! Whatever becomes of the stream, a block is always decoded: the HPACK tables of both ends have
//! to stay the same, or the connection is lost.

use tokio::time::Instant;

use super::{
    BLOCK_MAX, Config, Connection, Event, Role, Share, Stream, broken, lifetime::Leaving,
    streams::Whereabouts,
};
use crate::h2::{
    budget::Cost,
    frame::{self, ErrorCode, Frame, Priority},
    header::{self, Malformed},
    hpack::{Fields, Fit, Limits},
    slab::Key,
    stream::{Part, Side, State},
    window::{ReceiveWindow, SendWindow},
};

/// Fields in one list: far more than any gRPC call has, and few enough to go through each.
const FIELDS_MAX: usize = 256;
/// A block may unfold to this many times the list that is taken, to be refused politely.
const UNFOLDED: usize = 4;

/// A block of which pieces are missing.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    open: Option<Opening>,
    block: Vec<u8>,
}

/// What HEADERS said before its block.
#[derive(Debug, Clone, Copy)]
struct Opening {
    stream: u32,
    end: bool,
    priority: Option<Priority>,
}

impl Assembly {
    /// The stream whose block is open.
    #[inline]
    pub(super) fn stream(&self) -> Option<u32> {
        Some(self.open?.stream)
    }

    /// Whether pieces are missing.
    pub(super) fn running(&self) -> bool {
        self.open.is_some()
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), frame::Error> {
        if self.block.len() + piece.len() > BLOCK_MAX {
            let what = "a field block that does not end";
            return Err(broken(ErrorCode::EnhanceYourCalm, what));
        }
        self.block.extend_from_slice(piece);
        Ok(())
    }
}

impl Connection {
    /// HEADERS or CONTINUATION, in order.
    pub(super) fn block<'a>(
        &mut self,
        frame: Frame<'a>,
        fields: &mut Fields,
        now: Instant,
    ) -> Result<Event<'a>, frame::Error> {
        let (piece, whole) = match frame {
            Frame::Headers {
                stream,
                block,
                priority,
                end_stream: end,
                end_headers,
            } => {
                let opening = Opening {
                    stream,
                    end,
                    priority,
                };
                if end_headers {
                    return self.decode(opening, block, fields, now);
                }
                self.assembly.open = Some(opening);
                (block, false)
            }
            Frame::Continuation {
                block, end_headers, ..
            } => {
                self.spend(Cost::Continuation, now)?;
                (block, end_headers)
            }
            Frame::Data { .. }
            | Frame::Priority { .. }
            | Frame::Reset { .. }
            | Frame::Settings(_)
            | Frame::SettingsAck
            | Frame::PushPromise { .. }
            | Frame::Ping { .. }
            | Frame::GoAway { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown { .. } => return Ok(Event::Quiet),
        };
        self.assembly.add(piece)?;
        let Some(opening) = self.assembly.open.filter(|_| whole) else {
            return Ok(Event::Quiet);
        };
        self.assembly.open = None;
        let mut block = std::mem::take(&mut self.assembly.block);
        let event = self.decode(opening, &block, fields, now);
        block.clear();
        self.assembly.block = block;
        event
    }

    fn decode(
        &mut self,
        opening: Opening,
        block: &[u8],
        fields: &mut Fields,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        let list = self.config.header_list as usize;
        let limits = Limits {
            list,
            fields: FIELDS_MAX,
            unfolded: list * UNFOLDED,
        };
        let fit = self.decoder.decode(block, &limits, fields);
        let fit = fit.map_err(|error| broken(error.code(), "a field block that is not HPACK"))?;
        let whereabouts = self.streams.find(opening.stream);
        if self.role() == Role::Server && whereabouts == Whereabouts::Idle {
            return self.request(opening, fit, fields, now);
        }
        if let Some(priority) = opening.priority {
            priority.check(opening.stream)?;
        }
        match whereabouts {
            Whereabouts::Open(stream) => {
                if self.role() == Role::Client {
                    self.note_answer(opening.stream, now);
                }
                self.following(stream, opening.end, fit, fields)
            }
            Whereabouts::Ended if self.role() == Role::Server => {
                let what = "HEADERS on a stream that has ended";
                Err(broken(ErrorCode::StreamClosed, what))
            }
            Whereabouts::Ended | Whereabouts::Reset | Whereabouts::Idle => {
                self.late(opening.stream, whereabouts, now)
            }
        }
    }

    /// The peer opens a stream.
    fn request(
        &mut self,
        opening: Opening,
        fit: Fit,
        fields: &Fields,
        now: Instant,
    ) -> Result<Event<'static>, frame::Error> {
        let Opening {
            stream: id,
            end,
            priority,
        } = opening;
        if id.is_multiple_of(2) {
            let what = "a client opened a stream with an even identifier";
            return Err(broken(ErrorCode::Protocol, what));
        }
        self.streams.seen(id);
        if matches!(self.leaving, Leaving::Last | Leaving::Over) {
            self.write_reset(id, ErrorCode::RefusedStream);
            return Ok(Event::Quiet);
        }
        if self.streams.len() >= self.most_streams() {
            // Before it has seen our SETTINGS, the peer cannot know.
            if self.times.acknowledged {
                self.spend(Cost::Reset, now)?;
            }
            self.write_reset(id, ErrorCode::RefusedStream);
            return Ok(Event::Quiet);
        }
        if let Some(priority) = priority {
            priority.check(id)?;
        }
        let about = match header::request(fields) {
            // What is missing from a list that was cut is not the peer's fault.
            Err(_) if fit == Fit::Cut => header::Request {
                length: None,
                head_only: false,
            },
            checked => checked.map_err(|fault| malformed(id, fault))?,
        };
        if end && about.length.is_some_and(|length| length > 0) {
            return Err(malformed(id, Malformed::ContentLength));
        }
        let stream = self.streams.insert(Stream {
            id,
            state: State {
                received: if end { Side::Ended } else { Side::Body },
                sent: Side::Head,
            },
            opened: now,
            call: None,
            share: Share::ONLY,
            send: SendWindow::new(self.peer.initial_window),
            receive: ReceiveWindow::new(self.config.stream_window),
            length: about.length,
            head_only: about.head_only,
        });
        Ok(match fit {
            Fit::Whole => Event::Request { stream, end },
            Fit::Cut => Event::Oversized { stream },
        })
    }

    /// How many streams the peer may have open by now.
    fn most_streams(&self) -> usize {
        let Config {
            max_streams,
            early_streams,
            ..
        } = self.config;
        match self.times.acknowledged {
            true => max_streams as usize,
            false => max_streams.max(early_streams) as usize,
        }
    }

    /// A block on an open stream: an answer's, or trailers.
    fn following(
        &mut self,
        key: Key,
        end: bool,
        fit: Fit,
        fields: &Fields,
    ) -> Result<Event<'static>, frame::Error> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(Event::Quiet);
        };
        let id = stream.id;
        if fit == Fit::Cut {
            let what = "more header fields than are taken";
            return Err(frame::Error::stream(id, ErrorCode::EnhanceYourCalm, what));
        }
        let head = stream.state.received == Side::Head;
        let mut interim = false;
        if head {
            let answer = header::answer(fields, stream.head_only);
            let answer = answer.map_err(|fault| malformed(id, fault))?;
            interim = answer.interim;
            stream.length = answer.length;
        }
        let what = "HEADERS that the stream's state does not allow";
        let allowed = stream.state.received.block(interim, end);
        let part = allowed.map_err(|fault| frame::Error::stream(id, fault.code(), what))?;
        if part == Part::Trailers {
            header::trailers(fields).map_err(|fault| malformed(id, fault))?;
        }
        if end && stream.length.is_some_and(|left| left > 0) {
            return Err(malformed(id, Malformed::ContentLength));
        }
        let call = stream.call;
        self.close_if_through(key);
        Ok(call.map_or(Event::Quiet, |call| Event::Fields { call, part, end }))
    }
}

/// A malformed message is an error of its stream: section 8.1.1.
fn malformed(id: u32, fault: Malformed) -> frame::Error {
    frame::Error::stream(id, ErrorCode::Protocol, fault.what())
}
