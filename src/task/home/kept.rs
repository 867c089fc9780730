//! One task as its records make it: what is on disk, and what a replay gives back.
//!
//! [`Kept::apply`] is the only way to change it, live and in replay alike, so the two cannot differ;
//! [`Kept::take`] is the same of a record that is in no log.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use prost::Message;
use tokio::time::Instant;

use crate::domain::{InstanceId, SpiffeId, TaskId};
use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::pb::task_event::Kind;
use crate::task::callback::Tells;
use crate::task::descendants::unsaid;
use crate::task::doors::Contract;
use crate::task::key::IdempotencyKey;
use crate::task::parts::{beyond, of_event};
use crate::task::spec::Moment;
use crate::telemetry::TraceContext;

use super::artifacts::KeptArtifact;
use super::dialogue::asks;
use super::handover::Promised;
use super::owed::Owing;
use super::snapshot::{contract_of, executor_of, tells_of};
use super::usage;

/// Most events that are kept for watchers; older ones are gone, what they said is in the task.
pub(super) const EVENTS_MAX: usize = 10_000;
/// Most bytes of the events that are kept for watchers: all of a task's content, and some more.
/// Ten thousand large reports of progress would be gigabytes.
pub(super) const EVENTS_BYTES: usize = 80 << 20;
/// What a chunk or message counts beside its content, so that empty ones are bounded too.
pub(super) const CHUNK_BYTES: usize = 256;
/// What a task takes in memory beside its payload, about.
const ENTRY_BYTES: usize = 2048;
/// What the records of a task take in the log beside its payload, about.
const FRAMES: usize = 256;
/// Reason of a cancellation that the handler did not confirm.
pub(super) const UNCONFIRMED: &str = "CANCEL_UNCONFIRMED";

/// Who may see a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parties {
    /// Who submitted it.
    pub(super) caller: SpiffeId,
    /// Who submitted the root of its tree.
    pub(super) origin: SpiffeId,
    /// Who runs or ran it.
    pub(super) executor: Option<SpiffeId>,
}

/// The current attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Running {
    pub(super) attempt: u32,
    pub(super) instance: InstanceId,
    /// By the card at the time of the dispatch.
    pub(super) idempotent: bool,
    /// Run of the executor's process by the catalog at that time; empty: not known.
    pub(super) boot_id: String,
    /// Number of the executor's last update that was taken in.
    pub(super) after_update: u64,
    /// Tasks that it may have made below it.
    pub(super) descendants: u32,
}

/// Why a record cannot follow the ones before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A field that was checked before it was written does not parse.
    #[error("task {0}: the record holds a name that does not parse")]
    Name(String),
    /// An event does not continue the numbering.
    #[error("task {0}: event {1} after event {2}")]
    Gap(String, u64, u64),
    /// A record without content.
    #[error("task {0}: an empty record")]
    Empty(String),
    /// An event that a snapshot names is in no record.
    #[error("task {0}: its snapshot names event {1}, which is in no record")]
    Incomplete(String, u64),
}

/// A task's durable state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) id: TaskId,
    /// BASIC view and chain; no messages, artifacts or result.
    pub(super) task: pb::Task,
    pub(super) spec: pb::TaskSpec,
    /// What its attempts go below, in whatever traces them.
    pub(super) trace: Option<TraceContext>,
    /// By which its submission is known again.
    pub(super) key: Option<IdempotencyKey>,
    pub(super) parties: Parties,
    pub(super) running: Option<Running>,
    /// Instances on which a started attempt was lost.
    pub(super) tried: Vec<InstanceId>,
    /// Attempts that were started.
    pub(super) started: u32,
    /// What its first try was to meet: the next ones are.
    pub(super) contract: Option<Contract>,
    /// What the one has promised whom its caller asked, once it was handed over.
    pub(super) relied_on: Option<Promised>,
    /// To whom it was handed over last.
    pub(super) delegation: Option<Arc<pb::TaskEvent>>,
    /// Tasks that may be made below it by attempts to come.
    pub(super) descendants: u32,
    pub(super) checkpoint: Vec<u8>,
    pub(super) events: VecDeque<Arc<pb::TaskEvent>>,
    pub(super) messages: Vec<Arc<pb::TaskEvent>>,
    /// Those of `messages` that are questions and answers, each question before its answer.
    pub(super) dialogue: Vec<Arc<pb::TaskEvent>>,
    /// Where the last question was asked, until an agent has taken the next attempt.
    pub(super) asked_at: Option<InstanceId>,
    pub(super) artifacts: Vec<KeptArtifact>,
    pub(super) result: Option<Arc<pb::TaskEvent>>,
    /// Bytes of artifacts and messages so far.
    pub(super) content: usize,
    /// About what it takes in memory.
    pub(super) bytes: usize,
    /// About what `events` holds on to.
    pub(super) events_bytes: usize,
    /// Bytes of all that its attempts ever said: what it takes on disk, about.
    pub(super) said: usize,
    pub(super) working_since: Option<SystemTime>,
    /// Whole; empty: none is called back.
    pub(super) callback_url: String,
    /// Changes that are still to be told, the oldest first.
    pub(super) owed: VecDeque<Owing>,
    /// The change of another task that this one tells an agent of.
    pub(super) tells: Option<Tells>,
}

