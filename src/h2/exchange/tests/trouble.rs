//! Calls that do not go well: resets, deadlines, lost connections, calls that are given back.

use std::time::Duration;

use crate::h2::{
    call::ATTEMPTS,
    connection::{Config, Resets},
    exchange::{End, GivenBack, STALL},
    frame::{ErrorCode, write},
    grpc::Code,
    slab::Key,
    tests::{World, list, request},
};

/// A call whose caller reads nothing of the 1,600,000 bytes that it is answered.
fn unread() -> (World, usize, usize) {
    let (mut world, caller, call) = under_way(b"x", true);
    world.client(caller).reads = false;
    world.server(0).fields(0, &[(":status", "200")], false);
    for _ in 0..4 {
        world.server(0).send(0, &vec![1; 400_000], false);
        world.run();
    }
    (world, caller, call)
}

/// A caller with a call under way whose request has come to whoever answers.
fn under_way(body: &[u8], end: bool) -> (World, usize, usize) {
    let mut world = World::new();
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/call"), false);
    world.client(caller).send(call, body, end);
    world.run();
    (world, caller, call)
}

fn status(world: &mut World, caller: usize, call: usize) -> String {
    world.client(caller).calls[call]
        .fields
        .get("grpc-status")
        .cloned()
        .unwrap_or_else(|| "none".into())
}

fn raw(world: &mut World, line: Key, write: impl FnOnce(&mut Vec<u8>)) {
    let mut out = Vec::new();
    write(&mut out);
    assert_eq!(world.exchange.receive(line, &out, world.now), out.len());
}

#[test]
fn a_caller_that_gives_up_is_noticed_upstream() {
    let (mut world, caller, call) = under_way(b"x", false);
    world.client(caller).reset(call, ErrorCode::Cancel);
    world.run();
    assert_eq!(
        world.server(0).calls[0].log.last().unwrap(),
        "reset CANCEL false"
    );
    let outcome = world.outcomes()[0];
    assert_eq!(
        (outcome.end, outcome.code),
        (End::GivenUp, Some(Code::CANCELLED))
    );
    assert_eq!(world.exchange.calls(), 0);
}

#[test]
fn a_reset_upstream_reaches_the_caller_as_it_is() {
    for (code, status) in [
        (ErrorCode::Cancel, Code::CANCELLED),
        (ErrorCode::Internal, Code::INTERNAL),
        (ErrorCode::EnhanceYourCalm, Code::RESOURCE_EXHAUSTED),
        (ErrorCode::Other(99), Code::UNKNOWN),
    ] {
        for answered in [false, true] {
            let (mut world, caller, call) = under_way(b"x", true);
            if answered {
                world.server(0).fields(0, &[(":status", "200")], false);
            }
            world.run();
            world.server(0).reset(0, code);
            world.run();
            let log = &world.client(caller).calls[call].log;
            assert_eq!(*log.last().unwrap(), format!("reset {code} false"));
            let outcome = world.outcomes()[0];
            assert_eq!((outcome.end, outcome.code), (End::Failed, Some(status)));
        }
    }
}

#[test]
fn what_was_refused_is_sent_again_and_at_last_told() {
    let (mut world, caller, call) = under_way(&[5; 20_000], true);
    for attempt in 0..usize::from(ATTEMPTS) {
        assert_eq!(world.server(0).calls.len(), attempt + 1);
        let seen = &world.server(0).calls[attempt];
        assert_eq!((seen.body.len(), seen.ended), (20_000, true));
        world.server(0).reset(attempt, ErrorCode::RefusedStream);
        world.run();
    }
    assert_eq!(status(&mut world, caller, call), "14");
    assert_eq!(world.exchange.policy().again, [GivenBack::Unprocessed; 2]);
    assert_eq!(world.outcomes()[0].attempts, ATTEMPTS);

    let (mut world, caller, call) = under_way(&[5; 20_000], true);
    world.server(0).reset(0, ErrorCode::RefusedStream);
    world.run();
    world.server(0).answer(1, b"well", "0");
    world.run();
    assert_eq!(world.client(caller).calls[call].body, b"well");
    assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
}

