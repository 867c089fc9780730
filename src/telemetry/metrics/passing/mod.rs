//! Counts of the calls that pass a sidecar, of whatever service: outward those of its own agent,
//! inward those of members.
//!
//! What somebody writes is no label: an agent becomes one when the catalog has it, a method when
//! the agent has answered it, both within a bound, and all else is `other`.
//!
//! A call is counted by one look into the table of its thread and some relaxed additions to memory
//! that no other thread writes; where its method is known nothing is allocated.

mod counts;
mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

pub use self::counts::{Ended, EndedBy};
use self::{
    counts::{Counts, TABLES},
    names::{Found, Names},
};
use super::{Sheet, Source, family};
use crate::domain::AgentName;

/// Most bytes that are kept of a path without a name, for the access line.
const SHOWN_MAX: usize = 256;

/// Whose calls they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The own agent's.
    Outward,
    /// Members', to the own agent.
    Inward,
}

impl Direction {
    const ALL: [Self; 2] = [Self::Outward, Self::Inward];

    fn label(self) -> &'static str {
        match self {
            Self::Outward => "outward",
            Self::Inward => "inward",
        }
    }
}

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// Whose call it is.
    pub direction: Direction,
    /// The agent that it is for, if it names one.
    pub agent: Option<&'a AgentName>,
    /// That agent is known to exist: it may become a label.
    pub exists: bool,
    /// `/service/method`, as the caller has it.
    pub path: &'a str,
}

/// The counts. Clones are the same.
#[derive(Clone, Default)]
pub struct PassingCalls {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<Names>,
    tables: [Table; TABLES],
}

/// What one thread counts, by what it looks up: methods with a name and nothing else.
#[derive(Default)]
#[repr(align(128))]
struct Table {
    agents: Mutex<[HashMap<AgentName, Methods>; 2]>,
}

type Methods = HashMap<Box<str>, Arc<Counts>>;

impl Table {
    fn find(&self, called: &Called<'_>) -> Option<Arc<Counts>> {
        let agents = self.agents.lock();
        let methods = agents[called.direction as usize].get(called.agent?)?;
        methods.get(called.path).cloned()
    }

    fn keep(&self, direction: Direction, agent: &AgentName, path: &str, counts: &Arc<Counts>) {
        let mut agents = self.agents.lock();
        let methods = agents[direction as usize].entry(agent.clone());
        let counts = Arc::clone(counts);
        methods.or_default().insert(path.into(), counts);
    }
}

impl PassingCalls {
    /// A call begins; it is under way until what is returned is dropped.
    pub fn begin(&self, called: &Called<'_>) -> PassingCall {
        let table = own_table();
        let known = self.shared.tables[table].find(called);
        let (counts, nameless) = match known {
            Some(counts) => (counts, None),
            None => self.look_up(called, table),
        };
        counts.began();
        PassingCall { counts, nameless }
    }

    #[cold]
    fn look_up(&self, called: &Called<'_>, table: usize) -> (Arc<Counts>, Option<Box<Nameless>>) {
        let Found { row, exact } = self.shared.names.lock().find(called);
        let counts = row.part(table);
        if exact && let Some(agent) = called.agent {
            let table = &self.shared.tables[table];
            table.keep(called.direction, agent, called.path, &counts);
            return (counts, None);
        }
        let may_learn = names::parts(called.path).is_some();
        let end = called.path.floor_char_boundary(SHOWN_MAX);
        let nameless = Nameless {
            calls: self.clone(),
            direction: called.direction,
            agent: called.agent.filter(|_| may_learn).cloned(),
            path: called.path[..end].into(),
        };
        (counts, Some(Box::new(nameless)))
    }
}

impl fmt::Debug for PassingCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassingCalls")
    }
}

/// A call whose method has no name yet.
#[derive(Debug)]
struct Nameless {
    calls: PassingCalls,
    direction: Direction,
    /// `None`: this can be nobody's method.
    agent: Option<AgentName>,
    path: Box<str>,
}

impl Nameless {
    fn learn(&self) -> Option<Arc<Counts>> {
        let (shared, agent) = (&self.calls.shared, self.agent.as_ref()?);
        let mut names = shared.names.lock();
        let row = names.learn(self.direction, agent, &self.path)?;
        drop(names);
        Some(row.part(own_table()))
    }
}

/// A passing call. Dropped, it is under way no more.
#[derive(Debug)]
pub struct PassingCall {
    counts: Arc<Counts>,
    nameless: Option<Box<Nameless>>,
}

impl PassingCall {
    /// The service, with its package; `other` where the method has no name.
    pub fn service(&self) -> &str {
        &self.counts.labels.service
    }

    /// The method without its service, or `other`.
    pub fn method(&self) -> &str {
        &self.counts.labels.method
    }

    /// What was asked for where the method has no name: as the caller wrote it, cut to 256 bytes.
    pub fn path(&self) -> Option<&str> {
        self.nameless.as_ref().map(|nameless| &*nameless.path)
    }

    /// How it ended. Where that shows that its method is there, it is counted by its name.
    pub fn ended(self, ended: &Ended) {
        let nameless = self.nameless.as_ref();
        let nameless = nameless.filter(|_| names::shows_its_method(ended));
        let learned = nameless.and_then(|nameless| nameless.learn());
        learned.as_ref().unwrap_or(&self.counts).ended(ended);
    }
}

impl Drop for PassingCall {
    fn drop(&mut self) {
        self.counts.left();
    }
}

/// The table of this thread.
fn own_table() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = THREADS.fetch_add(1, Relaxed) % TABLES;
    }
    OWN.with(|own| *own)
}

impl PassingCalls {
    /// The rows that were ever counted in: the others would only make the page long.
    fn called(&self) -> Vec<Counts> {
        let rows: Vec<_> = self.shared.names.lock().rows().cloned().collect();
        let sums = rows.iter().map(|row| row.sum());
        sums.filter(Counts::called).collect()
    }
}

impl Source for PassingCalls {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let called = self.called();
        let codes = called.iter().flat_map(|counts| {
            let [direction, agent, service, method] = counts.labels.row();
            let rows = counts.codes.rows();
            rows.map(move |(code, count)| ([direction, agent, service, method, code], count))
        });
        sheet.counter(&family::PASSING, codes);
        let ends = called.iter().flat_map(|counts| {
            let [direction, agent, service, method] = counts.labels.row();
            let rows = counts.ends();
            rows.map(move |(by, count)| ([direction, agent, service, method, by], count))
        });
        sheet.counter(&family::PASSING_ENDED, ends);
        let durations = called
            .iter()
            .map(|counts| (counts.labels.row(), &counts.duration));
        sheet.histogram(&family::PASSING_DURATION, durations);
        let running = called.iter().map(|counts| {
            let count = counts.in_flight.load(Relaxed);
            (counts.labels.row(), count as f64)
        });
        sheet.gauge(&family::PASSING_IN_FLIGHT, running);
        let each = |of: fn(&Counts) -> &AtomicU64| {
            let all = called.iter();
            all.map(move |counts| (counts.labels.row(), of(counts).load(Relaxed) as f64))
        };
        sheet.counter(&family::PASSING_RECEIVED, each(|counts| &counts.received));
        sheet.counter(&family::PASSING_SENT, each(|counts| &counts.sent));
        sheet.counter(&family::PASSING_AGAIN, each(|counts| &counts.again));
    }
}
