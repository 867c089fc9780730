//! The command line: parse, act, print, exit.

mod agents;
pub mod args;
mod asked;
mod bench;
mod breakers;
mod ca;
mod content;
#[cfg(test)]
mod documents;
pub mod exit;
mod follow;
mod journal;
mod log;
mod mesh;
pub mod output;
mod pairs;
mod process;
mod respond;
mod rules;
pub mod show;
mod task;
mod tree;
mod up;

use clap::Parser;

use self::{
    args::{Cli, Verb},
    exit::{Exit, Failed},
    output::Output,
};
use crate::{
    runtime::Nursery,
    telemetry::{Traces, logging},
};

/// Carries out the command line of this process; returns its exit code.
pub async fn run() -> Exit {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    let outcome = Box::pin(act(cli, &output)).await;
    output.wipe();
    match outcome {
        Ok(exit) => exit,
        Err(failed) => {
            output.error(&failed.text);
            failed.exit
        }
    }
}

async fn act(cli: Cli, output: &Output) -> Result<Exit, Failed> {
    let nursery = Nursery::here();
    // The two long-running verbs say what they do, and start to once they are configured.
    if !matches!(cli.verb, Verb::Registry(_) | Verb::Sidecar(_)) {
        let filter = cli.logs.log.as_deref().unwrap_or("error");
        let started = logging::start(filter, cli.logs.log_format, &Traces::default());
        started.map_err(|error| Failed::usage(format!("--log: {error}")))?;
    }
    match cli.verb {
        Verb::Up(args) => up::up(args, output, &nursery).await,
        Verb::Down(args) => up::down(&args, output).await,
        Verb::Check(args) => up::check(&args, output),
        Verb::Registry(args) => process::registry(args, &cli.logs, output, &nursery).await,
        Verb::Sidecar(args) => process::sidecar(args, &cli.logs, output, &nursery).await,
        Verb::Ca(verb) => ca::run(verb, output, &nursery).await,
        Verb::Agents(verb) => agents::run(verb, output, &nursery).await,
        Verb::Rules(verb) => rules::run(verb, output, &nursery).await,
        Verb::Journal(verb) => journal::run(verb, output),
        Verb::Task(verb) => task::run(verb, output, &nursery).await,
        Verb::Breakers(args) => breakers::run(&args, output).await,
        Verb::Bench(args) => Box::pin(bench::run(args, output, &nursery)).await,
        Verb::Log(args) => log::run(&args, output).await,
    }
}

/// How this program was called, for commands that are shown to be copied: `attache` where the shell
/// finds it, else the path that was typed.
fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "attache".to_owned())
}
