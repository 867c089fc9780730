//! Whatever anybody does: no panic, bounded memory, every call ends once, and no byte is lost,
//! doubled or given to somebody else.

use std::time::Duration;

use proptest::prelude::*;

use crate::h2::{
    connection::{Config, OUTPUT_STOP},
    frame::{ErrorCode, Setting, write},
    tests::{End, Seen, World, request},
};

const CALLERS: usize = 3;

#[derive(Debug, Clone)]
enum Act {
    Start {
        caller: usize,
        target: u8,
        end: bool,
    },
    Send {
        caller: usize,
        call: usize,
        size: usize,
        end: bool,
    },
    GiveUp {
        caller: usize,
        call: usize,
    },
    Head {
        server: usize,
        call: usize,
    },
    Answer {
        server: usize,
        call: usize,
        size: usize,
    },
    Trailers {
        server: usize,
        call: usize,
    },
    Refuse {
        server: usize,
        call: usize,
        code: ErrorCode,
    },
    Reading {
        who: usize,
        yes: bool,
    },
    Window {
        who: usize,
        size: u32,
    },
    Piece(usize),
    Time(u64),
    GoAway {
        server: usize,
        last: u32,
    },
    Cut {
        server: usize,
    },
    Hang {
        caller: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let n = 0usize..1000;
    let code = prop_oneof![
        Just(ErrorCode::RefusedStream),
        Just(ErrorCode::Cancel),
        Just(ErrorCode::NoError),
        Just(ErrorCode::Internal),
    ];
    let size = prop_oneof![Just(0usize), 0usize..100, 0usize..70_000];
    let act = prop_oneof![
        6 => (n.clone(), 0u8..4, any::<bool>())
            .prop_map(|(caller, target, end)| Act::Start { caller, target, end }),
        8 => (n.clone(), n.clone(), size.clone(), any::<bool>())
            .prop_map(|(caller, call, size, end)| Act::Send { caller, call, size, end }),
        2 => (n.clone(), n.clone()).prop_map(|(caller, call)| Act::GiveUp { caller, call }),
        5 => (n.clone(), n.clone()).prop_map(|(server, call)| Act::Head { server, call }),
        8 => (n.clone(), n.clone(), size)
            .prop_map(|(server, call, size)| Act::Answer { server, call, size }),
        5 => (n.clone(), n.clone()).prop_map(|(server, call)| Act::Trailers { server, call }),
        2 => (n.clone(), n.clone(), code)
            .prop_map(|(server, call, code)| Act::Refuse { server, call, code }),
        2 => (n.clone(), any::<bool>()).prop_map(|(who, yes)| Act::Reading { who, yes }),
        1 => (n.clone(), prop_oneof![Just(0u32), 0u32..100, Just(1 << 20)])
            .prop_map(|(who, size)| Act::Window { who, size }),
        1 => prop_oneof![1usize..20, Just(1 << 20)].prop_map(Act::Piece),
        1 => (0u64..3000).prop_map(Act::Time),
        1 => (n.clone(), 0u32..20).prop_map(|(server, last)| Act::GoAway { server, last }),
        1 => n.clone().prop_map(|server| Act::Cut { server }),
        1 => n.prop_map(|caller| Act::Hang { caller }),
    ];
    prop::collection::vec(act, 1..120)
}

/// The byte at a place of a message, so that nothing passes for anything else.
fn byte(message: usize, at: usize) -> u8 {
    let mixed = message.wrapping_mul(131) ^ at.wrapping_mul(7) ^ (at >> 8);
    u8::try_from(mixed & 0xff).unwrap()
}

fn bytes(message: usize, from: usize, size: usize) -> Vec<u8> {
    (from..from + size).map(|at| byte(message, at)).collect()
}

/// Whether a body is the beginning of a message.
fn begins(body: &[u8], message: usize) -> bool {
    body.iter()
        .enumerate()
        .all(|(at, found)| *found == byte(message, at))
}

/// The number of a call, which its path carries to whoever answers.
fn number_of(seen: &Seen) -> usize {
    let path = seen.fields.get(":path").unwrap();
    path.rsplit('/').next().unwrap().parse().unwrap()
}

#[derive(Default)]
struct Chaos {
    /// Per call ever made: caller, its number there, bytes sent, whether it has ended.
    made: Vec<(usize, usize, usize, bool)>,
    gone: Vec<End>,
    hung: Vec<End>,
}

impl Chaos {
    #[expect(clippy::too_many_lines, reason = "a table of what each act does")]
    fn act(&mut self, world: &mut World, act: Act) {
        match act {
            Act::Start {
                caller,
                target,
                end,
            } => self.start(world, caller, target, end),
            Act::Send {
                caller,
                call,
                size,
                end,
            } => self.send(world, caller, call, size, end),
            Act::GiveUp { caller, call } => {
                if let Some((client, call)) = pick(world.callers.get_mut(caller % CALLERS), call) {
                    client.reset(call, ErrorCode::Cancel);
                    client.calls[call].reset = true;
                }
            }
            Act::Head { server, call } => answering(world, server, call, |server, call| {
                server.fields(call, &[(":status", "200")], false);
            }),
            Act::Answer { server, call, size } => answering(world, server, call, |server, call| {
                // How much was sent stands in `unread`, which servers that read do not use.
                let seen = &server.calls[call];
                let (number, from) = (number_of(seen), seen.unread as usize);
                let sent = server.send(call, &bytes(number + 1, from, size), false);
                server.calls[call].unread += u32::try_from(sent).unwrap();
            }),
            Act::Trailers { server, call } => answering(world, server, call, |server, call| {
                let sent = server.calls[call].unread.to_string();
                server.fields(call, &[("grpc-status", "0"), ("x-sent", &sent)], true);
            }),
            Act::Refuse { server, call, code } => answering(world, server, call, |server, call| {
                server.reset(call, code);
            }),
            Act::Reading { who, yes } => {
                let client = &mut world.callers[who % CALLERS].1;
                client.reads = yes;
                for call in 0..client.calls.len() {
                    client.read(call);
                }
            }
            Act::Window { who, size } => {
                let line = world.callers[who % CALLERS].0;
                let mut out = Vec::new();
                write::settings(&mut out, &[Setting::InitialWindowSize(size)]);
                world.exchange.receive(line, &out, world.now);
            }
            Act::Piece(size) => world.piece = size,
            Act::Time(millis) => {
                world.now += Duration::from_millis(millis);
                world.exchange.on_time(world.now);
            }
            Act::GoAway { server, last } => {
                if !world.answering.is_empty() {
                    let line = world.answering[server % world.answering.len()].0;
                    let mut out = Vec::new();
                    write::goaway(&mut out, last, ErrorCode::NoError, b"");
                    world.exchange.receive(line, &out, world.now);
                }
            }
            Act::Cut { server } => {
                if !world.answering.is_empty() {
                    let server = server % world.answering.len();
                    self.gone.push(world.cut(server));
                }
            }
            Act::Hang { caller } => self.hang(world, caller % CALLERS),
        }
    }

