//! `attache up`: how it ends, who may run it, and what the next run finds.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use attache::identity::{Authority, PublicKey, Svid};
use rustix::process::Signal;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use crate::support::{
    client,
    mesh::{Site, Up, agent},
    process::signal,
    tools,
    wait::{eventually, within},
};

fn worker() -> Site {
    Site::new(&agent(
        "worker",
        &["test.echo", "test.hold"],
        "instances = 2",
    ))
}

/// A task runs from beginning to end.
async fn works(up: &Up) {
    let mut local = client::local(&up.instance("default/worker", 0).local);
    let ran = client::run(&mut local, client::bounded("test.echo", "hello", 50))
        .await
        .unwrap();
    assert_eq!(
        ran.result().as_deref(),
        Some("hello"),
        "{:?}",
        ran.failure()
    );
}

async fn ends_without_orphans(which: Signal) {
    let site = worker();
    let mut up = site.up(&[]).await;
    works(&up).await;
    // up, the registry, and two sidecars with their agents.
    assert_eq!(
        site.mark.processes().len(),
        6,
        "{:#?}",
        site.mark.processes()
    );
    up.signal(which);
    let status = up.ended().await;
    assert_eq!(status.code(), Some(0), "{}", site.logs());
    assert_eq!(site.mark.processes(), vec![], "left behind");
    assert!(
        site.endpoints().is_none(),
        "a mesh that is gone is still published"
    );
}

#[tokio::test]
async fn ctrl_c_ends_everything() {
    ends_without_orphans(Signal::INT).await;
}

#[tokio::test]
async fn sigterm_ends_everything() {
    ends_without_orphans(Signal::TERM).await;
}

#[tokio::test]
async fn ctrl_c_in_the_middle_of_the_start_ends_everything() {
    let site = worker();
    let mut child = site.up_command(&[]).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id().unwrap();
    // Some of it runs, and not all of it does.
    eventually("the registry has been started", || async {
        let all = site.mark.processes();
        let registry = all
            .iter()
            .any(|one| one.command.contains("registry --config"));
        if registry {
            Ok(())
        } else {
            Err(format!("{all:#?}"))
        }
    })
    .await;
    signal(pid, Signal::INT);
    within("up ends", child.wait()).await.unwrap();
    assert_eq!(site.mark.processes(), vec![], "left behind");
    works(&site.up(&[]).await).await;
}

#[tokio::test]
async fn a_drain_lets_running_work_finish() {
    let site = worker();
    let mut up = site.up(&[]).await;
    let gate = site.path("gate");
    let mut local = client::local(&up.instance("default/worker", 0).local);
    let held = client::spec("test.hold", &gate.display().to_string());
    let request = attache::pb::RunTaskRequest { spec: Some(held) };
    let mut stream = within("accepted", local.run_task(request))
        .await
        .unwrap()
        .into_inner();
    let mut seen = client::Seen::default();
    let mut next = async || {
        let response = within("an update", stream.message()).await.unwrap();
        response
            .map(|response| seen.take(response.update.unwrap()))
            .is_some()
    };
    for _ in 0..5 {
        assert!(next().await);
    }
    up.signal(Signal::TERM);
    eventually("the drain begins", || async {
        match site.endpoints() {
            None => Ok(()),
            Some(_) => Err("still published".to_owned()),
        }
    })
    .await;
    fs::write(&gate, "").unwrap();
    while next().await {}
    assert_eq!(
        seen.result().as_deref(),
        Some("let go"),
        "{:?}",
        seen.events.last()
    );
    assert_eq!(up.ended().await.code(), Some(0));
    assert_eq!(site.mark.processes(), vec![]);
}

#[tokio::test]
async fn a_second_up_is_refused_with_the_pid() {
    let site = worker();
    let up = site.up(&[]).await;
    let refused = tools::run(&mut site.up_command(&[])).await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(
        refused.err.contains(&format!("process {}", up.pid)),
        "{}",
        refused.err
    );
    assert!(
        refused.err.contains("attache down"),
        "what to do is missing: {}",
        refused.err
    );
    works(&up).await;
}

#[tokio::test]
async fn every_run_finds_the_same_mesh() {
    let site = worker();
    let same = |up: &Up| {
        let one = |at: &attache::app::up::state::InstanceEndpoints| {
            [&at.agent, &at.instance, &at.local, &at.mtls].map(Clone::clone)
        };
        up.endpoints.instances.iter().map(one).collect::<Vec<_>>()
    };
    let mut up = site.up(&[]).await;
    works(&up).await;
    let first = same(&up);
    up.signal(Signal::INT);
    up.ended().await;

    let up = site.up(&[]).await;
    works(&up).await;
    assert_eq!(same(&up), first, "after a clean end");
    site.mark.kill_all();

    let mut up = site.up(&[]).await;
    works(&up).await;
    assert_eq!(same(&up), first, "after kill -9 of everything");

    // Only `up` is killed: its children see it or are ended by the next run.
    let before: Vec<u32> = site.mark.processes().iter().map(|one| one.pid).collect();
    signal(up.pid, Signal::KILL);
    // It has its lock until it is gone.
    up.ended().await;
    drop(up);
    let up = site.up(&[]).await;
    works(&up).await;
    assert_eq!(same(&up), first, "after kill -9 of up");
    let left: Vec<_> = site
        .mark
        .processes()
        .into_iter()
        .filter(|one| before.contains(&one.pid))
        .collect();
    assert_eq!(left, vec![], "left behind by the killed run");
}

