//! The same random calls directly and through a pair: ours, one that is known, and some that lie.
//!
//! `ATTACHE_DIFFERENTIAL_CALLS` says how many go through ours: `tests/soak/differential`.

use std::{env, time::Instant};

use crate::support::{
    differential::{
        Forgiven, differences,
        server::{Lie, Server},
    },
    peers::{Kind, Pair},
    relay::Relay,
    through::{self, Through},
    tools::fetched,
};

/// Bytes of a block of headers in one frame: most have several then.
const CUT: usize = 60;

#[tokio::test]
async fn the_same_calls_are_the_same_twice_however_their_headers_are_cut() {
    let server = Server::start(None, None).await;
    let relay = Relay::start(&server.address.to_string(), Some(CUT)).await;
    let forgiven = Forgiven::default();
    let found = differences(0..600, server.address, relay.address, &server, &forgiven).await;
    assert!(
        found.is_empty(),
        "{} of 600: {:#?}",
        found.len(),
        &found[..found.len().min(5)]
    );
}

#[tokio::test]
async fn a_pair_that_changes_anything_is_found_out() {
    for lie in Lie::ALL {
        let server = Server::start(None, None).await;
        let liar = Server::start(Some(lie), Some(&server)).await;
        let forgiven = Forgiven::default();
        let found = differences(0..150, server.address, liar.address, &server, &forgiven).await;
        assert!(!found.is_empty(), "{lie:?} was not found out");
        let honest = found.iter().find(|one| one.seed % 3 != 0);
        assert!(
            honest.is_none(),
            "{lie:?}: told of a call that was right: {honest:?}"
        );
    }
}

/// What Envoy does otherwise: it adds headers, joins the values of those it knows itself, and makes
/// an answer (UNAVAILABLE) of a reset that comes before any.
const ENVOYS: Forgiven = Forgiven {
    keys: &["x-forwarded-proto", "x-request-id", "server", "date"],
    joined: &["authorization", "user-agent"],
    reset_codes: true,
    shortened: false,
    server_resets: true,
};

#[tokio::test]
async fn a_pair_of_envoys_differs_only_in_what_is_known() {
    let test = "differential::a_pair_of_envoys_differs_only_in_what_is_known";
    if fetched("peers/envoy", test).is_none() {
        return;
    }
    let server = Server::start(None, None).await;
    let behind = Relay::start(&server.address.to_string(), Some(CUT)).await;
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(Kind::Envoy, dir.path(), behind.address).unwrap();
    let pair = pair.expect("it is fetched");
    let before = Relay::start(&pair.entry.to_string(), Some(CUT)).await;
    let found = differences(0..300, server.address, before.address, &server, &ENVOYS).await;
    assert!(
        found.is_empty(),
        "{} of 300: {:#?}",
        found.len(),
        &found[..found.len().min(12)]
    );
}

/// What our sidecars do: they take off who is meant, write their own authority, and pass on what is
/// left of the time. Who calls and the correlation id come out as they were said, since they are true.
const OURS: Forgiven = Forgiven {
    keys: &[through::KEY, ":authority"],
    joined: &[],
    reset_codes: false,
    shortened: true,
    server_resets: false,
};
/// What comes back from the agent is cut in its larger blocks only, and what the caller sends on a
/// connection of its own for few calls: more pieces than that are a flood, and end the connection.
const CUT_BEHIND: usize = 2000;
/// So many calls are cut, and then so many are not, each on one connection.
const ROUND: [u64; 2] = [50, 450];

#[tokio::test]
async fn our_pair_changes_nothing_of_random_calls() {
    let calls = env::var("ATTACHE_DIFFERENTIAL_CALLS").ok();
    let calls: u64 = calls.map_or(1000, |calls| calls.parse().expect("a number"));
    let server = Server::start(None, None).await;
    let through = Through::start(server.address, Some(CUT_BEHIND)).await;
    // Statuses are drawn at random, and half of them are what breakers are for.
    through.breaker_off().await;
    let cutting = Relay::start(&through.local(), Some(CUT)).await;
    let entries = [cutting.address, through.two.address];
    let (began, mut first) = (Instant::now(), 0);
    for (many, entry) in ROUND.into_iter().zip(entries).cycle() {
        let seeds = first..calls.min(first + many);
        if seeds.is_empty() {
            break;
        }
        let found = differences(seeds, server.address, entry, &server, &OURS).await;
        assert!(
            found.is_empty(),
            "{} of {many} from {first} on: {:#?}",
            found.len(),
            &found[..found.len().min(8)]
        );
        first += many;
    }
    println!("{calls} calls were the same, in {:?}", began.elapsed());
}
