//! Measures durable tasks through two sidecars, beside the same sidecars with a log in memory and
//! beside the bare disk: `cargo bench --bench tasks`.
//!
//! Real processes: `attache up` starts a registry, a sidecar that is the home, a sidecar that is the
//! executor, and an agent that answers at once (this very program). The callers are tasks of this
//! process; they talk to the home's local socket, and the home to the executor over mutual TLS. All
//! share the machine.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program for people, run by hand"
)]

mod disk;
mod fleeting;
mod large;
mod load;
mod machine;
mod mesh;
mod plain;
mod recovery;
mod registry;
mod report;
mod slots;
mod watching;

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use attache::agent::{self, Task};
use clap::Parser;
use tokio::runtime::Builder;

use crate::{
    load::{Call, Load},
    mesh::Mesh,
    report::{Case, Report, Run},
};

/// Skill of the agent that answers at once.
pub(crate) const SKILL: &str = "echo.say";
/// Bytes of a task's input, and of its result.
pub(crate) const INPUT: usize = 128;
/// Bytes of a record in the disk's own figure: about what the log writes of a task at once.
const RECORD: usize = 600;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug, Parser)]
struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Callers at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 256])]
    callers: Vec<usize>,
    /// Only a restart with so many open tasks in the log, such as 100000
    #[arg(long, value_name = "TASKS")]
    restart: Option<usize>,
    /// Only so many tasks with inputs of 256 KiB: beside the log, and in it as before
    #[arg(long, value_name = "TASKS")]
    large: Option<usize>,
    /// Another build to measure, to compare the two in turns
    #[arg(long, default_value = env!("CARGO_BIN_EXE_attache"))]
    attache: PathBuf,
    /// Measure registries with so many agents each, instead of tasks
    #[arg(long, value_delimiter = ',')]
    agents: Vec<usize>,
    /// Measure tasks in memory beside plain tonic over the same hops, instead
    #[arg(long)]
    ephemeral: bool,
    /// Measure tasks that wait for executors with so many slots beside one that has room for all, instead
    #[arg(long, value_delimiter = ',')]
    slots: Vec<u32>,
    /// Measure how many events reach so many watchers of one task, such as 1000, and how soon work goes
    /// on whose executor was killed, instead
    #[arg(long, value_name = "COUNT")]
    watchers: Option<usize>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Outcome<()> {
    if plain::serves()? {
        return Ok(());
    }
    if env::var_os("ATTACHE_LISTEN").is_some() {
        return echo();
    }
    let options = Options::parse();
    if !options.bench {
        println!("run it by `cargo bench --bench tasks`");
        return Ok(());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    if let Some(tasks) = options.large {
        return runtime.block_on(large::compare(tasks, options.rounds));
    }
    if let Some(tasks) = options.restart {
        return runtime.block_on(restart(&options, tasks));
    }
    if !options.agents.is_empty() {
        return runtime.block_on(registries(&options));
    }
    if options.ephemeral {
        return runtime.block_on(fleeting::measure(&options));
    }
    if !options.slots.is_empty() {
        return runtime.block_on(slots::measure(&options));
    }
    if let Some(watchers) = options.watchers {
        return runtime.block_on(watched(&options, watchers));
    }
    let report = runtime.block_on(measure(&options))?;
    println!("\n{report}");
    Ok(())
}

async fn restart(options: &Options, tasks: usize) -> Outcome<()> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut restarts = recovery::measure(scratch.path(), tasks, options.rounds).await?;
    restarts.sort_by_key(recovery::Restart::ready);
    println!("\n{tasks} open tasks: {}", restarts[restarts.len() / 2]);
    Ok(())
}

async fn registries(options: &Options) -> Outcome<()> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut rows = Vec::new();
    for &agents in &options.agents {
        rows.push(registry::measure(&options.attache, scratch.path(), agents).await?);
    }
    println!(
        "\nTimes in ms, p50 / p99, over mutual TLS from one process:\n\n{}",
        registry::HEAD
    );
    for row in rows {
        println!("{row}");
    }
    println!("\n{}", report::signature("-- --agents 1000,10000"));
    Ok(())
}

async fn watched(options: &Options, watchers: usize) -> Outcome<()> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mesh = Mesh::start(&options.attache, scratch.path(), "disk", 2).await?;
    let (mut rates, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        rates.push(watching::measure(&mesh, scratch.path(), watchers).await?);
        losses.push(watching::lost(&mesh, scratch.path()).await?);
    }
    rates.sort_by(f64::total_cmp);
    losses.sort_unstable();
    println!(
        "\n{:.0} events/s to {watchers} watchers; {:.0?} from the SIGKILL of an executor to the next \
         attempt (most: {:.0?})\n{}",
        rates[rates.len() / 2],
        losses[losses.len() / 2],
        losses[losses.len() - 1],
        report::signature("-- --watchers 1000")
    );
    Ok(())
}

/// The agent: its answer is its input. `count COUNT FILE`: it says that many things before, once the
/// file is there.
fn echo() -> Outcome<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let said = |task: Task| async move {
        let text = task.text();
        if let ["count", count, gate] = text.split(' ').collect::<Vec<_>>()[..] {
            while !Path::new(gate).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for _ in 0..count.parse()? {
                task.message("again").await;
            }
        }
        Ok(agent::text(text))
    };
    Ok(runtime.block_on(agent::serve(None, said))?)
}

async fn measure(options: &Options) -> Outcome<Report> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut report = Report::default();
    let durable = Mesh::start(&options.attache, scratch.path(), "disk", 1).await?;
    let fleeting = Mesh::start(&options.attache, scratch.path(), "memory", 1).await?;
    report.idle = durable.resident();
    let each = Duration::from_secs_f64(options.seconds);
    for round in 1..=options.rounds {
        report
            .disk
            .push(disk::appends(scratch.path(), RECORD, each / 2)?);
        for &callers in &options.callers {
            for (name, mesh) in [("disk", &durable), ("memory", &fleeting)] {
                let load = Load {
                    call: Call::Durable,
                    callers,
                    input: "x".repeat(INPUT),
                };
                load.run(mesh.local(), each / 8).await?;
                let before = mesh.journal()?;
                let spent = mesh.spent();
                let measured = load.run(mesh.local(), each).await?;
                let spent = mesh.spent().each(spent, measured.count());
                let journal = mesh.journal()?.since(&before);
                eprintln!(
                    "round {round}, {callers:3} callers, {name:6}: {measured}, \
                     {spent} us of processor, {journal}"
                );
                report.add(
                    Case { callers, name },
                    Run {
                        measured,
                        journal,
                        spent,
                    },
                );
            }
        }
    }
    report.busy = durable.resident();
    report.program = std::fs::metadata(&options.attache)?.len();
    Ok(report)
}
