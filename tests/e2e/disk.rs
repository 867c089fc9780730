//! Disks that fail and disks that are full, under real processes; and what the operator does then.

use std::{fs, path::PathBuf};

use attache::{pb::TaskState, wire::status::reason_of};
use tokio::process::Command;
use tonic::{Code, Status};

use crate::support::{
    client::{self, Local},
    hand::ByHand,
    mesh::agent,
    skip::skip,
    tools,
    wait::eventually,
};

/// Where Debian's libfiu0 puts what fails calls of the C library on demand.
const FIU: [&str; 2] = [
    "/usr/lib/fiu/fiu_run_preload.so",
    "/usr/lib/fiu/fiu_posix_preload.so",
];
/// "Input/output error", as a failing disk answers.
const EIO: u32 = 5;
/// The sidecar whose disk it is.
const HOME: &str = "home-1";

/// A home for tasks, and a worker elsewhere that does one at a time.
fn home_and_worker() -> String {
    agent("home", &["test.home"], "")
        + &agent(
            "worker",
            &["test.hold", "test.echo"],
            "max_concurrent_tasks = 1",
        )
}

async fn submit(home: &mut Local, skill: &str, text: &str) -> Result<String, Status> {
    let task = client::submit(home, client::bounded(skill, text, 300)).await?;
    Ok(task.id)
}

async fn works(home: &Local, id: &str) {
    eventually("the task works", || {
        let mut home = home.clone();
        async move {
            let task = client::full(&mut home, id).await;
            let state = task.map_err(|status| status.to_string())?.state();
            (state == TaskState::Working)
                .then_some(())
                .ok_or_else(|| format!("{state:?}"))
        }
    })
    .await;
}

/// A home whose journal can be told to fail, with a task that runs elsewhere.
async fn a_disk_that_fails_at(point: &str) {
    let mut hand = ByHand::started(&home_and_worker()).await;
    hand.term(HOME);
    assert!(hand.ended(HOME).await.success());
    let control = hand.site.path("fiu").display().to_string();
    hand.start_with(HOME, |mut command| {
        command
            .env("LD_PRELOAD", FIU.join(" "))
            .env("FIU_CTRL_FIFO", &control);
        command
    });
    hand.ready(HOME).await;
    let mut home = hand.local(HOME);
    let gate = hand.site.path("gate");
    let held = submit(&mut home, "test.hold", &gate.display().to_string())
        .await
        .unwrap();
    works(&home, &held).await;
    let mut acknowledged = Vec::new();
    for task in 0..20 {
        acknowledged.push(
            submit(&mut home, "test.echo", &format!("before {task}"))
                .await
                .unwrap(),
        );
    }

    let mut told = Command::new("fiu-ctrl");
    told.arg("-f").arg(&control);
    told.args([
        "-c",
        &format!("enable name={point},failinfo={EIO}"),
        &hand.pid(HOME).to_string(),
    ]);
    tools::run(&mut told).await.ok();
    // The held task's events come all the time: the next one meets the failure, if no task does.
    let mut refused = None;
    for task in 0..1000 {
        match submit(&mut home, "test.echo", &format!("after {task}")).await {
            Ok(id) => acknowledged.push(id),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("a disk that fails takes no thousand tasks");
    assert_ne!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    let ended = hand.ended(HOME).await;
    let log = fs::read_to_string(hand.site.state().join(format!("logs/{HOME}.log"))).unwrap();
    assert_eq!(ended.code(), Some(1), "{log}");
    for said in [
        "the journal failed",
        "Input/output error",
        "the journal could not be written",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }

    hand.start(HOME);
    hand.ready(HOME).await;
    let mut home = hand.local(HOME);
    for id in &acknowledged {
        client::full(&mut home, id).await.unwrap();
    }
    fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut home, &held).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("let go"),
        "{:?}",
        seen.failure()
    );
    for id in &acknowledged {
        let seen = client::watch_whole(&mut home, id).await;
        assert_eq!(seen.state(), TaskState::Completed, "{:?}", seen.failure());
    }
    let runs = hand.site.runs();
    assert_eq!(
        runs.iter().filter(|(_, id, _)| *id == held).count(),
        1,
        "{runs:?}"
    );
}

