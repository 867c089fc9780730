//! What an attempt's stream says about the instance that it goes to: heard on the way, told to the
//! instance's endpoint, and never changed.
//!
//! An instance is judged by whether it takes work and answers; what an agent makes of a task is its
//! own affair. The whole of it is [`of_status`], [`of_refusal`] and [`of_end`].

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_stream::Stream;
use tonic::{Code, Status};

use crate::{
    domain::{AgentName, Reason},
    pb::{self, execute_response::Step, handle_response::Update},
    registry::client::Entry,
    resilience::{Outcome, Permit, Trip, Turn},
    task::Updates,
    wire::status::{reason_of, retry_after},
};

/// How long an executor may take to say whether it takes an attempt. It does within a quarter of a
/// second; the rest is for dialling, the network and a busy machine.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(5);

/// A call that is judged.
pub(super) struct Judge {
    permit: Permit,
    entry: Option<Arc<Entry>>,
}

impl Judge {
    /// Judges the instance of `entry`; `None`: one that has left the catalog.
    pub(super) fn new(permit: Permit, entry: Option<Arc<Entry>>) -> Self {
        Self { permit, entry }
    }

    /// Sees a call through from now on. With `patience` a first word is expected within it.
    ///
    /// # Errors
    /// As `opening` fails.
    pub(super) async fn over(
        mut self,
        opening: impl Future<Output = Result<Updates, Status>>,
        patience: Option<Duration>,
    ) -> Result<Updates, Status> {
        let now = Instant::now();
        self.permit.sent(now);
        let silent_at = patience.map(|patience| now + patience);
        let mut opening = pin!(opening);
        let opened = match silent_at {
            None => opening.await,
            Some(silent_at) => match timeout_at(silent_at, &mut opening).await {
                Ok(opened) => opened,
                Err(_) => {
                    self.finish(Outcome::Failure);
                    opening.await
                }
            },
        };
        let updates = opened.inspect_err(|status| self.finish(of_status(status)))?;
        Ok(Box::pin(Judged {
            updates,
            judge: Some(self),
            patience: silent_at.map(|silent_at| Box::pin(sleep_until(silent_at))),
            updated: false,
        }))
    }

    fn taken(&mut self) {
        self.permit.taken();
    }

    fn first_update(&mut self) {
        let turn = self.permit.first_message(Instant::now());
        self.tell(turn);
    }

    /// Only the first time counts.
    fn finish(&mut self, outcome: Outcome) {
        let permit = std::mem::take(&mut self.permit);
        let turn = permit.finish(outcome, Instant::now(), rand::random());
        self.tell(turn);
    }

    fn tell(&self, turn: Option<Turn>) {
        let entry = self.entry.as_ref();
        let instance = entry.map_or("", |entry| entry.instance_id.as_str());
        tell(turn, (instance, entry.map(|entry| &entry.agent)));
    }
}

/// An attempt's updates, and who listens to them.
struct Judged {
    updates: Updates,
    /// `None`: there is nothing more to learn.
    judge: Option<Judge>,
    /// Until the first word.
    patience: Option<Pin<Box<Sleep>>>,
    updated: bool,
}

impl Judged {
    fn hear(&mut self, said: Option<&Result<pb::ExecuteResponse, Status>>) {
        self.patience = None;
        let outcome = match said {
            Some(Ok(response)) => self.step(response.step.as_ref()),
            Some(Err(status)) => Some(of_status(status)),
            // A stream ends after the last word, and that was not it.
            None => Some(Outcome::Failure),
        };
        if let Some(outcome) = outcome
            && let Some(mut judge) = self.judge.take()
        {
            judge.finish(outcome);
        }
    }

    fn step(&mut self, step: Option<&Step>) -> Option<Outcome> {
        let judge = self.judge.as_mut()?;
        match step {
            Some(Step::Accepted(_)) => {
                judge.taken();
                None
            }
            Some(Step::Refused(refused)) => {
                let wait = refused.retry_after.and_then(|wait| wait.try_into().ok());
                if refused.reason == Reason::AgentUnavailable.label()
                    && let Some(wait) = wait
                {
                    judge.permit.pause(wait, Instant::now());
                }
                Some(of_refusal(&refused.reason, wait))
            }
            Some(Step::Update(update)) => {
                let said = update.update.as_ref().and_then(|said| said.update.as_ref());
                let end = said.and_then(|said| of_end(said, self.updated));
                self.updated = true;
                // One that begins with its own failure has not answered.
                if end.is_none_or(|end| end == Outcome::Success) {
                    judge.first_update();
                }
                end
            }
            // Another run of the process: what this one would have done is not known.
            Some(Step::AttemptUnknown(_)) => Some(Outcome::Neutral),
            Some(Step::Keepalive(_) | Step::DescendantsWanted(_)) | None => None,
        }
    }
}