#[test]
fn a_request_that_goes_on_is_sent_again_from_its_first_byte() {
    let (mut world, caller, call) = under_way(&[1; 1000], false);
    world.server(0).reset(0, ErrorCode::RefusedStream);
    world.client(caller).send(call, &[2; 1000], false);
    world.run();
    world.client(caller).send(call, &[3; 1000], true);
    world.run();
    let body = &world.server(0).calls[1].body;
    assert_eq!(
        (body.len(), &body[..2], &body[2998..]),
        (3000, &[1, 1][..], &[3, 3][..])
    );
}

#[test]
fn more_than_is_kept_is_not_sent_again() {
    let (mut world, caller, call) = under_way(&[5; 70_000], false);
    world.server(0).reset(0, ErrorCode::RefusedStream);
    world.run();
    assert_eq!(status(&mut world, caller, call), "14");
    assert_eq!(world.server(0).calls.len(), 1);
}

#[test]
fn all_that_is_kept_together_has_a_bound() {
    let mut world = World::new();
    let callers: Vec<usize> = (0..4).map(|_| world.caller()).collect();
    for caller in callers {
        for _ in 0..100 {
            let call = world.client(caller).start(&request("/t/1/keep"), false);
            world.client(caller).send(call, &[1; 60_000], false);
            world.run();
        }
    }
    let kept = world.exchange.kept();
    assert!(kept > 15 << 20 && kept <= 16 << 20, "{kept}");
    let (first, last) = (0, world.server(0).calls.len() - 1);
    world.server(0).reset(first, ErrorCode::RefusedStream);
    world.server(0).reset(last, ErrorCode::RefusedStream);
    world.run();
    assert_eq!(
        status(&mut world, 3, 99),
        "14",
        "not kept, so not sent again"
    );
    assert_eq!(
        status(&mut world, 0, 0),
        "none",
        "kept, and under way again"
    );
}

#[test]
fn an_answer_that_the_policy_does_not_want_is_asked_for_again() {
    let (mut world, caller, call) = under_way(b"x", true);
    world.server(0).fields(
        0,
        &[(":status", "200"), ("x-again", "1"), ("grpc-status", "14")],
        true,
    );
    world.run();
    assert!(world.client(caller).calls[call].log.is_empty());
    world.server(0).answer(1, b"better", "0");
    world.run();
    assert_eq!(world.client(caller).calls[call].body, b"better");
    assert_eq!(world.exchange.policy().again, [GivenBack::Wanted]);
    assert_eq!(world.outcomes()[0].code, Some(Code::OK));
}

#[test]
fn a_call_rests_as_long_as_the_policy_says_and_not_for_ever() {
    let millis = Duration::from_millis;
    let mut world = World::new();
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/rest"), false);
    world.client(caller).send(call, b"question", true);
    let lost = world.client(caller).start(&request("/t/1/never"), true);
    world.run();
    world.server(0).reset(0, ErrorCode::RefusedStream);
    world.server(0).reset(1, ErrorCode::RefusedStream);
    world.run();
    assert_eq!(world.server(0).calls.len(), 2);
    for (after, seen) in [(49, 2), (1, 3)] {
        world.now += millis(after);
        world.exchange.on_time(world.now);
        world.run();
        assert_eq!(world.server(0).calls.len(), seen, "{after}");
    }
    assert_eq!(world.server(0).calls[2].body, b"question");
    world.server(0).answer(2, b"well rested", "0");
    for _ in 0..5 {
        world.now += millis(2500);
        world.exchange.on_time(world.now);
        world.run();
    }
    assert_eq!(world.client(caller).calls[call].body, b"well rested");
    assert_eq!(status(&mut world, caller, lost), "14");
    assert_eq!(world.exchange.calls(), 0);
}

