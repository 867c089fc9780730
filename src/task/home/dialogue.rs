//! Questions of agents to those who want their work, and how an answer lets the task go on. Pure.
//!
//! A question ends its attempt: it may be open for days, and nothing waits for it but the record. The
//! answer gives the task its next attempt, with all that was asked and answered. Refused are answers
//! that do not fit, that come too late, or that differ from one that was given.
//!
//! ```text
//!   WORKING --question--> INPUT_REQUIRED, AUTH_REQUIRED --answer--> SUBMITTED --> WORKING
//!                             '-- deadline, cancel --> FAILED, CANCELED
//! ```

use std::sync::Arc;

use prost::Message;
use uuid::Uuid;

use crate::contract::{Contract, Side};
use crate::domain::{Fault, Member, Reason, SpiffeId};
use crate::identity::may_see_task;
use crate::pb;
use crate::pb::task_event::Kind;
use crate::task::parts::{beyond, same};
use crate::task::spec::{check_part, too_large};

use super::kept::{Kept, Parties};
use super::machine::{Tasks, World, not_found};

/// Questions of a task: a model that asks more often does not get on.
pub(super) const QUESTIONS_MAX: usize = 64;
/// Most bytes of a question, encoded: while it is open it is in every list of tasks.
pub(super) const QUESTION_MAX: usize = 64 << 10;
/// Most bytes of a question's id.
pub(super) const QUESTION_ID_MAX: usize = 128;
/// Most bytes of all questions and answers of a task: with its input they are in every Start.
pub(super) const DIALOGUE_MAX: usize = 1 << 20;
/// What of that a question leaves for its answer: nobody should be asked who cannot answer.
const ANSWER_ROOM: usize = 64 << 10;
/// Most bytes of an answer, encoded: it becomes an event of 256 KiB at most.
pub(super) const RESPONSE_MAX: usize = 240 << 10;

/// Schemas of answers that a shard keeps compiled: agents ask with a handful of them, and one takes
/// some 10 to 100 KiB.
pub(super) const ANSWER_SCHEMAS: usize = 16;

/// An answer to a question, as it came.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Which question.
    pub question_id: String,
    /// What is answered.
    pub parts: Vec<pb::Part>,
}

impl Response {
    /// Whether it can be an answer at all.
    ///
    /// # Errors
    /// INVALID_FIELD, PAYLOAD_TOO_LARGE.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.question_id.is_empty() {
            let text = "name the question: `Task.question.question_id`";
            return Err(Fault::field("question_id", text));
        }
        if self.parts.is_empty() {
            let text = "say something: text, or what the question's schema asks for";
            return Err(Fault::field("parts", text));
        }
        let size = self.size();
        if size > RESPONSE_MAX {
            return Err(too_large("parts", size, RESPONSE_MAX));
        }
        for (place, part) in self.parts.iter().enumerate() {
            check_part(part, &format!("parts[{place}]"))?;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.parts.iter().map(Message::encoded_len).sum()
    }
}

/// Whether the agent waits for an answer in this state, and so runs nowhere.
pub(super) fn asks(state: pb::TaskState) -> bool {
    matches!(
        state,
        pb::TaskState::InputRequired | pb::TaskState::AuthRequired
    )
}

/// Whether this principal may answer for the task. It sees the task; the agent that runs it does,
/// too, and does not answer itself.
pub(super) fn may_answer(viewer: &SpiffeId, parties: &Parties) -> bool {
    may_see_task(viewer, &parties.caller, &parties.origin, None)
}

/// The answer to the agent that answers itself.
pub(super) fn not_for_agents() -> Fault {
    let text = "the agent that asks does not answer: its caller does, or who began the work, or an operator";
    Fault::new(Reason::PermissionDenied, text)
}

/// The event of a question, and the state after it; an error is a sentence for the agent's author.
pub(super) fn asked(kept: &Kept, question: pb::Question) -> Result<(Kind, pb::TaskState), String> {
    if kept.tells.is_some() {
        return Err("a question of a task that tells it of a change: nobody answers those".into());
    }
    let mut question = question;
    let id = &question.question_id;
    if id.is_empty() || id.len() > QUESTION_ID_MAX || id.chars().any(char::is_control) {
        return Err(format!(
            "a question whose id has not 1 to {QUESTION_ID_MAX} bytes without control characters"
        ));
    }
    let new = kept.new_id(id)?;
    let own = std::mem::replace(&mut question.question_id, new);
    if kept.questions() >= QUESTIONS_MAX {
        return Err(format!("more than {QUESTIONS_MAX} questions"));
    }
    let message = question.message.get_or_insert_default();
    if message.parts.is_empty() {
        return Err(format!(
            "question {:?} without a message",
            question.question_id
        ));
    }
    message.message_id = own;
    message.role = pb::Role::Agent.into();
    message.by.clear();
    message.to.clear();
    message.at = None;
    for (place, part) in message.parts.iter().enumerate() {
        check_part(part, &format!("question.message.parts[{place}]"))
            .map_err(|wrong| wrong.text)?;
    }
    let size = question.encoded_len();
    if size > QUESTION_MAX {
        return Err(format!(
            "a question of {size} bytes, at most {QUESTION_MAX} are taken"
        ));
    }
    if kept.dialogue_bytes() + size + ANSWER_ROOM > DIALOGUE_MAX {
        return Err(format!(
            "questions and answers of more than {DIALOGUE_MAX} bytes, {ANSWER_ROOM} of them for the next answer"
        ));
    }
    if let Err(wrong) = Contract::of_question(&question) {
        return Err(format!(
            "question {:?} with an answer_schema that is none: {wrong}",
            question.question_id
        ));
    }
    let state = if question.auth {
        pb::TaskState::AuthRequired
    } else {
        pb::TaskState::InputRequired
    };
    Ok((Kind::Question(question), state))
}

