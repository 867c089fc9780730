//! Agents that ask: the same task goes on with the answer, whatever dies in between.

use attache::{
    pb::{self, TaskState, part::Content, task_event::Kind, task_update::Update},
    wire::{json::to_value, status::reason_of},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{
    client::{self, Local, Seen},
    hand::{ByHand, REGISTRY},
    mesh::{Site, agent},
    tools::{fetched, root, run},
    wait::{eventually, within},
};

/// A home for tasks, and somebody elsewhere who asks.
fn mesh() -> String {
    agent("home", &["test.home"], "") + &asker("")
}

fn asker(more: &str) -> String {
    let more = format!("max_concurrent_tasks = 1\n{more}");
    agent("worker", &["test.consult", "test.echo.consult"], &more)
}

fn text(said: &str) -> pb::Part {
    pb::Part {
        content: Some(Content::Text(said.into())),
        ..Default::default()
    }
}

fn data(value: serde_json::Value) -> pb::Part {
    pb::Part {
        content: Some(Content::Data(to_value(value))),
        ..Default::default()
    }
}

async fn respond(
    client: &mut Local,
    id: &str,
    question: &str,
    part: pb::Part,
) -> Result<pb::RespondTaskResponse, Status> {
    let request = pb::RespondTaskRequest {
        task_id: id.into(),
        question_id: question.into(),
        parts: vec![part],
    };
    let answer = within("an answer is taken", client.respond_task(request)).await?;
    Ok(answer.into_inner())
}

/// Waits until the task asks this.
async fn asks(client: &Local, id: &str, question: &str) -> pb::Task {
    eventually(&format!("{id} asks {question}"), || {
        let mut client = client.clone();
        async move {
            let task = client::full(&mut client, id).await;
            let task = task.map_err(|status| status.to_string())?;
            let asked = task.question.as_ref().map(|asked| &*asked.question_id);
            if asked == Some(question) {
                Ok(task)
            } else {
                Err(format!("{:?} {asked:?} {:?}", task.state(), task.failure))
            }
        }
    })
    .await
}

fn refused(answer: Result<pb::RespondTaskResponse, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), reason_of(&status).unwrap())
}

async fn listed(client: &mut Local, state: TaskState) -> Vec<String> {
    let request = pb::ListTasksRequest {
        states: vec![state.into()],
        ..Default::default()
    };
    let page = client.list_tasks(request).await.unwrap().into_inner();
    page.tasks.into_iter().map(|task| task.id).collect()
}

