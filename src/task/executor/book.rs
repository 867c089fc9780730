//! Which attempts an executor knows, which it will never run again, how many run, and whom the free
//! slots are promised to.
//!
//! Plain data behind one short lock; it decides who may start. Nothing in it waits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tonic::Status;
use uuid::Uuid;

use super::grants::{Counts, Grant, Grants, Said};
use super::line::Line;
use super::refusal::AGENT_RETRY;
use super::session::Command;
use super::shares::{Claimant, Key as Share};
use crate::domain::{Fault, InstanceId, Reason, TaskId};
use crate::pb;
use crate::runtime::chance;
#[cfg(any(test, feature = "sabotage"))]
use crate::task::controls::{self, Control};

/// Tasks whose newest attempt is remembered, so that a late Start of it is refused. A Start is on
/// its way for seconds; this is minutes at a thousand tasks a second.
const REMEMBERED_MAX: usize = 65_536;
/// Tasks whose attempt ended without its home's word that it has all of it. Beyond it, nothing that
/// is not known is called never begun any more.
const UNSETTLED_MAX: usize = 65_536;
/// Attempts that have ended but whose home has not confirmed it; each keeps 1 MiB and more at most.
const UNCONFIRMED_MAX: usize = 256;
/// How long a home waits before it offers work again to an executor whose slots are taken: about
/// what a short task takes.
const SLOTS_RETRY: Duration = Duration::from_millis(250);
/// How long the mean execution time looks back.
const MEAN_WINDOW: Duration = Duration::from_secs(60);
/// Samples of that mean; older ones go first.
const MEAN_SAMPLES: usize = 1024;

/// What a home that waits is told.
pub(super) type Told = Result<pb::SlotsResponse, Status>;

/// What becomes of a Start.
#[derive(Debug)]
pub(super) enum Admission {
    /// It runs; the older attempt of the same task has to be fenced.
    Run {
        /// Inbox of the older attempt.
        older: Option<mpsc::Sender<Command>>,
    },
    /// It runs already: its home asks once more.
    Known(mpsc::Sender<Command>),
    /// It is not started here.
    Refused {
        /// Why.
        reason: Reason,
        /// When to ask again; `None`: never.
        retry_after: Option<Duration>,
    },
}

/// What becomes of a Resume.
#[derive(Debug)]
pub(super) enum Found {
    /// It is here.
    Known(mpsc::Sender<Command>),
    /// It is not, and will never start here.
    Unknown {
        /// Nor has it ever been, in this run of the process.
        never_begun: bool,
    },
}

/// A task in a quarter of the room that its id takes: many are remembered. The home goes in by a
/// keyed hash, so that no home can make up a task that is taken for another home's.
type Key = (u64, Uuid);

#[derive(Debug)]
struct Known {
    attempt: u32,
    inbox: mpsc::Sender<Command>,
}

/// What an executor keeps about all its attempts.
#[derive(Debug)]
pub(super) struct Book {
    slots: u32,
    /// What the agent takes at once by its own word.
    places: u32,
    /// Attempts that were cut, and that it is still busy with.
    held: u32,
    running: u32,
    draining: bool,
    /// The agent is known to be unhealthy.
    unhealthy: bool,
    attempts: HashMap<TaskId, Known>,
    newest: HashMap<Key, u32>,
    remembered: VecDeque<Key>,
    unsettled: HashSet<Key>,
    keys: RandomState,
    durations: VecDeque<(Instant, Duration)>,
    grants: Grants,
    /// How homes that wait are told.
    waiting: HashMap<Claimant, mpsc::Sender<Told>>,
    /// How Starts are told that wait here for their turns.
    guests: HashMap<Claimant, oneshot::Sender<Grant>>,
    /// Starts that came before their slots.
    pub(super) line: Line,
}

