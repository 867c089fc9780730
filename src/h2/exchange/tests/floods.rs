//! The floods: each attacker is closed with ENHANCE_YOUR_CALM within its bound, little of it comes
//! to whoever answers, and another caller of the same target does not notice. Each is run again
//! with its limit lifted: then it must go on, or this test would prove nothing.

use std::time::Duration;

use crate::h2::{
    budget::{Allowance, Cost, Limits},
    connection::{Config, OUTPUT_STOP},
    exchange::Exchange,
    frame::{self, ErrorCode, Frame, Head, Kind, PREFACE, Setting, flag, write},
    hpack::Encoder,
    slab::Key,
    tests::{Recorder, World, request},
};

/// Frames that an attacker sends at the most.
const MOST: u32 = 4_000;
/// Frames come in batches of this many, one millisecond apart: 100,000 frames per second.
const BATCH: u32 = 100;

struct Attack {
    cost: Cost,
    /// Once, before the flood.
    opening: fn(&mut Attacker),
    /// One round of the flood.
    round: fn(&mut Attacker),
    /// Frames that a caller's limits let through: the burst, and what time and work give back.
    bound: u32,
}

/// Writes whatever it likes.
struct Attacker {
    out: Vec<u8>,
    encoder: Encoder,
    stream: u32,
}

impl Attacker {
    fn headers(&mut self, path: &str, flags: u8) {
        let mut block = Vec::new();
        self.encoder.encode(&request(path), &mut block);
        self.raw(Kind::Headers, flags, self.stream, &block);
    }

    fn raw(&mut self, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
        let head = Head {
            length: u32::try_from(payload.len()).unwrap(),
            kind,
            flags,
            stream,
        };
        self.out.extend_from_slice(&head.octets());
        self.out.extend_from_slice(payload);
    }

    fn reset(&mut self) {
        write::reset(&mut self.out, self.stream, ErrorCode::Cancel);
    }

    fn next(&mut self) {
        self.stream += 2;
    }
}

const OPEN: u8 = flag::END_HEADERS;
const WHOLE: u8 = flag::END_HEADERS | flag::END_STREAM;

fn nothing(_: &mut Attacker) {}

fn open(attacker: &mut Attacker) {
    attacker.headers("/t/1/attack", OPEN);
}

fn rapid_reset_known(attacker: &mut Attacker) {
    attacker.headers("/t/1/attack", WHOLE);
    attacker.reset();
    attacker.next();
}

fn rapid_reset_unknown(attacker: &mut Attacker) {
    attacker.headers("/none", WHOLE);
    attacker.reset();
    attacker.next();
}

fn made_you_reset(attacker: &mut Attacker) {
    attacker.headers("/t/1/attack", OPEN);
    attacker.raw(Kind::WindowUpdate, 0, attacker.stream, &[0; 4]);
    attacker.next();
}

fn made_you_reset_by_overflow(attacker: &mut Attacker) {
    attacker.headers("/t/1/attack", OPEN);
    attacker.raw(
        Kind::WindowUpdate,
        0,
        attacker.stream,
        &[127, 255, 255, 255],
    );
    attacker.next();
}

fn made_you_reset_by_data(attacker: &mut Attacker) {
    attacker.headers("/t/1/attack", WHOLE);
    attacker.raw(Kind::Data, 0, attacker.stream, b"x");
    attacker.next();
}

