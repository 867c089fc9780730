//! Which agents and methods have a name in the counts, and which are `other`.

use std::{collections::BTreeMap, sync::Arc};

use tonic::Code;

use super::{
    Called, Direction,
    counts::{Ended, EndedBy, Labels, Row},
};
use crate::domain::AgentName;

/// What stands for all agents and methods without a name.
pub(super) const OTHER: &str = "other";
/// Most agents with a name, each way: a sidecar's agent calls few of a mesh's.
const AGENTS_MAX: usize = 256;
/// Most methods with a name, of all agents together: a page of some 2 MiB at the worst.
const METHODS_MAX: usize = 512;
/// Longest path that can be a label.
const PATH_MAX: usize = 160;

/// Everything that has a name.
#[derive(Debug)]
pub(super) struct Names {
    /// Calls each way that are for nobody with a name.
    nobody: [Arc<Row>; 2],
    agents: [BTreeMap<AgentName, Agent>; 2],
    /// Methods with a name.
    methods: usize,
}

#[derive(Debug)]
struct Agent {
    other: Arc<Row>,
    methods: BTreeMap<Box<str>, Arc<Row>>,
}

/// Where a call is counted.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) row: Arc<Row>,
    /// It is the row of the very method.
    pub(super) exact: bool,
}

impl Default for Names {
    fn default() -> Self {
        let nobody = |way| Row::new(labels(way, OTHER, (OTHER, OTHER)));
        Self {
            nobody: Direction::ALL.map(nobody),
            agents: Default::default(),
            methods: 0,
        }
    }
}

impl Names {
    /// The row of a call. An agent that exists gets a name, a method does not.
    pub(super) fn find(&mut self, called: &Called<'_>) -> Found {
        let way = called.direction as usize;
        let agents = &mut self.agents[way];
        if let Some(name) = called.agent
            && called.exists
            && agents.len() < AGENTS_MAX
            && !agents.contains_key(name)
        {
            let text = name.to_string();
            let other = Row::new(labels(called.direction, &text, (OTHER, OTHER)));
            let agent = Agent {
                other,
                methods: BTreeMap::new(),
            };
            agents.insert(name.clone(), agent);
        }
        let agent = called.agent.and_then(|name| agents.get(name));
        let method = agent.and_then(|agent| agent.methods.get(called.path));
        let row = method.or_else(|| agent.map(|agent| &agent.other));
        Found {
            exact: method.is_some(),
            row: Arc::clone(row.unwrap_or(&self.nobody[way])),
        }
    }

    /// A method of an agent has shown itself: its row, where there is room for one.
    pub(super) fn learn(
        &mut self,
        direction: Direction,
        name: &AgentName,
        path: &str,
    ) -> Option<Arc<Row>> {
        let agent = self.agents[direction as usize].get_mut(name)?;
        if let Some(row) = agent.methods.get(path) {
            return Some(Arc::clone(row));
        }
        if self.methods >= METHODS_MAX {
            return None;
        }
        let row = Row::new(labels(direction, &name.to_string(), parts(path)?));
        agent.methods.insert(path.into(), Arc::clone(&row));
        self.methods += 1;
        Some(row)
    }

    /// All rows, in an order that stays.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        let agents = self.agents.iter().flat_map(BTreeMap::values);
        let named = agents.flat_map(|agent| agent.methods.values().chain([&agent.other]));
        named.chain(&self.nobody)
    }
}

fn labels(direction: Direction, agent: &str, (service, method): (&str, &str)) -> Labels {
    Labels {
        direction: direction.label(),
        agent: agent.into(),
        service: service.into(),
        method: method.into(),
    }
}

/// Service and method of a path that can be a label.
pub(super) fn parts(path: &str) -> Option<(&str, &str)> {
    let sound = |name: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
        !name.is_empty() && name.bytes().all(inner)
    };
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (path.len() <= PATH_MAX && sound(service) && sound(method)).then_some((service, method))
}

/// Whether the end of a call shows that its method is there: it went well, or has a status that
/// gRPC's libraries, proxies and our own sidecars never give by themselves. Whoever asks for what
/// does not exist gets none of these.
pub(super) fn shows_its_method(ended: &Ended) -> bool {
    let shows = match ended.code {
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => true,
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::Unauthenticated => false,
    };
    shows && ended.by == EndedBy::Answer
}
