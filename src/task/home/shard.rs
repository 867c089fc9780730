//! The one owner of a shard's tasks: takes requests in, appends their records, and carries out what
//! follows once those are synced, in order.
//!
//! Nothing that is not on disk is shown: answers wait in the same queue as effects. What is applied
//! to memory may be ahead of the disk by one turn.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use crate::domain::InstanceId;
use crate::runtime::{Nursery, Stop, chance, clock, watch};
use crate::task::callback::Ticket;
use crate::task::doors::{Connect, Parents, Route};
use crate::task::journal::blobs::{Blobs, Holder};
use crate::task::journal::{Journal, JournalError, Lsn, Synced};
use crate::task::spec::Moment;
use crate::telemetry::metrics::tasks::Tasks as TaskMetrics;

use super::archiving::Archiving;
use super::beside::group;
use super::children::next_over;
use super::dispatch::{Carrier, First};
use super::hold::Hold;
use super::large::STORED_MAX;
use super::machine::{Carrying, Effect, Tasks, World};
use super::neighbours::Neighbours;
use super::reads;
use super::released::Released;
use super::request::{Mark, Reply, Request, Watchers};
use super::slots::{Board, Unused};
use super::steps::Said;

/// Requests that wait for a shard; senders wait beyond it.
pub(super) const INBOX: usize = 1024;
/// Requests that are taken in before their records are appended together.
const TURN: usize = 256;
/// Records that wait before they are appended, not to the end of a turn: a record may be 1 MiB.
const APPEND: usize = 32;
/// How often children of ended attempts are cancelled, old tasks forgotten and segments let go.
const SWEEP: Duration = Duration::from_secs(5);
/// Pause before a journal that had no room is asked again.
const FULL_RETRY: Duration = Duration::from_millis(5);
/// Between two looks at what waits because something elsewhere has changed: every room that gets free
/// anywhere rings, at every shard, and the shard has other work.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When nothing is due, look again after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// What waits for the disk.
pub(super) enum Gated {
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
    /// `None`: the journal has no disk, and keeps nothing.
    pub(super) released: Option<Arc<Released>>,
    pub(super) archiving: Archiving,
    pub(super) metrics: Arc<TaskMetrics>,
    pub(super) place: usize,
    pub(super) route: Arc<dyn Route>,
    pub(super) connect: Arc<dyn Connect>,
    pub(super) parents: Arc<dyn Parents>,
    /// What is to be told, to whoever carries it.
    pub(super) tickets: mpsc::Sender<Ticket>,
    pub(super) nursery: Nursery,
    /// Where it says who waits for executors without room.
    pub(super) board: Arc<Board>,
    pub(super) neighbours: Arc<Neighbours>,
    /// Told when the journal fails.
    pub(super) failed: Stop,
}