const ATTACKS: &[(&str, Attack)] = &[
    (
        "rapid reset, known path",
        attack(Cost::Reset, nothing, rapid_reset_known, 220),
    ),
    (
        "rapid reset, unknown path",
        attack(Cost::Reset, nothing, rapid_reset_unknown, 220),
    ),
    (
        "made you reset",
        attack(Cost::Reset, nothing, made_you_reset, 220),
    ),
    (
        "made you reset, overflow",
        attack(Cost::Reset, nothing, made_you_reset_by_overflow, 220),
    ),
    (
        "made you reset, data",
        attack(Cost::Reset, nothing, made_you_reset_by_data, 220),
    ),
    (
        "continuation",
        attack(
            Cost::Continuation,
            |attacker| attacker.headers("/t/1/attack", 0),
            |attacker| attacker.raw(Kind::Continuation, 0, attacker.stream, b""),
            220,
        ),
    ),
    (
        "empty data",
        attack(
            Cost::EmptyData,
            open,
            |attacker| attacker.raw(Kind::Data, 0, attacker.stream, b""),
            120,
        ),
    ),
    (
        "padding only",
        attack(
            Cost::EmptyData,
            open,
            |attacker| attacker.raw(Kind::Data, flag::PADDED, attacker.stream, &[1, 0]),
            120,
        ),
    ),
    (
        "ping",
        attack(
            Cost::Ping,
            nothing,
            |attacker| write::ping(&mut attacker.out, false, [7; 8]),
            110,
        ),
    ),
    (
        "settings",
        attack(
            Cost::Settings,
            nothing,
            |attacker| write::settings(&mut attacker.out, &[Setting::InitialWindowSize(9)]),
            25,
        ),
    ),
    (
        "priority",
        attack(
            Cost::Priority,
            nothing,
            |attacker| attacker.raw(Kind::Priority, 0, 1, &[0, 0, 0, 3, 9]),
            220,
        ),
    ),
    (
        "unknown frames",
        attack(
            Cost::Priority,
            nothing,
            |attacker| attacker.raw(Kind::Unknown(0x42), 0, 1, b"?"),
            220,
        ),
    ),
    (
        "window update",
        attack(
            Cost::WindowUpdate,
            nothing,
            |attacker| write::window_update(&mut attacker.out, 0, 1),
            1050,
        ),
    ),
    (
        "late data",
        attack(
            Cost::Late,
            |attacker| {
                open(attacker);
                attacker.reset();
            },
            |attacker| attacker.raw(Kind::Data, 0, attacker.stream, b"x"),
            450,
        ),
    ),
];

const fn attack(
    cost: Cost,
    opening: fn(&mut Attacker),
    round: fn(&mut Attacker),
    bound: u32,
) -> Attack {
    Attack {
        cost,
        opening,
        round,
        bound,
    }
}

/// Everybody has a lot of this one.
fn lifted(cost: Cost) -> Limits {
    let plenty = Allowance {
        burst: 1 << 20,
        per_second: 0,
    };
    Limits::CALLER.with(cost, plenty)
}

/// Lets the attacker loose. Answers after how many rounds it was closed.
fn run(world: &mut World, line: Key, attack: &Attack) -> Option<u32> {
    let mut attacker = Attacker {
        out: PREFACE.to_vec(),
        encoder: Encoder::new(),
        stream: 1,
    };
    write::settings(&mut attacker.out, &[]);
    write::settings_ack(&mut attacker.out);
    (attack.opening)(&mut attacker);
    for round in 0..MOST {
        (attack.round)(&mut attacker);
        world.exchange.receive(line, &attacker.out, world.now);
        attacker.out.clear();
        if world.exchange.over(line) {
            return Some(round);
        }
        if round % BATCH == 0 {
            world.now += Duration::from_millis(1);
            world.run();
            drop(said(&mut world.exchange, line, world.now));
        }
    }
    None
}

/// The frames that were written for a line; the attacker reads them.
fn said(exchange: &mut Exchange<Recorder>, line: Key, now: tokio::time::Instant) -> Vec<String> {
    let mut out = Vec::new();
    if exchange.take_output(line, &mut out, now) {
        exchange.written(line, out.len(), now);
    }
    assert!(
        out.len() <= OUTPUT_STOP,
        "{} bytes for an attacker",
        out.len()
    );
    let (mut rest, mut said) = (&out[..], Vec::new());
    while let Ok(Some(split)) = frame::split(rest, 1 << 14) {
        rest = split.rest;
        #[expect(clippy::wildcard_enum_match_arm, reason = "shown as they are")]
        said.push(match Frame::parse(split.head, split.payload).unwrap() {
            Frame::GoAway { code, debug, .. } => {
                format!("goaway {code} {}", String::from_utf8_lossy(debug))
            }
            Frame::Reset { code, .. } => format!("reset {code}"),
            frame => format!("{frame:?}"),
        });
    }
    said
}

