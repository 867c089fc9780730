//! What it costs to have large inputs beside the log instead of in it: both in one run, in turns.
//!
//! In this process, over the real log on the real disk, without gRPC: tasks are submitted through a
//! home until so many wait, then it is opened again. Every input is another one.

use std::{fs, path::Path, time::Duration};

use attache::pb::{self, part::Content};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{
    Outcome,
    recovery::{IDLE, LARGE, asked, end, start},
};

/// Bytes of an input.
const INPUT: usize = 256 << 10;
/// Submissions at once.
const AT_ONCE: usize = 32;
/// Where content goes beside the log, as a sidecar has it.
const BESIDE: usize = 64 << 10;

/// One way, once.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    per_second: f64,
    log: u64,
    packs: u64,
    restart: Duration,
}

/// Measures both, and prints the medians and their ratio.
pub(crate) async fn compare(tasks: usize, rounds: usize) -> Outcome<()> {
    let (mut inside, mut beside) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        inside.push(run(tasks, LARGE).await?);
        beside.push(run(tasks, BESIDE).await?);
        eprintln!(
            "round {round}: in the log {:?}, beside it {:?}",
            inside[round - 1],
            beside[round - 1]
        );
    }
    let median = |runs: &[Run], of: &dyn Fn(&Run) -> f64| {
        let mut found: Vec<f64> = runs.iter().map(of).collect();
        found.sort_by(f64::total_cmp);
        found[found.len() / 2]
    };
    let show = |what: &str, of: &dyn Fn(&Run) -> f64| {
        let (before, after) = (median(&inside, of), median(&beside, of));
        println!(
            "{what}: {before:.1} in the log, {after:.1} beside it, ratio {:.2}",
            after / before
        );
    };
    show("durable submits per second", &|run| run.per_second);
    show("MiB of log", &|run| run.log as f64 / f64::from(1 << 20));
    show("MiB of packs", &|run| run.packs as f64 / f64::from(1 << 20));
    show("restart, ms", &|run| run.restart.as_secs_f64() * 1e3);
    Ok(())
}

async fn run(tasks: usize, large: usize) -> Outcome<Run> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let dir = scratch.path().join("journal");
    let (home, nurseries) = start(&dir, large)?;
    let submit = |number: usize| {
        let home = home.clone();
        async move {
            let mut asked = asked(IDLE);
            let mut input = vec![0; INPUT];
            input[..8].copy_from_slice(&(number as u64).to_le_bytes());
            asked.spec.input = vec![pb::Part {
                content: Some(Content::Raw(input.into())),
                ..pb::Part::default()
            }];
            home.submit(asked, number).await
        }
    };
    let began = Instant::now();
    let mut submitted = stream::iter((0..tasks).map(submit)).buffer_unordered(AT_ONCE);
    while let Some(task) = submitted.next().await {
        task.map_err(|fault| fault.text)?;
    }
    drop(submitted);
    let took = began.elapsed();
    end(home, nurseries).await;
    let began = Instant::now();
    let (home, nurseries) = start(&dir, large)?;
    let restart = began.elapsed();
    end(home, nurseries).await;
    Ok(Run {
        per_second: tasks as f64 / took.as_secs_f64(),
        log: bytes_of(&dir, "log")?,
        packs: bytes_of(&dir, "pack")?,
        restart,
    })
}

/// Bytes of the files with this ending; a log's are reserved ahead of need.
fn bytes_of(dir: &Path, ending: &str) -> Outcome<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(dir)? {
        let file = file?;
        if file.path().extension().is_some_and(|found| found == ending) {
            bytes += file.metadata()?.len();
        }
    }
    Ok(bytes)
}
