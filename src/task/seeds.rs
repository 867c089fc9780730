//! Checks that run by seed: which seeds are asked for, and the first that breaks something.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A number from the environment; `None`: it is not set.
pub(super) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs `seeds` on all processors until one of them breaks something; gives it and what it broke.
pub(super) fn first_broken<B: Send>(
    seeds: Range<u64>,
    run: impl Fn(u64) -> Result<(), B> + Sync,
) -> Option<(u64, B)> {
    let next = AtomicU64::new(seeds.start);
    let broken = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while broken.lock().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(how) = run(seed) {
                        broken.lock().get_or_insert((seed, how));
                    }
                }
            });
        }
    });
    broken.into_inner()
}
