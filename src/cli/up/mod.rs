//! `attache up`: a whole mesh on this machine, and what is done with it.

mod aside;

use std::time::Duration;

use tokio::{
    process::Command,
    signal::unix::{Signal as Signals, SignalKind, signal},
};

pub(in crate::cli) use self::aside::{check, down};
use self::aside::{clean, detach};
use crate::{
    app::up::{
        LocalMesh, Mesh, State, UpError, build,
        child::ChildEvent,
        ends_within,
        leftovers::{end_leftovers, kill_now},
        mesh::MeshTask,
        state::STATE_DIR,
    },
    cli::{
        args::{MeshArgs, TaskArgs, TaskVerb, UpArgs},
        exit::{Exit, Failed},
        output::Output,
        task,
    },
    runtime::{Nursery, clock},
};

/// How often the operator's certificate and the CA's directory are looked at: other roots are trusted
/// for seconds at least before they sign.
const REFRESH: Duration = Duration::from_secs(1);

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
    let local = tokio::select! {
        local = LocalMesh::start(&mesh, &built, &state, nursery, &mut say) => Some(local.map_err(failed)?),
        () = stops.next() => None,
    };
    let Some(local) = local else {
        output.note("interrupted: ending what was started; Ctrl-C again ends at once");
        tokio::select! {
            () = nursery.close(ends_within(&mesh)) => {}
            () = stops.next() => kill_now(&state).await,
        }
        return Ok(Exit::Interrupted);
    };
    let running = Running {
        args: &args,
        mesh: &mesh,
        state: &state,
        output,
        nursery,
    };
    Box::pin(running.serve(local, &mut stops)).await
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

/// A mesh that is up, and what is wanted of it.
struct Running<'a> {
    args: &'a UpArgs,
    mesh: &'a Mesh,
    state: &'a State,
    output: &'a Output,
    nursery: &'a Nursery,
}

impl Running<'_> {
    /// Does what is wanted while watching over the children, then drains.
    async fn serve(&self, mut local: LocalMesh, stops: &mut Stops) -> Result<Exit, Failed> {
        let (state, output) = (self.state, self.output);
        announce(self.mesh, &local, state, output);
        let exit = {
            let work = self.work();
            tokio::pin!(work);
            let mut refresh = tokio::time::interval(REFRESH);
            let mut said = String::new();
            loop {
                tokio::select! {
                    done = &mut work => break done,
                    event = local.next_event(state) => tell(event, output),
                    () = stops.next() => break Ok(interrupted(self.args)),
                    _ = refresh.tick() => {
                        let refreshed = local.operator().refresh(clock::wall());
                        let wrong = refreshed.map_or_else(|error| error.to_string(), |()| String::new());
                        if wrong != said && !wrong.is_empty() {
                            output.error(&wrong);
                        }
                        said = wrong;
                    }
                }
            }
        };
        output
            .note("draining: sidecars first, then agents and registry; Ctrl-C again ends at once");
        state.unpublish();
        tokio::select! {
            () = local.stop() => {}
            () = stops.next() => kill_now(state).await,
        }
        exit
    }

    /// What is to be done with the mesh: its tasks, a command, or just to stay.
    async fn work(&self) -> Result<Exit, Failed> {
        if !self.args.command.is_empty() {
            return run_command(&self.args.command, self.state, self.output).await;
        }
        let mut exit = Exit::Done;
        for listed in &self.mesh.tasks {
            let one = Box::pin(self.run_listed(listed)).await;
            if exit == Exit::Done {
                exit = one;
            }
        }
        if self.args.once {
            return Ok(exit);
        }
        self.output.note("running; Ctrl-C drains and stops");
        std::future::pending().await
    }

    async fn run_listed(&self, listed: &MeshTask) -> Exit {
        let args = TaskArgs {
            mesh: MeshArgs {
                mesh: Some(self.state.dir().to_path_buf()),
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
            scope: Vec::new(),
            key: None,
            priority: None,
            callback: None,
            callback_state: Vec::new(),
        };
        self.output.note(&format!("\nrunning {}", listed.skill));
        let ran = task::run(TaskVerb::Run(args), self.output, self.nursery).await;
        ran.unwrap_or_else(|failed| {
            self.output.error(&failed.text);
            failed.exit
        })
    }
}

fn interrupted(args: &UpArgs) -> Exit {
    // Whoever stays until Ctrl-C has got what was asked for; whoever waits for an outcome has not.
    if args.once || !args.command.is_empty() {
        Exit::Interrupted
    } else {
        Exit::Done
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
            crate::cli::program(),
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
