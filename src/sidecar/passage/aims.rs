//! Whom callers name, kept in the form that calls need: a name is read once, not per call.

use std::{collections::HashMap, sync::Arc};

use crate::{
    domain::{AgentName, Label},
    pb,
};

/// Names that are kept. Callers write them: beyond this all are forgotten, and read anew.
const AIMS_MAX: usize = 1024;

/// An agent that calls are for.
#[derive(Debug, PartialEq)]
pub(super) struct Aim {
    pub(super) agent: AgentName,
    /// What asks the balancer for it.
    pub(super) selector: pb::Selector,
    /// `namespace/name`.
    pub(super) full: String,
    /// What its certificate and its calls' authority say.
    pub(super) authority: String,
}

impl From<AgentName> for Aim {
    fn from(agent: AgentName) -> Self {
        let full = agent.to_string();
        Self {
            selector: pb::Selector {
                agent: full.clone(),
                ..Default::default()
            },
            authority: format!("{}.{}.agent.attache", agent.name, agent.namespace),
            full,
            agent,
        }
    }
}

/// One thread's, by what callers write.
#[derive(Debug, Default)]
pub(super) struct Aims {
    known: HashMap<Box<[u8]>, Arc<Aim>>,
}

impl Aims {
    /// The agent that `said` names, a bare name being one of `namespace`; `None`: it is no name.
    pub(super) fn of(&mut self, said: &[u8], namespace: &Label) -> Option<Arc<Aim>> {
        if let Some(aim) = self.known.get(said) {
            return Some(Arc::clone(aim));
        }
        let text = std::str::from_utf8(said).ok()?;
        let agent = AgentName::parse_in(text, namespace).ok()?;
        let aim = Arc::new(Aim::from(agent));
        if self.known.len() >= AIMS_MAX {
            self.known.clear();
        }
        self.known.insert(said.into(), Arc::clone(&aim));
        Some(aim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_once_and_no_more_are_kept_than_may_be() {
        let (mut aims, namespace) = (Aims::default(), "home".parse().unwrap());
        let first = aims.of(b"x", &namespace).unwrap();
        assert_eq!(first.full, "home/x");
        assert_eq!(first.authority, "x.home.agent.attache");
        assert!(Arc::ptr_eq(&first, &aims.of(b"x", &namespace).unwrap()));
        for wrong in [&b"X!"[..], b"", b"a/b/c", &[0xff]] {
            assert_eq!(aims.of(wrong, &namespace), None);
        }
        for number in 0..2 * AIMS_MAX {
            aims.of(format!("n{number}").as_bytes(), &namespace);
            assert!(aims.known.len() <= AIMS_MAX);
        }
    }
}