impl Book {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots,
            places: u32::MAX,
            held: 0,
            running: 0,
            draining: false,
            unhealthy: false,
            attempts: HashMap::new(),
            newest: HashMap::new(),
            remembered: VecDeque::new(),
            unsettled: HashSet::new(),
            keys: RandomState::new(),
            durations: VecDeque::new(),
            // Half of the numbers: they never come around.
            grants: Grants::from(chance::number() >> 1),
            waiting: HashMap::new(),
            guests: HashMap::new(),
            line: Line::default(),
        }
    }

    /// The Start that is admitted next brings a grant, and has a slot where this is true. One that is
    /// void by now, or somebody else's, changes nothing.
    pub(super) fn redeem(&mut self, start: (&InstanceId, &str), grant: &str, now: Instant) -> bool {
        if grant.is_empty() {
            return false;
        }
        let Some(trip) = self.grants.redeem(start, grant, now) else {
            tracing::debug!(grant, "a grant came too late");
            return false;
        };
        self.line.came(trip);
        true
    }

    /// A Start with this grant was turned down for other reasons: the slot is somebody else's.
    pub(super) fn give_back(&mut self, home: &InstanceId, grant: &str, now: Instant) {
        if !grant.is_empty() {
            self.grants.give_back(home, grant, now);
            self.deal(now);
        }
    }

    /// A Start that brought no grant found no room, since others wait: it may wait for its turn, and
    /// is told of its grant then. `None`: it may not.
    pub(super) fn wait_here(
        &mut self,
        home: &InstanceId,
        share: Share,
        now: Instant,
    ) -> Option<(Claimant, oneshot::Receiver<Grant>)> {
        let who = self.grants.wait(home, share, now)?;
        let (tell, told) = oneshot::channel();
        self.guests.insert(who, tell);
        self.deal(now);
        Some((who, told))
    }

    /// Whether a Start is turned down, or known, however many slots are free: it uses no grant.
    pub(super) fn is_closed_to(&self, task: &TaskId, attempt: u32) -> bool {
        let known = self.attempts.get(task).map(|known| known.attempt);
        known == Some(attempt) || self.is_old(task, attempt) || self.draining || self.unhealthy
    }

    fn is_old(&self, task: &TaskId, attempt: u32) -> bool {
        let newest = self.newest.get(&self.key(task));
        newest.is_some_and(|newest| is_stale(*newest, attempt))
    }

    /// Decides about a Start; a slot is taken with [`Admission::Run`]. `granted`: it is its own.
    pub(super) fn admit(
        &mut self,
        task: &TaskId,
        attempt: u32,
        inbox: mpsc::Sender<Command>,
        granted: bool,
    ) -> Admission {
        let refused = |reason, retry_after| Admission::Refused {
            reason,
            retry_after,
        };
        if let Some(known) = self.attempts.get(task)
            && known.attempt == attempt
        {
            return Admission::Known(known.inbox.clone());
        }
        if self.is_old(task, attempt) {
            return refused(Reason::AttemptStale, None);
        }
        if self.draining {
            return refused(Reason::Draining, None);
        }
        if self.unhealthy {
            return refused(Reason::AgentUnavailable, Some(AGENT_RETRY));
        }
        let room = if granted { self.idle() } else { self.free(0) };
        if room == 0 {
            return refused(Reason::SlotsFull, Some(SLOTS_RETRY));
        }
        self.running += 1;
        self.remember(task, attempt);
        let known = Known { attempt, inbox };
        let older = self.attempts.insert(task.clone(), known);
        Admission::Run {
            older: older.map(|older| older.inbox),
        }
    }

    /// The attempt where it is known; otherwise it will never start here.
    pub(super) fn find(&mut self, task: &TaskId, attempt: u32) -> Found {
        if let Some(known) = self.attempts.get(task)
            && known.attempt == attempt
        {
            return Found::Known(known.inbox.clone());
        }
        self.remember(task, attempt);
        let never_begun = !self.attempts.contains_key(task)
            && !self.unsettled.contains(&self.key(task))
            && self.unsettled.len() < UNSETTLED_MAX;
        #[cfg(test)]
        let never_begun = never_begun || controls::removed(Control::NeverBegun);
        Found::Unknown { never_begun }
    }

    /// The attempt was never begun: it may come again, and older ones still may not.
    pub(super) fn unremember(&mut self, task: &TaskId, attempt: u32) {
        let key = self.key(task);
        if let Some(newest) = self.newest.get_mut(&key)
            && *newest == attempt
        {
            *newest = attempt.saturating_sub(1);
        }
    }

    /// The attempt is over here; `settled`: its home has everything, and will not ask again.
    pub(super) fn forget(&mut self, task: &TaskId, attempt: u32, settled: bool) {
        if !settled && self.unsettled.len() < UNSETTLED_MAX {
            self.unsettled.insert(self.key(task));
        }
        if self
            .attempts
            .get(task)
            .is_some_and(|known| known.attempt == attempt)
        {
            self.attempts.remove(task);
        }
    }

    /// The handler has ended or was cut after `took`.
    pub(super) fn free_slot(&mut self, took: Duration, now: Instant) {
        self.running = self.running.saturating_sub(1);
        self.line.freed(took, now);
        self.durations.push_back((now, took));
        if self.durations.len() > MEAN_SAMPLES {
            self.durations.pop_front();
        }
    }

    /// Whether the agent is fit for new work; it is until somebody knows better.
    pub(super) fn set_healthy(&mut self, healthy: bool) {
        self.unhealthy = !healthy;
    }

    /// The agent takes no more than `places` at once, whatever its card says, and is still busy with
    /// `held` attempts that were cut.
    pub(super) fn set_places(&mut self, places: u32, held: u32) {
        (self.places, self.held) = (places, held);
    }

    /// Attempts that may run at once now.
    pub(super) fn slots(&self) -> u32 {
        self.slots.min(self.places).saturating_sub(self.held)
    }

    /// Nothing new starts: nobody waits here any more.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.grants.clear();
        self.guests.clear();
        self.line.clear();
        for (_, home) in self.waiting.drain() {
            // One that is behind sees an end without a reason.
            drop(home.try_send(Err(draining().into())));
        }
    }

    /// A home opens a stream to say who waits; it is told of its grants there.
    pub(super) fn wait(
        &mut self,
        home: &InstanceId,
        tell: mpsc::Sender<Told>,
    ) -> Result<Claimant, Fault> {
        if self.draining {
            return Err(draining());
        }
        let who = self.grants.open(home)?;
        self.waiting.insert(who, tell);
        let grants = &self.grants;
        self.waiting.retain(|who, _| grants.knows(*who));
        Ok(who)
    }

    /// A home says who waits there.
    pub(super) fn say(&mut self, who: Claimant, said: Said, now: Instant) {
        self.grants.say(who, said, now);
        self.deal(now);
    }

    /// Looks after the grants of a home; `word`: says that it is not forgotten. Whether it waits.
    pub(super) fn attend(&mut self, who: Claimant, word: bool, now: Instant) -> bool {
        self.deal(now);
        let Some(home) = self.waiting.get(&who) else {
            return false;
        };
        let there = pb::SlotsResponse::default();
        !home.is_closed() && (!word || home.try_send(Ok(there)).is_ok())
    }

    /// A home waits no more, or a Start that waited.
    pub(super) fn leave(&mut self, who: Claimant, why: Option<Fault>, now: Instant) {
        self.grants.close(who);
        self.guests.remove(&who);
        if let (Some(home), Some(why)) = (self.waiting.remove(&who), why) {
            drop(home.try_send(Err(why.into())));
        }
        self.deal(now);
    }

    /// Grants what is free to those who wait.
    pub(super) fn deal(&mut self, now: Instant) {
        self.grants.expire(now);
        while self.idle() > 0 && self.line.call() {}
        let ahead = self.line.ahead(self.slots(), now);
        while self.free(ahead) > 0
            && let Some(grant) = self.grants.give(now)
        {
            let to = grant.to;
            let told = if let Some(guest) = self.guests.remove(&to) {
                guest.send(grant).is_ok()
            } else {
                let home = self.waiting.get(&to);
                home.is_some_and(|home| home.try_send(Ok(grant.message())).is_ok())
            };
            if !told {
                self.grants.close(to);
                self.waiting.remove(&to);
            }
        }
    }

    /// When claims that rest count again, if any do.
    pub(super) fn wakes(&self) -> Option<Instant> {
        self.grants.wakes()
    }

    /// Tasks that wait at homes, slots that are granted and not used, and what became of all grants.
    pub(super) fn granted(&self) -> (u64, usize, Counts) {
        let grants = &self.grants;
        (grants.waiting(), grants.reserved(), grants.counts())
    }

    /// Whether anything starts here now.
    fn starts(&self) -> bool {
        let ended = self.attempts.len().saturating_sub(self.running as usize);
        !self.draining && !self.unhealthy && ended < UNCONFIRMED_MAX
    }

    /// Slots in which nothing runs, and that nobody was called to.
    fn idle(&self) -> u32 {
        if !self.starts() {
            return 0;
        }
        let taken = self.running + self.line.called();
        self.slots().saturating_sub(taken)
    }

    /// Slots that nobody has, and nobody has been promised, with so many more than there are.
    fn free(&self, ahead: u32) -> u32 {
        if !self.starts() {
            return 0;
        }
        let reserved = u32::try_from(self.grants.reserved()).unwrap_or(u32::MAX);
        (self.idle() + ahead)
            .saturating_sub(reserved)
            .saturating_sub(self.line.len())
    }

    /// Attempts whose handler runs.
    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// Attempts that are known, running or not.
    pub(super) fn known(&self) -> usize {
        self.attempts.len()
    }

    /// Mean execution time over the last minute; `None` without a sample.
    pub(super) fn execution_mean(&mut self, now: Instant) -> Option<Duration> {
        while let Some((at, _)) = self.durations.front()
            && now.saturating_duration_since(*at) > MEAN_WINDOW
        {
            self.durations.pop_front();
        }
        let count = u32::try_from(self.durations.len()).ok()?;
        let sum: Duration = self.durations.iter().map(|(_, took)| *took).sum();
        sum.checked_div(count)
    }

    fn key(&self, task: &TaskId) -> Key {
        (self.keys.hash_one(&task.home), task.uuid)
    }

    fn remember(&mut self, task: &TaskId, attempt: u32) {
        let key = self.key(task);
        match self.newest.get_mut(&key) {
            Some(newest) => *newest = (*newest).max(attempt),
            None => {
                self.newest.insert(key, attempt);
                self.remembered.push_back(key);
            }
        }
        if self.remembered.len() > REMEMBERED_MAX
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.newest.remove(&oldest);
        }
    }
}

