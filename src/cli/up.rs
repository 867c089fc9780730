//! `attache up`, `down` and `check`: a whole mesh on this machine.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    process::Command,
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep},
};

use crate::{
    app::up::{
        LocalMesh, Mesh, State, UpError, build,
        child::ChildEvent,
        leftovers::{end_leftovers, kill_now},
        mesh::{MeshTask, Program},
        state::STATE_DIR,
    },
    cli::{
        args::{CheckArgs, DownArgs, MeshArgs, TaskArgs, UpArgs},
        exit::{Exit, Failed},
        mesh as found,
        output::Output,
        task,
    },
    runtime::{Nursery, clock},
};

/// How often the operator's certificate is looked at.
const REFRESH: Duration = Duration::from_secs(60);
/// How long `down` waits for the drain to end.
const DOWN: Duration = Duration::from_secs(60);

/// `attache check`: says what `up` would start.
///
/// # Errors
/// With file, line, key and what would be right.
pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<Exit, Failed> {
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
pub(super) async fn down(args: &DownArgs, output: &Output) -> Result<Exit, Failed> {
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

/// `attache up`.
///
/// # Errors
/// When the mesh does not come up; with what to look at next.
pub(super) async fn up(args: UpArgs, output: &Output, nursery: &Nursery) -> Result<Exit, Failed> {
    if args.detach {
        return detach(&args, output).await;
    }
    let mesh = Mesh::read(&args.dir, &args.set).map_err(Failed::usage)?;
    let at = args
        .state
        .clone()
        .unwrap_or_else(|| args.dir.join(STATE_DIR));
    if args.clean {
        clean(&at)?;
    }
    let state = State::lock(&at).map_err(Failed::fault)?;
    let left = end_leftovers(&state).await;
    if left > 0 {
        output.note(&format!(
            "ended {left} processes that an earlier run left behind"
        ));
    }
    let mut stops = Stops::listen()?;
    let built = tokio::select! {
        built = build::build(&mesh, |text| output.note(&text)) => built.map_err(Failed::fault)?,
        () = stops.next() => return Ok(Exit::Interrupted),
    };
    output.note("starting: the registry, then each agent with its sidecar");
    let mut say = |text: String| output.note(&format!("  {text}"));
    // An interrupted start drops the children, which are killed then; the lock outlives them.
    let local = tokio::select! {
        local = LocalMesh::start(&mesh, &built, &state, nursery, &mut say) => local.map_err(failed)?,
        () = stops.next() => {
            nursery.close(Duration::from_secs(1)).await;
            end_leftovers(&state).await;
            return Ok(Exit::Interrupted);
        }
    };
    let outcome = Box::pin(serve(
        &args, &mesh, &state, local, &mut stops, output, nursery,
    ))
    .await;
    drop(state);
    outcome
}

fn failed(error: UpError) -> Failed {
    match error {
        UpError::Config(_) | UpError::OtherDomain { .. } => Failed::usage(error),
        UpError::State(_)
        | UpError::Build(_)
        | UpError::Authority(_)
        | UpError::Svid(_)
        | UpError::NoPort(_)
        | UpError::NoProgram(_)
        | UpError::Invite(_)
        | UpError::Died { .. }
        | UpError::NotReady { .. } => Failed::fault(error),
    }
}

async fn serve(
    args: &UpArgs,
    mesh: &Mesh,
    state: &State,
    mut local: LocalMesh,
    stops: &mut Stops,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    announce(mesh, &local, state, output);
    let exit = {
        let work = work(args, mesh, state, output, nursery);
        tokio::pin!(work);
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                done = &mut work => break done,
                event = local.next_event(state) => tell(event, output),
                () = stops.next() => break Ok(interrupted(args)),
                _ = refresh.tick() => {
                    if let Err(error) = local.operator().refresh(clock::wall()) {
                        output.error(&error.to_string());
                    }
                }
            }
        }
    };
    output.note("draining: sidecars first, then agents and registry; Ctrl-C again ends at once");
    state.unpublish();
    tokio::select! {
        () = local.stop() => {}
        () = stops.next() => kill_now(state).await,
    }
    exit
}

fn interrupted(args: &UpArgs) -> Exit {
    // Whoever stays until Ctrl-C has got what was asked for; whoever waits for an outcome has not.
    if args.once || !args.command.is_empty() {
        Exit::Interrupted
    } else {
        Exit::Done
    }
}

