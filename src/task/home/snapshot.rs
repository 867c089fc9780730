//! A task as one record and the events that it names, and back. Pure.
//!
//! The same form goes to the archive when a task has ended, and into the log again when a task
//! outlives the segments that it began in. Refused is a snapshot whose events are not all there.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use crate::domain::{AgentName, Member, SpiffeId};
use crate::pb;
use crate::pb::journal::{
    Attempt, Handover, KeptArtifact as NamedArtifact, Owed, Snapshot, Submitted,
};
use crate::task::callback::Tells;
use crate::task::descendants::unsaid;
use crate::task::doors::Contract;
use crate::task::key::IdempotencyKey;
use crate::telemetry::TraceContext;

use super::artifacts::KeptArtifact;
use super::handover::Promised;
use super::kept::{Kept, Parties, RecordError, Running, event_bytes};
use super::owed::Owing;

/// Events by their numbers.
pub(super) type Numbered = BTreeMap<u64, Arc<pb::TaskEvent>>;

impl Parties {
    /// Who may see this task.
    ///
    /// # Errors
    /// A name in it does not parse.
    pub(super) fn of(task: &pb::Task) -> Result<Self, RecordError> {
        let wrong = || RecordError::Name(task.id.clone());
        let caller: SpiffeId = task.caller.parse().map_err(|_| wrong())?;
        let executor = match &task.executor {
            Some(ran) => Some(executor_of(&caller, &ran.agent).ok_or_else(wrong)?),
            None => None,
        };
        Ok(Self {
            origin: task.origin.parse().map_err(|_| wrong())?,
            caller,
            executor,
        })
    }
}

/// The member that an agent is, in the trust domain of the task's caller.
pub(super) fn executor_of(caller: &SpiffeId, agent: &str) -> Option<SpiffeId> {
    let agent: AgentName = agent.parse().ok()?;
    Some(SpiffeId {
        trust_domain: caller.trust_domain.clone(),
        member: Member::Agent(agent),
    })
}

impl Kept {
    /// All of it but its events.
    pub(super) fn snapshot(&self) -> Snapshot {
        let seqs = |events: &[Arc<pb::TaskEvent>]| events.iter().map(|event| event.seq).collect();
        let held: usize = self.all_events().map(|event| event_bytes(event)).sum();
        Snapshot {
            submitted: Some(Submitted {
                callback_url: self.callback_url.clone(),
                tells: self.tells.as_ref().map(tells),
                ..submitted(
                    self.task.clone(),
                    self.spec.clone(),
                    self.trace.as_ref(),
                    self.key.as_ref(),
                )
            }),
            descendants_left: Some(self.descendants),
            handover: self.delegation.as_ref().map(|event| {
                let promised = self.relied_on.as_ref();
                Handover {
                    seq: event.seq,
                    promised_by: promised.map_or_else(String::new, |one| one.agent.clone()),
                    promised: promised.map(|one| promise(&one.contract)),
                    output_schema: promised
                        .map_or_else(String::new, |one| one.output_schema.clone()),
                }
            }),
            running: self.running.as_ref().map(|running| Attempt {
                attempt: running.attempt,
                instance: running.instance.to_string(),
                idempotent: running.idempotent,
                after_update: running.after_update,
                boot_id: running.boot_id.clone(),
                descendants: running.descendants,
            }),
            tried: self.tried.iter().map(ToString::to_string).collect(),
            started: self.started,
            contract: self.contract.as_ref().map(promise),
            checkpoint: self.checkpoint.clone(),
            first_seq: self.first_seq(),
            messages: seqs(&self.messages),
            dialogue: seqs(&self.dialogue),
            asked_at: self
                .asked_at
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            artifacts: self
                .artifacts
                .iter()
                .map(|kept| NamedArtifact {
                    summary: Some(kept.summary.clone()),
                    chunks: seqs(&kept.chunks),
                })
                .collect(),
            result: self.result.as_ref().map_or(0, |event| event.seq),
            content: self.content as u64,
            said: self.said as u64,
            working_since: self.working_since.map(Into::into),
            owed: self.owed.iter().map(|owing| owing.owed).collect(),
            base: self.bytes.saturating_sub(held + self.checkpoint.len()) as u64,
        }
    }

    /// Its events, the oldest first: those for watchers, and before them those that hold content.
    pub(super) fn all_events(&self) -> impl Iterator<Item = &Arc<pb::TaskEvent>> {
        let first = self.first_seq();
        let chunks = self.artifacts.iter().flat_map(|kept| &kept.chunks);
        let content = self.messages.iter().chain(chunks).chain(&self.delegation);
        let content = content.chain(self.owed_events());
        let mut older: Vec<_> = content.filter(|event| event.seq < first).collect();
        older.sort_unstable_by_key(|event| event.seq);
        older.dedup_by_key(|event| event.seq);
        older.into_iter().chain(&self.events)
    }