#[tokio::test]
async fn a_question_is_answered_and_the_same_task_goes_on() {
    let site = Site::new(&mesh());
    let mut up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let worker = client::local(&up.instance("default/worker", 0).local);

    // The call that runs it goes on over its questions.
    let spec = client::bounded("test.consult", "2 number -", 120);
    let request = pb::RunTaskRequest { spec: Some(spec) };
    let mut stream = home.run_task(request).await.unwrap().into_inner();
    let mut seen = Seen::default();
    let mut asked = 0;
    while let Some(response) = within("the call goes on", stream.message()).await.unwrap() {
        let update = response.update.unwrap();
        let question = match &update.update {
            Some(Update::Event(event)) => match &event.kind {
                Some(Kind::Question(question)) => Some(question.question_id.clone()),
                _ => None,
            },
            _ => None,
        };
        seen.take(update);
        let Some(question) = question else { continue };
        asked += 1;
        assert_eq!(question, format!("q{asked}"));
        let id = seen.id.clone();
        assert_eq!(seen.state(), TaskState::InputRequired);
        assert_eq!(listed(&mut home, TaskState::InputRequired).await, [&*id]);
        assert!(listed(&mut home, TaskState::Working).await.is_empty());
        if asked == 1 {
            // The one slot is free while it asks.
            let other = client::bounded("test.consult", "0 text -", 60);
            let other = client::run(&mut home, other).await.unwrap();
            assert_eq!(other.state(), TaskState::Completed);

            let wrong = respond(
                &mut home,
                &id,
                &question,
                data(serde_json::json!({"n": "x"})),
            );
            let status = wrong.await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "INPUT_INVALID");
            let fact = |name: &str| info.metadata[name].as_str();
            assert_eq!((fact("pointer"), fact("rule")), ("/n", "type"));
            assert_eq!(fact("expected"), r#"{"type":"integer"}"#);
            let other = respond(&mut home, &id, "q7", text("x")).await;
            assert_eq!(
                refused(other),
                (Code::NotFound, "QUESTION_NOT_FOUND".into())
            );
            // Its sidecar is ready before it has heard of all others.
            let itself = eventually("the worker's sidecar knows the home", || async {
                let answered = respond(&mut worker.clone(), &id, &question, text("x")).await;
                let (code, reason) = refused(answered);
                (code != Code::Unavailable)
                    .then_some((code, reason.clone()))
                    .ok_or(reason)
            });
            assert_eq!(
                itself.await,
                (Code::PermissionDenied, "PERMISSION_DENIED".into())
            );
        }
        let answer = data(serde_json::json!({ "n": asked }));
        let taken = respond(&mut home, &id, &question, answer.clone()).await;
        let taken = taken.unwrap();
        assert!(!taken.replayed);
        assert_eq!(taken.task.unwrap().question, None);
        let again = respond(&mut home, &id, &question, answer).await.unwrap();
        assert!(again.replayed);
        let other = data(serde_json::json!({ "n": 99 }));
        let other = respond(&mut home, &id, &question, other).await;
        assert_eq!(
            refused(other),
            (Code::FailedPrecondition, "QUESTION_ANSWERED".into())
        );
    }
    let seen = seen.whole();
    let result = r#"q1={"n":1}, q2={"n":2}; run 3"#;
    assert_eq!(seen.result().as_deref(), Some(result));
    assert_eq!(
        client::watch_whole(&mut home, &seen.id).await.events,
        seen.events
    );
    let answer = data(serde_json::json!({ "n": 1 }));
    let late = respond(&mut home, &seen.id, "q1", answer).await.unwrap();
    assert!(late.replayed, "also after its end");
    let late = respond(&mut home, &seen.id, "q3", text("x")).await;
    assert_eq!(
        refused(late),
        (Code::FailedPrecondition, "TASK_ENDED".into())
    );
    let messages = client::full(&mut home, &seen.id).await.unwrap().messages;
    assert_eq!(messages.len(), 5, "input, questions and answers");

    // In memory only, and a right that is missing.
    let mut spec = client::bounded("test.consult", "1 right -", 120);
    spec.options.as_mut().unwrap().durability = pb::Durability::Ephemeral.into();
    let id = client::submit(&mut home, spec).await.unwrap().id;
    let task = asks(&home, &id, "q1").await;
    assert_eq!(task.state(), TaskState::AuthRequired);
    respond(&mut home, &id, "q1", text("granted"))
        .await
        .unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("q1=granted; run 2"));

    // A schema that is none.
    let spec = client::bounded("test.consult", "1 broken -", 60);
    let failure = client::run(&mut home, spec).await.unwrap().failure();
    assert_eq!(failure.reason, "AGENT_ERROR");
    assert!(failure.message.contains("answer_schema"), "{failure:?}");
    up.signal(rustix::process::Signal::INT);
    up.ended().await;
}

#[tokio::test]
async fn a_task_that_asks_ends_by_cancellation_and_by_its_deadline() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let spec = client::bounded("test.consult", "1 text -", 120);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    asks(&home, &id, "q1").await;
    let request = pb::CancelTaskRequest {
        task_id: id.clone(),
        reason: "nobody knows".into(),
    };
    let canceled = home.cancel_task(request).await.unwrap().into_inner().task;
    let canceled = canceled.unwrap();
    assert_eq!(canceled.state(), TaskState::Canceled, "at once");
    assert!(canceled.cancel_confirmed);
    let late = respond(&mut home, &id, "q1", text("x")).await;
    assert_eq!(
        refused(late),
        (Code::FailedPrecondition, "TASK_ENDED".into())
    );
    client::watch_whole(&mut home, &id).await;

    let spec = client::bounded("test.consult", "1 text -", 5);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    asks(&home, &id, "q1").await;
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.failure().reason, "DEADLINE_EXCEEDED");
    let late = respond(&mut home, &id, "q1", text("x")).await;
    assert_eq!(
        refused(late),
        (Code::FailedPrecondition, "TASK_ENDED".into())
    );
}

