//! How a task gets in: checked, looked for by its key, and taken by a shard.
//!
//! A submission with a key is looked for in memory, then in the archive, then in memory again: tasks
//! go from memory to the archive and never back, and the shard knows which have gone since the look.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::ids::DEFAULT_NAMESPACE;
use crate::domain::{Fault, Label, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::runtime::chance;
use crate::task::callback::Tells;
use crate::task::doors::{Fare, Parent};
use crate::task::key::IdempotencyKey;
use crate::task::spec::{Asked, NewTask};
use crate::telemetry::Work;

use super::calls::over;
use super::config::{Held, Submission};
use super::ephemeral::{self, Tie, Tied};
use super::finished;
use super::handle::Home;
use super::replay::shard_of;
use super::request::{Answered, Reply, Request};
use super::shard::moment;
use super::storage_failed;
use super::watch::TaskUpdates;

/// Looks into the archive for one submission; another one is needed only where thousands of tasks
/// with keys were archived during the last.
const LOOKS: usize = 4;

/// How long a submission waits for the homes above to give what it takes: longer than a stream between
/// two of them is broken, mostly.
const DRAW_WITHIN: Duration = Duration::from_secs(20);

/// A task that was taken in, now or before.
#[derive(Debug)]
pub struct Submitted<T> {
    /// The task.
    pub task: T,
    /// The same submission, by its key, made it before.
    pub replayed: bool,
}

/// What a task goes below that no handler asked for.
#[derive(Clone, Debug)]
pub struct Below {
    /// The task there, as if an attempt of it had asked.
    pub parent: Box<Parent>,
    /// What of a task it tells an agent of; `None`: of nothing.
    pub tells: Option<Tells>,
}

/// A submission that passed every check.
struct Checked {
    shard: usize,
    task: Uuid,
    new: NewTask,
    /// Ends when the submission is answered.
    work: Work,
}

impl Home {
    /// Takes a task in. It is on disk when this answers. `thread`: where the caller runs.
    ///
    /// # Errors
    /// What is wrong with the spec, INPUT_INVALID, PARENT_TOKEN_INVALID, IDEMPOTENCY_KEY_REUSED, QUEUE_FULL,
    /// DISK_FULL, DRAINING, STORAGE_FAILED.
    pub async fn submit(
        &self,
        asked: impl Into<Held>,
        thread: usize,
    ) -> Result<Submitted<pb::Task>, Fault> {
        Box::pin(self.submit_for(asked.into(), None, thread)).await
    }

    pub(super) async fn submit_for(
        &self,
        held: Held,
        below: Option<Below>,
        thread: usize,
    ) -> Result<Submitted<pb::Task>, Fault> {
        let checked = self.check(held, below, (thread, "SubmitTask"))?;
        let ask = |new, looked, answer| Request::Submit {
            new,
            looked,
            answer,
        };
        let submitted = self.take(checked.shard, checked.new, ask, |task| task);
        submitted
            .await
            .inspect_err(|fault| checked.work.fail(fault.reason.label()))
    }

    /// Takes a task in and follows it. Dropping the stream does not cancel the task, unless that is
    /// in memory only.
    ///
    /// # Errors
    /// As [`Home::submit`].
    pub fn run(
        &self,
        asked: impl Into<Held>,
        thread: usize,
    ) -> impl Future<Output = Result<Submitted<TaskUpdates>, Fault>> + Send {
        // Not async itself: what is asked for would be in its future twice.
        Box::pin(self.run_held(asked.into(), thread))
    }

    async fn run_held(&self, held: Held, thread: usize) -> Result<Submitted<TaskUpdates>, Fault> {
        let caller = held.asked.caller.clone();
        let checked = self.check(held, None, (thread, "RunTask"))?;
        let ask = |new, looked, answer| Request::Run {
            new,
            looked,
            answer,
        };
        // From here on: whoever drops this call before it is answered leaves nothing behind either.
        let mut tie = (checked.shard >= self.shared.durable).then(|| Tie {
            task: checked.task,
            viewer: Arc::new(caller),
            shard: self.shared.inboxes[checked.shard].clone(),
            nursery: self.shared.nurseries[checked.shard % self.shared.nurseries.len()].clone(),
            holds: true,
        });
        let running = self.take(checked.shard, checked.new, ask, over).await;
        let made = matches!(&running, Ok(running) if !running.replayed);
        if let Some(tie) = tie.take_if(|_| !made) {
            tie.undo();
        }
        let running = running.inspect_err(|fault| checked.work.fail(fault.reason.label()))?;
        let id: Result<TaskId, _> = running.task.task.id.parse();
        let task = id.expect("a task of ours has an id").uuid;
        let watcher = self.watcher(checked.shard, task, running.task, (0, true));
        let updates = watcher.stream();
        let updates = match tie {
            Some(_) => Box::pin(Tied { updates, tie }),
            None => updates,
        };
        Ok(Submitted {
            task: updates,
            replayed: running.replayed,
        })
    }

    /// Gives the submission to its shard, or finds the task that it made before.
    async fn take<T: Send + 'static>(
        &self,
        shard: usize,
        new: NewTask,
        ask: impl Fn(Box<NewTask>, Option<Instant>, Reply<Answered<T>>) -> Request,
        finished: impl Fn(pb::Task) -> T,
    ) -> Result<Submitted<T>, Fault> {
        let mut new = Box::new(new);
        // What has no disk, or no archive, has nothing elsewhere.
        let elsewhere = shard < self.shared.durable && self.shared.archive.is_some();
        let mut looked = (!elsewhere).then(Instant::now);
        // One more: it is paid for once.
        for _ in 0..=LOOKS {
            let key = new.key;
            let answered = self.ask(shard, |answer| ask(new, looked, answer));
            let (task, replayed) = match answered.await? {
                Answered::New(task) => (task, false),
                Answered::Again(task) => (task, true),
                Answered::Unpaid(back, count) => {
                    new = Box::pin(self.pay(back, count)).await?;
                    continue;
                }
                Answered::Archived(back) => {
                    looked = Some(Instant::now());
                    if let Some(key) = key
                        && let Some(task) = self.filed(key).await?
                    {
                        return Ok(Submitted {
                            task: finished(task),
                            replayed: true,
                        });
                    }
                    new = back;
                    continue;
                }
            };
            return Ok(Submitted { task, replayed });
        }
        Err(storage_failed())
    }

    /// Has the maker of a task ask for what that takes.
    async fn pay(&self, mut new: Box<NewTask>, count: u32) -> Result<Box<NewTask>, Fault> {
        let token = new.maker.clone().unwrap_or_default();
        let parents = &self.shared.parents;
        let drawing = parents.draw(&token, count, Some(DRAW_WITHIN));
        let taken = drawing.await.map_err(|fault| {
            if fault.reason == Reason::ParentTokenInvalid {
                parent_gone()
            } else {
                fault
            }
        })?;
        new.fare = Some(Box::new(Fare::taken(parents.clone(), token, taken)));
        Ok(new)
    }

    /// The task of this key in the archive.
    async fn filed(&self, key: IdempotencyKey) -> Result<Option<pb::Task>, Fault> {
        let Some(archive) = &self.shared.archive else {
            return Ok(None);
        };
        archive.read(move |view| finished::of_key(view, &key)).await
    }

    /// Checks a submission, and chooses an id: of the shard on `thread`, or of its key.
    fn check(
        &self,
        held: Held,
        below: Option<Below>,
        (thread, method): (usize, &str),
    ) -> Result<Checked, Fault> {
        let Held { mut asked, unfit } = held;
        let config = &self.shared.config;
        let asked_for = below.is_none();
        let (parent, tells) = match below {
            Some(below) => (Ok(Some(*below.parent)), below.tells),
            None => (self.parent_of(&asked), None),
        };
        let known = parent.as_ref().ok().and_then(Option::as_ref);
        let key = IdempotencyKey::of(&mut asked.spec, &asked.caller, known)?;
        let options = asked.spec.options.as_ref();
        let in_memory = options.is_some_and(|o| o.durability() == pb::Durability::Ephemeral);
        let (shard, task) = self.place(thread, key.as_ref(), in_memory);
        let id = TaskId {
            home: config.instance.clone(),
            uuid: task,
        };
        // A handler that brings no context of its own means the one that it was called with.
        let inherited = || known?.trace.as_ref();
        let work = Work::submit(asked.trace.as_ref().or_else(inherited), method, &id);
        let namespace = self.namespace_of(&asked.caller);
        let checked = parent.and_then(|parent| {
            let asked = Asked {
                id,
                namespace,
                spec: asked.spec,
                caller: asked.caller,
                own: config.own.clone(),
                parent,
                key,
            };
            NewTask::check(asked, &moment())
        });
        let mut new = checked.inspect_err(|fault| work.fail(fault.reason.label()))?;
        // No attempt pays for what none asked for.
        new.maker = new.maker.filter(|_| asked_for);
        if new.task.parent_task_id.is_empty() {
            new.descendants = config.descendants;
        }
        new.tells = tells;
        work.checked(&new.task.skill, &new.task.correlation_id, &new.task.caller);
        new.trace = work.context().cloned();
        new.unfit = unfit;
        Ok(Checked {
            shard,
            task,
            new,
            work,
        })
    }

    /// Where the bare names that a caller says are looked up.
    pub(in crate::task) fn namespace_of(&self, caller: &SpiffeId) -> Label {
        let own = || self.shared.config.own.member.namespace();
        let namespace = caller.member.namespace().or_else(own).cloned();
        namespace.unwrap_or_else(default_namespace)
    }

    /// A new id, and whose shard it is.
    fn place(&self, thread: usize, key: Option<&IdempotencyKey>, in_memory: bool) -> (usize, Uuid) {
        let shards = self.shared.durable;
        let shard = thread % shards;
        let mut task = chance::uuid();
        match key {
            Some(key) => task = key.id(task),
            None => {
                while shard_of(task, shards) != shard {
                    task = chance::uuid();
                }
            }
        }
        if in_memory {
            task = ephemeral::marked(task);
        }
        (self.shard_with(task), task)
    }

    /// The attempt that a submission's token names. The token is a secret of the own handler: nobody
    /// else can have it by right.
    fn parent_of(&self, asked: &Submission) -> Result<Option<Parent>, Fault> {
        let token = &asked.spec.parent_token;
        if token.is_empty() {
            return Ok(None);
        }
        let own = asked.caller == self.shared.config.own;
        let found = own.then(|| self.shared.parents.parent(token)).flatten();
        found.map(Some).ok_or_else(parent_gone)
    }
}

/// The answer to who speaks for an attempt that is over.
pub(super) fn parent_gone() -> Fault {
    let text = "parent_token names no attempt that runs on this sidecar and is wanted: it ends when its attempt does, or is cancelled";
    Fault {
        field: Some("spec.parent_token".into()),
        ..Fault::new(Reason::ParentTokenInvalid, text)
    }
}

fn default_namespace() -> Label {
    DEFAULT_NAMESPACE
        .parse()
        .expect("the default namespace is a label")
}
