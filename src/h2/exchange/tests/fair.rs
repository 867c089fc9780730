//! Callers that share a line to whoever answers, one of them greedy.

use std::time::Duration;

use crate::h2::{
    budget::Allowance,
    connection::{Config, Resets},
    frame::ErrorCode,
    tests::{World, request},
};

/// A world with two callers that may open as many streams as they like, and somebody who answers so
/// many at once.
fn shared(streams: u32) -> (World, usize, usize) {
    let mut world = World::new();
    world.server.max_streams = streams;
    let greedy = world.caller_at(Config::mesh());
    let modest = world.caller_at(Config::mesh());
    (world, greedy, modest)
}

/// So many calls of a caller's, under way or waiting. Their numbers.
fn ask(world: &mut World, caller: usize, calls: usize) -> Vec<usize> {
    let path = format!("/t/1/{caller}");
    let calls = (0..calls).map(|_| world.client(caller).start(&request(&path), true));
    let calls = calls.collect();
    world.run();
    calls
}

/// How many calls of a caller's have come to whoever answers.
fn came(world: &mut World, caller: usize) -> usize {
    let path = format!("/t/1/{caller}");
    let calls = world.server(0).calls.iter();
    calls.filter(|call| call.fields[":path"] == path).count()
}

#[test]
fn a_caller_with_few_calls_waits_for_no_more_than_its_turn() {
    let (mut world, greedy, modest) = shared(4);
    ask(&mut world, greedy, 1000);
    ask(&mut world, modest, 3);
    assert_eq!((came(&mut world, greedy), came(&mut world, modest)), (4, 0));
    for call in 0..5 {
        world.server(0).answer(call, b"yes", "0");
        world.run();
    }
    assert_eq!(came(&mut world, modest), 3, "its share is as large");
    for call in 5..999 {
        world.server(0).answer(call, b"yes", "0");
        world.run();
    }
    assert_eq!(came(&mut world, greedy), 1000, "all others in their time");
}

#[test]
fn nobody_has_all_streams_however_long_its_calls_last() {
    let (mut world, greedy, modest) = shared(16);
    ask(&mut world, greedy, 50);
    assert_eq!(came(&mut world, greedy), 14);
    ask(&mut world, modest, 1);
    assert_eq!(came(&mut world, modest), 1, "though nothing was answered");
}

#[test]
fn all_connections_of_one_who_has_a_name_are_one_caller() {
    for (name, came_of) in [(Some(7), [14, 0]), (None, [14, 2])] {
        let (mut world, _, _) = shared(16);
        world.exchange.policy().name = name;
        let lines = [
            world.caller_at(Config::mesh()),
            world.caller_at(Config::mesh()),
        ];
        for line in lines {
            ask(&mut world, line, 20);
        }
        assert_eq!(
            lines.map(|line| came(&mut world, line)),
            came_of,
            "{name:?}"
        );
    }
}

#[test]
fn in_a_full_queue_the_greedy_one_is_told_to_slow_down() {
    let (mut world, greedy, modest) = shared(1);
    ask(&mut world, greedy, 1024);
    let calls = ask(&mut world, modest, 3);
    let told = |world: &mut World, caller: usize| {
        let calls = world.client(caller).calls.iter();
        let told = calls.filter(|call| call.fields.get("grpc-status").is_some_and(|it| it == "14"));
        told.count()
    };
    assert_eq!((told(&mut world, greedy), told(&mut world, modest)), (2, 0));
    for call in 0..8 {
        world.server(0).answer(call, b"yes", "0");
        world.run();
    }
    for call in calls {
        assert_eq!(world.client(modest).calls[call].body, b"yes");
    }
    // A call that is given up while it waits leaves its place.
    let last = world.client(greedy).calls.len() - 3;
    world.client(greedy).reset(last, ErrorCode::Cancel);
    world.run();
    assert_eq!(world.exchange.calls(), 1024 + 3 - 2 - 8 - 1);
}

/// Calls that are given up at once leave streams behind, whose resets have a pace.
#[test]
fn streams_that_a_caller_gave_up_are_its_share() {
    let (mut world, greedy, modest) = shared(100);
    let resets = Resets::AGENT;
    world.exchange.policy().upstream = Some(Config {
        resets,
        ..Config::agent()
    });
    for _ in 0..40 {
        for call in ask(&mut world, greedy, 10) {
            world.client(greedy).reset(call, ErrorCode::Cancel);
        }
        world.run();
    }
    assert_eq!(world.exchange.calls(), 0);
    ask(&mut world, modest, 5);
    assert_eq!(came(&mut world, modest), 5, "though nothing was answered");
}

/// A stream that nobody wants ends without an event: whoever waits for its place gets it even so.
#[test]
fn the_place_of_a_stream_that_was_given_up_goes_to_who_waits() {
    let (mut world, greedy, modest) = shared(3);
    let (none, many) = (allowance(1, 1), allowance(100, 100));
    let resets = Resets {
        fresh: none,
        aged: none,
        known: many,
    };
    world.exchange.policy().upstream = Some(Config {
        resets,
        ..Config::agent()
    });
    let first = ask(&mut world, greedy, 1)[0];
    world.client(greedy).reset(first, ErrorCode::Cancel);
    world.run();
    let given_up = ask(&mut world, greedy, 1)[0];
    ask(&mut world, greedy, 2);
    world.client(greedy).reset(given_up, ErrorCode::Cancel);
    ask(&mut world, modest, 1);
    assert_eq!(
        came(&mut world, modest),
        0,
        "it has no allowance for a reset"
    );
    // What was opened after it is answered, and goes on: only the reset of the other one makes room.
    world.server(0).fields(3, &[(":status", "200")], false);
    world.run();
    assert!(world.server(0).calls[1].reset);
    assert_eq!(came(&mut world, modest), 1);
}

const fn allowance(burst: u32, per_second: u32) -> Allowance {
    Allowance { burst, per_second }
}

/// Somebody who answers every 200 ms, and a caller that gives up whatever it asks, as fast as its door
/// lets it: another one's calls wait for those that run, and for no others.
#[test]
fn rapid_resets_hold_up_no_other_caller() {
    let (mut world, greedy, modest) = shared(100);
    world.exchange.policy().upstream = Some(Config::agent());
    let mut answered = 0;
    for round in 0..20 {
        for tick in 0..10 {
            for _ in 0..40 {
                let attack = world.client(greedy).start(&request("/t/1/attack"), false);
                world.client(greedy).reset(attack, ErrorCode::Cancel);
            }
            world.now += Duration::from_millis(20);
            world.exchange.on_time(world.now);
            world.run();
            if tick == 5 {
                ask(&mut world, modest, 1);
            }
        }
        while answered < world.server(0).calls.len() {
            if !world.server(0).calls[answered].reset {
                world.server(0).answer(answered, b"", "0");
            }
            answered += 1;
        }
        world.run();
        assert!(world.client(modest).calls[round].ended, "call {round}");
    }
}
