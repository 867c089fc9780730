//! `attache log`: what running processes log, shown and changed through their admin listeners.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    asked::{Process, processes},
    exit::{Exit, Failed},
    output::Output,
};

/// Shown under `attache log --help`.
pub(super) const EXAMPLES: &str = "\
Of a mesh that `attache up` runs:
  attache log                                all processes and what each logs
  attache log billing                        the sidecars of the agent billing
  attache log billing attache::task=debug,info
  attache log all info                       back to where it was

Started by hand, by the address of its admin listener, on its own machine:
  attache log 127.0.0.1:7680 debug

A filter is a level (off, error, warn, info, debug, trace), or TARGET=LEVEL pairs and a level for
the rest. Targets are parts of the program: attache::task, attache::transport, attache::registry,
attache::identity, attache::sidecar, h2, rustls. It holds until the process ends.";

/// `attache log`.
#[derive(Clone, Debug, Default, Args)]
pub struct LogLevelArgs {
    /// State directory of `attache up`, or one that has it [default: the nearest .attache above]
    #[arg(long, env = "ATTACHE_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
    /// `registry`, an agent's name, an instance, `all`, or HOST:PORT of an admin listener
    #[arg(default_value = "all", value_name = "NAME|ADDRESS")]
    pub process: String,
    /// What it is to log from now on; without: only show
    pub filter: Option<String>,
}

/// Shows or changes what processes log.
///
/// # Errors
/// When none is meant, one does not answer, or refuses the filter.
pub(super) async fn run(args: &LogLevelArgs, output: &Output) -> Result<Exit, Failed> {
    let mut rows = Vec::new();
    for process in processes(&args.process, args.mesh.as_deref())? {
        let filter = filter(&process, args.filter.as_deref()).await?;
        if output.is_json() {
            let admin = &process.admin;
            output.json(&json!({"process": process.name, "admin": admin, "filter": filter}));
        } else {
            rows.push(vec![process.name, process.admin, filter]);
        }
    }
    if !output.is_json() {
        output.table(&["process", "admin", "logs"], rows);
    }
    Ok(Exit::Done)
}

/// The filter in force after this.
async fn filter(process: &Process, filter: Option<&str>) -> Result<String, Failed> {
    let (status, body) = process.ask("/log", filter).await?;
    match (status, body["filter"].as_str()) {
        (200, Some(filter)) => Ok(filter.to_owned()),
        (400, _) => {
            let why = body["error"].as_str().unwrap_or("no reason given");
            Err(Failed::usage(format!("{}: {why}", process.name)))
        }
        (status, _) => Err(process.stranger(status)),
    }
}
