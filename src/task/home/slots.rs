//! `Executor.Slots` from the home's side: one stream to each executor that has no room, while tasks
//! wait for it. It carries; who waits and who gets a slot is decided in `granted` and `claims`.
//!
//! Without such a stream (an executor of an earlier version, one that is away) attempts are offered
//! again and again until they are taken, as `gate` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Code;

use crate::domain::InstanceId;
use crate::pb;
use crate::runtime::{Nursery, Stop, chance, watch};
use crate::task::doors::{Connect, Grants};

use super::claims::{Claims, Report};
use super::dispatch::First;
use super::granted::Granted;
use super::request::{Request, SlotsWord};
use super::shard::Running;

/// Executors that a home waits for with a stream; for others it goes on offering attempts.
const STREAMS_MAX: usize = 256;
/// Messages on their way to an executor: what is newer is said with the next one.
const SAY_QUEUE: usize = 2;
/// Grants on their way back from shards.
const BACK_QUEUE: usize = 256;
/// How often it is said who waits, also when nothing has changed: see `SlotsRequest`.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a stream stays open when nobody waits any more: short waits come in rows.
const IDLE: Duration = Duration::from_secs(10);
/// Executors say something every 10 s; a stream that is silent for longer than two of these is dead.
const SILENT: Duration = Duration::from_secs(25);
/// How long opening may take: dialling and its handshake, and some more.
const OPEN: Duration = Duration::from_secs(20);
/// After which an executor whose stream broke, or could not be opened, is tried again.
const BROKEN: Duration = Duration::from_secs(1);
/// The same for one that does not know how: it may be replaced by a newer version.
const UNKNOWN: Duration = Duration::from_secs(60);
/// How long a grant is good for that does not say so.
const LIFE: Duration = Duration::from_secs(1);
/// Longest name of a grant that is kept: ours have 16 bytes.
const ID_MAX: usize = 64;
/// Least time between two reports of a shard, for every so many entries.
const PAUSE: (Duration, usize) = (Duration::from_millis(1), 16);
/// The longest: whoever comes new waits so long until it is heard of, and those that one report had
/// no room for.
const PAUSE_MOST: Duration = Duration::from_millis(50);

/// How long a shard lets pass before its next report: counting must not be its main work.
fn pause_after(report: &Report) -> Duration {
    if report.partial {
        return PAUSE_MOST;
    }
    let times = report.entries() / PAUSE.1;
    let pause = PAUSE.0 * u32::try_from(times + 1).unwrap_or(u32::MAX);
    pause.min(PAUSE_MOST)
}

/// A grant that goes back when this is dropped: no Start has used it.
#[derive(Debug)]
pub(super) struct Unused {
    grant: String,
    back: mpsc::Sender<String>,
}

impl Unused {
    pub(super) fn new(grant: &str, back: &mpsc::Sender<String>) -> Self {
        let (grant, back) = (grant.to_owned(), back.clone());
        Self { grant, back }
    }

    /// A Start has gone out with it.
    pub(super) fn used(mut self) {
        self.grant.clear();
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        if !self.grant.is_empty() {
            // Where that does not reach the executor, the grant is void soon.
            drop(self.back.try_send(std::mem::take(&mut self.grant)));
        }
    }
}

impl First {
    /// The grant that it uses.
    pub(super) fn grant(&self) -> Option<&str> {
        match self {
            Self::Start(start, _) => Some(&*start.grant_id).filter(|grant| !grant.is_empty()),
            Self::Resume(_) => None,
        }
    }
}

impl Running {
    /// Tells of those who wait for executors without room, if that has changed and it is time.
    pub(super) fn say_who_waits(&mut self, now: Instant) {
        if self.shard.tasks.lanes.moved && self.says_at <= now {
            let report = self.shard.tasks.report();
            self.says_at = now + pause_after(&report);
            self.shard.board.say(self.shard.place, report);
        }
    }
}

/// What all shards say about those who wait.
#[derive(Debug)]
pub(super) struct Board {
    reports: Mutex<Vec<Arc<Report>>>,
    changed: watch::Sender<u64>,
    grants: AtomicU64,
}