#[test]
fn a_goaway_loses_no_call() {
    let (mut world, caller, call) = under_way(b"x", true);
    let later = world.client(caller).start(&request("/t/1/later"), true);
    world.run();
    let line = world.answering[0].0;
    raw(&mut world, line, |out| {
        write::goaway(out, 1, ErrorCode::NoError, b"");
    });
    world.run();
    assert_eq!(
        world.answering.len(),
        2,
        "the second call goes over another line"
    );
    world.server(1).answer(0, b"second", "0");
    world.server(0).answer(0, b"first", "0");
    world.run();
    assert_eq!(world.client(caller).calls[call].body, b"first");
    assert_eq!(world.client(caller).calls[later].body, b"second");
    assert!(world.exchange.over(line), "the old line is through");
}

#[test]
fn what_stood_in_line_for_a_connection_goes_by_another() {
    let mut world = World::new();
    let caller = world.caller();
    let large = world.client(caller).start(&request("/t/1/large"), false);
    let small = world.client(caller).start(&request("/t/1/small"), false);
    world.run();
    // Nobody takes what goes to the target: it is full, and the second call stands in line.
    let (caller_line, line) = (world.callers[caller].0, world.answering[0].0);
    world.client(caller).send(large, &[1; 600 << 10], false);
    let mut bytes = world.client(caller).take();
    world.client(caller).send(large, &[1; 100 << 10], false);
    world.client(caller).send(small, &[2; 10_000], true);
    bytes.extend(world.client(caller).take());
    world.exchange.receive(caller_line, &bytes, world.now);
    assert!(world.exchange.parked() > 10_000);
    raw(&mut world, line, |out| {
        write::goaway(out, 0, ErrorCode::NoError, b"");
    });
    // The old connection never comes to its line again.
    world.cut(0);
    world.run();
    assert_eq!(
        status(&mut world, caller, large),
        "14",
        "too large to be kept"
    );
    assert_eq!(world.server(0).calls[0].body, [2; 10_000]);
    assert!(world.server(0).calls[0].ended);
    assert_eq!(world.exchange.parked(), 0);
}

#[test]
fn a_drained_server_and_a_drained_caller_lose_nothing() {
    let (mut world, caller, call) = under_way(b"x", true);
    let now = world.now;
    world.server(0).connection.drain(now);
    world.run();
    let later = world.client(caller).start(&request("/t/1/later"), true);
    world.run();
    assert_eq!(world.answering.len(), 2);
    world.exchange.drain_all(now);
    world.run();
    // What crossed the goodbye is waited for.
    world.now += Duration::from_millis(100);
    world.exchange.on_time(world.now);
    world.run();
    assert!(!world.exchange.over(world.callers[caller].0));
    world.server(0).answer(0, b"first", "0");
    world.server(1).answer(0, b"second", "0");
    world.run();
    assert_eq!(world.client(caller).calls[call].body, b"first");
    assert_eq!(world.client(caller).calls[later].body, b"second");
    assert!(world.exchange.over(world.callers[caller].0));
}

#[test]
fn a_lost_connection_is_told_and_what_came_before_is_delivered() {
    let (mut world, caller, call) = under_way(b"x", true);
    world.cut(0);
    world.run();
    assert_eq!(status(&mut world, caller, call), "14");

    let (mut world, caller, call) = unread();
    assert!(world.exchange.parked() > 0);
    let sent = 1_600_000;
    world.cut(0);
    for _ in 0..10 {
        world.client(caller).read(call);
        world.run();
    }
    assert_eq!(world.client(caller).calls[call].body.len(), sent);
    assert_eq!(status(&mut world, caller, call), "14");
    let outcome = world.outcomes()[0];
    assert_eq!(
        (outcome.end, outcome.code),
        (End::Failed, Some(Code::UNAVAILABLE))
    );
    assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
}

