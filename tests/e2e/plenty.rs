//! More than anybody should send, and more who watch than anybody should need.

use std::{fs, time::Duration};

use attache::pb::{TaskState, WatchTaskResponse, task_event::Kind};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Streaming};

use crate::support::{
    client::{self, Local, Seen},
    hand::page,
    memory,
    mesh::{Site, agent},
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
/// By when a stream has ended that nobody reads: a minute, and what the machine takes for itself.
const LET_GO: Duration = Duration::from_secs(90);
const IN_FLIGHT: &str = "attache_calls_in_flight";
/// Not before: who is slow is no reason to be closed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Chunks that are more than all buffers hold on the way to a reader, whose own window is 2 MiB.
const UNREAD: usize = 1000;

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
    let mesh = agent("home", &["test.home"], "") + &agent("worker", &["test.tell"], "");
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
    let deaf = client::watch(&mut client::local(address), &id, 0)
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

    // Nothing was kept for it but where it stood, and that is enough; also where it was closed, since
    // all of this has taken a minute.
    let late = within(
        "it reads at last",
        follow(&mut home, (&id, deaf), Seen::default()),
    )
    .await;
    assert_eq!(late.events, first.events);
}

/// Reads a stream of a task to its end, again from its cursor where it was closed for not being read.
async fn follow(
    home: &mut Local,
    (id, mut stream): (&str, Streaming<WatchTaskResponse>),
    mut seen: Seen,
) -> Seen {
    loop {
        match stream.message().await {
            Ok(Some(response)) => seen.take(response.update.unwrap()),
            Ok(None) => return seen.whole(),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                stream = client::watch(home, id, seen.last_seq()).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_watcher_that_reads_nothing_is_closed_and_comes_back_with_its_cursor() {
    let mesh = agent("home", &["test.home"], "") + &agent("worker", &["test.tell"], "");
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let place = up.instance("default/home", 0);
    let mut home = client::local(&place.local);
    let gate = site.path("gate");
    let told = format!("{} {UNREAD} {CHUNK}", gate.display());
    let submitted = client::submit(&mut home, client::spec("test.tell", &told));
    let id = submitted.await.unwrap().id;
    let mut deaf = client::watch(&mut client::local(&place.local), &id, 0)
        .await
        .unwrap();
    fs::write(&gate, "").unwrap();
    let all = client::watch_whole(&mut home, &id).await;
    let began = Instant::now();
    let closed = timeout(LET_GO, async {
        loop {
            let page = page(&place.admin, "/metrics").await.unwrap();
            let mut lines = page.lines().filter(|line| line.starts_with(IN_FLIGHT));
            if lines.all(|line| !line.contains("WatchTask") || line.ends_with(" 0")) {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    });
    closed.await.expect("nobody watches any more");
    assert!(began.elapsed() > PATIENCE, "{:?}", began.elapsed());

    let mut seen = Seen::default();
    let status = loop {
        match within("what came before", deaf.message()).await {
            Ok(Some(response)) => seen.take(response.update.unwrap()),
            Ok(None) => panic!("a clean end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let missing = all.events.len() - seen.events.len();
    assert!(missing > 0, "it was told everything");
    let rest = client::watch(&mut home, &id, seen.last_seq())
        .await
        .unwrap();
    let seen = within("the rest", follow(&mut home, (&id, rest), seen)).await;
    assert_eq!(seen.events, all.events);
}
