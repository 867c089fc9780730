//! Callbacks: whoever asked is told of a task's changes, in order, whatever dies in between.

use std::collections::BTreeMap;

use attache::{
    pb::{self, TaskState, callback::Target},
    wire::status::reason_of,
};
use tonic::Code;

use crate::support::{
    client::{self, Local},
    hand::ByHand,
    mesh::{Site, agent},
    receiver::{Authority, Receiver},
    wait::{eventually, within},
};

mod ssrf;

/// A home, a worker and an agent that is told; the sidecars may call the receiver.
fn mesh(receiver: &Receiver, site: &tempfile::TempDir, authority: &Authority) -> String {
    let ca = site.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    agent("home", &["test.home"], "")
        + &agent("worker", &["test.brief"], "")
        + &agent("told", &["test.echo"], "")
        + &format!(
            "[sidecars.callbacks]\nca_file = {:?}\n[[sidecars.callbacks.allow]]\nhost = \"localhost\"\nports = [{}]\nallow_private = true\n",
            ca.display().to_string(),
            receiver.at.port()
        )
}

fn asked(target: Target, states: &[TaskState]) -> pb::TaskSpec {
    let callback = pb::Callback {
        target: Some(target),
        states: states.iter().map(|state| (*state).into()).collect(),
    };
    let mut spec = client::spec("test.brief", "20 done");
    spec.options.get_or_insert_default().callback = Some(callback);
    spec
}

fn url(receiver: &Receiver) -> String {
    format!(
        "https://localhost:{}/hook/s3cret?token=t0ken",
        receiver.at.port()
    )
}

async fn reaches(
    home: &Local,
    id: &str,
    wanted: impl Fn(&pb::Task, &pb::CallbackProgress) -> bool,
) -> pb::Task {
    let looks = eventually("the callback gets there", || {
        let (mut home, wanted) = (home.clone(), &wanted);
        async move {
            let task = client::full(&mut home, id)
                .await
                .map_err(|status| status.to_string())?;
            let progress = task.callback.clone().unwrap();
            if wanted(&task, &progress) {
                Ok(task)
            } else {
                Err(format!("{progress:?}"))
            }
        }
    });
    looks.await
}

fn is_told(task: &pb::Task, progress: &pb::CallbackProgress) -> bool {
    task.state() == TaskState::Completed && progress.delivered_seq == task.last_seq
}

#[tokio::test]
async fn an_agent_and_a_url_are_told_of_each_change_in_order() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start(&authority, &["localhost"]).await;
    let site = Site::new(&mesh(&receiver, &dir, &authority));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let both = [TaskState::Working, TaskState::Completed];

    // An agent: a task for each change, of the home, below the task.
    let to = Target::Agent(pb::AgentSkill {
        agent: "told".into(),
        skill: "test.echo".into(),
    });
    let task = client::submit(&mut home, asked(to, &both)).await.unwrap();
    let task = reaches(&home, &task.id, is_told).await;
    let request = pb::ListTasksRequest {
        skill: "test.echo".into(),
        ..Default::default()
    };
    let tells = home.list_tasks(request).await.unwrap().into_inner().tasks;
    let mut said = Vec::new();
    for one in &tells {
        assert_eq!((&one.parent_task_id, &one.caller), (&task.id, &task.caller));
        assert_eq!(one.executor.as_ref().unwrap().agent, "default/told");
        let whole = client::full(&mut home, &one.id).await.unwrap();
        let echoed = client::text_of(&whole.result.unwrap().parts);
        let echoed: serde_json::Value = serde_json::from_str(&echoed).unwrap();
        assert_eq!(echoed["task_id"], task.id.as_str());
        said.push((echoed["seq"].as_u64().unwrap(), echoed["state"].clone()));
    }
    said.sort_by_key(|(seq, _)| *seq);
    let expected = [
        (1, "TASK_STATE_WORKING".into()),
        (task.last_seq, "TASK_STATE_COMPLETED".into()),
    ];
    assert_eq!(said, expected);

    // A URL: that fails three times first.
    let later = |seconds: &str| (503, Some(("retry-after", seconds.to_owned())));
    receiver.answers([(500, None), later("1"), (429, None)]);
    let url = url(&receiver);
    let task = client::submit(&mut home, asked(Target::Url(url.clone()), &both))
        .await
        .unwrap();
    let task = reaches(&home, &task.id, is_told).await;
    let got = receiver.got();
    assert_eq!(got.len(), 5, "{got:?}");
    for (place, call) in got.iter().enumerate() {
        let seq = if place < 4 { 1 } else { task.last_seq };
        let json = call.json();
        assert_eq!(
            (&json["task_id"], &json["seq"]),
            (&task.id.clone().into(), &seq.into())
        );
        assert_eq!(json["event"]["seq"], seq.to_string());
        assert_eq!(call.path, "/hook/s3cret?token=t0ken");
        assert_eq!(call.header("content-type"), "application/json");
        assert_eq!(call.header("attache-task-id"), task.id);
        assert_eq!(call.header("attache-seq"), seq.to_string());
        assert_eq!(call.header("idempotency-key"), format!("{}/{seq}", task.id));
        if place < 4 {
            assert_eq!(call.text, got[0].text, "a repetition is the same");
        }
    }
    assert_eq!(
        got[4].json()["event"]["result"]["parts"][0]["text"],
        "20 done"
    );

    // What may be secret is shown to nobody.
    let shown = format!("{task:?}");
    assert!(shown.contains("https://localhost:"), "{shown}");
    assert!(!shown.contains("s3cret") && !site.logs().contains("t0ken"));

    // The command line tells it, and what is not allowed is refused with the key to set.
    let mesh = site.state().display().to_string();
    let run = async |arguments: &[&str]| {
        let all = [&["task"], arguments, &["--mesh", &mesh]].concat();
        let output = within("a command", site.attache(&all).output())
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let told = format!(
        "callback     https://localhost:{}/...; delivered up to",
        receiver.at.port()
    );
    let printed = run(&["get", &task.id]).await;
    assert!(printed.contains(&told), "{printed}");
    let submit = ["submit", "test.brief", "--text", "1 x", "--callback"];
    let printed = run(&[&submit[..], &["https://elsewhere.example/x"]].concat()).await;
    assert!(printed.contains("callbacks.allow"), "{printed}");
    let printed = run(&[&submit[..], &["default/told/test.echo"]].concat()).await;
    let id = printed.lines().next().unwrap();
    let worker = client::local(&up.instance("default/worker", 0).local);
    eventually(
        "the one that the command line asked for is told",
        || async {
            let shown = run(&["get", id]).await;
            let told = "default/told/test.echo; delivered up to";
            if shown.contains(told) {
                Ok(())
            } else {
                Err(shown)
            }
        },
    )
    .await;
    drop((up, worker));
}

