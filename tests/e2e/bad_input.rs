//! Mistakes of people and of agents: each a clear error, and nothing else is lost.

use std::net::TcpListener;

use attache::{pb, pb::TaskState, wire::status::reason_of};
use tonic::Code;

use crate::{
    foreign_clients::issue_service,
    support::{
        client,
        mesh::{Site, agent},
        tools,
    },
};

#[tokio::test]
async fn mistakes_in_mesh_toml_name_file_line_path_and_the_nearest_key() {
    let right = agent("worker", &["test.echo"], "instances = 1");
    for (broken, told) in [
        (
            right.replace("instances", "instance"),
            vec!["mesh.toml:4", "agents[0]", "`instances`?"],
        ),
        (
            right.replace("idempotent", "idempotant"),
            vec!["mesh.toml:7", "agents.skills[0]", "`idempotent`?"],
        ),
        (
            right.replace("= 1", "= \"one\""),
            vec!["mesh.toml:4", "agents[0].instances", "expected u32"],
        ),
        (
            right.replace("\"worker\"", "\"Wor ker\""),
            vec!["agents[0].name", "Wor ker"],
        ),
        (
            right.replace("[[agents]]", "[[agents]"),
            vec!["mesh.toml:1"],
        ),
    ] {
        let site = Site::new(&broken);
        let dir = site.dir.display().to_string();
        let checked = tools::run(&mut site.attache(&["check", &dir])).await;
        let started = tools::run(&mut site.up_command(&[])).await;
        for ran in [checked, started] {
            assert_eq!(ran.code, Some(2), "{}", ran.err);
            for word in &told {
                assert!(ran.err.contains(word), "no {word} in: {}", ran.err);
            }
        }
        assert!(!site.state().join("ca").exists(), "something was started");
    }
}

#[tokio::test]
async fn a_taken_port_is_fatal_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let site = Site::new(&format!(
        "[registry]\nmtls = {port}\n{}",
        agent("worker", &["test.echo"], "")
    ));
    let ran = tools::run(&mut site.up_command(&[])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains(&port.to_string()), "{}", ran.err);
    assert!(
        ran.err.contains("in use"),
        "the cause is missing: {}",
        ran.err
    );
    assert_eq!(site.mark.processes(), vec![]);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_refused_and_said() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let mut local = client::local(&up.instance("default/worker", 0).local);

    let mut unknown = client::bounded("test.nobody", "", 50);
    unknown.options.as_mut().unwrap().fail_fast = true;
    let ran = client::run(&mut local, unknown).await.unwrap();
    assert_eq!(ran.state(), TaskState::Failed);
    assert_eq!(ran.failure().reason, "NO_ROUTE");
    assert!(!ran.failure().message.is_empty(), "{:?}", ran.failure());

    let large = client::submit(&mut local, client::spec("test.echo", &"x".repeat(1 << 20))).await;
    let large = large.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument, "{large:?}");
    assert_eq!(reason_of(&large).as_deref(), Some("PAYLOAD_TOO_LARGE"));

    // Above gRPC's own bound: told by gRPC's own code, and the connection is good for more.
    let huge = client::submit(&mut local, client::spec("test.echo", &"x".repeat(5 << 20))).await;
    let huge = huge.unwrap_err();
    assert!(
        [Code::ResourceExhausted, Code::OutOfRange].contains(&huge.code()),
        "{huge:?}"
    );

    for (what, wrong) in [
        ("no skill", client::spec("", "x")),
        ("not a skill's name", client::spec("no blanks here", "x")),
    ] {
        let refused = client::submit(&mut local, wrong).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
        assert_eq!(
            reason_of(&refused).as_deref(),
            Some("INVALID_FIELD"),
            "{what}"
        );
    }
    let missing = client::full(&mut local, "no-task-id").await.unwrap_err();
    assert!(
        [Code::NotFound, Code::InvalidArgument].contains(&missing.code()),
        "{missing:?}"
    );

    // The same from the shell: never an empty answer.
    let state = site.state().display().to_string();
    let task = [
        "task",
        "run",
        "--mesh",
        &state,
        "test.nobody",
        "--text",
        "x",
        "--fail-fast",
    ];
    let ran = tools::run(&mut site.attache(&task)).await;
    assert!(![None, Some(0)].contains(&ran.code), "{}", ran.out);
    assert!(ran.err.contains("test.nobody"), "{}", ran.err);

    let ran = client::run(&mut local, client::spec("test.echo", "and on"))
        .await
        .unwrap();
    assert_eq!(ran.result().as_deref(), Some("and on"));
}

