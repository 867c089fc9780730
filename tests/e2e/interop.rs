//! Judged by programs of others: the official interop client and server of gRPC, h2spec, and clients
//! of other languages with nothing set. Each is first shown where it is known what it says.
//!
//! `tests/soak/interop` runs the official cases that take long through ours, or through any pair.

use std::{env, net::SocketAddr};

use attache::{
    identity::{Credentials, Expect, Svid},
    runtime::Nursery,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, process::Command};

use crate::support::{
    interop::{Interop, LONG, h2spec},
    mesh::{DOMAIN, Site, agent},
    peers::{Kind, Pair},
    relay::Relay,
    through::{self, Through},
    tools::{self, fetched, root},
};

/// A method that every listener of a sidecar has.
const METHOD: &str = "/grpc.health.v1.Health/Check";

/// Cases of h2spec, less those that it says it skips.
const H2SPEC_CASES: usize = 140;
/// Where the pair under test takes calls, if one is named, and what it wants to be told.
fn under_test() -> Option<(SocketAddr, String)> {
    let address = env::var("ATTACHE_UNDER_TEST").ok()?;
    let metadata = env::var("ATTACHE_UNDER_TEST_METADATA").unwrap_or_default();
    Some((address.parse().expect("HOST:PORT"), metadata))
}

/// How the official client names the agent.
fn named() -> String {
    format!("{}:{}", through::KEY, through::NAME)
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
async fn the_official_cases_pass_through_one_sidecar_and_through_two() {
    let test = "interop::the_official_cases_pass_through_one_sidecar_and_through_two";
    let Some(interop) = Interop::start(test).await else {
        return;
    };
    let through = Through::start(interop.address, None).await;
    for at in [through.one.address, through.two.address] {
        assert_eq!(interop.all(at, &named()).await, Vec::<String>::new());
    }
    if env::var_os("ATTACHE_SOAK").is_some() {
        for (case, more) in LONG {
            let at = through.two.address;
            interop.run(case, at, &named(), more).await.unwrap();
        }
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
async fn the_local_listener_fails_nothing_of_h2spec() {
    let test = "interop::the_local_listener_fails_nothing_of_h2spec";
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let relay = Relay::start(&up.instance("default/home", 0).local, None).await;
    let Some(verdict) = h2spec(relay.address, METHOD, site.temp.path(), test).await else {
        return;
    };
    println!("h2spec: {} failures", verdict.failed.len());
    assert_eq!(verdict.failed, Vec::<String>::new());
    assert!(verdict.passed >= H2SPEC_CASES, "{verdict:?}");
}

/// Answers requests as a server of HTTP does: once they are whole, with a body; it has no method of
/// the mesh's.
fn serve_http(at: &str) {
    let listener = UnixListener::bind(at.strip_prefix("unix:").unwrap()).unwrap();
    let nursery = Nursery::here();
    let connections = nursery.clone();
    nursery.adopt("agent", async move {
        while let Ok((io, _)) = listener.accept().await {
            let exec = connections.clone();
            connections.adopt("connection", async move {
                let service = service_fn(async |request: Request<Incoming>| {
                    let ours = request.uri().path().starts_with("/attache.v1.");
                    request.into_body().collect().await?;
                    let mut answer = Response::new(Full::<Bytes>::from("here"));
                    if ours {
                        let fields = answer.headers_mut();
                        fields.insert("content-type", HeaderValue::from_static("application/grpc"));
                        fields.insert("grpc-status", HeaderValue::from_static("12"));
                        *answer.body_mut() = Full::default();
                    }
                    Ok::<_, hyper::Error>(answer)
                });
                let server = http2::Builder::new(exec);
                // Its sidecar may go first.
                drop(server.serve_connection(TokioIo::new(io), service).await);
            });
        }
    });
}

#[tokio::test]
async fn a_members_calls_to_an_agent_fail_nothing_of_h2spec() {
    let test = "interop::a_members_calls_to_an_agent_fail_nothing_of_h2spec";
    let through = Through::empty().await;
    serve_http(&through.listens());
    through.serves().await;
    let operator = Svid::load(&through.site.state().join("operator")).unwrap();
    let echo = format!("spiffe://{DOMAIN}/ns/default/agent/{}", through::NAME);
    let expect = Expect::Member(echo.parse().unwrap());
    let tls = Credentials::new(operator).client_config(expect);
    let door = &through.up.instance("default/echo", 0).mtls;
    let relay = Relay::by_tls(door, tls).await;
    let verdict = h2spec(relay.address, "/", through.site.temp.path(), test).await;
    let Some(verdict) = verdict else { return };
    assert_eq!(verdict.failed, Vec::<String>::new());
    assert!(verdict.passed >= H2SPEC_CASES, "{verdict:?}");
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

/// On a Unix socket both name its path as authority, percent-encoded, which is no authority at all.
#[tokio::test]
async fn clients_without_options_are_answered_by_tcp_and_by_a_unix_socket() {
    let test = "interop::clients_without_options_are_answered_by_tcp_and_by_a_unix_socket";
    if plain(test).is_none() {
        return;
    }
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let local = up.instance("default/home", 0).local.clone();
    assert!(local.starts_with("unix:/"), "{local}");
    let relay = Relay::start(&local, None).await;
    for target in [&relay.address.to_string(), &local] {
        for (language, mut command) in plain(test).expect("they were there") {
            let ran = tools::run(command.args([target, METHOD])).await;
            // SERVING is 1 in field 1.
            assert_eq!(
                ran.out.trim(),
                "OK 0801",
                "{language}, {target}: {}",
                ran.err
            );
        }
        for (language, mut command) in plain(test).expect("they were there") {
            let nobody = format!("{}=nobody", through::KEY);
            let ran = tools::run(command.args([target, METHOD, &nobody])).await;
            let told = ran
                .out
                .starts_with("UNAVAILABLE default/nobody has no instance");
            assert!(told, "{language}, {target}: {}{}", ran.out, ran.err);
        }
    }
}
