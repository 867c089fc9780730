//! The executor: takes streams of homes, starts attempts, finds them again, and drains.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::book::{Admission, Book, Found};
use super::door::{self, HomePeer, Work};
use super::handler::HandlerLink;
use super::offers::Offers;
use super::run::{Ended, Run};
use super::session::{Command, Session, attach, give_up};
use super::slot::{Entry, Slot};
use super::spans::Spans;
use super::suspicion::Witness;
use super::tokens::Tokens;
use super::{Answer, answer, refused};
use crate::domain::{Fault, Reason, SpiffeId};
use crate::identity::authorize::{Action, authorize};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::pb::execute_response::Step as Reply;
use crate::runtime::{Nursery, Stop, chance};
use crate::task::doors::{Parent, Steps, Updates};
use crate::telemetry::TraceContext;
use crate::telemetry::metrics::{self, Sheet, family};

/// Slots of an agent whose card does not say: enough to keep a process busy that waits for models
/// and tools, few enough that a newcomer's laptop does not choke.
pub const SLOTS: u32 = 16;
/// Messages on their way to a home's stream; behind them the unacknowledged ones wait.
const OUT_QUEUE: usize = 16;
/// Commands to an attempt's owner, which are few and rare.
const INBOX_QUEUE: usize = 4;
/// How long the first step of a stream may take.
const FIRST_STEP: Duration = Duration::from_secs(10);
/// How long cut attempts may take to tell their homes.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// How an executor is set up.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// The agent whose attempts run here; its namespace decides who may have them run.
    pub own: SpiffeId,
    /// Attempts that run at once, at least 1; [`SLOTS`] where the card says nothing.
    pub slots: u32,
    /// This incarnation of the process: changes with every start.
    pub boot_id: String,
    /// The skills that the agent offers; a Start for any other never reaches it.
    pub skills: Offers,
}

/// Runs attempts on one agent. Clones share everything.
#[derive(Clone)]
pub struct Executor {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) own: SpiffeId,
    boot_id: String,
    slots: u32,
    pub(super) skills: Mutex<Offers>,
    link: Arc<dyn HandlerLink>,
    nurseries: Vec<Nursery>,
    turn: AtomicUsize,
    pub(super) book: Mutex<Book>,
    pub(super) tokens: Tokens,
    pub(super) changed: watch::Sender<()>,
    witness: Witness,
    pub(super) stop: Stop,
}

impl Executor {
    /// An executor whose attempts run in `nurseries`, one per data thread: that of the calling
    /// thread where there is one.
    ///
    /// # Panics
    /// Without a nursery.
    pub fn new(
        config: ExecutorConfig,
        link: Arc<dyn HandlerLink>,
        nurseries: Vec<Nursery>,
    ) -> Self {
        assert!(!nurseries.is_empty(), "attempts need a runtime to run on");
        let slots = config.slots.max(1);
        Self {
            shared: Arc::new(Shared {
                own: config.own,
                boot_id: config.boot_id,
                slots,
                skills: Mutex::new(config.skills),
                link,
                nurseries,
                turn: AtomicUsize::new(0),
                book: Mutex::new(Book::new(slots)),
                tokens: Tokens::new(),
                changed: watch::Sender::new(()),
                witness: Witness::default(),
                stop: Stop::new(),
            }),
        }
    }

    /// The agent offers other skills now.
    pub fn set_skills(&self, skills: Offers) {
        *self.shared.skills.lock() = skills;
    }

    /// Whether the agent is fit for new work: while it is not, nothing is started, also for homes
    /// whose catalog has not heard of it yet. Fit until it is said otherwise.
    pub fn set_healthy(&self, healthy: bool) {
        let mut book = self.shared.book.lock();
        book.set_healthy(healthy);
        book.deal(Instant::now());
    }

    /// The agent takes no more than `places` attempts at once, whatever its card says, and is still
    /// busy with `held` that were cut. Gives how many may run now.
    pub fn set_places(&self, places: u32, held: u32) -> u32 {
        self.shared.changed.send_replace(());
        let mut book = self.shared.book.lock();
        book.set_places(places, held);
        book.deal(Instant::now());
        book.slots()
    }

    /// Moves on when calls in a row got no word out of the agent: time to look at it.
    pub fn suspicions(&self) -> watch::Receiver<u64> {
        self.shared.witness.suspicions()
    }