#[tokio::test]
async fn a_run_with_all_leaves_expired_works_like_the_first() {
    let site = worker();
    let mut up = site.up(&[]).await;
    let instances = |up: &Up| -> Vec<String> {
        up.endpoints
            .instances
            .iter()
            .map(|one| one.instance.clone())
            .collect()
    };
    let first = instances(&up);
    up.signal(Signal::TERM);
    up.ended().await;
    assert_eq!(expire_all(&site.state()), 2);

    let up = site.up(&[]).await;
    works(&up).await;
    assert_eq!(instances(&up), first, "a rejoin keeps the instance");
}

/// Gives every sidecar of a state directory, in place of its certificate, one that has ended: the
/// same member, instance, key and generation. Says how many.
pub(crate) fn expire_all(state: &Path) -> usize {
    let authority = Authority::open(&state.join("ca")).unwrap();
    let sidecars = fs::read_dir(state.join("sidecars")).unwrap();
    let dirs = sidecars.map(|entry| entry.unwrap().path());
    let dirs: Vec<_> = dirs.filter(|dir| Svid::is_saved(dir)).collect();
    for dir in &dirs {
        let svid = Svid::load(dir).unwrap();
        let peer = svid.peer();
        let (_, leaf) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
        let key = PublicKey::of_spki(leaf.public_key().raw).unwrap();
        let life = attache::identity::authority::Validity {
            not_before: SystemTime::UNIX_EPOCH,
            not_after: attache::runtime::clock::wall() - Duration::from_secs(2),
        };
        let chain = authority
            .issue_within(&key, &peer.id, peer.instance.as_ref(), life)
            .unwrap();
        let private = PrivatePkcs8KeyDer::from_pem_file(dir.join("key.pem")).unwrap();
        let ended = Svid::new(chain, private, authority.bundle(), svid.generation()).unwrap();
        assert!(!ended.is_valid_at(attache::runtime::clock::wall()));
        ended.save(dir).unwrap();
    }
    dirs.len()
}

#[tokio::test]
async fn a_command_after_two_dashes_gives_the_exit_code() {
    let site = worker();
    let ran = tools::run(&mut site.up_command(&["--", "sh", "-c", "exit 7"])).await;
    assert_eq!(ran.code, Some(7), "{}", ran.err);
    assert_eq!(site.mark.processes(), vec![]);

    // The command finds the mesh without being told where.
    let attache = tools::attache().display().to_string();
    let task = [
        "--",
        &attache,
        "task",
        "run",
        "test.echo",
        "--text",
        "found you",
    ];
    let ran = tools::run(&mut site.up_command(&task)).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.trim(), "found you");
    assert_eq!(site.mark.processes(), vec![]);
}

#[tokio::test]
async fn once_ends_with_the_outcome_of_the_listed_tasks() {
    for (text, listed, code) in [
        (
            "well",
            "skill = \"test.echo\"\ntext = \"well\"\ntimeout = \"50s\"\n",
            0,
        ),
        ("", "skill = \"test.silent\"\ntimeout = \"50s\"\n", 3),
    ] {
        let mesh = agent("worker", &["test.echo", "test.silent"], "");
        let site = Site::new(&format!("{mesh}[[tasks]]\n{listed}"));
        let ran = tools::run(&mut site.up_command(&["--once"])).await;
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        assert_eq!(ran.out.trim(), text);
        assert_eq!(site.mark.processes(), vec![]);
    }
}

#[tokio::test]
async fn a_detached_mesh_runs_until_down() {
    let site = worker();
    let state = site.state().display().to_string();
    let ran = tools::run(&mut site.up_command(&["--detach"])).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.err, site.logs());
    let task = [
        "task",
        "run",
        "--mesh",
        &state,
        "test.echo",
        "--text",
        "still here",
    ];
    let ran = tools::run(&mut site.attache(&task)).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.trim(), "still here");

    let again = tools::run(&mut site.up_command(&["--detach"])).await;
    assert_eq!(again.code, Some(1), "{}", again.out);

    tools::run(&mut site.attache(&["down", "--state", &state]))
        .await
        .ok();
    // `down` waits for the lock; the process itself ends right after.
    eventually("everything has ended", || async {
        match site.mark.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:#?}")),
        }
    })
    .await;
    let down = tools::run(&mut site.attache(&["down", "--state", &state])).await;
    assert_eq!(down.code, Some(5), "{}", down.err);
}
