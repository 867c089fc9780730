//! How a shard answers: changes wait for the disk, and so does what may show them.

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, SpiffeId};
use crate::pb;
#[cfg(any(test, feature = "sabotage"))]
use crate::task::controls::{self, Control};
use crate::task::descendants;
use crate::task::doors::Fare;
use crate::task::spec::NewTask;

use super::dialogue::{Response, may_answer, not_for_agents};
use super::keys::Known;
use super::machine::not_found;
use super::reads;
use super::request::{Answered, Mark, Reply, Request, SlotsWord, Watchers, Watching};
use super::shard::{Gated, Running, moment};
use super::slots::Unused;
use super::submit::parent_gone;

/// Transients that a slow watcher may be behind; it loses the oldest.
const TRANSIENTS: usize = 32;

impl Running {
    pub(super) fn handle(&mut self, request: Request) {
        self.shard.tasks.wake_for(&request);
        match request {
            Request::Heard {
                task,
                attempt,
                heard,
            } => {
                self.world(|tasks, world| tasks.heard(task, attempt, heard, world));
            }
            Request::Courier(word) => self.courier(word),
            Request::Submit {
                new,
                looked,
                answer,
            } => {
                let submitted = self.submit(new, looked, Self::summary);
                self.answer(answer, submitted);
            }
            Request::Run {
                new,
                looked,
                answer,
            } => {
                let submitted = self.submit(new, looked, Self::watch);
                self.answer(answer, submitted);
            }
            Request::Cancel {
                task,
                viewer,
                reason,
                answer,
            } => {
                let canceled = self.cancel(task, &viewer, &reason);
                self.answer(answer, canceled);
            }
            Request::Slots(word) => self.slots(word),
            Request::Supply(task, word) => self.world(|tasks, _| tasks.heed(task, word)),
            Request::Respond {
                task,
                viewer,
                response,
                answer,
            } => {
                let responded = self.respond(task, &viewer, response);
                self.answer(answer, responded);
            }
            Request::Settle { answer } => self.settle(answer),
            Request::Moved { tasks, outcome } => self.archived(&tasks, outcome),
            Request::Drain { answer } => {
                self.shard.tasks.draining = true;
                self.answer(answer, Ok(()));
            }
            read @ (Request::Get { .. }
            | Request::List { .. }
            | Request::Watch { .. }
            | Request::Next { .. }
            | Request::Naming { .. }
            | Request::Pieces { .. }) => self.read(read),
        }
    }

    fn settle(&mut self, answer: Reply<()>) {
        self.shard.tasks.hold();
        self.settling.push(answer);
    }

    fn slots(&mut self, word: SlotsWord) {
        match word {
            SlotsWord::Grants { instance, grants } => {
                if !grants {
                    self.backs.remove(&instance);
                }
                self.world(|tasks, world| tasks.set_grants(&instance, grants, world.at.now));
            }
            SlotsWord::Granted { grant, back } => {
                let unused = Unused::new(&grant.id, &back);
                if self.world(|tasks, world| tasks.granted(&grant, world)) {
                    // It is with a task that is given out once that is on disk.
                    unused.used();
                    self.backs.insert(grant.instance, back);
                }
            }
        }
    }

    fn summary(&mut self, task: Uuid) -> Result<pb::Task, Fault> {
        let entry = self.shard.tasks.tasks.get(&task).ok_or_else(not_found)?;
        Ok(entry.basic())
    }

    fn submit<T>(
        &mut self,
        new: Box<NewTask>,
        looked: Option<Instant>,
        show: impl FnOnce(&mut Self, Uuid) -> Result<T, Fault>,
    ) -> Result<Answered<T>, Fault> {
        let known = match &new.key {
            Some(key) if counts() => self.shard.tasks.known(key, looked, moment())?,
            Some(_) | None => Known::Unknown,
        };
        match known {
            Known::Here(task) => return show(self, task).map(Answered::Again),
            Known::Archived => return Ok(Answered::Archived(new)),
            Known::Unknown => {}
        }
        let skill = new.task.skill.clone();
        let task = match self.admit(new)? {
            Admitted::Made(task) => task,
            Admitted::Unpaid(new, count) => return Ok(Answered::Unpaid(new, count)),
        };
        self.shard.metrics.submitted(&skill);
        show(self, task).map(Answered::New)
    }

    /// Makes a task that was not made before, at the expense of the attempt that asks for it.
    fn admit(&mut self, mut new: Box<NewTask>) -> Result<Admitted, Fault> {
        let Some(token) = new.maker.clone() else {
            let made = self.world(|tasks, world| tasks.submit(*new, world));
            return made.map(Admitted::Made);
        };
        let parents = self.shard.parents.clone();
        // It may have ended since the submission was checked; from here on this shard hears of it.
        if !parents.lives(&token) {
            return Err(parent_gone());
        }
        let Some(fare) = new.fare.take() else {
            let wants = 1 + self.share(&new, &token);
            let taken = parents.take(&token, wants)?;
            if taken == 0 {
                return Ok(Admitted::Unpaid(new, wants));
            }
            new.fare = Some(Box::new(Fare::taken(parents, token, taken)));
            return self.admit(new);
        };
        new.descendants = fare.count().saturating_sub(1);
        let detached = !new.ends_with_maker;
        let made = self.world(|tasks, world| tasks.submit(*new, world))?;
        // Else it goes back.
        fare.spend();
        if detached {
            self.shard.parents.keep_for(&token);
        }
        Ok(Admitted::Made(made))
    }