    /// Serves one attempt's stream of `home`, which goes below `trace`. Dropping the answer leaves
    /// the attempt alone.
    pub fn execute(&self, home: HomePeer, steps: Steps, trace: Option<TraceContext>) -> Updates {
        let (out, updates) = mpsc::channel(OUT_QUEUE);
        let executor = self.clone();
        self.nursery().start("attempt", |stop| async move {
            let stops = [stop, executor.shared.stop.clone()];
            let asked = Asked { home, steps, trace };
            executor.serve(asked, out, stops).await;
        });
        Box::pin(ReceiverStream::new(updates).map(|update| *update))
    }

    /// What the catalog says about how busy the agent is.
    pub fn load(&self) -> pb::Load {
        let mut book = self.shared.book.lock();
        pb::Load {
            running: book.running(),
            slots: book.slots(),
            execution_mean: book
                .execution_mean(Instant::now())
                .and_then(|mean| mean.try_into().ok()),
        }
    }

    /// Moves on whenever [`Executor::load`] may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Starts nothing more, waits up to `grace` until every home has every last update, then cuts
    /// what is left: its streams end with DRAINING.
    pub async fn drain(&self, grace: Duration) {
        self.shared.book.lock().drain();
        if timeout(grace, self.emptied()).await.is_err() {
            tracing::warn!(left = self.shared.book.lock().known(), "attempts are cut");
        }
        self.shared.stop.cancel();
        if timeout(CUT_GRACE, self.emptied()).await.is_err() {
            tracing::warn!("attempts did not end though they were cut");
        }
    }

