//! What of a task's changes is still to be told to whoever asked to be called back, as the disk has it.
//! Pure.
//!
//! What is owed is told in the same words each time: its events are held until then, however many
//! come after them.

use std::sync::Arc;

use crate::pb;
use crate::pb::journal::{Owed, Told};
use crate::task::callback::{Above, Target, Tells, tells};

use super::kept::{Kept, ended, event_bytes, holds_content};
use super::snapshot::Numbered;

/// Most changes of one task that wait to be told; of more the oldest are given up.
const OWED_MAX: usize = 256;
/// What one of them takes in memory beside its event, about.
const OWED_BYTES: usize = 64;
/// Why the oldest of too many was given up.
pub(super) const TOO_MANY: &str = "256 later changes wait";

/// A change that is to be told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owing {
    pub(super) owed: Owed,
    /// Its event; `None`: an earlier version has not kept it.
    event: Option<Arc<pb::TaskEvent>>,
}

impl Owing {
    /// What a snapshot says is owed, with its events.
    pub(super) fn restored(owed: Owed, events: &Numbered) -> Self {
        let event = events.get(&owed.seq).cloned();
        Self { owed, event }
    }
}

impl Kept {
    /// Whether nothing can happen to it and nothing is to be told.
    pub(super) fn over(&self) -> bool {
        self.ended() && self.owed.is_empty()
    }

    /// Who is to be told of what, by its configuration; `None`: nobody of anything.
    pub(super) fn told_to(&self) -> Option<Target> {
        if let Some(tells) = &self.tells {
            return Some(Target::Task(tells.clone()));
        }
        let callback = self.task.options.as_ref()?.callback.as_ref()?;
        Target::of(callback, &self.callback_url)
    }

    /// Takes in that an event changed the state.
    pub(super) fn owe(&mut self, from: pb::TaskState, event: &Arc<pb::TaskEvent>) {
        if from == event.state() || !self.is_told(event.state()) {
            return;
        }
        let owed = Owed {
            seq: event.seq,
            attempt: event.attempt,
            state: event.state,
            at: event.at,
            round: 0,
        };
        self.owed.push_back(Owing {
            owed,
            event: Some(event.clone()),
        });
        self.bytes += OWED_BYTES;
        if self.owed.len() > OWED_MAX
            && let Some(oldest) = self.owed.front().map(|owing| owing.owed.seq)
        {
            self.gave_up(oldest, TOO_MANY);
        }
        self.waits();
    }

    /// Whether somebody is told when the task enters this state.
    fn is_told(&self, state: pb::TaskState) -> bool {
        if self.tells.is_some() {
            return ended(state);
        }
        let callback = self.task.options.as_ref().and_then(|o| o.callback.as_ref());
        callback.is_some_and(|callback| tells(callback, state))
    }

    /// The receiver has taken in what happened up to this event.
    pub(super) fn told(&mut self, told: &Told) {
        self.settled(told.seq);
        self.notes(|progress| {
            progress.delivered_seq = progress.delivered_seq.max(told.seq);
            progress.delivered_at = told.at;
        });
        self.waits();
    }

    /// Events up to this one are not told any more.
    pub(super) fn gave_up(&mut self, seq: u64, why: &str) {
        self.settled(seq);
        self.notes(|progress| {
            progress.given_up_seq = progress.given_up_seq.max(seq);
            why.clone_into(&mut progress.given_up);
        });
        self.waits();
    }

    /// The task that told of this event failed for now.
    pub(super) fn told_anew(&mut self, seq: u64) {
        let first = self.owed.front_mut().filter(|first| first.owed.seq == seq);
        if let Some(first) = first {
            first.owed.round += 1;
        }
    }

    /// Number of the last event that was given up.
    pub(super) fn given_up(&self) -> u64 {
        let progress = self.task.callback.as_ref();
        progress.map_or(0, |progress| progress.given_up_seq)
    }

    /// Whether this event is still to be told.
    pub(super) fn owes(&self, seq: u64) -> bool {
        // A handful, and mostly none: they are in order.
        let place = self.owed.binary_search_by_key(&seq, |owing| owing.owed.seq);
        place.is_ok()
    }

    /// Events that are still to be told.
    pub(super) fn owed_events(&self) -> impl Iterator<Item = &Arc<pb::TaskEvent>> {
        self.owed.iter().filter_map(|owing| owing.event.as_ref())
    }

    /// The oldest change that is to be told.
    pub(super) fn first_owed(&self) -> Option<Arc<pb::TaskEvent>> {
        let Owing { owed, event } = self.owed.front()?;
        let bare = || {
            Arc::new(pb::TaskEvent {
                task_id: self.task.id.clone(),
                seq: owed.seq,
                attempt: owed.attempt,
                at: owed.at,
                state: owed.state,
                kind: None,
            })
        };
        Some(event.clone().unwrap_or_else(bare))
    }

    /// What a task needs to know that tells an agent of the oldest change.
    pub(super) fn above(&self) -> Option<Above> {
        let owed = &self.owed.front()?.owed;
        let task = &self.task;
        Some(Above {
            task: pb::Task {
                id: task.id.clone(),
                skill: task.skill.clone(),
                origin: task.origin.clone(),
                root_task_id: task.root_task_id.clone(),
                correlation_id: task.correlation_id.clone(),
                context_id: task.context_id.clone(),
                chain: task.chain.clone(),
                ..pb::Task::default()
            },
            caller: self.parties.caller.clone(),
            tells: Tells {
                task: self.id.clone(),
                seq: owed.seq,
                round: owed.round,
            },
        })
    }

    /// Whether the task itself holds on to the event, whatever is owed.
    pub(super) fn holds(&self, event: &pb::TaskEvent) -> bool {
        let handed = matches!(event.kind, Some(pb::task_event::Kind::Delegation(_)));
        let last = self.delegation.as_ref();
        holds_content(event) && (!handed || last.is_some_and(|last| last.seq == event.seq))
    }

    fn settled(&mut self, seq: u64) {
        while self.owed.front().is_some_and(|first| first.owed.seq <= seq) {
            self.bytes -= OWED_BYTES;
            let event = self.owed.pop_front().and_then(|first| first.event);
            if let Some(event) = event
                && event.seq < self.first_seq()
                && !self.holds(&event)
            {
                // Nobody holds on to it any more.
                self.bytes -= event_bytes(&event);
            }
        }
    }

    /// Says in the task what is still to be told.
    fn waits(&mut self) {
        let waiting = u32::try_from(self.owed.len()).unwrap_or(u32::MAX);
        let since = self.owed.front().and_then(|first| first.owed.at);
        self.notes(|progress| {
            progress.waiting = waiting;
            progress.waiting_since = since;
        });
    }

    fn notes(&mut self, note: impl FnOnce(&mut pb::CallbackProgress)) {
        if self.tells.is_none() {
            note(self.task.callback.get_or_insert_default());
        }
    }
}
