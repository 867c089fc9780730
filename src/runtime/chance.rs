//! Chance for what must come out the same when a simulation runs it again: the task engine draws
//! its random numbers and new ids here. Everywhere but in tests they are the operating system's.

use rand::RngCore as _;
use uuid::Uuid;

/// A number from 0 up to but not including 1.
pub fn fraction() -> f64 {
    // As many bits as the fraction of a double has.
    (number() >> 11) as f64 / (1_u64 << 53) as f64
}

/// 64 random bits.
pub fn number() -> u64 {
    let mut bits = [0; 8];
    fill(&mut bits);
    u64::from_le_bytes(bits)
}

/// Random bytes, good enough for secrets.
pub fn fill(bytes: &mut [u8]) {
    #[cfg(test)]
    if seeded::fill(bytes) {
        return;
    }
    rand::rng().fill_bytes(bytes);
}

/// A new UUID of version 7.
pub fn uuid() -> Uuid {
    #[cfg(test)]
    if let Some(drawn) = seeded::uuid() {
        return drawn;
    }
    Uuid::now_v7()
}

/// Chance that a seed decides, on one thread.
#[cfg(test)]
pub(crate) mod seeded {
    use std::cell::RefCell;

    use rand::rngs::StdRng;
    use rand::{RngCore as _, SeedableRng as _};
    use uuid::{Builder, Uuid};

    use crate::runtime::clock;

    thread_local! {
        static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// Until it is called with `None`, this thread's chance follows from the seed.
    pub(crate) fn seed(seed: Option<u64>) {
        SEEDED.set(seed.map(StdRng::seed_from_u64));
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        SEEDED.with_borrow_mut(|seeded| {
            let Some(random) = seeded else { return false };
            random.fill_bytes(bytes);
            true
        })
    }

    pub(super) fn uuid() -> Option<Uuid> {
        let mut random = [0; 10];
        fill(&mut random).then(|| {
            let since = clock::wall().duration_since(std::time::UNIX_EPOCH);
            let millis = since.map_or(0, |since| since.as_millis());
            let millis = u64::try_from(millis).unwrap_or(u64::MAX);
            Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_nothing_else_does() {
        let draw = || (uuid(), number(), fraction());
        assert_ne!(draw().0, draw().0);
        let mut drawn = Vec::new();
        for _ in 0..2 {
            seeded::seed(Some(7));
            drawn.push((number(), fraction(), number()));
            seeded::seed(None);
        }
        assert_eq!(drawn[0], drawn[1]);
        assert_ne!(drawn[0].0, drawn[0].2);
        assert!((0.0..1.0).contains(&drawn[0].1));
    }
}
