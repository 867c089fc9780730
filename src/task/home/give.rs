//! Who gets a task: at once where somebody has room, else in its turn.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::journal::{Dispatched, record::Kind as Recorded};
use crate::task::doors::{Candidate, Want};
use crate::task::spec::Moment;
use crate::telemetry::{Subject, Work};

use super::lanes::Lanes;
use super::machine::{Carrying, Effect, Tasks, World};

/// Most lanes looked at in one go; the rest is looked at in the next.
const PUMP_LANES: usize = 64;
/// Most tasks of a lane that are given out, or passed over, in one go.
const PUMP_TASKS: usize = 128;
/// Pause before the rest is looked at, so that other work of the shard gets in between.
const PUMP_AGAIN: Duration = Duration::from_millis(10);

/// What became of a try to give a task out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Sent,
    /// Who fits has no room.
    Busy,
    /// Nobody fits.
    Nobody,
}

impl Tasks {
    /// Gives a task out, or lets it wait for its turn.
    pub(super) fn place(&mut self, task: Uuid, first: bool, world: World<'_>) {
        if !self.lanes.is_empty() {
            // Whoever waits for the same goes first; the next tick looks at the lanes.
            self.wait(task);
            let fail_fast = first && self.entry_options(task).fail_fast;
            if !fail_fast || self.give(task, world) != Given::Nobody {
                self.look_again(world.at.now);
                return;
            }
            return self.end_no_route(task, world.at);
        }
        match self.give(task, world) {
            Given::Sent => {}
            Given::Nobody if first && self.entry_options(task).fail_fast => {
                self.end_no_route(task, world.at);
            }
            Given::Busy | Given::Nobody => {
                self.wait(task);
                self.pump_at = self.gates.opens(world.at.now);
            }
        }
    }

    /// Puts a task into its lane.
    pub(super) fn wait(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let selector = entry.kept.spec.selector.as_ref();
        let lane = Lanes::name(&entry.kept.task.namespace, selector.unwrap_or(&EMPTY));
        entry.lane = Some(lane.clone());
        self.lanes.insert(lane, task);
    }

    /// Something has changed: the next tick looks at all lanes, if any task waits.
    pub(super) fn look_again(&mut self, now: Instant) {
        if !self.lanes.is_empty() {
            self.pump_at = Some(now);
            self.round = None;
        }
    }

    /// Looks whether somebody has room for those who wait.
    pub(super) fn pump(&mut self, world: World<'_>) {
        self.round = None;
        self.pump_on(world);
    }

    /// Goes on with a round of looks over all lanes, or begins one.
    pub(super) fn pump_on(&mut self, world: World<'_>) {
        let now = world.at.now;
        self.pump_at = None;
        let lanes = self.lanes.round(self.pumped.as_ref(), PUMP_LANES);
        let (left, began) = self.round.take().unwrap_or((self.lanes.len(), now));
        let left = left.saturating_sub(lanes.len());
        let mut more = left > 0;
        for lane in &lanes {
            let mut passed = None;
            for turn in 0..=PUMP_TASKS {
                let Some(task) = self.lanes.first(lane, passed) else {
                    break;
                };
                if turn == PUMP_TASKS {
                    more = true;
                    break;
                }
                let tried = self
                    .tasks
                    .get(&task)
                    .is_some_and(|entry| !entry.kept.tried.is_empty());
                match self.give(task, world) {
                    Given::Sent => self.settle(task),
                    // It may be its own past that nobody fits.
                    Given::Busy | Given::Nobody if tried => passed = Some(task),
                    Given::Busy | Given::Nobody => break,
                }
            }
        }
        self.pumped = lanes.last().cloned();
        if !self.lanes.is_empty() {
            self.pump_at = if more {
                self.round = (left > 0).then_some((left, began));
                Some(now + PUMP_AGAIN)
            } else {
                // A gate that opened during the round may be for a lane that was passed before.
                self.gates.opens(began)
            };
        }
    }

    fn entry_options(&self, task: Uuid) -> pb::TaskOptions {
        let entry = self.tasks.get(&task);
        entry
            .and_then(|entry| entry.kept.task.options.clone())
            .unwrap_or_default()
    }