#[tokio::test]
async fn children_end_with_the_attempt_that_asked_and_detached_ones_go_on() {
    let holder = agent("holder", &["test.hold"], "");
    let site = Site::new(&(mesh() + &holder));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let worker = client::local(&up.instance("default/worker", 0).local);
    let gate = site.path("gate").display().to_string();
    let spec = client::bounded("test.consult", &format!("1 parent {gate}"), 120);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    asks(&home, &id, "q1").await;
    let children = eventually("one child goes on", || {
        let (mut worker, id) = (worker.clone(), id.clone());
        async move {
            let request = pb::ListTasksRequest {
                parent_task_id: id,
                ..Default::default()
            };
            let page = worker.list_tasks(request).await.unwrap().into_inner();
            let stands: Vec<_> = page
                .tasks
                .iter()
                .map(|task| (task.options.as_ref().unwrap().detached, task.state()))
                .collect();
            let wanted = [(true, TaskState::Working), (false, TaskState::Canceled)];
            if stands == wanted {
                Ok(page.tasks)
            } else {
                Err(format!("{stands:?}"))
            }
        }
    })
    .await;
    std::fs::write(&gate, "").unwrap();
    let mut worker = worker;
    let seen = client::watch_whole(&mut worker, &children[0].id).await;
    assert_eq!(seen.state(), TaskState::Completed);
    respond(&mut home, &id, "q1", text("yes")).await.unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("q1=yes; run 2"));
}

#[tokio::test]
async fn after_a_kill_of_everything_the_same_task_goes_on_with_all_inputs() {
    let mut mesh = ByHand::started(&mesh()).await;
    let mut home = mesh.local("home-1");
    let spec = client::bounded("test.consult", "3 text -", 600);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    asks(&home, &id, "q1").await;
    respond(&mut home, &id, "q1", text("one")).await.unwrap();
    for (question, answer) in [("q2", "two"), ("q3", "three")] {
        let before = asks(&home, &id, question).await;
        for name in [
            "home-1",
            "worker-1",
            "home-1-agent",
            "worker-1-agent",
            REGISTRY,
        ] {
            mesh.kill(name).await;
        }
        mesh.start_all().await;
        home = mesh.local("home-1");
        let after = asks(&home, &id, question).await;
        assert_eq!(after, before, "nothing has happened to it");
        respond(&mut home, &id, question, text(answer))
            .await
            .unwrap();
    }
    let seen = client::watch_whole(&mut home, &id).await;
    let result = "q1=one, q2=two, q3=three; run 4";
    assert_eq!(seen.result().as_deref(), Some(result));
    let again = respond(&mut home, &id, "q2", text("two")).await.unwrap();
    assert!(again.replayed);
}

#[tokio::test]
async fn an_executor_that_is_lost_after_the_answer_leaves_all_inputs_to_the_next() {
    let mesh = agent("home", &["test.home"], "") + &asker("instances = 2");
    let mut mesh = ByHand::started(&mesh).await;
    let mut home = mesh.local("home-1");
    let workers = ["worker-1", "worker-2"];
    mesh.finds("home-1", "test.consult", &workers).await;
    let gate = mesh.site.path("gate").display().to_string();
    for (skill, goes_on) in [("test.echo.consult", true), ("test.consult", false)] {
        let spec = client::bounded(skill, &format!("2 text {gate}"), 600);
        let id = client::submit(&mut home, spec).await.unwrap().id;
        let first = asks(&home, &id, "q1").await;
        respond(&mut home, &id, "q1", text("one")).await.unwrap();
        let second = asks(&home, &id, "q2").await;
        assert_eq!(
            second.executor_instance, first.executor_instance,
            "it stays"
        );
        assert_eq!(second.attempt, 2);
        respond(&mut home, &id, "q2", text("two")).await.unwrap();
        let working = eventually("it works", || {
            let (mut home, id) = (home.clone(), id.clone());
            async move {
                let task = client::full(&mut home, &id).await.unwrap();
                let works = task.state() == TaskState::Working && task.attempt == 3;
                if works {
                    Ok(task)
                } else {
                    Err(format!("{:?}", task.state()))
                }
            }
        })
        .await;
        let at = working.executor_instance;
        let lost = workers
            .iter()
            .find(|name| mesh.instance(name) == at)
            .unwrap();
        mesh.kill(lost).await;
        mesh.start(lost);
        mesh.ready(lost).await;
        if !goes_on {
            let seen = client::watch_whole(&mut home, &id).await;
            assert_eq!(seen.failure().reason, "AGENT_LOST");
            break;
        }
        std::fs::write(&gate, "").unwrap();
        let seen = client::watch_whole(&mut home, &id).await;
        assert_eq!(seen.result().as_deref(), Some("q1=one, q2=two; run 4"));
        assert_eq!(seen.events.last().unwrap().attempt, 4);
        std::fs::remove_file(&gate).unwrap();
        mesh.finds("home-1", "test.consult", &workers).await;
    }
}

