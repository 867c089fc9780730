//! The directory that a mesh keeps between runs: who holds it, which ports it had, where all is.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Seek, Write},
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Directory of the state in the mesh's directory.
pub const STATE_DIR: &str = ".attache";
/// File that says where everything is, there while the mesh runs.
pub const ENDPOINTS: &str = "endpoints.json";

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another `up` holds it.
    #[error(
        "{} is in use by process {pid}: stop it with Ctrl-C or `attache down`, or use --state for another directory", dir.display()
    )]
    Held {
        /// The state's directory.
        dir: PathBuf,
        /// Who holds it.
        pid: String,
    },
    /// The disk says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The state's directory, locked for this process until dropped.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    runtime: PathBuf,
    // Holding the file holds the lock; the system lets it go when the process ends, however.
    _lock: File,
}

/// Where everything is: written for scripts and foreign clients once all is healthy.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Endpoints {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Process of `up`.
    pub pid: u32,
    /// The registry.
    pub registry: RegistryEndpoints,
    /// Each running copy of each agent.
    pub instances: Vec<InstanceEndpoints>,
}

/// Listeners of the registry.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RegistryEndpoints {
    /// Mutual TLS, `host:port`.
    pub mtls: String,
    /// Enrolment, `host:port`.
    pub enrollment: String,
    /// HTTP admin, `host:port`.
    pub admin: String,
    /// DNS name to verify its certificate against.
    pub server_name: String,
}

/// Listeners of one instance's sidecar.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct InstanceEndpoints {
    /// `namespace/name`.
    pub agent: String,
    /// Instance id, as signed in its certificate.
    pub instance: String,
    /// Plaintext listener for its own agent, in gRPC naming syntax.
    pub local: String,
    /// Mutual TLS, `host:port`.
    pub mtls: String,
    /// HTTP admin, `host:port`.
    pub admin: String,
    /// DNS name to verify its certificate against.
    pub server_name: String,
}

impl State {
    /// Makes the directory if need be and locks it.
    ///
    /// # Errors
    /// [`StateError::Held`] with the pid of another `up`, or what the disk says.
    pub fn lock(dir: &Path) -> Result<Self, StateError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StateError::Io { path, source }
        };
        private_dir(dir).map_err(at(dir))?;
        let dir = dir.canonicalize().map_err(at(dir))?;
        let path = dir.join("lock");
        let mut file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(at(&path))?;
                return Err(StateError::Held {
                    dir,
                    pid: pid.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(StateError::Io { path, source }),
        }
        file.set_len(0).map_err(at(&path))?;
        file.rewind().map_err(at(&path))?;
        writeln!(file, "{}", std::process::id()).map_err(at(&path))?;
        let runtime = runtime_dir(&dir)?;
        Ok(Self {
            dir,
            runtime,
            _lock: file,
        })
    }

    /// The pid of the process that holds `dir`, if one does.
    pub fn holder(dir: &Path) -> Option<u32> {
        let path = dir.join("lock");
        let file = File::options().read(true).write(true).open(&path).ok()?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => fs::read_to_string(path).ok()?.trim().parse().ok(),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path within it.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.join(inside)
    }

    /// Address of a Unix socket. In a short directory, since a socket's path may have 104 bytes.
    pub fn socket(&self, name: &str) -> String {
        format!(
            "unix:{}",
            self.runtime.join(format!("{name}.sock")).display()
        )
    }

    /// Makes a directory within it that only its owner may enter.
    ///
    /// # Errors
    /// What the disk says.
    pub fn private(&self, inside: &str) -> Result<PathBuf, StateError> {
        let path = self.path(inside);
        private_dir(&path).map_err(|source| StateError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, inside: &str, text: &str) -> Result<PathBuf, StateError> {
        let path = self.path(inside);
        let failed = |source| StateError::Io {
            path: path.clone(),
            source,
        };
        if let Some(parent) = path.parent() {
            private_dir(parent).map_err(failed)?;
        }
        let draft = path.with_extension("draft");
        fs::write(&draft, text).map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        Ok(path)
    }

    /// Takes back what [`Self::publish`] wrote: nothing is there any more.
    pub fn unpublish(&self) {
        if let Err(error) = fs::remove_file(self.path(ENDPOINTS))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "endpoints.json is left behind");
        }
    }

    /// Publishes where everything is.
    ///
    /// # Errors
    /// What the disk says.
    pub fn publish(&self, endpoints: &Endpoints) -> Result<PathBuf, StateError> {
        let text = serde_json::to_string_pretty(endpoints).expect("plain data is JSON");
        self.write(ENDPOINTS, &text)
    }
}

/// Ports by what listens on them; remembered so that scripts work again on the next run.
#[derive(Debug, Default)]
pub struct Ports {
    known: BTreeMap<String, u16>,
    // Held until all are chosen, so that no port is given twice.
    held: Vec<TcpListener>,
}

