//! Calls that go well: every kind, in pieces of every size, beside slow ones and over full lines.

use crate::h2::{
    connection::Config,
    exchange::{Destination, End, Target},
    grpc::Code,
    tests::{World, list, request},
};

#[test]
fn a_unary_call_goes_there_and_back() {
    for piece in [1, 5, 64, 1 << 20] {
        let mut world = World::new();
        let caller = world.caller();
        world.piece = piece;
        let mut fields = request("/t/7/unary");
        fields.push(b"x-strip", b"secret");
        fields.push(b"x-kept", b"kept");
        let call = world.client(caller).start(&fields, false);
        world.client(caller).send(call, b"question", true);
        world.run();
        let answering = &world.answering[0];
        assert_eq!(answering.1, Destination::Target(Target(7)));
        let seen = &answering.2.calls[0];
        assert_eq!((&seen.body[..], seen.ended), (&b"question"[..], true));
        assert_eq!(seen.fields.get("x-stamp").unwrap(), "stamped");
        assert_eq!(seen.fields.get("x-kept").unwrap(), "kept");
        assert_eq!(seen.fields.get("x-strip"), None);
        world.server(0).answer(0, b"answer", "0");
        world.run();
        let seen = &world.client(caller).calls[call];
        assert_eq!((&seen.body[..], seen.ended), (&b"answer"[..], true));
        assert_eq!(seen.fields.get("grpc-status").unwrap(), "0");
        assert_eq!(seen.fields.get("x-trailed").unwrap(), "yes");
        let outcomes = world.outcomes();
        assert_eq!(outcomes.len(), 1);
        let outcome = outcomes[0];
        assert_eq!((outcome.end, outcome.code), (End::Answered, Some(Code::OK)));
        assert_eq!(
            (outcome.sent, outcome.received, outcome.attempts),
            (8, 6, 1)
        );
        assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
    }
}

#[test]
fn many_callers_share_one_line_to_a_target_and_each_has_its_own_pipe() {
    let mut world = World::new();
    for _ in 0..3 {
        let caller = world.caller();
        for path in ["/t/1/a", "/t/2/a", "/local/a"] {
            world.client(caller).start(&request(path), true);
        }
    }
    world.run();
    let local = |to: &Destination| matches!(to, Destination::Local { .. });
    let pipes = world.answering.iter().filter(|(_, to, _)| local(to));
    assert_eq!((world.answering.len(), pipes.count()), (5, 3));
}

#[test]
fn streams_both_ways_at_once_pass_whatever_the_sizes() {
    let mut world = World::new();
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/chat"), false);
    world.run();
    world.server(0).fields(0, &[(":status", "200")], false);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for size in [0, 1, 5, 16_384, 16_385, 100_000, 3] {
        up.extend(vec![1; size]);
        down.extend(vec![2; size + 1]);
        world.client(caller).send(call, &vec![1; size], false);
        world.server(0).send(0, &vec![2; size + 1], false);
        world.run();
    }
    world.client(caller).send(call, b"", true);
    world.run();
    assert!(world.server(0).calls[0].ended);
    world.server(0).fields(0, &[("grpc-status", "3")], true);
    world.run();
    assert_eq!(world.server(0).calls[0].body, up);
    assert_eq!(world.client(caller).calls[call].body, down);
    assert_eq!(world.outcomes()[0].code, Some(Code(3)));
    assert_eq!(world.exchange.calls(), 0);
}

#[test]
fn an_answer_may_end_before_its_request_does() {
    let mut world = World::new();
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/early"), false);
    world.run();
    world.server(0).answer(0, b"enough", "0");
    world.run();
    assert!(world.client(caller).calls[call].ended);
    assert_eq!(world.exchange.calls(), 1, "the request may go on");
    world
        .server(0)
        .reset(0, crate::h2::frame::ErrorCode::NoError);
    world.run();
    let client = world.client(caller);
    assert_eq!(
        client.calls[call].log.last().unwrap(),
        "reset NO_ERROR false"
    );
    assert_eq!(world.outcomes()[0].end, End::Answered);
    assert_eq!(world.exchange.calls(), 0);
}