    /// The task of a snapshot; its events are taken from `events`.
    ///
    /// # Errors
    /// `Incomplete` where one is missing; `Name`.
    pub(super) fn restored(snapshot: Snapshot, events: &Numbered) -> Result<Self, RecordError> {
        let submitted = snapshot.submitted.unwrap_or_default();
        let key = IdempotencyKey::written(&submitted);
        let task = submitted.task.unwrap_or_default();
        let wrong = || RecordError::Name(task.id.clone());
        let event = |seq: &u64| {
            let missing = || RecordError::Incomplete(task.id.clone(), *seq);
            events.get(seq).cloned().ok_or_else(missing)
        };
        let all = |seqs: &[u64]| seqs.iter().map(event).collect::<Result<Vec<_>, _>>();
        let has = snapshot.running.as_ref().map_or(0, |one| one.descendants);
        let descendants = snapshot.descendants_left;
        let running = snapshot.running.map(|one| taken_up(one).ok_or_else(wrong));
        let tried = snapshot
            .tried
            .iter()
            .map(|one| one.parse().map_err(|_| wrong()));
        let artifact = |NamedArtifact { summary, chunks }| {
            let (summary, chunks) = (summary.unwrap_or_default(), all(&chunks)?);
            Ok(KeptArtifact { summary, chunks })
        };
        let artifacts = snapshot.artifacts.into_iter().map(artifact);
        let (watched, since) = (snapshot.first_seq..=task.last_seq, snapshot.working_since);
        let mut kept = Self {
            id: task.id.parse().map_err(|_| wrong())?,
            parties: Parties::of(&task)?,
            running: running.transpose()?,
            tried: tried.collect::<Result<_, _>>()?,
            started: snapshot.started,
            contract: snapshot.contract.as_ref().map(contract_of),
            descendants: descendants.unwrap_or_else(|| left_unsaid(has, &task)),
            relied_on: snapshot.handover.as_ref().map(promised_of),
            delegation: snapshot.handover.map(|it| event(&it.seq)).transpose()?,
            checkpoint: snapshot.checkpoint,
            events: watched.map(|seq| event(&seq)).collect::<Result<_, _>>()?,
            messages: all(&snapshot.messages)?,
            dialogue: all(&snapshot.dialogue)?,
            asked_at: snapshot.asked_at.parse().ok(),
            artifacts: artifacts.collect::<Result<_, RecordError>>()?,
            result: (snapshot.result > 0)
                .then(|| event(&snapshot.result))
                .transpose()?,
            content: size(snapshot.content),
            said: size(snapshot.said),
            working_since: since.and_then(|at| SystemTime::try_from(at).ok()),
            callback_url: submitted.callback_url,
            owed: owed_of(&snapshot.owed, events),
            tells: tells_of(submitted.tells.as_ref(), &task.id)?,
            bytes: 0,
            events_bytes: 0,
            spec: submitted.spec.unwrap_or_default(),
            trace: TraceContext::parse(&submitted.traceparent, &submitted.tracestate),
            task,
            key,
        };
        let held: usize = kept.all_events().map(|event| event_bytes(event)).sum();
        kept.events_bytes = kept.events.iter().map(|event| event_bytes(event)).sum();
        kept.bytes = size(snapshot.base) + kept.checkpoint.len() + held;
        Ok(kept)
    }
}

/// What is left for attempts to come where an older version has left that out; the one under way has so
/// many.
fn left_unsaid(running: u32, task: &pb::Task) -> u32 {
    // Then what there was is with that.
    match running {
        0 => unsaid(task.chain.len()),
        _ => 0,
    }
}

/// A task as it is accepted, or as it stands.
pub(super) fn submitted(
    task: pb::Task,
    spec: pb::TaskSpec,
    trace: Option<&TraceContext>,
    key: Option<&IdempotencyKey>,
) -> Submitted {
    Submitted {
        task: Some(task),
        spec: Some(spec),
        traceparent: trace.map_or_else(String::new, TraceContext::traceparent),
        tracestate: trace.map_or_else(String::new, |trace| trace.tracestate().into()),
        key_scope: key.map_or_else(Vec::new, |key| key.scope.into()),
        key_payload: key.map_or_else(Vec::new, |key| key.payload.into()),
        descendants: None,
        callback_url: String::new(),
        tells: None,
    }
}

/// What a task tells of as it is written down.
pub(super) fn tells(tells: &Tells) -> pb::journal::Tells {
    pb::journal::Tells {
        task_id: tells.task.to_string(),
        seq: tells.seq,
        round: tells.round,
    }
}

/// What the task `id` tells of as it was written down.
pub(super) fn tells_of(
    tells: Option<&pb::journal::Tells>,
    id: &str,
) -> Result<Option<Tells>, RecordError> {
    let Some(tells) = tells else { return Ok(None) };
    let task = tells.task_id.parse();
    Ok(Some(Tells {
        task: task.map_err(|_| RecordError::Name(id.to_owned()))?,
        seq: tells.seq,
        round: tells.round,
    }))
}

fn owed_of(owed: &[Owed], events: &Numbered) -> VecDeque<Owing> {
    let owed = owed.iter().map(|owed| Owing::restored(*owed, events));
    owed.collect()
}

/// A contract as it is written down.
pub(super) fn promise(contract: &Contract) -> pb::journal::Contract {
    pb::journal::Contract {
        version: contract
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        schemas: contract.schemas.clone(),
    }
}

/// A contract as it was written down.
pub(super) fn contract_of(promise: &pb::journal::Contract) -> Contract {
    Contract {
        version: promise.version.parse().ok(),
        schemas: promise.schemas.clone(),
    }
}

fn promised_of(handover: &Handover) -> Promised {
    Promised {
        agent: handover.promised_by.clone(),
        contract: handover
            .promised
            .as_ref()
            .map(contract_of)
            .unwrap_or_default(),
        output_schema: handover.output_schema.clone(),
    }
}

fn taken_up(running: Attempt) -> Option<Running> {
    Some(Running {
        attempt: running.attempt,
        instance: running.instance.parse().ok()?,
        idempotent: running.idempotent,
        boot_id: running.boot_id,
        after_update: running.after_update,
        descendants: running.descendants,
    })
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
