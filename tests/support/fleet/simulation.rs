//! One policy in one world, event after event.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use attache::resilience::{Budget, Failed, Progress, Pushback, RetrySettings, Safety, retry_after};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;
use tonic::Code;

use super::figures::Figures;
use super::policy::{End, Policy};
use super::server::{PUSHBACK, Server, Taken, Try};
use super::world::{Time, World};

/// One way through the network.
const WAY: Duration = Duration::from_micros(500);
/// After which a fault that comes at once is there.
const AT_ONCE: Duration = Duration::from_millis(2);
/// After which a refused connection is known.
const REFUSED: Duration = Duration::from_millis(1);
/// After which callers hear of another process.
const TOLD: Duration = Duration::from_millis(200);

/// Lives through a world with a policy.
pub(crate) fn run<P: Policy>(world: &World) -> Figures {
    let mut simulation = Simulation::<P>::new(world);
    while let Some(Reverse(event)) = simulation.events.pop() {
        simulation.now = event.at;
        simulation.happens(event.what);
    }
    simulation.figures
}

struct Simulation<'a, P: Policy> {
    world: &'a World,
    /// What virtual time is counted from where policies see it.
    origin: Instant,
    now: Time,
    events: BinaryHeap<Reverse<Event>>,
    count: u64,
    servers: Vec<Server>,
    views: Vec<View<P>>,
    /// By number; those that are over are gone.
    calls: Vec<Option<Call<P::Ticket>>>,
    /// When calls come, and from whom: the same for every policy.
    arrivals: SmallRng,
    /// What policies and backoffs draw.
    random: SmallRng,
    figures: Figures,
}

/// What one caller knows.
struct View<P> {
    policy: P,
    budget: Budget,
}

struct Call<T> {
    view: usize,
    begun: Time,
    tries: u32,
    /// Who failed it.
    tried: Vec<usize>,
    /// Who has it.
    with: Option<(usize, T)>,
}

struct Event {
    at: Time,
    /// Those of one time come in the order in which they were made.
    number: u64,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Arrival,
    Reach(Try),
    Done(usize, u32, Try),
    Answer(Try, End),
    Retry(usize),
    Deadline(usize),
    Down(usize),
    Told(usize),
}

impl<'a, P: Policy> Simulation<'a, P> {
    fn new(world: &'a World) -> Self {
        let origin = Instant::now();
        let mut random = SmallRng::seed_from_u64(world.seed ^ 1);
        let views = if world.shared { 1 } else { world.callers };
        let views = (0..views).map(|_| View {
            policy: P::new(world.instances.len(), origin, &mut random),
            budget: Budget::default(),
        });
        let views = views.collect();
        let mut simulation = Self {
            world,
            origin,
            now: Time::ZERO,
            events: BinaryHeap::new(),
            count: 0,
            servers: world.instances.iter().map(|_| Server::default()).collect(),
            views,
            calls: Vec::new(),
            arrivals: SmallRng::seed_from_u64(world.seed ^ 2),
            random,
            figures: Figures::new(world.fault),
        };
        for (place, instance) in world.instances.iter().enumerate() {
            for span in &instance.down {
                simulation.at(span.from, What::Down(place));
                if instance.told {
                    simulation.at(span.to + TOLD, What::Told(place));
                }
            }
        }
        simulation.at(Time::ZERO, What::Arrival);
        simulation
    }

    fn at(&mut self, at: Time, what: What) {
        self.count += 1;
        let number = self.count;
        self.events.push(Reverse(Event { at, number, what }));
    }

    fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    fn instant(&self) -> Instant {
        self.origin + self.now
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Arrival => self.arrive(),
            What::Reach(one) => self.reach(one),
            What::Done(place, life, one) => self.done(place, life, one),
            What::Answer((call, tries), end) => self.answer((call, tries), end),
            What::Retry(call) => self.send(call),
            What::Deadline(call) => self.late(call),
            What::Down(place) => {
                for one in self.servers[place].end() {
                    self.after(WAY, What::Answer(one, End::Failed));
                }
            }
            What::Told(place) => {
                let now = self.instant();
                for view in &mut self.views {
                    view.policy.restarted(place, now);
                }
            }
        }
    }

    fn arrive(&mut self) {
        let wait = -(1.0 - self.arrivals.random::<f64>()).ln() / self.world.rate(self.now);
        let next = self.now + Duration::from_secs_f64(wait);
        if next < self.world.end {
            self.at(next, What::Arrival);
        }
        let caller = self.arrivals.random_range(0..self.world.callers);
        let call = self.calls.len();
        let view = caller % self.views.len();
        self.calls.push(Some(Call {
            view,
            begun: self.now,
            tries: 0,
            tried: Vec::new(),
            with: None,
        }));
        let now = self.instant();
        self.views[view].budget.first(now);
        self.after(self.world.deadline, What::Deadline(call));
        self.send(call);
    }

    /// The next try goes out, or cannot.
    fn send(&mut self, number: usize) {
        let now = self.instant();
        let Some(call) = &mut self.calls[number] else {
            return;
        };
        call.tries += 1;
        let one = (number, call.tries);
        let policy = &mut self.views[call.view].policy;
        if let Some((place, ticket)) = policy.pick(&call.tried, now, &mut self.random) {
            call.with = Some((place, ticket));
            self.figures.sent(self.now, one.1);
            self.after(WAY, What::Reach(one));
        } else {
            self.ended(number, End::Refused);
        }
    }

    fn has(&self, (call, tries): Try) -> bool {
        let call = self.calls[call].as_ref();
        call.is_some_and(|call| call.tries == tries && call.with.is_some())
    }

    fn reach(&mut self, one: Try) {
        let Some((place, _)) = self.calls[one.0]
            .as_ref()
            .and_then(|call| call.with.as_ref())
        else {
            return;
        };
        let (place, now) = (*place, self.now);
        let instance = &self.world.instances[place];
        let draw = self.world.draw(one.0, one.1);
        if instance.is_down(now) {
            self.after(REFUSED, What::Answer(one, End::Refused));
        } else if draw.chance < instance.failing(now) {
            self.after(AT_ONCE, What::Answer(one, End::Failed));
        } else {
            let server = &mut self.servers[place];
            let life = server.life;
            match server.take(one, draw, instance, now) {
                Taken::Done(at) => self.at(at, What::Done(place, life, one)),
                Taken::Waits => {}
                Taken::Full => self.after(WAY, What::Answer(one, End::Full(PUSHBACK))),
            }
        }
    }

    fn done(&mut self, place: usize, life: u32, one: Try) {
        if self.servers[place].life != life {
            return;
        }
        self.after(WAY, What::Answer(one, End::Answered));
        let calls = &self.calls;
        let wanted = |(call, tries): Try| {
            let call = calls[call].as_ref();
            call.is_some_and(|call| call.tries == tries)
        };
        let instance = &self.world.instances[place];
        let next = self.servers[place].done(one, instance, self.now, wanted);
        if let Some((next, at)) = next {
            self.at(at, What::Done(place, life, next));
        }
    }

    fn answer(&mut self, one: Try, end: End) {
        if self.has(one) {
            self.ended(one.0, end);
        }
    }

    fn late(&mut self, call: usize) {
        if self.calls[call].is_some() {
            self.ended(call, End::Late);
        }
    }

    /// A try is over: the call with it, or there is another.
    fn ended(&mut self, number: usize, end: End) {
        let now = self.instant();
        let Some(call) = &mut self.calls[number] else {
            return;
        };
        let view = &mut self.views[call.view];
        let sent = call.with.is_some();
        if let Some((place, ticket)) = call.with.take() {
            let chance = self.random.random();
            view.policy.end(place, ticket, end, now, chance);
            view.budget.ended(end.is_fault());
            call.tried.push(place);
        }
        let (begun, tries) = (call.begun, call.tries);
        if end == End::Answered {
            self.figures.good(begun, self.now);
            self.calls[number] = None;
            return;
        }
        let settings = RetrySettings::default();
        let wait = failed(end, sent, tries)
            .and_then(|failed| retry_after(Safety::Keyed, &failed, &settings, self.random.random()))
            .filter(|_| view.budget.again(&settings, now));
        if tries == 1 {
            self.figures.first_failed();
        }
        if let Some(wait) = wait {
            self.after(wait, What::Retry(number));
        } else {
            self.figures.bad(begun);
            self.calls[number] = None;
        }
    }
}

fn failed(end: End, sent: bool, tries: u32) -> Option<Failed> {
    let (code, progress, pushback) = match end {
        End::Answered | End::Late => return None,
        End::Refused => (Code::Unavailable, Progress::NotSent, None),
        End::Failed => (Code::Unavailable, Progress::Sent, None),
        End::Full(wait) => (
            Code::ResourceExhausted,
            Progress::Sent,
            Some(Pushback::After(wait)),
        ),
    };
    Some(Failed {
        code,
        progress: if sent { progress } else { Progress::NotSent },
        not_processed: false,
        pushback,
        exhausted: false,
        tries,
    })
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Event {}
