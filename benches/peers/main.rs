//! Measures a pair of our sidecars beside those of others, in one run and in turns:
//! `cargo bench --bench peers`.
//!
//! Direct calls, a tunnel that only copies bytes (the limit), Envoy, HAProxy and ours, each pair
//! joined by mutual TLS 1.3, nothing logged. `attache bench` is the caller, `attache bench --serve`
//! the far end; all share the machine, so rates are of the whole chain, and CPU per call is the
//! steadiest figure. Fetches the proxies by itself into `.tools/peers`; says which it had to leave
//! out. Everything is on loopback and ends with this process.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program for people, run by hand"
)]

mod figures;
#[path = "../tasks/machine.rs"]
#[allow(dead_code, reason = "the other bench also watches its processes")]
mod machine;
mod ours;
#[path = "../../tests/support/peers/mod.rs"]
#[allow(unreachable_pub, dead_code, reason = "the tests share it")]
mod peers;
mod table;
mod tunnel;
mod under;

use std::{error::Error, net::SocketAddr, path::Path, path::PathBuf, process::Command};

use attache::runtime::clock::wall;
use clap::Parser;
use jiff::Timestamp;

use crate::{
    figures::Case,
    table::Table,
    under::{End, Under},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug, Parser)]
struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these, comma separated: direct, tunnel, envoy, haproxy, ours
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only cases whose name holds this, such as `128 B`
    #[arg(long, default_value = "")]
    case: String,
    /// Be one side of the tunnel: a or b
    #[arg(long, hide = true, requires_all = ["listen", "to", "certs"])]
    tunnel: Option<String>,
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
    #[arg(long, hide = true)]
    to: Option<SocketAddr>,
    #[arg(long, hide = true)]
    certs: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Outcome<()> {
    let options = Options::parse();
    if let (Some(side), Some(listen), Some(to), Some(certs)) =
        (&options.tunnel, options.listen, options.to, &options.certs)
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        return runtime.block_on(tunnel::serve(side == "a", listen, to, certs));
    }
    if !options.bench {
        println!("run it by `cargo bench --bench peers`");
        return Ok(());
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/tools");
    if !Command::new(tools).status()?.success() {
        eprintln!("going on without what could not be fetched");
    }
    let dir = tempfile::tempdir()?;
    let end = End::start()?;
    let systems = under::systems(&options.only, dir.path(), &end)?;
    let table = measure(&options, &systems)?;
    println!("{table}");
    for under in &systems {
        if let Some(why) = &under.skipped {
            println!("SKIPPED {}: {why}", under.name);
        }
    }
    let date = Timestamp::try_from(wall()).map(|at| at.strftime("%Y-%m-%d").to_string());
    println!(
        "{}; {}; medians of {} rounds of {} s; `cargo bench --bench peers`",
        date.unwrap_or_default(),
        machine::description(),
        options.rounds,
        options.seconds
    );
    // A peer that cannot take a load has shown that; ours has to.
    match table.failures_of("ours") {
        0 => Ok(()),
        failures => Err(format!("{failures} measurements of ours failed").into()),
    }
}

/// Every case on every system, in turns.
fn measure(options: &Options, systems: &[Under]) -> Outcome<Table> {
    let cases = Case::ALL.iter();
    let cases: Vec<_> = cases
        .filter(|case| case.name.contains(&options.case))
        .collect();
    let systems: Vec<_> = systems.iter().filter(|one| one.skipped.is_none()).collect();
    let mut table = Table::new(&cases, &systems);
    for round in 1..=options.rounds {
        for (row, case) in cases.iter().enumerate() {
            for (column, under) in systems.iter().enumerate() {
                eprint!("\r\x1b[2Kround {round}: {}, {}", case.name, under.name);
                match under.measure(case, options.seconds) {
                    Ok(figures) => table.add(row, column, figures),
                    Err(why) => table.failed(column, &why.to_string()),
                }
                table.after(row, column, under);
            }
        }
    }
    eprint!("\r\x1b[2K");
    Ok(table)
}
