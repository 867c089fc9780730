//! Content of more than 64 KiB: beside the log, once, and whole for whoever reads it.

use std::fs;

use attache::pb::{self, TaskState, part::Content};

use crate::support::{
    client::{self, Local, is_end},
    memory,
    mesh::{Site, agent},
    wait::{eventually, within},
};

/// What an artifact's chunk may hold.
const CHUNK: usize = 128 << 10;
/// Of these, nearly all that a task may hold: 60 MiB.
const CHUNKS: usize = 480;
/// Nearly all that an input may hold.
const INPUT: usize = 1000 << 10;
/// What a home may grow by, in KiB, while such a task runs and is read: half of what it holds.
const GROWTH: u64 = 30 << 10;
/// Tasks with the same input.
const SAME: usize = 50;

/// A home for tasks, and a worker elsewhere.
fn home_and_worker() -> String {
    agent("home", &["test.home"], "") + &agent("worker", &["test.tell"], "")
}

/// What `test.tell` has to do, with a large input beside it.
fn told(gate: &str, chunks: usize) -> pb::TaskSpec {
    let mut spec = client::spec("test.tell", &format!("{gate} {chunks} {CHUNK}"));
    spec.input.push(pb::Part {
        content: Some(Content::Raw(vec![3; INPUT].into())),
        ..pb::Part::default()
    });
    spec
}

/// What the artifact holds after `chunks` chunks.
fn whole(chunks: usize) -> Vec<u8> {
    let mut whole = vec![7; chunks * CHUNK];
    for number in 0..chunks {
        let at = number * CHUNK;
        whole[at..at + 8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    whole
}

/// Reads the artifact from `offset` on.
async fn read(home: &mut Local, id: &str, offset: usize) -> Vec<u8> {
    let request = pb::ReadArtifactRequest {
        task_id: id.into(),
        artifact_id: "plenty".into(),
        offset: offset as u64,
        ..pb::ReadArtifactRequest::default()
    };
    let mut stream = home.read_artifact(request).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        let Some(Content::Raw(raw)) = piece.part.unwrap().content else {
            panic!("a piece of something else")
        };
        read.extend_from_slice(&raw);
    }
    read
}

/// The task is as far as this, or has ended.
async fn reaches(home: &Local, id: &str, seq: u64) -> pb::Task {
    eventually("the task goes on", || {
        let mut home = home.clone();
        async move {
            let request = pb::GetTaskRequest {
                task_id: id.into(),
                ..pb::GetTaskRequest::default()
            };
            let got = home.get_task(request).await;
            let task = got.map_err(|status| status.to_string())?.into_inner().task;
            let task = task.unwrap();
            if task.last_seq >= seq || is_end(task.state()) {
                Ok(task)
            } else {
                Err(format!("{} of {seq}", task.last_seq))
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_killed_home_gives_out_the_same_bytes_as_before() {
    let site = Site::new(&home_and_worker());
    let up = site.up(&[]).await;
    let gate = site.path("gate");
    fs::write(&gate, "").unwrap();
    let mut home = client::local(&up.instance("default/home", 0).local);
    let spec = told(&gate.display().to_string(), CHUNKS);
    let id = client::submit(&mut home, spec).await.unwrap().id;
    reaches(&home, &id, 100).await;
    site.mark.kill_and_wait("home-1").await;
    let task = within("it ends", reaches(&home, &id, u64::MAX)).await;
    assert_eq!(task.state(), TaskState::Completed, "{:?}", task.failure);
    let all = whole(CHUNKS);
    assert!(read(&mut home, &id, 0).await == all);

    site.mark.kill_and_wait("home-1").await;
    reaches(&home, &id, u64::MAX).await;
    assert!(read(&mut home, &id, 0).await == all);
    for offset in [1, CHUNK, 30 * CHUNK + 5, all.len() - 1, all.len()] {
        assert!(read(&mut home, &id, offset).await == all[offset..]);
    }
    let full = client::full(&mut home, &id).await.unwrap();
    let input = &full.messages[0].parts[1].content;
    assert!(*input == Some(Content::Raw(vec![3; INPUT].into())));
}

#[tokio::test]
async fn large_content_costs_its_home_no_memory() {
    let site = Site::new(&home_and_worker());
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let gate = site.path("gate");
    fs::write(&gate, "").unwrap();
    let gate = gate.display().to_string();
    // Whatever is made once is made by now.
    let first = client::run(&mut home, told(&gate, 20)).await.unwrap();
    assert_eq!(first.state(), TaskState::Completed);
    let pid = site.mark.process(&["sidecar", "home-1"]).pid;
    let before = memory::most(pid);
    let id = client::submit(&mut home, told(&gate, CHUNKS))
        .await
        .unwrap()
        .id;
    let task = within("it ends", reaches(&home, &id, u64::MAX)).await;
    assert_eq!(task.state(), TaskState::Completed, "{:?}", task.failure);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut home, id) = (home.clone(), id.clone());
        readers.spawn(async move { read(&mut home, &id, 0).await.len() });
    }
    let read = within("all have read it", readers.join_all()).await;
    assert_eq!(read, [CHUNKS * CHUNK; 8]);
    let grown = memory::most(pid) - before;
    assert!(grown < GROWTH, "it grew by {grown} KiB");
}

/// Bytes of the files that hold large content.
fn packs(site: &Site) -> u64 {
    let files = fs::read_dir(site.state().join("sidecars/home-1/journal")).unwrap();
    let files = files.map(|file| file.unwrap());
    let packs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".pack"));
    // Those that go meanwhile are gone.
    packs
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

#[tokio::test]
async fn what_many_tasks_have_in_common_is_on_disk_once() {
    let site = Site::new(&home_and_worker());
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let gate = site.path("gate");
    for _ in 0..SAME {
        let spec = told(&gate.display().to_string(), 1);
        client::submit(&mut home, spec).await.unwrap();
    }
    eventually("what they have in common is there once", || async {
        match packs(&site) {
            bytes if bytes > 2 * INPUT as u64 => Err(format!("{bytes} bytes on disk")),
            _ => Ok(()),
        }
    })
    .await;
}
