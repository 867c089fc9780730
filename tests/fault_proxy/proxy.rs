//! The fault proxy: stands between the processes of a test and does to their connections what
//! networks and dying peers do. TCP in front of TCP; it knows nothing of what passes.
//!
//! A test's tool and no part of `attache`: an example, so that cargo builds it with the tests.

use std::{io::Write, process::ExitCode, time::Duration};

use attache::runtime::Nursery;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

mod control;
mod counts;
mod faults;
mod lane;
mod protocol;
mod pump;
mod route;

use control::{Control, Routes};
use protocol::{Answer, Ready, Request};

/// How long routes may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Shown under `--help`.
const EXAMPLES: &str = r#"It prints one line when it is ready: {"control":"127.0.0.1:43217","seed":7}. Then it is told what to
do over the control socket: one JSON value per line, one answer per line, 64 KiB a line at most. An
answer comes when what was asked holds.

  fault-proxy --control unix:/tmp/fault.sock --route worker=127.0.0.1:7001,127.0.0.1:7000 &
  socat - UNIX-CONNECT:/tmp/fault.sock

  {"do":"add","route":"worker","target":"127.0.0.1:7000"}      -> {"listening":"127.0.0.1:40123"}
  {"do":"set","route":"worker","fault":{"latency":{"ms":200,"jitter_ms":50}}}      -> {"done":{}}
  {"do":"set","route":"worker","direction":"down","share":50,"fault":"blackhole"}
  {"do":"clear","route":"worker"}
  {"do":"counters","route":"worker"}
  {"do":"routes"}
  {"do":"remove","route":"worker"}

Faults. `direction` is up (to the target), down or both, and both unless it is said; `share` is how
many of 100 connections have it. A fault takes the place of the one of its kind and direction.
  {"latency":{"ms":200,"jitter_ms":50}}     later, in order
  {"rate":{"bytes_per_second":10000}}       slower
  "blackhole"                               open, and nothing passes until it is cleared
  {"reset":{"existing":true,"new":false}}   RST to connections that are there, that come, or both
  "refuse"                                  nobody listens; what is connected stays
  "half_close"                              the receiver is told the end, the other way goes on
  {"cut":{"after":5000,"reset":true}}       ends after so many bytes, by RST or in good order
  {"corrupt":{"at":100}}                    one byte is another; {"one_in":10000}: at random
  {"slice":{"bytes":1,"gap_ms":5}}          in small pieces
  {"flap":{"up_ms":3000,"down_ms":3000}}    the route's other faults hold now and then only

The bytes of cut and corrupt are counted per connection and direction, from when the fault was set.
What it cannot do: it answers for the target's system, so that a peer's TCP sees everything
acknowledged. For lost packets use nft in a network namespace (tests/soak/partition)."#;

/// Stands between TCP connections and fails as it is told
#[derive(Debug, Parser)]
#[command(name = "fault-proxy", after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    /// Where it is told what to do: a loopback host:port, or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    control: String,
    /// What all chance comes from: the same seed and traffic, the same faults [default: drawn]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// A route from the start; may be given more than once
    #[arg(long = "route", value_name = "NAME=LISTEN,TARGET", value_parser = route)]
    routes: Vec<(String, String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "fault-proxy: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let (mut end, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let nursery = Nursery::here();
    let control = Control::bind(&arguments.control).await?;
    let address = control.address(&arguments.control)?;
    let routes = Routes::new(seed, nursery.clone());
    for (route, listen, target) in arguments.routes {
        let add = Request::Add {
            route,
            target,
            listen,
        };
        if let Answer::Error(error) = routes.answer(add).await {
            return Err(error.into());
        }
    }
    let clients = Nursery::here();
    nursery.start("control", |stop| {
        control.serve(routes, clients.clone(), stop)
    });
    let ready = Ready {
        control: address.clone(),
        seed,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&ready)?)?;
    tokio::select! {
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
    clients.abort().await;
    nursery.close(GRACE).await;
    if let Some(path) = address.strip_prefix("unix:") {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn route(text: &str) -> Result<(String, String, String), String> {
    let parts = text.split_once('=').and_then(|(name, at)| {
        let (listen, target) = at.split_once(',')?;
        Some((name.to_owned(), listen.to_owned(), target.to_owned()))
    });
    parts.ok_or_else(|| "NAME=LISTEN,TARGET, such as a=127.0.0.1:7001,127.0.0.1:7000".to_owned())
}
