//! How calls end, and how lines end: every call once, its caller told, both streams left clean.

use tokio::time::Instant;

use super::{End, Exchange, GivenBack, Outcome, Policy, line::Far};
use crate::h2::{
    call::{Ending, Failure, Way, write_answer, write_status},
    connection::Role,
    frame::ErrorCode,
    grpc::Code,
    hpack::Fields,
    slab::Key,
};

impl<P: Policy> Exchange<P> {
    /// A stream is gone before both of its sides had ended.
    pub(super) fn stream_reset(
        &mut self,
        line: Key,
        key: Key,
        code: ErrorCode,
        ours: bool,
        now: Instant,
    ) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.way_from(line) == Way::Request {
            call.down.stream = None;
            let end = match (call.response.sent, ours) {
                (true, _) => End::Answered,
                (false, true) => End::Failed,
                (false, false) => End::GivenUp,
            };
            return self.finish(key, end, now);
        }
        call.leave_upstream();
        let answered = call.response.ended();
        self.stir(line);
        if answered {
            // The answer is whole: servers that need no more of a request say so like this.
            return self.finish_if_through(key, now);
        }
        match (code, ours) {
            (ErrorCode::RefusedStream, false) => self.again(key, GivenBack::Unprocessed, now),
            (code, false) => self.fail(key, Failure::Reset(code), now),
            (code, true) => self.fail(key, Failure::Broken(code), now),
        }
    }

    /// Ends a call that failed: its caller is told, whoever answered is told to stop.
    pub(super) fn fail(&mut self, key: Key, failure: Failure, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (grpc, answered, down) = (call.grpc, call.answered, call.down);
        call.status = Some(failure.code());
        if failure == Failure::Lost && grpc && answered && !call.response.parked.is_empty() {
            // What has come is the caller's; the status follows it.
            let mut trailers = Box::new(Fields::new());
            write_status(
                &mut trailers,
                &mut self.text,
                failure.code(),
                failure.message(),
            );
            call.response.ending = Ending::Trailers(trailers);
            call.leave_upstream();
            call.lost = true;
            self.queue(down.line, key);
            return self.stir(down.line);
        }
        // Behind half a message trailers would look like a fault of ours: a reset says what it is.
        let unread = matches!(failure, Failure::Exhausted(_)) && !call.response.parked.is_empty();
        if let (Some(place), Some(stream)) = (self.lines.get_mut(down.line), down.stream) {
            let (fields, text) = (&mut self.written, &mut self.text);
            let (code, message) = (failure.code(), failure.message());
            let reset = failure.reset();
            match reset.or_else(|| unread.then(|| failure.error_code())) {
                Some(code) => place.connection.reset(stream, code),
                None if !answered => {
                    write_answer(fields, text, grpc, code, message);
                    place.connection.send_fields(stream, fields, false, true);
                }
                None if grpc => {
                    fields.clear();
                    write_status(fields, text, code, message);
                    place.connection.send_fields(stream, fields, false, true);
                }
                // Anything but a reset would look like a whole answer.
                None => place.connection.reset(stream, failure.error_code()),
            }
            self.touch(down.line);
        }
        self.finish(key, End::Failed, now);
    }

    /// Answers a call here.
    pub(super) fn reply(&mut self, key: Key, code: Code, message: &str, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.status = Some(code);
        let down = call.down;
        write_answer(&mut self.written, &mut self.text, call.grpc, code, message);
        self.policy.on_reply(&mut call.context, &mut self.written);
        if let (Some(place), Some(stream)) = (self.lines.get_mut(down.line), down.stream) {
            place
                .connection
                .send_fields(stream, &self.written, false, true);
            self.touch(down.line);
        }
        self.finish(key, End::Replied, now);
    }

    /// Ends a call whose messages have both passed.
    #[inline]
    pub(super) fn finish_if_through(&mut self, key: Key, now: Instant) {
        let Some(call) = self.calls.get(key).filter(|call| call.through()) else {
            return;
        };
        let end = if call.lost {
            End::Failed
        } else {
            End::Answered
        };
        self.finish(key, end, now);
    }

    /// The end of every call. Streams of it that are still open are reset: the caller's without
    /// blame (it has its answer), the other one because nobody wants it any longer.
    pub(super) fn finish(&mut self, key: Key, end: End, now: Instant) {
        let Some(call) = self.calls.remove(key) else {
            return;
        };
        if let Some((_, timer)) = call.due {
            self.wheel.clear(timer);
        }
        self.parked -= call.request.parked.len() + call.response.parked.len();
        self.kept -= call.kept.body().len();
        if call.request.owed > 0 {
            self.release(call.down.line, None, call.request.owed, 0);
        }
        if let Some(up) = call.up {
            if call.response.owed > 0 {
                self.release(up.line, None, call.response.owed, 0);
            }
            if call.waiting.is_some()
                && let Some(place) = self.lines.get_mut(up.line)
            {
                place.waiting.remove(place.share_of(call.share), key);
            }
            self.hang_up(up.line, up.stream, ErrorCode::Cancel, now);
            self.stir(up.line);
        }
        let known = call.status.is_some_and(|code| code != Code::UNIMPLEMENTED);
        if end == End::Answered
            && known
            && let Some(place) = self.lines.get_mut(call.down.line)
        {
            place.connection.earn_answer();
        }
        self.hang_up(call.down.line, call.down.stream, ErrorCode::NoError, now);
        let code = match end {
            End::GivenUp => Some(Code::CANCELLED),
            End::Answered | End::Replied | End::Failed => call.status,
        };
        let outcome = Outcome {
            end,
            code,
            attempts: call.attempts,
            sent: call.request.bytes,
            received: call.response.bytes,
            elapsed: now.saturating_duration_since(call.since),
        };
        self.policy.on_end(call.context, &outcome);
        self.recycle(call.kept);
    }

    /// Resets a stream, if it is still open: a caller's at once, others as fast as their peer bears it.
    fn hang_up(&mut self, line: Key, stream: Option<Key>, code: ErrorCode, now: Instant) {
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        let before = place.connection.backlog();
        if let Some(stream) = stream {
            match place.connection.role() {
                Role::Server => place.connection.reset(stream, code),
                Role::Client => place.connection.give_up(stream, code, now),
            }
        }
        let waits = place.connection.has_unwanted();
        if place.connection.backlog() > before || place.connection.over() {
            self.touch(line);
        }
        if waits {
            self.arm_line(line);
        }
    }

    /// The connection is gone, or was never made: its driver has ended.
    pub fn closed(&mut self, line: Key, now: Instant) {
        self.abandon(line, now);
        if let Some(place) = self.lines.remove(line)
            && let Some((_, timer)) = place.due
        {
            self.wheel.clear(timer);
        }
        self.settle(now);
    }

    /// Nothing more comes from this line: ends its calls.
    pub(super) fn abandon(&mut self, line: Key, now: Instant) {
        self.forget(line);
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        let calls: Vec<Key> = place.connection.calls().collect();
        let waiting = std::mem::take(&mut place.waiting);
        let why = match place.greeted {
            true => GivenBack::Unprocessed,
            false => GivenBack::Unreachable,
        };
        let local = match &place.far {
            Far::Caller { local, .. } => *local,
            Far::Answering(_) => None,
        };
        match place.connection.role() {
            Role::Server => calls.into_iter().for_each(|key| self.caller_gone(key, now)),
            Role::Client => calls.into_iter().for_each(|key| self.answer_lost(key, now)),
        }
        self.wait_elsewhere(waiting, line, why, now);
        if let Some(local) = local {
            self.drain(local, now);
        }
    }

    fn caller_gone(&mut self, key: Key, now: Instant) {
        if let Some(call) = self.calls.get_mut(key) {
            call.down.stream = None;
            self.finish(key, End::GivenUp, now);
        }
    }

    fn answer_lost(&mut self, key: Key, now: Instant) {
        if let Some(call) = self.calls.get_mut(key) {
            call.leave_upstream();
            if call.response.ended() {
                self.finish_if_through(key, now);
            } else {
                self.fail(key, Failure::Lost, now);
            }
        }
    }
}
