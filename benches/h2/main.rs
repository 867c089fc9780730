//! What the exchange alone costs: calls forwarded on one thread, no sockets, no TLS.
//!
//! `cargo bench --bench h2 [-- calls]`. One caller, one target. The two ends are played by
//! connections of our own, whose time is not counted: only what the exchange is given and asked.
//! CPU is the thread's own, in the share of time that the exchange took, so that a busy machine
//! does not change it much.
#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, reason = "a bench that breaks should say where")]

use std::{process::ExitCode, time::Duration};

use attache::h2::{
    connection::{Config, Connection, Event, Share},
    exchange::{Exchange, GivenBack, Outcome, Policy, Request, Target, Verdict},
    hpack::{Fields, Name},
    slab::{Key, Slab},
};
use tokio::time::Instant;

/// Everything goes to one target, with the caller's name on it.
#[derive(Debug, Default)]
struct Straight {
    ended: u64,
}

impl Policy for Straight {
    type Peer = ();
    type Call = ();

    fn on_request(&mut self, (): &(), request: &mut Request<'_>) -> (Verdict, ()) {
        request
            .fields
            .retain(|field| field.name != b"attache-caller-id");
        request.fields.push(
            b"attache-caller-id",
            b"spiffe://mesh.local/ns/default/agent/a",
        );
        (Verdict::Forward(Target(1)), ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Request<'_>, _: GivenBack) -> Verdict {
        Verdict::Forward(Target(1))
    }

    fn on_end(&mut self, (): (), outcome: &Outcome) {
        self.ended += u64::from(outcome.code.is_some_and(|code| code.0 == 0));
    }
}

/// An end of a connection that answers every call, or counts answers.
struct End {
    connection: Connection,
    fields: Fields,
    left: Vec<u8>,
    out: Vec<u8>,
    open: Vec<Key>,
    answered: usize,
}

impl End {
    fn new(config: Config, now: Instant) -> Self {
        Self {
            connection: Connection::new(config, now),
            fields: Fields::new(),
            left: Vec::new(),
            out: Vec::new(),
            open: Vec::new(),
            answered: 0,
        }
    }

    fn give(&mut self, bytes: &[u8], now: Instant) {
        self.left.extend_from_slice(bytes);
        let left = std::mem::take(&mut self.left);
        let mut at = 0;
        loop {
            let (used, event) = self
                .connection
                .receive(&left[at..], &mut self.fields, now)
                .unwrap();
            match event {
                Event::Request { stream, .. } => {
                    self.connection.assign(stream, key());
                    self.open.push(stream);
                }
                Event::Data { flow, .. } => self.connection.release_connection(flow),
                Event::Fields { end, .. } => self.answered += usize::from(end),
                Event::Quiet
                | Event::Eased
                | Event::Changed
                | Event::Oversized { .. }
                | Event::Reset { .. }
                | Event::Widened { .. }
                | Event::GoAway { .. } => {}
            }
            if used == 0 {
                break;
            }
            at += used;
        }
        self.left.extend_from_slice(&left[at..]);
    }

