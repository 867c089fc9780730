//! A task that its agent hands over for good: whom it may go to, and what stays as it was.
//!
//! The task keeps its id, its log, its deadline, its caller and the schema that its caller relied on
//! for the result. What was its agent's own goes: attempts that count as tries, the checkpoint, the
//! children of the attempt. Pure.

use std::{borrow::Cow, sync::Arc};

use prost::Message;
use uuid::Uuid;

use crate::contract::{self, Side};
use crate::domain::{AgentName, Fault, Member, SkillName};
use crate::identity::authorize::{Action, authorize};
use crate::pb;
use crate::pb::journal::record::Kind as Recorded;
use crate::pb::task_event::Kind;
use crate::task::doors::{Contract, Promise, Route};
use crate::task::lineage::{self, Bounds, extended};
use crate::task::spec::INPUT_MAX;

use super::kept::{Kept, event_bytes};
use super::large::refers;
use super::machine::{Tasks, World};
use super::snapshot::{contract_of, promise};
use super::unfit::failure_of;
use super::update::{failure, fits, parts_fit};

/// Where a refusal says that the fault is.
const PATH: &str = "delegation.to";

/// What the one whom a task was made for has promised, while another works on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Promised {
    /// `namespace/name` of the first agent.
    pub(super) agent: String,
    pub(super) contract: Contract,
    /// JSON Schema of the result: the agent, and its card, may be gone by then. Empty: none, or it was
    /// not at hand.
    pub(super) output_schema: String,
}

impl Tasks {
    /// The attempt's last word: somebody else is to do it.
    pub(super) fn hand_over(
        &mut self,
        task: Uuid,
        (attempt, number): (u32, u64),
        said: pb::Delegation,
        world: World<'_>,
    ) {
        self.returned(task);
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let at = world.at;
        if entry.kept.task.cancel_requested {
            let change = pb::StateChanged {
                from: entry.kept.task.state,
                reason: "CANCELED".into(),
                executor_instance: String::new(),
            };
            let event = (Kind::StateChanged(change), pb::TaskState::Canceled);
            return self.take_event(task, (attempt, number), event, at);
        }
        let to = match entry.kept.may_go_to(said, world.route) {
            Ok(to) => to,
            Err(why) => {
                let event = (Kind::Failure(*why), pb::TaskState::Failed);
                return self.take_event(task, (attempt, number), event, at);
            }
        };
        if let Some(running) = &entry.kept.running {
            self.gates.ended(&running.instance, at.now);
        }
        self.look_again(at.now);
        self.keep_promise(task, world.route);
        let state = pb::TaskState::Submitted;
        self.emit(task, Kind::Delegation(to), state, number, at);
        self.acknowledge(task, attempt, number);
        self.release(task, attempt, None);
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.lost_at = None;
            entry.again = None;
            // It waits for somebody else now, from the end.
            entry.turn = None;
        }
        self.again(task, world);
    }
}

impl Tasks {
    /// Writes down what the first agent has promised, where that is known.
    fn keep_promise(&mut self, task: Uuid, route: &dyn Route) {
        let entry = self.tasks.get(&task);
        let Some(kept) = entry.map(|entry| &entry.kept) else {
            return;
        };
        let schema = kept
            .asked_promise()
            .filter(|_| kept.relied_on.is_none())
            .and_then(|promise| route.promised(&promise)?.output_schema());
        if let (Some(output_schema), Some((agent, contract))) = (schema, kept.promise()) {
            let id = kept.task.id.clone();
            let promised = Recorded::Promised(pb::journal::Promised {
                agent: agent.to_owned(),
                contract: Some(promise(contract)),
                output_schema,
            });
            self.log(id, promised, 0);
            self.follow(task);
        }
    }
}

impl Kept {
    /// To whom it was handed over last.
    pub(super) fn delegation(&self) -> Option<&pb::Delegation> {
        match &self.delegation.as_ref()?.kind {
            Some(Kind::Delegation(delegation)) => Some(delegation),
            _ => None,
        }
    }

