//! What has ended is read from the archive as it was, whatever happened in between; and the journal
//! stays small.

use std::fs;

use attache::pb::{self, TaskState};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::{
    client::{self, Local, Seen},
    hand::page,
    mesh::{Site, Up, agent},
    process::signal,
    wait::{eventually, within},
};

/// A home that keeps next to nothing in memory of what has ended.
fn mesh() -> String {
    "[sidecars]\nfinished_in_memory = 1\n".to_owned()
        + &agent("home", &["test.home"], "")
        + &agent("worker", &["test.make", "test.echo", "test.hold"], "")
}

/// All that a caller can read of a task.
async fn read(home: &mut Local, id: &str) -> (Vec<pb::TaskEvent>, pb::Task, String) {
    let seen: Seen = client::watch_whole(home, id).await;
    let full = client::full(home, id).await.unwrap();
    let request = pb::ReadArtifactRequest {
        task_id: id.into(),
        artifact_id: "copy".into(),
        offset: 3,
        ..Default::default()
    };
    let mut text = String::new();
    within("an artifact is read", async {
        let mut pieces = home.read_artifact(request).await.unwrap().into_inner();
        while let Some(piece) = pieces.message().await.unwrap() {
            text.push_str(&client::text_of(&[piece.part.unwrap()]));
        }
    })
    .await;
    (seen.events, full, text)
}

/// The ids of all tasks, in pages of three.
async fn listed(home: &mut Local) -> Vec<String> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListTasksRequest {
            page_size: 3,
            page_token,
            ..Default::default()
        };
        let answer = within("a list", home.list_tasks(request)).await.unwrap();
        let answer = answer.into_inner();
        ids.extend(answer.tasks.into_iter().map(|task| task.id));
        if answer.next_page_token.is_empty() {
            return ids;
        }
        page_token = answer.next_page_token;
    }
}

/// Waits until the archive of the home has this many tasks.
async fn archives(up: &Up, count: u64) {
    let admin = up.instance("default/home", 0).admin.clone();
    eventually("tasks are archived", || {
        let admin = admin.clone();
        async move {
            let page = page(&admin, "/").await?;
            let body = page.split("\r\n\r\n").nth(1).unwrap_or_default();
            let page: serde_json::Value =
                serde_json::from_str(body.trim()).map_err(|error| error.to_string())?;
            match page["archive"]["tasks"].as_u64() {
                Some(found) if found >= count => Ok(()),
                _ => Err(page["archive"].to_string()),
            }
        }
    })
    .await;
}

/// Kills the home, and waits until it answers again.
async fn kill(site: &Site, home: &Local, known: &str) {
    let before = site.mark.process(&["sidecar", "home-1"]).pid;
    signal(before, Signal::KILL);
    eventually("the home is back", || {
        let mut home = home.clone();
        async move {
            let all = site.mark.processes();
            let old = all.iter().any(|one| one.pid == before);
            let task = client::full(&mut home, known).await;
            match task {
                Ok(_) if !old => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_has_ended_is_read_the_same_after_moves_kills_and_restarts() {
    const TASKS: usize = 12;
    let site = Site::new(&mesh());
    let mut up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let (mut ids, mut before) = (Vec::new(), Vec::new());
    for number in 0..TASKS {
        // Small ones, and some that are kept in pieces.
        let text = "abc".repeat(if number % 4 == 0 { 20_000 } else { 5 });
        let seen = client::run(&mut home, client::spec("test.make", &text))
            .await
            .unwrap();
        assert_eq!(
            seen.result().as_deref(),
            Some("made"),
            "{:?}",
            seen.failure()
        );
        // Half of them from memory, as far as it lasts; the others are on their way already.
        before.push(read(&mut home, &seen.id).await);
        assert_eq!(before.last().unwrap().2, text[3..]);
        ids.push(seen.id);
    }
    archives(&up, TASKS as u64 - 2).await;
    let unchanged = async |home: &mut Local| {
        for (id, before) in ids.iter().zip(&before) {
            assert_eq!(&read(home, id).await, before, "{id}");
        }
        let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
        assert_eq!(listed(home).await, newest_first);
    };
    unchanged(&mut home).await;

    kill(&site, &home, &ids[0]).await;
    unchanged(&mut home).await;

    up.signal(Signal::TERM);
    assert_eq!(up.ended().await.code(), Some(0));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    unchanged(&mut home).await;
}

#[tokio::test]
async fn the_journal_shrinks_though_a_task_lives_long() {
    /// Bytes of a task's input, and of its result: larger ones are kept beside the log.
    const INPUT: usize = 60 << 10;
    /// Tasks at a time.
    const AT_ONCE: u64 = 16;
    /// Segments of 16 MiB that were written in all, at least.
    const WRITTEN: u64 = 6;
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let gate = site.path("gate");
    let held = gate.display().to_string();
    let long = client::submit(&mut home, client::spec("test.hold", &held))
        .await
        .unwrap()
        .id;
    let text = "x".repeat(INPUT);
    let tasks = (WRITTEN * (16 << 20)) / (2 * INPUT as u64);
    let mut callers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (mut home, text) = (home.clone(), text.clone());
        callers.spawn(async move {
            for _ in 0..=tasks / AT_ONCE {
                let seen = client::run(&mut home, client::spec("test.echo", &text))
                    .await
                    .unwrap();
                assert_eq!(seen.state(), TaskState::Completed, "{:?}", seen.failure());
            }
        });
    }
    callers.join_all().await;
    let journal = site.state().join("sidecars/home-1/journal");
    eventually("old segments are gone", || async {
        let files = fs::read_dir(&journal).map_err(|error| error.to_string())?;
        let names = files.flatten().map(|file| file.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| name.ends_with(".log"));
        names.sort();
        if names.len() <= 4 && names[0] != "00000000000000000001.log" {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;

    // All of the long one is there, although its beginning is deleted.
    kill(&site, &home, &long).await;
    fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut home, &long).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("let go"),
        "{:?}",
        seen.failure()
    );
}