    async fn emptied(&self) {
        let mut changed = self.shared.changed.subscribe();
        while self.shared.book.lock().known() > 0 {
            // The sender lives in `self`.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The nursery of the calling data thread, so that a stream and its attempt share a core.
    pub(super) fn nursery(&self) -> &Nursery {
        let all = &self.shared.nurseries;
        let own = Handle::try_current().ok().and_then(|here| {
            all.iter()
                .find(|nursery| nursery.runtime().id() == here.id())
        });
        own.unwrap_or_else(|| &all[self.shared.turn.fetch_add(1, Ordering::Relaxed) % all.len()])
    }

    async fn serve(self, asked: Asked, out: mpsc::Sender<Answer>, stops: [Stop; 2]) {
        let Asked {
            home,
            mut steps,
            trace,
        } = asked;
        let first = timeout(FIRST_STEP, steps.next()).await;
        let session = Session {
            cursor: None,
            asked: 0,
            steps: Some(steps),
            out,
        };
        let Ok(first) = first else {
            // Not the home's fault: what it said is lost where our acknowledgements do not reach it.
            // A refusal would end its task; told that the stream broke, it asks what has begun.
            let text = "the first step did not come in time: ask whether the attempt has begun";
            return session.end(Fault::new(Reason::ConnectionLost, text));
        };
        match first.and_then(|request| request.step) {
            Some(Step::Start(start)) => {
                let grant = start.grant_id.clone();
                match self.check(&home, *start) {
                    Ok(work) => {
                        let spans = Spans::begin(trace.as_ref(), &work, &home);
                        Box::pin(self.start(work, spans, session, stops)).await;
                    }
                    Err(fault) => {
                        self.free_grant(&home.instance, &grant);
                        session.end(fault);
                    }
                }
            }
            Some(Step::Resume(resume)) => self.resume(&home, &resume, session).await,
            Some(Step::Ack(_) | Step::Abort(_) | Step::DescendantsGranted(_)) | None => session
                .end(Fault::new(
                    Reason::ProtocolViolation,
                    "the first step of a stream is Start or Resume",
                )),
        }
    }

    /// Both the home and the caller that it states have to be allowed. The statement is unproved
    /// until delegation is signed; the proof will be checked here.
    fn check(&self, home: &HomePeer, start: pb::Start) -> Result<Box<Work>, Fault> {
        let skills = self.shared.skills.lock().clone();
        let namespace = self.shared.own.member.namespace();
        authorize(&home.id, Action::Execute, namespace)?;
        let work = door::start(home, start, &skills)?;
        authorize(&work.caller, Action::Execute, namespace)?;
        door::came(&work, &self.shared.own)?;
        work.offer.admit(&work.request)?;
        Ok(Box::new(work))
    }

    async fn start(&self, work: Box<Work>, spans: Spans, session: Session, stops: [Stop; 2]) {
        let (to_owner, inbox) = mpsc::channel(INBOX_QUEUE);
        let attempt = work.request.attempt;
        if work.remaining.is_zero() {
            spans.fail(Reason::DeadlineExceeded.label());
            self.free_grant(&work.task_id.home, &work.grant);
            return give_up(session, refused(Reason::DeadlineExceeded, None));
        }
        let admission = self.admit(&work, to_owner).await;
        let older = match admission {
            Admission::Run { older } => older,
            Admission::Known(owner) => return attach(&owner, session).await,
            Admission::Refused {
                reason,
                retry_after,
            } => {
                spans.fail(reason.label());
                return give_up(session, refused(reason, retry_after));
            }
        };
        let mut entry = Entry {
            shared: Arc::clone(&self.shared),
            task: work.task_id.clone(),
            attempt,
            settled: false,
        };
        let offer = Arc::clone(&work.offer);
        let (slot, request, deadline) = self.take_slot(*work, spans.below());
        if let Some(older) = older
            && older.send(Command::Fence).await.is_err()
        {
            tracing::debug!("the older attempt had ended");
        }
        let run = Run {
            link: Arc::clone(&self.shared.link),
            request,
            offer,
            deadline,
            boot_id: self.shared.boot_id.clone(),
            inbox,
            session,
            slot: Box::new(slot),
            spans,
            witness: self.shared.witness.clone(),
            stops,
        };
        let ended = run.carry().await;
        if ended == Ended::Refused {
            let mut book = self.shared.book.lock();
            book.unremember(&entry.task, attempt);
        }
        entry.settled = ended != Ended::Unsettled;
    }

    /// The slot that the book has given; with it the attempt's parent token.
    fn take_slot(
        &self,
        work: Work,
        trace: Option<TraceContext>,
    ) -> (Slot, Box<pb::HandleRequest>, Instant) {
        let began = Instant::now();
        let deadline = began + work.remaining;
        let token = new_token();
        let mut request = work.request;
        request.parent_token.clone_from(&token);
        let parent = Parent {
            task: work.task,
            attempt: request.attempt,
            deadline,
            chain: work.chain,
            trace,
        };
        let tokens = &self.shared.tokens;
        let asks = tokens.lend(token.clone(), parent, work.purse);
        self.shared.changed.send_replace(());
        let slot = Slot::new(Arc::clone(&self.shared), token, began, asks);
        (slot, request, deadline)
    }

    async fn resume(&self, home: &HomePeer, resume: &pb::Resume, mut session: Session) {
        let namespace = self.shared.own.member.namespace();
        let named = authorize(&home.id, Action::Execute, namespace)
            .and_then(|()| door::named(home, &resume.task_id, resume.attempt));
        let task = match named {
            Ok(task) => task,
            Err(fault) => return session.end(fault),
        };
        let owner = self.shared.book.lock().find(&task, resume.attempt);
        session.cursor = Some(resume.after_update);
        match owner {
            Found::Known(owner) => attach(&owner, session).await,
            Found::Unknown { never_begun } => give_up(
                session,
                answer(Reply::AttemptUnknown(pb::AttemptUnknown {
                    boot_id: self.shared.boot_id.clone(),
                    never_begun,
                })),
            ),
        }
    }
}

impl metrics::Source for Executor {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let (slots, running, known, (waiting, reserved, counts)) = {
            let book = self.shared.book.lock();
            (book.slots(), book.running(), book.known(), book.granted())
        };
        let slots = f64::from(slots);
        sheet.gauge(&family::EXECUTOR_SLOTS, [([], slots)]);
        sheet.gauge(&family::EXECUTOR_RUNNING, [([], f64::from(running))]);
        sheet.gauge(&family::EXECUTOR_KNOWN, [([], known as f64)]);
        sheet.gauge(&family::EXECUTOR_WAITING, [([], waiting as f64)]);
        sheet.gauge(&family::EXECUTOR_RESERVED, [([], reserved as f64)]);
        let outcomes = [
            (["used"], counts.used as f64),
            (["returned"], counts.returned as f64),
            (["expired"], counts.expired as f64),
        ];
        sheet.counter(&family::EXECUTOR_GRANTS, outcomes);
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("boot_id", &self.shared.boot_id)
            .field("slots", &self.shared.slots)
            .finish_non_exhaustive()
    }
}

/// Who asks for an attempt, and how.
struct Asked {
    home: HomePeer,
    steps: Steps,
    trace: Option<TraceContext>,
}

/// 256 random bits: who can guess it may spend a task's rights.
fn new_token() -> String {
    let mut bits = [0; 32];
    chance::fill(&mut bits);
    URL_SAFE_NO_PAD.encode(bits)
}