/// What became of a question.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// It was asked.
    Open,
    Answered(&'a pb::Message),
    Never,
}

/// Looks for a question among the events that hold questions and answers.
pub(super) fn find<'a>(
    dialogue: impl Iterator<Item = &'a pb::TaskEvent>,
    question_id: &str,
) -> Found<'a> {
    let mut found = Found::Never;
    for event in dialogue {
        match &event.kind {
            Some(Kind::Question(question)) if question.question_id == question_id => {
                found = Found::Open;
            }
            Some(Kind::Answer(answer)) if answer.message_id == question_id => {
                found = Found::Answered(answer);
            }
            _ => {}
        }
    }
    found
}

/// Whether a question in this place takes an answer: `false`: it has this one already.
pub(super) fn takes(
    found: &Found<'_>,
    response: &Response,
    (state, open): (pb::TaskState, Option<&pb::Question>),
) -> Result<bool, Fault> {
    let id = &response.question_id;
    match found {
        Found::Answered(before) if same(&before.parts, &response.parts) => return Ok(false),
        Found::Answered(_) => {
            let text = format!(
                "question {id:?} has another answer: read the task, and answer what it asks now"
            );
            return Err(Fault::new(Reason::QuestionAnswered, text));
        }
        Found::Open | Found::Never => {}
    }
    if super::kept::ended(state) {
        let state = state.as_str_name().trim_start_matches("TASK_STATE_");
        let text = format!(
            "the task has ended, {}: nobody waits for an answer",
            state.to_lowercase()
        );
        return Err(Fault::new(Reason::TaskEnded, text));
    }
    let Some(open) = open else {
        let text = "the task asks nothing now: watch it, and answer when it is INPUT_REQUIRED or AUTH_REQUIRED";
        return Err(Fault::new(Reason::TaskAsksNothing, text));
    };
    if open.question_id == *id {
        return Ok(true);
    }
    let text = format!(
        "the task has not asked {id:?}: what it asks now is {:?}",
        open.question_id
    );
    Err(Fault::new(Reason::QuestionNotFound, text).with("question_id", open.question_id.clone()))
}

impl Kept {
    /// Questions so far.
    pub(super) fn questions(&self) -> usize {
        let is_question =
            |event: &&Arc<pb::TaskEvent>| matches!(event.kind, Some(Kind::Question(_)));
        self.dialogue.iter().filter(is_question).count()
    }

    /// Attempts that may have been lost, the present one included: one that asked was not.
    pub(super) fn tries(&self) -> u32 {
        let asked = u32::try_from(self.questions()).unwrap_or(u32::MAX);
        self.started.saturating_sub(asked)
    }

    /// What the agent waits for.
    pub(super) fn open_question(&self) -> Option<&pb::Question> {
        match &self.dialogue.last()?.kind {
            Some(Kind::Question(question)) if asks(self.state()) => Some(question),
            _ => None,
        }
    }

    /// The agent that was given a right, and has not gone on with it yet: to another one the answer
    /// is of no use.
    pub(super) fn granted_to(&self) -> Option<&str> {
        self.asked_at.as_ref()?;
        match &self.dialogue.last()?.kind {
            Some(Kind::Answer(answer)) if !answer.to.is_empty() => Some(&answer.to),
            _ => None,
        }
    }

    /// Whether this attempt was the last to ask, and has its answer.
    pub(super) fn asked_in(&self, attempt: u32) -> bool {
        let last = self.dialogue.last();
        last.is_some_and(|event| {
            event.attempt == attempt && matches!(event.kind, Some(Kind::Answer(_)))
        })
    }

    /// What the agent that runs it is told beside the input: questions and answers, in order, by its
    /// own names for them; and no answer that gave a right to another agent.
    pub(super) fn talked(&self) -> impl Iterator<Item = pb::Message> {
        let pairs = self
            .pairs()
            .filter(|(_, answer)| is_for(self.agent(), answer));
        pairs.flat_map(|(question, answer)| {
            let answer = pb::Message {
                message_id: question.message_id.clone(),
                ..answer.clone()
            };
            [question, answer]
        })
    }

    /// Each question that was answered, and its answer.
    fn pairs(&self) -> impl Iterator<Item = (pb::Message, &pb::Message)> {
        let both = self.dialogue.chunks_exact(2);
        both.filter_map(|both| match &both[1].kind {
            Some(Kind::Answer(answer)) => Some((said(&both[0])?, answer)),
            _ => None,
        })
    }