    /// Whose it is, where it was handed over.
    fn handed_to(&self) -> Option<&pb::AgentSkill> {
        self.delegation()?.to.as_ref()
    }

    /// The skill that is to be run now.
    pub(super) fn skill(&self) -> &str {
        self.handed_to().map_or(&self.task.skill, |to| &to.skill)
    }

    /// Who fits now.
    pub(super) fn selector(&self) -> Cow<'_, pb::Selector> {
        match (self.handed_to(), &self.spec.selector) {
            (Some(to), _) => Cow::Owned(pb::Selector {
                skill: to.skill.clone(),
                agent: to.agent.clone(),
                ..pb::Selector::default()
            }),
            (None, Some(asked)) => Cow::Borrowed(asked),
            (None, None) => Cow::Owned(pb::Selector::default()),
        }
    }

    /// Whom it may go to, by the way it has come.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::of(&self.task.chain, self.skill())
    }

    /// What its caller has to be given: whose promise, and which.
    pub(super) fn promise(&self) -> Option<(&str, &Contract)> {
        if let Some(promised) = &self.relied_on {
            return Some((&promised.agent, &promised.contract));
        }
        let executor = self.task.executor.as_ref();
        let agent = executor.map_or("", |executor| &executor.agent);
        Some((agent, self.contract.as_ref()?))
    }

    /// The promise of the result, to be looked up; `None`: nothing is promised.
    pub(super) fn asked_promise(&self) -> Option<Promise> {
        let (agent, contract) = self.promise()?;
        (!contract.schemas.is_empty()).then(|| Promise {
            agent: agent.to_owned(),
            schemas: contract.schemas.clone(),
            input_modes: Vec::new(),
        })
    }

    /// The promise of the result, as it was written down.
    pub(super) fn kept_promise(&self) -> Option<contract::Contract> {
        let promised = self.relied_on.as_ref()?;
        contract::Contract::of_output(&promised.output_schema).ok()
    }

    /// What the first agent has promised, before the task is handed over.
    pub(super) fn relies_on(&mut self, promised: &pb::journal::Promised) {
        self.bytes += promised.output_schema.len();
        self.relied_on = Some(Promised {
            agent: promised.agent.clone(),
            contract: promised
                .contract
                .as_ref()
                .map(contract_of)
                .unwrap_or_default(),
            output_schema: promised.output_schema.clone(),
        });
    }

    /// The input of the one who is to work on it now.
    pub(super) fn input_now(&self) -> pb::Message {
        let mut input = self.input();
        if let (Some(delegation), Some(event)) = (self.delegation(), &self.delegation)
            && !delegation.input.is_empty()
        {
            input.parts.clone_from(&delegation.input);
            input.at = event.at;
        }
        input
    }

    /// Its agent has handed it over.
    pub(super) fn handed_over(&mut self, event: &Arc<pb::TaskEvent>) {
        let link = self.own_link();
        self.bytes += link.encoded_len();
        let is_link =
            |last: &pb::ChainLink| (&last.task_id, last.attempt) == (&link.task_id, link.attempt);
        if !self.task.chain.last().is_some_and(is_link) {
            self.task.chain.push(link);
        }
        let agent = self
            .task
            .executor
            .take()
            .map_or_else(String::new, |ran| ran.agent);
        let contract = self.contract.take().unwrap_or_default();
        self.relied_on.get_or_insert(Promised {
            agent,
            contract,
            output_schema: String::new(),
        });
        self.parties.executor = None;
        self.running = None;
        // Whoever asked was not lost: see `Kept::tries`.
        self.started = u32::try_from(self.questions()).unwrap_or(u32::MAX);
        self.tried.clear();
        self.bytes -= self.checkpoint.len();
        self.checkpoint = Vec::new();
        for artifact in &mut self.artifacts {
            artifact.summary.superseded = true;
        }
        if let Some(before) = self.delegation.replace(event.clone())
            && before.seq < self.first_seq()
            && !self.owes(before.seq)
        {
            // Nobody holds on to it any more.
            self.bytes -= event_bytes(&before);
        }
        let to = self.handed_to().map(|to| to.agent.clone());
        self.task.delegated_to = to.unwrap_or_default();
    }

    /// The hop that its present attempt is.
    fn own_link(&self) -> pb::ChainLink {
        let executor = self.parties.executor.as_ref();
        pb::ChainLink {
            spiffe_id: executor.map_or_else(String::new, ToString::to_string),
            skill: self.skill().to_owned(),
            task_id: self.task.id.clone(),
            attempt: self.task.attempt,
            scope: self.task.scope.clone(),
            ..pb::ChainLink::default()
        }
    }

    /// The delegation with the agent's name in full, or how the task fails.
    fn may_go_to(
        &self,
        mut said: pb::Delegation,
        route: &dyn Route,
    ) -> Result<pb::Delegation, Box<pb::Failure>> {
        let refused = |fault: Fault| {
            let text = format!(
                "the agent handed the task over, and may not: {}",
                fault.text
            );
            Box::new(failure(fault.reason, &text, false))
        };
        let size: usize = said.input.iter().map(Message::encoded_len).sum();
        fits("the input of a delegation", size, INPUT_MAX)
            .and_then(|()| parts_fit(&said.input))
            .map_err(|text| refused(Fault::field("delegation.input", text)))?;
        let to = said.to.get_or_insert_default();
        let agent = self.target(to).map_err(refused)?;
        to.agent = agent.as_ref().map_or_else(String::new, ToString::to_string);
        let chain = extended(self.task.chain.clone(), self.own_link(), PATH).map_err(refused)?;
        lineage::check(&chain, agent.as_ref(), &to.skill).map_err(refused)?;
        if said.input.is_empty()
            && let Some(before) = self.delegation()
        {
            // What it got was not the task's own any more.
            said.input.clone_from(&before.input);
        }
        self.takes(&said, route)?;
        Ok(said)
    }

    /// The agent that is meant, if one is, and may be given work by the one who hands it over.
    fn target(&self, to: &pb::AgentSkill) -> Result<Option<AgentName>, Fault> {
        let wrong = |text: String| Fault::field(PATH, text);
        let _: SkillName = to
            .skill
            .parse()
            .map_err(|error| wrong(format!("{error}")))?;
        let own = self.parties.executor.as_ref();
        let namespace = match own.map(|own| &own.member) {
            Some(Member::Agent(own)) => own.namespace.clone(),
            _ => return Err(wrong("nobody runs it".into())),
        };
        let named = (!to.agent.is_empty()).then(|| AgentName::parse_in(&to.agent, &namespace));
        let named = named
            .transpose()
            .map_err(|error| wrong(error.to_string()))?;
        let space = named.as_ref().map(|named| &named.namespace);
        if let Some(own) = own {
            // A bare skill is looked up where the task's caller is.
            let asked = self.task.namespace.parse().ok();
            authorize(own, Action::SubmitTask, space.or(asked.as_ref()))?;
        }
        Ok(named)
    }

    /// Whether any of those who fit takes the input, as far as this home has their schemas at hand.
    fn takes(&self, said: &pb::Delegation, route: &dyn Route) -> Result<(), Box<pb::Failure>> {
        let to = said.to.clone().unwrap_or_default();
        let selector = pb::Selector {
            skill: to.skill,
            agent: to.agent,
            ..pb::Selector::default()
        };
        let parts = if said.input.is_empty() {
            &self.input_now().parts
        } else {
            &said.input
        };
        // Its executor holds it against what it promises, with its contents.
        if refers(parts) {
            return Ok(());
        }
        let Ok(namespace) = self.task.namespace.parse() else {
            return Ok(());
        };
        let mut broken = None;
        for promise in route.promises(&namespace, &selector) {
            let Some(contract) = route.promised(&promise) else {
                return Ok(());
            };
            match contract.check(Side::Input, parts, &promise.input_modes) {
                Ok(()) => return Ok(()),
                Err(violation) => broken = broken.or(Some(violation)),
            }
        }
        match broken {
            Some(broken) => Err(Box::new(failure_of(&broken, &selector.skill))),
            None => Ok(()),
        }
    }
}