impl Ports {
    /// The ports of the last run, if any.
    pub fn remembered(state: &State) -> Self {
        let known = fs::read_to_string(state.path("ports.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        Self {
            known,
            held: Vec::new(),
        }
    }

    /// A port for `what`: `fixed` if not 0, else the remembered one if free, else a free one.
    ///
    /// # Errors
    /// When the system has no free port.
    pub fn choose(&mut self, what: &str, fixed: u16) -> io::Result<u16> {
        if fixed != 0 {
            return Ok(fixed);
        }
        let before = self.known.get(what).copied().unwrap_or(0);
        let again = (before != 0).then(|| TcpListener::bind(("127.0.0.1", before)));
        let listener = match again {
            Some(Ok(listener)) => listener,
            Some(Err(_)) | None => free_port()?,
        };
        let port = listener.local_addr()?.port();
        self.held.push(listener);
        self.known.insert(what.to_owned(), port);
        Ok(port)
    }

    /// Remembers the ports and lets them go, for their listeners to take.
    ///
    /// # Errors
    /// What the disk says.
    pub fn keep(self, state: &State) -> Result<(), StateError> {
        let text = serde_json::to_string_pretty(&self.known).expect("plain data is JSON");
        state.write("ports.json", &text).map(drop)
    }
}

/// Ports below those that systems give to outgoing connections (from 32768 on Linux, from 49152
/// elsewhere): one of these is not taken by a connection while its listener is away for a moment.
const LASTING: std::ops::Range<u32> = 20_000..32_000;
/// Ports between the first tries of two processes that start together: each lets go of what it
/// chose before its children take it.
const APART: u32 = 64;

fn free_port() -> io::Result<TcpListener> {
    let (first, count) = (LASTING.start, LASTING.end - LASTING.start);
    let own = std::process::id().wrapping_mul(APART);
    let mut ports = (0..count).filter_map(|place| {
        let port = first + own.wrapping_add(place) % count;
        TcpListener::bind(("127.0.0.1", u16::try_from(port).ok()?)).ok()
    });
    ports
        .next()
        .map_or_else(|| TcpListener::bind(("127.0.0.1", 0)), Ok)
}

/// Makes a directory, with those above it, that only its owner may enter.
fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Makes the directory of the sockets. Whoever owns a directory above them could put sockets of
/// their own in their place, so each one is ours, or the start is refused.
fn runtime_dir(state: &Path) -> Result<PathBuf, StateError> {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    let given = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.as_os_str().len() < 40 && is_ours(dir));
    let uid = rustix::process::getuid().as_raw();
    let base = given.unwrap_or_else(|| PathBuf::from(format!("/tmp/attache-{uid}")));
    let above = base.join("attache");
    let runtime = above.join(format!("{:08x}", hasher.finish() & 0xffff_ffff));
    for path in [base, above, runtime.clone()] {
        own_dir(&path).map_err(|source| StateError::Io { path, source })?;
    }
    Ok(runtime)
}

/// Makes one directory that only we may enter. One that is there already has to be ours: under
/// `/tmp` anybody may have made it first.
fn own_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if !is_ours(path) {
        let text = "is not a directory of this user, so its sockets would not be safe: remove it, \
                    or set XDG_RUNTIME_DIR to a directory of yours";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Whether it is a directory, itself and not by a link, and this user's.
fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::getuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::lock(&dir.path().join("s")).unwrap();
        let refused = State::lock(&dir.path().join("s")).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        assert_eq!(State::holder(state.dir()), Some(std::process::id()));
        drop(state);
        assert_eq!(State::holder(&dir.path().join("s")), None);
        State::lock(&dir.path().join("s")).unwrap();
    }

    #[test]
    fn ports_are_remembered_and_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::lock(dir.path()).unwrap();
        let mut ports = Ports::remembered(&state);
        let (a, b) = (ports.choose("a", 0).unwrap(), ports.choose("b", 0).unwrap());
        assert_ne!(a, b);
        assert_eq!(ports.choose("c", 9).unwrap(), 9);
        ports.keep(&state).unwrap();
        assert_eq!(Ports::remembered(&state).choose("a", 0).unwrap(), a);
        let _taken = TcpListener::bind(("127.0.0.1", b)).unwrap();
        assert_ne!(Ports::remembered(&state).choose("b", 0).unwrap(), b);
    }

    #[test]
    fn sockets_are_short_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100));
        let state = State::lock(&deep).unwrap();
        assert!(state.socket("billing-1").len() < 100);
        assert_eq!(
            fs::metadata(&state.runtime).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_runtime_directory_of_somebody_else_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let open = above.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        own_dir(&open).unwrap();
        let mode = fs::metadata(&open).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let link = above.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        let refused = own_dir(&link).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let foreign = above.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        // Only root can give a directory away.
        if std::os::unix::fs::chown(&foreign, Some(65_534), None).is_ok() {
            assert!(own_dir(&foreign).is_err());
        }
    }
}