    fn start(&mut self, world: &mut World, caller: usize, target: u8, end: bool) {
        let caller = caller % CALLERS;
        let number = self.made.len();
        let path = match target {
            0 => format!("/local/{number}"),
            _ => format!("/t/{target}/{number}"),
        };
        let client = &mut world.callers[caller].1;
        if client.connection.room() == crate::h2::connection::Room::Yes {
            let call = client.start(&request(&path), end);
            self.made.push((caller, call, 0, end));
        }
    }

    fn send(&mut self, world: &mut World, caller: usize, call: usize, size: usize, end: bool) {
        let Some((client, call)) = pick(world.callers.get_mut(caller % CALLERS), call) else {
            return;
        };
        let made = (0..).zip(&mut self.made);
        let mut mine =
            made.filter(|(_, (owner, own, ..))| (*owner, *own) == (caller % CALLERS, call));
        let (number, (_, _, sent, ended)) = mine.next().unwrap();
        if *ended || client.calls[call].reset {
            return;
        }
        let more = client.send(call, &bytes(number, *sent, size), end);
        *sent += more;
        *ended = end && more == size && client.connection.backlog() > 0;
    }

    /// A caller goes away and another one takes its place.
    fn hang(&mut self, world: &mut World, caller: usize) {
        let line = world.callers[caller].0;
        world.exchange.closed(line, world.now);
        let line = world.exchange.accept((), Config::caller(), world.now);
        let fresh = End::new(Config::agent(), world.now);
        let (_, old) = std::mem::replace(&mut world.callers[caller], (line, fresh));
        self.hung.push(old);
        for made in &mut self.made {
            if made.0 == caller {
                made.0 = usize::MAX;
            }
        }
        world.run();
    }

