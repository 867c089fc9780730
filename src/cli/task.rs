//! `attache task`: submit, follow, read, answer and cancel tasks.

use std::collections::BTreeSet;

use crate::{
    cli::{
        agents::qualified,
        args::{MeshArgs, StateArg, TaskArgs, TaskVerb},
        content::content,
        exit::{Exit, Failed},
        follow,
        mesh::Mesh,
        output::Output,
        respond, show, tree,
    },
    pb::{self, agent_client::AgentClient},
    runtime::Nursery,
    transport::Channel,
    wire::{json, status::reason_of},
};

/// Carries out one verb.
///
/// # Errors
/// What the mesh answers, in words.
pub(super) async fn run(
    verb: TaskVerb,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    match verb {
        TaskVerb::Submit(args) => {
            let mesh = Mesh::find(&args.mesh, nursery)?;
            Box::pin(submit(&mesh, &args, output)).await
        }
        TaskVerb::Run(args) => {
            let mesh = Mesh::find(&args.mesh, nursery)?;
            let mut at = choose(&mesh, &args).await?;
            let spec = spec(&args)?;
            Box::pin(follow::run(&mut at, spec, &args.mesh, output)).await
        }
        TaskVerb::Get { mesh, id } => get(mesh, &id, output, nursery).await,
        TaskVerb::List {
            mesh,
            skill,
            state,
            limit,
        } => {
            let mesh = Mesh::find(&mesh, nursery)?;
            list(&mesh, skill.unwrap_or_default(), &state, limit, output).await
        }
        TaskVerb::Watch { mesh, id, after } => {
            let found = Mesh::find(&mesh, nursery)?;
            let home = found.home_of(&id).await?;
            follow::watch(home, &id, after, &mesh, output).await
        }
        TaskVerb::Tree { mesh, id } => tree::run(mesh, &id, output, nursery).await,
        TaskVerb::Respond(args) => respond::run(&args, output, nursery).await,
        TaskVerb::Cancel { mesh, id, reason } => {
            let mut home = Mesh::find(&mesh, nursery)?.home_of(&id).await?;
            let request = pb::CancelTaskRequest {
                task_id: id,
                reason,
            };
            let task = home
                .cancel_task(request)
                .await?
                .into_inner()
                .task
                .unwrap_or_default();
            print_task(&task, output);
            Ok(Exit::Done)
        }
    }
}

/// The sidecar to hand the task to: of the agents that offer the skill, the least busy; for a key
/// always the same one.
async fn choose(mesh: &Mesh, args: &TaskArgs) -> Result<AgentClient<Channel>, Failed> {
    let selector = pb::Selector {
        skill: args.skill.clone(),
        agent: qualified(args.agent.as_deref().unwrap_or_default()),
        ..Default::default()
    };
    let request = pb::DiscoverRequest {
        selector: Some(selector),
        limit: 0,
    };
    let found = mesh
        .registry()
        .discover(request)
        .await?
        .into_inner()
        .instances;
    let chosen = match &args.key {
        Some(key) => same_for(key, &found),
        None => found.iter().min_by_key(|instance| {
            let load = instance.load.unwrap_or_default();
            u64::from(load.running) * 1000 / u64::from(load.slots.max(1))
        }),
    };
    match chosen {
        Some(instance) => mesh.agent(instance),
        None => Err(nobody(mesh, args).await),
    }
}

/// The one that a key goes to while it is there, whoever comes and goes beside it: keys are known
/// where they were used. Rendezvous hashing (Thaler and Ravishankar, 1998).
fn same_for<'a>(key: &str, found: &'a [pb::Instance]) -> Option<&'a pb::Instance> {
    let weight = |instance: &&pb::Instance| {
        let both = [key.as_bytes(), b"@", instance.id.as_bytes()].concat();
        (crc32fast::hash(&both), instance.id.clone())
    };
    found.iter().max_by_key(weight)
}

async fn nobody(mesh: &Mesh, args: &TaskArgs) -> Failed {
    let everybody = mesh.everybody().await.unwrap_or_default();
    let offered: BTreeSet<&str> = everybody
        .iter()
        .flat_map(|found| found.card.skills.iter().map(|skill| skill.name.as_str()))
        .collect();
    Failed::new(
        Exit::NotFound,
        not_offered(&args.skill, args.agent.as_deref(), &offered),
    )
}