impl Stream for Judged {
    type Item = Result<pb::ExecuteResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.updates.as_mut().poll_next(context) {
            Poll::Ready(said) => {
                if self.judge.is_some() {
                    self.hear(said.as_ref());
                }
                Poll::Ready(said)
            }
            Poll::Pending => {
                if let Some(patience) = &mut self.patience
                    && patience.as_mut().poll(context).is_ready()
                {
                    self.patience = None;
                    if let Some(mut judge) = self.judge.take() {
                        judge.finish(Outcome::Failure);
                    }
                }
                Poll::Pending
            }
        }
    }
}

/// What a status says that a stream did not begin with, or ended in.
fn of_status(status: &Status) -> Outcome {
    let reason = reason_of(status);
    let reason = reason.as_deref().and_then(known);
    match reason {
        Some(Reason::FaultInjected) => Outcome::Neutral,
        // The whole attempt's, which the task set.
        None if status.code() == Code::DeadlineExceeded => Outcome::Neutral,
        None if status.code() == Code::ResourceExhausted => Outcome::Overload(retry_after(status)),
        Some(
            Reason::PeerUnreachable
            | Reason::PeerMismatch
            | Reason::ConnectionLost
            | Reason::Internal,
        )
        | None => Outcome::of(status.code()),
        Some(other) => of_refusal(other.label(), retry_after(status)),
    }
}

/// What a refusal of an attempt says.
fn of_refusal(reason: &str, wait: Option<Duration>) -> Outcome {
    match known(reason) {
        // How many it takes is said by its slots, and the home keeps to them.
        Some(Reason::SlotsFull | Reason::Draining | Reason::DeadlineExceeded) | None => {
            Outcome::Neutral
        }
        Some(Reason::AgentUnavailable) => Outcome::Failure,
        Some(Reason::QueueFull | Reason::RateLimited | Reason::DiskFull) => Outcome::Overload(wait),
        Some(_) => Outcome::Success,
    }
}

/// What the last word of an attempt says; `None`: it is not the last one. `updated`: others came
/// before it.
fn of_end(update: &Update, updated: bool) -> Option<Outcome> {
    Some(match update {
        Update::Failure(failure) => match known(&failure.reason) {
            Some(Reason::AgentLost) => Outcome::Failure,
            Some(Reason::DeadlineExceeded) => Outcome::Neutral,
            _ if updated => Outcome::Success,
            _ => of_first_failure(Code::from_i32(failure.code)),
        },
        Update::Canceled(_) => Outcome::Neutral,
        Update::Result(_) | Update::Rejection(_) | Update::Question(_) | Update::Delegation(_) => {
            Outcome::Success
        }
        Update::Progress(_)
        | Update::Message(_)
        | Update::Artifact(_)
        | Update::Usage(_)
        | Update::Checkpoint(_)
        | Update::Transient(_) => return None,
    })
}

/// What it says when an agent answers with a failure, and nothing before it.
fn of_first_failure(code: Code) -> Outcome {
    if code == Code::Unavailable {
        Outcome::Failure
    } else if code == Code::ResourceExhausted {
        Outcome::Overload(None)
    } else {
        Outcome::Success
    }
}

fn known(label: &str) -> Option<Reason> {
    let mut all = Reason::ALL.iter().copied();
    all.find(|reason| reason.label() == label)
}

/// Says once that an instance's breaker turned.
pub(super) fn tell(turn: Option<Turn>, (instance, agent): (&str, Option<&AgentName>)) {
    let Some(turn) = turn else { return };
    let agent = agent.map(ToString::to_string).unwrap_or_default();
    match turn {
        Turn::Opened { why, cool_down } => {
            let why = because(why);
            tracing::warn!(
                instance,
                agent,
                why,
                ?cool_down,
                "breaker opened: no work goes there for a while"
            );
        }
        Turn::Closed => tracing::info!(instance, agent, "breaker closed: work goes there again"),
    }
}