impl Board {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            reports: Mutex::new(vec![Arc::default(); shards]),
            changed: watch::Sender::new(0),
            grants: AtomicU64::new(0),
        }
    }

    /// What the shard `place` says now.
    pub(super) fn say(&self, place: usize, report: Report) {
        let report = Arc::new(report);
        let mut reports = self.reports.lock();
        if reports.get(place).is_some_and(|before| *before != report) {
            reports[place] = report;
            drop(reports);
            self.changed.send_modify(|number| *number += 1);
        }
    }

    fn read(&self) -> Vec<Arc<Report>> {
        self.reports.lock().clone()
    }

    fn number(&self) -> u64 {
        self.grants.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Opens streams to executors as somebody waits for them.
#[derive(Clone)]
pub(super) struct Desk {
    board: Arc<Board>,
    inboxes: Vec<mpsc::Sender<Request>>,
    connect: Arc<dyn Connect>,
    nursery: Nursery,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// Starts at it, for shards with these inboxes.
    pub(super) fn start(
        board: Arc<Board>,
        inboxes: &[mpsc::Sender<Request>],
        connect: &Arc<dyn Connect>,
        nursery: &Nursery,
    ) {
        let desk = Self {
            board,
            inboxes: inboxes.to_vec(),
            connect: connect.clone(),
            nursery: nursery.clone(),
        };
        nursery.start("slots", |stop| desk.run(stop));
    }

    async fn run(self, stop: Stop) {
        let mut changed = self.board.changed.subscribe();
        let (over, mut ended) = mpsc::channel::<(InstanceId, Duration)>(STREAMS_MAX);
        let mut open: BTreeSet<InstanceId> = BTreeSet::new();
        let mut later: BTreeMap<InstanceId, Instant> = BTreeMap::new();
        loop {
            let now = Instant::now();
            later.retain(|_, at| *at > now);
            for report in self.board.read() {
                for instance in report.waiting.keys() {
                    let room = open.len() < STREAMS_MAX && !later.contains_key(instance);
                    if room && open.insert(instance.clone()) {
                        let line = Line {
                            instance: instance.clone(),
                            desk: self.clone(),
                        };
                        let over = over.clone();
                        self.nursery.start("slots", |stop| line.run(over, stop));
                    }
                }
            }
            let next = later.values().min().copied();
            let next = next.unwrap_or(now + UNKNOWN);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((instance, pause)) = ended.recv() => {
                    open.remove(&instance);
                    if !pause.is_zero() {
                        // Not all homes at once.
                        let pause = pause.mul_f64(0.5 + chance::fraction() / 2.0);
                        later.insert(instance, Instant::now() + pause);
                    }
                }
                gone = changed.changed() => if gone.is_err() { return },
                () = sleep_until(next) => {}
            }
        }
    }
}

/// The stream to one executor.
struct Line {
    instance: InstanceId,
    desk: Desk,
}

