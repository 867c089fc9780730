//! Carries one attempt: steps to its executor, updates back to the shard, over as many streams as
//! it takes. Decides nothing about the task; a stream that breaks is taken up again by a resume.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::Status;
use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::execute_request::Step as Ask;
use crate::pb::execute_response::Step as Answer;
use crate::runtime::{Backoff, Stop, chance, watch};
use crate::task::descendants::Wants;
use crate::task::doors::{Call, Connect, Updates};
use crate::task::journal::blobs::Blobs;
use crate::telemetry::Work;
use crate::wire::status::{failure_of, reason_of, retry_after};

use super::attempt::Heard;
use super::machine::Carrying;
use super::refused::{HERE, PERMANENT};
use super::request::Request;
use super::slots::Unused;
use super::steps::{Said, released, steps};

/// Executors say something every 10 s; a stream that is silent for longer than two of these is dead.
const SILENT: Duration = Duration::from_secs(25);
/// Longest wait for the executor's first word, where no rule says how long: dialling and its
/// handshake, and some more.
const OPEN: Duration = Duration::from_secs(20);
/// By how much the wait for a first word outlasts a rule's `timeout`: whoever judges the executor by
/// the same stream has to have its say before the stream is dropped.
const JUDGED: Duration = Duration::from_secs(1);
/// How long the last acknowledgement may take to reach the executor.
const LINGER: Duration = Duration::from_secs(5);
/// How long an executor that was told to stop is listened to.
const LINGER_ABORT: Duration = Duration::from_secs(12);
/// Waits before a broken stream is taken up again: well under the 45 s after which it is lost.
pub(super) const RESUME: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// The first word of a stream.
#[derive(Debug)]
pub(super) enum First {
    Start(Box<pb::Start>, Box<Call>),
    Resume(u64),
}

/// One attempt under way.
pub(super) struct Carrier {
    pub(super) to: Carrying,
    pub(super) first: First,
    /// Its grant, until it has gone out.
    pub(super) unused: Option<Unused>,
    pub(super) said: watch::Receiver<Said>,
    pub(super) shard: mpsc::Sender<Request>,
    pub(super) connect: Arc<dyn Connect>,
    /// Where large content is.
    pub(super) blobs: Option<Blobs>,
    /// Its span, which ends with the carrier.
    pub(super) work: Work,
}

/// How a stream ended for the carrier.
enum End {
    /// Nothing more to carry.
    Over,
    /// To be taken up again.
    Broken,
}

