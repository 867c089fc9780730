//! The one owner of a shard's tasks: takes requests in, appends their records, and carries out what
//! follows once those are synced, in order.
//!
//! Nothing that is not on disk is shown: answers wait in the same queue as effects. What is applied
//! to memory may be ahead of the disk by one turn.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use crate::domain::{Fault, SpiffeId};
use crate::pb;
use crate::pb::journal::record::Kind as Recorded;
use crate::runtime::{Nursery, Stop, clock};
use crate::task::doors::{Connect, Route};
use crate::task::journal::{Journal, JournalError, Lsn, Synced};
use crate::task::spec::{Moment, NewTask};

use super::attempt::Heard;
use super::dispatch::{Carrier, First, Said};
use super::machine::{Carrying, Effect, Tasks, World, not_found};
use super::reads::{self, Batch, Page, Pieces};
use super::released::Released;
use super::view::ListQuery;

/// Requests that wait for a shard; senders wait beyond it.
pub(super) const INBOX: usize = 1024;
/// Requests that are taken in before their records are appended together.
const TURN: usize = 256;
/// Records that are appended together at most; each may be a little over 1 MiB.
const APPEND: usize = 32;
/// Transients that a slow watcher may be behind; it loses the oldest.
const TRANSIENTS: usize = 32;
/// How often old tasks are forgotten and segments let go.
const SWEEP: Duration = Duration::from_secs(10);
/// Pause before a journal that had no room is asked again.
const FULL_RETRY: Duration = Duration::from_millis(5);
/// When nothing is due, look again after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// What a caller gets back, once it may.
type Reply<T> = oneshot::Sender<Result<T, Fault>>;

/// What a shard can be asked.
pub(super) enum Request {
    Submit {
        new: Box<NewTask>,
        answer: Reply<pb::Task>,
    },
    Run {
        new: Box<NewTask>,
        answer: Reply<Watching>,
    },
    Cancel {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        reason: String,
        answer: Reply<pb::Task>,
    },
    Get {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        full: bool,
        answer: Reply<(pb::Task, bool)>,
    },
    List {
        query: Arc<ListQuery>,
        answer: Reply<Page>,
    },
    Watch {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        after_seq: u64,
        answer: Reply<Watching>,
    },
    Next {
        task: Uuid,
        after_seq: u64,
        answer: Reply<Batch>,
    },
    Pieces {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        artifact: String,
        from: usize,
        answer: Reply<Pieces>,
    },
    Heard {
        task: Uuid,
        attempt: u32,
        heard: Heard,
    },
    Drain {
        answer: Reply<()>,
    },
}

/// How far a task's events may be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) seq: u64,
    /// The event `seq` is the last one.
    pub(super) ended: bool,
}

/// A task as it is, and how to hear of what comes.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) task: pb::Task,
    pub(super) marks: watch::Receiver<Mark>,
    pub(super) transients: broadcast::Receiver<Arc<pb::Transient>>,
}

/// Who hears of a task's changes.
struct Watchers {
    marks: watch::Sender<Mark>,
    transients: broadcast::Sender<Arc<pb::Transient>>,
}

/// What waits for the disk.
enum Gated {
    Effect(Effect),
    Answer(Box<dyn FnOnce() + Send>),
}

/// What a shard works with.
pub(super) struct Shard {
    pub(super) tasks: Tasks,
    pub(super) inbox: mpsc::Receiver<Request>,
    /// For the carriers that it starts.
    pub(super) sender: mpsc::Sender<Request>,
    pub(super) journal: Journal,
    pub(super) released: Arc<Released>,
    pub(super) place: usize,
    pub(super) route: Arc<dyn Route>,
    pub(super) connect: Arc<dyn Connect>,
    pub(super) nursery: Nursery,
    /// Told when the journal fails.
    pub(super) failed: Stop,
}

/// A shard at work.
struct Running {
    shard: Shard,
    synced: watch::Receiver<Synced>,
    /// Appended, and waits for this record to be synced.
    gated: VecDeque<(Lsn, Gated)>,
    /// Not appended yet, or nothing to append for it.
    pending: Vec<Gated>,
    last: Lsn,
    /// The journal has no room: nothing is taken in until it has.
    stuck: bool,
    carriers: HashMap<Uuid, (u32, watch::Sender<Said>)>,
    watchers: HashMap<Uuid, Watchers>,
}

impl Shard {
    /// Owns the tasks until `stop`, or until the journal fails.
    pub(super) async fn run(self, stop: Stop) {
        let failed = self.failed.clone();
        let mut running = Running {
            synced: self.journal.synced(),
            last: 0,
            gated: VecDeque::new(),
            pending: Vec::new(),
            stuck: false,
            carriers: HashMap::new(),
            watchers: HashMap::new(),
            shard: self,
        };
        if running.work(stop).await.is_err() {
            tracing::error!("the journal failed: this shard acknowledges nothing more");
            failed.cancel();
        }
    }
}

