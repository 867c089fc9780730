//! Numbers for those who answer, since the engine knows no names.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::{domain::InstanceId, h2::exchange::Target};

/// The own agent.
pub(super) const OWN_AGENT: Target = Target(0);

/// Instances by number. A number is never given twice, so that a connection to one instance is
/// never taken for one to another.
#[derive(Debug, Default)]
pub(super) struct Targets {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    last: u64,
    numbers: HashMap<InstanceId, Target>,
    instances: HashMap<Target, InstanceId>,
}

impl Targets {
    /// The number of an instance.
    pub(super) fn of(&self, instance: &InstanceId) -> Target {
        let mut known = self.known.lock();
        if let Some(target) = known.numbers.get(instance) {
            return *target;
        }
        known.last += 1;
        let target = Target(known.last);
        known.numbers.insert(instance.clone(), target);
        known.instances.insert(target, instance.clone());
        target
    }

    /// The instance with this number; `None`: the own agent, or one that was let go.
    pub(super) fn instance(&self, target: Target) -> Option<InstanceId> {
        self.known.lock().instances.get(&target).cloned()
    }

    /// Lets go of all that are not in the catalog any more: as many stay as it has.
    pub(super) fn retain(&self, is_there: impl Fn(&InstanceId) -> bool) {
        let mut known = self.known.lock();
        let Known {
            numbers, instances, ..
        } = &mut *known;
        numbers.retain(|instance, _| is_there(instance));
        instances.retain(|_, instance| is_there(instance));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_instance_for_ever() {
        let targets = Targets::default();
        let (one, other) = ("i1".parse().unwrap(), "i2".parse().unwrap());
        let first = targets.of(&one);
        assert_eq!(targets.of(&one), first);
        assert_ne!(targets.of(&other), first);
        assert_ne!(first, OWN_AGENT);
        assert_eq!(targets.instance(first), Some(one.clone()));
        targets.retain(|instance| *instance == other);
        assert_eq!(targets.instance(first), None);
        assert_ne!(targets.of(&one), first, "it came back as somebody new");
    }
}