impl Carrier {
    /// Runs until the shard lets go, or the home stops.
    pub(super) async fn run(mut self, stop: Stop) {
        let mut guard = Guard {
            task: self.to.task,
            attempt: self.to.attempt,
            shard: Some(self.shard.clone()),
        };
        {
            let carrying = pin!(self.carry());
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    guard.shard = None;
                    return;
                }
                () = carrying => {}
            }
        }
        guard.shard = None;
        // Let go without an end that the agent told of.
        let abort = self.said.borrow().abort.clone();
        match abort.as_deref() {
            None => self.work.give_up(Reason::AgentLost.label()),
            Some(reason) if ENDED_HERE.iter().any(|known| known.label() == reason) => {
                self.work.give_up(reason);
            }
            Some(_) => {}
        }
    }

    async fn carry(&mut self) {
        if self.said.borrow().release {
            // Over before it went out, while its record waited for the disk.
            return;
        }
        let mut backoff = RESUME;
        let first = std::mem::replace(&mut self.first, First::Resume(0));
        let (mut after, first, mut call) = match first {
            First::Start(mut start, call) => {
                if !self.filled(&mut start).await {
                    return;
                }
                let left = self.to.deadline.saturating_duration_since(Instant::now());
                start.remaining = prost_types::Duration::try_from(left).ok();
                (0, Ask::Start(start), Some(call))
            }
            First::Resume(after) => (after, self.resume(after), None),
        };
        let mut next = Some(first);
        // What is on disk: the executor forgets what it is told of, and a crash would take back what
        // was heard only.
        let on_disk = after;
        loop {
            let before = after;
            let step = next.take().unwrap_or_else(|| {
                let acknowledged = self.said.borrow().ack;
                self.resume(on_disk.max(acknowledged))
            });
            let ended = self.stream(step, call.take(), &mut after).await;
            if matches!(ended, End::Over) {
                return;
            }
            if after > before {
                backoff.reset();
            }
            let wait = backoff.next(chance::fraction());
            let mut said = self.said.clone();
            tokio::select! {
                biased;
                () = sleep(wait) => {}
                () = released(&mut said) => return,
            }
        }
    }

    fn resume(&self, after_update: u64) -> Ask {
        Ask::Resume(pb::Resume {
            task_id: self.to.task_id.clone(),
            attempt: self.to.attempt,
            after_update,
        })
    }

    /// One stream, from its first word to its end.
    async fn stream(&mut self, first: Ask, call: Option<Box<Call>>, after: &mut u64) -> End {
        let fresh = call.is_some();
        let silent_at = Instant::now() + call.as_deref().map_or(OPEN, first_word_within);
        let steps = steps(first, self.said.clone());
        let mut said = self.said.clone();
        let opening = self
            .connect
            .execute(&self.to.instance, steps, call, self.work.context());
        let opened = tokio::select! {
            biased;
            opened = timeout_at(silent_at, opening) => opened,
            // What was sent cannot be called back; the executor's own deadline ends it.
            () = released(&mut said) => return End::Over,
        };
        match opened {
            Ok(Ok(updates)) => {
                if let Some(unused) = self.unused.take() {
                    unused.used();
                }
                let silent_at = fresh.then_some(silent_at);
                self.pump(updates, silent_at, after).await
            }
            Ok(Err(status)) => self.failed(&status, fresh).await,
            Err(_) => self.silent(fresh).await,
        }
    }

    /// Reads a stream to its end. `silent_at`: it is a Start's, and has to begin before that.
    async fn pump(&self, mut updates: Updates, silent_at: Option<Instant>, after: &mut u64) -> End {
        let fresh = silent_at.is_some();
        let mut said = self.said.clone();
        let mut released = pin!(released(&mut said).fuse());
        let mut heard_at = Instant::now();
        let mut silent = true;
        loop {
            let dead_at = heard_at + SILENT;
            let until = silent_at.filter(|_| silent).unwrap_or(dead_at);
            let next = tokio::select! {
                biased;
                next = timeout_at(until, updates.next()) => next,
                () = &mut released => {
                    self.linger(updates).await;
                    return End::Over;
                }
            };
            let step = match next {
                Ok(Some(Ok(response))) => response.step,
                Ok(Some(Err(status))) => return self.failed(&status, fresh && silent).await,
                Err(_) if fresh && silent => return self.silent(fresh).await,
                Ok(None) | Err(_) => {
                    self.tell(Heard::Broken(heard_at)).await;
                    return End::Broken;
                }
            };
            heard_at = Instant::now();
            silent = false;
            let Some(heard) = self.heard(step, after) else {
                self.tell(Heard::Broken(heard_at)).await;
                return End::Broken;
            };
            if !self.tell(heard).await {
                return End::Over;
            }
        }
    }

    /// What a message means; `None`: one before it is missing.
    fn heard(&self, step: Option<Answer>, after: &mut u64) -> Option<Heard> {
        Some(match step {
            Some(Answer::Accepted(_)) => Heard::Accepted,
            Some(Answer::Refused(refused)) => {
                self.work.fail(&refused.reason);
                Heard::Refused {
                    wait: refused.retry_after.and_then(|wait| wait.try_into().ok()),
                    reason: refused.reason,
                    failure: None,
                }
            }
            Some(Answer::Update(update)) if update.number == 0 => Heard::Update(update),
            // Said before: a stream that broke may repeat what was on its way.
            Some(Answer::Update(update)) if update.number <= *after => Heard::Alive,
            Some(Answer::Update(update)) if update.number > *after + 1 => return None,
            Some(Answer::Update(update)) => {
                *after = update.number;
                self.judge(&update);
                Heard::Update(update)
            }
            Some(Answer::AttemptUnknown(unknown)) => {
                self.work.fail(Reason::AgentLost.label());
                Heard::Unknown {
                    never_begun_in: unknown.never_begun.then_some(unknown.boot_id),
                }
            }
            Some(Answer::DescendantsWanted(wanted)) => Heard::Wanted(Wants {
                turn: wanted.turn,
                total: wanted.total,
            }),
            Some(Answer::Keepalive(_)) | None => Heard::Alive,
        })
    }

    /// The executor has not said a word.
    async fn silent(&self, fresh: bool) -> End {
        let now = Instant::now();
        let heard = if fresh {
            Heard::Silent(now)
        } else {
            Heard::Broken(now)
        };
        if self.tell(heard).await {
            End::Broken
        } else {
            End::Over
        }
    }

    /// A stream that ended in a status: refused as a whole, never sent, or broken.
    async fn failed(&self, status: &Status, fresh: bool) -> End {
        let reason = reason_of(status).unwrap_or_default();
        let is = |known: &[Reason]| known.iter().any(|known| known.label() == reason);
        if fresh && is(NOT_SENT) {
            self.work.fail(&reason);
            self.tell(Heard::NotSent).await;
            return End::Over;
        }
        if fresh && (is(PERMANENT) || is(HERE)) {
            self.work.fail(&reason);
            let refused = Heard::Refused {
                wait: retry_after(status),
                failure: failure_of(status).map(Box::new),
                reason,
            };
            self.tell(refused).await;
            return End::Over;
        }
        tracing::debug!(task = self.to.task_id, attempt = self.to.attempt, %status, "stream broke");
        if self.tell(Heard::Broken(Instant::now())).await {
            End::Broken
        } else {
            End::Over
        }
    }

    /// Lets the last words arrive.
    async fn linger(&self, mut updates: Updates) {
        let told_to_stop = self.said.borrow().abort.is_some();
        let grace = if told_to_stop { LINGER_ABORT } else { LINGER };
        let rest = async { while let Some(Ok(_)) = updates.next().await {} };
        if timeout(grace, rest).await.is_err() {
            tracing::debug!(
                task = self.to.task_id,
                "the executor did not end its stream"
            );
        }
    }

    /// Whether the shard is still there. Waits for room in its inbox: that is the back-pressure.
    pub(super) async fn tell(&self, heard: Heard) -> bool {
        let (task, attempt) = (self.to.task, self.to.attempt);
        let heard = Request::Heard {
            task,
            attempt,
            heard,
        };
        self.shard.send(heard).await.is_ok()
    }
}

