//! The processes of a local mesh as jobs: what is run, with which environment, and how long each may
//! take to end.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{
    build::Executables,
    child::{Job, Supervised},
    error::UpError,
    local::{AGENT_ENDS, BEYOND_DRAIN, Starting},
    mesh::Program,
    places::Instance,
};

/// What agents must reach without a proxy.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

impl Starting<'_> {
    pub(super) fn start_agent(
        &mut self,
        instance: &Instance<'_>,
        built: &Executables,
    ) -> Result<Option<Supervised>, UpError> {
        let agent = instance.agent;
        let mut command = match &agent.program {
            Program::External => return Ok(None),
            Program::Command { command, .. } => command.clone(),
            Program::Cargo { package, bin } => {
                let path = built.get(&(package.clone(), bin.clone()));
                vec![path.map_or_else(|| bin.clone(), |path| path.display().to_string())]
            }
        };
        command.extend(agent.args.iter().cloned());
        let mut env = agent.env.clone();
        env.insert("ATTACHE_LISTEN".into(), instance.handler.clone());
        env.insert("ATTACHE_SIDECAR".into(), instance.local.clone());
        self.mesh.telemetry.tell_agent(&mut env);
        // A proxy of the user's shell must not see what agents say to their own machine.
        env.insert("NO_PROXY".into(), NO_PROXY.into());
        env.insert("no_proxy".into(), NO_PROXY.into());
        let name = format!("{}-agent", instance.label);
        Ok(Some(self.child(
            name,
            command,
            env,
            &self.mesh.dir.clone(),
            AGENT_ENDS,
        )?))
    }

    /// One of our own processes. It drains when its standard input closes, so that it does not
    /// outlive an `up` that was killed.
    pub(super) fn attache(
        &mut self,
        name: &str,
        verb: &str,
        config: &Path,
    ) -> Result<Supervised, UpError> {
        let program = std::env::current_exe().map_err(UpError::NoProgram)?;
        let command = [
            program.display().to_string(),
            verb.to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
            "--until-stdin-closes".to_owned(),
        ];
        let dir = self.state.dir().to_path_buf();
        let drain = if verb == "registry" {
            self.mesh.registry.drain
        } else {
            self.mesh.sidecars.drain
        };
        let grace = drain.0 + BEYOND_DRAIN;
        self.child(
            name.to_owned(),
            command.to_vec(),
            BTreeMap::new(),
            &dir,
            grace,
        )
    }

    fn child(
        &mut self,
        name: String,
        command: Vec<String>,
        env: BTreeMap<String, String>,
        dir: &Path,
        grace: Duration,
    ) -> Result<Supervised, UpError> {
        let log = self.state.private("logs")?.join(format!("{name}.log"));
        let job = Job {
            name,
            command,
            env,
            dir: dir.to_path_buf(),
            log,
            grace,
        };
        Ok(Supervised::start(self.nursery, job, self.tell.clone()))
    }
}
