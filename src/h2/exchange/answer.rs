//! Fields on a call that has begun: an answer's head, interim or final, and trailers either way.

use tokio::time::Instant;

use super::{Exchange, GivenBack, Onward, Policy};
use crate::h2::{
    call::{Ending, Way},
    frame::ErrorCode,
    grpc::Code,
    hpack::Name,
    slab::Key,
    stream::Part,
};

impl<P: Policy> Exchange<P> {
    pub(super) fn fields(&mut self, line: Key, key: Key, part: Part, end: bool, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let way = call.way_from(line);
        if way == Way::Response {
            match part {
                Part::Interim => {}
                Part::Head => {
                    if end {
                        call.status = self.fields.get(Name::GrpcStatus).map(Code::read);
                    }
                    let onward = self
                        .policy
                        .on_response(&mut call.context, &mut self.fields, end);
                    if onward == Onward::Again && call.can_go_again() {
                        return self.drop_answer(line, key, now);
                    }
                    call.answered = true;
                    self.kept -= call.kept.body().len();
                    call.kept.give_up();
                }
                Part::Trailers => {
                    call.status = self.fields.get(Name::GrpcStatus).map(Code::read);
                    self.policy.on_trailers(&mut call.context, &mut self.fields);
                }
            }
        } else {
            // Trailers of a request are rare enough not to be kept.
            self.kept -= call.kept.body().len();
            call.kept.give_up();
        }
        self.pass_fields(way, key, part, end, now);
    }

    /// Writes the fields that are being read to the other side, or behind what is parked for it.
    fn pass_fields(&mut self, way: Way, key: Key, part: Part, end: bool, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (lane, _, to) = call.lane(way);
        lane.moved = now;
        if lane.closed {
            lane.ending = Ending::End;
            lane.sent = true;
            return self.finish_if_through(key, now);
        }
        let Some(to) = to else { return };
        let (true, Some(stream)) = (lane.parked.is_empty(), to.stream) else {
            if end {
                lane.ending = Ending::Trailers(Box::new(self.fields.clone()));
            }
            self.queue(to.line, key);
            self.stir(to.line);
            return;
        };
        if let Some(line) = self.lines.get_mut(to.line) {
            let interim = part == Part::Interim;
            line.connection
                .send_fields(stream, &self.fields, interim, end);
        }
        if end {
            lane.ending = Ending::End;
            lane.sent = true;
        }
        self.touch(to.line);
        if end {
            self.finish_if_through(key, now);
        }
    }

    /// The policy wants the call again: this answer is not passed on.
    fn drop_answer(&mut self, line: Key, key: Key, now: Instant) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.status = None;
        let stream = call.up.and_then(|up| up.stream);
        if let (Some(place), Some(stream)) = (self.lines.get_mut(line), stream) {
            place.connection.give_up(stream, ErrorCode::Cancel, now);
        }
        self.touch(line);
        self.arm_line(line);
        self.stir(line);
        self.again(key, GivenBack::Wanted, now);
    }
}