    /// What a child has to get beforehand, as whoever runs it may not be able to ask for it.
    fn share(&self, new: &NewTask, token: &str) -> u32 {
        let namespace = new.task.namespace.parse();
        let selector = new.spec.selector.as_ref();
        match (namespace, selector) {
            (Ok(namespace), Some(selector))
                if !self.shard.route.wants_descendants(&namespace, selector) =>
            {
                descendants::share(self.shard.parents.left(token))
            }
            _ => 0,
        }
    }

    fn cancel(&mut self, task: Uuid, viewer: &SpiffeId, reason: &str) -> Result<pb::Task, Fault> {
        reads::entry(&self.shard.tasks, task, viewer)?;
        let by = viewer.to_string();
        self.world(|tasks, world| tasks.cancel(task, &by, reason, world.at))?;
        let entry = reads::entry(&self.shard.tasks, task, viewer)?;
        Ok(entry.basic())
    }

    fn respond(
        &mut self,
        task: Uuid,
        viewer: &SpiffeId,
        response: Response,
    ) -> Result<(pb::Task, bool), Fault> {
        let entry = reads::entry(&self.shard.tasks, task, viewer)?;
        if !may_answer(viewer, &entry.kept.parties) {
            return Err(not_for_agents());
        }
        let new = self.world(|tasks, world| tasks.respond(task, viewer, response, world))?;
        let entry = reads::entry(&self.shard.tasks, task, viewer)?;
        Ok((entry.basic(), !new))
    }

    fn read(&mut self, request: Request) {
        let tasks = &self.shard.tasks;
        match request {
            Request::Get {
                task,
                viewer,
                full,
                answer,
            } => {
                let got = reads::get(tasks, task, &viewer, full);
                self.answer(answer, got);
            }
            Request::List { query, answer } => {
                let page = reads::list(tasks, &query);
                self.answer(answer, Ok(page));
            }
            Request::Watch {
                task,
                viewer,
                after_seq,
                answer,
            } => {
                let fits = reads::check_cursor(tasks, task, &viewer, after_seq);
                let watching = fits.and_then(|()| self.watch(task));
                self.answer(answer, watching);
            }
            // Only what was shown before is in these two: they need not wait.
            Request::Next {
                task,
                after_seq,
                answer,
            } => {
                drop(answer.send(reads::next(tasks, task, after_seq)));
            }
            Request::Pieces {
                task,
                viewer,
                artifact,
                from,
                answer,
            } => drop(answer.send(reads::pieces(tasks, (task, &viewer), &artifact, from))),
            Request::Naming {
                task,
                viewer,
                hash,
                answer,
            } => drop(answer.send(reads::naming(tasks, task, &viewer, hash))),
            Request::Heard { .. }
            | Request::Courier(_)
            | Request::Submit { .. }
            | Request::Run { .. }
            | Request::Cancel { .. }
            | Request::Respond { .. }
            | Request::Settle { .. }
            | Request::Slots(_)
            | Request::Supply(..)
            | Request::Moved { .. }
            | Request::Drain { .. } => {}
        }
    }

    /// Answers once everything that the answer may show is on disk; a refusal shows nothing.
    pub(super) fn answer<T: Send + 'static>(&mut self, answer: Reply<T>, with: Result<T, Fault>) {
        if with.is_err() {
            // Whoever asked may be gone.
            drop(answer.send(with));
            return;
        }
        self.gather();
        self.pending
            .push(Gated::Answer(Box::new(move || drop(answer.send(with)))));
    }

    fn watch(&mut self, task: Uuid) -> Result<Watching, Fault> {
        let entry = self.shard.tasks.tasks.get(&task).ok_or_else(not_found)?;
        let seq = entry.shown();
        let ended = entry.kept.ended() && seq == entry.kept.task.last_seq;
        let watchers = self.watchers.entry(task).or_insert_with(|| Watchers {
            marks: watch::Sender::new(Mark::at(seq, ended)),
            transients: broadcast::Sender::new(TRANSIENTS),
        });
        let watching = Watching {
            task: entry.basic(),
            marks: watchers.marks.subscribe(),
            transients: watchers.transients.subscribe(),
        };
        if ended {
            self.watchers.remove(&task);
        }
        Ok(watching)
    }
}

/// What became of a submission that was not known.
enum Admitted {
    Made(Uuid),
    /// Its maker has nothing in hand for it, of so many.
    Unpaid(Box<NewTask>, u32),
}

/// The control that a key makes one task.
fn counts() -> bool {
    #[cfg(any(test, feature = "sabotage"))]
    if controls::removed(Control::Idempotency) {
        return false;
    }
    true
}