/// Why nobody was found, with the nearest that is there.
fn not_offered(skill: &str, agent: Option<&str>, offered: &BTreeSet<&str>) -> String {
    let see = "`attache agents list` shows who is there, and their health";
    if offered.contains(skill) {
        let by = agent.map_or(String::new(), |agent| format!(" of {}", qualified(agent)));
        return format!("no live instance{by} offers {skill} now (NO_ROUTE); {see}");
    }
    if offered.is_empty() {
        return format!("no agent is in the mesh yet (NO_ROUTE); {see}");
    }
    let nearest = offered
        .iter()
        .map(|known| (strsim::damerau_levenshtein(skill, known), *known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3);
    let nearest = nearest.map_or(String::new(), |(_, known)| {
        format!(", did you mean {known}?")
    });
    let offered: Vec<&str> = offered.iter().copied().collect();
    let offered = offered.join(", ");
    format!("no agent offers {skill} (NO_ROUTE){nearest} Offered: {offered}; {see}")
}

async fn submit(mesh: &Mesh, args: &TaskArgs, output: &Output) -> Result<Exit, Failed> {
    let mut at = choose(mesh, args).await?;
    let request = pb::SubmitTaskRequest {
        spec: Some(spec(args)?),
    };
    let answer = follow::insist(output, async || at.submit_task(request.clone()).await).await?;
    let answer = answer.into_inner();
    let task = answer.task.unwrap_or_default();
    if answer.replayed {
        output.note(follow::REPLAYED);
    }
    if output.is_json() {
        output.json(&json::message("Task", &task));
    } else {
        output.line(&task.id);
        output.note(&follow::commands(&task.id, &args.mesh));
    }
    Ok(Exit::Done)
}

fn spec(args: &TaskArgs) -> Result<pb::TaskSpec, Failed> {
    let input = content(args.text.as_ref(), args.data.as_ref(), &args.file)?;
    let timeout = args.timeout.map(|span| {
        prost_types::Duration::try_from(span.0)
            .map_err(|error| Failed::usage(format!("--timeout: {error}")))
    });
    Ok(pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: args.skill.clone(),
            agent: qualified(args.agent.as_deref().unwrap_or_default()),
            ..Default::default()
        }),
        input,
        options: Some(pb::TaskOptions {
            timeout: timeout.transpose()?,
            fail_fast: args.fail_fast,
            priority: args.priority.unwrap_or_default(),
            ..Default::default()
        }),
        correlation_id: args.correlation.clone().unwrap_or_default(),
        scope: args
            .scope
            .iter()
            .map(|(agent, skill)| pb::AgentSkill {
                agent: qualified(agent),
                skill: skill.clone(),
            })
            .collect(),
        // So that it can be said again when its answer is lost.
        idempotency_key: args
            .key
            .clone()
            .unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        ..Default::default()
    })
}

async fn get(args: MeshArgs, id: &str, output: &Output, nursery: &Nursery) -> Result<Exit, Failed> {
    let mut home = Mesh::find(&args, nursery)?.home_of(id).await?;
    let view = pb::TaskView::Full.into();
    let request = pb::GetTaskRequest {
        task_id: id.to_owned(),
        view,
    };
    let answer = home.get_task(request).await?.into_inner();
    let task = answer.task.unwrap_or_default();
    print_task(&task, output);
    if let Some(question) = &task.question
        && !output.is_json()
    {
        output.note(&respond::how(&task.id, question, &args));
    }
    if answer.truncated {
        output.note("parts were left out: they do not fit in one answer");
    }
    Ok(Exit::Done)
}

pub(super) fn print_task(task: &pb::Task, output: &Output) {
    if output.is_json() {
        output.json(&json::message("Task", task));
        return;
    }
    let mut rows: Vec<(&str, String)> = vec![
        ("id", task.id.clone()),
        ("skill", task.skill.clone()),
        ("state", show::state(task.state()).to_owned()),
        ("attempt", task.attempt.to_string()),
        ("caller", task.caller.clone()),
        (
            "executor",
            task.executor.clone().map_or(String::new(), |on| on.agent),
        ),
        ("instance", task.executor_instance.clone()),
        ("handed to", task.delegated_to.clone()),
        ("parent", task.parent_task_id.clone()),
        ("correlation", task.correlation_id.clone()),
        ("created", show::time(task.created_at.as_ref())),
        ("ended", show::time(task.ended_at.as_ref())),
        (
            "failure",
            task.failure.as_ref().map_or(String::new(), show::failure),
        ),
    ];
    if task.cancel_requested {
        let seen = if task.cancel_confirmed { "yes" } else { "no" };
        rows.push(("cancel confirmed", seen.to_owned()));
    }
    for (key, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("{key:<12} {}", super::output::clean(&value)));
    }
    if let Some(question) = &task.question {
        output.line(&format!("\n{}", respond::question(question)));
    }
    if let Some(result) = &task.result {
        output.line(&format!("\n{}", show::result(result)));
    }
}

