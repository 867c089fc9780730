//! Beside a mesh that runs: checking its file, starting it in the background, stopping it, and
//! forgetting what it left.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    app::up::{
        Mesh, State,
        mesh::Program,
        state::{ENDPOINTS, STATE_DIR},
    },
    cli::{
        args::{CheckArgs, DownArgs, UpArgs},
        exit::{Exit, Failed},
        mesh as found,
        output::Output,
    },
};

/// How long `down` waits for the drain to end: what a mesh with its defaults may take.
const DOWN: Duration = Duration::from_secs(90);

/// `attache check`: says what `up` would start.
///
/// # Errors
/// With file, line, key and what would be right.
pub(in crate::cli) fn check(args: &CheckArgs, output: &Output) -> Result<Exit, Failed> {
    let mesh = Mesh::read(&args.dir, &args.set).map_err(Failed::usage)?;
    if output.is_json() {
        let agents: Vec<_> = mesh.agents.iter().map(|agent| {
            let skills: Vec<&str> = agent.card.skills.iter().map(|s| s.name.as_str()).collect();
            json!({ "agent": agent.name.to_string(), "instances": agent.instances, "skills": skills })
        }).collect();
        let domain = mesh.trust_domain.to_string();
        output
            .json(&json!({ "trust_domain": domain, "agents": agents, "tasks": mesh.tasks.len() }));
        return Ok(Exit::Done);
    }
    output.line(&format!(
        "{} is right: a registry of {}, {}",
        args.dir.join("mesh.toml").display(),
        mesh.trust_domain,
        match mesh.instances() {
            1 => "1 sidecar".to_owned(),
            count => format!("{count} sidecars"),
        }
    ));
    let rows = mesh.agents.iter().map(|agent| {
        let skills: Vec<&str> = agent
            .card
            .skills
            .iter()
            .map(|skill| skill.name.as_str())
            .collect();
        let program = match &agent.program {
            Program::Cargo { package, bin } => format!("cargo: {package}, {bin}"),
            Program::Command { command, .. } => command.join(" "),
            Program::External => "started by you".to_owned(),
        };
        vec![
            agent.name.to_string(),
            agent.instances.to_string(),
            skills.join(" "),
            program,
        ]
    });
    output.table(&["agent", "instances", "skills", "program"], rows.collect());
    Ok(Exit::Done)
}

/// `attache down`: asks the running `up` to drain, and waits until it has.
///
/// # Errors
/// When none runs, or it does not end.
pub(in crate::cli) async fn down(args: &DownArgs, output: &Output) -> Result<Exit, Failed> {
    let dir = args
        .state
        .clone()
        .unwrap_or_else(|| args.dir.join(STATE_DIR));
    let Some(pid) = State::holder(&dir) else {
        output.note(&format!("no mesh runs in {}", dir.display()));
        return Ok(Exit::NotFound);
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| Failed::fault("the lock names no process"))?;
    kill_process(process, Signal::TERM)
        .map_err(|error| Failed::fault(format!("cannot stop process {pid}: {error}")))?;
    let until = Instant::now() + DOWN;
    while State::holder(&dir).is_some() {
        if Instant::now() > until {
            return Err(Failed::fault(format!(
                "process {pid} has not ended within a minute"
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
    output.note("stopped");
    Ok(Exit::Done)
}

/// Removes the state of earlier runs, unless somebody uses it.
pub(super) fn clean(dir: &Path) -> Result<(), Failed> {
    if !dir.exists() {
        return Ok(());
    }
    let looks_like_state = dir.join("lock").is_file() || dir.ends_with(STATE_DIR);
    if !looks_like_state {
        let text = format!(
            "{} does not look like a mesh's state: it is left as it is",
            dir.display()
        );
        return Err(Failed::usage(text));
    }
    // Taking the lock proves that nobody runs on it.
    let held = State::lock(dir).map_err(Failed::fault)?;
    for entry in std::fs::read_dir(held.dir()).map_err(Failed::fault)? {
        let path = entry.map_err(Failed::fault)?.path();
        // Who was left behind by a killed run is still to be ended.
        if path.ends_with("lock") || path.ends_with("children.json") {
            continue;
        }
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|error| Failed::fault(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Starts `up` in the background and waits until its mesh is healthy.
pub(super) async fn detach(args: &UpArgs, output: &Output) -> Result<Exit, Failed> {
    let dir = args
        .state
        .clone()
        .unwrap_or_else(|| args.dir.join(STATE_DIR));
    if let Some(pid) = State::holder(&dir) {
        return Err(Failed::fault(format!(
            "a mesh runs there already: process {pid}"
        )));
    }
    std::fs::create_dir_all(dir.join("logs")).map_err(Failed::fault)?;
    let dir = dir.canonicalize().map_err(Failed::fault)?;
    let log: PathBuf = dir.join("logs/up.log");
    let file = std::fs::File::create(&log).map_err(Failed::fault)?;
    let program = std::env::current_exe().map_err(Failed::fault)?;
    let mut command = Command::new(program);
    command.arg("up").arg(&args.dir).arg("--state").arg(&dir);
    for (key, value) in &args.set {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    if args.clean {
        command.arg("--clean");
    }
    let errors = file.try_clone().map_err(Failed::fault)?;
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .process_group(0);
    let mut child = command.spawn().map_err(Failed::fault)?;
    let pid = child.id();
    loop {
        if let Ok(endpoints) = found::endpoints(&dir)
            && Some(endpoints.pid) == pid
        {
            break;
        }
        if let Some(status) = child.try_wait().map_err(Failed::fault)? {
            let last = crate::app::up::child::last_lines(&log, 0);
            return Err(Failed::fault(format!(
                "the mesh did not come up ({status}):\n{last}"
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
    if output.is_json() {
        output.json(&json!({ "pid": pid, "endpoints": dir.join(ENDPOINTS), "log": log }));
    } else {
        output.line(&format!("endpoints {}", dir.join(ENDPOINTS).display()));
        output.line(&format!("log       {}", log.display()));
        let program = crate::cli::program();
        output.line(&format!(
            "stop      {program} down --state {}",
            dir.display()
        ));
    }
    Ok(Exit::Done)
}