    fn take(&mut self, now: Instant) -> &[u8] {
        self.out.clear();
        self.connection.take_output(&mut self.out, now);
        self.connection.written(self.out.len(), now);
        &self.out
    }
}

fn key() -> Key {
    Slab::default().insert(())
}

fn list(fields: &[(Name, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push_known(*name, value.as_bytes());
    }
    list
}

struct Bench {
    exchange: Exchange<Straight>,
    caller: Key,
    target: Key,
    client: End,
    server: End,
    taken: Vec<u8>,
    spent: Duration,
}

impl Bench {
    fn new(now: Instant) -> Self {
        let mut exchange = Exchange::new(Straight::default(), now);
        let caller = exchange.accept((), Config::mesh(), now);
        let client = End::new(Config::upstream(), now);
        let server = End::new(Config::mesh(), now);
        let mut bench = Self {
            exchange,
            caller,
            target: caller,
            client,
            server,
            taken: Vec::new(),
            spent: Duration::ZERO,
        };
        bench.round(now);
        bench
    }

    /// Moves everything between one end and the exchange, both ways; only the exchange is timed.
    fn turn(&mut self, upstream: bool, now: Instant) -> bool {
        let (line, end) = match upstream {
            true => (self.target, &mut self.server),
            false => (self.caller, &mut self.client),
        };
        let bytes = end.take(now);
        let moved = !bytes.is_empty();
        let begun = Instant::now();
        assert_eq!(self.exchange.receive(line, bytes, now), bytes.len());
        let output = self.exchange.take_output(line, &mut self.taken, now);
        self.exchange.written(line, self.taken.len(), now);
        self.spent += begun.elapsed();
        end.give(&self.taken, now);
        self.taken.clear();
        if let Some(dial) = self.exchange.next_dial() {
            self.exchange.connected(dial.line, now);
            self.target = dial.line;
        }
        moved || output
    }

    fn round(&mut self, now: Instant) {
        loop {
            let moved = self.turn(false, now);
            if self.target == self.caller && !moved {
                return;
            }
            if self.target != self.caller && !self.turn(true, now) && !moved {
                return;
            }
        }
    }

    fn calls(&mut self, at_once: usize, body: &[u8], varying: bool, number: u64, now: Instant) {
        let stamp = format!("00-{number:032x}-{number:016x}-01");
        let timeout = format!("{}u", 5_000_000 - number % 1000);
        let mut request = list(&[
            (Name::Method, "POST"),
            (Name::Scheme, "http"),
            (Name::Path, "/bench.Echo/Unary"),
            (Name::Authority, "localhost"),
            (Name::Te, "trailers"),
            (Name::ContentType, "application/grpc"),
            (Name::UserAgent, "grpc-rust/0.14"),
        ]);
        if varying {
            request.push_known(Name::Traceparent, stamp.as_bytes());
            request.push_known(Name::GrpcTimeout, timeout.as_bytes());
        }
        for _ in 0..at_once {
            let stream = self
                .client
                .connection
                .open((key(), Share::ONLY), &request, false, now);
            send(&mut self.client.connection, stream, body, true, now);
        }
        self.round(now);
        let head = list(&[
            (Name::Status, "200"),
            (Name::ContentType, "application/grpc"),
        ]);
        let trailers = list(&[(Name::GrpcStatus, "0")]);
        for stream in std::mem::take(&mut self.server.open) {
            let connection = &mut self.server.connection;
            connection.send_fields(stream, &head, false, false);
            send(connection, stream, body, false, now);
            connection.send_fields(stream, &trailers, false, true);
        }
        self.round(now);
    }
}

fn send(connection: &mut Connection, stream: Key, body: &[u8], end: bool, now: Instant) {
    let mut at = 0;
    while at < body.len() {
        let sent = connection.send_data(stream, &body[at..], end, now);
        at += sent.expect("less than a window");
    }
}

/// CPU time of this thread so far (Linux).
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn main() -> ExitCode {
    let asked = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let calls: u64 = asked.unwrap_or(400_000);
    println!(
        "{:<34} {:>12} {:>12}",
        "calls through the exchange", "calls/s CPU", "ns CPU each"
    );
    for (size, at_once, varying) in [
        (128, 1, false),
        (128, 32, false),
        (128, 32, true),
        (128, 256, false),
        (16_384, 1, false),
        (16_384, 16, false),
    ] {
        let now = Instant::now();
        let mut bench = Bench::new(now);
        let body = vec![7; size];
        let rounds = calls / at_once as u64 / if size > 1000 { 8 } else { 1 };
        bench.calls(at_once, &body, varying, 0, now);
        bench.spent = Duration::ZERO;
        let done = bench.client.answered;
        let (begun, used) = (Instant::now(), thread_cpu());
        for number in 0..rounds {
            bench.calls(at_once, &body, varying, number, now);
        }
        let done = bench.client.answered - done;
        assert_eq!(done as u64, rounds * at_once as u64, "calls were lost");
        let what = format!(
            "{size} B, {at_once} at once{}",
            if varying { ", varying" } else { "" }
        );
        let share = bench.spent.as_secs_f64() / begun.elapsed().as_secs_f64();
        let each = (thread_cpu() - used).as_secs_f64() * share / done as f64;
        println!("{what:<34} {:>12.0} {:>12.0}", 1.0 / each, each * 1e9);
    }
    ExitCode::SUCCESS
}