fn draining() -> Fault {
    Fault::new(Reason::Draining, "nothing new starts here any more")
}

/// The control that no attempt begins after a newer one, or after its home was told that it is not
/// here.
fn is_stale(newest: u32, attempt: u32) -> bool {
    #[cfg(any(test, feature = "sabotage"))]
    if controls::removed(Control::Fence) {
        return false;
    }
    #[cfg(test)]
    if controls::removed(Control::ExecutorFence) {
        return false;
    }
    attempt <= newest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> mpsc::Sender<Command> {
        mpsc::channel(1).0
    }

    fn task(number: u128) -> TaskId {
        TaskId {
            home: "i1".parse().unwrap(),
            uuid: Uuid::from_u128(number),
        }
    }

    fn told(admission: &Admission) -> &'static str {
        match admission {
            Admission::Run { older: None } => "run",
            Admission::Run { older: Some(_) } => "run, fence",
            Admission::Known(_) => "known",
            Admission::Refused { reason, .. } => reason.label(),
        }
    }

    /// Whether an attempt that is not here has never been.
    fn unknown(book: &mut Book, number: u128, attempt: u32) -> bool {
        match book.find(&task(number), attempt) {
            Found::Unknown { never_begun } => never_begun,
            Found::Known(_) => panic!("known"),
        }
    }

    #[test]
    fn what_may_have_run_is_never_called_never_begun() {
        let mut book = Book::new(8);
        assert_eq!(told(&book.admit(&task(1), 1, inbox(), false)), "run");
        assert!(matches!(book.find(&task(1), 1), Found::Known(_)));
        assert!(!unknown(&mut book, 1, 2), "an older attempt runs");
        book.forget(&task(1), 1, false);
        assert!(!unknown(&mut book, 1, 1), "it ran, and its home left");
        assert_eq!(told(&book.admit(&task(2), 1, inbox(), false)), "run");
        book.forget(&task(2), 1, true);
        assert!(unknown(&mut book, 3, 1));
        for number in 0..UNSETTLED_MAX as u128 {
            book.forget(&task(1_000 + number), 1, false);
        }
        assert_eq!(book.unsettled.len(), UNSETTLED_MAX);
        assert!(!unknown(&mut book, 4, 1), "not all that ran is known");
    }

    #[test]
    fn attempts_only_go_up() {
        let mut book = Book::new(8);
        for (attempt, said) in [
            (2, "run"),
            (2, "known"),
            (1, "ATTEMPT_STALE"),
            (3, "run, fence"),
            (2, "ATTEMPT_STALE"),
        ] {
            assert_eq!(told(&book.admit(&task(1), attempt, inbox(), false)), said);
        }
        book.forget(&task(1), 3, true);
        assert_eq!(
            told(&book.admit(&task(1), 3, inbox(), false)),
            "ATTEMPT_STALE"
        );
    }

    #[test]
    fn what_was_declared_lost_never_starts() {
        let mut book = Book::new(8);
        assert!(unknown(&mut book, 1, 1));
        assert_eq!(
            told(&book.admit(&task(1), 1, inbox(), false)),
            "ATTEMPT_STALE"
        );
        assert_eq!(told(&book.admit(&task(1), 2, inbox(), false)), "run");
    }

    #[test]
    fn what_was_never_begun_may_come_again_and_nothing_older() {
        let mut book = Book::new(8);
        let said = |book: &mut Book, attempt| told(&book.admit(&task(1), attempt, inbox(), false));
        assert_eq!(said(&mut book, 3), "run");
        book.unremember(&task(1), 3);
        book.forget(&task(1), 3, true);
        assert_eq!(said(&mut book, 2), "ATTEMPT_STALE", "an older one is late");
        assert_eq!(said(&mut book, 3), "run");
        // A newer one has come meanwhile.
        assert_eq!(said(&mut book, 4), "run, fence");
        book.unremember(&task(1), 3);
        assert_eq!(said(&mut book, 3), "ATTEMPT_STALE");
        assert_eq!(book.remembered.len(), 1);
    }

    #[test]
    fn what_an_agent_takes_at_once_bounds_its_slots_less_what_was_cut_and_goes_on() {
        for (slots, places, held, left) in [
            (4, u32::MAX, 0, 4),
            (4, 1, 0, 1),
            (4, 1024, 3, 1),
            (4, 1024, 9, 0),
            (4, 0, 0, 0),
        ] {
            let mut book = Book::new(slots);
            book.set_places(places, held);
            assert_eq!(book.slots(), left, "{slots} {places} {held}");
        }
    }

    #[test]
    fn slots_are_bounded_and_come_back() {
        let mut book = Book::new(2);
        let now = Instant::now();
        assert_eq!(told(&book.admit(&task(1), 1, inbox(), false)), "run");
        assert_eq!(told(&book.admit(&task(2), 1, inbox(), false)), "run");
        assert_eq!(told(&book.admit(&task(3), 1, inbox(), false)), "SLOTS_FULL");
        book.free_slot(Duration::from_secs(2), now);
        assert_eq!(told(&book.admit(&task(3), 1, inbox(), false)), "run");
        book.free_slot(Duration::from_secs(4), now);
        assert_eq!(book.execution_mean(now), Some(Duration::from_secs(3)));
        assert_eq!(book.execution_mean(now + 2 * MEAN_WINDOW), None);
        book.drain();
        assert_eq!(told(&book.admit(&task(4), 1, inbox(), false)), "DRAINING");
    }

    fn home(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    /// A home at which so many tasks of one origin wait.
    fn waits(book: &mut Book, name: &str, origin: &str, count: u32) -> mpsc::Receiver<Told> {
        let (tell, told) = mpsc::channel(crate::task::executor::grants::GRANTS_MAX);
        let who = book.wait(&home(name), tell).unwrap();
        let waiting = [((origin.into(), 5), count)].into();
        let said = Said {
            waiting,
            ..Said::default()
        };
        book.say(who, said, Instant::now());
        told
    }

    /// The grants that a home has been told of.
    fn grants(told: &mut mpsc::Receiver<Told>) -> Vec<String> {
        let next = || told.try_recv().ok()?.ok().map(|grant| grant.grant_id);
        std::iter::from_fn(next).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_free_is_kept_for_whoever_has_the_grant() {
        let (mut book, now) = (Book::new(2), Instant::now());
        assert_eq!(
            told(&book.admit(&task(1), 1, inbox(), false)),
            "run",
            "nobody waits"
        );
        let mut waiting = waits(&mut book, "h1", "a", 5);
        let granted = grants(&mut waiting);
        assert_eq!(granted.len(), 1);
        assert_eq!(told(&book.admit(&task(2), 1, inbox(), false)), "SLOTS_FULL");
        for (from, of, id) in [
            ("h2", "a", &*granted[0]),
            ("h1", "b", &granted[0]),
            ("h1", "a", "none"),
        ] {
            book.redeem((&home(from), of), id, now);
            assert_eq!(told(&book.admit(&task(2), 1, inbox(), false)), "SLOTS_FULL");
        }
        book.redeem((&home("h1"), "a"), &granted[0], now);
        assert_eq!(told(&book.admit(&task(2), 1, inbox(), false)), "run");
        book.redeem((&home("h1"), "a"), &granted[0], now);
        assert_eq!(
            told(&book.admit(&task(3), 1, inbox(), false)),
            "SLOTS_FULL",
            "twice"
        );
        book.deal(now);
        assert_eq!(grants(&mut waiting).len(), 0, "all run");
        book.free_slot(Duration::ZERO, now);
        book.deal(now);
        assert_eq!(grants(&mut waiting).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_granted_what_would_be_refused() {
        let (mut book, now) = (Book::new(1), Instant::now());
        book.set_healthy(false);
        let mut waiting = waits(&mut book, "h1", "a", 5);
        assert_eq!(grants(&mut waiting).len(), 0);
        book.set_healthy(true);
        book.deal(now);
        assert_eq!(grants(&mut waiting).len(), 1);
        book.drain();
        let end = waiting.try_recv().unwrap().unwrap_err();
        assert_eq!(crate::wire::status::reason_of(&end).unwrap(), "DRAINING");
        assert!(waiting.is_closed() && book.granted().1 == 0);
        let (tell, _) = mpsc::channel(1);
        assert_eq!(
            book.wait(&home("h2"), tell).unwrap_err().reason,
            Reason::Draining
        );
        // A slot whose last update nobody has acknowledged is none.
        let mut book = Book::new(1000);
        for number in 0..UNCONFIRMED_MAX as u128 {
            assert_eq!(told(&book.admit(&task(number), 1, inbox(), false)), "run");
            book.free_slot(Duration::ZERO, now);
        }
        let mut waiting = waits(&mut book, "h1", "a", 1);
        assert_eq!(grants(&mut waiting).len(), 0);
        book.forget(&task(0), 1, true);
        book.deal(now);
        assert_eq!(grants(&mut waiting).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_that_is_not_used_goes_to_the_next() {
        use crate::task::executor::grants::GRANT_LIFE;
        let (mut book, now) = (Book::new(1), Instant::now());
        let mut dead = waits(&mut book, "h1", "a", 5);
        let mut next = waits(&mut book, "h2", "b", 5);
        let first = grants(&mut dead);
        assert_eq!((first.len(), grants(&mut next).len()), (1, 0));
        assert!(book.attend(2, false, now + GRANT_LIFE));
        assert_eq!(grants(&mut next).len(), 1);
        book.redeem((&home("h1"), "a"), &first[0], now + GRANT_LIFE);
        assert_eq!(
            told(&book.admit(&task(1), 1, inbox(), false)),
            "SLOTS_FULL",
            "void"
        );
        // Its home goes, and nobody else waits: who comes without a grant is taken.
        book.leave(2, None, now);
        assert_eq!(grants(&mut dead).len(), 0, "it has something to mend");
        assert_eq!(told(&book.admit(&task(1), 1, inbox(), false)), "run");
        // One that does not read is sent away.
        let mut book = Book::new(8);
        let (tell, deaf) = mpsc::channel(1);
        let who = book.wait(&home("h1"), tell).unwrap();
        let waiting = [(("a".into(), 5), 3)].into();
        let said = Said {
            waiting,
            ..Said::default()
        };
        book.say(who, said, now);
        assert!(!book.attend(who, false, now) && deaf.is_closed());
        assert_eq!(book.granted().1, 0);
    }

    /// Whatever comes in which order: no more run than there are slots, and nobody waits in line while
    /// one is free.
    #[test]
    fn no_more_run_than_there_are_slots() {
        let steps = proptest::collection::vec((0..6_u8, 0..8_u64), 1..200);
        proptest::proptest!(|(steps in steps)| {
            const SLOTS: u32 = 3;
            let (mut book, mut now) = (Book::new(SLOTS), Instant::now());
            let mut waiting = waits(&mut book, "h1", "a", 1_000);
            let (mut held, mut line, mut next) = (Vec::new(), VecDeque::new(), 0);
            for (what, time) in steps {
                held.extend(grants(&mut waiting));
                now += Duration::from_millis(time);
                next += 1;
                match what {
                    0..3 => {
                        let grant = held.pop().unwrap_or_default();
                        let granted = book.redeem((&home("h1"), "a"), &grant, now);
                        let full = told(&book.admit(&task(next), 1, inbox(), granted)) == "SLOTS_FULL";
                        if full && granted {
                            line.push_back(book.line.stand());
                        }
                    }
                    3 if book.running() > 0 => {
                        book.free_slot(Duration::from_millis(1), now);
                    }
                    4 => drop(line.pop_back()),
                    _ => {}
                }
                book.deal(now);
                while let Some(mut first) = line.pop_front() {
                    if first.try_recv().is_err() {
                        line.push_front(first);
                        break;
                    }
                    book.line.answered();
                    next += 1;
                    assert_eq!(told(&book.admit(&task(next), 1, inbox(), true)), "run");
                }
                proptest::prop_assert!(book.running() <= SLOTS);
                proptest::prop_assert!(line.is_empty() || book.running() == SLOTS);
            }
        });
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut book = Book::new(1);
        for number in 0..REMEMBERED_MAX as u128 + 10 {
            assert!(unknown(&mut book, number, 1));
        }
        assert_eq!(book.newest.len(), REMEMBERED_MAX);
        assert_eq!(
            told(&book.admit(&task(20), 1, inbox(), false)),
            "ATTEMPT_STALE"
        );
    }
}