#[test]
fn trailers_of_a_request_and_interim_answers_pass() {
    let mut world = World::new();
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/odd"), false);
    world.client(caller).send(call, b"x", false);
    world
        .client(caller)
        .fields(call, &[("x-end", "of request")], true);
    world.run();
    assert_eq!(
        world.server(0).calls[0].fields.get("x-end").unwrap(),
        "of request"
    );
    world
        .server(0)
        .fields(0, &[(":status", "103"), ("link", "</a>")], false);
    world.server(0).answer(0, b"", "0");
    world.run();
    let seen = &world.client(caller).calls[call];
    assert_eq!(seen.log, ["Interim false", "Head false", "Trailers true"]);
    assert_eq!(seen.fields.get("link").unwrap(), "</a>");
}

#[test]
fn a_slow_reader_holds_up_itself_alone_and_parks_one_window() {
    let mut world = World::new();
    let caller = world.caller();
    world.run();
    world.client(caller).reads = false;
    let slow: Vec<usize> = (0..40)
        .map(|_| world.client(caller).start(&request("/t/1/slow"), true))
        .collect();
    world.run();
    for call in 0..slow.len() {
        world.server(0).fields(call, &[(":status", "200")], false);
    }
    let piece = vec![7; 256 << 10];
    for _ in 0..200 {
        for call in 0..slow.len() {
            world.server(0).send(call, &piece, false);
        }
        world.run();
    }
    let parked = world.exchange.parked();
    // What the caller's own windows took, and one window parked, for each.
    assert!(parked > 20 << 20 && parked <= 41 << 20, "{parked}");
    let fast = world.client(caller).start(&request("/t/1/fast"), true);
    world.run();
    world.server(0).answer(40, b"at once", "0");
    world.run();
    assert!(
        world.client(caller).calls[fast].ended,
        "a fast call beside slow ones"
    );
    // They wake up: everything comes, and their streams upstream go on.
    for _ in 0..100 {
        for (answering, call) in slow.iter().enumerate() {
            world.server(0).send(answering, &[7; 64 << 10], false);
            world.client(caller).read(*call);
        }
        world.run();
    }
    for _ in 0..100 {
        for call in &slow {
            world.client(caller).read(*call);
        }
        world.run();
    }
    assert_eq!(world.exchange.parked(), 0);
    // Those of the first streams fill the server's output alone: they go on for long.
    let client = world.client(caller);
    assert!(
        client.calls[0].body.len() > 3 << 20,
        "{}",
        client.calls[0].body.len()
    );
    assert!(
        client.calls[..slow.len()]
            .iter()
            .all(|seen| seen.body.len() >= 2 << 20)
    );
}

#[test]
fn calls_wait_for_a_stream_in_turn() {
    let mut world = World::new();
    world.server = Config {
        max_streams: 2,
        ..Config::mesh()
    };
    let caller = world.caller();
    for number in 0..5 {
        let call = world.client(caller).start(&request("/t/1/wait"), false);
        world.client(caller).send(call, &[number; 10], true);
    }
    world.run();
    for answered in 0..5 {
        assert_eq!(world.server(0).calls.len(), (answered + 2).min(5));
        let number = u8::try_from(answered).unwrap();
        assert_eq!(world.server(0).calls[answered].body, [number; 10]);
        world.server(0).answer(answered, b"", "0");
        world.run();
    }
    assert_eq!(world.outcomes().len(), 5);
}

#[test]
fn what_nobody_does_is_answered_here() {
    let mut world = World::new();
    let caller = world.caller();
    let grpc = world.client(caller).start(&request("/none"), true);
    let plain = [(":method", "GET"), (":scheme", "http"), (":path", "/none")];
    let plain = world.client(caller).start(&list(&plain), true);
    let open = world.client(caller).start(&request("/none"), false);
    let mut large = request("/t/1/large");
    large.push(b"x-large", &[b'a'; 17_000]);
    let large = world.client(caller).start(&large, true);
    world.run();
    let client = world.client(caller);
    let field = |call: usize, name| client.calls[call].fields.get(name).cloned();
    assert_eq!(field(grpc, "grpc-status").unwrap(), "12");
    assert_eq!(field(grpc, "grpc-message").unwrap(), "no such path");
    assert_eq!(field(plain, ":status").unwrap(), "404");
    assert_eq!(field(plain, "grpc-status"), None);
    assert_eq!(
        client.calls[open].log,
        ["Head true", "reset NO_ERROR false"]
    );
    assert_eq!(field(large, "grpc-status").unwrap(), "8");
    assert_eq!(world.outcomes().len(), 3);
    assert!(world.answering.is_empty());
}
