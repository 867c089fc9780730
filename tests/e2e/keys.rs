//! Idempotency keys: whoever asks again and again, through whatever crash, has one task.

use std::{collections::BTreeMap, time::Duration};

use attache::{
    pb::{self, TaskState},
    wire::status::reason_of,
};
use tokio::{task::JoinSet, time::sleep};
use tonic::{Code, Status};

use crate::support::{
    client::{self, Local},
    hand::ByHand,
    mesh::{Site, agent},
    wait::{eventually, within},
};

/// Callers, each with a key after the other.
const CALLERS: usize = 8;
/// Times that the home is killed.
const KILLS: usize = 5;

fn mesh() -> String {
    agent("home", &["test.home"], "") + &agent("worker", &["test.echo"], "max_concurrent_tasks = 4")
}

async fn submit(home: &mut Local, key: &str, text: &str) -> Result<(String, bool), Status> {
    let spec = pb::TaskSpec {
        idempotency_key: key.to_owned(),
        correlation_id: key.to_owned(),
        ..client::spec("test.echo", text)
    };
    let request = pb::SubmitTaskRequest { spec: Some(spec) };
    let answer = within("an answer to a submission", home.submit_task(request)).await?;
    let answer = answer.into_inner();
    Ok((answer.task.unwrap().id, answer.replayed))
}

/// Asks until there is an answer; how often there was none.
async fn insist(home: &mut Local, key: &str) -> (String, usize) {
    let mut lost = 0;
    loop {
        match submit(home, key, key).await {
            Ok((id, _)) => return (id, lost),
            Err(status) => {
                assert!(client::is_away(&status), "{status:?}");
                lost += 1;
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Tasks of the home, by their correlation id.
async fn tasks(home: &mut Local) -> BTreeMap<String, Vec<pb::Task>> {
    let (mut all, mut page_token) = (BTreeMap::<_, Vec<_>>::new(), String::new());
    loop {
        let request = pb::ListTasksRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = home.list_tasks(request).await.unwrap().into_inner();
        for task in page.tasks {
            let same = all.entry(task.correlation_id.clone()).or_default();
            same.push(task);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

#[tokio::test]
async fn a_home_that_is_killed_makes_one_task_of_a_key_however_often_it_is_asked() {
    let mut mesh = ByHand::started(&mesh()).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (mut home, stopped) = (mesh.local("home-1"), stopped.clone());
        callers.spawn(async move {
            let (mut seen, mut lost) = (Vec::new(), 0);
            while !*stopped.borrow() {
                let key = format!("{caller}-{}", seen.len());
                let (id, unanswered) = insist(&mut home, &key).await;
                lost += unanswered;
                seen.push((key, id));
            }
            (seen, lost)
        });
    }
    for _ in 0..KILLS {
        // Each life takes some in.
        let mut home = mesh.local("home-1");
        let before = tasks(&mut home).await.len();
        eventually("submissions go on", || {
            let mut home = home.clone();
            async move {
                let now = tasks(&mut home).await.len();
                if now > before + 20 {
                    Ok(())
                } else {
                    Err(format!("{now} after {before}"))
                }
            }
        })
        .await;
        mesh.kill("home-1").await;
        mesh.start("home-1");
        mesh.ready("home-1").await;
    }
    stop.send(true).unwrap();
    let (mut seen, mut lost) = (BTreeMap::new(), 0);
    while let Some(told) = within("the callers end", callers.join_next()).await {
        let (keys, unanswered) = told.unwrap();
        seen.extend(keys);
        lost += unanswered;
    }
    assert!(lost >= KILLS, "{lost} of {} had no answer", seen.len());

    let mut home = mesh.local("home-1");
    let all = tasks(&mut home).await;
    assert_eq!(all.len(), seen.len());
    for (key, id) in &seen {
        let same: Vec<_> = all[key].iter().map(|task| &task.id).collect();
        assert_eq!(same, [id], "{key}");
        client::watch_whole(&mut home, id).await;
        assert_eq!(
            submit(&mut home, key, key).await.unwrap(),
            (id.clone(), true)
        );
    }
    let (key, _) = seen.first_key_value().unwrap();
    let other = submit(&mut home, key, "something else").await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert_eq!(reason_of(&other).as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));
    for task in tasks(&mut home).await.into_values().flatten() {
        assert_eq!(task.state(), TaskState::Completed);
    }
}

#[tokio::test]
async fn a_command_that_is_given_twice_with_a_key_is_one_task() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let run = async |verb: &str, text: &str| {
        let mesh = site.state().display().to_string();
        let arguments = [
            "task",
            verb,
            "--mesh",
            &mesh,
            "test.echo",
            "--text",
            text,
            "--key",
            "k 1",
        ];
        let output = within("a command", site.attache(&arguments).output()).await;
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, first, said) = run("submit", "hi").await;
    assert_eq!(
        (code, said.contains("used before")),
        (Some(0), false),
        "{said}"
    );
    let (code, second, said) = run("submit", "hi").await;
    assert_eq!((code, second), (Some(0), first), "{said}");
    assert!(said.contains("this key was used before"), "{said}");
    let (code, answer, said) = run("run", "hi").await;
    assert_eq!((code, answer.trim()), (Some(0), "hi"), "{said}");
    assert!(said.contains("this key was used before"), "{said}");
    let (code, _, said) = run("run", "something else").await;
    assert_ne!(code, Some(0));
    assert!(said.contains("give the new one a key of its own"), "{said}");
    drop(up);
}