impl Kept {
    /// The task of a submission's record.
    pub(super) fn submitted(
        mut record: pb::journal::Submitted,
        id: &str,
    ) -> Result<Self, RecordError> {
        let task = record.task.take().unwrap_or_default();
        let wrong = || RecordError::Name(id.to_owned());
        let parties = Parties::of(&task)?;
        let descendants = record.descendants;
        let descendants = descendants.unwrap_or_else(|| unsaid(task.chain.len()));
        let spec = record.spec.take().unwrap_or_default();
        Ok(Self {
            id: id.parse().map_err(|_| wrong())?,
            bytes: ENTRY_BYTES
                + task.encoded_len()
                + spec.encoded_len()
                + record.tracestate.len()
                + record.callback_url.len(),
            task,
            spec,
            trace: TraceContext::parse(&record.traceparent, &record.tracestate),
            key: IdempotencyKey::written(&record),
            parties,
            running: None,
            tried: Vec::new(),
            started: 0,
            contract: None,
            relied_on: None,
            delegation: None,
            descendants,
            checkpoint: Vec::new(),
            events: VecDeque::new(),
            messages: Vec::new(),
            dialogue: Vec::new(),
            asked_at: None,
            artifacts: Vec::new(),
            result: None,
            content: 0,
            events_bytes: 0,
            said: 0,
            working_since: None,
            callback_url: record.callback_url,
            owed: VecDeque::new(),
            tells: tells_of(record.tells.as_ref(), id)?,
        })
    }

