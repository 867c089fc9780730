//! What is drawn before anything runs: instances, their speed, and what happens to them when.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Virtual time since the beginning.
pub(crate) type Time = Duration;

/// Everything that is the same for every policy.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) callers: usize,
    pub(crate) instances: Vec<Instance>,
    /// When the last call begins.
    pub(crate) end: Time,
    /// Calls per second, of all callers.
    pub(crate) rate: f64,
    /// While there are more of them, and how many times more.
    pub(crate) surge: Option<(Span, f64)>,
    /// While something is wrong, where the scenario has a beginning and an end.
    pub(crate) fault: Span,
    /// Longest that a caller waits for an answer, all tries together.
    pub(crate) deadline: Time,
    /// One view of the fleet for all callers, as where they share a sidecar.
    pub(crate) shared: bool,
}

/// From (inclusive) to (exclusive).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Span {
    pub(crate) from: Time,
    pub(crate) to: Time,
}

/// One instance.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// Seconds that half of its calls take at most.
    pub(crate) median: f64,
    /// Calls that it works on at a time.
    pub(crate) workers: usize,
    /// Share of calls that always fail at once.
    pub(crate) errors: f64,
    /// While a share of calls fails at once.
    pub(crate) failing: Vec<(Span, f64)>,
    /// While calls take so many times longer.
    pub(crate) slow: Vec<(Span, f64)>,
    /// While nothing moves: a pause of its collector, or a hang. In order.
    pub(crate) stopped: Vec<Span>,
    /// While connections are refused; those it has, break when this begins. In order.
    pub(crate) down: Vec<Span>,
    /// Whether another process is there after it was down, and the catalog tells.
    pub(crate) told: bool,
}

/// How large a world is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) callers: usize,
    pub(crate) instances: usize,
    /// Calls per second that one instance gets where all get the same.
    pub(crate) each: f64,
    pub(crate) seconds: u64,
}

/// Standard deviation of the logarithm of a call's work.
const SPREAD: f64 = 0.6;
/// Seconds of a typical call.
const MEDIAN: f64 = 0.03;
/// Standard deviation of the logarithm of an instance's speed.
const UNEQUAL: f64 = 0.25;
/// Of 100 calls per second and 36 ms each, a third of this is busy.
const WORKERS: usize = 12;
/// Seconds between two pauses of a collector, and the longest of them.
const PAUSES: f64 = 20.0;
const PAUSE: f64 = 0.25;

impl World {
    /// A fleet that nothing is wrong with but what always is: unequal speed, pauses, few errors.
    pub(crate) fn calm(size: Size, seed: u64, shared: bool) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let end = Duration::from_secs(size.seconds);
        let instances = (0..size.instances).map(|_| Instance::drawn(end, &mut random));
        Self {
            seed,
            callers: size.callers,
            instances: instances.collect(),
            end,
            rate: size.each * size.instances as f64,
            surge: None,
            fault: Span {
                from: end / 4,
                to: end * 3 / 4,
            },
            deadline: Duration::from_secs(5),
            shared,
        }
    }

    /// Calls per second at that time.
    pub(crate) fn rate(&self, at: Time) -> f64 {
        match self.surge {
            Some((span, times)) if span.has(at) => self.rate * times,
            Some(_) | None => self.rate,
        }
    }

    /// What is drawn for one try of one call, whoever it goes to.
    pub(crate) fn draw(&self, call: usize, tries: u32) -> Draw {
        let key = ((call as u64) << 3) ^ u64::from(tries) ^ self.seed.rotate_left(40);
        let mut random = SmallRng::seed_from_u64(key);
        Draw {
            work: (SPREAD * normal(&mut random)).exp(),
            chance: random.random(),
        }
    }
}

/// What is drawn for one try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    /// Times the median.
    pub(crate) work: f64,
    /// From 0 to 1: it fails where this is below the share of failures.
    pub(crate) chance: f64,
}

impl Span {
    /// From one second to another.
    pub(crate) fn seconds(from: f64, to: f64) -> Self {
        Self {
            from: Duration::from_secs_f64(from),
            to: Duration::from_secs_f64(to),
        }
    }

    /// Whether it holds that time.
    pub(crate) fn has(&self, at: Time) -> bool {
        self.from <= at && at < self.to
    }
}

impl Instance {
    fn drawn(end: Time, random: &mut SmallRng) -> Self {
        let mut stopped = Vec::new();
        let mut at = 0.0;
        loop {
            at += -PAUSES * (1.0 - random.random::<f64>()).ln();
            if at > end.as_secs_f64() {
                break;
            }
            let pause = PAUSE * random.random::<f64>();
            stopped.push(Span::seconds(at, at + pause));
            at += pause;
        }
        Self {
            median: MEDIAN * (UNEQUAL * normal(random)).exp(),
            workers: WORKERS,
            errors: 0.002 * random.random::<f64>().powi(4),
            failing: Vec::new(),
            slow: Vec::new(),
            stopped,
            down: Vec::new(),
            told: false,
        }
    }

    /// Share of calls that fail at that time.
    pub(crate) fn failing(&self, at: Time) -> f64 {
        let now = self.failing.iter().find(|(span, _)| span.has(at));
        now.map_or(self.errors, |(_, share)| share.max(self.errors))
    }

    /// Whether it refuses connections at that time.
    pub(crate) fn is_down(&self, at: Time) -> bool {
        self.down.iter().any(|span| span.has(at))
    }

    /// When so much work is done that begins then.
    pub(crate) fn done(&self, begins: Time, draw: Draw) -> Time {
        let slow = self.slow.iter().find(|(span, _)| span.has(begins));
        let times = slow.map_or(1.0, |(_, times)| *times);
        let (mut at, mut left) = (
            begins,
            Duration::from_secs_f64(self.median * times * draw.work),
        );
        for stop in self.stopped.iter().filter(|stop| stop.to > begins) {
            if stop.from > at + left {
                break;
            }
            left = left.saturating_sub(stop.from.saturating_sub(at));
            at = stop.to;
        }
        at + left
    }
}

/// Of mean 0 and deviation 1 (Box and Muller).
pub(crate) fn normal(random: &mut impl Rng) -> f64 {
    let (one, other): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - one).ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}