    /// What must hold at the end: who answered saw beginnings of what was sent, and who called
    /// saw beginnings of answers, whole ones where trailers say so.
    fn check(&self, world: &World) -> Result<(), TestCaseError> {
        let servers = world
            .answering
            .iter()
            .map(|(_, _, end)| end)
            .chain(&self.gone);
        for seen in servers.flat_map(|server| &server.calls) {
            let number = number_of(seen);
            let (.., sent, ended) = self.made[number];
            prop_assert!(begins(&seen.body, number), "call {number}: foreign bytes");
            prop_assert!(seen.body.len() <= sent, "call {number}: more than was sent");
            prop_assert!(
                !seen.ended || (ended && seen.body.len() == sent),
                "call {number}: cut"
            );
        }
        for (caller, call, ..) in self.made.iter().filter(|made| made.0 != usize::MAX) {
            let number = self
                .made
                .iter()
                .position(|made| (made.0, made.1) == (*caller, *call));
            let seen = &world.callers[*caller].1.calls[*call];
            prop_assert!(begins(&seen.body, number.unwrap() + 1), "foreign bytes");
            if let Some(sent) = seen.fields.get("x-sent").filter(|_| seen.ended) {
                prop_assert_eq!(seen.body.len().to_string(), sent.as_str());
            }
        }
        Ok(())
    }
}

fn pick(
    caller: Option<&mut (crate::h2::slab::Key, End)>,
    call: usize,
) -> Option<(&mut End, usize)> {
    let client = &mut caller?.1;
    let count = client.calls.len();
    (count > 0).then(|| (client, call % count))
}

fn answering(world: &mut World, server: usize, call: usize, act: impl FnOnce(&mut End, usize)) {
    let count = world.answering.len();
    if count > 0 && !world.answering[server % count].2.calls.is_empty() {
        let server = world.server(server % count);
        let call = call % server.calls.len();
        act(server, call);
    }
}

fn memory_is_bounded(world: &World) -> Result<(), TestCaseError> {
    let streams = CALLERS * 100;
    prop_assert!(world.exchange.calls() <= streams);
    prop_assert!(world.exchange.parked() <= streams * 2 * (1 << 20));
    for (line, _) in &world.callers {
        prop_assert!(world.exchange.backlog(*line) <= OUTPUT_STOP + (64 << 10));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_anybody_does(acts in acts()) {
        let mut world = World::new();
        for _ in 0..CALLERS {
            world.caller();
        }
        let mut chaos = Chaos::default();
        for act in acts {
            chaos.act(&mut world, act);
            world.run();
            memory_is_bounded(&world)?;
        }
        chaos.check(&world)?;
        for caller in 0..CALLERS {
            let line = world.callers[caller].0;
            world.exchange.closed(line, world.now);
        }
        world.run();
        prop_assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
        prop_assert_eq!(world.exchange.kept(), 0);
        let begun = world.exchange.policy().begun;
        prop_assert_eq!(world.outcomes().len(), begun);
    }

    /// Bytes that no implementation sends, from either side.
    #[test]
    fn whatever_bytes_come(
        noise in prop::collection::vec(
            (any::<bool>(), 0u8..12, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..40)),
            1..60,
        ),
        piece in 1usize..50,
    ) {
        let mut world = World::new();
        let caller = world.caller();
        world.client(caller).start(&request("/t/1/a"), false);
        world.client(caller).start(&request("/t/1/b"), true);
        world.run();
        world.server(0).fields(1, &[(":status", "200")], false);
        world.run();
        for (down, kind, flags, stream, payload) in noise {
            let line = if down { world.callers[0].0 } else { world.answering[0].0 };
            let length = u8::try_from(payload.len()).unwrap();
            let stream = stream.to_be_bytes();
            let mut frame = vec![0, 0, length, kind, flags];
            frame.extend(stream);
            frame.extend(payload);
            let mut left = Vec::new();
            for piece in frame.chunks(piece) {
                left.extend_from_slice(piece);
                let used = world.exchange.receive(line, &left, world.now);
                left.drain(..used);
            }
            memory_is_bounded(&world)?;
        }
        world.run();
        let lines: Vec<_> = world.callers.iter().map(|(line, _)| *line).collect();
        for line in lines {
            world.exchange.closed(line, world.now);
        }
        prop_assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
        prop_assert_eq!(world.exchange.kept(), 0);
        let begun = world.exchange.policy().begun;
        prop_assert_eq!(world.outcomes().len(), begun);
    }
}