/// How long an executor may take to say its first word in a call, with what holds the call up on
/// purpose.
pub(super) fn first_word_within(call: &Call) -> Duration {
    let patience = call.patience.map_or(OPEN, |patience| patience + JUDGED);
    patience + call.injected.delay.unwrap_or_default()
}

/// Reports a broken stream when a carrier ends in the middle: nobody else would, and the task would
/// wait for its deadline.
struct Guard {
    task: Uuid,
    attempt: u32,
    /// `None`: it ended as it should.
    shard: Option<mpsc::Sender<Request>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(shard) = self.shard.take() else {
            return;
        };
        tracing::error!(task = %self.task, attempt = self.attempt, "an attempt's carrier ended early");
        let heard = Request::Heard {
            task: self.task,
            attempt: self.attempt,
            heard: Heard::Broken(Instant::now()),
        };
        // Where there is no room now, the shard's next sweep finds the carrier gone.
        drop(shard.try_send(heard));
    }
}

/// Statuses that say that nothing was sent.
const NOT_SENT: &[Reason] = &[
    Reason::PeerUnreachable,
    Reason::PeerMismatch,
    Reason::FaultInjected,
];

/// Reasons for which the home ends an attempt by itself.
const ENDED_HERE: &[Reason] = &[
    Reason::AgentLost,
    Reason::RetriesExhausted,
    Reason::DeadlineExceeded,
];
