//! Tells an agent of the mesh: a task for its skill, of the home itself and below the task that it
//! tells of. The same change is the same submission, so however often it is told it is one task.

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::domain::{AgentName, Fault, Reason, SkillName};
use crate::identity::{Action, authorize};
use crate::pb;
use crate::pb::task_event::Kind;
use crate::pb::task_update::Update;
use crate::task::callback::{Delivery, Outcome, letter};
use crate::task::doors::Parent;
use crate::task::home::{Below, Home, Submission};
use crate::task::spec::DEADLINE_MAX;
use crate::wire;

/// One try: hands the task over, and waits for its end. The next try takes up the same task.
pub(super) async fn tell(
    home: &Home,
    delivery: &Delivery,
    agent: &AgentName,
    skill: &SkillName,
) -> Outcome {
    let own = home.config().own.clone();
    for who in [&delivery.caller, &own] {
        if let Err(fault) = authorize(who, Action::SubmitTask, Some(&agent.namespace)) {
            return Outcome::Refused(fault.to_string());
        }
    }
    let asked = Submission {
        spec: spec(delivery, agent, skill),
        caller: own,
        trace: None,
    };
    let below = Below(Box::new(Parent {
        task: told(delivery),
        attempt: delivery.event.attempt,
        // What it tells of has ended, most likely: that leaves it the time that callbacks have.
        deadline: Instant::now() + DEADLINE_MAX,
        chain: delivery.task.chain.clone(),
        trace: None,
    }));
    // Wherever: a key has its own shard.
    let updates = match home.run_below(asked, below, 0).await {
        Ok(taken) => taken.task,
        Err(fault) => return refused(&fault),
    };
    until_end(updates).await
}

/// The task that is told of, as what the callback's task goes below: whom its submitter would have it
/// delegated to says nothing of whom they would have told.
fn told(delivery: &Delivery) -> pb::Task {
    pb::Task {
        scope: Vec::new(),
        ..delivery.task.as_ref().clone()
    }
}

fn spec(delivery: &Delivery, agent: &AgentName, skill: &SkillName) -> pb::TaskSpec {
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
        correlation_id: delivery.task.correlation_id.clone(),
        context_id: delivery.task.context_id.clone(),
        idempotency_key: letter.key,
        options: Some(pb::TaskOptions {
            // A point in time, as the same submission has to say the same.
            deadline: Some(delivery.until.into()),
            // Its receiver can tell a repetition, by what it is told.
            on_agent_loss: pb::OnAgentLoss::Restart.into(),
            detached: true,
            ..pb::TaskOptions::default()
        }),
        ..pb::TaskSpec::default()
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
    ];
    if fault.reason == Reason::IdempotencyKeyReused {
        // It was taken in when less of the event was known, or more.
        Outcome::Delivered
    } else if for_now.contains(&fault.reason) {
        Outcome::Later {
            why: fault.to_string(),
            wait: fault.retry_after,
        }
    } else {
        Outcome::Refused(fault.to_string())
    }
}

async fn until_end(mut updates: crate::task::home::TaskUpdates) -> Outcome {
    let mut failure = None;
    while let Some(update) = updates.next().await {
        let state = match update.map(|update| update.update) {
            Ok(Some(Update::Task(task))) => {
                failure = task.failure.clone().or(failure);
                task.state()
            }
            Ok(Some(Update::Event(event))) => {
                let state = event.state();
                if let Some(Kind::Failure(told)) = event.kind {
                    failure = Some(told);
                }
                state
            }
            Ok(Some(Update::Transient(_) | Update::Keepalive(_)) | None) => continue,
            Err(fault) => return later(fault.to_string()),
        };
        let ended = match state {
            pb::TaskState::Completed => return Outcome::Delivered,
            pb::TaskState::Canceled => "CANCELED".to_owned(),
            pb::TaskState::Failed | pb::TaskState::Rejected => {
                let failure = failure.unwrap_or_default();
                format!("{}: {}", failure.reason, failure.message)
            }
            pb::TaskState::Unspecified
            | pb::TaskState::Submitted
            | pb::TaskState::Working
            | pb::TaskState::InputRequired
            | pb::TaskState::AuthRequired => continue,
        };
        return Outcome::Refused(format!("its task there ended as {ended}"));
    }
    later("its task there was not followed to its end".into())
}

fn later(why: String) -> Outcome {
    Outcome::Later { why, wait: None }
}
