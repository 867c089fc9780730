//! Tells an agent of the mesh: a task for its skill, of the home itself and below the task that it
//! tells of. The same change is the same submission, so however often it is told it is one task, until
//! that fails for now. What becomes of that task it says itself, at its end.

use crate::domain::{AgentName, Fault, Reason, SkillName};
use crate::identity::{Action, authorize};
use crate::pb;
use crate::pb::task_event::Kind;
use crate::task::callback::{Above, Delivery, Outcome, RETENTION, Tells, letter};
use crate::task::doors::Parent;
use crate::task::home::{Below, Home, Submission};
use crate::wire;

/// Ends of a task that say nothing of what its agent thinks of it.
const FOR_NOW: [Reason; 6] = [
    Reason::AgentLost,
    Reason::RetriesExhausted,
    Reason::NoRoute,
    Reason::AgentUnavailable,
    Reason::SlotsFull,
    Reason::DeadlineExceeded,
];

/// One try: hands a task over that tells the agent, or looks what became of it.
pub(super) async fn tell(
    home: &Home,
    delivery: &Delivery,
    agent: &AgentName,
    skill: &SkillName,
) -> Outcome {
    let Some(above) = &delivery.above else {
        return Outcome::Refused("its home does not say what it is below".into());
    };
    let own = home.config().own.clone();
    for who in [&above.caller, &own] {
        if let Err(fault) = authorize(who, Action::SubmitTask, Some(&agent.namespace)) {
            return Outcome::Refused(fault.to_string());
        }
    }
    let asked = Submission {
        spec: spec(delivery, above, agent, skill),
        caller: own,
        trace: None,
    };
    let below = Below {
        parent: Box::new(Parent {
            task: above.task.clone(),
            attempt: delivery.event.attempt,
            deadline: delivery.until,
            chain: above.task.chain.clone(),
            trace: None,
        }),
        tells: Some(above.tells.clone()),
    };
    // Wherever: a key has its own shard.
    match home.submit_below(asked, below, 0).await {
        Ok(taken) => came_of(&taken.task, taken.task.failure.as_ref()),
        Err(fault) => refused(&fault),
    }
}

/// The end of a task that told an agent: says so to the one that it told of.
pub(super) async fn answer(home: &Home, tells: &Tells, end: &pb::TaskEvent) -> Outcome {
    let failure = match &end.kind {
        Some(Kind::Failure(failure)) => Some(failure),
        _ => None,
    };
    let task = pb::Task {
        id: end.task_id.clone(),
        state: end.state,
        ..pb::Task::default()
    };
    match home.answered(tells, came_of(&task, failure)).await {
        Ok(()) => Outcome::Delivered,
        Err(fault) => Outcome::Later {
            why: fault.to_string(),
            wait: None,
        },
    }
}

fn spec(delivery: &Delivery, above: &Above, agent: &AgentName, skill: &SkillName) -> pb::TaskSpec {
    let letter = letter(&delivery.event);
    let data = wire::json::to_value(letter.json);
    pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: skill.as_str().to_owned(),
            agent: agent.to_string(),
            ..pb::Selector::default()
        }),
        input: vec![pb::Part {
            content: Some(pb::part::Content::Data(data)),
            media_type: "application/json".into(),
            ..pb::Part::default()
        }],
        correlation_id: above.task.correlation_id.clone(),
        context_id: above.task.context_id.clone(),
        idempotency_key: match above.tells.round {
            0 => letter.key,
            round => format!("{}#{round}", letter.key),
        },
        options: Some(pb::TaskOptions {
            // It ends before, when the change is to be told no more: this is what is the same each time.
            timeout: RETENTION.try_into().ok(),
            // Its receiver can tell a repetition, by what it is told.
            on_agent_loss: pb::OnAgentLoss::Restart.into(),
            detached: true,
            ..pb::TaskOptions::default()
        }),
        ..pb::TaskSpec::default()
    }
}