/// A trip, for people.
fn because(why: Trip) -> String {
    match why {
        Trip::Consecutive(count) => format!("{count} failures in a row"),
        Trip::Rate { good, all } => format!("{good} of {all} calls went well"),
        Trip::Probe => "the probe failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::{StreamExt, stream};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{
        domain::Fault,
        resilience::{Ask, Endpoint, Epoch, Member, Pick, Set, Sight},
    };

    const WAIT: Duration = Duration::from_secs(3);

    fn status(reason: Reason) -> Status {
        Fault::new(reason, "why").retry_after(WAIT).into()
    }

    fn failure(reason: Reason, code: Code) -> Update {
        Update::Failure(pb::Failure {
            reason: reason.label().into(),
            code: code.into(),
            ..Default::default()
        })
    }

    #[test]
    fn what_each_status_says_of_its_instance() {
        use Outcome::{Failure, Neutral, Overload, Success};
        for (reason, outcome) in [
            (Reason::PeerUnreachable, Failure),
            (Reason::PeerMismatch, Failure),
            (Reason::ConnectionLost, Failure),
            (Reason::FaultInjected, Neutral),
            (Reason::Draining, Neutral),
            (Reason::SlotsFull, Neutral),
            (Reason::DeadlineExceeded, Neutral),
            (Reason::QueueFull, Overload(Some(WAIT))),
            (Reason::PermissionDenied, Success),
            (Reason::InvalidField, Success),
            (Reason::InputInvalid, Success),
            (Reason::NotOwnAgent, Success),
            (Reason::AttemptStale, Success),
        ] {
            assert_eq!(of_status(&status(reason)), outcome, "{reason}");
        }
        for (code, outcome) in [
            (Code::Unavailable, Failure),
            (Code::Internal, Failure),
            (Code::Unknown, Failure),
            (Code::ResourceExhausted, Overload(None)),
            (Code::DeadlineExceeded, Neutral),
            (Code::Cancelled, Neutral),
            (Code::InvalidArgument, Success),
            (Code::Unimplemented, Success),
        ] {
            assert_eq!(of_status(&Status::new(code, "")), outcome, "{code:?}");
        }
    }

    #[test]
    fn what_each_end_says_of_its_instance() {
        use Outcome::{Failure, Neutral, Overload, Success};
        for (reason, outcome) in [
            ("SLOTS_FULL", Neutral),
            ("DRAINING", Neutral),
            ("OF_A_LATER_VERSION", Neutral),
            ("DEADLINE_EXCEEDED", Neutral),
            ("AGENT_UNAVAILABLE", Failure),
            ("QUEUE_FULL", Overload(Some(WAIT))),
            ("PERMISSION_DENIED", Success),
            ("NOT_OWN_AGENT", Success),
        ] {
            assert_eq!(of_refusal(reason, Some(WAIT)), outcome, "{reason}");
        }
        let agent = |code| failure(Reason::AgentError, code);
        for (update, updated, outcome) in [
            (agent(Code::Unavailable), false, Failure),
            (agent(Code::Unavailable), true, Success),
            (agent(Code::ResourceExhausted), false, Overload(None)),
            (agent(Code::Internal), false, Success),
            (agent(Code::InvalidArgument), false, Success),
            (failure(Reason::AgentLost, Code::Unavailable), true, Failure),
            (
                failure(Reason::DeadlineExceeded, Code::DeadlineExceeded),
                false,
                Neutral,
            ),
            (Update::Canceled(pb::Canceled::default()), true, Neutral),
            (Update::Result(pb::TaskResult::default()), false, Success),
            (Update::Rejection(pb::Failure::default()), false, Success),
        ] {
            assert_eq!(
                of_end(&update, updated),
                Some(outcome),
                "{update:?} {updated}"
            );
        }
        assert_eq!(
            of_end(&Update::Progress(pb::Progress::default()), false),
            None
        );
    }

    struct Bench {
        set: Set<()>,
    }

    impl Bench {
        fn new() -> Self {
            let epoch = Epoch::default();
            let endpoint = Endpoint::new(epoch.clone(), None, Instant::now());
            let member = Member {
                endpoint: Arc::new(endpoint),
                value: (),
                key: 1,
                local: false,
                group: 0,
            };
            Self {
                set: Set::new(vec![member], &[], Arc::default(), epoch),
            }
        }

        fn judge(&self) -> Judge {
            let ask = Ask {
                sticky: None,
                allows: &|()| true,
            };
            let Pick::Taken((), permit) = self.set.pick(&ask, Instant::now(), &mut rand::rng())
            else {
                panic!("it can be called")
            };
            Judge::new(permit, None)
        }

        fn sight(&self) -> Sight {
            let endpoint = &self.set.members()[0].endpoint;
            endpoint.sight(self.set.settings(), Instant::now())
        }

        /// Failures and calls under way after a stream that says this and ends.
        async fn said(&self, steps: Vec<Step>) -> (u32, u32) {
            let all = steps
                .into_iter()
                .map(|step| Ok(pb::ExecuteResponse { step: Some(step) }));
            let updates: Updates = Box::pin(stream::iter(all));
            let judged = self
                .judge()
                .over(async { Ok(updates) }, Some(FIRST_WORD))
                .await;
            let count = judged.unwrap().count().await;
            assert!(count < 10);
            let sight = self.sight();
            (sight.consecutive, sight.in_flight)
        }
    }

    fn update(update: Update) -> Step {
        Step::Update(pb::NumberedUpdate {
            update: Some(pb::HandleResponse {
                update: Some(update),
            }),
            ..Default::default()
        })
    }

    fn accepted() -> Step {
        Step::Accepted(pb::Accepted::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_counts_once_and_not_for_longer_than_it_works() {
        let bench = Bench::new();
        let progress = || update(Update::Progress(pb::Progress::default()));
        let result = || update(Update::Result(pb::TaskResult::default()));
        let refused = || {
            Step::Refused(pb::Refused {
                reason: "AGENT_UNAVAILABLE".into(),
                retry_after: Some(WAIT.try_into().unwrap()),
            })
        };
        assert_eq!(
            bench.said(vec![accepted(), progress()]).await,
            (1, 0),
            "it was cut"
        );
        assert_eq!(bench.said(vec![]).await, (2, 0));
        assert_eq!(
            bench.said(vec![accepted(), progress(), result()]).await,
            (0, 0)
        );
        let unavailable = || update(failure(Reason::AgentError, Code::Unavailable));
        assert_eq!(bench.said(vec![accepted(), unavailable()]).await, (1, 0));
        assert_eq!(
            bench.sight().latency,
            Some(Duration::ZERO),
            "of the one that worked"
        );
        assert_eq!(bench.said(vec![refused()]).await, (2, 0));
        assert_eq!(bench.sight().paused, Some(WAIT), "as it asked");
        assert_eq!(bench.sight().window, (1, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_at_all_has_failed_after_a_while_and_may_still_speak() {
        let bench = Bench::new();
        let (say, said) = mpsc::channel(4);
        let updates: Updates = Box::pin(ReceiverStream::new(said));
        let began = Instant::now();
        let mut judged = bench
            .judge()
            .over(async { Ok(updates) }, Some(FIRST_WORD))
            .await
            .unwrap();
        let silent = tokio::time::timeout(WAIT, judged.next()).await;
        assert!(silent.is_err() && bench.sight().consecutive == 0);
        let silent = tokio::time::timeout(WAIT, judged.next()).await;
        assert!(silent.is_err() && bench.sight().consecutive == 1);
        assert_eq!(bench.sight().in_flight, 0);
        let step = Some(accepted());
        say.send(Ok(pb::ExecuteResponse { step })).await.unwrap();
        assert!(judged.next().await.unwrap().is_ok());
        // One that does not even open.
        let opening = async {
            sleep_until(began + 10 * WAIT).await;
            Err(status(Reason::PeerUnreachable))
        };
        assert!(bench.judge().over(opening, Some(FIRST_WORD)).await.is_err());
        assert_eq!(
            (bench.sight().consecutive, bench.sight().window),
            (2, (0, 2))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_says_nothing() {
        let bench = Bench::new();
        let updates: Updates = Box::pin(stream::pending());
        let judged = bench
            .judge()
            .over(async { Ok(updates) }, Some(FIRST_WORD))
            .await
            .unwrap();
        assert_eq!(bench.sight().in_flight, 1);
        drop(judged);
        drop(bench.judge().over(std::future::pending(), Some(FIRST_WORD)));
        let sight = bench.sight();
        assert_eq!(
            (sight.in_flight, sight.consecutive, sight.window),
            (0, 0, (0, 0))
        );
    }
}
