//! One attempt's owner: carries messages between the handler and whoever is the home's stream.
//!
//! The decisions are [`Course`]'s and [`Attempt`]'s; everything here waits, and every wait has an
//! end: the deadline, the grace, or [`ORPHAN_KEEP`] after the home's stream broke.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Status};

use super::attempt::{Attempt, Last, Phase};
use super::call::{Asking, Handler, Heard, ask};
use super::course::{Course, Said, Verdict};
use super::handler::HandlerLink;
use super::offers::Offer;
use super::refusal::refusal;
use super::session::{Command, Session, gone, send, step};
use super::spans::Spans;
use super::suspicion::Witness;
use super::{accepted, answer};
use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::pb::execute_response::Step as Reply;
use crate::runtime::{Stop, watch};
use crate::task::descendants::{Given, Wants};

/// How long an attempt whose home is gone is kept: a home comes back after a restart within it.
pub const ORPHAN_KEEP: Duration = Duration::from_secs(60);
/// How often an idle stream says that the attempt is alive: a home gives up after 45 s.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a Start is neither accepted nor refused. Dialling the own machine fails at once, and
/// some gRPC servers send their headers with the first update only.
const OPENING: Duration = Duration::from_millis(250);

/// What the attempt has of the executor; it is given back when this is dropped.
pub(super) trait Guard: Send {
    /// The attempt is not wanted any more: what it asked of others goes with it. Gives how many tasks
    /// were made below it, or may yet be by those.
    fn disown(&self) -> u32;

    /// Whether any were: then it has begun, whatever it says.
    fn has_children(&self) -> bool;

    /// Moves when more tasks may have to be asked for.
    fn asks(&self) -> watch::Receiver<()>;

    /// What the home is asked for, and has not answered.
    fn wants(&self) -> Option<Wants>;

    /// It has answered.
    fn given(&self, given: Given);
}

/// How an attempt ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The handler never saw it.
    Refused,
    /// Its home has everything.
    Settled,
    /// It was cut, or its home left or did not say that it has everything.
    Unsettled,
}

/// All that an attempt's owner needs.
pub(super) struct Run {
    pub(super) link: Arc<dyn HandlerLink>,
    pub(super) request: Box<pb::HandleRequest>,
    /// What its skill promises.
    pub(super) offer: Arc<Offer>,
    pub(super) deadline: Instant,
    pub(super) boot_id: String,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) session: Session,
    /// Slot and parent token; let go when the handler has ended or was cut.
    pub(super) slot: Box<dyn Guard>,
    pub(super) spans: Spans,
    /// Told of the handler's first words.
    pub(super) witness: Witness,
    /// The runtime's, and the executor's own.
    pub(super) stops: [Stop; 2],
}

impl Run {
    /// Carries the attempt to its end.
    pub(super) async fn carry(self) -> Ended {
        let (task_id, number) = task_of(&self.request);
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        let (link, request) = (Arc::clone(&self.link), self.request);
        let trace = self.spans.below();
        let mut handler = Handler::Opening(Box::pin(async move {
            link.handle(*request, remaining, trace.as_ref()).await
        }));
        let mut first = None;
        match timeout(OPENING, handler.next()).await {
            Ok(Heard::Said(said)) => first = Some(said),
            Ok(Heard::Opened) | Err(_) => {}
        }
        if let Some(said) = &first
            && let Some(wait) = refusal(said)
            && !self.slot.has_children()
        {
            self.witness.saw(said);
            self.session.refuse(&task_id, said, wait, &self.spans);
            return Ended::Refused;
        }
        let mut owner = Owner {
            asks: self.slot.asks(),
            wants: None,
            attempt: Attempt::new(),
            course: Course::new(self.deadline),
            handler,
            offer: self.offer,
            link: self.link,
            asking: None,
            session: None,
            orphan_since: Instant::now(),
            unwanted: false,
            spoke: false,
            refused: false,
            slot: Some(self.slot),
            spans: self.spans,
            witness: self.witness,
            task_id,
            number,
            boot_id: self.boot_id,
        };
        owner.attach(self.session);
        if let Some(said) = first {
            owner.heard(Heard::Said(said));
        }
        owner.run(self.inbox, &self.stops).await;
        if owner.refused {
            Ended::Refused
        } else if owner.is_settled() && !owner.unwanted {
            Ended::Settled
        } else {
            Ended::Unsettled
        }
    }
}