#[test]
fn every_flood_ends_its_own_connection_and_nothing_else() {
    for (name, attack) in ATTACKS {
        let mut world = World::new();
        let other = world.caller();
        let call = world.client(other).start(&request("/t/1/other"), false);
        world.run();
        let line = world.exchange.accept((), Config::caller(), world.now);
        let rounds = run(&mut world, line, attack).unwrap_or(MOST);
        assert!(rounds <= attack.bound, "{name}: {rounds} rounds");
        let said = said(&mut world.exchange, line, world.now);
        let goaway = format!("goaway ENHANCE_YOUR_CALM {}", attack.cost.limit());
        assert!(said.contains(&goaway), "{name}: {said:?}");
        world.exchange.closed(line, world.now);
        world.run();
        // The other caller shares the line to the target, and the target has seen no more of
        // the attack than the bound.
        assert!(
            world.server(0).calls.len() <= attack.bound as usize + 2,
            "{name}"
        );
        assert_eq!(world.answering.len(), 1, "{name}");
        world.client(other).send(call, b"still here", true);
        world.run();
        world.server(0).answer(0, b"yes", "0");
        world.run();
        assert_eq!(world.client(other).calls[call].body, b"yes", "{name}");
        assert_eq!(
            (world.exchange.calls(), world.exchange.parked()),
            (0, 0),
            "{name}"
        );
        let begun = world.exchange.policy().begun;
        assert_eq!(world.outcomes().len(), begun, "{name}: each call ends once");
    }
}

#[test]
fn without_its_limit_no_flood_is_stopped_in_time() {
    for (name, attack) in ATTACKS {
        let mut world = World::new();
        let limits = Box::leak(Box::new(lifted(attack.cost)));
        let config = Config {
            limits,
            ..Config::caller()
        };
        let line = world.exchange.accept((), config, world.now);
        let rounds = run(&mut world, line, attack);
        // Some break two limits: then the other one stops them, later.
        let stopped = rounds.is_some_and(|rounds| rounds <= attack.bound);
        assert!(
            !stopped,
            "{name}: {rounds:?}, not stopped by what it is meant to be stopped by"
        );
    }
}

#[test]
fn a_window_of_crumbs_is_not_fed_for_ever() {
    let mut world = World::new();
    let other = world.caller();
    let line = world.exchange.accept((), Config::caller(), world.now);
    let mut attacker = Attacker {
        out: PREFACE.to_vec(),
        encoder: Encoder::new(),
        stream: 1,
    };
    write::settings(&mut attacker.out, &[Setting::InitialWindowSize(1)]);
    write::settings_ack(&mut attacker.out);
    attacker.headers("/t/1/crumbs", WHOLE);
    world.exchange.receive(line, &attacker.out, world.now);
    world.run();
    world.server(0).fields(0, &[(":status", "200")], false);
    world.server(0).send(0, &[7; 60_000], true);
    world.run();
    let mut rounds = 0;
    while !world.exchange.over(line) && rounds < MOST {
        let mut out = Vec::new();
        write::window_update(&mut out, 1, 1);
        world.exchange.receive(line, &out, world.now);
        said(&mut world.exchange, line, world.now);
        rounds += 1;
    }
    assert!(rounds <= 1100, "{rounds}");
    world.exchange.closed(line, world.now);
    let call = world.client(other).start(&request("/t/1/other"), true);
    world.run();
    world.server(0).answer(1, b"yes", "0");
    world.run();
    assert_eq!(world.client(other).calls[call].body, b"yes");
}

/// A busy client is no attacker: thousands of calls, every tenth given up, each with its
/// window updates and now and then a PING.
#[test]
fn a_busy_caller_is_left_alone() {
    let mut world = World::new();
    let caller = world.caller();
    for round in 0..4_000_usize {
        world.now += Duration::from_millis(2);
        let client = world.client(caller);
        client.calls.clear();
        let call = client.start(&request("/t/1/busy"), false);
        client.send(call, b"question", true);
        world.run();
        if round % 10 == 0 {
            world.client(caller).reset(call, ErrorCode::Cancel);
        } else {
            let last = world.server(0).calls.len() - 1;
            world.server(0).answer(last, b"answer", "0");
        }
        world.run();
        assert!(
            !world.exchange.over(world.callers[caller].0),
            "round {round}"
        );
        if round % 100 == 0 {
            let mut out = Vec::new();
            write::ping(&mut out, false, [1; 8]);
            world
                .exchange
                .receive(world.callers[caller].0, &out, world.now);
        }
    }
}