/// The first `limit` tasks: a page may hold fewer than asked for.
async fn pages(
    home: &mut AgentClient<Channel>,
    mut request: pb::ListTasksRequest,
    limit: usize,
) -> Result<Vec<pb::Task>, tonic::Status> {
    let mut tasks = Vec::new();
    while tasks.len() < limit {
        let page = home.list_tasks(request.clone()).await?.into_inner();
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(tasks)
}

/// Tasks of all homes that can be reached, at most `limit` of each; whoever reads is told of others.
pub(super) async fn everywhere(
    mesh: &Mesh,
    request: &pb::ListTasksRequest,
    limit: usize,
    output: &Output,
) -> Result<Vec<pb::Task>, Failed> {
    let mut tasks = Vec::new();
    for found in mesh.everybody().await? {
        let mut home = mesh.agent(&found.instance)?;
        match pages(&mut home, request.clone(), limit).await {
            Ok(found) => tasks.extend(found),
            Err(status) if reason_of(&status).as_deref() == Some("PEER_UNREACHABLE") => {
                let id = &found.instance.id;
                output.note(&format!("{id}: not reached, its tasks are not shown"));
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(tasks)
}

async fn list(
    mesh: &Mesh,
    skill: String,
    states: &[StateArg],
    limit: usize,
    output: &Output,
) -> Result<Exit, Failed> {
    let request = pb::ListTasksRequest {
        page_size: i32::try_from(limit.min(1000)).unwrap_or(1000),
        skill,
        states: states.iter().map(|state| pb_state(*state).into()).collect(),
        ..Default::default()
    };
    let mut tasks = everywhere(mesh, &request, limit, output).await?;
    let created = |task: &pb::Task| task.created_at.map(|at| (at.seconds, at.nanos));
    tasks.sort_by_key(|task| std::cmp::Reverse(created(task)));
    tasks.truncate(limit);
    if output.is_json() {
        output.json(
            &tasks
                .iter()
                .map(|task| json::message("Task", task))
                .collect(),
        );
        return Ok(Exit::Done);
    }
    let rows = tasks.iter().map(|task| {
        vec![
            task.id.clone(),
            task.skill.clone(),
            show::state(task.state()).to_owned(),
            task.failure
                .as_ref()
                .map_or(String::new(), |failure| failure.reason.clone()),
            show::time(task.created_at.as_ref()),
        ]
    });
    output.table(
        &["task", "skill", "state", "reason", "created"],
        rows.collect(),
    );
    Ok(Exit::Done)
}

fn pb_state(state: StateArg) -> pb::TaskState {
    match state {
        StateArg::Submitted => pb::TaskState::Submitted,
        StateArg::Working => pb::TaskState::Working,
        StateArg::Completed => pb::TaskState::Completed,
        StateArg::Failed => pb::TaskState::Failed,
        StateArg::Canceled => pb::TaskState::Canceled,
        StateArg::Rejected => pb::TaskState::Rejected,
        StateArg::InputRequired => pb::TaskState::InputRequired,
        StateArg::AuthRequired => pb::TaskState::AuthRequired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_to_one_instance_while_that_is_there() {
        let instance = |id: u32| pb::Instance {
            id: format!("i{id}"),
            ..Default::default()
        };
        let all: Vec<_> = (0..9).map(instance).collect();
        let mut to = BTreeSet::new();
        for key in 0..50 {
            let key = format!("key {key}");
            let first = same_for(&key, &all).unwrap().id.clone();
            let turned: Vec<_> = all.iter().rev().cloned().collect();
            assert_eq!(same_for(&key, &turned).unwrap().id, first);
            let fewer: Vec<_> = all.iter().filter(|one| one.id != "i3").cloned().collect();
            assert!(first == "i3" || same_for(&key, &fewer).unwrap().id == first);
            to.insert(first);
        }
        assert!(to.len() > 4, "{to:?}");
        assert!(same_for("key", &[]).is_none());
    }

    #[test]
    fn whoever_finds_nobody_is_told_why() {
        let offered = BTreeSet::from(["research.answer", "search.passages"]);
        let typo = not_offered("research.anwser", None, &offered);
        assert!(typo.contains("did you mean research.answer?"), "{typo}");
        let strange = not_offered("billing.check", None, &offered);
        assert!(!strange.contains("did you mean"), "{strange}");
        assert!(strange.contains("search.passages"), "{strange}");
        let elsewhere = not_offered("search.passages", Some("research"), &offered);
        assert!(
            elsewhere.contains("no live instance of default/research offers"),
            "{elsewhere}"
        );
        let empty = not_offered("search.passages", None, &BTreeSet::new());
        assert!(empty.contains("no agent is in the mesh yet"), "{empty}");
    }
}
