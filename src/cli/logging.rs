//! What is logged, and how: to standard error, never to where results go.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::{
    args::{Cli, LogFormat, Verb},
    exit::Failed,
};

/// Starts logging for the whole process. Long-running verbs say what they do, the others only what
/// goes wrong.
///
/// # Errors
/// When the filter cannot be read.
pub(super) fn start(cli: &Cli) -> Result<(), Failed> {
    let quiet = !matches!(cli.verb, Verb::Registry(_) | Verb::Sidecar(_));
    let default = if quiet { "error" } else { "info" };
    let asked = cli.log.as_deref().unwrap_or(default);
    let filter: Targets = asked.parse().map_err(|error| {
        Failed::usage(format!(
            "--log {asked}: {error}; write a level, or attache=debug,info"
        ))
    })?;
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let lines = match cli.log_format {
        LogFormat::Human => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .try_init()
        .map_err(Failed::fault)
}