#[tokio::test]
async fn the_command_line_shows_what_is_asked_and_answers_it() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let state = site.state().display().to_string();
    let command = |words: &[&str]| {
        let mut all = vec!["task", words[0], "--mesh", &state];
        all.extend(&words[1..]);
        site.attache(&all)
    };
    let wanted = [
        "run",
        "test.consult",
        "--text",
        "1 number -",
        "--timeout",
        "120s",
    ];
    let mut wanted = command(&wanted);
    let running = run(&mut wanted);
    let answered = async {
        let id = eventually("it is listed", || async {
            let list = ["list", "--state", "input-required", "--output", "json"];
            let listed = run(&mut command(&list)).await.ok();
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let id = listed[0]["id"].as_str().map(str::to_owned);
            id.ok_or_else(|| listed.to_string())
        })
        .await;
        let shown = run(&mut command(&["get", &id])).await;
        let (out, err) = (shown.out, shown.err);
        assert!(out.contains("asks (q1): what of 1?"), "{out}");
        assert!(err.contains(&format!("{id} --data JSON")), "{err}");
        let tree = run(&mut command(&["tree", &id])).await.ok();
        assert!(tree.contains("input required: what of 1?"), "{tree}");
        let nothing = run(&mut command(&["respond", &id])).await;
        assert_eq!(nothing.code, Some(2), "{}", nothing.err);
        let wrong = run(&mut command(&["respond", &id, "--data", "{}"])).await;
        assert_eq!(wrong.code, Some(2));
        assert!(wrong.err.contains("(INPUT_INVALID)"), "{}", wrong.err);
        let words = ["respond", &id, "--data", r#"{"n": 7}"#, "--output", "json"];
        let task = run(&mut command(&words)).await.ok();
        let task: serde_json::Value = serde_json::from_str(&task).unwrap();
        assert_eq!(task["id"], *id);
        let words = ["respond", &id, "--question", "q1", "--data", r#"{"n": 7}"#];
        let again = run(&mut command(&words)).await;
        assert!(again.err.contains("given before"), "{}", again.err);
        let late = run(&mut command(&["respond", &id, "--text", "x"])).await;
        assert!(late.err.contains("(TASK_ASKS_NOTHING)"), "{}", late.err);
    };
    let (ran, ()) = tokio::join!(running, answered);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.trim(), r#"q1={"n":7}; run 2"#);
    assert!(ran.err.contains("asks: what of 1?"), "{}", ran.err);
    assert!(ran.err.contains("to answer: "), "{}", ran.err);
    drop(up);
}

#[tokio::test]
async fn a_handler_in_python_asks_and_is_answered() {
    let test = "questions::a_handler_in_python_asks_and_is_answered";
    let (Some(python), Some(stubs)) = (fetched("python/bin/python", test), fetched("stubs", test))
    else {
        return;
    };
    let script = root().join("tests/polyglot/python/asker.py");
    let mesh = format!(
        "[[agents]]\nname = \"asker\"\ncommand = [{:?}, {:?}]\nenv = {{ PYTHONPATH = {:?} }}\n\
         [[agents.skills]]\nname = \"python.order\"\n",
        python.display().to_string(),
        script.display().to_string(),
        stubs.display().to_string(),
    );
    let site = Site::new(&(mesh + &agent("home", &["test.home"], "")));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let spec = client::bounded("python.order", "a shirt", 120);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    let task = asks(&home, &id, "size").await;
    assert_eq!(task.state(), TaskState::InputRequired);
    let answer = data(serde_json::json!({"size": 3}));
    respond(&mut home, &id, "size", answer).await.unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("a shirt in 3"));
}