/// What is to be done with the mesh: its tasks, a command, or just to stay.
async fn work(
    args: &UpArgs,
    mesh: &Mesh,
    state: &State,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mut exit = Exit::Done;
    if args.command.is_empty() {
        for listed in &mesh.tasks {
            let one = Box::pin(run_listed(listed, state, output, nursery)).await?;
            if exit == Exit::Done {
                exit = one;
            }
        }
        if args.once {
            return Ok(exit);
        }
        output.note("running; Ctrl-C drains and stops");
        return std::future::pending().await;
    }
    run_command(&args.command, state, output).await
}

async fn run_listed(
    listed: &MeshTask,
    state: &State,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let args = TaskArgs {
        mesh: MeshArgs {
            mesh: Some(state.dir().to_path_buf()),
            ..Default::default()
        },
        skill: listed.skill.to_string(),
        text: listed.text.clone(),
        data: listed.data.as_ref().map(ToString::to_string),
        file: Vec::new(),
        agent: listed.agent.clone(),
        timeout: listed.timeout,
        fail_fast: false,
        correlation: None,
    };
    output.note(&format!("\nrunning {}", listed.skill));
    match task::run(crate::cli::args::TaskVerb::Run(args), output, nursery).await {
        Ok(exit) => Ok(exit),
        Err(failed) => {
            output.error(&failed.text);
            Ok(failed.exit)
        }
    }
}

async fn run_command(command: &[String], state: &State, output: &Output) -> Result<Exit, Failed> {
    let [program, arguments @ ..] = command else {
        return Ok(Exit::Done);
    };
    output.wipe();
    let status = Command::new(program)
        .args(arguments)
        .env("ATTACHE_MESH", state.dir())
        // They would win over the mesh that the command is meant for.
        .env_remove("ATTACHE_IDENTITY")
        .env_remove("ATTACHE_REGISTRY")
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| Failed::usage(format!("cannot run {program}: {error}")))?;
    // The command's own code is the outcome; 128 + signal as shells have it.
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(Exit::Command(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

fn announce(mesh: &Mesh, local: &LocalMesh, state: &State, output: &Output) {
    if output.is_json() {
        return;
    }
    let endpoints = local.endpoints();
    let rows = endpoints.instances.iter().map(|one| {
        vec![
            one.agent.clone(),
            one.instance.clone(),
            one.mtls.clone(),
            one.local.clone(),
        ]
    });
    output.note("");
    output.side_table(
        &["agent", "instance", "mutual TLS", "local"],
        rows.collect(),
    );
    output.note(&format!(
        "registry {}; state and logs in {}",
        endpoints.registry.mtls,
        state.dir().display()
    ));
    let skill = mesh
        .agents
        .iter()
        .flat_map(|agent| &agent.card.skills)
        .next();
    if let Some(skill) = skill {
        let mesh = MeshArgs {
            mesh: Some(state.dir().to_path_buf()),
            ..Default::default()
        };
        let dir = mesh
            .mesh
            .as_deref()
            .map_or(String::new(), |dir| dir.display().to_string());
        output.note(&format!(
            "try: {} task run --mesh {dir} {} --text \"...\"",
            super::program(),
            skill.name
        ));
    }
}

fn tell(event: Option<ChildEvent>, output: &Output) {
    match event {
        Some(ChildEvent::Died {
            name,
            how,
            last_lines,
            again_in,
        }) => {
            output.error(&format!(
                "{name} {how}; started again in {again_in:.1?}; its last lines:"
            ));
            for line in last_lines.lines() {
                output.note(&format!("  | {}", super::output::clean(line)));
            }
        }
        Some(ChildEvent::Started { name, pid }) => tracing::debug!(name, pid, "started"),
        None => {}
    }
}

/// Ctrl-C and SIGTERM, one after the other.
struct Stops {
    interrupt: Signals,
    terminate: Signals,
}

impl Stops {
    fn listen() -> Result<Self, Failed> {
        let interrupt = signal(SignalKind::interrupt()).map_err(Failed::fault)?;
        let terminate = signal(SignalKind::terminate()).map_err(Failed::fault)?;
        Ok(Self {
            interrupt,
            terminate,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Removes the state of earlier runs, unless somebody uses it.
fn clean(dir: &Path) -> Result<(), Failed> {
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
async fn detach(args: &UpArgs, output: &Output) -> Result<Exit, Failed> {
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
        output.json(&json!({ "pid": pid, "endpoints": dir.join("endpoints.json"), "log": log }));
    } else {
        output.line(&format!(
            "endpoints {}",
            dir.join("endpoints.json").display()
        ));
        output.line(&format!("log       {}", log.display()));
        output.line(&format!(
            "stop      {} down --state {}",
            super::program(),
            dir.display()
        ));
    }
    Ok(Exit::Done)
}
