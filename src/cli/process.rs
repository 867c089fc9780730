//! `attache registry` and `attache sidecar`: configuration from file, environment and flags, in
//! rising order, then the process until it is asked to end.

use serde::Serialize;

use super::{
    args::{LogArgs, RegistryArgs, SidecarArgs, TraceArgs},
    exit::{Exit, Failed},
    output::Output,
};
use crate::{
    app::{
        self, StartError,
        observe::{Observed, Observing},
        settings::{RegistrySettings, SidecarSettings, TelemetrySettings},
        shutdown,
    },
    config::{self, ConfigError},
    runtime::{Nursery, Stop},
};

/// Takes the place of a setting where a flag or the environment gave a value.
macro_rules! over {
    ($settings:ident, $args:ident: $($key:ident),+) => {
        $(if let Some(value) = $args.$key { $settings.$key = value; })+
    };
}

/// Runs a registry.
///
/// # Errors
/// When it cannot start.
pub(super) async fn registry(
    args: RegistryArgs,
    logs: &LogArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mut settings: RegistrySettings = match &args.config {
        Some(path) => config::load(path).map_err(Failed::usage)?,
        None => RegistrySettings::default(),
    };
    over!(settings, args: ca, state, listen, enrollment, admin);
    put_traces(&mut settings.telemetry, &args.traces);
    if args.print_config {
        return print(&settings, output);
    }
    let observed = observe("registry", logs, &settings.telemetry, args.traces)?;
    let stop = Stop::new();
    shutdown::listen(nursery, stop.clone(), args.until_stdin_closes).map_err(Failed::fault)?;
    let told = |at: &app::registry::Listening| {
        output.note(&format!(
            "registry {} serves members at {}, enrolment at {}, admin at http://{}",
            at.id, at.mtls, at.enrollment, at.admin
        ));
    };
    let ran = app::registry::run(&settings, observed.telemetry(), stop, told).await;
    observed.end().await;
    ran.map_err(failed)?;
    Ok(Exit::Done)
}

/// Runs a sidecar.
///
/// # Errors
/// When it cannot start.
pub(super) async fn sidecar(
    args: SidecarArgs,
    logs: &LogArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mut settings: SidecarSettings = match &args.config {
        Some(path) => config::load(path).map_err(Failed::usage)?,
        None => SidecarSettings::default(),
    };
    if let (Some(path), Err((key, text))) = (&args.config, settings.card.check()) {
        let path = path.clone();
        return Err(Failed::usage(ConfigError::Value { path, key, text }));
    }
    over!(settings, args: state, registry, enrollment, listen, local, admin, advertise, disk_reserve);
    settings.join_file = args.join_file.or(settings.join_file);
    settings.agent = args.agent.or(settings.agent);
    settings.journal = args.journal.unwrap_or(settings.journal);
    put_traces(&mut settings.telemetry, &args.traces);
    if args.print_config {
        return print(&settings, output);
    }
    let observed = observe("sidecar", logs, &settings.telemetry, args.traces)?;
    let stop = Stop::new();
    shutdown::listen(nursery, stop.clone(), args.until_stdin_closes).map_err(Failed::fault)?;
    let told = |at: &crate::sidecar::Listening| {
        output.note(&format!(
            "sidecar of {} ({}) serves members at {}, its agent at {}, admin at http://{}",
            at.id, at.instance, at.mtls, at.local, at.admin
        ));
    };
    let ran = Box::pin(app::sidecar::run(
        &settings,
        observed.telemetry(),
        stop,
        told,
    ));
    let ran = ran.await;
    observed.end().await;
    ran.map_err(failed)?;
    Ok(Exit::Done)
}

/// An empty variable of the environment is one that is not set, by OpenTelemetry's rules.
fn put_traces(settings: &mut TelemetrySettings, args: &TraceArgs) {
    if let Some(otlp) = args.otlp.as_ref().filter(|otlp| !otlp.is_empty()) {
        settings.otlp.clone_from(otlp);
    }
}

fn observe(
    role: &'static str,
    logs: &LogArgs,
    settings: &TelemetrySettings,
    args: TraceArgs,
) -> Result<Observed, Failed> {
    let told = Observing {
        filter: logs.log.clone().unwrap_or_else(|| "info".to_owned()),
        format: logs.log_format,
        settings: settings.clone(),
        service: args.service_name.filter(|name| !name.is_empty()),
        role,
    };
    Observed::start(told).map_err(failed)
}

fn print(settings: &impl Serialize, output: &Output) -> Result<Exit, Failed> {
    if output.is_json() {
        output.json(&serde_json::to_value(settings).map_err(Failed::fault)?);
    } else {
        output.line(toml::to_string(settings).map_err(Failed::fault)?.trim_end());
    }
    Ok(Exit::Done)
}

fn failed(error: StartError) -> Failed {
    match error {
        StartError::Config(_)
        | StartError::Value { .. }
        | StartError::Entry { .. }
        | StartError::NoAuthority { .. } => Failed::usage(error),
        StartError::Authority(_)
        | StartError::Svid(_)
        | StartError::Transport(_)
        | StartError::Admin(_)
        | StartError::Store { .. }
        | StartError::System { .. }
        | StartError::Ledger(_)
        | StartError::Sidecar(_) => Failed::fault(error),
    }
}
