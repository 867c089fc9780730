//! The whole engine: a caller and somebody who answers, both saying whatever they like.

use std::time::Duration;

use tokio::time::Instant;

use crate::h2::{
    connection::{Config, OUTPUT_STOP},
    exchange::{Exchange, GivenBack, Onward, Outcome, Policy, Request, Target, Verdict},
    frame::{PREFACE, write},
    grpc::Code,
    hpack::{Fields, Name},
    slab::Key,
};

/// Counts what begins and what ends.
#[derive(Debug, Default)]
struct Count {
    begun: usize,
    ended: usize,
}

impl Policy for Count {
    type Peer = ();
    type Call = ();

    fn on_request(&mut self, (): &(), request: &mut Request<'_>) -> (Verdict, ()) {
        self.begun += 1;
        let verdict = match request.fields.get(Name::Path) {
            Some(b"/local") => Verdict::Local,
            Some(b"/none") => Verdict::Reply(Code::UNIMPLEMENTED, "nothing here".into()),
            _ => Verdict::Forward(Target(1)),
        };
        (verdict, ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Request<'_>, _: GivenBack) -> Verdict {
        Verdict::Forward(Target(1))
    }

    fn on_response(&mut self, (): &mut (), fields: &mut Fields, _: bool) -> Onward {
        match fields.get(Name::GrpcStatus) {
            Some(b"14") => Onward::Again,
            _ => Onward::Pass,
        }
    }

    fn on_end(&mut self, (): (), _: &Outcome) {
        self.ended += 1;
    }
}

/// Runs what `bytes` say: records of one octet for who speaks and what happens before, two for
/// how much is said, and what is said. Each side has greeted already.
///
/// # Panics
/// Where a call does not end exactly once, something stays parked, or output has no bound.
pub fn exchange(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut exchange = Exchange::new(Count::default(), now);
    let caller = exchange.accept((), Config::caller(), now);
    let mut greeting = PREFACE.to_vec();
    write::settings(&mut greeting, &[]);
    write::settings_ack(&mut greeting);
    exchange.receive(caller, &greeting, now);
    let mut lines = vec![(caller, Vec::new())];
    let mut rest = bytes;
    while let [who, high, low, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(more.len());
        let (said, after) = more.split_at(length);
        rest = after;
        now += Duration::from_millis(u64::from(who >> 4) * 10);
        exchange.on_time(now);
        let at = usize::from(who & 3) % lines.len();
        let (line, left) = &mut lines[at];
        left.extend_from_slice(said);
        let used = exchange.receive(*line, left, now);
        left.drain(..used);
        if who & 4 == 0 {
            drain(&mut exchange, &lines, now);
        }
        if who & 8 != 0 && at > 0 {
            exchange.closed(lines.remove(at).0, now);
        }
        dial(&mut exchange, &mut lines, now);
    }
    for (line, _) in lines {
        exchange.closed(line, now);
    }
    while let Some(dial) = exchange.next_dial() {
        exchange.closed(dial.line, now);
    }
    assert_eq!((exchange.calls(), exchange.parked()), (0, 0));
    let count = exchange.policy();
    assert_eq!(count.begun, count.ended, "each call ends once");
}

/// Those who are dialed answer, and greet.
fn dial(exchange: &mut Exchange<Count>, lines: &mut Vec<(Key, Vec<u8>)>, now: Instant) {
    while let Some(dial) = exchange.next_dial() {
        exchange.connected(dial.line, now);
        let mut greeting = Vec::new();
        write::settings(&mut greeting, &[]);
        write::settings_ack(&mut greeting);
        exchange.receive(dial.line, &greeting, now);
        lines.push((dial.line, Vec::new()));
    }
}

/// Everybody takes what is for them.
fn drain(exchange: &mut Exchange<Count>, lines: &[(Key, Vec<u8>)], now: Instant) {
    let mut out = Vec::new();
    for (line, _) in lines {
        while exchange.take_output(*line, &mut out, now) {
            assert!(out.len() <= 2 * OUTPUT_STOP, "{} octets at once", out.len());
            exchange.written(*line, out.len(), now);
            out.clear();
        }
    }
}
