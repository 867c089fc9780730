//! The time of one choice: who gets a call, the call counted, its end told.

use std::{hint::black_box, sync::Arc, time::Duration};

use attache::resilience::{
    Ask, BreakerSettings, Endpoint, Epoch, Kind as Work, Member, Outcome, Permit, Phase, Pick, Set,
    Settings,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

/// Choices that are timed together: few, so that other programs get between few of the batches.
const BATCH: u32 = 1000;
/// Batches of each kind, in turns; the medians are shown.
const ROUNDS: usize = 401;
/// Calls that are under way all the time.
const UNDER_WAY: usize = 64;
const SIZES: [usize; 3] = [10, 100, 1000];
/// Between one call and the next.
const STEP: Duration = Duration::from_micros(10);

/// What is asked of a choice.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    /// Weights 90/10, the own zone, one instance that may not have it.
    filters: bool,
    /// One in ten has an open breaker.
    ejected: bool,
    sticky: bool,
    /// Skills of each instance, the last of which is called.
    skills: u64,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "all the same",
        filters: false,
        ejected: false,
        sticky: false,
        skills: 1,
    },
    Kind {
        name: "with filters",
        filters: true,
        ejected: false,
        sticky: false,
        skills: 1,
    },
    Kind {
        name: "with filters, 1 in 10 ejected",
        filters: true,
        ejected: true,
        sticky: false,
        skills: 1,
    },
    Kind {
        name: "the same, sticky",
        filters: true,
        ejected: true,
        sticky: true,
        skills: 1,
    },
    Kind {
        name: "all the same, the last of 16 skills",
        filters: false,
        ejected: false,
        sticky: false,
        skills: 16,
    },
];

struct Bench {
    set: Set<usize>,
    kind: Kind,
    now: Instant,
    random: SmallRng,
    under_way: Vec<Permit>,
}

pub(crate) fn pick() {
    println!("| instances | random, ns | kind | ns | times random | allocations |");
    println!("|--:|--:|:--|--:|--:|--:|");
    for size in SIZES {
        let mut benches: Vec<Bench> = KINDS.iter().map(|kind| Bench::new(size, *kind)).collect();
        let mut random = Vec::new();
        let mut times = vec![Vec::new(); KINDS.len()];
        let mut allocations = vec![0; KINDS.len()];
        for _ in 0..ROUNDS {
            random.push(plain(&mut benches[0]));
            for (place, bench) in benches.iter_mut().enumerate() {
                let mut took = 0.0;
                // Looking at everybody takes longer: as short a batch.
                let batch = if bench.kind.sticky { BATCH / 50 } else { BATCH };
                let counted = allocation_counter::measure(|| took = bench.run(batch));
                times[place].push(took);
                allocations[place] += counted.count_total;
            }
        }
        let random = median(random);
        for ((kind, times), allocations) in KINDS.iter().zip(times).zip(allocations) {
            let ns = median(times);
            let name = kind.name;
            println!(
                "| {size} | {random:.0} | {name} | {ns:.0} | {:.1} | {allocations} |",
                ns / random
            );
        }
    }
}

/// A random instance, counted, and nothing else.
fn plain(bench: &mut Bench) -> f64 {
    let begun = Instant::now();
    for _ in 0..BATCH {
        let members = bench.set.members();
        let member = &members[bench.random.random_range(0..members.len())];
        black_box((member.value, Arc::clone(&member.endpoint)));
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
}

impl Bench {
    fn new(size: usize, kind: Kind) -> Self {
        let (epoch, now) = (Epoch::default(), Instant::now());
        let endpoints: Vec<_> = (0..size)
            .map(|_| Arc::new(Endpoint::new(epoch.clone(), None, now)))
            .collect();
        let member = |place: usize| Member {
            endpoint: Arc::clone(&endpoints[place]),
            value: place,
            key: place as u64,
            local: kind.filters && place.is_multiple_of(3),
            group: usize::from(kind.filters && place.is_multiple_of(5)),
        };
        let settings = Settings {
            breaker: BreakerSettings {
                // Nobody comes back while this runs.
                cool_down: Duration::from_hours(1),
                cool_down_max: Duration::from_hours(1),
                ..BreakerSettings::default()
            },
            ..Settings::default()
        };
        let weights: &[u32] = if kind.filters { &[90, 10] } else { &[] };
        let settings = Arc::new(settings);
        let of = |skill| {
            let members = (0..size).map(member).collect();
            let set = Set::new(members, weights, Arc::clone(&settings), epoch.clone());
            set.of_kind(Work::new(skill))
        };
        let mut sets: Vec<_> = (1..=kind.skills).map(of).collect();
        let set = sets.pop().expect("at least one");
        let mut bench = Self {
            set,
            kind,
            now,
            random: SmallRng::seed_from_u64(7),
            under_way: Vec::with_capacity(UNDER_WAY),
        };
        if kind.ejected {
            (0..size).step_by(10).for_each(|place| bench.eject(place));
        }
        for _ in 0..UNDER_WAY {
            let permit = bench.take(size).expect("somebody can be called");
            bench.under_way.push(permit);
        }
        bench.run(BATCH);
        bench
    }

    fn eject(&mut self, place: usize) {
        let ask = Ask {
            sticky: None,
            allows: &|other| *other == place,
        };
        let endpoint = &self.set.members()[place].endpoint;
        while endpoint.sight(self.set.settings(), self.now).phase == Phase::Closed {
            let Pick::Taken(_, permit) = self.set.pick(&ask, self.now, &mut self.random) else {
                panic!("{place} cannot be called");
            };
            permit.finish(Outcome::Failure, self.now, 0.0);
        }
    }

    fn take(&mut self, but: usize) -> Option<Permit> {
        let filters = self.kind.filters;
        let ask = Ask {
            sticky: self.kind.sticky.then(|| self.random.random()),
            allows: &|place| !filters || *place != but,
        };
        match self.set.pick(&ask, self.now, &mut self.random) {
            Pick::Taken(_, permit) => Some(permit),
            Pick::Busy | Pick::Ejected(_) | Pick::Empty => None,
        }
    }

    /// Nanoseconds of one call.
    fn run(&mut self, calls: u32) -> f64 {
        let begun = Instant::now();
        for call in 0..calls {
            self.now += STEP;
            let Some(permit) = self.take(call as usize % self.set.members().len()) else {
                continue;
            };
            let ends = call as usize % UNDER_WAY;
            let mut ended = std::mem::replace(&mut self.under_way[ends], permit);
            ended.first_message(self.now);
            ended.finish(Outcome::Success, self.now, 0.5);
        }
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