#[test]
fn an_answer_that_is_not_grpc_is_cut_where_its_connection_breaks() {
    let mut world = World::new();
    let caller = world.caller();
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/t/1/x")];
    let call = world.client(caller).start(&list(&fields), true);
    world.run();
    world.server(0).fields(0, &[(":status", "200")], false);
    world.server(0).send(0, b"half of", false);
    world.run();
    world.cut(0);
    world.run();
    let log = &world.client(caller).calls[call].log;
    assert_eq!(log.last().unwrap(), "reset INTERNAL_ERROR false");
}

#[test]
fn nobody_there_is_tried_again_and_told() {
    let mut world = World::new();
    world.unreachable = true;
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/x"), true);
    world.run();
    assert_eq!(status(&mut world, caller, call), "14");
    assert_eq!(world.exchange.policy().again, [GivenBack::Unreachable; 2]);
    assert_eq!((world.exchange.lines(), world.exchange.calls()), (1, 0));
}

#[test]
fn a_caller_that_goes_takes_its_calls_and_its_pipe_along() {
    let (mut world, caller, _) = under_way(b"x", true);
    world.client(caller).start(&request("/local/x"), true);
    world.run();
    let (line, _) = world.callers.remove(caller);
    world.exchange.closed(line, world.now);
    world.run();
    assert_eq!(
        world.server(0).calls[0].log.last().unwrap(),
        "reset CANCEL false"
    );
    let ends: Vec<End> = world.outcomes().iter().map(|outcome| outcome.end).collect();
    assert_eq!(ends, [End::GivenUp; 2]);
    let pipe = world.answering[1].0;
    assert!(world.exchange.over(pipe));
}

#[test]
fn a_deadline_is_sent_on_shortened_and_enforced() {
    let mut world = World::new();
    let caller = world.caller();
    world.unreachable = false;
    let mut fields = request("/t/1/slow");
    fields.push(b"grpc-timeout", b"5S");
    let at_once = world.client(caller).start(&fields, true);
    world.callers[caller].1.now = world.now;
    // The line to the target is not there yet: the call waits, and its time runs.
    let out = world.client(caller).take();
    let line = world.callers[caller].0;
    world.exchange.receive(line, &out, world.now);
    world.now += Duration::from_millis(1500);
    world.run();
    assert_eq!(
        world.server(0).calls[0].fields.get("grpc-timeout").unwrap(),
        "3500000u"
    );
    let second = world.client(caller).start(&fields, true);
    world.run();
    assert_eq!(
        world.server(0).calls[1].fields.get("grpc-timeout").unwrap(),
        "5S"
    );
    world.server(0).fields(1, &[(":status", "200")], false);
    world.run();
    world.now += Duration::from_millis(3500);
    world.exchange.on_time(world.now);
    world.run();
    assert_eq!(status(&mut world, caller, at_once), "4");
    assert_eq!(
        world.server(0).calls[0].log.last().unwrap(),
        "reset CANCEL false"
    );
    assert_eq!(status(&mut world, caller, second), "none");
    world.now += Duration::from_millis(1500);
    world.exchange.on_time(world.now);
    world.run();
    assert_eq!(
        status(&mut world, caller, second),
        "4",
        "in trailers behind the head"
    );
    let codes: Vec<_> = world
        .outcomes()
        .iter()
        .map(|outcome| outcome.code)
        .collect();
    assert_eq!(codes, [Some(Code::DEADLINE_EXCEEDED); 2]);
}

#[test]
fn waiting_and_not_reading_have_an_end() {
    let mut world = World::new();
    world.server.max_streams = 0;
    let caller = world.caller();
    let call = world.client(caller).start(&request("/t/1/x"), true);
    world.run();
    world.now += Duration::from_secs(10);
    world.exchange.on_time(world.now);
    world.run();
    assert_eq!(status(&mut world, caller, call), "14");

    let (mut world, caller, call) = unread();
    world.now += STALL - Duration::from_secs(1);
    world.exchange.on_time(world.now);
    world.run();
    assert_eq!(world.exchange.calls(), 1);
    world.now += Duration::from_secs(3);
    world.exchange.on_time(world.now);
    world.run();
    assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
    // By now half a message may have come: a status behind it would not be read as one.
    let log = &world.client(caller).calls[call].log;
    assert_eq!(log.last().unwrap(), "reset ENHANCE_YOUR_CALM false");
    assert_eq!(world.outcomes()[0].code, Some(Code::RESOURCE_EXHAUSTED));
}