/// What a task that tells an agent says by its state.
fn came_of(task: &pb::Task, failure: Option<&pb::Failure>) -> Outcome {
    let refused = |how: String| Outcome::Refused(format!("its task there ended as {how}"));
    match task.state() {
        pb::TaskState::Completed => Outcome::Delivered,
        pb::TaskState::Canceled => refused("CANCELED".into()),
        pb::TaskState::Failed | pb::TaskState::Rejected => {
            let failure = failure.cloned().unwrap_or_default();
            let how = format!("{}: {}", failure.reason, failure.message);
            let for_now = FOR_NOW.iter().any(|one| one.label() == failure.reason);
            if failure.retryable || for_now {
                Outcome::Anew(format!("its task there failed for now, {how}"))
            } else {
                refused(how)
            }
        }
        pb::TaskState::Unspecified
        | pb::TaskState::Submitted
        | pb::TaskState::Working
        | pb::TaskState::InputRequired
        | pb::TaskState::AuthRequired => Outcome::Given(task.id.clone()),
    }
}

/// Why the task was not taken in: for good, or for now.
fn refused(fault: &Fault) -> Outcome {
    let for_now = [
        Reason::QueueFull,
        Reason::DiskFull,
        Reason::Draining,
        Reason::StorageFailed,
        Reason::NoRoute,
        Reason::HomeUnavailable,
        Reason::DeadlineExceeded,
    ];
    if fault.reason == Reason::IdempotencyKeyReused {
        // Somebody else has used the key, or an earlier version told it in other words.
        Outcome::Anew(fault.to_string())
    } else if for_now.contains(&fault.reason) {
        Outcome::Later {
            why: fault.to_string(),
            wait: fault.retry_after,
        }
    } else {
        Outcome::Refused(fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_of_the_receiver_is_no_refusal() {
        let ended = |state: pb::TaskState, reason: &str, retryable| {
            let task = pb::Task {
                id: "i1.x".into(),
                state: state.into(),
                ..pb::Task::default()
            };
            let failure = pb::Failure {
                reason: reason.into(),
                retryable,
                ..pb::Failure::default()
            };
            came_of(&task, Some(&failure))
        };
        let failed = pb::TaskState::Failed;
        for (state, reason, retryable, expected) in [
            (pb::TaskState::Completed, "", false, "delivered"),
            (pb::TaskState::Working, "", false, "given"),
            (pb::TaskState::Submitted, "", false, "given"),
            (pb::TaskState::Canceled, "", false, "refused"),
            (pb::TaskState::Rejected, "", false, "refused"),
            (failed, "AGENT_ERROR", false, "refused"),
            (failed, "AGENT_ERROR", true, "anew"),
            (failed, "AGENT_LOST", false, "anew"),
            (failed, "RETRIES_EXHAUSTED", false, "anew"),
            (failed, "NO_ROUTE", false, "anew"),
            (failed, "DEADLINE_EXCEEDED", false, "anew"),
        ] {
            let came = match ended(state, reason, retryable) {
                Outcome::Delivered => "delivered",
                Outcome::Given(_) => "given",
                Outcome::Refused(_) => "refused",
                Outcome::Anew(_) => "anew",
                Outcome::Later { .. } | Outcome::Busy => "later",
            };
            assert_eq!(came, expected, "{state:?} {reason}");
        }
    }

    #[test]
    fn a_submission_that_finds_no_room_is_no_refusal_and_a_used_key_no_delivery() {
        let said = |reason| refused(&Fault::new(reason, "no"));
        assert!(matches!(said(Reason::QueueFull), Outcome::Later { .. }));
        assert!(matches!(
            said(Reason::IdempotencyKeyReused),
            Outcome::Anew(_)
        ));
        assert!(matches!(
            said(Reason::PermissionDenied),
            Outcome::Refused(_)
        ));
    }
}
