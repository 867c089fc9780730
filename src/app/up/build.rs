//! Building the agents of a mesh: cargo binaries together, then everybody else's commands.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::mesh::{Mesh, Program};

/// Why an agent cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The builder is not there.
    #[error("cannot run {command}: {source}; is it installed?")]
    NotStarted {
        /// What was to run.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The builder failed; it has printed why.
    #[error("{command} failed ({status}); its messages are above")]
    Failed {
        /// What ran.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Cargo built no such binary.
    #[error("package {package} has no binary {bin}: name one of its [[bin]] in mesh.toml")]
    NoBinary {
        /// Package.
        package: String,
        /// Binary.
        bin: String,
    },
}

/// Executables by (package, binary).
pub type Executables = BTreeMap<(String, String), PathBuf>;

/// Builds what the mesh needs, telling `say` what goes on. Builders write to our standard error.
///
/// # Errors
/// When a builder is missing or fails.
pub async fn build(mesh: &Mesh, mut say: impl FnMut(String)) -> Result<Executables, BuildError> {
    let mut packages: Vec<(String, String)> = Vec::new();
    for agent in &mesh.agents {
        if let Program::Cargo { package, bin } = &agent.program {
            packages.push((package.clone(), bin.clone()));
        }
    }
    let built = if packages.is_empty() {
        Executables::new()
    } else {
        cargo(&mesh.dir, &packages, &mut say).await?
    };
    for agent in &mesh.agents {
        if let Program::Command { build, .. } = &agent.program {
            for command in build {
                say(format!("building {}: {}", agent.name, command.join(" ")));
                run(&mesh.dir, command).await?;
            }
        }
    }
    Ok(built)
}

/// One message of `cargo build --message-format=json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct CargoMessage {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<CargoTarget>,
    package_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CargoTarget {
    name: String,
}

/// All packages in one call together with ours: alone, cargo would unify features differently and
/// compile the dependencies a second time.
async fn cargo(
    dir: &Path,
    packages: &[(String, String)],
    say: &mut impl FnMut(String),
) -> Result<Executables, BuildError> {
    let mut names: Vec<&str> = packages
        .iter()
        .map(|(package, _)| package.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    say(format!("building {} with cargo", names.join(", ")));
    let mut arguments = vec!["build", "--message-format=json-render-diagnostics"];
    if !cfg!(debug_assertions) {
        arguments.push("--release");
    }
    if in_our_workspace(dir) {
        arguments.extend(["-p", env!("CARGO_PKG_NAME")]);
    }
    for name in names {
        arguments.extend(["-p", name]);
    }
    let shown = format!("cargo {}", arguments.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(&arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| BuildError::NotStarted {
            command: shown.clone(),
            source,
        })?;
    let mut built = Executables::new();
    let out = child.stdout.take().expect("standard output is piped");
    let mut lines = BufReader::new(out).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(((package, bin), path)) = executable(&line, packages) {
            built.insert((package, bin), path);
        }
    }
    finish(child, shown).await?;
    match packages.iter().find(|wanted| !built.contains_key(*wanted)) {
        Some((package, bin)) => Err(BuildError::NoBinary {
            package: package.clone(),
            bin: bin.clone(),
        }),
        None => Ok(built),
    }
}

/// Whether the mesh lies in the workspace that this program was built from.
fn in_our_workspace(dir: &Path) -> bool {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize();
    matches!((ours, dir.canonicalize()), (Ok(ours), Ok(dir)) if dir.starts_with(&ours))
}

fn executable(line: &str, wanted: &[(String, String)]) -> Option<((String, String), PathBuf)> {
    let message: CargoMessage = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" {
        return None;
    }
    let (path, bin) = (message.executable?, message.target?.name);
    // `path+file:///dir/name#0.1.0` or `...#name@0.1.0`: the name is in it either way.
    let id = message.package_id?;
    let found = wanted
        .iter()
        .find(|(package, name)| *name == bin && id.contains(package))?;
    Some((found.clone(), path))
}

async fn run(dir: &Path, command: &[String]) -> Result<(), BuildError> {
    let shown = command.join(" ");
    let [program, arguments @ ..] = command else {
        return Ok(());
    };
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        // Standard output is ours to speak on: what a builder prints is not.
        .stdout(std::io::stderr())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| BuildError::NotStarted {
            command: shown.clone(),
            source,
        })?;
    finish(child, shown).await
}

async fn finish(mut child: tokio::process::Child, command: String) -> Result<(), BuildError> {
    let status = child
        .wait()
        .await
        .map_err(|source| BuildError::NotStarted {
            command: command.clone(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(BuildError::Failed { command, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_come_from_cargos_messages() {
        let wanted = [("desk".to_owned(), "search".to_owned())];
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/desk#0.1.0","target":{"name":"search"},"executable":"/t/search"}"#;
        assert_eq!(
            executable(line, &wanted),
            Some((wanted[0].clone(), "/t/search".into()))
        );
        for other in [
            r#"{"reason":"build-finished","success":true}"#,
            "   Compiling x",
            r#"{"reason":"compiler-artifact","package_id":"x#desk@1","target":{"name":"lib"},"executable":null}"#,
        ] {
            assert_eq!(executable(other, &wanted), None);
        }
    }
}