    /// Takes one more record in.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), RecordError> {
        match &record.kind {
            Some(Recorded::Dispatched(sent)) => self.dispatched(sent)?,
            Some(Recorded::Event(event)) => self.event(Arc::new(event.clone()))?,
            Some(Recorded::Checkpoint(saved)) => {
                self.bytes = self.bytes - self.checkpoint.len() + saved.data.len();
                self.said += saved.data.len();
                self.checkpoint.clone_from(&saved.data);
            }
            Some(Recorded::Returned(returned)) => {
                self.descendants += returned.descendants;
                // Said again after a restart in the middle, it comes back once.
                if let Some(running) = &mut self.running {
                    running.descendants = running.descendants.saturating_sub(returned.descendants);
                }
            }
            Some(Recorded::Granted(granted)) => self.granted(granted),
            Some(Recorded::Promised(promised)) => self.relies_on(promised),
            Some(Recorded::NotStarted(_)) => {
                let running = self.running.take();
                self.descendants += running.map_or(0, |running| running.descendants);
                self.started = self.started.saturating_sub(1);
            }
            Some(Recorded::Told(told)) => self.told(told),
            Some(Recorded::GaveUp(gave_up)) => self.gave_up(gave_up.seq, &gave_up.why),
            Some(Recorded::Anew(anew)) => self.told_anew(anew.seq),
            // What they say is in the task already.
            Some(Recorded::Copied(_) | Recorded::Snapshot(_)) => {}
            Some(Recorded::Submitted(_) | Recorded::Forgotten(_)) | None => {
                return Err(RecordError::Empty(record.task_id.clone()));
            }
        }
        self.follows_update(record.after_update);
        Ok(())
    }

    /// The same of a record that nobody else needs.
    pub(super) fn take(&mut self, record: Record) -> Result<(), RecordError> {
        let Some(Recorded::Event(event)) = record.kind else {
            return self.apply(&record);
        };
        self.event(Arc::new(event))?;
        self.follows_update(record.after_update);
        Ok(())
    }

    fn follows_update(&mut self, update: u64) {
        if let Some(running) = &mut self.running {
            running.after_update = running.after_update.max(update);
        }
    }

    /// The state, as the type that it is.
    pub(super) fn state(&self) -> pb::TaskState {
        self.task.state()
    }

    /// Whether nothing can happen to it any more.
    pub(super) fn ended(&self) -> bool {
        ended(self.state())
    }

    /// Number of the oldest event that is still kept; one beyond the last where there is none.
    pub(super) fn first_seq(&self) -> u64 {
        self.events
            .front()
            .map_or(self.task.last_seq + 1, |event| event.seq)
    }

    /// When the task ends at the latest.
    pub(super) fn deadline(&self, at: &Moment) -> Instant {
        let options = self.task.options.as_ref();
        let due = options.and_then(|options| SystemTime::try_from(options.deadline?).ok());
        due.map_or(at.now, |due| at.instant_of(due))
    }

    /// When it ended.
    pub(super) fn ended_at(&self) -> Option<SystemTime> {
        let at = self.task.ended_at?;
        SystemTime::try_from(at).ok()
    }

    /// Bytes that it takes in the log when written anew, about.
    pub(super) fn written(&self) -> usize {
        self.bytes.saturating_sub(ENTRY_BYTES) + FRAMES
    }

    /// Whether it ended before this time.
    pub(super) fn ended_before(&self, limit: Option<SystemTime>) -> bool {
        matches!((self.ended_at(), limit), (Some(ended), Some(limit)) if ended < limit)
    }

    /// Whether it is cancelled when the attempt that made it ends.
    pub(super) fn ends_with_parent(&self) -> bool {
        let detached = self
            .task
            .options
            .as_ref()
            .is_some_and(|options| options.detached);
        !self.task.parent_task_id.is_empty() && !detached
    }

    /// Whether its caller would rather know now that nobody can take it.
    pub(super) fn fails_fast(&self) -> bool {
        let options = self.task.options.as_ref();
        // Once it was answered somebody cares for it, and its agent may be away for a moment.
        options.is_some_and(|options| options.fail_fast) && self.dialogue.is_empty()
    }

    fn dispatched(&mut self, sent: &pb::journal::Dispatched) -> Result<(), RecordError> {
        let wrong = || RecordError::Name(self.task.id.clone());
        let executor = executor_of(&self.parties.caller, &sent.agent).ok_or_else(wrong)?;
        let instance: InstanceId = sent.instance.parse().map_err(|_| wrong())?;
        self.task.attempt = sent.attempt;
        self.task.executor = Some(pb::AgentSkill {
            agent: sent.agent.clone(),
            skill: self.skill().to_owned(),
        });
        if self.delegation.is_some() {
            self.task.delegated_to.clone_from(&sent.agent);
        }
        self.task.executor_instance = sent.instance.clone();
        self.task.updated_at = sent.at;
        self.parties.executor = Some(executor);
        self.promised(sent.contract.as_ref());
        self.started += 1;
        self.running = Some(Running {
            attempt: sent.attempt,
            instance,
            idempotent: sent.idempotent,
            boot_id: sent.boot_id.clone(),
            after_update: 0,
            descendants: sent.descendants,
        });
        self.descendants = self.descendants.saturating_sub(sent.descendants);
        Ok(())
    }

    /// What the first one promised holds for all that follow. Where nothing was started, and nobody
    /// is left who promises that, it is what the next one promises.
    fn promised(&mut self, contract: Option<&pb::journal::Contract>) {
        let Some(new) = contract.map(contract_of) else {
            return;
        };
        let holds = |kept: &Contract| self.started > 0 || new.fits(kept);
        if !self.contract.as_ref().is_some_and(holds) {
            self.contract = Some(new);
        }
    }

    fn event(&mut self, event: Arc<pb::TaskEvent>) -> Result<(), RecordError> {
        if event.seq != self.task.last_seq + 1 {
            let (id, last) = (self.task.id.clone(), self.task.last_seq);
            return Err(RecordError::Gap(id, event.seq, last));
        }
        self.task.last_seq = event.seq;
        self.task.updated_at = event.at;
        let size = event_bytes(&event);
        self.bytes += size;
        self.events_bytes += size;
        let beyond = beyond(of_event(&event));
        self.said += size + beyond;
        let from = self.state();
        self.enter(&event);
        self.owe(from, &event);
        match &event.kind {
            Some(Kind::Message(message)) => {
                self.content += message.encoded_len() + beyond + CHUNK_BYTES;
                self.messages.push(event.clone());
            }
            Some(Kind::Artifact(chunk)) => self.chunk(chunk, &event),
            Some(Kind::Usage(more)) => {
                usage::add(self.task.usage.get_or_insert_default(), more);
            }
            Some(Kind::Failure(failure)) => self.task.failure = Some(failure.clone()),
            Some(Kind::CancelRequested(_)) => self.task.cancel_requested = true,
            Some(Kind::Result(_)) => self.result = Some(event.clone()),
            Some(Kind::Delegation(_)) => self.handed_over(&event),
            Some(Kind::StateChanged(change)) if event.state() == pb::TaskState::Canceled => {
                self.task.cancel_confirmed = change.reason != UNCONFIRMED;
            }
            Some(Kind::Question(_) | Kind::Answer(_)) => {
                self.messages.push(event.clone());
                self.dialogue.push(event.clone());
            }
            Some(Kind::StateChanged(_) | Kind::Progress(_)) | None => {}
        }
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || self.events_bytes > EVENTS_BYTES {
            self.forget_oldest_event();
        }
        Ok(())
    }

    /// Follows the state that the event says is in force after it.
    fn enter(&mut self, event: &pb::TaskEvent) {
        let (from, to) = (self.state(), event.state());
        if from == to && to != pb::TaskState::Submitted {
            return;
        }
        let at = event.at.and_then(|at| SystemTime::try_from(at).ok());
        if to == pb::TaskState::Working {
            self.working_since = at;
            self.asked_at = None;
        } else if let (Some(since), Some(at)) = (self.working_since.take(), at) {
            let worked = at.duration_since(since).unwrap_or_default().as_millis();
            self.task.execution_ms += i64::try_from(worked).unwrap_or(i64::MAX);
        }
        self.task.state = to.into();
        let lost =
            to == pb::TaskState::Submitted && matches!(event.kind, Some(Kind::StateChanged(_)));
        if lost && let Some(running) = self.running.take() {
            self.tried.push(running.instance);
            for artifact in &mut self.artifacts {
                // What earlier attempts made, which asked, stays.
                artifact.summary.superseded |= artifact.last_attempt() == running.attempt;
            }
        }
        if asks(to) {
            self.asked_at = self.running.take().map(|running| running.instance);
        }
        if ended(to) {
            self.running = None;
            self.task.ended_at = event.at;
            self.bytes -= self.checkpoint.len();
            self.checkpoint = Vec::new();
        }
    }

    fn forget_oldest_event(&mut self) {
        let Some(oldest) = self.events.pop_front() else {
            return;
        };
        let size = event_bytes(&oldest);
        self.events_bytes -= size;
        // What messages, artifacts and the result hold on to stays in memory, and what is owed.
        if !self.holds(&oldest) && !self.owes(oldest.seq) {
            self.bytes -= size;
        }
    }
}

/// What an event takes in memory, about.
pub(super) fn event_bytes(event: &pb::TaskEvent) -> usize {
    event.encoded_len() + size_of::<pb::TaskEvent>()
}

/// Whether the task itself holds on to the event. By its kind, not by who else has it just now: a
/// watcher may.
pub(super) fn holds_content(event: &pb::TaskEvent) -> bool {
    matches!(
        event.kind,
        Some(
            Kind::Message(_)
                | Kind::Question(_)
                | Kind::Answer(_)
                | Kind::Artifact(_)
                | Kind::Result(_)
                | Kind::Delegation(_)
        )
    )
}

/// Whether nothing follows this state.
pub(super) fn ended(state: pb::TaskState) -> bool {
    match state {
        pb::TaskState::Completed
        | pb::TaskState::Failed
        | pb::TaskState::Canceled
        | pb::TaskState::Rejected => true,
        pb::TaskState::Unspecified
        | pb::TaskState::Submitted
        | pb::TaskState::Working
        | pb::TaskState::InputRequired
        | pb::TaskState::AuthRequired => false,
    }
}
