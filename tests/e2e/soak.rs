//! Load for a long time: memory and descriptors of every process stay flat.
//!
//! In `tests/run` for some seconds, which shows descriptors only; `tests/soak/load` says for how many
//! minutes by ATTACHE_SOAK_MINUTES, and then memory counts too.

use std::{fmt::Write, fs, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::support::{
    hand::{ByHand, REGISTRY},
    load::{Load, Shape},
    mesh::agent,
};

/// Without a word: long enough for a few hundred tasks.
const BRIEFLY: Duration = Duration::from_secs(8);
/// Samples of each process over the whole time.
const SAMPLES: u32 = 120;
/// The first half is warm-up: kept tasks, pools and the allocator fill up to their bounds.
const WARM_UP: usize = 2;
/// What a process's memory may grow by after its warm-up, as a part of it and in KiB.
const GROWTH: (f64, f64) = (0.05, 4096.0);
/// What its descriptors may vary by: connections come and go with their age.
const DESCRIPTORS: u64 = 16;
/// Below this time the memory of a process that has just started says nothing.
const TELLING: Duration = Duration::from_mins(4);

/// One process, over time.
struct Course {
    name: String,
    pid: u32,
    /// Seconds, resident KiB, descriptors.
    seen: Vec<(f64, f64, u64)>,
}

impl Course {
    fn look(&mut self, at: f64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap();
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        self.seen.push((at, resident, open.count() as u64));
    }

    fn settled(&self) -> &[(f64, f64, u64)] {
        &self.seen[self.seen.len() / WARM_UP..]
    }

    /// What the memory grows by over the settled time, in KiB, by the line of least squares.
    fn growth(&self) -> f64 {
        let seen = self.settled();
        let count = seen.len() as f64;
        let mean = |of: fn(&(f64, f64, u64)) -> f64| seen.iter().map(of).sum::<f64>() / count;
        let (at, resident) = (mean(|one| one.0), mean(|one| one.1));
        let over: f64 = seen
            .iter()
            .map(|one| (one.0 - at) * (one.1 - resident))
            .sum();
        let under: f64 = seen.iter().map(|one| (one.0 - at).powi(2)).sum();
        over / under * (seen[seen.len() - 1].0 - seen[0].0)
    }

    fn spread(&self) -> (u64, u64) {
        let open = self.settled().iter().map(|one| one.2);
        (open.clone().min().unwrap(), open.max().unwrap())
    }

    /// What is wrong with it, if anything is.
    fn judge(&self, memory: bool) -> Option<String> {
        let start = self.settled()[0].1;
        let (growth, bound) = (self.growth(), start * GROWTH.0 + GROWTH.1);
        if memory && growth > bound {
            return Some(format!(
                "{}: {growth:.0} KiB more, on {start:.0}",
                self.name
            ));
        }
        let (least, most) = self.spread();
        (most - least > DESCRIPTORS).then(|| format!("{}: {least}..{most} descriptors", self.name))
    }
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the table is what a soak is for")]
async fn memory_and_descriptors_stay_flat_under_load() {
    let minutes = std::env::var("ATTACHE_SOAK_MINUTES").ok();
    let minutes = minutes.map(|text| Duration::from_mins(text.parse().unwrap()));
    let whole = minutes.unwrap_or(BRIEFLY);
    let workers = agent("worker", &["test.echo"], "instances = 2");
    let mesh = ByHand::started(&(agent("home", &["test.home"], "") + &workers)).await;
    let mut names = vec![REGISTRY.to_owned()];
    names.extend(mesh.sidecars());
    let mut courses: Vec<Course> = names
        .into_iter()
        .map(|name| Course {
            pid: mesh.pid(&name),
            name,
            seen: Vec::new(),
        })
        .collect();
    let homes = (0..2).map(|_| mesh.local("home-1")).collect();
    let load = Load::shaped(homes, 16, Shape::default());
    let began = Instant::now();
    for sample in 0..=SAMPLES {
        sleep_until(began + whole * sample / SAMPLES).await;
        for course in &mut courses {
            course.look(began.elapsed().as_secs_f64());
        }
    }
    let outcome = load.stop().await;
    outcome.clean();
    let mut table = format!("{} tasks in {whole:?}\n", outcome.completed);
    writeln!(
        table,
        "{:12} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "process", "start KiB", "warm KiB", "end KiB", "growth", "descriptors"
    )
    .unwrap();
    for course in &courses {
        let (first, warm) = (course.seen[0].1, course.settled()[0].1);
        let last = course.seen[course.seen.len() - 1].1;
        let (least, most) = course.spread();
        let (name, growth) = (&course.name, course.growth());
        writeln!(
            table,
            "{name:12} {first:9.0} {warm:9.0} {last:9.0} {growth:9.0} {least:>9}..{most}"
        )
        .unwrap();
    }
    println!("{table}");
    let memory = whole >= TELLING;
    let wrong: Vec<String> = courses.iter().filter_map(|one| one.judge(memory)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{table}");
}

#[test]
fn a_leak_is_noticed() {
    let course = |resident: fn(u32) -> f64, open: fn(u32) -> u64| {
        let seen = (0..100).map(|at| (f64::from(at), resident(at), open(at)));
        let name = "x".to_owned();
        Course {
            name,
            pid: 0,
            seen: seen.collect(),
        }
    };
    let flat = course(
        |at| 20_000.0 + f64::from(at % 7) * 100.0,
        |at| u64::from(20 + at % 3),
    );
    assert_eq!(flat.judge(true), None);
    let warming = course(|at| 20_000.0 + 1000.0 * f64::from(at.min(49)), |_| 20);
    assert_eq!(warming.judge(true), None);
    let memory = course(|at| 20_000.0 + 200.0 * f64::from(at), |_| 20);
    assert!(
        memory
            .judge(true)
            .is_some_and(|wrong| wrong.contains("KiB more"))
    );
    let descriptors = course(|_| 20_000.0, |at| u64::from(20 + at));
    assert!(
        descriptors
            .judge(false)
            .is_some_and(|wrong| wrong.contains("descriptors"))
    );
}
