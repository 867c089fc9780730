//! The same random calls directly and through a pair; here through pairs that are known, ours when
//! it is there: `differences` takes an address.

use crate::support::{
    differential::{
        Forgiven, differences,
        server::{Lie, Server},
    },
    peers::{Kind, Pair},
    relay::Relay,
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
