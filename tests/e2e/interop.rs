//! Judged by programs of others: the official interop client and server of gRPC, h2spec, and clients
//! of other languages with nothing set. Each is first shown where it is known what it says.
//!
//! `tests/soak/interop ADDRESS` runs the official cases through any pair.

use std::{env, net::SocketAddr};

use tokio::process::Command;

use crate::support::{
    interop::{Interop, LONG, h2spec},
    mesh::{Site, agent},
    peers::{Kind, Pair},
    relay::Relay,
    tools::{self, fetched, root},
    wait::eventually,
};

/// A method that every listener of a sidecar has.
const METHOD: &str = "/grpc.health.v1.Health/Check";

/// What the local listener fails of h2spec: all of it the library's that speaks HTTP/2 there. Has to
/// become empty, and this test says when.
const KNOWN: [&str; 3] = [
    "generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
    "generic/2: Sends a PRIORITY frame on half-closed (remote) stream",
    "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
];

/// Where the pair under test takes calls, if one is named, and what it wants to be told.
fn under_test() -> Option<(SocketAddr, String)> {
    let address = env::var("ATTACHE_UNDER_TEST").ok()?;
    let metadata = env::var("ATTACHE_UNDER_TEST_METADATA").unwrap_or_default();
    Some((address.parse().expect("HOST:PORT"), metadata))
}

#[tokio::test]
async fn the_official_cases_pass_directly_or_through_what_is_under_test() {
    let test = "interop::the_official_cases_pass_directly_or_through_what_is_under_test";
    let Some(interop) = Interop::start(test).await else {
        return;
    };
    let (at, metadata) = under_test().unwrap_or((interop.address, String::new()));
    assert_eq!(interop.all(at, &metadata).await, Vec::<String>::new());
    for (case, more) in LONG {
        interop.run(case, at, &metadata, more).await.unwrap();
    }
}

#[tokio::test]
async fn the_official_cases_pass_through_a_pair_of_envoys() {
    let test = "interop::the_official_cases_pass_through_a_pair_of_envoys";
    let (Some(_), Some(interop)) = (fetched("peers/envoy", test), Interop::start(test).await)
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(Kind::Envoy, dir.path(), interop.address).unwrap();
    let at = pair.as_ref().expect("it is fetched").entry;
    assert_eq!(interop.all(at, "").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_case_that_fails_is_told() {
    let test = "interop::a_case_that_fails_is_told";
    let Some(interop) = Interop::start(test).await else {
        return;
    };
    // A server that knows none of its methods.
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let relay = Relay::start(&up.instance("default/home", 0).local, None).await;
    let failed = interop.run("empty_unary", relay.address, "", &[]).await;
    assert!(failed.is_err_and(|error| error.contains("Unimplemented")));
}

#[tokio::test]
async fn the_local_listener_fails_only_the_known_cases_of_h2spec() {
    let test = "interop::the_local_listener_fails_only_the_known_cases_of_h2spec";
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let relay = Relay::start(&up.instance("default/home", 0).local, None).await;
    let Some(verdict) = h2spec(relay.address, METHOD, site.temp.path(), test).await else {
        return;
    };
    assert!(verdict.passed > 130, "{verdict:?}");
    let unknown = verdict
        .failed
        .iter()
        .find(|one| !KNOWN.contains(&one.as_str()));
    assert!(unknown.is_none(), "{verdict:?}");
    assert!(
        !verdict.failed.is_empty(),
        "nothing fails any more: KNOWN has to say so"
    );
}

/// Clients with nothing but the official package of their language, and no option.
fn plain(test: &str) -> Option<[(&'static str, Command); 2]> {
    let python = fetched("python/bin/python", test)?;
    let java = fetched("java", test)?;
    let mut python = Command::new(python);
    python.arg(root().join("tests/polyglot/python/plain.py"));
    let mut command = Command::new("java");
    command.arg("-cp").arg(java.join("*"));
    command.arg(root().join("tests/polyglot/java/Plain.java"));
    Some([("python", python), ("java", command)])
}

/// On a Unix socket both name its path as authority, percent-encoded, which the library behind the
/// local listener refuses as no authority. Has to become OK there too, and this test says when.
#[tokio::test]
async fn clients_without_options_are_answered_by_tcp_and_not_yet_by_a_unix_socket() {
    let test = "interop::clients_without_options_are_answered_by_tcp_and_not_yet_by_a_unix_socket";
    let Some(clients) = plain(test) else {
        return;
    };
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let local = up.instance("default/home", 0).local.clone();
    assert!(local.starts_with("unix:/"), "{local}");
    let relay = Relay::start(&local, None).await;
    for (language, mut command) in clients {
        // A static address of each: gRPC's name of one differs by language.
        let tcp = relay.address.to_string();
        command.args([&tcp, METHOD]);
        let by_tcp = tools::run(&mut command).await;
        // SERVING is 1 in field 1.
        assert_eq!(by_tcp.out.trim(), "OK 0801", "{language}: {}", by_tcp.err);
    }
    for (language, mut command) in plain(test).expect("they were there") {
        command.args([&local, METHOD]);
        let by_unix = tools::run(&mut command).await;
        assert!(
            by_unix.out.starts_with("INTERNAL"),
            "{language}: {}{}",
            by_unix.out,
            by_unix.err
        );
    }
    eventually("the listener is there for others", || async {
        let mut health = Command::new(fetched("python/bin/python", test).expect("it was there"));
        health.arg(root().join("tests/polyglot/python/plain.py"));
        let ran = tools::run(health.args([&relay.address.to_string(), METHOD])).await;
        (ran.out.trim() == "OK 0801").then_some(()).ok_or(ran.out)
    })
    .await;
}