impl Running {
    async fn work(&mut self, stop: Stop) -> Result<(), JournalError> {
        let mut changes = self.shard.route.changes();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wake = Box::pin(sleep_until(Instant::now()));
        let mut requests = Vec::with_capacity(TURN);
        self.world(Tasks::recovered);
        loop {
            self.append()?;
            self.perform();
            let next = self.next_wake();
            if wake.deadline() != next {
                wake.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                synced = self.synced.changed() => {
                    if synced.is_err() || self.synced.borrow_and_update().failed {
                        return Err(JournalError::Closed);
                    }
                }
                () = wake.as_mut() => if !self.stuck { self.world(Tasks::tick) },
                Ok(()) = changes.changed(), if !self.stuck => self.world(Tasks::pump),
                _ = sweep.tick(), if !self.stuck => self.sweep(),
                taken = self.shard.inbox.recv_many(&mut requests, TURN), if !self.stuck => {
                    if taken == 0 {
                        return Ok(());
                    }
                    self.turn(&mut requests)?;
                }
            }
        }
    }

    fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), JournalError> {
        for request in requests.drain(..) {
            self.handle(request);
            self.gather();
            // A journal without room keeps the records here; the turn is the bound of what gathers.
            if self.shard.tasks.records.len() >= APPEND && !self.stuck {
                self.append()?;
            }
        }
        Ok(())
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        if self.stuck {
            return now + FULL_RETRY;
        }
        self.shard.tasks.next_wake().unwrap_or(now + IDLE)
    }

    /// Lets the tasks act in the world as it is now.
    fn world<R>(&mut self, act: impl FnOnce(&mut Tasks, World<'_>) -> R) -> R {
        let world = World {
            at: moment(),
            route: self.shard.route.as_ref(),
        };
        let answer = act(&mut self.shard.tasks, world);
        self.gather();
        answer
    }

    /// Queues the effects of what just happened behind everything before.
    fn gather(&mut self) {
        self.pending
            .extend(self.shard.tasks.effects.drain(..).map(Gated::Effect));
    }

    /// Hands the records to the journal; what they allow waits for their sync.
    fn append(&mut self) -> Result<(), JournalError> {
        let records = &self.shard.tasks.records;
        if !records.is_empty() {
            match self.shard.journal.append(records) {
                Ok(last) => self.last = last,
                Err(JournalError::Full { .. }) => {
                    self.stuck = true;
                    return Ok(());
                }
                Err(failed) => return Err(failed),
            }
            let first = self.last + 1 - records.len() as u64;
            let records = std::mem::take(&mut self.shard.tasks.records);
            for (lsn, record) in (first..).zip(&records) {
                if let (Some(Recorded::Submitted(_)), Some(task)) = (&record.kind, uuid_of(record))
                {
                    self.shard.tasks.logged(task, lsn);
                }
            }
        }
        self.stuck = false;
        let last = self.last;
        self.gated
            .extend(self.pending.drain(..).map(|gated| (last, gated)));
        Ok(())
    }

    /// Carries out what the disk allows.
    fn perform(&mut self) {
        let synced = self.synced.borrow().lsn;
        while let Some((lsn, _)) = self.gated.front()
            && *lsn <= synced
        {
            match self.gated.pop_front() {
                Some((_, Gated::Effect(effect))) => self.effect(effect),
                Some((_, Gated::Answer(answer))) => answer(),
                None => {}
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Shown { task, seq, ended } => {
                self.shard.tasks.shown(task, seq);
                let Some(watchers) = self.watchers.get(&task) else {
                    return;
                };
                watchers.marks.send_replace(Mark { seq, ended });
                if ended || watchers.marks.is_closed() {
                    self.watchers.remove(&task);
                }
            }
            Effect::Transient { task, transient } => {
                if let Some(watchers) = self.watchers.get(&task) {
                    // Nobody listens: nothing is lost that anybody wanted.
                    drop(watchers.transients.send(Arc::new(transient)));
                }
            }
            Effect::Start { to, start } => self.carry(to, First::Start(start)),
            Effect::Resume { to, after_update } => self.carry(to, First::Resume(after_update)),
            Effect::Ack {
                task,
                attempt,
                update,
            } => {
                self.say(task, attempt, |said| said.ack = said.ack.max(update));
            }
            Effect::Abort {
                task,
                attempt,
                reason,
            } => {
                self.say(task, attempt, |said| said.abort = Some(reason));
            }
            Effect::Release {
                task,
                attempt,
                abort,
            } => {
                self.say(task, attempt, |said| {
                    said.abort = abort.or(said.abort.take());
                    said.release = true;
                });
                if self
                    .carriers
                    .get(&task)
                    .is_some_and(|(current, _)| *current == attempt)
                {
                    self.carriers.remove(&task);
                }
            }
        }
    }

    fn carry(&mut self, to: Carrying, first: First) {
        let (say, said) = watch::channel(Said::default());
        self.carriers.insert(to.task, (to.attempt, say));
        let (shard, connect) = (self.shard.sender.clone(), self.shard.connect.clone());
        let carrier = Carrier {
            to,
            first,
            said,
            shard,
            connect,
        };
        self.shard
            .nursery
            .start("attempt", |stop| carrier.run(stop));
    }

    fn say(&self, task: Uuid, attempt: u32, change: impl FnOnce(&mut Said)) {
        if let Some((current, said)) = self.carriers.get(&task)
            && *current == attempt
        {
            said.send_modify(change);
        }
    }

    fn sweep(&mut self) {
        self.world(Tasks::tick);
        self.watchers
            .retain(|_, watchers| !watchers.marks.is_closed());
        // Read before the tasks are: what is appended later has a higher number.
        let synced = self.synced.borrow().lsn;
        let needed = self.shard.tasks.first_needed();
        if self.shard.tasks.records.is_empty() {
            let first = needed.unwrap_or(synced + 1);
            self.shard
                .journal
                .release(self.shard.released.up_to(self.shard.place, first));
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Heard {
                task,
                attempt,
                heard,
            } => {
                self.world(|tasks, world| tasks.heard(task, attempt, heard, world));
            }
            Request::Submit { new, answer } => {
                let submitted = self.world(|tasks, world| tasks.submit(*new, world));
                let entry = submitted.map(|task| self.shard.tasks.tasks.get(&task));
                let task = entry.and_then(|entry| Ok(entry.ok_or_else(not_found)?.kept.basic()));
                self.answer(answer, task);
            }
            Request::Run { new, answer } => {
                let submitted = self.world(|tasks, world| tasks.submit(*new, world));
                let watching = submitted.and_then(|task| self.watch(task));
                self.answer(answer, watching);
            }
            Request::Cancel {
                task,
                viewer,
                reason,
                answer,
            } => {
                let seen = reads::entry(&self.shard.tasks, task, &viewer).map(|_| ());
                let asked = seen.and_then(|()| {
                    let by = viewer.to_string();
                    self.world(|tasks, world| tasks.cancel(task, &by, &reason, world.at))
                });
                let canceled = asked.and_then(|()| {
                    reads::entry(&self.shard.tasks, task, &viewer).map(|entry| entry.kept.basic())
                });
                self.answer(answer, canceled);
            }
            Request::Get {
                task,
                viewer,
                full,
                answer,
            } => {
                let got = reads::get(&self.shard.tasks, task, &viewer, full);
                self.answer(answer, got);
            }
            Request::List { query, answer } => {
                let page = reads::list(&self.shard.tasks, &query);
                self.answer(answer, Ok(page));
            }
            Request::Watch {
                task,
                viewer,
                after_seq,
                answer,
            } => {
                let fits = reads::check_cursor(&self.shard.tasks, task, &viewer, after_seq);
                let watching = fits.and_then(|()| self.watch(task));
                self.answer(answer, watching);
            }
            // Only what was shown before is in these two: they need not wait.
            Request::Next {
                task,
                after_seq,
                answer,
            } => {
                drop(answer.send(reads::next(&self.shard.tasks, task, after_seq)));
            }
            Request::Pieces {
                task,
                viewer,
                artifact,
                from,
                answer,
            } => {
                let pieces = reads::pieces(&self.shard.tasks, (task, &viewer), &artifact, from);
                drop(answer.send(pieces));
            }
            Request::Drain { answer } => {
                self.shard.tasks.draining = true;
                self.answer(answer, Ok(()));
            }
        }
    }

    /// Answers once everything that the answer may show is on disk; a refusal shows nothing.
    fn answer<T: Send + 'static>(&mut self, answer: Reply<T>, with: Result<T, Fault>) {
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
            marks: watch::Sender::new(Mark { seq, ended }),
            transients: broadcast::Sender::new(TRANSIENTS),
        });
        let watching = Watching {
            task: entry.kept.basic(),
            marks: watchers.marks.subscribe(),
            transients: watchers.transients.subscribe(),
        };
        if ended {
            self.watchers.remove(&task);
        }
        Ok(watching)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Both clocks, now.
pub(super) fn moment() -> Moment {
    Moment {
        now: Instant::now(),
        wall: clock::wall(),
    }
}

fn uuid_of(record: &pb::journal::Record) -> Option<Uuid> {
    let (_, uuid) = record.task_id.split_once('.')?;
    Uuid::try_parse(uuid).ok()
}