    fn end_no_route(&mut self, task: Uuid, at: Moment) {
        let skill = self
            .tasks
            .get(&task)
            .map_or("", |entry| entry.kept.task.skill.as_str());
        let text = format!("no live agent offers {skill} as asked for, and fail_fast was set");
        self.end_failed(task, Reason::NoRoute, &text, at);
    }

    /// Sends the task to whoever fits best and has room.
    fn give(&mut self, task: Uuid, world: World<'_>) -> Given {
        if self.holding {
            return Given::Busy;
        }
        let Some(entry) = self.tasks.get(&task) else {
            return Given::Nobody;
        };
        let mut want = Want {
            namespace: match entry.kept.task.namespace.parse() {
                Ok(namespace) => namespace,
                Err(_) => return Given::Nobody,
            },
            selector: entry.kept.spec.selector.clone().unwrap_or_default(),
            exclude: entry.kept.tried.clone(),
        };
        let mut fitting = world.route.candidates(&want);
        if fitting.is_empty() && !want.exclude.is_empty() {
            // Where an attempt was lost is the last choice, but better than none: an agent that is
            // alone comes back, and attempts are counted.
            want.exclude.clear();
            fitting = world.route.candidates(&want);
        }
        if fitting.is_empty() {
            return Given::Nobody;
        }
        let now = world.at.now;
        let open = |candidate: &Candidate| {
            !want.exclude.contains(&candidate.instance)
                && self.gates.allows(&candidate.instance, now)
        };
        let Some(chosen) = fitting.into_iter().find(open) else {
            return Given::Busy;
        };
        self.send(task, chosen, world.at);
        Given::Sent
    }

    fn send(&mut self, task: Uuid, to: Candidate, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        if let Some(lane) = entry.lane.take() {
            self.lanes.remove(&lane, task);
        }
        // Nothing is lost before it was sent: see `Tasks::sent`.
        entry.lost_at = None;
        let dispatched = Dispatched {
            attempt: entry.kept.task.attempt + 1,
            instance: to.instance.to_string(),
            agent: to.agent.to_string(),
            at: Some(at.wall.into()),
            idempotent: to.idempotent,
            boot_id: to.boot_id,
        };
        let task_id = entry.kept.task.id.clone();
        self.gates.sent(&to.instance, at.now);
        self.log(task_id.clone(), Recorded::Dispatched(dispatched), 0);
        self.follow(task);
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let start = Box::new(entry.kept.start(&self.own));
        let to = Carrying {
            task,
            task_id,
            attempt: entry.kept.task.attempt,
            instance: to.instance,
            deadline: entry.deadline,
        };
        self.effects.push(Effect::Start { to, start });
    }

    /// The attempt's Start goes out now: from here on its executor may be lost.
    pub(super) fn sent(&mut self, task: Uuid, attempt: u32, now: Instant) {
        let running = self.tasks.get_mut(&task).filter(|entry| {
            let running = entry.kept.running.as_ref();
            running.is_some_and(|running| running.attempt == attempt)
        });
        if let Some(entry) = running {
            entry.lost_at.get_or_insert(now + self.lost_after);
            self.settle(task);
        }
    }

    /// The span of an attempt, below the submission: a restart and another attempt go on there.
    pub(super) fn work(&self, to: &Carrying, again: bool) -> Work {
        let Some(entry) = self.tasks.get(&to.task) else {
            return Work::none();
        };
        let task = &entry.kept.task;
        let subject = Subject {
            task_id: &to.task_id,
            skill: &task.skill,
            attempt: to.attempt,
            correlation_id: &task.correlation_id,
        };
        let agent = task
            .executor
            .as_ref()
            .map_or("", |executor| &executor.agent);
        let executor = (agent, to.instance.as_str());
        Work::attempt(entry.kept.trace.as_ref(), subject, executor, again)
    }
}

static EMPTY: std::sync::LazyLock<pb::Selector> = std::sync::LazyLock::new(pb::Selector::default);