/// A caller of `/t/1/watch` and the number of its call, at the caller's and at the server's end.
fn watcher(world: &mut World, reads: bool) -> (usize, usize, usize) {
    let caller = world.caller();
    world.client(caller).reads = reads;
    let call = world.client(caller).start(&request("/t/1/watch"), true);
    world.run();
    let answering = world.server(0).calls.len() - 1;
    let head = [(":status", "200"), ("content-type", "application/grpc")];
    world.server(0).fields(answering, &head, false);
    (caller, call, answering)
}

#[test]
fn a_watcher_that_reads_nothing_is_closed_and_the_others_go_on() {
    let mut world = World::new();
    let deaf = watcher(&mut world, false);
    let others = [watcher(&mut world, true), watcher(&mut world, true)];
    let second = Duration::from_secs(1);
    let seconds = u32::try_from(STALL.as_secs()).unwrap();
    for _ in 0..seconds + 40 {
        for (_, _, answering) in [deaf, others[0], others[1]] {
            world.server(0).send(answering, &[7; 60_000], false);
        }
        world.now += second;
        world.run();
        world.exchange.on_time(world.now);
        world.run();
    }
    let log = |world: &mut World, (caller, call, _): (usize, usize, usize)| {
        world.client(caller).calls[call]
            .log
            .last()
            .cloned()
            .unwrap()
    };
    assert_eq!(log(&mut world, deaf), "reset ENHANCE_YOUR_CALM false");
    let outcomes = world.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].code, Some(Code::RESOURCE_EXHAUSTED));
    // Not before its time: it was given as much as its window took, and then a minute.
    assert!(outcomes[0].elapsed > STALL, "{:?}", outcomes[0]);
    assert!(world.server(0).calls[deaf.2].reset, "its sender is told");
    for other in others {
        assert!(log(&mut world, other).starts_with("data"));
        world
            .server(0)
            .fields(other.2, &[("grpc-status", "0")], true);
    }
    world.run();
    for other in others {
        let seen = &world.client(other.0).calls[other.1];
        assert!(seen.ended && !seen.reset);
        assert_eq!(seen.body.len(), 60_000 * (seconds as usize + 40));
    }
    assert_eq!((world.exchange.calls(), world.exchange.parked()), (0, 0));
}

#[test]
fn a_target_that_fell_silent_is_noticed_and_an_idle_one_is_let_go() {
    let (mut world, caller, call) = under_way(b"x", true);
    let line = world.answering[0].0;
    let second = Duration::from_secs(1);
    // Whatever is said to it goes nowhere.
    let silence = world.answering.pop().unwrap();
    world.now += 15 * second;
    assert!(world.exchange.next_deadline().unwrap() <= world.now);
    world.exchange.on_time(world.now);
    assert!(world.exchange.backlog(line) > 0, "a PING");
    world.now += 10 * second;
    world.exchange.on_time(world.now);
    assert!(world.exchange.over(line));
    world.run();
    assert_eq!(status(&mut world, caller, call), "14");
    drop(silence);

    let (mut world, ..) = under_way(b"x", true);
    world.server(0).answer(0, b"", "0");
    world.run();
    let line = world.answering[0].0;
    for tens in 1..=31 {
        world.now += 10 * second;
        world.exchange.on_time(world.now);
        world.run();
        assert_eq!(
            world.exchange.over(line),
            tens >= 30,
            "idle after {tens}0 s"
        );
    }
}