/// A shard at work.
pub(super) struct Running {
    pub(super) shard: Shard,
    pub(super) synced: watch::Receiver<Synced>,
    /// Appended, and waits for this record to be synced.
    pub(super) gated: VecDeque<(Lsn, Gated)>,
    /// Not appended yet, or nothing to append for it.
    pub(super) pending: Vec<Gated>,
    pub(super) last: Lsn,
    /// The journal has no room: nothing is taken in until it has.
    stuck: bool,
    hold: Hold,
    /// When a change elsewhere last had it look at what waits.
    looked: Option<Instant>,
    /// When it may say again who waits for executors without room.
    pub(super) says_at: Instant,
    /// Where grants go back that no Start has used, by who granted them.
    pub(super) backs: BTreeMap<InstanceId, mpsc::Sender<String>>,
    /// Sorted, as the watchers are: who hears of the shard's end first does not depend on chance.
    pub(super) carriers: BTreeMap<Uuid, (u32, watch::Sender<Said>)>,
    /// Who waits until no attempt is under way; at most one, the process's own end.
    pub(super) settling: Vec<Reply<()>>,
    pub(super) watchers: BTreeMap<Uuid, Watchers>,
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
            hold: Hold::default(),
            looked: None,
            says_at: Instant::now(),
            backs: BTreeMap::new(),
            carriers: BTreeMap::new(),
            settling: Vec::new(),
            watchers: BTreeMap::new(),
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
        let mut over = Some(self.shard.parents.over());
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wake = Box::pin(sleep_until(Instant::now()));
        let mut requests = Vec::with_capacity(TURN);
        self.world(Tasks::recovered);
        loop {
            let held = self
                .hold
                .until(&self.shard.tasks.records, &self.pending, Instant::now());
            if held.is_none() {
                self.append()?;
            }
            self.perform();
            // What waits for the disk may be an attempt that goes out once it is there.
            if self.carriers.is_empty() && self.gated.is_empty() && self.pending.is_empty() {
                for settled in self.settling.drain(..) {
                    // Whoever asked may have given up.
                    drop(settled.send(Ok(())));
                }
            }
            self.archive(false);
            self.publish();
            self.say_who_waits(Instant::now());
            let next = self.next_wake();
            let next = held.map_or(next, |held| held.min(next));
            if wake.deadline() != next {
                wake.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // Every sync wakes whoever asks: a shard that waits for none sleeps on. A failure
                // reaches it with its next append, or its next sweep.
                synced = self.synced.changed(), if !self.gated.is_empty() => {
                    if synced.is_err() || self.synced.borrow_and_update().failed {
                        return Err(JournalError::Closed);
                    }
                }
                () = wake.as_mut() => if !self.stuck { self.world(Tasks::tick) },
                Ok(()) = changes.changed(), if !self.stuck => self.changed(Instant::now()),
                parent = next_over(&mut over), if !self.stuck => self.disowned(parent),
                _ = sweep.tick(), if !self.stuck => {
                    if self.shard.journal.failed() {
                        return Err(JournalError::Closed);
                    }
                    self.sweep()?;
                }
                taken = self.shard.inbox.recv_many(&mut requests, TURN), if !self.stuck => {
                    if taken == 0 {
                        return Ok(());
                    }
                    self.turn(&mut requests)?;
                }
            }
        }
    }

    /// Somebody else may fit, or have room, now: looks at what waits, or does so soon.
    fn changed(&mut self, now: Instant) {
        let soon = self.looked.map(|looked| looked + LOOK_AGAIN);
        if let Some(soon) = soon.filter(|soon| *soon > now) {
            let tasks = &mut self.shard.tasks;
            // What is due before that stays so.
            let due = tasks.pump_at.map_or(soon, |due| due.min(soon));
            tasks.look_again(due);
        } else {
            self.looked = Some(now);
            self.world(Tasks::pump);
        }
    }

    /// An attempt that may have children here is over; `None`: some are.
    fn disowned(&mut self, parent: Option<Arc<str>>) {
        let parents = self.shard.parents.clone();
        self.world(|tasks, world| match parent {
            Some(token) => tasks.cancel_children(&token, world.at),
            None => tasks.cancel_orphans(|token| parents.lives(token), world.at),
        });
    }

    fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), JournalError> {
        self.shard.tasks.low_space = self.shard.journal.low_space();
        self.shard.tasks.no_space = self.shard.journal.no_space();
        let stored = self.shard.journal.blobs().map(Blobs::disk_bytes);
        self.shard.tasks.stored_full = stored.is_some_and(|bytes| bytes > STORED_MAX);
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
        let next = self.shard.tasks.next_wake().unwrap_or(now + IDLE);
        if self.shard.tasks.lanes.moved {
            return next.min(self.says_at);
        }
        next
    }

    /// Lets the tasks act in the world as it is now.
    pub(super) fn world<R>(&mut self, act: impl FnOnce(&mut Tasks, World<'_>) -> R) -> R {
        let world = World {
            at: moment(),
            route: self.shard.route.as_ref(),
            chance: chance::fraction(),
        };
        let answer = act(&mut self.shard.tasks, world);
        self.gather();
        answer
    }

    /// Queues the effects of what just happened behind everything before.
    pub(super) fn gather(&mut self) {
        self.pending
            .extend(self.shard.tasks.effects.drain(..).map(Gated::Effect));
    }

    /// Hands the records to the journal; what they allow waits for their sync.
    pub(super) fn append(&mut self) -> Result<(), JournalError> {
        self.stuck = false;
        while !self.shard.tasks.records.is_empty() {
            let tasks = &self.shard.tasks;
            let group = group(&tasks.records, &tasks.waiting);
            let blobs = self.held(group);
            let records = &self.shard.tasks.records[..group];
            match self.shard.journal.append_with(records, &blobs) {
                Ok(last) => self.last = last,
                Err(JournalError::Full { .. }) => {
                    self.stuck = true;
                    return Ok(());
                }
                Err(failed) => return Err(failed),
            }
            let first = self.last + 1 - group as u64;
            // Taken out for a moment, and its room used again: records are large.
            let mut records = std::mem::take(&mut self.shard.tasks.records);
            for (lsn, record) in (first..).zip(records.drain(..group)) {
                self.shard.tasks.logged(lsn, &record);
            }
            self.shard.tasks.records = records;
            self.shard.tasks.waiting.appended(group);
        }
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
            Effect::Shown { task, seq, ended } => self.show(task, seq, ended),
            Effect::Transient { task, transient } => {
                if let Some(watchers) = self.watchers.get(&task) {
                    // Nobody listens: nothing is lost that anybody wanted.
                    drop(watchers.transients.send(Arc::new(transient)));
                }
            }
            Effect::Start { to, start, call } => {
                self.count_attempt(to.task, to.attempt, false);
                // One that is held back on purpose is not lost meanwhile.
                let goes_out = Instant::now() + call.injected.delay.unwrap_or_default();
                self.shard.tasks.sent(to.task, to.attempt, goes_out);
                self.carry(to, First::Start(start, call));
            }
            Effect::Resume { to, after_update } => {
                self.count_attempt(to.task, to.attempt, true);
                self.carry(to, First::Resume(after_update));
            }
            Effect::LetGo { task } => self.let_go(task),
            Effect::Give {
                task,
                attempt,
                given,
            } => self.say(task, attempt, |said| said.given = given),
            Effect::Draw { by, from, count } => self.draw(by, from, count),
            Effect::Drawn { by, drawn } => self.pass_on(by.task, by.drawn(drawn)),
            Effect::GiveBack { to, count } => self.give_back(to, count),
            Effect::LeaveParent { token } => self.shard.parents.let_go(&token),
            Effect::Tell(ticket) => self.tell(*ticket),
            Effect::Told(report) => self.shard.metrics.callbacks.told(&report),
            Effect::Ack {
                task,
                attempt,
                update,
            } => self.say(task, attempt, |said| said.ack = said.ack.max(update)),
            Effect::Abort {
                task,
                attempt,
                reason,
            } => self.say(task, attempt, |said| said.abort = Some(reason)),
            Effect::Release {
                task,
                attempt,
                abort,
            } => {
                self.say(task, attempt, |said| {
                    said.abort = abort.or_else(|| said.abort.take());
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

    /// What the task named is not needed for it any more.
    fn let_go(&self, task: Uuid) {
        if let Some(blobs) = self.shard.journal.blobs() {
            blobs.let_go(Holder::in_log(task));
        }
    }

    /// Whoever watches may see the event now.
    fn show(&mut self, task: Uuid, seq: u64, ended: bool) {
        self.shard.tasks.shown(task, seq);
        self.count(task, ended);
        let Some(watchers) = self.watchers.get(&task) else {
            return;
        };
        let event = reads::event(&self.shard.tasks, task, seq);
        let show = |mark: &mut Mark| mark.show(seq, ended, event);
        watchers.marks.send_modify(show);
        if ended || watchers.marks.is_closed() {
            self.watchers.remove(&task);
        }
    }

    fn carry(&mut self, to: Carrying, first: First) {
        let work = self
            .shard
            .tasks
            .work(&to, matches!(first, First::Resume(_)));
        let (say, said) = watch::channel(Said::default());
        self.carriers.insert(to.task, (to.attempt, say));
        let (shard, connect) = (self.shard.sender.clone(), self.shard.connect.clone());
        let grant = first.grant().zip(self.backs.get(&to.instance));
        let unused = grant.map(|(grant, back)| Unused::new(grant, back));
        let carrier = Carrier {
            to,
            first,
            unused,
            said,
            shard,
            connect,
            blobs: self.shard.journal.blobs().cloned(),
            work,
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
