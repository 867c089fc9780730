//! What others do: in turn, fewest calls of two, and Linkerd's balancer with its breaker.

use rand::{Rng, rngs::SmallRng};
use std::time::Duration;
use tokio::time::Instant;

use super::policy::{End, Policy};

/// One after the other.
pub(crate) struct RoundRobin {
    instances: usize,
    next: usize,
}

impl Policy for RoundRobin {
    type Ticket = ();

    fn new(instances: usize, _: Instant, random: &mut SmallRng) -> Self {
        Self {
            instances,
            next: random.random_range(0..instances),
        }
    }

    fn pick(&mut self, not: &[usize], _: Instant, _: &mut SmallRng) -> Option<(usize, ())> {
        for _ in 0..self.instances {
            self.next = (self.next + 1) % self.instances;
            if !not.contains(&self.next) {
                return Some((self.next, ()));
            }
        }
        None
    }

    fn end(&mut self, _: usize, (): (), _: End, _: Instant, _: f64) {}

    fn restarted(&mut self, _: usize, _: Instant) {}
}

/// The one of two random ones that has fewer calls under way.
pub(crate) struct LeastRequests(pub(crate) Vec<u32>);

impl Policy for LeastRequests {
    type Ticket = ();

    fn new(instances: usize, _: Instant, _: &mut SmallRng) -> Self {
        Self(vec![0; instances])
    }

    fn pick(&mut self, not: &[usize], _: Instant, random: &mut SmallRng) -> Option<(usize, ())> {
        let under_way = &self.0;
        let (one, other) = two(under_way.len(), |place| !not.contains(&place), random)?;
        let place = if under_way[other] < under_way[one] {
            other
        } else {
            one
        };
        self.0[place] += 1;
        Some((place, ()))
    }

    fn end(&mut self, place: usize, (): (), _: End, _: Instant, _: f64) {
        self.0[place] -= 1;
    }

    fn restarted(&mut self, _: usize, _: Instant) {}
}

/// Peak-sensitive latency times calls under way of two random ones, and a breaker that opens after
/// seven failures in a row, with one probe after a backoff; all may be open. `PENALIZING`: its option
/// by which a failure counts as a latency of 5 s.
pub(crate) struct Linkerd<const PENALIZING: bool>(Vec<Balanced>);

#[derive(Clone, Default)]
struct Balanced {
    under_way: u32,
    /// Seconds, and when.
    latency: Option<(f64, Instant)>,
    row: u32,
    opened: u32,
    until: Option<Instant>,
    probing: bool,
}

const DECAY: f64 = 10.0;
/// What it takes the latency to be before it knows one.
const DEFAULT: f64 = 0.03;
const PENALTY: Duration = Duration::from_secs(5);
const ROW: u32 = 7;
const BACKOFF: f64 = 1.0;
const BACKOFF_MAX: f64 = 60.0;
const JITTER: f64 = 0.5;

impl Balanced {
    fn may(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now && !self.probing)
    }

    fn cost(&self, now: Instant) -> f64 {
        let latency = self
            .latency
            .map_or(DEFAULT, |(value, at)| value * keep(at, now));
        latency * f64::from(self.under_way + 1)
    }

    fn measure(&mut self, took: f64, now: Instant) {
        let value = match self.latency {
            Some((value, at)) if value > took => {
                let kept = keep(at, now);
                value * kept + took * (1.0 - kept)
            }
            Some(_) | None => took,
        };
        self.latency = Some((value, now));
    }

    fn open(&mut self, now: Instant, chance: f64) {
        let backoff = (BACKOFF * f64::from(self.opened).exp2()).min(BACKOFF_MAX);
        let backoff = backoff * (1.0 + JITTER * chance);
        self.opened += 1;
        self.row = 0;
        self.until = Some(now + Duration::from_secs_f64(backoff));
    }
}

impl<const PENALIZING: bool> Policy for Linkerd<PENALIZING> {
    type Ticket = (Instant, bool);

    fn new(instances: usize, _: Instant, _: &mut SmallRng) -> Self {
        Self(vec![Balanced::default(); instances])
    }

    fn pick(
        &mut self,
        not: &[usize],
        now: Instant,
        random: &mut SmallRng,
    ) -> Option<(usize, (Instant, bool))> {
        let all = &self.0;
        let may = |place: usize| all[place].may(now) && !not.contains(&place);
        let (one, other) = two(all.len(), may, random)?;
        let place = if all[other].cost(now) < all[one].cost(now) {
            other
        } else {
            one
        };
        let taken = &mut self.0[place];
        taken.under_way += 1;
        taken.probing = taken.until.is_some();
        Some((place, (now, taken.probing)))
    }

    fn end(&mut self, place: usize, ticket: (Instant, bool), end: End, now: Instant, chance: f64) {
        let (begun, probe) = ticket;
        let one = &mut self.0[place];
        one.under_way -= 1;
        let took = now - begun;
        let bad = end.is_fault() || matches!(end, End::Full(_));
        let counted = if bad && PENALIZING {
            took.max(PENALTY)
        } else {
            took
        };
        one.measure(counted.as_secs_f64(), now);
        if probe {
            one.probing = false;
            one.until = None;
        }
        if !end.is_fault() {
            one.row = 0;
            if probe {
                one.opened = 0;
            }
        } else if probe {
            one.open(now, chance);
        } else if one.until.is_none() {
            one.row += 1;
            if one.row >= ROW {
                one.open(now, chance);
            }
        }
    }

    fn restarted(&mut self, place: usize, _: Instant) {
        let one = &mut self.0[place];
        *one = Balanced {
            under_way: one.under_way,
            ..Balanced::default()
        };
    }
}

fn keep(at: Instant, now: Instant) -> f64 {
    (-(now - at).as_secs_f64() / DECAY).exp()
}

/// Two random ones that may be called; the same one twice where there is no other.
pub(crate) fn two(
    count: usize,
    may: impl Fn(usize) -> bool,
    random: &mut SmallRng,
) -> Option<(usize, usize)> {
    let one = any(count, &may, random)?;
    let other = any(count, |place| place != one && may(place), random);
    Some((one, other.unwrap_or(one)))
}

/// A random one that may be called.
fn any(count: usize, may: impl Fn(usize) -> bool, random: &mut SmallRng) -> Option<usize> {
    for _ in 0..4 {
        let place = random.random_range(0..count);
        if may(place) {
            return Some(place);
        }
    }
    let left = (0..count).filter(|place| may(*place)).count();
    if left == 0 {
        return None;
    }
    let at = random.random_range(0..left);
    (0..count).filter(|place| may(*place)).nth(at)
}