struct Owner {
    attempt: Attempt,
    course: Course,
    handler: Handler,
    offer: Arc<Offer>,
    link: Arc<dyn HandlerLink>,
    asking: Option<Asking>,
    session: Option<Session>,
    orphan_since: Instant,
    /// The home does not want it any more.
    unwanted: bool,
    /// The handler's first words are known.
    spoke: bool,
    /// They were that it has not begun.
    refused: bool,
    slot: Option<Box<dyn Guard>>,
    asks: watch::Receiver<()>,
    /// Tasks that the home was not heard to give.
    wants: Option<Wants>,
    spans: Spans,
    witness: Witness,
    task_id: String,
    number: u32,
    boot_id: String,
}

impl Owner {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Command>, stops: &[Stop; 2]) {
        let mut keepalive = Instant::now() + KEEPALIVE;
        // Made once: to make and drop them again with every message costs more than the message.
        let mut stopped = pin!(stopped(stops));
        let mut wake = pin!(sleep_until(keepalive));
        while !self.refused && !self.is_settled() {
            let orphan_ends = self
                .session
                .is_none()
                .then(|| self.orphan_since + ORPHAN_KEEP);
            let listens = self.attempt.has_room() && !self.course.is_over();
            let (steps, out, unsent) = match &mut self.session {
                Some(session) => {
                    let unsent = session.unsent(&self.attempt, self.wants);
                    (session.steps.as_mut(), Some(&session.out), unsent)
                }
                None => (None, None, None),
            };
            let due = [orphan_ends, self.course.wake_at(), Some(keepalive)];
            let due = due.into_iter().flatten().min().unwrap_or(keepalive);
            if wake.deadline() != due {
                wake.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                () = &mut stopped => return self.leave(Reason::Draining, "this sidecar stops"),
                command = inbox.recv() => match command {
                    Some(Command::Attach(session)) => self.attach(*session),
                    Some(Command::Fence) => {
                        return self.leave(Reason::AttemptStale, "a newer attempt has begun here");
                    }
                    None => return,
                },
                () = &mut wake => {
                    let now = Instant::now();
                    if orphan_ends.is_some_and(|ends| ends <= now) {
                        tracing::warn!(task = self.task_id, "cut: its home did not come back");
                        self.spans.fail("ORPHANED");
                        return;
                    }
                    let verdict = self.course.tick(now);
                    self.follow(verdict);
                    if keepalive <= now {
                        self.tell(Reply::Keepalive(pb::ExecuteKeepalive {}));
                        keepalive = now + KEEPALIVE;
                    }
                }
                step = step(steps) => self.step(step),
                () = gone(out) => self.detach(),
                sent = send(out, unsent) => {
                    if let Some(session) = &mut self.session {
                        session.sent(sent);
                    }
                    keepalive = Instant::now() + KEEPALIVE;
                }
                // Where the token is over nothing is asked for any more.
                Ok(()) = self.asks.changed(), if self.slot.is_some() => self.look(),
                asked = ask(&mut self.asking) => self.asked(&asked),
                heard = self.handler.next(), if listens => self.heard(heard),
            }
        }
    }

    /// Whether nothing is left to do; ends a stream on which nothing more can come.
    fn is_settled(&mut self) -> bool {
        let last = self.attempt.last();
        if let Some(session) = &self.session
            && match self.attempt.phase() {
                Phase::Open => false,
                // The home ended its side and cannot acknowledge any more.
                Phase::Closed => session.steps.is_none() && session.cursor == Some(last),
                Phase::Settled => true,
            }
        {
            // Nobody comes back for what was aborted and told: kept, it would fill the book.
            if self.unwanted && self.attempt.acknowledge(last).is_err() {
                tracing::debug!(task = self.task_id, "an update that was said is unknown");
            }
            self.detach();
        }
        self.attempt.phase() == Phase::Settled && self.course.is_over()
    }

    fn attach(&mut self, mut session: Session) {
        let from = session
            .cursor
            .unwrap_or_else(|| self.attempt.acknowledged());
        if let Err(error) = self.attempt.resume(from) {
            return session.end(Fault::new(Reason::ProtocolViolation, error.to_string()));
        }
        session.cursor = Some(from);
        if let Some(before) = self.session.replace(session) {
            let text = "another stream of this attempt took its place";
            before.end(Fault::new(Reason::AttemptStale, text));
        }
        self.tell(accepted(&self.boot_id));
    }

    fn detach(&mut self) {
        self.session = None;
        self.orphan_since = Instant::now();
    }

    /// What may be left out when the stream is full.
    fn tell(&self, reply: Reply) {
        if let Some(session) = &self.session
            && session.out.try_send(Box::new(Ok(answer(reply)))).is_err()
        {
            tracing::trace!(task = self.task_id, "the home's stream is full");
        }
    }

    /// Looks what the handler's children need.
    fn look(&mut self) {
        self.wants = self.slot.as_ref().and_then(|slot| slot.wants());
    }

    fn given(&mut self, granted: &pb::DescendantsGranted) {
        if let Some(slot) = &self.slot {
            slot.given(granted.into());
        }
        self.look();
    }

    fn step(&mut self, step: Option<pb::ExecuteRequest>) {
        let step = match step {
            None => {
                // Its end may come before the stream's own: `gone` tells whether the home left.
                if let Some(session) = &mut self.session {
                    session.steps = None;
                }
                return;
            }
            Some(request) => request.step,
        };
        let wrong = match step {
            Some(Step::Ack(ack)) => match self.attempt.acknowledge(ack.update) {
                Ok(()) => return,
                Err(error) => error.to_string(),
            },
            Some(Step::DescendantsGranted(granted)) => return self.given(&granted),
            Some(Step::Abort(abort)) => {
                self.unwanted = true;
                let verdict = self.course.abort(&abort.reason, Instant::now());
                return self.follow(verdict);
            }
            Some(Step::Start(_) | Step::Resume(_)) => {
                "Start and Resume are first on their stream only".into()
            }
            None => "a step without content, or of a newer version".into(),
        };
        if let Some(session) = self.session.take() {
            session.end(Fault::new(Reason::ProtocolViolation, wrong));
        }
        self.detach();
    }

    fn heard(&mut self, heard: Heard) {
        let Heard::Said(said) = heard else { return };
        if !std::mem::replace(&mut self.spoke, true) {
            self.witness.saw(&said);
            let begun = self.slot.as_ref().is_some_and(|slot| slot.has_children());
            if self.course.is_running()
                && let Some(wait) = refusal(&said)
                && !begun
            {
                return self.refuse(&said, wait);
            }
        }
        let said = self.offer.judge(said);
        let verdict = self.course.hear(said, Instant::now());
        self.follow(verdict);
    }

    /// The home believes that it runs, and has heard nothing of it. Where its stream is broken it
    /// finds out by a resume: the attempt is forgotten as never begun.
    fn refuse(&mut self, said: &Said, wait: Duration) {
        self.refused = true;
        self.handler = Handler::Closed;
        self.slot = None;
        if let Some(session) = self.session.take() {
            session.refuse(&self.task_id, said, wait, &self.spans);
        }
    }

    fn asked(&mut self, asked: &Result<(), Status>) {
        self.asking = None;
        if let Err(status) = asked
            && status.code() == Code::Unimplemented
        {
            let verdict = self.course.deaf();
            self.follow(verdict);
        }
    }

    fn follow(&mut self, verdict: Option<Verdict>) {
        match verdict {
            Some(Verdict::Transient(update)) => self.tell(Reply::Update(pb::NumberedUpdate {
                update: Some(update),
                ..pb::NumberedUpdate::default()
            })),
            Some(Verdict::Update(update)) => {
                self.attempt.push(update, None);
            }
            Some(Verdict::Last { update, cut }) => {
                self.spans.judge(&update);
                // From here on it makes no more: what is told is all.
                let used = self.slot.as_ref().map_or(0, |slot| slot.disown());
                self.attempt.push(update, Some(Last { cut, used }));
            }
            Some(Verdict::AskToStop(reason)) => {
                // Now, not when the handler has ended: a tree of tasks stops at once.
                if let Some(slot) = &self.slot {
                    slot.disown();
                }
                let link = Arc::clone(&self.link);
                let request = pb::CancelRequest {
                    task_id: self.task_id.clone(),
                    attempt: self.number,
                    reason,
                };
                self.asking = Some(Box::pin(async move { link.cancel(request).await }));
            }
            None => {}
        }
        if self.course.is_over() {
            // Dropping the stream resets it; only then is the slot free.
            self.handler = Handler::Closed;
            self.asking = None;
            self.slot = None;
            self.wants = None;
            self.spans.handled();
        }
    }

    fn leave(&mut self, reason: Reason, text: &str) {
        self.spans.fail(reason.label());
        if let Some(session) = self.session.take() {
            session.end(Fault::new(reason, text));
        }
    }
}

fn task_of(request: &pb::HandleRequest) -> (String, u32) {
    let id = request.task.as_ref().map(|task| task.id.clone());
    (id.unwrap_or_default(), request.attempt)
}

async fn stopped([one, other]: &[Stop; 2]) {
    tokio::select! {
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}
