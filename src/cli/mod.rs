//! The command line: parse, act, print, exit.

mod agents;
pub mod args;
mod ca;
#[cfg(test)]
mod documents;
pub mod exit;
mod follow;
mod journal;
mod logging;
mod mesh;
pub mod output;
mod process;
pub mod show;
mod task;
mod up;

use clap::Parser;

use self::{
    args::{Cli, Verb},
    exit::{Exit, Failed},
    output::Output,
};
use crate::runtime::Nursery;

/// Carries out the command line of this process; returns its exit code.
pub async fn run() -> Exit {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    let outcome = match logging::start(&cli) {
        Ok(()) => Box::pin(act(cli.verb, &output)).await,
        Err(failed) => Err(failed),
    };
    output.wipe();
    match outcome {
        Ok(exit) => exit,
        Err(failed) => {
            output.error(&failed.text);
            failed.exit
        }
    }
}

async fn act(verb: Verb, output: &Output) -> Result<Exit, Failed> {
    let nursery = Nursery::here();
    match verb {
        Verb::Up(args) => up::up(args, output, &nursery).await,
        Verb::Down(args) => up::down(&args, output).await,
        Verb::Check(args) => up::check(&args, output),
        Verb::Registry(args) => process::registry(args, output, &nursery).await,
        Verb::Sidecar(args) => process::sidecar(args, output, &nursery).await,
        Verb::Ca(verb) => ca::run(verb, output, &nursery).await,
        Verb::Agents(verb) => agents::run(verb, output, &nursery).await,
        Verb::Journal(verb) => journal::run(verb, output),
        Verb::Task(verb) => task::run(verb, output, &nursery).await,
    }
}

/// How this program was called, for commands that are shown to be copied: `attache` where the shell
/// finds it, else the path that was typed.
fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "attache".to_owned())
}