#[tokio::test]
async fn a_home_that_dies_between_the_end_and_the_telling_tells_after_its_restart() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start(&authority, &["localhost"]).await;
    receiver.otherwise(503);
    let mut mesh = ByHand::started(&mesh(&receiver, &dir, &authority)).await;
    let mut home = mesh.local("home-1");
    let spec = asked(Target::Url(url(&receiver)), &[]);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    let tried = |task: &pb::Task, progress: &pb::CallbackProgress| {
        task.state() == TaskState::Completed && progress.tries > 0
    };
    let task = reaches(&home, &id, tried).await;
    mesh.kill("home-1").await;
    let before = receiver.got();
    receiver.otherwise(200);
    mesh.start("home-1");
    mesh.ready("home-1").await;
    let home = mesh.local("home-1");
    let again = reaches(&home, &id, is_told).await;
    assert_eq!(again.last_seq, task.last_seq);
    let got = receiver.got();
    assert!(got.len() > before.len(), "{got:?}");
    for call in &got {
        assert_eq!(
            (&call.text, call.header("idempotency-key")),
            (&before[0].text, before[0].header("idempotency-key"))
        );
    }
    // Told for good: another restart tells nothing.
    mesh.kill("home-1").await;
    let told = receiver.got().len();
    mesh.start("home-1");
    mesh.ready("home-1").await;
    let mut home = mesh.local("home-1");
    client::watch_whole(&mut home, &id).await;
    let spec = asked(Target::Url(url(&receiver)), &[]);
    let next = client::submit(&mut home, spec).await.unwrap().id;
    reaches(&home, &next, is_told).await;
    assert_eq!(receiver.got().len(), told + 1, "only the next one was told");
}

#[tokio::test]
async fn a_receiver_that_was_away_is_told_everything_in_order() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start(&authority, &["localhost"]).await;
    receiver.away(true);
    let site = Site::new(&mesh(&receiver, &dir, &authority));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let both = [TaskState::Working, TaskState::Completed];
    let mut ids = Vec::new();
    for _ in 0..20 {
        let spec = asked(Target::Url(url(&receiver)), &both);
        ids.push(client::submit(&mut home, spec).await.unwrap().id);
    }
    let tried = |task: &pb::Task, progress: &pb::CallbackProgress| {
        task.state() == TaskState::Completed && progress.tries > 1 && progress.waiting == 2
    };
    for id in &ids {
        let progress = reaches(&home, id, tried).await.callback.unwrap();
        assert_eq!((progress.delivered_seq, progress.given_up_seq), (0, 0));
    }
    assert!(receiver.got().is_empty());

    // It is there, and away again in the middle of it.
    receiver.away(false);
    eventually("it is told of some of them", || async {
        let got = receiver.got().len();
        if got > 5 {
            Ok(())
        } else {
            Err(got.to_string())
        }
    })
    .await;
    receiver.answers((0..10).map(|_| (503, None)));
    for id in &ids {
        reaches(&home, id, is_told).await;
    }
    let mut told: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for call in receiver.got() {
        let seq = call.header("attache-seq").parse().unwrap();
        let task = told
            .entry(call.header("attache-task-id").into())
            .or_default();
        let latest = task.last_key_value().map_or(0, |(seq, _)| *seq);
        assert!(seq >= latest, "{seq} after {latest}");
        let first = task.entry(seq).or_insert_with(|| call.text.clone());
        assert_eq!(*first, call.text, "a repetition is the same");
    }
    for id in &ids {
        let last = client::full(&mut home, id).await.unwrap().last_seq;
        assert!(told[id].keys().eq(&[1, last]), "{:?}", told[id].keys());
    }
    drop(up);
}

#[tokio::test]
async fn what_may_not_be_called_back_is_refused_at_the_door() {
    let site =
        Site::new(&(agent("home", &["test.home"], "") + &agent("worker", &["test.brief"], "")));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let agent = |name: &str| {
        Target::Agent(pb::AgentSkill {
            agent: name.into(),
            skill: "test.echo".into(),
        })
    };
    let url = |text: &str| Target::Url(text.into());
    for (target, code, reason) in [
        (
            url("https://hooks.example/x"),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
        (
            url("https://127.0.0.1/x"),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
        (
            url("http://hooks.example/x"),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            url("https://a:b@hooks.example/"),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            agent("other/told"),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
        (
            agent("no such name"),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
    ] {
        let shown = format!("{target:?}");
        let refused = client::submit(&mut home, asked(target, &[]))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{shown}: {refused:?}");
        assert_eq!(reason_of(&refused).as_deref(), Some(reason), "{shown}");
    }
    drop(up);
}