fn no_fiu(test: &str) -> bool {
    let missing = FIU.iter().find(|library| !PathBuf::from(library).exists());
    if let Some(missing) = missing {
        skip(
            test,
            &format!("no {missing}: install libfiu0 and fiu-utils"),
        );
    }
    missing.is_some()
}

#[tokio::test]
async fn a_failed_sync_ends_the_sidecar_and_a_restart_has_all_that_was_acknowledged() {
    let test = "disk::a_failed_sync_ends_the_sidecar_and_a_restart_has_all_that_was_acknowledged";
    if !no_fiu(test) {
        a_disk_that_fails_at("posix/io/sync/fdatasync").await;
    }
}

#[tokio::test]
async fn a_failed_write_ends_the_sidecar_and_a_restart_has_all_that_was_acknowledged() {
    let test = "disk::a_failed_write_ends_the_sidecar_and_a_restart_has_all_that_was_acknowledged";
    if !no_fiu(test) {
        a_disk_that_fails_at("posix/io/rw/pwrite").await;
    }
}

/// Submits until the answer is this code.
async fn submits(home: &Local, wanted: Code) -> Result<String, Status> {
    eventually(
        &format!("a task that is submitted meets {wanted:?}"),
        || {
            let mut home = home.clone();
            async move {
                let answer = submit(&mut home, "test.echo", "full or not").await;
                let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
                if code == wanted {
                    Ok(answer)
                } else {
                    Err(format!("{answer:?}"))
                }
            }
        },
    )
    .await
}

/// Where a file in the journal's own file system is seen from outside.
fn inside(hand: &ByHand, file: &str) -> PathBuf {
    let dir = hand
        .site
        .state()
        .join("sidecars")
        .join(HOME)
        .join("journal");
    let root = format!("/proc/{}/root", hand.pid(HOME));
    PathBuf::from(root)
        .join(dir.strip_prefix("/").unwrap())
        .join(file)
}

#[tokio::test]
async fn a_full_disk_takes_no_task_lets_those_under_way_end_and_recovers_by_itself() {
    let test = "disk::a_full_disk_takes_no_task_lets_those_under_way_end_and_recovers_by_itself";
    let root = rustix::process::geteuid().is_root();
    let unshare: &[&str] = if root { &["-m"] } else { &["-rm"] };
    let tried = tools::run(
        Command::new("unshare")
            .args(unshare)
            .args(["mount", "-t", "tmpfs", "none", "/mnt"]),
    )
    .await;
    if tried.code != Some(0) {
        return skip(
            test,
            &format!(
                "no mounts in a namespace of one's own: {}",
                tried.err.trim()
            ),
        );
    }
    let mut hand = ByHand::started(&home_and_worker()).await;
    hand.term(HOME);
    assert!(hand.ended(HOME).await.success());
    hand.set(HOME, "journal_segment", "64KiB");
    hand.set(HOME, "disk_reserve", "256KiB");
    let journal = hand
        .site
        .state()
        .join("sidecars")
        .join(HOME)
        .join("journal");
    assert!(journal.is_dir(), "{journal:?}");
    // Two segments, the reserve, and some more: seen by this sidecar alone.
    let mount = format!(
        "mount -t tmpfs -o size=1m none {} && exec \"$@\"",
        journal.display()
    );
    hand.start_with(HOME, |command| {
        let mut within = Command::new("unshare");
        within.args(unshare).args(["sh", "-c", &mount, "sh"]);
        within
            .arg(command.as_std().get_program())
            .args(command.as_std().get_args());
        for (key, value) in command.as_std().get_envs() {
            match value {
                Some(value) => within.env(key, value),
                None => within.env_remove(key),
            };
        }
        within.kill_on_drop(true);
        within
    });
    hand.ready(HOME).await;
    let mut home = hand.local(HOME);
    let gate = hand.site.path("gate");
    let held = submit(&mut home, "test.hold", &gate.display().to_string())
        .await
        .unwrap();
    works(&home, &held).await;
    let waiting = submit(&mut home, "test.echo", "waits").await.unwrap();

    // Not a byte is left, but for what the journal has reserved.
    let filler = inside(&hand, "filler");
    let full = fs::write(&filler, vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let refused = submits(&home, Code::ResourceExhausted).await.unwrap_err();
    assert_eq!(
        reason_of(&refused).as_deref(),
        Some("DISK_FULL"),
        "{refused:?}"
    );
    assert!(refused.message().contains("make room"), "{refused:?}");

    // The events of what runs are written, and so is its end, and that of what had been taken.
    let before = client::full(&mut home, &held).await.unwrap().last_seq;
    eventually("events flow", || {
        let (mut home, held) = (home.clone(), &held);
        async move {
            let task = client::full(&mut home, held)
                .await
                .map_err(|status| status.to_string())?;
            (task.last_seq > before + 5)
                .then_some(())
                .ok_or_else(|| format!("{}", task.last_seq))
        }
    })
    .await;
    fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut home, &held).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("let go"),
        "{:?}",
        seen.failure()
    );
    let seen = client::watch_whole(&mut home, &waiting).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("waits"),
        "{:?}",
        seen.failure()
    );
    let refused = submit(&mut home, "test.echo", "still full")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(hand.runs(HOME));

    fs::remove_file(&filler).unwrap();
    let taken = submits(&home, Code::Ok).await.unwrap();
    let seen = client::watch_whole(&mut home, &taken).await;
    assert_eq!(seen.state(), TaskState::Completed, "{:?}", seen.failure());
    assert!(hand.runs(HOME), "it is the same process all the time");
}

