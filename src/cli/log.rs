//! `attache log`: what running processes log, shown and changed through their admin listeners.

use serde_json::json;

use super::{
    args::LogLevelArgs,
    asked::{Process, processes},
    exit::{Exit, Failed},
    output::Output,
};

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
