//! Who may have an attempt run here, and what a Start has to carry.
//!
//! Pure. What it refuses never reaches the agent.

use std::{sync::Arc, time::Duration};

use crate::domain::{Fault, InstanceId, Member, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::task::descendants::{DESCENDANTS_MAX, Purse, unsaid};
use crate::task::lineage::{self, CHAIN_MAX};

use super::offers::{Offer, Offers};

/// Longest life of a task, so that no timer overflows.
const REMAINING_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The home on the other end, as its certificate says; in process, this sidecar itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomePeer {
    /// Who it is.
    pub id: SpiffeId,
    /// Which copy of it.
    pub instance: InstanceId,
}

/// A Start that may run.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) task_id: TaskId,
    pub(super) task: pb::Task,
    /// Boxed, as all of this goes through futures that would be as large.
    pub(super) request: Box<pb::HandleRequest>,
    pub(super) remaining: Duration,
    pub(super) chain: Vec<pb::ChainLink>,
    /// Tasks that may be made below it.
    pub(super) purse: Purse,
    pub(super) caller: SpiffeId,
    pub(super) offer: Arc<Offer>,
    /// Empty: it brings none.
    pub(super) grant: String,
}

/// Reads a Start from `home`; `skills` is what the agent offers.
pub(super) fn start(home: &HomePeer, start: pb::Start, skills: &Offers) -> Result<Work, Fault> {
    let request = start
        .handle
        .ok_or_else(|| Fault::field("start.handle", "the request to the handler is missing"))?;
    let task = request
        .task
        .clone()
        .ok_or_else(|| Fault::field("start.handle.task", "the task is missing"))?;
    let task_id = named(home, &task.id, request.attempt)?;
    if start.home != home.instance.as_str() {
        return Err(not_its_home(&start.home, home));
    }
    let caller = task
        .caller
        .parse()
        .map_err(|wrong| Fault::field("start.handle.task.caller", format!("{wrong}")))?;
    let caller = of_the_mesh(home, caller)?;
    let Some(offer) = skills.get(&task.skill) else {
        // Not for good: the catalog may be ahead of an agent that starts, or behind one that changed.
        return Err(Fault::new(
            Reason::NotOwnAgent,
            format!("the agent here does not offer the skill {:?}", task.skill),
        ));
    };
    let remaining = start
        .remaining
        .and_then(|remaining| Duration::try_from(remaining).ok())
        .ok_or_else(|| Fault::field("start.remaining", "what is left of the deadline is missing"))?
        .min(REMAINING_MAX);
    let hops = start.chain.len();
    let descendants = start.descendants_left.unwrap_or_else(|| unsaid(hops));
    Ok(Work {
        task_id,
        task,
        request: Box::new(request),
        remaining,
        chain: start.chain,
        // Whatever a home says: no tree is larger.
        purse: Purse::new(descendants.min(DESCENDANTS_MAX), start.grants_descendants),
        caller,
        offer: Arc::clone(offer),
        grant: start.grant_id,
    })
}

/// The way the work has come must not lead round to the agent here, `own`, nor past what the tasks
/// above may be delegated to; whatever its home has looked at.
///
/// # Errors
/// INVALID_FIELD for a chain that is too long, DELEGATION_LOOP, OUT_OF_SCOPE.
pub(super) fn came(work: &Work, own: &SpiffeId) -> Result<(), Fault> {
    if work.chain.len() > CHAIN_MAX {
        let text = format!("at most {CHAIN_MAX} hops");
        return Err(Fault::field("start.chain", text));
    }
    match &own.member {
        Member::Agent(agent) => lineage::check(&work.chain, Some(agent), &work.task.skill),
        Member::Service(_) | Member::Operator(_) | Member::Registry(_) => Ok(()),
    }
}

/// The task and attempt that `home` speaks of; a home speaks of its own tasks only.
pub(super) fn named(home: &HomePeer, task_id: &str, attempt: u32) -> Result<TaskId, Fault> {
    let task_id: TaskId = task_id
        .parse()
        .map_err(|wrong| Fault::field("task_id", format!("{wrong}")))?;
    if attempt == 0 {
        return Err(Fault::field("attempt", "attempts are counted from 1"));
    }
    if task_id.home != home.instance {
        return Err(not_its_home(task_id.home.as_str(), home));
    }
    Ok(task_id)
}

/// A caller that the home states is of the home's own mesh: another's operator is nobody here.
fn of_the_mesh(home: &HomePeer, caller: SpiffeId) -> Result<SpiffeId, Fault> {
    if caller.trust_domain == home.id.trust_domain {
        return Ok(caller);
    }
    let text = format!("{caller} is not of the mesh of {}", home.id);
    Err(Fault::new(Reason::IdentityMismatch, text))
}

fn not_its_home(named: &str, home: &HomePeer) -> Fault {
    Fault::new(
        Reason::IdentityMismatch,
        format!(
            "{} ({}) is not {named:.80}: only a task's home has it run",
            home.instance, home.id
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> pb::Start {
        pb::Start {
            handle: Some(pb::HandleRequest {
                task: Some(pb::Task {
                    id: format!("i1.{}", uuid::Uuid::nil()),
                    skill: "demo.echo".into(),
                    caller: "spiffe://a/ns/default/agent/c".into(),
                    ..pb::Task::default()
                }),
                attempt: 1,
                ..pb::HandleRequest::default()
            }),
            remaining: Some(prost_types::Duration {
                seconds: i64::MAX / 2,
                nanos: 0,
            }),
            home: "i1".into(),
            ..pb::Start::default()
        }
    }

    #[test]
    fn a_home_starts_its_own_tasks_for_offered_skills_only() {
        let home = HomePeer {
            id: "spiffe://a/ns/default/agent/h".parse().unwrap(),
            instance: "i1".parse().unwrap(),
        };
        let skills = Offers::from_iter(["demo.echo".to_owned()]);
        let work = start(&home, good(), &skills).unwrap();
        assert_eq!(work.remaining, REMAINING_MAX);

        type Spoil = fn(&mut pb::Start);
        let table: [(Spoil, Reason); 8] = [
            (|start| start.handle = None, Reason::InvalidField),
            (|start| start.remaining = None, Reason::InvalidField),
            (|start| start.home = "i2".into(), Reason::IdentityMismatch),
            (
                |start| start.handle.as_mut().unwrap().attempt = 0,
                Reason::InvalidField,
            ),
            (
                |start| start.handle.as_mut().unwrap().task = None,
                Reason::InvalidField,
            ),
            (
                |start| {
                    let request = start.handle.as_mut().unwrap();
                    request.task.as_mut().unwrap().id = format!("i2.{}", uuid::Uuid::nil());
                },
                Reason::IdentityMismatch,
            ),
            (
                |start| {
                    let request = start.handle.as_mut().unwrap();
                    request.task.as_mut().unwrap().caller = "root".into();
                },
                Reason::InvalidField,
            ),
            (
                |start| {
                    let request = start.handle.as_mut().unwrap();
                    request.task.as_mut().unwrap().caller = "spiffe://b/operator/root".into();
                },
                Reason::IdentityMismatch,
            ),
        ];
        for (spoil, reason) in table {
            let mut spoilt = good();
            spoil(&mut spoilt);
            assert_eq!(start(&home, spoilt, &skills).unwrap_err().reason, reason);
        }
        let others = Offers::from_iter(["demo.other".to_owned()]);
        assert_eq!(
            start(&home, good(), &others).unwrap_err().reason,
            Reason::NotOwnAgent
        );
    }
}