impl Line {
    /// Until nobody waits, or the stream ends; `over` is told when it may be tried again.
    async fn run(self, over: mpsc::Sender<(InstanceId, Duration)>, stop: Stop) {
        let pause = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            pause = self.keep() => pause,
        };
        // Nobody hears of it when the home ends.
        drop(over.send((self.instance, pause)).await);
    }

    async fn keep(&self) -> Duration {
        let (say, said) = mpsc::channel(SAY_QUEUE);
        let claims = Box::pin(ReceiverStream::new(said));
        let opening = self.desk.connect.slots(&self.instance, claims);
        let grants = match timeout(OPEN, opening).await {
            Ok(Ok(grants)) => grants,
            Ok(Err(status)) => {
                tracing::debug!(instance = %self.instance, %status, "grants no slots");
                let known = status.code() != Code::Unimplemented;
                return if known { BROKEN } else { UNKNOWN };
            }
            Err(_) => return BROKEN,
        };
        self.tell(true).await;
        let pause = self.follow(say, grants).await;
        self.tell(false).await;
        pause
    }

    /// Whether slots are granted there, to all shards.
    async fn tell(&self, grants: bool) {
        for shard in &self.desk.inboxes {
            let instance = self.instance.clone();
            // A shard that has ended needs not know.
            let word = SlotsWord::Grants { instance, grants };
            drop(shard.send(Request::Slots(word)).await);
        }
    }

    /// Says who waits, and hands the slots that come to shards.
    async fn follow(&self, say: mpsc::Sender<pb::SlotsRequest>, mut grants: Grants) -> Duration {
        let mut changed = self.desk.board.changed.subscribe();
        let mut claims = Claims::new(self.desk.inboxes.len());
        let (back, mut unused) = mpsc::channel(BACK_QUEUE);
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let opened_at = Instant::now();
        let (mut heard_at, mut waited_at) = (opened_at, opened_at);
        let (mut repeat, mut news) = (false, false);
        self.count(&mut claims);
        loop {
            tokio::select! {
                biased;
                granted = grants.next() => match granted {
                    Some(Ok(grant)) => {
                        heard_at = Instant::now();
                        self.hand(&mut claims, grant, &back).await;
                        // One that nobody needs goes back at once.
                        news = true;
                    }
                    ended => {
                        tracing::debug!(instance = %self.instance, ?ended, "grants no more slots");
                        // Connections end at their age: then there is another one.
                        let lived = opened_at.elapsed() > IDLE;
                        return if lived { Duration::ZERO } else { BROKEN };
                    }
                },
                Some(grant) = unused.recv() => {
                    claims.give_back(grant);
                    news = true;
                }
                gone = changed.changed() => {
                    if gone.is_err() {
                        return BROKEN;
                    }
                    self.count(&mut claims);
                    news = true;
                }
                _ = again.tick() => repeat = true,
                room = say.reserve(), if news || repeat => {
                    let Ok(room) = room else { return BROKEN };
                    if let Some(said) = claims.say(repeat) {
                        room.send(said);
                    }
                    (repeat, news) = (false, false);
                }
            }
            let now = Instant::now();
            if !claims.is_empty() {
                waited_at = now;
            }
            if now > waited_at + IDLE {
                return Duration::ZERO;
            }
            if now > heard_at + SILENT {
                return BROKEN;
            }
        }
    }

    fn count(&self, claims: &mut Claims) {
        for (place, report) in self.desk.board.read().iter().enumerate() {
            claims.report(place, report, &self.instance);
        }
    }

    /// Hands a slot to the shard whose turn it is.
    async fn hand(
        &self,
        claims: &mut Claims,
        grant: pb::SlotsResponse,
        back: &mpsc::Sender<String>,
    ) {
        if grant.grant_id.is_empty() || grant.grant_id.len() > ID_MAX {
            return;
        }
        let number = self.desk.board.number();
        let Some(place) = claims.grant(&grant, number) else {
            return;
        };
        let life = grant.expires_in.and_then(|life| life.try_into().ok());
        let granted = Granted {
            instance: self.instance.clone(),
            id: grant.grant_id,
            number,
            origin: grant.origin.into(),
            priority: grant.priority,
            until: Instant::now() + life.unwrap_or(LIFE).min(LIFE),
        };
        let granted = Request::Slots(SlotsWord::Granted {
            grant: Box::new(granted),
            back: back.clone(),
        });
        // A shard that has ended lets it become void.
        drop(self.desk.inboxes[place].send(granted).await);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Fault, Reason};
    use crate::task::doors::{Call, Steps, Updates};
    use crate::task::home::dispatch::Carrier;
    use crate::task::home::machine::Carrying;
    use crate::task::home::steps::Said;
    use crate::telemetry::{TraceContext, Work};

    /// Nobody can be reached, or whoever is says nothing.
    struct Line(bool);

    #[tonic::async_trait]
    impl Connect for Line {
        async fn execute(
            &self,
            _: &InstanceId,
            _: Steps,
            _: Option<Box<Call>>,
            _: Option<&TraceContext>,
        ) -> Result<Updates, tonic::Status> {
            let none = tokio_stream::pending();
            let lost = Fault::new(Reason::PeerUnreachable, "no");
            self.0
                .then(|| Box::pin(none) as Updates)
                .ok_or_else(|| lost.into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_goes_back_with_which_no_start_went_out() {
        for (reached, release, goes_back) in [
            (true, false, false),
            (true, true, true),
            (false, false, true),
        ] {
            let (back, mut unused) = mpsc::channel(1);
            let (shard, _heard) = mpsc::channel(8);
            let (_say, said) = watch::channel(Said {
                release,
                ..Said::default()
            });
            let carrier = Carrier {
                to: Carrying {
                    task: Uuid::nil(),
                    task_id: "h.1".into(),
                    attempt: 1,
                    instance: "i1".parse().unwrap(),
                    deadline: Instant::now() + AGAIN,
                },
                first: First::Start(Box::default(), Box::default()),
                unused: Some(Unused::new("g1", &back)),
                said,
                shard,
                connect: Arc::new(Line(reached)),
                blobs: None,
                work: Work::none(),
            };
            drop(timeout(AGAIN, carrier.run(Stop::new())).await);
            drop(back);
            let expected = goes_back.then(|| "g1".to_owned());
            assert_eq!(unused.recv().await, expected, "{reached} {release}");
        }
    }

    #[test]
    fn counting_takes_little_time_and_nobody_waits_for_it_long() {
        let key = |number: u32| (format!("o{number}").into(), 5, "work.do".into());
        for (entries, pause) in [(0, 1), (15, 1), (16, 2), (320, 21), (100_000, 50)] {
            let waiting = (0..entries).map(|number| (key(number), 1)).collect();
            let mut report = Report {
                waiting: [("i1".parse().unwrap(), waiting)].into(),
                ..Report::default()
            };
            assert_eq!(pause_after(&report), Duration::from_millis(pause));
            report.partial = true;
            assert_eq!(pause_after(&report), PAUSE_MOST);
        }
    }
}
