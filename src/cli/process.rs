//! `attache registry` and `attache sidecar`: configuration from file, environment and flags, in
//! rising order, then the process until it is asked to end.

use serde::Serialize;

use super::{
    args::{RegistryArgs, SidecarArgs},
    exit::{Exit, Failed},
    output::Output,
};
use crate::{
    app::{
        self, StartError,
        settings::{RegistrySettings, SidecarSettings},
        shutdown,
    },
    config,
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
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mut settings: RegistrySettings = match &args.config {
        Some(path) => config::load(path).map_err(Failed::usage)?,
        None => RegistrySettings::default(),
    };
    over!(settings, args: ca, state, listen, enrollment, admin);
    if args.print_config {
        return print(&settings, output);
    }
    let stop = Stop::new();
    shutdown::listen(nursery, stop.clone(), args.until_stdin_closes).map_err(Failed::fault)?;
    let told = |at: &app::registry::Listening| {
        output.note(&format!(
            "registry {} serves members at {}, enrolment at {}, admin at http://{}",
            at.id, at.mtls, at.enrollment, at.admin
        ));
    };
    app::registry::run(&settings, stop, told)
        .await
        .map_err(failed)?;
    Ok(Exit::Done)
}

/// Runs a sidecar.
///
/// # Errors
/// When it cannot start.
pub(super) async fn sidecar(
    args: SidecarArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mut settings: SidecarSettings = match &args.config {
        Some(path) => config::load(path).map_err(Failed::usage)?,
        None => SidecarSettings::default(),
    };
    over!(settings, args: state, registry, enrollment, listen, local, admin, advertise, disk_reserve);
    settings.join_file = args.join_file.or(settings.join_file);
    settings.agent = args.agent.or(settings.agent);
    settings.journal = args.journal.unwrap_or(settings.journal);
    if args.print_config {
        return print(&settings, output);
    }
    let stop = Stop::new();
    shutdown::listen(nursery, stop.clone(), args.until_stdin_closes).map_err(Failed::fault)?;
    let told = |at: &crate::sidecar::Listening| {
        output.note(&format!(
            "sidecar of {} ({}) serves members at {}, its agent at {}, admin at http://{}",
            at.id, at.instance, at.mtls, at.local, at.admin
        ));
    };
    app::sidecar::run(&settings, stop, told)
        .await
        .map_err(failed)?;
    Ok(Exit::Done)
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
        StartError::Config(_) | StartError::Value { .. } | StartError::NoAuthority { .. } => {
            Failed::usage(error)
        }
        StartError::Authority(_)
        | StartError::Svid(_)
        | StartError::Transport(_)
        | StartError::Admin(_)
        | StartError::Store { .. }
        | StartError::System { .. }
        | StartError::Sidecar(_) => Failed::fault(error),
    }
}
