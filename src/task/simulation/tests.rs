//! Many seeds, the same seed twice, and what is noticed when a control is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::task::controls::{Control, without};
use crate::task::seeds::{first_broken, setting};

use super::{Size, run};

/// Seeds in `tests/run`.
const SEEDS: u64 = 100;
/// Seeds within which a control that is gone is missed.
const NOTICED: u64 = 200;

/// Small enough for `tests/run`; more in every seed of the soak.
fn size() -> Size {
    let tasks = setting("ATTACHE_SIMULATION_TASKS").unwrap_or(40);
    let window = if tasks > 100 { 120 } else { 60 };
    Size {
        nodes: 5,
        tasks: usize::try_from(tasks).unwrap(),
        window: Duration::from_secs(window),
        faults: true,
        descendants: 12,
        segment_bytes: 8 << 10,
    }
}

#[test]
fn without_faults_everything_ends_as_it_should() {
    let quiet = Size {
        nodes: 3,
        faults: false,
        ..size()
    };
    for seed in 0..3 {
        let ran = run(seed, quiet, false);
        assert_eq!(ran.broken, None);
        assert!(ran.tasks >= quiet.tasks, "{} tasks", ran.tasks);
    }
}

#[test]
fn a_seed_runs_the_same_again() {
    for seed in [1, 2] {
        let (one, other) = (run(seed, size(), false), run(seed, size(), false));
        assert_eq!(one.digest, other.digest, "seed {seed}");
    }
    assert_ne!(run(1, size(), false).digest, run(2, size(), false).digest);
}

#[test]
fn every_invariant_holds_whatever_happens() {
    let (first, end) = match setting("ATTACHE_SIMULATION_SEED") {
        Some(seed) => (seed, seed + 1),
        None => {
            let first = setting("ATTACHE_SIMULATION_FIRST").unwrap_or(0);
            let seeds = setting("ATTACHE_SIMULATION_SEEDS").unwrap_or(SEEDS);
            (first, first + seeds)
        }
    };
    let trace = std::env::var_os("ATTACHE_SIMULATION_TRACE").is_some();
    let sum = Mutex::new((0, BTreeMap::<&'static str, u64>::new()));
    let broken = first_broken(first..end, |seed| {
        let ran = run(seed, size(), trace);
        let mut sum = sum.lock();
        sum.0 += ran.tasks;
        for (kind, count) in ran.faults {
            *sum.1.entry(kind).or_default() += count;
        }
        ran.broken.map_or(Ok(()), Err)
    });
    let (tasks, faults) = sum.into_inner();
    if broken.is_none() && setting("ATTACHE_SIMULATION_SEEDS").is_some() {
        #[allow(clippy::print_stdout, reason = "tests/soak/simulation shows it")]
        {
            println!("simulated {} seeds, {tasks} tasks, {faults:?}", end - first);
        }
    }
    if let Some((seed, (how, before))) = broken {
        let tasks = size().tasks;
        panic!(
            "{before}\n\n{how}\n\nagain:  ATTACHE_SIMULATION_SEED={seed} \
             ATTACHE_SIMULATION_TASKS={tasks} cargo test --lib \
             every_invariant_holds_whatever_happens\n"
        );
    }
}

#[test]
#[allow(
    clippy::print_stderr,
    reason = "how soon each is missed is worth knowing"
)]
fn without_its_controls_the_engine_breaks_its_promises() {
    let seeds = setting("ATTACHE_SIMULATION_NOTICED").unwrap_or(NOTICED);
    for (control, expected) in [
        // One that tells of something may run twice as well.
        (Control::Fence, &["I12", "I5", "tells"][..]),
        (Control::ExecutorFence, &["I12", "I5", "tells"][..]),
        (Control::NeverBegun, &["I12", "I5", "tells"][..]),
        (Control::Sync, &["I1", "I13"]),
        (Control::Idempotency, &["I4"]),
        (Control::Descendants, &["I14"]),
    ] {
        let broken = |seed| Some((seed, run(seed, size(), false).broken?.0));
        let found = without(control, || (0..seeds).find_map(broken));
        let (seed, how) = found.unwrap_or_else(|| panic!("nobody misses the {control:?}"));
        let fits = expected.iter().any(|name| how.contains(name));
        assert!(fits, "{control:?}, seed {seed}: {how}");
        // Seen with --nocapture.
        eprintln!("without {control:?}: seed {seed}, {how}");
    }
}