    fn agent(&self) -> &str {
        let executor = self.task.executor.as_ref();
        executor.map_or("", |executor| &executor.agent)
    }

    /// The id of a question that its agent calls so: another one where it was asked by another agent,
    /// whose answer this one is not given.
    fn new_id(&self, own: &str) -> Result<String, String> {
        let before = self
            .pairs()
            .filter(|(question, _)| question.message_id == own)
            .last();
        let id = match before {
            Some((_, answer)) if !is_for(self.agent(), answer) => {
                format!("{own}~{}", self.task.attempt)
            }
            Some(_) | None => own.to_owned(),
        };
        let known = |event: &Arc<pb::TaskEvent>| matches!(&event.kind, Some(Kind::Question(before)) if before.question_id == id);
        if self.dialogue.iter().any(known) {
            return Err(format!(
                "question {own:?} once more: its answer was among the inputs"
            ));
        }
        Ok(id)
    }

    fn dialogue_bytes(&self) -> usize {
        let size = |event: &Arc<pb::TaskEvent>| match &event.kind {
            Some(Kind::Question(question)) => question.encoded_len(),
            Some(Kind::Answer(answer)) => answer.encoded_len() + beyond(&answer.parts),
            _ => 0,
        };
        self.dialogue.iter().map(size).sum()
    }
}

/// Whether an agent may know an answer: a right that was given goes with nobody else.
fn is_for(agent: &str, answer: &pb::Message) -> bool {
    answer.to.is_empty() || answer.to == agent
}

/// The agent that reads a task which is not its own: answers to others are withheld from it.
pub(super) fn withheld_from(viewer: &SpiffeId, task: &pb::Task) -> Option<String> {
    let Member::Agent(agent) = &viewer.member else {
        return None;
    };
    let name = viewer.to_string();
    (name != task.caller && name != task.origin).then(|| agent.to_string())
}

/// Takes out of an answer what the agent may not know.
pub(super) fn withhold(agent: Option<&str>, answer: &mut pb::Message) {
    if agent.is_some_and(|agent| !is_for(agent, answer)) {
        answer.parts.clear();
    }
}

/// Whether an event is an answer that the agent may not know.
pub(super) fn is_withheld(agent: Option<&str>, event: &pb::TaskEvent) -> bool {
    match (&event.kind, agent) {
        (Some(Kind::Answer(answer)), Some(agent)) => !is_for(agent, answer),
        _ => false,
    }
}

/// What somebody said in an event, and when.
pub(super) fn said(event: &pb::TaskEvent) -> Option<pb::Message> {
    let message = match &event.kind {
        Some(Kind::Message(message) | Kind::Answer(message)) => message,
        Some(Kind::Question(question)) => question.message.as_ref()?,
        _ => return None,
    };
    let at = message.at.or(event.at);
    Some(pb::Message {
        at,
        ..message.clone()
    })
}

impl Tasks {
    /// Takes an answer of `by`, who may give it, and gives the task out again; `false`: it was given
    /// before.
    ///
    /// # Errors
    /// As in the contract of `RespondTask`.
    pub(super) fn respond(
        &mut self,
        task: Uuid,
        by: &SpiffeId,
        response: Response,
        world: World<'_>,
    ) -> Result<bool, Fault> {
        let now = world.at.now;
        let entry = self.tasks.get(&task);
        if entry.is_some_and(|entry| !entry.kept.ended() && entry.deadline <= now) {
            self.due(task, world);
            self.settle(task);
        }
        let kept = &self.tasks.get(&task).ok_or_else(not_found)?.kept;
        let found = find(
            kept.dialogue.iter().map(AsRef::as_ref),
            &response.question_id,
        );
        if !takes(&found, &response, (kept.state(), kept.open_question()))? {
            return Ok(false);
        }
        let mut to = String::new();
        if let Some(question) = kept.open_question() {
            let answers = self.answers.of_question(question);
            let schema =
                answers.map_err(|wrong| Fault::new(Reason::Internal, wrong.to_string()))?;
            check(kept, question, &response, &schema)?;
            if question.auth {
                kept.agent().clone_into(&mut to);
            }
        }
        let answer = pb::Message {
            message_id: response.question_id,
            parts: response.parts,
            role: pb::Role::User.into(),
            at: Some(world.at.wall.into()),
            by: by.to_string(),
            to,
        };
        let state = pb::TaskState::Submitted;
        self.emit(task, Kind::Answer(answer), state, 0, world.at);
        self.again(task, world);
        self.settle(task);
        Ok(true)
    }
}

/// Whether an answer, which is one by itself, fits what was asked.
fn check(
    kept: &Kept,
    question: &pb::Question,
    response: &Response,
    schema: &Contract,
) -> Result<(), Fault> {
    let parts = &response.parts;
    let size = response.size();
    let left = DIALOGUE_MAX.saturating_sub(kept.dialogue_bytes());
    if size > left {
        return Err(too_large("parts", size, left));
    }
    let json = ["application/json".to_owned()];
    schema
        .check(Side::Answer, parts, &json)
        .map_err(|broken| broken.fault(&question.question_id))
}