#[tokio::test]
async fn a_damaged_journal_is_refused_checked_and_repaired() {
    let mut hand = ByHand::started(&home_and_worker()).await;
    let mut home = hand.local(HOME);
    let mut done = Vec::new();
    for text in ["one", "two", "three"] {
        done.push(
            client::run(&mut home, client::bounded("test.echo", text, 300))
                .await
                .unwrap(),
        );
    }
    let dir = hand
        .site
        .state()
        .join("sidecars")
        .join(HOME)
        .join("journal");
    let shown = dir.display().to_string();
    let busy = tools::run_attache(&["journal", "check", &shown]).await;
    assert_eq!(busy.code, Some(1), "{}", busy.err);
    assert!(busy.err.contains("in use by process"), "{}", busy.err);
    hand.term(HOME);
    assert!(hand.ended(HOME).await.success());
    tools::run_attache(&["journal", "check", &shown]).await.ok();

    // A bit in the input of the second task.
    let file = dir.join("00000000000000000001.log");
    let mut bytes = fs::read(&file).unwrap();
    let id = done[1].id.as_bytes();
    let at = bytes
        .windows(id.len())
        .position(|window| window == id)
        .unwrap()
        + id.len()
        + 20;
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    hand.start(HOME);
    assert_eq!(hand.ended(HOME).await.code(), Some(1));
    let log = fs::read_to_string(hand.site.state().join(format!("logs/{HOME}.log"))).unwrap();
    assert!(
        log.contains("00000000000000000001.log is damaged at byte"),
        "{log}"
    );

    let checked = tools::run_attache(&["journal", "check", &shown, "--output", "json"]).await;
    assert_eq!(checked.code, Some(1), "{}", checked.err);
    let found = &tools::json_lines(&checked.out)[0];
    let damage = &found["segments"][0]["damage"][0];
    assert_eq!(
        (&found["whole"], &damage["names_task"]),
        (&false.into(), &done[1].id.as_str().into())
    );
    let offset = damage["offset"].as_u64().unwrap();
    assert!(log.contains(&format!("damaged at byte {offset}")), "{log}");

    let repaired = tools::run_attache(&["journal", "repair", &shown, "--output", "json"]).await;
    let repaired = &repaired.json_lines()[0];
    assert_eq!(repaired["holed_tasks"], serde_json::json!([done[1].id]));
    assert_eq!(
        (&repaired["tasks"], &repaired["doubtful_tasks"]),
        (&2.into(), &serde_json::json!([]))
    );
    for command in repaired["next"].as_array().unwrap() {
        let mut shell = Command::new("sh");
        tools::run(shell.args(["-c", command.as_str().unwrap()]))
            .await
            .ok();
    }
    hand.start(HOME);
    hand.ready(HOME).await;
    let mut home = hand.local(HOME);
    for place in [0, 2] {
        let seen = client::watch_whole(&mut home, &done[place].id).await;
        assert_eq!(seen.events, done[place].events);
    }
    let gone = client::full(&mut home, &done[1].id).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let again = client::run(&mut home, client::bounded("test.echo", "again", 300))
        .await
        .unwrap();
    assert_eq!(again.result().as_deref(), Some("again"));
}
