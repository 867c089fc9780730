//! More than anybody should send, and more who watch than anybody should need.

use std::{fs, time::Duration};

use attache::pb::{TaskState, task_event::Kind};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    client::{self, Seen},
    floods::{Attack, Victim},
    memory,
    mesh::{Site, agent},
    passing::{ASK, AUTHORITY, POUR, UNARY, echo},
    scrape::Page,
    wait::{eventually, within},
};

/// Far more than an agent may say in one task, in MiB: 1 GiB.
const FLOOD: u32 = 1024;
/// What a task's artifacts and messages may hold, in MiB; see `docs/tasks.md`.
const CONTENT: u32 = 64;
/// What a sidecar may grow by while such a task runs, in KiB: the content at its home once, and
/// what is on its way.
const GROWTH: u64 = 192 << 10;
/// Watchers of one task, and of those on one connection.
const WATCHERS: usize = 1000;
const PER_CONNECTION: usize = 50;
/// What they are told: more than a stream's window holds, so that who does not read stops it.
const CHUNKS: usize = 40;
const CHUNK: usize = 4 << 10;
/// By when streams have ended that nobody reads, once they fill half of what is given for such.
const LET_GO: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_gibibyte_of_artifact_is_refused_at_the_limit_and_costs_no_memory() {
    let mesh =
        agent("home", &["test.home"], "") + &agent("worker", &["test.flood", "test.tell"], "");
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    // Whatever is made once is made by now.
    let gate = site.path("gate");
    fs::write(&gate, "").unwrap();
    let little = format!("{} 10 1000", gate.display());
    let first = client::run(&mut home, client::spec("test.tell", &little)).await;
    assert_eq!(first.unwrap().state(), TaskState::Completed);
    let sidecars = ["home-1", "worker-1"].map(|name| site.mark.process(&["sidecar", name]).pid);
    let before = sidecars.map(memory::most);

    let flood = client::spec("test.flood", &FLOOD.to_string());
    let seen = client::run(&mut home, flood).await.unwrap();
    let failure = seen.failure();
    assert_eq!(
        (seen.state(), failure.reason.as_str(), failure.code),
        (TaskState::Failed, "CONTENT_TOO_LARGE", 8),
        "{failure:?}"
    );
    let sent = eventually("its agent gave up", || async {
        let runs = site.runs();
        let line = runs.iter().find(|(what, _, _)| what == "flooded");
        line.map(|(_, _, sent)| *sent)
            .ok_or_else(|| format!("{runs:?}"))
    })
    .await;
    assert!(sent / 8 < CONTENT + 16, "{sent} chunks went");
    for (pid, before) in sidecars.into_iter().zip(before) {
        let grown = memory::most(pid) - before;
        assert!(grown < GROWTH, "{pid} grew by {grown} KiB");
    }
    // All of it can go on.
    let after = client::run(&mut home, client::spec("test.tell", &little)).await;
    assert_eq!(after.unwrap().state(), TaskState::Completed);
}

#[tokio::test]
async fn a_thousand_watchers_see_the_same_and_who_does_not_read_harms_nobody() {
    let mesh = agent("home", &["test.home"], "") + &agent("worker", &["test.tell"], "") + &echo(1);
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let address = &up.instance("default/home", 0).local;
    let mut home = client::local(address);
    let gate = site.path("gate");
    let told = format!("{} {CHUNKS} {CHUNK}", gate.display());
    let id = client::submit(&mut home, client::spec("test.tell", &told))
        .await
        .unwrap()
        .id;
    // It has a connection of its own, as its window would hold up others there.
    let mut deaf = client::watch(&mut client::local(address), &id, 0)
        .await
        .unwrap();
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS / PER_CONNECTION {
        let mut connection = client::local(address);
        for _ in 0..PER_CONNECTION {
            let mut stream = client::watch(&mut connection, &id, 0).await.unwrap();
            watchers.spawn(async move {
                let mut seen = Seen::default();
                while let Some(response) = stream.message().await.unwrap() {
                    seen.take(response.update.unwrap());
                }
                seen.whole()
            });
        }
    }
    fs::write(&gate, "").unwrap();
    let all = within("all of them see the end", watchers.join_all()).await;
    assert_eq!(all.len(), WATCHERS);
    let first = &all[0];
    assert_eq!(first.state(), TaskState::Completed, "{:?}", first.failure());
    let chunks = first.events.iter();
    let chunks = chunks.filter(|event| matches!(event.kind, Some(Kind::Artifact(_))));
    assert_eq!(chunks.count(), CHUNKS);
    assert!(all.iter().all(|seen| seen.events == first.events));

    // A minute would be over by now and then. Where many read nothing, seconds are.
    let attack = Attack::ZeroWindow.run(
        Victim {
            authority: AUTHORITY,
            endless: Some((POUR, ASK)),
            ..Victim::of(address, UNARY)
        },
        0,
        LET_GO,
    );
    assert!(attack.await.closed.is_some(), "its calls go on");
    let admin = &up.instance("default/home", 0).admin;
    eventually("nobody watches any more", || async {
        let page = Page::of(admin, "text/plain").await;
        let watchers = page.sum("attache_task_watchers", &[]);
        (watchers == 0.0).then_some(()).ok_or(watchers.to_string())
    })
    .await;

    // Nothing was kept for it but where it stood, and that is enough.
    let mut seen = Seen::default();
    let status = within("it reads at last", async {
        loop {
            match deaf.message().await {
                Ok(Some(response)) => seen.take(response.update.unwrap()),
                Ok(None) => panic!("a clean end"),
                Err(status) => break status,
            }
        }
    })
    .await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let missing = first.events.len() - seen.events.len();
    assert!(missing > 0, "it was told everything");
    let mut stream = client::watch(&mut home, &id, seen.last_seq())
        .await
        .unwrap();
    let late = within("it goes on from there", async {
        while let Some(response) = stream.message().await.unwrap() {
            seen.take(response.update.unwrap());
        }
        seen.whole()
    })
    .await;
    assert_eq!(late.events, first.events);
}