#[test]
fn slow_headers_and_slow_greetings_end_their_connection() {
    let mut world = World::new();
    let caller = world.caller();
    let line = world.callers[caller].0;
    assert_eq!(
        world
            .exchange
            .receive(line, &[0, 0, 9, 1, 4, 0, 0, 0], world.now),
        0
    );
    let mute = world.exchange.accept((), Config::caller(), world.now);
    world.now += Duration::from_secs(5);
    world.exchange.on_time(world.now);
    assert_eq!(
        (world.exchange.over(mute), world.exchange.over(line)),
        (true, false)
    );
    // A byte now and then does not help.
    world
        .exchange
        .receive(line, &[0, 0, 9, 1, 4, 0, 0, 0], world.now);
    world.now += Duration::from_secs(5);
    world.exchange.on_time(world.now);
    assert!(world.exchange.over(line));
    let mut dirty = Vec::new();
    world.exchange.take_dirty(&mut dirty);
    assert!(
        dirty.contains(&line) && dirty.contains(&mute),
        "their drivers are woken"
    );
}

#[test]
fn a_caller_that_breaks_the_protocol_takes_nobody_along() {
    let (mut world, caller, call) = under_way(b"x", true);
    let other = world.caller();
    let line = world.callers[other].0;
    world.client(other).start(&request("/t/1/other"), true);
    world.run();
    // The second time a WINDOW_UPDATE by 0 comes for a stream, the stream is gone already.
    raw(&mut world, line, |out| {
        out.extend([0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    });
    world.run();
    assert_eq!(
        world.server(0).calls[1].log.last().unwrap(),
        "reset CANCEL false"
    );
    raw(&mut world, line, |out| {
        out.extend([0, 0, 0, 9, 4, 0, 0, 0, 9]);
    });
    assert!(world.exchange.over(line));
    world.server(0).answer(0, b"fine", "0");
    world.run();
    assert_eq!(world.client(caller).calls[call].body, b"fine");
}

/// Callers that come again and again and give everything up at once: whoever answers is sent resets
/// no faster than it bears, and another caller's calls go on.
#[test]
fn resets_have_a_pace_however_many_callers_ask_for_them() {
    for (resets, most) in [(Resets::MESH, 330), (Resets::AGENT, 8)] {
        let mut world = World::new();
        world.exchange.policy().upstream = Some(Config {
            resets,
            ..Config::upstream()
        });
        let other = world.caller();
        let held = world.client(other).start(&request("/t/1/held"), false);
        world.run();
        for _ in 0..50 {
            let abuser = world.caller();
            let calls: Vec<usize> = (0..50)
                .map(|_| world.client(abuser).start(&request("/t/1/x"), false))
                .collect();
            world.run();
            for call in calls {
                world.client(abuser).reset(call, ErrorCode::Cancel);
            }
            world.run();
            world.now += Duration::from_millis(2);
            world.exchange.on_time(world.now);
        }
        world.run();
        assert_eq!(world.exchange.calls(), 1);
        let reset = world.server(0).calls.iter().filter(|call| call.reset);
        let reset = reset.count();
        assert!((5..=most).contains(&reset), "{reset} of {most}");
        // There is room again for others once the time has come, and once one of them is answered
        // all that was opened before is known to have been looked at.
        let fresh = world.client(other).start(&request("/t/1/fresh"), true);
        let later = |world: &mut World, steps: u32| {
            for _ in 0..steps {
                world.now += Duration::from_millis(10);
                world.exchange.on_time(world.now);
                world.run();
            }
        };
        later(&mut world, 300);
        let answering = world.server(0).calls.len() - 1;
        world.server(0).answer(answering, b"yes", "0");
        world.run();
        assert_eq!(world.client(other).calls[fresh].body, b"yes");
        later(&mut world, 200);
        let open = world.server(0).calls.iter().filter(|call| !call.reset);
        assert_eq!(open.count(), 2, "all that was given up is reset in the end");
        assert!(!world.client(other).calls[held].reset);
    }
}
