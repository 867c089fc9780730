//! `attache breakers`: how sidecars find their way to those whom they call, and whom they leave out.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{
    asked::{Process, processes},
    exit::{Exit, Failed},
    output::Output,
};

/// Shown under `attache breakers --help`.
pub(super) const EXAMPLES: &str = "\
Of a mesh that `attache up` runs:
  attache breakers                           whoever failed of late, as each sidecar sees it
  attache breakers --all billing             all that the sidecars of billing know of anybody
  attache breakers --output json             with latencies, windows, settings and their rules

Started by hand, by the address of its admin listener, on its own machine:
  attache breakers 127.0.0.1:7680

Each sidecar judges by its own calls. An open breaker gets no calls until its time is over; then one
call is its probe. `attache rules` changes when it opens, or switches it off.";

/// `attache breakers`.
#[derive(Clone, Debug, Default, Args)]
pub struct BreakersArgs {
    /// State directory of `attache up`, or one that has it [default: the nearest .attache above]
    #[arg(long, env = "ATTACHE_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
    /// An agent's name, an instance, `all`, or HOST:PORT of an admin listener
    #[arg(default_value = "all", value_name = "NAME|ADDRESS")]
    pub process: String,
    /// Everybody, not only those of whom there is something to be said
    #[arg(long)]
    pub all: bool,
}

/// Shows the breakers of sidecars.
///
/// # Errors
/// When no process is meant, or one does not answer.
pub(super) async fn run(args: &BreakersArgs, output: &Output) -> Result<Exit, Failed> {
    let mut rows = Vec::new();
    for process in processes(&args.process, args.mesh.as_deref())? {
        let Some(page) = page(&process).await? else {
            continue;
        };
        if output.is_json() {
            output.json(&json!({"process": process.name, "traffic": page}));
            continue;
        }
        let instances = page["instances"].as_array().into_iter().flatten();
        let shown = instances.filter(|one| args.all || is_news(one));
        rows.extend(shown.map(|one| row(&process.name, one)));
    }
    if output.is_json() {
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        output.line("no call has failed of late, and no breaker is open; --all lists everybody");
    } else {
        output.table(HEADER, rows);
    }
    Ok(Exit::Done)
}

/// What a process knows of those whom it calls; `None`: it calls nobody, as a registry does.
pub(super) async fn page(process: &Process) -> Result<Option<Value>, Failed> {
    explained(process, "").await
}

/// The same, with what `query` asks for among its targets.
pub(super) async fn explained(process: &Process, query: &str) -> Result<Option<Value>, Failed> {
    match process.ask(&format!("/breakers{query}"), None).await? {
        (200, page) if page["instances"].is_array() => Ok(Some(page)),
        (404, body) if body["error"].is_string() => Ok(None),
        (status, _) => Err(process.stranger(status)),
    }
}

/// Columns of [`row`].
pub(super) const HEADER: &[&str] = &[
    "seen by", "agent", "instance", "breaker", "calls", "good/bad", "latency", "why",
];

/// One instance as one sidecar sees it.
pub(super) fn row(process: &str, one: &Value) -> Vec<String> {
    let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let window = &one["window"];
    let latency = one["latency_ms"].as_f64();
    let why = match (text("reason"), one["serves"].as_bool()) {
        (why, Some(false)) if why.is_empty() => "takes no work, says the catalog".to_owned(),
        (why, _) => why,
    };
    vec![
        process.to_owned(),
        text("agent"),
        text("instance"),
        text("breaker"),
        count(&one["in_flight"]).to_string(),
        format!("{}/{}", count(&window["good"]), count(&window["bad"])),
        latency.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1} ms")),
        why,
    ]
}

/// Whether there is anything to be said of it.
fn is_news(one: &Value) -> bool {
    one["breaker"] != "closed"
        || one["serves"] == false
        || !one["paused_ms"].is_null()
        || one["failures_in_a_row"].as_u64() > Some(0)
        || one["window"]["bad"].as_u64() > Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_one_row_and_news_is_what_is_wrong() {
        let mut one = json!({
            "agent": "default/a", "instance": "i1", "breaker": "closed", "reason": "",
            "serves": true, "in_flight": 2, "failures_in_a_row": 0, "latency_ms": 1.25,
            "window": {"good": 7, "bad": 0}, "paused_ms": null,
        });
        assert!(!is_news(&one));
        let shown = row("default/home", &one).join("|");
        assert_eq!(shown, "default/home|default/a|i1|closed|2|7/0|1.2 ms|");
        one["breaker"] = json!("open");
        one["reason"] = json!("5 failures in a row; a probe goes in 0.9 s");
        assert!(is_news(&one) && row("h", &one)[7].starts_with("5 failures"));
    }
}
