//! Measures what decides where calls go: the time of one choice, and what choices make of a simulated
//! fleet beside what others would have chosen: `cargo bench --bench traffic`.
//!
//! Without options both: `-- --pick` only the first, `-- --fleet` only the second.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a program for people, run by hand"
)]

#[path = "../../tests/support/fleet/mod.rs"]
mod fleet;
#[path = "../tasks/machine.rs"]
#[allow(dead_code, reason = "the other bench also watches its processes")]
mod machine;
mod pick;
mod race;

use attache::runtime::clock::wall;
use clap::Parser;
use jiff::Timestamp;

#[derive(Debug, Parser)]
struct Options {
    /// Only the time of a choice
    #[arg(long)]
    pick: bool,
    /// Only the simulated fleet
    #[arg(long)]
    fleet: bool,
    /// What the world is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Virtual seconds of each run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Instances
    #[arg(long, default_value_t = 50)]
    instances: usize,
    /// Callers
    #[arg(long, default_value_t = 100)]
    callers: usize,
    /// Calls per second and instance; it can do some 300
    #[arg(long, default_value_t = 100.0)]
    each: f64,
    /// Only scenarios whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Only with one view for all callers (true), or only with one for each (false)
    #[arg(long)]
    shared: Option<bool>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if !options.bench {
        println!("run it by `cargo bench --bench traffic`");
        return;
    }
    if !options.fleet {
        pick::pick();
        println!("\n{}", signature("--pick"));
    }
    if !options.pick {
        race::race(&options);
    }
}

/// When, where and by what command.
pub(crate) fn signature(arguments: &str) -> String {
    let date = Timestamp::try_from(wall()).map(|at| at.strftime("%Y-%m-%d").to_string());
    format!(
        "{}; {}; `cargo bench --bench traffic -- {arguments}`",
        date.unwrap_or_default(),
        machine::description()
    )
}
