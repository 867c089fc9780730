//! What goes wrong: one change to a calm world each.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::world::{Size, Span, World};

/// One story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Nothing but what always is.
    Calm,
    /// One is ten times slower.
    Slow,
    /// One in ten fails half of its calls.
    Failing,
    /// Nine in ten fail half of their calls.
    MostFailing,
    /// One takes calls and never answers.
    Hang,
    /// Each in turn is killed, and back three seconds later.
    Restarts,
    /// Some come and go, three seconds each.
    Flapping,
    /// Half of them refuse.
    HalfDown,
    /// All of them refuse.
    AllDown,
    /// All of them refuse, and callers call twice as often.
    Storm,
    /// Something of everything, drawn for each.
    Mixed,
}

impl Scenario {
    pub(crate) const ALL: [Self; 11] = [
        Self::Calm,
        Self::Slow,
        Self::Failing,
        Self::MostFailing,
        Self::Hang,
        Self::Restarts,
        Self::Flapping,
        Self::HalfDown,
        Self::AllDown,
        Self::Storm,
        Self::Mixed,
    ];

    /// What a table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Slow => "one slow 10x",
            Self::Failing => "1 in 10 fails half",
            Self::MostFailing => "9 in 10 fail half",
            Self::Hang => "one hangs",
            Self::Restarts => "rolling restarts",
            Self::Flapping => "1 in 10 flaps",
            Self::HalfDown => "half refuse",
            Self::AllDown => "all refuse",
            Self::Storm => "all refuse, load 2x",
            Self::Mixed => "all of it, drawn",
        }
    }

    /// Whether there is a time at which everything is back.
    pub(crate) fn recovers(self) -> bool {
        matches!(self, Self::HalfDown | Self::AllDown | Self::Storm)
    }

    /// The world in which it happens.
    pub(crate) fn world(self, size: Size, seed: u64, shared: bool) -> World {
        let mut world = World::calm(size, seed, shared);
        let fault = world.fault;
        let count = world.instances.len();
        let some = (count / 10).max(1);
        match self {
            Self::Calm => {}
            Self::Slow => world.instances[0].slow.push((fault, 10.0)),
            Self::Failing => failing(&mut world, some),
            Self::MostFailing => failing(&mut world, count - some),
            Self::Hang => world.instances[0].stopped = vec![fault],
            Self::Restarts => restarts(&mut world),
            Self::Flapping => flapping(&mut world, some),
            Self::HalfDown => down(&mut world, count / 2),
            Self::AllDown => down(&mut world, count),
            Self::Storm => {
                down(&mut world, count);
                world.surge = Some((fault, 2.0));
            }
            Self::Mixed => mixed(&mut world),
        }
        world
    }
}

fn failing(world: &mut World, count: usize) {
    for instance in &mut world.instances[..count] {
        instance.failing.push((world.fault, 0.5));
    }
}

fn down(world: &mut World, count: usize) {
    for instance in &mut world.instances[..count] {
        instance.down.push(world.fault);
    }
}

fn restarts(world: &mut World) {
    let (from, to) = (world.fault.from.as_secs_f64(), world.fault.to.as_secs_f64());
    let each = (to - from) / world.instances.len() as f64;
    for (place, instance) in world.instances.iter_mut().enumerate() {
        let at = from + each * place as f64;
        instance.down.push(Span::seconds(at, at + 3.0));
        instance.told = true;
    }
}

fn flapping(world: &mut World, some: usize) {
    let (from, to) = (world.fault.from.as_secs_f64(), world.fault.to.as_secs_f64());
    for instance in &mut world.instances[..some] {
        let mut at = from;
        while at < to {
            instance.down.push(Span::seconds(at, at + 3.0));
            at += 6.0;
        }
    }
}

fn mixed(world: &mut World) {
    let mut random = SmallRng::seed_from_u64(world.seed ^ 0x006d_6978_6564);
    let end = world.end.as_secs_f64();
    for instance in &mut world.instances {
        let at = end * (0.1 + 0.6 * random.random::<f64>());
        let long = Span::seconds(at, at + end / 5.0);
        let short = Span::seconds(at, at + 3.0);
        match random.random_range(0..12) {
            0 => instance.slow.push((long, 10.0)),
            1 => instance.failing.push((long, 0.5)),
            2 => instance.failing.push((long, 0.05)),
            3 => instance.failing.push((short, 1.0)),
            4 => instance.stopped = vec![short],
            5 => instance.down.push(long),
            6 | 7 => {
                instance.down.push(short);
                instance.told = true;
            }
            _ => {}
        }
    }
}