#[tokio::test]
async fn broken_handlers_fail_their_own_task_and_nothing_else() {
    let broken = [
        "hang", "endless", "silent", "empty", "twice", "big", "status",
    ]
    .map(|skill| format!("test.{skill}"));
    let broken: Vec<&str> = broken.iter().map(String::as_str).collect();
    let site = Site::new(
        &(agent("worker", &["test.echo"], "")
            + &agent("broken", &broken, "")
            + &agent("crashing", &["test.crash"], "")
            + &agent("garbage", &["test.garbage"], "args = [\"garbage\"]")),
    );
    let up = site.up(&[]).await;
    let mut local = client::local(&up.instance("default/worker", 0).local);
    for (skill, state, reason) in [
        ("crash", TaskState::Failed, "AGENT_LOST"),
        ("garbage", TaskState::Failed, "AGENT_ERROR"),
        ("silent", TaskState::Failed, "AGENT_ERROR"),
        ("empty", TaskState::Failed, "AGENT_ERROR"),
        ("status", TaskState::Failed, "AGENT_ERROR"),
        ("big", TaskState::Failed, "AGENT_ERROR"),
        ("hang", TaskState::Failed, "DEADLINE_EXCEEDED"),
        ("endless", TaskState::Failed, "DEADLINE_EXCEEDED"),
        ("twice", TaskState::Failed, "AGENT_ERROR"),
    ] {
        let seconds = if reason == "DEADLINE_EXCEEDED" { 1 } else { 50 };
        let spec = client::bounded(&format!("test.{skill}"), "", seconds);
        let ran = client::run(&mut local, spec).await;
        let ran = ran.unwrap_or_else(|status| panic!("{skill}: {status:?}{}", site.logs()));
        assert_eq!(
            (ran.state(), ran.failure().reason.as_str()),
            (state, reason),
            "{skill}: {:?}",
            ran.failure()
        );
        if state == TaskState::Failed {
            assert!(
                !ran.failure().message.is_empty(),
                "{skill} fails without a word"
            );
        } else {
            assert_eq!(ran.result().as_deref(), Some("first"));
        }
        let echo = client::run(&mut local, client::bounded("test.echo", skill, 50))
            .await
            .unwrap();
        assert_eq!(echo.result().as_deref(), Some(skill));
    }
    // All of them are still told of.
    let listed = local
        .list_tasks(pb::ListTasksRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.tasks.len(), 18);
    // Who crashed is started again.
    let again = client::run(&mut local, client::bounded("test.crash", "", 50))
        .await
        .unwrap();
    assert_eq!(again.failure().reason, "AGENT_LOST");
}

#[tokio::test]
async fn a_denial_is_never_an_empty_answer() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let worker = up.instance("default/worker", 0);
    let mut local = client::local(&worker.local);
    let theirs = client::run(&mut local, client::spec("test.echo", "secret"))
        .await
        .unwrap();

    let stranger = client::pool(&issue_service(&site, "elsewhere/snoop").await);
    let mut stranger = client::member(&stranger, &worker.mtls, "ns/default/agent/worker");
    let denied = client::run_as_member(&mut stranger, client::spec("test.echo", "x")).await;
    let denied = denied.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
    assert!(reason_of(&denied).is_some());
    assert!(!denied.message().is_empty());
    // What it may not see does not exist for it.
    let hidden = client::watch_as_member(&mut stranger, &theirs.id, 0)
        .await
        .unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound, "{hidden:?}");
    assert_eq!(reason_of(&hidden).as_deref(), Some("TASK_NOT_FOUND"));
    assert_eq!(site.runs().len(), 1, "work of a stranger was done");

    // Without an answer from the mesh the shell says so, by its exit code too.
    let identity = site.path("elsewhere.snoop").display().to_string();
    let registry = &up.endpoints.registry.mtls;
    let task = [
        "task",
        "run",
        "--registry",
        registry,
        "--identity",
        &identity,
        "test.echo",
        "--text",
        "x",
    ];
    let ran = tools::run(
        site.attache(&task)
            .args(["--agent", "default/worker", "--fail-fast"]),
    )
    .await;
    assert!(![None, Some(0)].contains(&ran.code), "{}", ran.out);
    assert!(!ran.err.is_empty());
}
