//! A request: judged, given to somebody, and given again where it came back.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Destination, Exchange, GivenBack, Policy, Request, Verdict, line::Far, timing::PATIENCE,
};
use crate::h2::{
    call::{Call, Ending, Failure, Kept, Lane, Leg, write_answer},
    connection::Room,
    grpc::{self, Code, TimeoutText},
    hpack::{Fields, Name},
    slab::Key,
};

impl<P: Policy> Exchange<P> {
    pub(super) fn request(&mut self, line: Key, stream: Key, end: bool, now: Instant) {
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        let Far::Caller { peer, .. } = &place.far else {
            return;
        };
        let came = self.fields.get(Name::GrpcTimeout).and_then(grpc::timeout);
        let grpc = speaks_grpc(&self.fields);
        let mut request = Request {
            fields: &mut self.fields,
            timeout: came,
            now,
            attempts: 0,
        };
        let (verdict, context) = self.policy.on_request(peer, &mut request);
        // A deadline beyond what a clock can show is none.
        let deadline = request.timeout.and_then(|left| now.checked_add(left));
        let deadline = deadline.map(|deadline| (deadline, came.unwrap_or_default()));
        let mut kept = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut kept.head, &mut self.fields);
        let mut lane = Lane::new(now);
        if end {
            lane.ending = Ending::End;
        }
        let call = self.calls.insert(Call {
            context,
            down: Leg {
                line,
                stream: Some(stream),
            },
            up: None,
            share: place.share,
            request: lane,
            response: Lane::new(now),
            kept,
            attempts: 0,
            answered: false,
            grpc,
            deadline,
            since: now,
            waiting: None,
            resting: None,
            due: None,
            status: None,
            lost: false,
        });
        place.connection.assign(stream, call);
        if let Some((deadline, _)) = deadline {
            self.arm_call(call, deadline);
        }
        self.carry_out(call, verdict, now);
    }

    /// A request with more fields than are taken: refused in its own language where that is seen.
    pub(super) fn oversized(&mut self, line: Key, stream: Key) {
        let grpc = speaks_grpc(&self.fields) || self.fields.get(Name::Te).is_some();
        let message = "the request has more header fields than are taken; send less metadata";
        let (fields, text) = (&mut self.written, &mut self.text);
        write_answer(fields, text, grpc, Code::RESOURCE_EXHAUSTED, message);
        if let Some(place) = self.lines.get_mut(line) {
            place
                .connection
                .send_fields(stream, &self.written, false, true);
            place
                .connection
                .reset(stream, crate::h2::frame::ErrorCode::NoError);
        }
    }

    fn carry_out(&mut self, key: Key, verdict: Verdict, now: Instant) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        match verdict {
            Verdict::Forward(target) => self.forward(key, Destination::Target(target), now),
            Verdict::Local => {
                let caller = call.down.line;
                self.forward(key, Destination::Local { caller }, now);
            }
            Verdict::Later(rest) => self.rest(key, rest, now),
            Verdict::Reply(code, message) => self.reply(key, code, &message, now),
        }
    }

    /// Lets a call rest, never for longer than a call may wait.
    fn rest(&mut self, key: Key, rest: Duration, now: Instant) {
        if let Some(call) = self.calls.get_mut(key) {
            let until = now + rest.min(PATIENCE);
            call.waiting.get_or_insert(now);
            call.resting = Some(until);
            self.arm_call(key, until);
        }
    }

    /// Gives a call to a line: at once, or when there is a stream for it.
    fn forward(&mut self, key: Key, to: Destination, now: Instant) {
        let Some(up) = self.line_to(to, now) else {
            return self.fail(
                key,
                Failure::Unavailable("the caller's line is closing"),
                now,
            );
        };
        let (Some(call), Some(line)) = (self.calls.get_mut(key), self.lines.get_mut(up)) else {
            return;
        };
        call.up = Some(Leg {
            line: up,
            stream: None,
        });
        call.attempts += 1;
        let share = line.share_of(call.share);
        if line.waiting.is_empty() && line.connection.room_for(share) == Room::Yes {
            return self.open(key, now);
        }
        let since = *call.waiting.get_or_insert(now);
        let left = line.waiting.push(share, key);
        if line.connection.room() == Room::Yes {
            // For this one, if others have had their share.
            self.stir(up);
        }
        self.arm_call(key, since + PATIENCE);
        if let Some(left) = left {
            let why = "too many calls wait for whoever answers; slow down";
            self.fail(left, Failure::Unavailable(why), now);
        }
    }

    /// Opens a stream upstream for a call; its line has room.
    pub(super) fn open(&mut self, key: Key, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Some(up) = &mut call.up else { return };
        let Some(line) = self.lines.get_mut(up.line) else {
            return;
        };
        call.waiting = None;
        if let Some((deadline, came)) = call.deadline {
            let left = deadline.saturating_duration_since(now);
            // As it came, where nothing was lost on the way and nobody has changed it.
            if left != came {
                let text = TimeoutText::new(left);
                call.kept.head.set(Name::GrpcTimeout, text.as_bytes());
            }
        }
        let lane = &mut call.request;
        let end = lane.parked.is_empty() && matches!(lane.ending, Ending::End);
        let up_line = up.line;
        let whose = (key, line.share_of(call.share));
        up.stream = Some(line.connection.open(whose, &call.kept.head, end, now));
        lane.sent = end;
        if lane.waits() {
            self.queue(up_line, key);
            self.stir(up_line);
        }
        self.touch(up_line);
    }

    /// A call came back: it goes to somebody again, or its caller is told.
    pub(super) fn again(&mut self, key: Key, why: GivenBack, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if !call.can_go_again() {
            let why = "whoever was to answer could not be reached or refused; ask again later";
            return self.fail(key, Failure::Unavailable(why), now);
        }
        let lane = &mut call.request;
        self.parked -= lane.parked.len();
        lane.again = call.kept.body().len() - (lane.parked.len() - lane.again);
        lane.parked.set(call.kept.body());
        self.parked += lane.parked.len();
        (lane.sent, lane.closed, lane.queued) = (false, false, false);
        call.up = None;
        call.waiting = None;
        self.ask_again(key, why, now);
    }

    /// Asks the policy where a call goes that is not with anybody.
    pub(super) fn ask_again(&mut self, key: Key, why: GivenBack, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.resting = None;
        let left = call
            .deadline
            .map(|(deadline, _)| deadline.saturating_duration_since(now));
        let mut request = Request {
            fields: &mut call.kept.head,
            timeout: left,
            now,
            attempts: call.attempts,
        };
        let verdict = self.policy.on_again(&mut call.context, &mut request, why);
        let came = call.deadline.map(|(_, came)| came).unwrap_or_default();
        let deadline = request.timeout.and_then(|left| now.checked_add(left));
        call.deadline = deadline.map(|deadline| (deadline, came));
        self.carry_out(key, verdict, now);
    }

    /// A buffer of an ended call serves another.
    pub(super) fn recycle(&mut self, kept: Kept) {
        if self.spare.len() < super::SPARE_MAX
            && let Some(kept) = kept.emptied()
        {
            self.spare.push(kept);
        }
    }
}

fn speaks_grpc(fields: &Fields) -> bool {
    let kind = fields.get(Name::ContentType);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}
