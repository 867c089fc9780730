//! Clients in other languages with nothing but the official gRPC packages and `proto/`.

use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use crate::support::{
    mesh::{Site, agent},
    tools::{self, fetched, json_lines, root},
};

/// What a client printed: the events in order, checked, and the last one.
fn ended_with(out: &str) -> Value {
    let lines = json_lines(out);
    let (task, events) = lines.split_first().expect("the task comes first");
    assert!(
        task["task"].as_str().is_some_and(|id| id.contains('.')),
        "{out}"
    );
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    let wanted: Vec<u64> = (1..=events.len() as u64).collect();
    assert_eq!(numbers, wanted, "{out}");
    let last = events.last().unwrap().clone();
    let ends = events.iter().filter(|event| {
        let state = event["state"].as_str().unwrap();
        !matches!(state, "TASK_STATE_SUBMITTED" | "TASK_STATE_WORKING")
    });
    assert_eq!(ends.count(), 1, "{out}");
    last
}

fn kinds(out: &str) -> Vec<String> {
    let kinds = json_lines(out).into_iter().skip(1);
    kinds
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect()
}

/// The Python client, with the stubs that `tests/run` makes.
fn python(test: &str) -> Option<Command> {
    let interpreter = fetched("python/bin/python", test)?;
    let stubs = fetched("stubs", test)?;
    let mut command = Command::new(interpreter);
    command
        .arg(root().join("tests/polyglot/python/client.py"))
        .env("PYTHONPATH", stubs);
    Some(command)
}

fn node(test: &str) -> Option<Command> {
    let modules = fetched("node/node_modules", test)?;
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/polyglot/node/client.js"))
        .env("NODE_PATH", modules);
    command.arg(root().join("proto"));
    Some(command)
}

const HOME_AND_WORKER: [(&str, &str); 2] = [("home", "test.home"), ("worker", "test.echo")];

fn home_and_worker() -> Site {
    Site::new(
        &HOME_AND_WORKER
            .map(|(name, skill)| agent(name, &[skill], ""))
            .concat(),
    )
}

#[tokio::test]
async fn python_runs_a_task_on_a_rust_agent_through_a_sidecar() {
    let test = "foreign_clients::python_runs_a_task_on_a_rust_agent_through_a_sidecar";
    let Some(mut client) = python(test) else {
        return;
    };
    let site = home_and_worker();
    let up = site.up(&[]).await;
    let home = &up.instance("default/home", 0).local;
    let out = tools::run(client.args(["run", home, "test.echo", "from Python"]))
        .await
        .ok();
    let last = ended_with(&out);
    assert_eq!(last["state"], "TASK_STATE_COMPLETED");
    assert_eq!(last["text"], "from Python");
    assert_eq!(
        kinds(&out)
            .iter()
            .filter(|kind| *kind == "progress")
            .count(),
        3,
        "{out}"
    );
}

#[tokio::test]
async fn python_runs_a_task_over_mutual_tls_without_a_sidecar() {
    let test = "foreign_clients::python_runs_a_task_over_mutual_tls_without_a_sidecar";
    let Some(mut client) = python(test) else {
        return;
    };
    let site = home_and_worker();
    let up = site.up(&[]).await;
    let identity = issue_service(&site, "default/reports").await;
    let at = &up.endpoints.registry;
    // It asks the registry who can do it, and calls that agent's sidecar under its own name.
    client
        .args(["discover", &at.mtls, &at.server_name])
        .arg(&identity);
    let out = tools::run(client.args(["test.echo", "from a service"]))
        .await
        .ok();
    let last = ended_with(&out);
    assert_eq!(last["state"], "TASK_STATE_COMPLETED");
    assert_eq!(last["text"], "from a service");
}

#[tokio::test]
async fn python_agents_delegate_to_each_other() {
    let test = "foreign_clients::python_agents_delegate_to_each_other";
    let Some(mut client) = python(test) else {
        return;
    };
    let site = Site::of(&root().join("examples/support-desk"));
    let interpreter = fetched("python/bin/python", test).unwrap();
    let set = format!("python={}", interpreter.display());
    let up = site.up(&["--set", &set]).await;
    let desk = &up.instance("default/triage", 0).local;
    let question = "What is the balance of acme?";
    let out = tools::run(client.args(["run", desk, "support.triage", question]))
        .await
        .ok();
    let last = ended_with(&out);
    assert_eq!(last["state"], "TASK_STATE_COMPLETED", "{last}");
    assert_eq!(last["text"], "The balance of acme is 1,250.00 EUR.");
    assert!(kinds(&out).iter().any(|kind| kind == "progress"), "{out}");
}

#[tokio::test]
async fn node_runs_a_task_on_a_rust_agent_through_a_sidecar() {
    let test = "foreign_clients::node_runs_a_task_on_a_rust_agent_through_a_sidecar";
    let Some(mut client) = node(test) else { return };
    let site = home_and_worker();
    let up = site.up(&[]).await;
    let home = &up.instance("default/home", 0).local;
    let out = tools::run(client.args([home, "test.echo", "from Node"]))
        .await
        .ok();
    let last = ended_with(&out);
    assert_eq!(last["state"], "TASK_STATE_COMPLETED");
    assert_eq!(last["text"], "from Node");
    assert_eq!(
        kinds(&out)
            .iter()
            .filter(|kind| *kind == "progress")
            .count(),
        3,
        "{out}"
    );
}

/// A certificate for a service that has no sidecar.
pub(crate) async fn issue_service(site: &Site, name: &str) -> std::path::PathBuf {
    let out = site.path(&name.replace('/', "."));
    let ca = site.state().join("ca");
    let path = |path: &Path| path.display().to_string();
    let issue = [
        "ca",
        "issue",
        "service",
        name,
        "--dir",
        &path(&ca),
        "--out",
        &path(&out),
    ];
    tools::run_attache(&issue).await.ok();
    out
}
